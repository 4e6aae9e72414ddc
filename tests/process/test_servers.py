"""Servers in a drain: what is closed when, what holds, what the clients see. Real sockets, threads and processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import multiprocessing
import os
import socket
import socketserver
import ssl
import threading
import wsgiref.simple_server
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import adapters
from requiem_systemd.protocol import Environment
from requiem_systemd.service import Service
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GRACE = 0.3
SOON = PATIENCE
REQUEST = b"GET /reports/7?key=secret HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def service() -> Iterator[Service]:
    """Return an armed service that leaves signals and the process alone."""
    service = Service(environ={}, signals=False, exit=False)
    service.arm()
    yield service
    service.begin("the end of the test")
    assert service.wait(SOON)
    service.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers; of /slow when told."""

    protocol_version = "HTTP/1.1"
    timeout = SOON
    entered = threading.Semaphore(0)
    go_on = threading.Event()

    def do_GET(self) -> None:
        """Answer."""
        if self.path.startswith("/slow"):
            self.entered.release()
            assert self.go_on.wait(SOON)
        self.answer(b"hello")

    def answer(self, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


class Server(http.server.ThreadingHTTPServer):
    """With threads that are waited for."""

    daemon_threads = False


@contextlib.contextmanager
def serving(
    service: Service, server: socketserver.BaseServer, grace: float = GRACE
) -> Iterator[threading.Thread]:
    """Track a server and serve in a thread; at the end that thread has returned by itself."""
    Handler.entered, Handler.go_on = threading.Semaphore(0), threading.Event()
    service.track_socket(server, keepalive_grace=grace)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield thread
    finally:
        Handler.go_on.set()
        service.begin("the end of the server")
        thread.join(SOON)
        assert not thread.is_alive()
        server.server_close()


@contextlib.contextmanager
def http_server(
    service: Service, handler: Any = Handler, kind: Any = Server, grace: float = GRACE
) -> Iterator[tuple[str, int]]:
    """Serve HTTP, and yield the address."""
    server = kind(("127.0.0.1", 0), handler)
    with serving(service, server, grace):
        yield server.server_address


def connect(address: Any) -> socket.socket:
    """Connect with a time limit."""
    return socket.create_connection(address, SOON)


def answer(client: socket.socket) -> bytes:
    """Read one whole answer with "hello" as its body."""
    data = b""
    while not data.endswith(b"\r\n\r\nhello"):
        more = client.recv(65536)
        assert more, data
        data += more
    return data


def refused(address: Any) -> bool:
    """Say whether nobody listens."""
    try:
        with connect(address):
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # in its last instant
        return False


def drained(service: Service) -> bool:
    """Say whether the drain is over."""
    return bool(service.engine.stopped)


# -- http.server: what holds


def test_request_holds_until_its_answer_is_out(service: Service) -> None:
    """A request that is being answered is waited for, and the client gets the whole answer."""
    with http_server(service) as address, connect(address) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        Handler.entered.acquire(timeout=SOON)
        service.begin()
        assert not service.wait(GRACE * 2)
        Handler.go_on.set()
        assert answer(client).startswith(b"HTTP/1.1 200")
        assert service.wait(SOON)


def test_request_holds_from_its_first_byte(service: Service) -> None:
    """A request whose first byte has come is waited for and answered."""
    with http_server(service) as address, connect(address) as client:
        client.sendall(REQUEST[:1])
        while not [job for job in service.in_flight() if job.kind == "request"]:
            threading.Event().wait(0.01)
        service.begin()
        assert not service.wait(GRACE * 2)
        client.sendall(REQUEST[1:])
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_label_is_method_and_first_segment(service: Service) -> None:
    """Operators see method and first path segment, never what follows."""
    with http_server(service) as address, connect(address) as client:
        client.sendall(b"GET /slow/7/secret?key=secret HTTP/1.1\r\nHost: here\r\n\r\n")
        Handler.entered.acquire(timeout=SOON)
        assert [(job.label, job.kind) for job in service.in_flight()] == [("GET /slow", "request")]


def test_idle_connection_holds_nothing_while_running(service: Service) -> None:
    """A kept connection on which nothing is under way is no job."""
    with http_server(service) as address, connect(address) as client:
        client.sendall(REQUEST)
        answer(client)
        while service.in_flight():
            threading.Event().wait(0.01)


# -- http.server: the listener


def test_port_is_closed_and_loop_returns(service: Service) -> None:
    """At the begin the port is closed and serve_forever() returns, though a request goes on."""
    server = Server(("127.0.0.1", 0), Handler)
    with serving(service, server) as thread, connect(server.server_address) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        Handler.entered.acquire(timeout=SOON)
        service.begin()
        thread.join(SOON)
        assert not thread.is_alive()
        assert refused(server.server_address)
        Handler.go_on.set()
        answer(client)


def test_port_is_closed_while_the_only_thread_is_busy(service: Service) -> None:
    """A server of one thread that answers a request does not keep the port open; what waited is served after it."""
    with (
        http_server(service, kind=http.server.HTTPServer) as address,
        connect(address) as slow,
        connect(address) as waits,
    ):
        slow.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        waits.sendall(REQUEST)
        Handler.entered.acquire(timeout=SOON)
        service.begin()
        while not refused(address):
            threading.Event().wait(0.01)
        Handler.go_on.set()
        answer(slow)
        assert b"Connection: close\r\n" in answer(waits)


def test_backlog_of_a_socket_unit_is_left(service: Service) -> None:
    """Of a socket unit's listener what waits is left for the next process, and the listener stays alive."""
    with socket.create_server(("127.0.0.1", 0)) as units:
        service.environment = Environment(listeners=((os.dup(units.fileno()), "http"),))
        server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = service.listener("http")
        with (
            serving(service, server) as thread,
            connect(units.getsockname()) as slow,
            connect(units.getsockname()) as waits,
        ):
            slow.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            Handler.entered.acquire(timeout=SOON)
            service.begin()
            Handler.go_on.set()
            answer(slow)
            thread.join(SOON)
            accepted, who = units.accept()
            accepted.close()
            assert who == waits.getsockname()


def test_never_served_is_closed(service: Service) -> None:
    """A server that was tracked and never served is closed at the begin."""
    with Server(("127.0.0.1", 0), Handler) as server:
        service.track_socket(server)
        service.begin()
        assert service.wait(SOON)
        assert refused(server.server_address)


def test_who_waits_is_served_when_serving_begins_late(service: Service) -> None:
    """The signal came between the listening and serve_forever(): who was connected then is served all the same."""
    server = Server(("127.0.0.1", 0), Handler)
    service.track_socket(server, keepalive_grace=GRACE)
    with connect(server.server_address) as client:
        client.sendall(REQUEST)
        service.begin()
        assert service.engine.drain.closing.wait(SOON)
        service.engine.loop.call(lambda: None)
        server.serve_forever()
        assert answer(client).startswith(b"HTTP/1.1 200")
    assert service.wait(SOON)
    server.server_close()


def test_closed_by_its_owner(service: Service) -> None:
    """A server that its owner has closed is forgotten."""
    with Server(("127.0.0.1", 0), Handler) as server:
        service.track_socket(server)
    assert service.doors.close() == []


def test_server_tracked_in_the_drain_is_closed(service: Service) -> None:
    """A server that is tracked after the begin is closed at once, and serve_forever() returns."""
    with Server(("127.0.0.1", 0), Handler) as server, service.track("job"):
        service.begin()
        assert service.wait_begin(SOON)
        service.track_socket(server)
        server.serve_forever()
        assert refused(server.server_address)


def test_handle_request_ends_with_an_error(service: Service) -> None:
    """A loop of handle_request() ends by OSError when the server is closed, instead of spinning."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    service.track_socket(server, keepalive_grace=GRACE)

    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                server.handle_request()

    thread = threading.Thread(target=loop)
    thread.start()
    with connect(server.server_address) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer(client)
    service.begin()
    thread.join(SOON)
    assert not thread.is_alive()
    server.server_close()


def test_tracked_too_late(service: Service) -> None:
    """A server that serves already cannot be tracked; the error says when to."""
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with connect(server.server_address) as client:
        client.sendall(REQUEST)
        answer(client)
        with pytest.raises(RuntimeError, match="before serve_forever"):
            service.track_socket(server)
    server.shutdown()
    thread.join()
    server.server_close()


# -- http.server: kept connections


def test_answer_says_close_once(service: Service) -> None:
    """From the begin every answer carries Connection: close, once, whatever the handler says; then it is closed."""

    class Keeps(Handler):
        def do_GET(self) -> None:
            self.answer(b"hello", Connection="keep-alive")

    with http_server(service, Keeps) as address, connect(address) as client:
        client.sendall(REQUEST)
        assert b"Connection: keep-alive\r\n" in answer(client)
        service.begin()
        assert service.wait_begin(SOON)
        client.sendall(REQUEST)
        said = answer(client)
        assert (said.count(b"Connection:"), said.count(b"Connection: close\r\n")) == (1, 1)
        assert client.recv(1) == b""


def test_idle_connection_may_send_one_more_request(service: Service) -> None:
    """A kept connection holds the drain for the grace, in which it may send one more request and is answered."""
    with http_server(service, grace=SOON) as address, connect(address) as client:
        client.sendall(REQUEST)
        answer(client)
        service.begin()
        assert not service.wait(0.2)
        assert [job.kind for job in service.in_flight()] == ["connection"]
        client.sendall(REQUEST)
        assert b"Connection: close\r\n" in answer(client)
        assert service.wait(SOON / 2)


def test_silent_connection_is_closed(service: Service) -> None:
    """A kept connection that stays silent for the grace is closed, and the drain is over."""
    with http_server(service) as address, connect(address) as client:
        client.sendall(REQUEST)
        answer(client)
        service.begin()
        assert client.recv(1) == b""
        assert service.wait(SOON)


def test_grace_runs_beside_the_jobs(service: Service) -> None:
    """A silent connection is closed after the grace, not when the jobs have ended."""
    with http_server(service) as address, connect(address) as client, service.track("job"):
        service.begin()
        assert client.recv(1) == b""


def test_fresh_connection_gets_the_grace(service: Service) -> None:
    """A connection that has not sent anything when the drain begins may still send its request."""
    with http_server(service, grace=SOON) as address, connect(address) as client:
        service.begin()
        assert not service.wait(0.2)
        client.sendall(REQUEST)
        assert b"Connection: close\r\n" in answer(client)


def test_pipelined_request_is_answered(service: Service) -> None:
    """A second request that came in the same packet is seen, though nothing more can be read from the connection."""
    with http_server(service) as address, connect(address) as client:
        client.sendall(REQUEST + REQUEST)
        data = b""
        while data.count(b"hello") < 2:
            data += client.recv(65536)


def test_handlers_timeout_still_counts(service: Service) -> None:
    """A handler's timeout closes an idle connection, drain or not."""

    class Impatient(Handler):
        timeout = 0.2

    with http_server(service, Impatient) as address, connect(address) as client:
        client.sendall(REQUEST)
        answer(client)
        assert client.recv(1) == b""


def test_continue_is_left_alone(service: Service) -> None:
    """100 Continue carries no header of ours; the answer after it does."""

    class Posts(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(b"hello")

    with http_server(service, Posts) as address, connect(address) as client, service.track("job"):
        client.sendall(REQUEST)
        answer(client)
        service.begin()
        assert service.wait_begin(SOON)
        client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ab")
        assert b"Connection: close\r\n" in answer(client)


@pytest.mark.parametrize("kind", ["101", "text/event-stream"])
def test_connection_taken_over_holds_nothing(service: Service, kind: str) -> None:
    """A connection that was upgraded, or streams events, does not hold the drain."""

    class Takes(Handler):
        def do_GET(self) -> None:
            if kind == "101":
                self.send_response(101)
                self.send_header("Connection", "Upgrade")
            else:
                self.send_response(200)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.end_headers()
            self.close_connection = True
            self.entered.release()
            assert self.go_on.wait(SOON)

    with http_server(service, Takes) as address, connect(address) as client:
        client.sendall(REQUEST)
        Handler.entered.acquire(timeout=SOON)
        assert (b"Connection: Upgrade" in client.recv(65536)) == (kind == "101")
        service.begin()
        assert service.wait(SOON / 2)


# -- http.server: other ways of using it


def test_partial_handler(service: Service, tmp_path: Path) -> None:
    """A handler class in a functools.partial, as for SimpleHTTPRequestHandler, is tracked too."""
    (tmp_path / "file").write_text("hello")

    class Files(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with (
        http_server(service, functools.partial(Files, directory=str(tmp_path))) as address,
        connect(address) as client,
    ):
        service.begin()
        assert service.wait_begin(SOON)
        client.sendall(b"GET /file HTTP/1.1\r\nHost: here\r\n\r\n")
        assert b"Connection: close\r\n" in answer(client)


def test_wsgiref(service: Service) -> None:
    """Wsgiref's server, whose handler reads by itself, is held while it answers."""
    entered, go_on = threading.Event(), threading.Event()

    def app(_: Any, start: Callable[..., Any]) -> list[bytes]:
        entered.set()
        assert go_on.wait(SOON)
        start("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app, handler_class=Quiet)
    with serving(service, server), connect(server.server_address) as client:
        client.sendall(REQUEST)
        assert entered.wait(SOON)
        service.begin()
        assert not service.wait(GRACE * 2)
        go_on.set()
        answer(client)


def test_tls(service: Service, certificate: Path) -> None:
    """Behind TLS a kept connection may send one more request too, and is told to close; silent ones are closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.check_hostname = False
    with serving(service, server), contextlib.ExitStack() as stack:
        one, silent = (
            stack.enter_context(trusting.wrap_socket(stack.enter_context(connect(server.server_address))))
            for _ in range(2)
        )
        one.sendall(REQUEST)
        answer(one)
        service.begin()
        assert service.wait_begin(SOON)
        one.sendall(REQUEST)
        assert b"Connection: close\r\n" in answer(one)
        assert silent.recv(1) == b""


# -- socketserver


class Echo(socketserver.StreamRequestHandler):
    """Answers each line."""

    def handle(self) -> None:
        """Answer until the end."""
        for line in self.rfile:
            self.wfile.write(line)
        self.wfile.write(b"end")


class Threads(socketserver.ThreadingTCPServer):
    """With threads that are waited for."""

    allow_reuse_address = True


def test_blocked_read_gets_the_end(service: Service) -> None:
    """A handler that is blocked in a read holds the drain, sees the end after the grace, and can still write."""
    server = Threads(("127.0.0.1", 0), Echo)
    with serving(service, server), connect(server.server_address) as client:
        client.sendall(b"one\n")
        assert client.recv(100) == b"one\n"
        service.begin()
        assert client.recv(100) == b"end"
        assert client.recv(100) == b""
        assert service.wait(SOON)


def test_connection_that_talks_is_not_cut(service: Service) -> None:
    """A connection on which bytes keep coming is not cut at the end of the grace."""
    server = Threads(("127.0.0.1", 0), Echo)
    with serving(service, server), connect(server.server_address) as client:
        service.begin()
        for _ in range(8):
            client.sendall(b"one\n")
            assert client.recv(100) == b"one\n"
            assert not service.wait(GRACE / 4)


def test_unix_connection_gets_the_end(service: Service, tmp_path: Path) -> None:
    """The same over AF_UNIX."""
    with (
        serving(service, socketserver.ThreadingUnixStreamServer(str(tmp_path / "sock"), Echo)),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(SOON)
        client.connect(str(tmp_path / "sock"))
        client.sendall(b"one\n")
        assert client.recv(100) == b"one\n"
        service.begin()
        assert client.recv(100) == b"end"


def test_datagram_handler_answers(service: Service) -> None:
    """A handler of a datagram holds the drain, and can answer by the server's socket."""
    entered, go_on = threading.Event(), threading.Event()

    class Answers(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            entered.set()
            assert go_on.wait(SOON)
            self.wfile.write(b"pong")

    server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Answers)
    with serving(service, server) as thread, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(SOON)
        client.sendto(b"ping", server.server_address)
        assert entered.wait(SOON)
        service.begin()
        thread.join(SOON)
        assert not thread.is_alive()
        go_on.set()
        assert client.recv(100) == b"pong"
        assert service.wait(SOON)
        assert server.socket.fileno() == -1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_handler_holds_and_gets_the_end(service: Service) -> None:
    """A handler in a forked process holds the drain, and sees the end after the grace."""
    server = socketserver.ForkingTCPServer(("127.0.0.1", 0), Echo)
    with serving(service, server), connect(server.server_address) as client:
        client.sendall(b"one\n")
        assert client.recv(100) == b"one\n"
        assert [job.kind for job in service.in_flight()] == ["connection"]
        service.begin()
        assert client.recv(100) == b"end"
        assert service.wait(SOON)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_http_says_close(service: Service) -> None:
    """A forked HTTP handler hears of the begin: one more request, Connection: close."""

    class Forks(socketserver.ForkingMixIn, http.server.HTTPServer):
        """As in the documentation."""

    with http_server(service, kind=Forks, grace=SOON) as address, connect(address) as client:
        client.sendall(REQUEST)
        answer(client)
        service.begin()
        assert service.wait_begin(SOON)
        client.sendall(REQUEST)
        assert b"Connection: close\r\n" in answer(client)
        assert service.wait(SOON)


# -- accept and bare sockets


def test_accept_serves_and_ends(service: Service) -> None:
    """Several threads accept on one listener; all end at the begin, and the port is closed."""
    sock = service.listener("tcp", fallback=("127.0.0.1", 0))
    address = sock.getsockname()

    def loop() -> None:
        for connection, _ in service.accept(sock):
            with service.track("connection"), connection:
                connection.sendall(b"hello")

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        with connect(address) as client:
            assert client.recv(100) == b"hello"
    service.begin()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert refused(address)


def test_accept_serves_what_waits(service: Service) -> None:
    """What has connected to a listener of our own before the begin is still accepted and served."""
    sock = service.listener("tcp", fallback=("127.0.0.1", 0))
    connections = service.accept(sock)
    with connect(sock.getsockname()) as one, connect(sock.getsockname()) as two:
        service.begin()
        for connection, _ in connections:
            assert not drained(service)
            connection.sendall(b"hello")
            connection.close()
        assert [one.recv(100), two.recv(100)] == [b"hello", b"hello"]


def test_accept_leaves_what_waits_at_a_socket_unit(service: Service) -> None:
    """What has connected to a socket unit's listener is left for the next process."""
    with socket.create_server(("127.0.0.1", 0)) as units:
        service.environment = Environment(listeners=((os.dup(units.fileno()), "tcp"),))
        connections = service.accept(service.listener("tcp"))
        with connect(units.getsockname()):
            service.begin()
            assert service.wait(SOON)
            assert list(connections) == []
            units.accept()[0].close()


def test_accept_goes_on_in_a_lame_duck() -> None:
    """Until the end of a lame duck connections are accepted."""
    with Service(environ={}, signals=False, exit=False, lame_duck="jobs") as service:
        sock = service.listener("tcp", fallback=("127.0.0.1", 0))
        connections = service.accept(sock)
        with service.track("job"), connect(sock.getsockname()):
            service.begin()
            assert service.wait_begin(SOON)
            next(connections)[0].close()
        assert list(connections) == []


def test_accept_wants_a_listener(service: Service) -> None:
    """What does not listen cannot be accepted on."""
    with socket.socket() as sock, pytest.raises(TypeError, match="a socket that listens"):
        service.accept(sock)


def test_bare_socket_wakes_who_accepts(service: Service) -> None:
    """A thread that is blocked in accept() of a tracked socket gets the error of a closed one."""
    sock = socket.create_server(("127.0.0.1", 0))
    assert service.track_socket(sock) is sock
    ended = []

    def loop() -> None:
        try:
            while True:
                sock.accept()[0].close()
        except OSError as error:
            ended.append(error.errno)

    thread = threading.Thread(target=loop)
    thread.start()
    with connect(sock.getsockname()) as client:
        assert client.recv(1) == b""
    service.begin()
    thread.join(SOON)
    assert ended == [9]
    assert sock.fileno() == -1


def test_bare_socket_of_a_loop(service: Service) -> None:
    """A tracked socket of an event loop is closed in that loop."""

    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.settimeout(0.0)
        service.track_socket(sock)
        accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(sock))
        await asyncio.sleep(0)
        service.begin()
        while sock.fileno() >= 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        accepting.cancel()

    asyncio.run(main())


# -- asyncio


def test_asyncio_server_is_closed(service: Service) -> None:
    """An asyncio server is closed at the begin; its tracked connections hold, and what waited is served."""
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with service.track("connection"):
            taken.append(await reader.readline())
            writer.write(b"hello")
            await writer.drain()
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        service.track_socket(server)
        address = server.sockets[0].getsockname()
        clients = [connect(address) for _ in range(3)]  # the loop has not turned: they wait in the backlog
        service.begin()
        for client in clients:
            client.sendall(b"one\n")
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()
        while not drained(service):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert refused(address)
        for client in clients:
            assert client.recv(100) == b"hello"
            client.close()

    asyncio.run(main())
    assert taken == [b"one\n"] * 3


# -- kinds


def test_unknown_kind_lists_the_known(service: Service) -> None:
    """What is no server is a TypeError that lists what is."""
    with pytest.raises(TypeError, match=r"track_socket\(object\).*socketserver\.BaseServer.*register"):
        service.track_socket(object())


def test_kind_of_somebody_else(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind is registered in one line, and found for subclasses."""
    monkeypatch.setattr(adapters, "_KINDS", dict(adapters._KINDS))

    class Theirs:
        """A server of another package."""

    class More(Theirs):
        """One of its subclasses."""

    seen = []
    adapters.register(Theirs, lambda *what: seen.append(what))
    server = service.track_socket(More(), keepalive_grace=2)
    assert [(service, server, 2.0)] == seen


def test_grace_that_makes_no_sense(service: Service) -> None:
    """A negative grace is an error at the call."""
    with Server(("127.0.0.1", 0), Handler) as server, pytest.raises(ValueError, match="keepalive_grace"):
        service.track_socket(server, keepalive_grace=-1)


def test_listener_is_passed_to_a_process(service: Service) -> None:
    """A listener can be handed to a process of multiprocessing, as every socket can."""
    sock = service.listener("tcp", fallback=("127.0.0.1", 0))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_answer, args=(sock,))
    process.start()
    with connect(sock.getsockname()) as client:
        assert client.recv(100) == b"hello"
    process.join(SOON)
    process.close()


def _answer(sock: socket.socket) -> None:
    with sock.accept()[0] as connection:
        connection.sendall(b"hello")
