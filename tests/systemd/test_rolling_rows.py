"""Rolls in a row, with jobs that outlive many of them: none fails, none is lost, and nothing is left behind."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests import redisserver
from tests.systemd import test_rolling
from tests.systemd.load import Load
from tests.systemd.rolling import FOUR_JOBS, SERVER, Rolled, traces
from tests.systemd.test_rolling import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.systemd.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.soak]
rolled = test_rolling.rolled  # the fixture
#: How many rolls in a row: of a service with a listener, of queue workers; and how long the jobs take, in seconds.
ROLLS, QUEUE_ROLLS, LONG = 50, 10, 60


# -- a service with a listener


def manager_descriptors(box: Sandbox) -> int:
    """Count the manager's descriptors."""
    return len(box.run("ls", "/proc/1/fd").stdout.split())


def descriptors_of(unit: Rolled, instance: str) -> int:
    """Count the descriptors of a generation's main process."""
    return len(unit.box.run("ls", f"/proc/{unit.instances()[instance].pid}/fd").stdout.split())


@pytest.mark.timeout(600)
def test_fifty_rolls(rolled: Setup, free_port: int) -> None:
    """Fifty rolls in a row with four jobs of 60 s in each generation, daemon-reloads between and in the drains: all is well, nothing is left."""
    code = SERVER.replace("JOBS", FOUR_JOBS.replace("SECONDS", str(LONG)))
    unit = rolled(None, port=free_port)
    before = traces(unit.box, unit.stem, unit.folder)
    unit.write(code)
    unit.start()
    descriptors = (descriptors_of(unit, "1"), manager_descriptors(unit.box))
    most = 0
    with Load(f"127.0.0.1:{free_port}", new=50, keep=50) as load:
        for number in range(ROLLS):
            unit.write(code, f"v{number + 1}")
            unit.command(("reload", "restart")[number % 2], check=True)
            if number % 3 == 0:
                unit.box.daemon_reload()
            most = max(most, len(unit.states()))
        newest, reloads, deadline = str(unit.newest()), 0, time.monotonic() + LONG + 60
        while list(unit.states()) != [newest]:
            assert time.monotonic() < deadline, unit.states()
            unit.box.daemon_reload()
            reloads += 1
            time.sleep(5)  # a daemon-reload every so often
        figures = load.stop()
    print(
        f"{ROLLS} rolls, up to {most} generations at once, {reloads} more daemon-reloads, {figures.sent} requests, {figures.failed} failed"
    )
    assert figures.failed == {}
    assert descriptors_of(unit, newest) <= descriptors[0]  # which had its jobs yet
    assert manager_descriptors(unit.box) <= descriptors[1]
    assert unit.command("is-failed").stdout.strip() == "active"
    unit.stop()
    text = unit.generations_text()
    assert [line for line in text.splitlines() if re.search("Failed with result|timed out|SIGKILL|status=[^0]", line)] == []
    jobs = re.findall(r"job done: ([a-z ]+)", text)
    assert dict.fromkeys(("thread", "daemon thread", "task", "process"), ROLLS + 1) == Counter(jobs)
    assert traces(unit.box, unit.stem, unit.folder) - before == {f"path /run/requiem-systemd/{unit.stem}.lock"}


# -- queue workers, without one

#: As many loops as threads; what is fetched, by whom, and what has been done, is told to Redis.
LOOPS: Final = """
import os, threading, time
import redis
import requiem_systemd as requiem

def fetch():
    found = client.blpop(["queue"], timeout=1)
    return found and found[1]

def loop():
    for job in requiem.jobs(fetch):
        client.rpush("begun", f"{job} {time.monotonic()} {os.environ['INSTANCE']}")
        time.sleep(float(job.partition(":")[2]))
        client.rpush("ended", job)

requiem.initialize()
client = redis.Redis.from_url(os.environ["BROKER"], decode_responses=True)
client.ping()
threads = [threading.Thread(target=loop, name=f"loop {number}") for number in range(4)]
for thread in threads:
    thread.start()
requiem.ready("VERSION")
for thread in threads:
    thread.join()
"""
#: For RQ the jobs' module; its worker runs each in a process of its own.
MODULE: Final = """
import os, time
import redis

def run(job):
    client = redis.Redis.from_url(os.environ["BROKER"])
    client.rpush("begun", f"{job} {time.monotonic()} {os.environ['INSTANCE']}")
    time.sleep(float(job.partition(":")[2]))
    client.rpush("ended", job)
"""


class Queue:
    """Workers that are rolled, and who gives them jobs; a job is a name that ends with its length in seconds."""

    def __init__(self, unit: Rolled, broker: redisserver.Server, submit: Callable[[str], object]) -> None:
        """Store."""
        self.unit = unit
        self.broker = broker
        self.submit = submit
        self.given: list[str] = []

    def give(self, name: str, seconds: float) -> None:
        """Put a job into the queue."""
        self.given.append(f"{name}:{seconds}")
        self.submit(self.given[-1])

    def begun(self) -> list[tuple[str, float, str]]:
        """Return what was fetched: the job, when, and by which generation."""
        rows = (row.split() for row in self.broker.ask("LRANGE", "begun", 0, -1))
        return [(job, float(when), instance) for job, when, instance in rows]

    def give_until(self, condition: Callable[[], bool], every: float) -> None:
        """Give short jobs, one `every` so many seconds, until something has come true."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            self.give(f"short{len(self.given)}", 0.01)
            time.sleep(every)  # the rate


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[redisserver.Server]:
    """Start a Redis; the container has this machine's loopback."""
    with redisserver.serving(tmp_path) as server:
        yield server


def settings(broker: redisserver.Server) -> dict[str, Any]:
    """Return what units need to find it, and to tell who they are."""
    return {
        "Environment": [f"BROKER={broker.url}", "INSTANCE=%i", "PYTHONDONTWRITEBYTECODE=1"],
        "WorkingDirectory": "/srv/%p",
    }


@pytest.mark.timeout(300)
def test_queue_of_ours(rolled: Setup, broker: redisserver.Server) -> None:
    """Workers built on jobs() over Redis: ten rolls in a row with jobs of 60 s in flight, each job is done once, and fetching goes on."""
    unit = rolled(None, **settings(broker))
    unit.write(LOOPS)
    unit.start()
    roll_with_jobs(Queue(unit, broker, lambda job: broker.ask("RPUSH", "queue", job)), 0.05, LOOPS)


@pytest.mark.timeout(300)
def test_queue_of_rq(rolled: Setup, broker: redisserver.Server, python: str) -> None:
    """The same with RQ's workers, three in each generation."""
    rq, redis = pytest.importorskip("rq"), pytest.importorskip("redis")
    command = f"{Path(python).parent}/rq worker --url {broker.url} --worker-class requiem_systemd.adapters.rq.Worker"
    unit = rolled(None, roll="--workers 3", ExecStart=["", command], **settings(broker))
    unit.write(MODULE)
    unit.start()
    with redis.Redis.from_url(broker.url) as client:
        tasks = rq.Queue(connection=client)
        roll_with_jobs(
            Queue(unit, broker, lambda job: tasks.enqueue("app.run", job, job_timeout="1h", result_ttl=0)),
            0.2,
            MODULE,
        )
        assert not tasks.failed_job_registry.get_job_ids()
        assert not tasks.started_job_registry.get_job_ids()


def roll_with_jobs(queue: Queue, every: float, code: str) -> None:
    """Roll ten times, each time with two more long jobs in flight, under a stream of short ones."""
    unit, broker = queue.unit, queue.broker
    for number in range(QUEUE_ROLLS):
        begin_long(queue, number, every)
        unit.write(code, f"v{number + 1}")
        with unit.beside("systemctl", "reload", unit.stem) as roll:
            queue.give_until(lambda roll=roll: roll.poll() is not None, every)  # type: ignore[misc] # mypy infers no default's type
            assert roll.returncode == 0, unit.journal()
    last, draining = time.monotonic(), unit.states()
    newest = str(unit.newest())
    while broker.ask("LLEN", "ended") < len(queue.given) or not all(
        name.startswith(f"{newest}") for name in unit.states()
    ):
        assert time.monotonic() < last + LONG + 30, unit.states()
        time.sleep(0.2)
    begun = queue.begun()
    assert (
        Counter(queue.given)
        == Counter(job for job, _, _ in begun)
        == Counter(broker.ask("LRANGE", "ended", 0, -1))
    )
    assert {str(number + 1) for number in range(QUEUE_ROLLS)} <= {
        instance.partition("-")[0] for _, _, instance in begun
    }
    times = sorted(when for _, when, _ in begun if when <= last)
    pause = max(after - before for before, after in itertools.pairwise(times))
    print(
        f"{QUEUE_ROLLS} rolls, {len(begun)} jobs, each done once; {len(draining)} units at once; fetching paused {pause:.3f} s at most"
    )
    assert pause < 1.0
    unit.stop()
    assert unit.states() == {}
    assert "Failed with result" not in unit.generations_text()


def begin_long(queue: Queue, number: int, every: float) -> None:
    """Give two long jobs, and go on when they have been fetched."""
    names = {f"long{number}a", f"long{number}b"}
    for name in sorted(names):
        queue.give(name, LONG)
    queue.give_until(lambda: names <= {job.partition(":")[0] for job, _, _ in queue.begun()}, every)
