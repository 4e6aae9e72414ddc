"""What every HTTP server does when its service is stopped. Each test is a row of the table, and its name the row's."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from tests.conformance.client import Connection, get, refused

if TYPE_CHECKING:
    from tests.conformance.conftest import Server

# Words that no server writes when all is well.
ALARMS = ("Traceback", "Warning", "was destroyed", "never awaited", "never retrieved", "CRITICAL", "ERROR")


def test_stops_accepting(server: Server) -> None:
    """From the begin of the drain the port refuses, while a job runs on."""
    server.start()
    get(server.port, "/job?s=4")
    server.wait_recorded("begun job")
    server.stop()
    server.wait_for(lambda: refused(server.port), poll=True)
    assert "ended job" not in server.recorded
    server.ended()


def test_request_in_flight(server: Server) -> None:
    """A request that takes longer than TimeoutStopSec= is answered in full."""
    server.start()
    with Connection(server.port) as connection:
        connection.send("/slow?s=4")
        server.stop()
        assert connection.receive()[::2] == (200, b"/slow")
    server.ended()


def test_stream(server: Server) -> None:
    """An answer that comes in pieces comes to its end."""
    server.start()
    with Connection(server.port) as connection:
        connection.send("/stream?n=10&s=0.4")
        connection.head()
        server.stop()
        text = b"".join(iter(connection.chunk, b"")) if server.subject.name != "wsgiref" else connection._file.read()
    assert text.splitlines() == [*(f"piece {n}".encode() for n in range(10)), b"end"]
    server.ended()


def test_keepalive(server: Server) -> None:
    """A connection that was idle when the drain began may send one more request."""
    server.start()
    with Connection(server.port) as connection:
        connection.get("/")
        server.stop()
        assert connection.get("/").status == 200
        assert connection.ended()
    server.ended()


def test_announces_close(server: Server) -> None:
    """From the begin of the drain an answer says that its connection is closed, and it is."""
    server.start()
    with Connection(server.port) as connection:
        connection.send("/slow?s=1")
        server.stop()
        assert connection.receive().headers["connection"] == "close"
        assert connection.ended()
    server.ended()


def test_backlog(server: Server) -> None:
    """Connections that the kernel had finished when the drain began are served, on a listener of the server's own."""
    server.start()
    # Not a parent process, which accepts nothing: the kernel may wake a thread of it that lets its main thread sleep on.
    stopped = [pid for pid in server.processes() if pid != server.process.pid or not server.subject.workers]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port)) for _ in range(5)]
        for connection in connections:
            connection.send("/")
        server.manager.stop()
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert [connection.receive().status for connection in connections] == [200] * 5
    server.ended()


def test_inherited_listener(server: Server) -> None:
    """A listener that was passed stays usable: who connects while nobody runs is served by the next process."""
    server.port = server.manager.listen("http").getsockname()[1]
    server.start(activated=True)
    assert get(server.port, "/").status == 200
    server.stop()
    server.ended()
    with Connection(server.port) as connection:
        connection.send("/")
        server.start(activated=True)
        assert connection.receive().status == 200
    server.stop()
    server.ended()


def test_background_job(server: Server) -> None:
    """A job that no connection stands for is held past TimeoutStopSec=, and nothing is amiss in what the server writes."""
    server.start()
    get(server.port, "/job?s=5")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended()
    assert not [word for word in ALARMS if word in server.output], server.output


def test_job_begun_in_the_drain(server: Server) -> None:
    """A job that a job begins during the drain is held as well."""
    server.start()
    get(server.port, "/chain?s=3")
    server.wait_recorded("begun first")
    server.stop()
    assert server.ended().count("ended second") == 1


def test_hung_request(server: Server) -> None:
    """A request that never ends is let go after request_timeout."""
    server.start(REQUIEM_REQUEST_TIMEOUT="3s")
    with Connection(server.port) as connection:
        connection.send("/hang")
        server.stop()
        server.ended()
    assert "let go" in server.output


def test_failing_handler(server: Server) -> None:
    """A handler that raises holds nothing afterwards."""
    server.start()
    with contextlib.suppress(ConnectionError):
        assert get(server.port, "/fail").status == 500
    server.stop()
    server.ended()
    assert "let go" not in server.output


def test_double_sigterm(server: Server) -> None:
    """A second SIGTERM changes nothing."""
    server.start()
    get(server.port, "/job?s=4")
    server.wait_recorded("begun job")
    server.stop()
    server.manager.kill("SIGTERM")
    assert "ended job" in server.ended()


def test_sigint_twice(server: Server) -> None:
    """SIGINT drains; a second one, later than a second, abandons, and names what it abandons."""
    server.start()
    get(server.port, "/job?s=30")
    server.wait_recorded("begun job")
    server.manager.kill("SIGINT")
    begun = server.manager.wait_message("EXTEND_TIMEOUT_USEC").at
    server.wait_for(lambda: any(message.at > begun + 1.2 for message in server.manager.messages))
    server.manager.kill("SIGINT")
    server.ended(status=75)
    assert "abandoned" in server.output
    assert "job" in server.output


def test_framework_hooks(server: Server) -> None:
    """The application's own shutdown runs once, after the last job."""
    server.start()
    get(server.port, "/job?s=3")
    server.wait_recorded("begun job")
    server.stop()
    recorded = server.ended()
    assert [line for line in recorded if "job" in line] == ["begun job", "ended job"]
    assert recorded[-1] == "shutdown"
    assert recorded.count("startup") == recorded.count("shutdown") == max(server.subject.workers, 1)


def test_idle_stop(server: Server) -> None:
    """With nothing in flight it ends at once, with status 0."""
    server.start()
    assert get(server.port, "/").status == 200
    server.manager.stop()
    server.ended()
    assert server.manager.result == "success"


def test_health(server: Server) -> None:
    """The health path answers 200, from the begin of the drain 503, and holds nothing; a lame duck is what one has it for."""
    server.start(REQUIEM_LAME_DUCK="2s")
    assert get(server.port, "/health").status == 200
    server.stop()
    assert get(server.port, "/health").status == 503
    assert get(server.port, "/").status == 200
    server.ended()


def test_websocket(server: Server) -> None:
    """A WebSocket hears of the drain by should_stop(); one that does not listen is let go after request_timeout."""
    from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 - not in what Debian's build has
    from websockets.sync.client import connect  # noqa: PLC0415 - same

    server.start(REQUIEM_REQUEST_TIMEOUT="3s")
    with (
        connect(f"ws://127.0.0.1:{server.port}/", proxy=None) as heeds,
        connect(f"ws://127.0.0.1:{server.port}/deaf", proxy=None) as deaf,
    ):
        heeds.recv()
        deaf.recv()
        server.stop()
        with contextlib.suppress(ConnectionClosed):
            for _ in heeds:
                continue
        assert heeds.close_code in (1001, 1012)
        server.ended()


def test_events(server: Server) -> None:
    """Server-sent events hear of the drain by should_stop(), and come to their end."""
    server.start()
    with Connection(server.port) as connection:
        connection.send("/events")
        connection.head()
        connection.chunk()
        server.stop()
        assert list(iter(connection.chunk, b""))[-1].endswith(b"data: bye\n\n")
    server.ended()
