"""What a parent of uvicorn workers does to them, and they to the service: `uvicorn --workers`, gunicorn."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import Connection, get
from tests.conformance.subjects import HTTP
from tests.conformance.test_asgi_limits import variant

if TYPE_CHECKING:
    from tests.conformance.conftest import Server

GUNICORN: Final = "gunicorn -k uvicorn_worker.UvicornWorker"
UVICORN: Final = [subject for subject in HTTP if subject.name == "uvicorn --workers"]
# A reload of gunicorn waits 3 s for the old workers; after that, one of them that shows no sign of life for 3 s is killed.
PARENTS: Final = [*UVICORN, variant(GUNICORN, "--timeout", "3", "--graceful-timeout", "3")]


def workers(server: Server, key: str = "READY") -> list[int]:
    """Return the workers that have told the manager something, in order."""
    told = dict.fromkeys(message.pid for message in server.manager.messages if key in message.values)
    return [pid for pid in told if pid != server.process.pid]


def begin_job_and_roll(server: Server, seconds: float) -> None:
    """Have the parent replace its workers while a job runs in one of them; come back when that one drains."""
    server.start()
    busy = int(get(server.port, f"/job?s={seconds}").body)
    server.wait_recorded("begun job")
    server.manager.kill("SIGHUP")
    server.wait_for(lambda: server.manager.unit.status.startswith(f"worker {busy}: Draining"))


@pytest.mark.parametrize("subject", PARENTS, ids=str)
def test_roll(server: Server) -> None:
    """A parent that replaces its workers waits for their jobs, and the service neither stops nor says that it does."""
    begin_job_and_roll(server, 12)
    number = server.subject.workers
    server.wait_for(lambda: len(workers(server)) == 2 * number)
    server.wait_recorded("ended job")
    server.wait_for(lambda: server.recorded.count("shutdown") == number, poll=True)
    assert server.manager.state == "running"
    assert "STOPPING" not in server.manager.sent
    assert get(server.port, "/").status == 200
    server.stop_patiently()
    server.ended()
    assert server.recorded.count("shutdown") == 2 * number
    assert "Draining" not in server.manager.status


@pytest.mark.parametrize("subject", UVICORN, ids=str)
def test_stop_in_a_roll(server: Server) -> None:
    """A stop that comes while the parent waits for a worker's job holds until that has ended, though the parent hears of it only then."""
    begin_job_and_roll(server, 6)
    server.manager.stop()
    assert "ended job" in server.ended()
    assert server.manager.result == "success"


@pytest.mark.parametrize("subject", UVICORN, ids=str)
def test_worker_dies(server: Server) -> None:
    """A worker that is killed is replaced, and its sibling's jobs go on."""
    server.start()
    busy = int(get(server.port, "/job?s=6").body)
    os.kill(next(pid for pid in workers(server) if pid != busy), signal.SIGKILL)
    server.wait_for(lambda: len(workers(server)) == 3)
    server.stop()
    assert "ended job" in server.ended()


@pytest.mark.parametrize("subject", UVICORN, ids=str)
def test_blocked_loop(server: Server) -> None:
    """A worker whose loop is blocked for longer than the parent's health ping waits (5 s) is not killed; blocked it hears of a stop too."""
    server.start()
    with Connection(server.port) as connection:  # one connection, one worker
        connection.get("/block?s=7")
        assert connection.get("/job?s=6").status == 200
        assert len(workers(server)) == 2
        connection.get("/block?s=4")
        server.stop()
    assert "ended job" in server.ended()


@pytest.mark.parametrize("subject", UVICORN, ids=str)
def test_watchdog(server: Server) -> None:
    """Under WatchdogSec= the service is killed, since its parent says nothing; its workers have said so at their start."""
    server.watch(3.0)
    server.spawn(server.subject.command)
    server.wait_for("failed")
    assert server.manager.result == "watchdog"
    assert f"WatchdogSec= is for process {server.process.pid}" in server.output


@pytest.mark.parametrize("subject", UVICORN, ids=str)
def test_quit(server: Server) -> None:
    """What hurries a drain up is a signal to all: the jobs are abandoned, by name."""
    server.start()
    get(server.port, "/job?s=100")
    server.wait_recorded("begun job")
    server.stop()
    for pid in server.processes():
        os.kill(pid, signal.SIGQUIT)
    server.ended()
    assert "abandoned" in server.output


@pytest.mark.parametrize("subject", [variant("uvicorn --workers", "--limit-max-requests", "3")], ids=str)
def test_limit_max_requests_of_workers(server: Server) -> None:
    """A worker that has served enough ends after its job, and another takes its place; the service does not stop."""
    server.start()
    get(server.port, "/job?s=5")
    server.wait_recorded("begun job")
    for _ in range(6):
        get(server.port, "/")
    server.wait_recorded("ended job")
    server.wait_for(lambda: len(workers(server)) >= 3)
    assert server.manager.state == "running"
    assert "STOPPING" not in server.manager.sent
    # uvicorn's parent hears of nothing while it waits, up to 5 s, for a worker that is just ending to answer its ping.
    server.stop_patiently()
    server.ended()
