"""http.server: a request holds the stop, from its first byte until its answer is out.

The server's handler class is replaced by a subclass. Between requests it waits by poll on the connection and the begin's wake descriptor
instead of in a read; from the begin every answer carries Connection: close, and a connection that stays silent for the grace is closed.
"""

from __future__ import annotations

import functools
import http.server
import logging
import os
import socketserver
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd import journal
from requiem_systemd.adapters.socketservers import ServerDoor
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import REQUEST, More
from requiem_systemd.wake import readable

if TYPE_CHECKING:
    from requiem_systemd.adapters.lines import Line
    from requiem_systemd.tracker import Hold

LOG: Final = logging.getLogger("requiem_systemd")
SWITCHING: Final = 101
FINAL: Final = 200  # below, answers are provisional (RFC 9110, 15.2)


def door(service: Any, server: http.server.HTTPServer, grace: float) -> None:
    """Have the drain close an HTTP server; RuntimeError if it serves already."""
    handler: Any = server.RequestHandlerClass
    plain = handler.func if isinstance(handler, functools.partial) else handler
    if not (isinstance(plain, type) and issubclass(plain, http.server.BaseHTTPRequestHandler)):
        ServerDoor(
            service, server, grace
        ).attach()  # of whatever makes the handlers nothing is known: the whole call holds
        return
    if hasattr(socketserver, "ForkingMixIn") and isinstance(server, socketserver.ForkingMixIn):
        LOG.warning(
            "%s forks a process for each request: a job in it ends with its answer, in a drain or not, and a health path does not hear of "
            "the drain. Use threads (ThreadingMixIn; in Werkzeug threaded=True) where there are such",
            type(server).__name__,
            extra=journal.record("mistake"),
        )
    made = HttpDoor(service, server, grace)
    made.attach()
    wrapped: Any = tracked(made, plain)
    if isinstance(handler, functools.partial):
        wrapped = functools.partial(wrapped, *handler.args, **handler.keywords)
    server.RequestHandlerClass = wrapped


class HttpDoor(ServerDoor):
    """A door: one HTTP server. Its connections hold nothing by themselves; requests do, and in the drain the grace."""

    begins_idle = True

    def draining(self) -> bool:
        """Say whether the drain has begun; a forked child hears of it by the wake descriptor."""
        if self.lines.began is None and os.getpid() != self.pid and readable(self.begun, timeout=0):
            self.lines.began = time.monotonic()
        return self.lines.began is not None


def tracked(door: HttpDoor, kind: Any) -> type:
    """Make the subclass of a class of handlers that tracks its requests."""

    class Tracked(kind):  # type: ignore[misc] # of whatever class there is
        _exchange: Exchange | None = None

        def handle(self) -> None:
            self._exchange = exchange = Exchange(door, self)
            try:
                if exchange.begin():
                    super().handle()
            finally:
                exchange.over()

        def handle_one_request(self) -> None:
            exchange = self._exchange
            if exchange is None or (exchange.hold is None and not exchange.begin()):
                self.close_connection = True
                return
            super().handle_one_request()
            exchange.answered()

        def parse_request(self) -> bool:
            parsed: bool = super().parse_request()
            if parsed and self._exchange is not None:
                self._exchange.name()
            return parsed

        def flush_headers(self) -> None:
            exchange = self._exchange
            taken_over = exchange is not None and exchange.headers()
            super().flush_headers()
            if exchange is not None and taken_over:
                exchange.taken_over()

    Tracked.__name__, Tracked.__qualname__, Tracked.__module__ = (
        kind.__name__,
        kind.__qualname__,
        kind.__module__,
    )
    Tracked.__doc__ = kind.__doc__
    return Tracked


class Exchange:
    """One connection's requests, one after another."""

    def __init__(self, door: HttpDoor, handler: Any) -> None:
        """Store."""
        self.hold: Hold | None = None
        self._door = door
        self._handler = handler
        self._own: Line | None = None
        line = door.lines.of(handler.request)
        if line is None:  # finish_request() has put another object in its place
            line = self._own = door.lines.open()
        self._line = line

    # -- a request's life ----------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Wait for a request's first byte, and hold the stop from then on; False if the connection is to be closed."""
        if not self._arrives():
            return False
        hold: Hold = self._door.service.open("request", More(REQUEST))
        try:
            hold.__enter__()
        except DrainingError:  # stopped: the exit would cut the answer off
            return False
        self.hold = hold
        self._door.lines.busy(self._line)
        return True

    def name(self) -> None:
        """Name the request by method and first path segment: operators see it, and so does every local user."""
        if self.hold is not None:
            self.hold.name = label(self._handler.command, self._handler.path)

    def answered(self) -> None:
        """The answer is out; a connection that goes on may send another request, one that does not holds until it is closed."""
        if not self._handler.close_connection and self.hold is not None:
            self._door.lines.rest(self._line)
            self._release()

    def taken_over(self) -> None:
        """The connection speaks another protocol, or is a stream without an end: it holds nothing."""
        self._door.lines.end(self._line)
        self._release()

    def over(self) -> None:
        """The handler has returned: the connection, idle for the ledger, holds the stop until it is closed if it must."""
        if self.hold is not None:
            self._door.lines.rest(self._line)
            self._release()
        if self._own is not None:
            self._door.lines.end(self._own)

    def _release(self) -> None:
        hold, self.hold = self.hold, None
        if hold is not None:
            hold.__exit__(None, None, None)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _arrives(self) -> bool:
        """Wait until there is something to read, or the end of the connection; False when it has been silent for too long."""
        connection, door = self._handler.connection, self._door
        if self._buffered():
            return True
        limit: float | None = connection.gettimeout()
        patience = None if limit is None else time.monotonic() + limit
        while True:
            draining = door.draining()
            deadline = patience if not draining else self._silent_at(patience)
            left = None if deadline is None else deadline - time.monotonic()
            ready = readable(connection, *(() if draining else (door.begun,)), timeout=left)
            if connection.fileno() in ready or connection.fileno() < 0:
                if self._buffered() is not False or not _is_tls(connection):
                    return True
            elif not ready and left is not None:
                if not draining:
                    self._handler.log_error("Request timed out: %r", TimeoutError("timed out"))
                return False

    def _silent_at(self, patience: float | None) -> float:
        began = self._door.lines.began or 0.0
        silent = max(began, self._line.since) + self._door.grace
        return silent if patience is None else min(silent, patience)

    def _buffered(self) -> bool | None:
        """Say whether bytes have been read ahead (a pipelined request, a TLS record); None at the end of the connection."""
        peek = getattr(self._handler.rfile, "peek", None)
        if peek is None:
            return False
        connection = self._handler.connection
        timeout = connection.gettimeout()
        try:
            connection.settimeout(0)
            return bool(peek(1)) or None
        except OSError as error:
            return False if _wants_more(error) else None
        except ValueError:  # closed
            return None
        finally:
            if connection.fileno() >= 0:
                connection.settimeout(timeout)

    # -- headers -------------------------------------------------------------------------------------------------------

    def headers(self) -> bool:
        """Mend the headers that are about to be sent; say whether the connection is taken over by them."""
        lines: list[bytes] = getattr(self._handler, "_headers_buffer", None) or []
        status = _status(lines)
        if status == SWITCHING:
            return True
        if status >= FINAL and self._door.draining():
            kept = [line for line in lines if not line.lower().startswith(b"connection:")]
            kept.insert(len(kept) - (kept[-1] == b"\r\n"), b"Connection: close\r\n")
            lines[:] = kept
            self._handler.close_connection = True
        return any(
            line.lower().startswith(b"content-type:") and b"text/event-stream" in line.lower()
            for line in lines
        )


def label(method: str, path: str) -> str:
    """Name a request by method and first path segment, never by what follows: "GET /reports"."""
    plain = path.partition("?")[0].partition("#")[0]
    if "://" in plain:  # the absolute form
        plain = "/" + plain.partition("://")[2].partition("/")[2]
    return f"{method} /{plain.lstrip('/').partition('/')[0]}"


def _status(lines: list[bytes]) -> int:
    parts = lines[0].split(None, 2) if lines else []
    return int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit() else 0


def _is_tls(connection: object) -> bool:
    kind: Any = getattr(sys.modules.get("ssl"), "SSLSocket", None)
    return kind is not None and isinstance(connection, kind)


def _wants_more(error: OSError) -> bool:
    kind: Any = getattr(sys.modules.get("ssl"), "SSLWantReadError", None)
    return isinstance(error, BlockingIOError) or (kind is not None and isinstance(error, kind))
