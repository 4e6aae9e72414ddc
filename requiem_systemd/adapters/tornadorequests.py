"""Tornado: the requests of an HTTPServer, and its connections; see `tornadoservers`."""

from __future__ import annotations

import contextlib
from typing import Any

from requiem_systemd.adapters.connections import Connections, Request, RequestName
from requiem_systemd.adapters.tasks import Inside, in_request, track_tasks
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import CONNECTION, JOB, REQUEST, Ledger


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
        before = self._exchanges.get(line)
        if before is None:
            self.connections.opened(line, line.stream.socket, line.stream.close)
        else:
            before.answered()
        exchange = self._exchanges[line] = self._exchange()
        exchange.connection, exchange.message, exchange.delegate = line, message, self._theirs[0](line, message)
        exchange.kind, exchange.owner, exchange.task, exchange.begins = REQUEST, None, None, False
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

    __slots__ = ("begins", "connection", "delegate", "message", "start", "task")

    begins: bool
    connection: Any
    delegate: Any
    kind: str
    message: Any
    server: HttpServer
    start: Any
    task: Any

    def __str__(self) -> str:
        return str(RequestName(self.start.method, self.start.path.partition("?")[0]))

    # -- what the connection tells -------------------------------------------------------------------------------------

    def headers_received(self, start_line: Any, headers: Any) -> Any:
        """It begins."""
        self.start = start_line
        upgrades = headers.get_list("Upgrade")
        if upgrades and upgrades[0].lower() == "websocket":
            self.kind = CONNECTION
        ledger = self.server.ledger
        clock, live = ledger.clock, ledger.live  # on its own: see asgi.Exchange.send
        live[self] = clock()
        if ledger.alert and not self._admitted():
            self.connection.stream.close()
            return None
        token, self.begins = in_request.set(self), True
        try:
            return self.delegate.headers_received(start_line, headers)
        finally:
            self.begins = False
            in_request.reset(token)

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
        token, self.begins = in_request.set(self), self.task is None
        try:
            return self.delegate.data_received(chunk)
        finally:
            self.begins = False
            in_request.reset(token)

    def finish(self) -> None:
        """It is here as a whole."""
        token, self.begins = in_request.set(self), self.task is None
        try:
            self.delegate.finish()
        finally:
            self.begins = False
            in_request.reset(token)

    def on_connection_close(self) -> None:
        """Its connection was closed before that."""
        self.delegate.on_connection_close()

    # -- its end -------------------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """The connection is ready for the next one, or closed."""
        if self.task is None or self.task.done():
            self._settle()
            return
        if self.message.stream is not None and self.message._write_finished:  # noqa: SLF001 - nothing else tells
            self.kind = JOB
        self.task.add_done_callback(self._settle)

    def _settle(self, _task: object = None) -> None:
        self._leave()
        self.task = None  # whose context has this: a cycle, which the collector would have to find

    def _leave(self) -> None:
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
        self.connection.stream.close()

    def announce_end(self) -> None:
        """Have its answer say that the connection ends, if that is still to begin (RFC 9112, 9.6)."""
        message = self.message
        if self.kind == REQUEST and message._response_start_line is None:  # noqa: SLF001 - nothing else tells
            message._disconnect_on_finish = True  # noqa: SLF001 - nor does anything else end it after this answer
