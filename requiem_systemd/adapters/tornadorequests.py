"""Tornado: the requests of an HTTPServer, and its connections; see `tornadoservers`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.connections import Connections, Request, RequestName
from requiem_systemd.adapters.tasks import Inside, in_request, track_tasks
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import CONNECTION, JOB, REQUEST, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable


def health() -> type:
    """Make a handler for the health path; it holds nothing."""
    from tornado.web import RequestHandler  # noqa: PLC0415 - the framework is loaded by its user

    class Health(RequestHandler):  # type: ignore[misc] # mypy skips Tornado
        def get(self) -> None:
            exchange = in_request.get()
            draining = isinstance(exchange, Exchange) and exchange.untrack()
            self.set_status(503 if draining else 200)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.set_header("Cache-Control", "no-store")
            self.finish("draining\n" if draining else "ok\n")

    return Health


class HttpServer:
    """One HTTPServer: its connections, and what is under way on each."""

    def __init__(self, service: Any, server: Any, loop: Any, grace: float) -> None:
        """Hear of them by the two methods that its connections call."""
        self.service: Any = service
        self.loop: Any = loop
        self.connections: Connections = Connections(service, "tornado", grace, loop.call_soon_threadsafe, loop.call_later)
        self.connections.missing = self._join
        self.ledger: Ledger = service.ledger
        self._exchange: type[Exchange] = type("Exchange", (Exchange,), {"__slots__": (), "server": self})
        self._exchanges: dict[object, Exchange] = {}
        self._theirs = server.start_request, server.on_close
        server.start_request, server.on_close = self._start_request, self._on_close
        track_tasks(loop, service)
        service.engine.begun.then(self._begun)

    def _begun(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._announce_ends)

    def _announce_ends(self) -> None:
        for exchange in self._held():
            exchange.announce_end()

    def _held(self) -> list[Exchange]:
        return [entry for entry, _ in self.ledger.entries() if isinstance(entry, self._exchange)]

    def _join(self) -> None:
        for exchange in self._held():
            self.connections.join(exchange, exchange.connection)

    def _start_request(self, line: Any, message: Any) -> Any:
        """A connection waits for its first or next request."""
        before = self._exchanges.pop(line, None)
        if before is not None:
            before.answered()
        if line not in self.connections:
            self.connections.opened(line, line.stream.socket, line.stream.close)
        exchange = self._exchanges[line] = self._exchange(line, message, self._theirs[0](line, message))
        return exchange

    def _on_close(self, line: Any) -> None:
        """A connection has ended, or was taken over (WebSocket)."""
        self._theirs[1](line)
        exchange = self._exchanges.pop(line, None)
        if exchange is not None and exchange.task is not None and exchange.message.stream is None:
            exchange.task.add_done_callback(lambda _: self.connections.closed(line))
        else:
            self.connections.closed(line)
        if exchange is not None:
            exchange.answered()


class Exchange(Request, Inside):
    """One request, in place of the delegate that its connection tells of it; `task` is the one that runs its handler.

    `server` is an attribute of a class that each HttpServer makes.
    """

    __slots__ = ("_answered", "_delegate", "_entering", "_holds", "_stream", "connection", "message", "start", "task")

    server: HttpServer

    def __init__(self, connection: Any, message: Any, delegate: Any) -> None:
        """Store."""
        self.owner: Any = None
        self.task: Any = None
        self.connection: Any = connection
        self.message: Any = message
        self.kind: str = REQUEST
        self._stream = connection.stream
        self._delegate = delegate
        self._holds = False
        self._entering = False
        self._answered = False

    def __str__(self) -> str:
        return str(RequestName(self.start.method, self.start.path.partition("?")[0]))

    # -- what the connection tells -------------------------------------------------------------------------------------

    def headers_received(self, start_line: Any, headers: Any) -> Any:
        """It begins."""
        self.start: Any = start_line
        upgrades = headers.get_list("Upgrade")
        if upgrades and upgrades[0].lower() == "websocket":
            self.kind = CONNECTION
        ledger = self.server.ledger
        clock, live = ledger.clock, ledger.live  # on its own: see asgi.Exchange.send
        live[self] = clock()
        if ledger.alert and not self._admitted():
            self._stream.close()
            return None
        self._holds = True
        return self._inside(self._delegate.headers_received, start_line, headers)

    def _admitted(self) -> bool:
        try:
            self.server.connections.enter(self, self.connection)
        except DrainingError:  # stopped: the exit would cut the answer off
            return False
        if self.server.ledger.began is not None:
            self.announce_end()
        return True

    def data_received(self, chunk: bytes) -> Any:
        """A part of its body."""
        return self._inside(self._delegate.data_received, chunk)

    def finish(self) -> None:
        """It is here as a whole."""
        self._inside(self._delegate.finish)

    def on_connection_close(self) -> None:
        """Its connection was closed before that."""
        self._delegate.on_connection_close()

    def _inside(self, tell: Callable[..., Any], *arguments: Any) -> Any:
        token, self._entering = in_request.set(self), True
        try:
            return tell(*arguments)
        finally:
            self._entering = False
            in_request.reset(token)

    def takes(self, task: Any) -> bool:
        """Take the task that its handler runs in: the first that is made while the connection tells of it."""
        if not self._entering or self.task is not None:
            return False
        self.task = task
        task.add_done_callback(self._settle)
        return True

    # -- its end -------------------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """The connection is ready for the next one, or closed."""
        self._answered = True
        if self._holds and self.message.stream is not None and self.message._write_finished:  # noqa: SLF001 - nothing else tells
            self.kind = JOB
        self._settle()

    def _settle(self, _task: object = None) -> None:
        if self._answered and (self.task is None or self.task.done()):
            self._leave()
            self.task = None  # whose context has this: a cycle, which the collector would have to find

    def _leave(self) -> None:
        if not self._holds:
            return
        self._holds = False
        ledger = self.server.ledger
        if not ledger.alert:
            ledger.live.pop(self, None)
        if ledger.alert:  # where it was before, the connection holds before the request ceases to
            self.server.connections.leave(self)

    def untrack(self) -> bool:
        """Hold nothing from now on; say whether the drain has begun."""
        self._leave()
        return self.server.ledger.began is not None

    def let_go(self, owner: object) -> None:
        """Cancel it, and close its connection: see Terms."""
        del owner
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.server.loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self._stream.close()

    def announce_end(self) -> None:
        """Have its answer say that the connection ends, if that is still to begin (RFC 9112, 9.6)."""
        message = self.message
        if self.kind == REQUEST and message._response_start_line is None:  # noqa: SLF001 - nothing else tells
            message._disconnect_on_finish = True  # noqa: SLF001 - nor does anything else end it after this answer
