"""Accepts on one listener until the drain closes it; no thread is left blocked in it.

`close()` in one thread does not wake another that is blocked in `accept()`, which then takes one more connection; `shutdown()`
would, and would kill an inherited listener for everybody. So threads wait by poll on the listener and a wake descriptor, and
accept without blocking. poll keeps no registration, so there is nothing to unregister before the close.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from requiem_systemd.doors import Doors, shut_late
from requiem_systemd.engine import Engine
from requiem_systemd.ledger import CONNECTION, Ledger, More, Record
from requiem_systemd.listen import Listeners, describe, listens
from requiem_systemd.wake import Wake, readable

LOG: Final = logging.getLogger("requiem_systemd")
Address: TypeAlias = Any
# A connection younger than this, when the listener is closed, may be in a thread that has not come to its `with track(…)` yet.
FRESH: Final = 0.1
# How long to leave a listener alone when the process has no descriptors left: it stays readable all the while.
EXHAUSTED: Final = 0.5
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# accept(2): the connection is gone, the listener is well.
_GONE: Final = frozenset((errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO))


class Host(Protocol):
    """What a door needs of the service."""

    ledger: Ledger
    doors: Doors
    listening: Listeners

    @property
    def engine(self) -> Engine:
        """The engine, started where it is not."""


class Waiting(NamedTuple):
    """A connection that was accepted when the listener was closed, and what holds the stop until it is served."""

    connection: socket.socket
    address: Address
    record: Record | None


class Acceptor:
    """A door: one listener, and the threads that accept on it."""

    def __init__(self, host: Host, sock: Any) -> None:
        """Have the drain shut it; TypeError for what does not listen."""
        if not isinstance(sock, socket.socket) or not listens(sock):
            msg = f"accept({type(sock).__name__}): give a socket that listens, such as listener(name) or socket.create_server(address)"
            raise TypeError(msg)
        self.sock = sock
        self.label: str = describe(sock)
        self.closed: bool = False
        self._host = host
        self._lock = threading.Lock()
        self._wake = Wake()
        self._pending: deque[Waiting] = deque()
        self._busy: dict[int, float] = {}
        if not host.doors.add(self):
            shut_late(self, host.ledger)

    # -- accepting -----------------------------------------------------------------------------------------------------

    def take(self, timeout: float | None = None) -> Waiting | None:
        """Wait for the next connection; None when the listener is closed and nothing waits any more.

        Raises TimeoutError when `timeout`, in seconds, has passed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            pause: float | None = None
            with self._lock:
                if self._pending:
                    return self._pending.popleft()
                if self.closed or self.sock.fileno() < 0:
                    return None
                try:
                    connection, address = accept_now(self.sock)
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        LOG.warning("no connection can be accepted at %s: %s", self.label, error.strerror)
                        pause = EXHAUSTED
                    elif error.errno not in _GONE:
                        raise
                else:
                    self._busy[threading.get_ident()] = time.monotonic()
                    return Waiting(connection, address, None)
            if pause is not None:
                readable(self._wake, timeout=pause)
            elif not readable(
                self.sock, self._wake, timeout=None if deadline is None else deadline - time.monotonic()
            ):
                msg = "timed out"
                raise TimeoutError(msg)

    def back(self, waiting: Waiting | None) -> None:
        """Say that the caller's thread is done with a connection."""
        self._busy.pop(threading.get_ident(), None)
        if waiting is not None and waiting.record is not None:
            self._host.ledger.leave(waiting.record)

    # -- closing -------------------------------------------------------------------------------------------------------

    def shut(self, done: Callable[[], object]) -> None:
        """Close the listener, its backlog accepted first if it is ours to serve: see doors.Door."""
        with self._lock:
            serve = self._host.listening.serves_backlog(self.sock)
            if serve and self.sock.fileno() >= 0:
                self._host.listening.unlink(
                    self.sock
                )  # who comes now is refused at once, who came before is served
                self._accept_backlog()
            self.closed = True
            if self._host.listening.was_passed(self.sock):
                self._host.doors.watch(self.sock)
            self.sock.close()
            newest = max(self._busy.values(), default=0.0)
        self._wake.set()
        self._finish(newest + FRESH - time.monotonic(), done)

    def _finish(self, seconds: float, done: Callable[[], object]) -> None:
        if seconds <= 0:
            done()
            return
        loop = self._host.engine.loop
        loop.post(lambda: loop.alarm(done, loop.clock.now() + seconds))

    def _accept_backlog(self) -> None:
        while True:
            try:
                connection, address = accept_now(self.sock)
            except OSError as error:
                if error.errno in _GONE - {errno.EAGAIN}:
                    continue
                if error.errno != errno.EAGAIN:
                    LOG.warning("not all that waited at %s could be accepted: %s", self.label, error.strerror)
                return
            record = Record(f"connection at {self.label}", None)
            record.more = More(CONNECTION)
            self._host.ledger.enter(record)
            self._pending.append(Waiting(connection, address, record))


def accept_now(sock: socket.socket) -> tuple[socket.socket, Address]:
    """Accept without waiting and without a TLS handshake; OSError with EAGAIN where nobody waits.

    O_NONBLOCK belongs to all who hold the listener, and systemd resets it whenever it starts one more of them.
    """
    sock.settimeout(0.0)
    connection, address = socket.socket.accept(sock)
    connection.settimeout(socket.getdefaulttimeout())
    return connection, address


def secured(listener: Any, connection: socket.socket) -> socket.socket:
    """Do what an ssl.SSLSocket's accept() does beyond the accepting; of any other listener nothing."""
    kind: Any = getattr(sys.modules.get("ssl"), "SSLSocket", None)
    if kind is None or not isinstance(listener, kind):
        return connection
    wrapped: socket.socket = listener.context.wrap_socket(
        connection,
        server_side=True,
        do_handshake_on_connect=listener.do_handshake_on_connect,
        suppress_ragged_eofs=listener.suppress_ragged_eofs,
    )
    return wrapped


def connections(acceptor: Acceptor) -> Iterator[tuple[socket.socket, Address]]:
    """Yield connections until the drain closes the listener."""
    while (waiting := acceptor.take()) is not None:
        try:
            try:
                connection = secured(acceptor.sock, waiting.connection)
            except OSError as error:  # the client's doing: no TLS, or gone
                LOG.info("a connection at %s is dropped: %s", acceptor.label, error)
                waiting.connection.close()
                continue
            yield connection, waiting.address
        finally:
            acceptor.back(waiting)
