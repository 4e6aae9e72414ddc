"""What an RQ worker does when its service is stopped, whichever way it runs its jobs."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests import redisserver
from tests.conformance.conftest import wait_until
from tests.conformance.subjects import Subject
from tests.conformance.workers import ALARMS, Worker, Workers, workers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TYPED: Final = ("{bin}/rq", "worker", "--url", "redis://127.0.0.1:{port}/0", "--path", ".", "--worker-class")
ENV: Final = {"PROGRAM": "rq_queue"}
KINDS: Final = {
    "fork": Subject("fork", (), (*TYPED, "requiem_systemd.adapters.rq.Worker"), ENV),
    "spawn": Subject("spawn", (), (*TYPED, "requiem_systemd.adapters.rq.SpawnWorker"), ENV),
    "simple": Subject("simple", (), (*TYPED, "requiem_systemd.adapters.rq.SimpleWorker"), ENV),
    "hold": Subject("hold", (), ("{python}", "rq_worker.py"), ENV),
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redisserver.Server]:
    """Start a Redis."""
    with redisserver.serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=KINDS)
def workers(request: pytest.FixtureRequest, tmp_path: Path, broker: redisserver.Server) -> Iterator[Workers]:
    """Return what starts workers of a kind."""
    with workers_of(KINDS[request.param], tmp_path, broker) as made:
        yield made


def test_held(workers: Workers) -> None:
    """A job is held past TimeoutStopSec= and named, not by its arguments; then the worker leaves, and nothing is amiss."""
    worker = workers.begin()
    workers.submit("job", "one", 5)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.wait_for(lambda: "rq_jobs.job one" in worker.manager.status, poll=True)
    assert "5.0" not in worker.manager.status
    assert worker.ended() == ["begun one", "ended one"]
    assert worker.manager.result == "success"
    assert not [word for word in ALARMS if word in worker.output], worker.output
    assert workers.broker.ask("HGET", "rq:job:one", "status") == "finished"
    assert not workers.broker.ask("SMEMBERS", "rq:workers")


def test_fetches_no_more(workers: Workers) -> None:
    """What is queued is for the next worker at once, while this one still drains."""
    worker = workers.begin()
    workers.submit("held", "one", 0, "job", "two", 0)
    worker.wait_recorded("begun one")
    worker.stop()
    workers.submit("job", "three", 0)
    other = workers.begin()
    workers.wait_recorded("ended three")
    assert "ended one" not in workers.recorded
    workers.let_go()
    worker.ended()
    other.stop()
    other.ended()
    assert workers.counted("begun") == {"one": 1, "two": 1, "three": 1}


def test_fetched_in_the_same_moment(workers: Workers) -> None:
    """A job that was fetched when the signal came runs to its end."""
    worker = workers.begin()
    wait_fetching(worker, workers)
    main = worker.process.pid
    os.kill(main, signal.SIGSTOP)
    workers.submit("job", "one", 3)
    worker.manager.stop()
    os.kill(main, signal.SIGCONT)
    assert worker.ended() == ["begun one", "ended one"]
    assert workers.broker.ask("LLEN", "rq:queue:default:intermediate") == 0


def test_failing_job(workers: Workers) -> None:
    """A job that raises holds nothing afterwards."""
    worker = workers.begin()
    workers.submit("fail", "one", 0)
    worker.wait_recorded("begun one")
    worker.stop()
    workers.let_go()
    worker.ended()
    assert workers.broker.ask("HGET", "rq:job:one", "status") == "failed"


def test_double_sigterm(workers: Workers) -> None:
    """A second SIGTERM, later than a second, changes nothing; nor do those that the whole group gets."""
    worker = workers.begin()
    workers.submit("job", "one", 5)
    worker.wait_recorded("begun one")
    worker.stop()
    begun = worker.manager.messages[-1].at
    worker.wait_for(lambda: any(message.at > begun + 1.5 for message in worker.manager.messages))
    worker.manager.kill("SIGTERM")
    assert worker.ended() == ["begun one", "ended one"]


@pytest.mark.parametrize("sent", ["SIGINT twice", "SIGQUIT"])
def test_abandons(workers: Workers, sent: str) -> None:
    """A second SIGINT, or a SIGQUIT, names the job and leaves; RQ records that it failed, or gives it to another worker where it may."""
    worker = workers.begin()
    workers.submit("job/1", "one", 60)
    worker.wait_recorded("begun one")
    if sent == "SIGINT twice":
        worker.manager.kill("SIGINT")
        begun = worker.manager.wait_message("EXTEND_TIMEOUT_USEC").at
        worker.wait_for(lambda: any(message.at > begun + 1.2 for message in worker.manager.messages))
        worker.manager.kill("SIGINT")
    else:
        worker.manager.kill("SIGQUIT")
    worker.ended(status=75)
    assert "rq_jobs.job one" in worker.output.partition("abandoned")[2]
    assert workers.broker.ask("LRANGE", "rq:queue:default", 0, -1) == ["one"]
    assert not workers.broker.ask("SMEMBERS", "rq:workers")
    other = workers.begin()
    wait_until(lambda: workers.counted("begun")["one"] == 2)
    other.manager.kill("SIGQUIT")
    other.ended(status=75)
    assert workers.broker.ask("HGET", "rq:job:one", "status") == "failed"


def test_idle_stop(workers: Workers) -> None:
    """With nothing in flight it ends at once, out of a fetch that would last for minutes, with status 0."""
    worker = workers.begin()
    wait_fetching(worker, workers)
    worker.stop()
    begun = worker.manager.messages[-1].at
    assert worker.ended() == []
    assert worker.manager.result == "success"
    assert worker.manager.messages[-1].at < begun + 3  # RQ itself takes one, to unsubscribe
    assert not [word for word in ALARMS if word in worker.output], worker.output


def test_suspended(workers: Workers) -> None:
    """A worker that `rq suspend` has put to rest is ready, and ends."""
    workers.broker.ask("SET", "rq:suspended", "1")
    if workers.subject.name != "hold":
        pytest.skip("`rq worker` does not start then")
    worker = workers.begin()
    worker.stop()
    worker.ended()


@pytest.mark.parametrize("kind", KINDS)
def test_no_broker(kind: str, tmp_path: Path) -> None:
    """A worker whose Redis has gone away, and which waits longer and longer before it tries again, ends as well."""
    with redisserver.serving(tmp_path) as broker, workers_of(KINDS[kind], tmp_path, broker) as workers:
        worker = workers.begin()
        wait_fetching(worker, workers)
        broker.end()
        worker.wait_for(lambda: "retrying in 4 seconds" in worker.output, poll=True)
        worker.stop()
        worker.ended()


def test_forbidden(workers: Workers) -> None:
    """Where Redis does not let us end a fetch, that is said at the start, and the worker ends all the same."""
    workers.broker.ask("ACL", "SETUSER", "default", "-client|unblock")
    try:
        worker = workers.begin()
        wait_fetching(worker, workers)
        worker.stop()
        worker.ended()
        assert worker.output.count("CLIENT UNBLOCK") == 1
    finally:
        workers.broker.ask("ACL", "SETUSER", "default", "+client|unblock")


def test_heartbeats(workers: Workers) -> None:
    """In the drain the worker and its job are known to be alive."""
    if workers.subject.name in ("simple", "hold"):
        pytest.skip("a job in the worker's own process has its heartbeat in advance; hold is as fork")
    worker = workers.make()
    worker.add("--job-monitoring-interval", "1")
    worker.begin()
    workers.submit("job", "one", 6)
    worker.wait_recorded("begun one")
    worker.stop()
    first = workers.broker.ask("HGET", "rq:job:one", "last_heartbeat")
    worker.wait_for(lambda: workers.broker.ask("HGET", "rq:job:one", "last_heartbeat") > first, poll=True)
    assert "ended one" not in workers.recorded
    worker.ended()


def test_scheduler(workers: Workers) -> None:
    """The scheduler ends at the begin, so that another worker's takes over."""
    if workers.subject.name == "hold":
        pytest.skip("it has none")
    worker = workers.make()
    worker.add("--with-scheduler")
    worker.begin()
    workers.submit("job", "one", 6)
    worker.wait_recorded("begun one")
    worker.wait_for(lambda: workers.broker.ask("KEYS", "rq:scheduler-lock:*"), poll=True)
    worker.stop()
    worker.wait_for(lambda: not workers.broker.ask("KEYS", "rq:scheduler-lock:*"), poll=True)
    assert "ended one" not in workers.recorded
    worker.ended()


def test_restarts(workers: Workers) -> None:
    """Of 20 jobs on four workers that are restarted twice in the middle each runs to its end, once."""
    names = [f"job{number}" for number in range(20)]
    running = [workers.begin() for _ in range(4)]
    workers.submit(*(word for number, name in enumerate(names) for word in ("job", name, 1 + number % 3 / 2)))
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


def wait_fetching(worker: Worker, workers: Workers) -> None:
    """Wait until a worker waits for Redis."""
    worker.wait_for(lambda: workers.broker.ask("INFO", "clients")["blocked_clients"] == 1, poll=True)
