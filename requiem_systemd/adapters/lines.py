"""The connections of one server, and what of them holds the stop."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import CONNECTION, Ledger, More, Record

if TYPE_CHECKING:
    from collections.abc import Callable


# tcp(7), struct tcp_info: eight bytes, then 32-bit fields; the twelfth is tcpi_last_data_recv, in milliseconds
LAST_DATA_RECV: Final = 52


class Line:
    """One connection, from before it was accepted until it is closed.

    `idle`: nothing is under way on it; then it holds the stop only in the drain, so long as it may still send a request.
    """

    __slots__ = ("cut", "idle", "record", "request", "since")

    def __init__(self, request: object, *, idle: bool) -> None:
        """Store."""
        self.request = request
        self.idle = idle
        self.record: Record | None = None
        self.since = time.monotonic()
        self.cut = False


class Lines:
    """All connections of one server.

    A line is entered before `accept()` is tried, and changes between idle and busy with one of the two holding: there is no instant
    in which a begin could find the ledger empty while a connection is on its way.
    """

    def __init__(self, ledger: Ledger, label: str, *, begin_idle: bool) -> None:
        """Store; `begin_idle`: a connection by itself holds nothing."""
        self.began: float | None = None
        self._ledger = ledger
        self._label = label
        self._begin_idle = begin_idle
        self._lock = threading.Lock()
        self._live: dict[Line, None] = {}
        self._by_request: dict[int, Line] = {}

    def __len__(self) -> int:
        """Count them."""
        return len(self._live)

    def begin(self) -> None:
        """The drain begins: idle connections hold it from now on."""
        with self._lock:
            self.began = time.monotonic()
            for line in self._live:
                self._hold(line)

    def begun(self) -> float | None:
        """Return when the drain began, None before."""
        return self.began

    def open(self) -> Line:
        """Enter a connection that is about to be accepted."""
        line = Line(None, idle=self._begin_idle)
        with self._lock:
            self._live[line] = None
            if self.began is not None or not line.idle:
                self._hold(line)
        return line

    def named(self, line: Line, request: object) -> None:
        """Say what has been accepted."""
        line.request = request
        line.since = time.monotonic()
        self._by_request[id(request)] = line

    def of(self, request: object) -> Line | None:
        """Return the line of what was accepted."""
        return self._by_request.get(id(request))

    def busy(self, line: Line) -> None:
        """Something is under way, and holds the stop by itself already."""
        with self._lock:
            line.idle = False
            self._release(line)

    def rest(self, line: Line) -> None:
        """Nothing is under way any more; what held the stop for it may be released after this."""
        with self._lock:
            line.idle = True
            line.since = time.monotonic()
            if self.began is not None and line in self._live:
                self._hold(line)

    def end(self, line: Line) -> None:
        """The connection is closed, or taken over."""
        with self._lock:
            self._live.pop(line, None)
            if line.request is not None:
                self._by_request.pop(id(line.request), None)
            self._release(line)

    def forked(self) -> None:
        """In a fork's child: only the connection it was forked for is its own."""
        self._lock = threading.Lock()
        self._live.clear()

    def cut(self, grace: float) -> float | None:
        """End the reading of connections that have been silent so long; say in how many seconds the next will be, None: none."""
        following: float | None = None
        with self._lock:
            lines = [line for line in self._live if not line.cut and isinstance(line.request, socket.socket)]
        for line in lines:
            left = grace - self._silence(line)
            if left <= 0:
                line.cut = True
                cut(line.request)
            else:
                following = left if following is None else min(left, following)
        return following

    def _silence(self, line: Line) -> float:
        since = time.monotonic() - max(self.began or 0.0, line.since)
        return min(since, silence(line.request))

    def _hold(self, line: Line) -> None:
        if line.record is None and (line.idle or not self._begin_idle):
            record = Record(self._label, None)
            record.more = More(CONNECTION)
            with contextlib.suppress(DrainingError):  # abandoned: nothing is held any more
                self._ledger.enter(record)
                line.record = record

    def _release(self, line: Line) -> None:
        record, line.record = line.record, None
        if record is not None:
            self._ledger.leave(record)


def silence(connection: Any) -> float:
    """Return the seconds since the last byte came in; infinity where the system does not tell (AF_UNIX, other systems)."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    except (OSError, AttributeError):
        return float("inf")
    return (
        float(struct.unpack_from("I", info, LAST_DATA_RECV)[0]) / 1000
        if len(info) > LAST_DATA_RECV + 3
        else float("inf")
    )


def cut(connection: Any) -> None:
    """Let a reader of a connection see its end; writing goes on."""
    with contextlib.suppress(OSError):  # closed meanwhile
        # The plain class's: an ssl.SSLSocket's own would drop the TLS layer, and the answer would go out in clear
        socket.socket.shutdown(connection, socket.SHUT_RD)


def cut_when_silent(
    connection: Any, since: Callable[[], float], grace: float, wait: Callable[[float], object]
) -> None:
    """Wait until a connection has been silent for the grace, then cut it."""
    while (left := grace - min(time.monotonic() - since(), silence(connection))) > 0:
        wait(left)
    cut(connection)
