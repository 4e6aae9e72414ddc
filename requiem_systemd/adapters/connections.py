"""The connections and requests of a server in an event loop, and what of them holds the stop.

A request holds it by itself, for at most `request_timeout`. A connection without one holds it in the drain only: until it has been
silent for the grace and is closed, or, when its last answer says that it ends, until that answer has left the process (a loop that
ends loses what is in its transports' buffers). Everything runs in the server's loop, but where it says otherwise.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.lines import silence
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import CONNECTION, REQUEST, Ledger, More, Record, Whole
from requiem_systemd.report import first_segment

if TYPE_CHECKING:
    from collections.abc import Callable


class Line:
    """One connection: its socket (None: unknown), what closes it, and its requests."""

    __slots__ = ("close", "closing", "requests", "since", "sock")

    def __init__(self, sock: Any, close: Callable[[], object]) -> None:
        """Store."""
        self.sock: Any = sock
        self.close: Callable[[], object] = close
        self.closing: bool = False
        self.requests: set[Request] = set()
        self.since: float = time.monotonic()


class Request(Whole):
    """One request, from `enter` to `leave`: what the ledger has and shows of it. `called` is what its label is made of.

    Its kind may become another on the way. One object with slots and no `__init__`, as asgi.Exchange is and for the same reason.
    """

    __slots__ = ("called", "cut", "kind", "line")

    called: object
    cut: Callable[[], object]
    kind: str
    line: Line | None

    def __str__(self) -> str:
        return str(self.called)

    def let_go(self, owner: object) -> None:
        """Make an end of it: see Terms."""
        del owner
        self.cut()


class Connections:
    """The connections of one server, by key.

    `post` makes a call in the server's loop, from any thread; `later` makes one there after some seconds. RuntimeError: it is closed.
    Which requests are under way matters in the drain only: whoever has many may `join` them to their connections when `missing` is called,
    in the server's loop, before it is first looked at what is idle.
    """

    missing: Callable[[], object] | None = None

    def __init__(
        self, service: Any, label: str, grace: float, post: Callable[[Any], object], later: Callable[[float, Any], object]
    ) -> None:
        """Have the drain see to them."""
        self.service = service
        self._ledger: Ledger = service.ledger
        self._label = label
        self._grace = grace
        self._post = post
        self._later = later
        self._lines: dict[object, Line] = {}
        self._lock = threading.Lock()
        self._record: Record | None = None
        self._began: float | None = None
        self._timed = False
        service.engine.begun.then(self._begin)

    # -- what happens to them ------------------------------------------------------------------------------------------

    def opened(self, key: object, sock: Any, close: Callable[[], object]) -> None:
        """A connection was accepted; `close` closes it when it is idle."""
        self._lines[key] = Line(sock, close)
        self._sweep_if_draining()

    def closed(self, key: object) -> None:
        """A connection has ended, and all its bytes are out or lost. Again: nothing."""
        if self._lines.pop(key, None) is not None:
            self._sweep_if_draining()

    def lost(self, key: object) -> None:
        """A connection has ended, and so have its requests."""
        line = self._lines.get(key)
        for request in tuple(line.requests) if line is not None else ():
            self.leave(request)
        self.closed(key)

    def __contains__(self, key: object) -> bool:
        """Say whether a connection is known."""
        return key in self._lines

    def request(self, key: object, called: object, kind: str = REQUEST, *, cut: Callable[[], object]) -> Request:
        """Begin a request; `cut` is called, in any thread, when its time has run out. DrainingError once the service has stopped."""
        request = Request()
        request.called, request.kind, request.cut, request.owner = called, kind, cut, None
        self.enter(request, key)
        return request

    def enter(self, request: Request, key: object) -> None:
        """Begin a request on a connection. DrainingError once the service has stopped."""
        self._ledger.enter(request)
        self.join(request, key)
        self._sweep_if_draining()

    def join(self, request: Request, key: object) -> None:
        """Have a request keep its connection from being idle."""
        line = request.line = self._lines.get(key)
        if line is not None:
            line.requests.add(request)

    def leave(self, request: Request) -> None:
        """A request is over; its connection holds before it ceases to. Again: nothing."""
        line = getattr(request, "line", None)
        if line is not None and request in line.requests:
            line.requests.discard(request)
            line.since = time.monotonic()
            self._sweep_if_draining()
        self._ledger.leave(request)

    # -- the drain -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The drain begins: in the engine's thread. What is idle holds from this instant."""
        with self._lock:
            self._began = time.monotonic()
            self._hold()
        try:
            self._post(self._sweep)
        except RuntimeError:  # the loop is closed, and its connections with it
            with self._lock:
                self._release()

    def _sweep_if_draining(self) -> None:
        if self._began is not None:
            self._sweep()

    def _sweep(self) -> None:
        """Close what has been silent for the grace, come back for the next, and hold as long as there is any."""
        missing, self.missing = self.missing, None
        if missing is not None:
            missing()
        following: float | None = None
        waits = False
        for line in list(self._lines.values()):
            if line.requests:
                continue
            waits = True
            left = self._left(line)
            if line.closing:
                continue
            if left <= 0:
                line.closing = True
                line.close()
            else:
                following = left if following is None else min(left, following)
        if following is not None and not self._timed:
            self._timed = True
            self._later(following, self._again)
        with self._lock:
            if waits:
                self._hold()
            else:
                self._release()

    def _again(self) -> None:
        self._timed = False
        self._sweep()

    def _left(self, line: Line) -> float:
        silent = time.monotonic() - max(self._began or 0.0, line.since)
        return self._grace - (silent if line.sock is None else min(silent, silence(line.sock)))

    def _hold(self) -> None:
        if self._record is not None:
            return
        record = Record(f"connections at {self._label}", None)
        record.more = More(CONNECTION)
        with contextlib.suppress(DrainingError):  # stopped: nothing is held any more
            self._ledger.enter(record)
            self._record = record

    def _release(self) -> None:
        record, self._record = self._record, None
        if record is not None:
            self._ledger.leave(record)


class RequestName:
    """A request's label: method and its route's template, else method and first path segment; never its arguments."""

    __slots__ = ("_method", "_path", "_route")

    def __init__(self, method: str, path: str, route: str | None = None) -> None:
        """Store."""
        self._method = method
        self._path = path
        self._route = route

    def __str__(self) -> str:
        return f"{self._method} {self._route or first_segment(self._path)}"
