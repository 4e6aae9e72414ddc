"""What ASGI servers would cut off by limits of their own: jobs as long as they like, background tasks, the options that cut."""

from __future__ import annotations

import dataclasses
import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import Connection, get, refused
from tests.conformance.subjects import HTTP, Subject
from tests.conformance.test_http import ALARMS

if TYPE_CHECKING:
    from tests.conformance.conftest import Server

ASGI: Final = [subject for subject in HTTP if "asgi_app:app" in subject.command]


def variant(name: str, *options: str, app: str = "asgi_app:app") -> Subject:
    """Return a subject started with other options, or with another application."""
    subject = next(subject for subject in HTTP if subject.name == name)
    command = [app if word == "asgi_app:app" else word for word in subject.command]
    return dataclasses.replace(subject, name=" ".join([name, *options, *([app] if app != "asgi_app:app" else [])]), command=(*command, *options), limits={})


def hold_job(server: Server, seconds: float) -> None:
    """Stop a server while a job runs, and see it to its end."""
    server.start()
    get(server.port, f"/job?s={seconds}")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended(patience=seconds + 30)
    assert server.manager.result == "success"
    assert not [word for word in ALARMS if word in server.output], server.output


@pytest.mark.parametrize("subject", ASGI, ids=str)
def test_job_of_8_s(server: Server) -> None:
    """A task that a request has started lives to its end, four times TimeoutStopSec= later."""
    hold_job(server, 8)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("subject", ASGI, ids=str)
def test_job_of_90_s(server: Server) -> None:
    """So does one that takes longer than any server's own limit."""
    hold_job(server, 90)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("subject", [variant("gunicorn -k uvicorn_worker.UvicornWorker", "--graceful-timeout", "100")], ids=str)
def test_job_of_90_s_with_the_limit_lifted(server: Server) -> None:
    """The setting that the line names is the one that cuts."""
    hold_job(server, 90)


@pytest.mark.parametrize("subject", [dataclasses.replace(variant(subject.name, app="fastapi_app:app"), name=subject.name) for subject in ASGI], ids=str)
def test_background_tasks(server: Server) -> None:
    """Background tasks of Starlette and FastAPI, in the loop or in threads, hold as jobs; the lifespan's shutdown comes after them."""
    server.start(REQUIEM_REQUEST_TIMEOUT="1s")
    get(server.port, "/job?s=5")
    server.wait_recorded("begun awaited")
    server.stop()
    recorded = server.ended()
    worked = [line for line in recorded if line not in ("startup", "shutdown")]
    assert worked == ["begun awaited", "ended awaited", "begun threaded", "ended threaded"]
    assert recorded[-1] == "shutdown" or "framework_hooks" in server.subject.lacks
    assert not [word for word in (*ALARMS, "let go") if word in server.output], server.output


GRACEFUL: Final = variant("uvicorn", "--timeout-graceful-shutdown", "1")


@pytest.mark.parametrize("subject", [GRACEFUL], ids=str)
def test_timeout_graceful_shutdown_and_a_request(server: Server) -> None:
    """The server's own limit does not cut an answer off, and who has set it is told."""
    server.start()
    with Connection(server.port) as connection:
        connection.send("/slow?s=4")
        server.stop()
        assert connection.receive()[::2] == (200, b"/slow")
    server.ended()
    assert server.output.count("--timeout-graceful-shutdown=1 ") == 1
    assert "Cancel" not in server.output


@pytest.mark.parametrize("subject", [variant("uvicorn", "--timeout-graceful-shutdown", "1", app="fastapi_app:app")], ids=str)
def test_timeout_graceful_shutdown_and_a_background_task(server: Server) -> None:
    """Nor a background task."""
    test_background_tasks(server)


@pytest.mark.parametrize("subject", [GRACEFUL], ids=str)
def test_timeout_graceful_shutdown_and_a_hung_request(server: Server) -> None:
    """A hung request is let go after request_timeout all the same."""
    server.start(REQUIEM_REQUEST_TIMEOUT="3s")
    with Connection(server.port) as connection:
        connection.send("/hang")
        server.stop()
        server.ended()
    assert "let go" in server.output


@pytest.mark.parametrize("subject", [variant("uvicorn", "--limit-max-requests", "2")], ids=str)
def test_limit_max_requests(server: Server) -> None:
    """A uvicorn that has served enough drains by itself: it says so, and jobs, requests and connections are held as in any drain."""
    server.start()
    with Connection(server.port) as slow, Connection(server.port) as idle:
        slow.send("/slow?s=4")
        idle.get("/job?s=6")
        get(server.port, "/")
        assert "EXTEND_TIMEOUT_USEC" in server.manager.wait_message("STOPPING").values
        server.wait_for(lambda: refused(server.port), poll=True)
        assert idle.get("/").headers["connection"] == "close"
        assert slow.receive().status == 200
    assert server.ended()[-2:] == ["ended job", "shutdown"]
    assert server.output.count("--limit-max-requests=2") == 1
    assert server.manager.result == "success"


@pytest.mark.parametrize("subject", [variant("uvicorn", "--limit-max-requests", "1")], ids=str)
def test_limit_max_requests_and_a_hung_request(server: Server) -> None:
    """A request that never ends does not keep such a uvicorn for ever, deaf: it is let go as in any drain."""
    server.start(REQUIEM_REQUEST_TIMEOUT="3s")
    with Connection(server.port) as connection:
        connection.send("/hang")
        get(server.port, "/")
        server.ended()
    assert "let go" in server.output


@pytest.mark.parametrize("subject", [variant("uvicorn", "--lifespan", "off")], ids=str)
def test_lifespan_off(server: Server) -> None:
    """Without the protocol the loop is held too; what is lost is said."""
    server.manager.settings = server.manager.unit.settings = server.manager.settings._replace(type="simple")
    server.start(ready=False)
    get(server.port, "/job?s=5")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended()
    assert server.output.count("--lifespan=off") == 1


@pytest.mark.parametrize("subject", [variant("gunicorn -k uvicorn_worker.UvicornWorker", "--graceful-timeout", "3")], ids=str)
def test_graceful_timeout_is_named(server: Server) -> None:
    """The arbiter kills a worker at its graceful_timeout; the worker has said so at its start, with the line that lifts it."""
    server.start()
    lines = [line for line in server.output.splitlines() if "graceful_timeout=3" in line]
    assert len(lines) == 1
    assert "gunicorn.hold(globals())" in lines[0]
    get(server.port, "/job?s=20")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" not in server.ended()


@pytest.mark.parametrize("subject", [variant("gunicorn -k uvicorn_worker.UvicornWorker")], ids=str)
def test_no_limit_is_named_where_none_is(server: Server) -> None:
    """Gunicorn's worker gives uvicorn a limit of requests that nobody has set: nothing is said of it."""
    server.start()
    assert "graceful_timeout" in server.output
    assert "max-requests" not in server.output


@pytest.mark.parametrize("subject", [subject for subject in ASGI if not subject.workers], ids=str)
def test_sigterm_in_the_exit(server: Server) -> None:
    """A SIGTERM that comes when the server has put back its own handlers cuts nothing off either."""
    server.start(EXIT_TAKES="2")
    server.stop()
    server.wait_recorded("begun exit")
    server.manager.kill("SIGTERM")
    assert server.ended()[-1] == "ended exit"


UNIX: Final = Subject("uvicorn --uds", ("asgi_app:app",), ("{bin}/uvicorn", "asgi_app:app", "--uds", "/tmp/requiem-test-{port}"))


def refuses(path: str) -> bool:
    """Say whether nobody listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(path) in (errno.ECONNREFUSED, errno.ENOENT)


@pytest.mark.parametrize("subject", [UNIX], ids=str)
def test_unix_listener(server: Server) -> None:
    """A listener with a path is closed at the begin of the drain like any other, and the path is gone in the end."""
    path = f"/tmp/requiem-test-{server.port}"
    server.start(activated=True)
    server.wait_for(lambda: not refuses(path), poll=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
        sock.sendall(b"GET /job?s=4 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        server.stop()
        server.wait_for(lambda: refuses(path), poll=True)
        assert "ended job" not in server.recorded
    assert "ended job" in server.ended()
    assert not Path(path).exists()
