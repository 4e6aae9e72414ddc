"""arq, as its command starts it: jobs run to their end, once, and none is cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from requiem_systemd.adapters.arq import hold
from tests.conformance.conftest import CHECKOUT, PROGRAMS
from tests.conformance.working import Program, program, redis_server

#: arq in a folder of its own, where tests/run installs it: it wants an older redis-py than Celery does.
APART = Path(sys.prefix) / "apart" / "arq"
ENVIRONMENT = {"PYTHONPATH": f"{APART}:{PROGRAMS}:{CHECKOUT}"}
COMMAND = ("{python}", "-m", "arq")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Redis, and return its URL."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(autouse=True)
def _empty(redis_url: str) -> None:
    """Begin with nothing in it."""
    subprocess.run(("redis-cli", "-u", redis_url, "flushall"), check=True, capture_output=True)


def queued(url: str) -> int:
    """Count the jobs that have not ended."""
    return int(subprocess.run(("redis-cli", "-u", url, "zcard", "arq:queue"), check=True, capture_output=True, text=True).stdout)


def enqueue(url: str, function: str, *arguments: str) -> None:
    """Enqueue a job."""
    env = {**os.environ, **ENVIRONMENT, "REDIS_URL": url}
    subprocess.run((sys.executable, "-B", PROGRAMS / "arq_app.py", function, *arguments), check=True, env=env)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Program]:
    """Return a worker, not started."""
    with program(tmp_path, *COMMAND, "arq_app.WorkerSettings") as made:
        yield made


def working(worker: Program, url: str, *job: str, begun: str = "begun job") -> Program:
    """Start it, and wait until it works on a job."""
    enqueue(url, *job)
    worker.launch(**ENVIRONMENT, REDIS_URL=url)
    worker.wait_recorded(begun)
    return worker


def test_job(worker: Program, redis_url: str) -> None:
    """A job is held past TimeoutStopSec=, and not cancelled; the worker's own shutdown comes once, after it."""
    working(worker, redis_url, "work", "job", "5").stop()
    assert worker.ended() == ["startup", "begun job", "ended job", "shutdown"]
    worker.is_clean()
    assert queued(redis_url) == 0
    assert worker.manager.result == "success"


def test_label(worker: Program, redis_url: str) -> None:
    """Operators see the job by its function's name."""
    working(worker, redis_url, "work", "job", "4").stop()
    worker.wait_for(lambda: 'oldest "work ' in worker.manager.status)
    worker.ended()


def test_fetches_no_more(worker: Program, redis_url: str) -> None:
    """What is enqueued from the begin on, and what gets a free place only then, is the next process's."""
    enqueue(redis_url, "work", "job", "6")
    enqueue(redis_url, "work", "short", "3")
    worker.launch(**ENVIRONMENT, REDIS_URL=redis_url, MAX_JOBS="2")
    worker.wait_recorded("begun job")
    worker.wait_recorded("begun short")
    enqueue(redis_url, "work", "waiting", "0")
    worker.stop()
    enqueue(redis_url, "work", "late", "0")
    assert worker.ended()[3:] == ["ended short", "ended job", "shutdown"]
    worker.launch(**ENVIRONMENT, REDIS_URL=redis_url)
    worker.wait_recorded("ended waiting")
    worker.wait_recorded("ended late")
    worker.stop()
    assert [worker.ended().count(f"begun {name}") for name in ("job", "short", "waiting", "late")] == [1] * 4


def test_begun_in_the_drain(worker: Program, redis_url: str) -> None:
    """A job that a job begins in the drain is held; one that it enqueues is the next process's, once."""
    working(worker, redis_url, "chain", "3", begun="begun first").stop()
    recorded = worker.ended()
    assert recorded[-2:] == ["ended second", "shutdown"]
    worker.launch(**ENVIRONMENT, REDIS_URL=redis_url)
    worker.wait_recorded("ended third")
    worker.stop()
    recorded = worker.ended()
    assert [recorded.count(f"begun {name}") for name in ("first", "second", "third")] == [1, 1, 1]


def test_double_sigterm(worker: Program, redis_url: str) -> None:
    """A second SIGTERM changes nothing."""
    working(worker, redis_url, "work", "job", "4").stop()
    worker.manager.kill("SIGTERM")
    worker.signal_all(signal.SIGTERM)
    assert worker.ended().count("ended job") == 1
    worker.is_clean()


def test_sigint_twice(worker: Program, redis_url: str) -> None:
    """SIGINT twice abandons, with the name: arq cancels the job, and the next process runs it again."""
    working(worker, redis_url, "work", "job", "300").sigint_again()
    recorded = worker.ended(status=75)
    assert recorded == ["startup", "begun job", "cancelled job", "shutdown"]
    assert 'abandoned "work ' in worker.output
    assert queued(redis_url) == 1


def test_failing_job(worker: Program, redis_url: str) -> None:
    """A job that raises holds nothing afterwards."""
    working(worker, redis_url, "fail", begun="failed").stop()
    worker.ended()
    assert "abandoned" not in worker.output


def test_idle_stop(worker: Program, redis_url: str) -> None:
    """With nothing to do it ends at once, with status 0."""
    worker.launch(**ENVIRONMENT, REDIS_URL=redis_url)
    worker.manager.stop()
    assert worker.ended() == ["startup", "shutdown"]
    worker.is_clean()


def test_burst(tmp_path: Path, redis_url: str) -> None:
    """A worker that ends because there is no more work waits for what a job has left running."""
    enqueue(redis_url, "chain", "0")
    with program(tmp_path, *COMMAND, "--burst", "arq_app.WorkerSettings") as worker:
        worker.launch(**ENVIRONMENT, REDIS_URL=redis_url)
        assert worker.ended()[-2:] == ["ended second", "shutdown"]
        worker.is_clean()


def test_dict_of_settings() -> None:
    """Settings may be a dict, as for arq; what they are not is refused."""
    settings: dict[str, object] = hold({"functions": []})
    assert settings["handle_signals"] is False
    with pytest.raises(TypeError, match="give arq's WorkerSettings"):
        hold("settings")
