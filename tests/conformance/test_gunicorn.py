"""gunicorn: what its arbiter does to workers that drain, and what it may not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.conformance.client import Connection, get, refused
from tests.conformance.conftest import TIMEOUT_STOP, Server
from tests.conformance.subjects import Subject
from tests.patience import PatientManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HELD = ("-c", "gunicorn_held.conf.py")
THREADS = ("-k", "gthread", "--threads", "4")


class Make(Protocol):
    """Makes a gunicorn with words of its command line."""

    def __call__(self, *words: str, notify_access: str = "main", config: tuple[str, ...] = HELD, bind: bool = True) -> Server:
        """Make one, not started."""


@pytest.fixture
def make(tmp_path: Path, free_port: int) -> Iterator[Make]:
    """Return what makes servers; each ends with the test."""
    with contextlib.ExitStack() as stack:

        def made(*words: str, notify_access: str = "main", config: tuple[str, ...] = HELD, bind: bool = True) -> Server:
            manager = stack.enter_context(PatientManager(timeout_stop=TIMEOUT_STOP, notify_access=notify_access))
            command = ("{bin}/gunicorn", "--no-control-socket", *config, *words, "wsgi_app:app")
            bound = (*command, "-b", "127.0.0.1:{port}") if bind else command
            workers = 1 if notify_access == "all" else 0  # that say by themselves that they drain
            server = Server(Subject("gunicorn", bound, command, workers=workers), manager, tmp_path, free_port)
            stack.callback(server.kill)
            return server

        yield made


def worker(server: Server) -> int:
    """Return who answers."""
    return int(get(server.port, "/pid").body)


def other_worker(server: Server, than: int) -> int:
    """Wait until another answers."""
    server.wait_for(lambda: worker(server) != than, poll=True)
    return worker(server)


def test_reload_loses_no_job(make: Make) -> None:
    """SIGHUP: a new worker answers while the old one is at its job, longer than graceful_timeout and timeout."""
    server = make(*THREADS, "--graceful-timeout", "1", "--timeout", "2").start()
    old = worker(server)
    get(server.port, "/job?s=6")
    server.manager.kill("SIGHUP")
    new = other_worker(server, old)
    assert "ended job" not in server.recorded
    server.wait_recorded("ended job")
    assert worker(server) == new
    server.wait_for(lambda: old not in server.processes(), poll=True)
    server.stop()
    assert server.ended().count("shutdown") == 2
    assert "WORKER TIMEOUT" not in server.output


def test_reload_then_stop(make: Make) -> None:
    """A stop waits also for a worker that has been leaving since a reload."""
    server = make(*THREADS, "--graceful-timeout", "1").start()
    old = worker(server)
    get(server.port, "/job?s=5")
    server.manager.kill("SIGHUP")
    other_worker(server, old)
    server.stop()
    assert "ended job" in server.ended()


def test_restart_after_max_requests(make: Make) -> None:
    """A worker that has had its requests is replaced at once, and ends when its job has ended."""
    server = make(*THREADS, "--max-requests", "3", "--graceful-timeout", "1", "--timeout", "2").start()
    old = worker(server)
    get(server.port, "/job?s=6")
    other_worker(server, old)
    assert "ended job" not in server.recorded
    server.wait_recorded("ended job")
    server.stop()
    server.ended()


@pytest.mark.parametrize("kind", [THREADS, ("-k", "sync"), ("-k", "gevent")], ids=lambda words: words[1])
def test_nothing_cuts_a_job(make: Make, kind: tuple[str, ...]) -> None:
    """Neither graceful_timeout nor the heartbeat's timeout ends a worker that drains."""
    server = make(*kind, "--graceful-timeout", "1", "--timeout", "2").start()
    get(server.port, "/job?s=7")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended()


@pytest.mark.parametrize("kind", [THREADS, ("-k", "gevent")], ids=lambda words: words[1])
def test_long_request(make: Make, kind: tuple[str, ...]) -> None:
    """Nor does graceful_timeout cut a request."""
    server = make(*kind, "--graceful-timeout", "1").start()
    with Connection(server.port) as connection:
        connection.send("/slow?s=4")
        server.stop()
        assert connection.receive()[::2] == (200, b"/slow")
    server.ended()


def test_crash(make: Make) -> None:
    """A worker that dies is replaced, and a later stop does not wait for it."""
    server = make(*THREADS).start()
    old = worker(server)
    os.kill(old, signal.SIGKILL)
    server.wait_for(lambda: old not in server.processes(), poll=True)
    with contextlib.suppress(ConnectionError):
        worker(server)
    other_worker(server, old)
    server.stop()
    server.ended()


def test_stop_of_one_worker(make: Make) -> None:
    """SIGTERM to a worker drains that one; another comes, and the service says nothing of a stop."""
    server = make(*THREADS).start()
    old = worker(server)
    get(server.port, "/job?s=3")
    os.kill(old, signal.SIGTERM)
    other_worker(server, old)
    server.wait_recorded("ended job")
    assert server.manager.unit.state == "running"
    server.stop()
    server.ended()


def test_several_workers(make: Make) -> None:
    """A job in each of several workers is waited for."""
    server = make("-k", "sync", "-w", "3").start()
    server.wait_for(lambda: server.recorded.count("startup") == 3, poll=True)
    for number in range(6):
        get(server.port, f"/job?s=4&name=job{number}")
    server.stop()
    recorded = server.ended()
    assert [f"ended job{number}" for number in range(6) if f"ended job{number}" not in recorded] == []
    assert recorded.count("shutdown") == 3


def test_preloaded(make: Make) -> None:
    """An application that was loaded before the fork is held too, and READY=1 comes once."""
    server = make(*THREADS, "--preload").start()
    get(server.port, "/job?s=4")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended()
    assert server.manager.sent.count("READY") == 1


def test_preloaded_with_a_passed_listener(make: Make) -> None:
    """The environment that the application has taken is there when gunicorn looks for listeners."""
    server = make(*THREADS, "--preload", bind=False)
    server.port = server.manager.listen("http").getsockname()[1]
    server.start(activated=True)
    assert get(server.port, "/").status == 200
    server.stop()
    server.ended()


def test_status_says_what_a_worker_waits_for(make: Make) -> None:
    """The manager's status line has the job's name, which only the worker knows."""
    server = make(*THREADS).start()
    get(server.port, "/job?s=4")
    server.wait_recorded("begun job")
    server.stop()
    server.manager.wait_for(lambda: '1 job, oldest "job"' in server.manager.unit.status, 10)
    server.ended()


def test_watchdog(make: Make) -> None:
    """The arbiter feeds the manager's watchdog, in the drain too, and is not killed by it."""
    server = make(*THREADS)
    server.watch(4.0)
    server.start()
    server.manager.wait_for(lambda: server.manager.sent.count("WATCHDOG") > 1)
    get(server.port, "/job?s=5")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended()
    assert {message.pid for message in server.manager.messages if "WATCHDOG" in message.values} == {server.process.pid}


def test_own_socket_is_unlinked(make: Make, tmp_path: Path) -> None:
    """The path of an AF_UNIX listener goes with it."""
    path = tmp_path / "http"
    server = make(*THREADS, "-b", f"unix:{path}", bind=True).start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    server.stop()
    server.ended()
    assert not path.exists()


def test_abandoned_in_a_worker(make: Make) -> None:
    """A job that a worker abandons makes the service's status 75."""
    server = make(*THREADS).start()
    get(server.port, "/job?s=30&limit=1")
    server.wait_recorded("begun job")
    server.stop()
    server.ended(status=75)
    assert 'abandoned "job"' in server.output


def test_sigquit(make: Make) -> None:
    """SIGQUIT abandons at once, by name."""
    server = make(*THREADS).start()
    get(server.port, "/job?s=30")
    server.wait_recorded("begun job")
    server.manager.kill("SIGQUIT")
    server.ended(status=75)
    assert 'abandoned "job"' in server.output


def test_silent_client_holds_nothing_up(make: Make) -> None:
    """A connection that never sends anything does not keep a sync worker for longer than the grace."""
    server = make("-k", "sync").start()
    with Connection(server.port) as silent, Connection(server.port) as waits:
        waits.send("/")
        server.stop()
        assert waits.receive().status == 200
        assert silent.ended()
        server.ended()
    assert "let go" not in server.output


def test_without_the_two_lines(make: Make) -> None:
    """With TrackRequests alone a worker drains as well, for graceful_timeout, if the manager listens to it; one line says so."""
    server = make(*THREADS, notify_access="all", config=()).start()
    get(server.port, "/job?s=4")
    server.wait_recorded("begun job")
    server.stop()
    server.wait_for(lambda: refused(server.port), poll=True)
    assert "ended job" in server.ended()
    assert server.output.count("gunicorn.hold(globals())") == 1
