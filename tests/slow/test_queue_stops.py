"""Workers of queues, stopped at random moments under a flood of short jobs: none is lost, none runs twice. With RQ alone some are lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import redisserver

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("celery") is None or find_spec("rq") is None, reason="no Celery, no RQ"),
]

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CELERY: Final = """
import os, time
import redis, requiem_systemd.adapters.celery
from celery import Celery
app = Celery("flood", broker=os.environ["BROKER"])
requiem_systemd.adapters.celery.hold(app)
client = None
@app.task(name="early")
def early(n):
    global client
    client = client or redis.Redis.from_url(os.environ["BROKER"])
    time.sleep(0.003)
    client.rpush("done", n)
@app.task(name="late", acks_late=True)
def late(n):
    early(n)
if __name__ == "__main__":
    import sys
    for n in range(int(sys.argv[1]), int(sys.argv[2])):
        (early, late)[n % 2].delay(n)
"""
RQ: Final = """
import os, sys
import redis, rq
client = redis.Redis.from_url(os.environ["BROKER"])
def done(n):
    rq.get_current_job().connection.rpush("done", n)
def worker(kind):
    class Quiet(kind):
        def unsubscribe(self):
            os.close(1)  # it would wait a second for its thread
    Quiet(["flood", "other"], connection=client).work(logging_level="ERROR")
if __name__ == "__main__":
    queue = rq.Queue("flood", connection=client)
    for n in range(int(sys.argv[1]), int(sys.argv[2])):
        queue.enqueue("flood.done", n, result_ttl=0)
"""
WORKERS: Final = {
    "celery prefork": ("-m", "celery", "-A", "flood", "worker", "-c", "3", "-P", "prefork", "-l", "ERROR", "--without-mingle"),
    "celery threads": ("-m", "celery", "-A", "flood", "worker", "-c", "3", "-P", "threads", "-l", "ERROR", "--without-mingle"),
    "rq": ("-c", "import flood, requiem_systemd.adapters.rq as held; flood.worker(held.SimpleWorker)"),
    "rq alone": ("-c", "import flood, rq; flood.worker(rq.SimpleWorker)"),
}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[redisserver.Server]:
    """Start a Redis."""
    with redisserver.serving(tmp_path) as server:
        yield server


def flooded(form: str, broker: redisserver.Server, folder: Path, stops: int) -> tuple[int, int]:
    """Stop as many workers of a form, one after the other; return how many jobs were lost, and how many runs were one too many."""
    (folder / "flood.py").write_text(CELERY if form.startswith("celery") else RQ)
    path = "celery" if form.startswith("celery") else "rq:queue:flood"
    env = {**os.environ, "BROKER": broker.url, "PYTHONPATH": f"{CHECKOUT}:{folder}", "PYTHONWARNINGS": "ignore"}
    queued = 0
    for _ in range(stops):
        if broker.ask("LLEN", path) < 1000:
            subprocess.run([sys.executable, "flood.py", str(queued), str(queued + 1000)], cwd=folder, env=env, check=True)
            queued += 1000
        before = broker.ask("LLEN", "done")
        with subprocess.Popen([sys.executable, *WORKERS[form]], cwd=folder, env=env, stdout=subprocess.DEVNULL) as process:
            try:
                while broker.ask("LLEN", "done") < before + 10:
                    assert process.poll() is None
                    time.sleep(0.005)
                time.sleep(random.uniform(0, 0.1))
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
            finally:
                process.kill()
    done = Counter(map(int, broker.ask("LRANGE", "done", 0, -1)))
    return queued - len(done) - broker.ask("LLEN", path), sum(done.values()) - len(done)


@pytest.mark.parametrize("form", ["celery prefork", "celery threads", "rq"])
def test_each_once(form: str, broker: redisserver.Server, tmp_path: Path, repetitions: int) -> None:
    """Every job has run once, or waits in the queue."""
    assert flooded(form, broker, tmp_path, 25 if repetitions == 3 else 100) == (0, 0)


def test_rq_alone_loses_some(broker: redisserver.Server, tmp_path: Path) -> None:
    """RQ's own handler loses jobs: the test above can fail."""
    lost, _ = flooded("rq alone", broker, tmp_path, 40)
    assert lost > 0
