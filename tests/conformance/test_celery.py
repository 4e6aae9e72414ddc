"""What a Celery worker does when its service is stopped, with a pool of processes and with one of threads."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests import redisserver
from tests.conformance.conftest import wait_until
from tests.conformance.subjects import Subject
from tests.conformance.workers import ALARMS, Workers, workers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AS_ROOT: Final = "ignore:You're running the worker with superuser privileges"
POOLS: Final = {
    pool: Subject(
        pool,
        (),
        ("{bin}/celery", "-A", "celery_app", "worker", "-l", "INFO", "-c", "1", "-P", pool),
        env={"PROGRAM": "celery_app", "PYTHONWARNINGS": AS_ROOT},
    )
    for pool in ("prefork", "threads")
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redisserver.Server]:
    """Start a Redis."""
    with redisserver.serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=POOLS)
def workers(request: pytest.FixtureRequest, tmp_path: Path, broker: redisserver.Server) -> Iterator[Workers]:
    """Return what starts workers with a pool."""
    with workers_of(POOLS[request.param], tmp_path, broker) as made:
        yield made


def test_held(workers: Workers) -> None:
    """A task is held past TimeoutStopSec= and named; Celery's own shutdown comes after it, once, and nothing is amiss."""
    worker = workers.begin()
    workers.submit("job", "one", 5)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.wait_for(lambda: "celery_app.job[" in worker.manager.status, poll=True)
    assert "(one" not in worker.manager.status
    assert worker.ended() == ["begun one", "shutting down", "ended one", "shutdown"]
    assert worker.manager.result == "success"
    assert not [word for word in ALARMS if word in worker.output], worker.output


def test_fetches_no_more(workers: Workers) -> None:
    """What comes after the begin of the drain is for the next worker at once, while this one still drains."""
    worker = workers.begin()
    workers.submit("job", "one", 7)
    worker.wait_recorded("begun one")
    worker.stop()
    workers.submit("job", "two", 0)
    other = workers.begin()
    workers.wait_recorded("ended two")
    assert "ended one" not in workers.recorded
    worker.ended()
    other.stop()
    other.ended()
    assert workers.counted("begun") == {"one": 1, "two": 1}


def test_fetched_in_the_same_moment(workers: Workers) -> None:
    """The one fetch that is under way when the drain begins takes a message out of the broker: it goes back as well."""
    worker = workers.begin()
    workers.submit("job", "one", 5)
    worker.wait_recorded("begun one")
    for process in worker.processes():  # it cannot see the signal before the message
        os.kill(process, signal.SIGSTOP)
    workers.submit("job", "two", 0)
    worker.manager.stop()
    for process in worker.processes():
        os.kill(process, signal.SIGCONT)
    other = workers.begin()
    workers.wait_recorded("ended two")
    assert "ended one" not in workers.recorded
    worker.ended()
    assert workers.counted("begun") == {"one": 1, "two": 1}
    other.stop()
    other.ended()


def test_hands_back(workers: Workers) -> None:
    """What was only fetched ahead is another worker's at once, in its order and before all others, and runs once."""
    worker = workers.begin()
    names = ("two", "three", "four", "five", "six")
    workers.submit("job", "one", 8, *(word for name in names for word in (("late" if name == "three" else "job"), name, 0)))
    worker.wait_recorded("begun one")
    worker.wait_for(lambda: worker.output.count("received") == 5, poll=True)
    worker.stop()
    other = workers.begin()
    workers.wait_recorded("ended six")
    assert "ended one" not in workers.recorded
    worker.ended()
    assert "4 reserved tasks handed back" in worker.output
    other.stop()
    other.ended()
    assert [line for line in workers.recorded if line.startswith("begun")] == [f"begun {name}" for name in ("one", *names)]


def test_hands_back_what_waits(workers: Workers) -> None:
    """What has a time to wait for, or a rate to keep, is handed back as well."""
    worker = workers.begin()
    workers.submit("job", "one", 9, "job/4", "later", 0, "rare", "first", 0, "rare", "second", 0)
    worker.wait_recorded("begun one")
    worker.wait_for(lambda: worker.output.count("received") == 4, poll=True)
    worker.stop()
    other = workers.begin()
    workers.wait_recorded("ended later")
    workers.wait_recorded("ended first")
    assert "ended one" not in workers.recorded
    worker.ended()
    other.stop()
    other.ended()
    assert workers.counted("begun") == {"one": 1, "later": 1, "first": 1}
    assert workers.broker.ask("LLEN", "celery") == 1  # "second", whose hour has not come


def test_acknowledged_in_the_drain(workers: Workers) -> None:
    """A late acknowledgement goes out when its task has ended, not when the last of the drain has."""
    worker = workers.make()
    worker.add("-c", "2")
    worker.begin()
    workers.submit("late", "short", 2, "late", "long", 6)
    workers.wait_recorded("begun short")
    workers.wait_recorded("begun long")
    worker.stop()
    workers.wait_recorded("ended short")
    worker.wait_for(lambda: workers.broker.ask("HLEN", "unacked") == 1, poll=True)
    assert "ended long" not in workers.recorded
    worker.ended()
    assert workers.broker.ask("HLEN", "unacked") == 0


def test_failing_task(workers: Workers) -> None:
    """A task that raises holds nothing afterwards."""
    worker = workers.begin()
    workers.submit("fail", "one", 2)
    worker.wait_for(lambda: "received" in worker.output, poll=True)
    worker.stop()
    worker.ended()
    assert "ZeroDivisionError" in worker.output


def test_double_sigterm(workers: Workers) -> None:
    """A second SIGTERM changes nothing."""
    worker = workers.begin()
    workers.submit("job", "one", 4)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.manager.kill("SIGTERM")
    assert worker.ended() == ["begun one", "shutting down", "ended one", "shutdown"]


@pytest.mark.parametrize("sent", ["SIGINT twice", "SIGQUIT"])
def test_abandons(workers: Workers, sent: str) -> None:
    """A second SIGINT, or a SIGQUIT, names what runs and leaves; what it had not acknowledged is another worker's at once."""
    worker = workers.make()
    worker.add("-c", "2")
    worker.begin()
    workers.submit("job", "lost", 60, "late", "saved", 60)
    workers.wait_recorded("begun lost")
    workers.wait_recorded("begun saved")
    if sent == "SIGINT twice":
        worker.manager.kill("SIGINT")
        begun = worker.manager.wait_message("EXTEND_TIMEOUT_USEC").at
        worker.wait_for(lambda: any(message.at > begun + 1.2 for message in worker.manager.messages))
        worker.manager.kill("SIGINT")
    else:
        worker.manager.kill("SIGQUIT")
    worker.ended(status=75)
    assert "abandoned" in worker.output
    assert "celery_app.job[" in worker.output.partition("abandoned")[2]
    assert "celery_app.late[" in worker.output.partition("abandoned")[2]
    assert workers.broker.ask("HLEN", "unacked") == 0
    assert workers.broker.ask("LLEN", "celery") == 1
    other = workers.begin()
    wait_until(lambda: workers.counted("begun")["saved"] == 2)
    other.manager.kill("SIGQUIT")
    other.ended(status=75)
    assert workers.counted("begun") == {"lost": 1, "saved": 2}


def test_soft_shutdown(workers: Workers) -> None:
    """With worker_soft_shutdown_timeout set, what is abandoned still has that long."""
    worker = workers.begin(SOFT="4")
    workers.submit("late", "one", 3)
    worker.wait_recorded("begun one")
    worker.manager.kill("SIGQUIT")
    assert "ended one" in worker.ended(status=75)
    assert workers.broker.ask("HLEN", "unacked") == 0
    assert workers.broker.ask("LLEN", "celery") == 0


def test_drain_timeout(workers: Workers) -> None:
    """A drain that is limited ends like one that is abandoned."""
    worker = workers.begin(REQUIEM_DRAIN_TIMEOUT="3s")
    workers.submit("late", "one", 60)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.ended(status=75)
    assert workers.broker.ask("LLEN", "celery") == 1


def test_idle_stop(workers: Workers) -> None:
    """With nothing in flight it ends soon, with status 0."""
    worker = workers.begin()
    worker.manager.stop()
    assert worker.ended() == ["shutting down", "shutdown"]
    assert worker.manager.result == "success"


def test_no_broker(workers: Workers) -> None:
    """A worker that waits for its broker ends as well."""
    worker = workers.make()
    worker.spawn(worker.words, BROKER="redis://127.0.0.1:1/0")
    worker.wait_for(lambda: "Cannot connect" in worker.output, poll=True)
    worker.manager.stop()
    worker.ended()


def test_broker_lost(workers: Workers) -> None:
    """When the connection is lost in the drain, and had again, nothing more is fetched by it."""
    worker = workers.begin()
    workers.submit("job", "one", 8)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.wait_for(lambda: "draining" in worker.output, poll=True)
    workers.broker.ask("CLIENT", "KILL", "TYPE", "normal")
    worker.wait_for(lambda: worker.output.count("Connected to") == 2, poll=True)
    workers.submit("job", "two", 0)
    worker.ended()
    assert workers.counted("begun") == {"one": 1}
    assert workers.broker.ask("LLEN", "celery") == 1


def test_remote_shutdown(workers: Workers) -> None:
    """Celery's own remote control stops it: that is a drain as well."""
    worker = workers.begin()
    workers.submit("job", "one", 5)
    worker.wait_recorded("begun one")
    workers.control("control", "shutdown")
    worker.manager.wait_message("STOPPING")
    assert "ended one" not in workers.recorded
    assert "ended one" in worker.ended()


def test_answers_in_the_drain(workers: Workers) -> None:
    """`celery inspect` is answered while it drains."""
    worker = workers.begin()
    workers.submit("job", "one", 6)
    worker.wait_recorded("begun one")
    worker.stop()
    assert "celery_app.job" in workers.control("inspect", "active")
    assert "ended one" not in workers.recorded
    worker.ended()


def test_visibility_timeout(workers: Workers) -> None:
    """A task that the broker is about to give to somebody else is named, once, in the drain too; one that is acknowledged is not."""
    worker = workers.make()
    worker.add("-c", "2")
    worker.begin(VISIBILITY="3")
    workers.submit("late", "one", 5, "job", "two", 5)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.ended()
    assert [line for line in worker.output.splitlines() if "visibility_timeout" in line and "celery_app.late[" in line]
    assert worker.output.count("visibility_timeout,") == 1


def test_reload(workers: Workers) -> None:
    """SIGHUP, by which Celery would execute itself anew when it stops, is refused, with the reason."""
    worker = workers.begin()
    worker.manager.kill("SIGHUP")
    worker.wait_for(lambda: "Reload failed" in worker.manager.status, poll=True)
    worker.stop()
    worker.ended()


def test_restarts(workers: Workers) -> None:
    """Of 20 tasks on four workers that are restarted twice in the middle each runs to its end, once."""
    names = [f"task{number}" for number in range(20)]
    running = [workers.begin() for _ in range(4)]
    workers.submit(*(word for number, name in enumerate(names) for word in (("job", "late")[number % 2], name, 1 + number % 3 / 2)))
    for count in (2, 8):
        workers.wait_ended(count)
        for worker in running:
            worker.stop()
        for worker in running:
            worker.ended()
            worker.begin()
    workers.wait_ended(len(names))
    for worker in running:
        worker.stop()
    for worker in running:
        worker.ended()
    assert workers.counted("begun") == workers.counted("ended") == dict.fromkeys(names, 1)
    assert workers.broker.ask("HLEN", "unacked") == 0
