"""Tornado: `track_socket(server)`, an HTTPServer (also what `Application.listen` returns) or TCPServer, in its loop or before it runs.

- Of an HTTPServer a request holds the stop until its answer is out and its handler has returned (what the handler does after the
  answer, it does as a job), and so does every task that a request has started. What is let go after `request_timeout` is cancelled
  and its connection closed; a WebSocket may hold as long as a request. Of a TCPServer only the listeners are closed.
- Listeners are made non-blocking, since Tornado accepts until it would block: so `server.add_sockets([requiem_systemd.listener("http")])`
  is all that socket activation takes.
- The loop is yours: run the main coroutine by `requiem_systemd.aio.run`, say `ready()` when the server listens.
- `(r"/health", requiem_systemd.adapters.tornadorequests.health())` among the handlers answers 200, from the begin of the drain 503.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.adapters.tornadorequests import HttpServer
from requiem_systemd.doors import shut_late
from requiem_systemd.listen import describe
from requiem_systemd.wake import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# From accept() until a connection is known Tornado takes two turns of the loop.
SETTLE: Final = 4


def tcp(service: Any, server: Any, _grace: float) -> None:
    """Have the drain close a TCPServer's listeners."""
    Door(service, server)


def http(service: Any, server: Any, grace: float) -> None:
    """Have the drain close an HTTPServer's listeners, and see to its requests and connections."""
    door = Door(service, server)
    HttpServer(service, server, door.loop, grace)


class Door:
    """A door: one server's listeners."""

    def __init__(self, service: Any, server: Any) -> None:
        """Have the drain shut it."""
        from tornado.ioloop import IOLoop  # noqa: PLC0415 - the framework is loaded by its user

        self.loop: Any = IOLoop.current().asyncio_loop
        self.label: str = ""
        self._service = service
        self._server = server
        self._theirs = server.add_sockets
        server.add_sockets = self._add_sockets
        self._sockets: dict[int, Any] = server._sockets  # noqa: SLF001 - there is no other way to them
        self._opened(self._sockets.values())
        if not service.doors.add(self):
            shut_late(self, service.ledger)

    def _add_sockets(self, sockets: Any) -> None:
        sockets = list(sockets)
        self._opened(sockets)
        self._theirs(sockets)

    def _opened(self, sockets: Iterable[Any]) -> None:
        for sock in sockets:
            sock.setblocking(False)
            self.label = ", ".join(filter(None, (self.label, describe(sock))))

    def shut(self, done: Callable[[], object]) -> None:
        """Close in the loop, the backlog accepted first where it is ours to serve: see doors.Door."""
        try:
            self.loop.call_soon_threadsafe(self._shut, done)
        except RuntimeError:  # the loop is closed
            done()

    def _shut(self, done: Callable[[], object]) -> None:
        listening = self._service.listening
        for sock in list(self._sockets.values()):
            if sock.fileno() < 0:
                continue
            if listening.serves_backlog(sock):
                self._accept_backlog(sock)
            elif listening.was_passed(sock):
                self._service.doors.watch(sock)
            listening.unlink(sock)
        self._server.stop()  # unregisters, then closes; never shutdown()
        self._settle(done, SETTLE)

    def _accept_backlog(self, sock: Any) -> None:
        while readable(sock, timeout=0):
            try:
                connection, address = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError:  # no descriptors left
                return
            self._server._handle_connection(connection, address)  # noqa: SLF001 - what its accept handler calls

    def _settle(self, done: Callable[[], object], turns: int) -> None:
        if turns:
            self.loop.call_soon(self._settle, done, turns - 1)
        else:
            done()
