"""A bare listening socket: the drain closes it, and nobody stays blocked in its `accept()`.

A thread in `accept()` cannot be told that the socket is closed, so the tracked socket gets a class of its own, whose `accept()`
waits as `requiem_systemd.accept` does, and raises OSError (EBADF, as of any closed socket) when the listener is closed and nothing
waits any more. A socket without blocking belongs to an event loop: closed in that loop, after the loop has let go of it.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Any

from requiem_systemd.accepting import Acceptor, Address, Host, Waiting, secured
from requiem_systemd.hooks import running_loop
from requiem_systemd.listen import describe

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


def door(service: Any, sock: socket.socket, _grace: float) -> None:
    """Have the drain close a socket."""
    loop = running_loop()
    if sock.gettimeout() == 0 and loop is not None:
        _LoopSocket(service, sock, loop)
    else:
        _adopt(sock, service.acceptor(sock))


def _adopt(sock: socket.socket, acceptor: Acceptor) -> None:
    timeout, plain = sock.gettimeout(), type(sock)
    served: dict[int, Waiting] = {}

    def accept(self: Any) -> tuple[socket.socket, Address]:
        waited = served.pop(threading.get_ident(), None)
        if waited is not None:
            acceptor.back(waited)
        waiting = acceptor.take(timeout)
        if waiting is None:
            raise OSError(errno.EBADF, f"the listener {acceptor.label} is closed: the service drains")
        served[threading.get_ident()] = waiting
        return secured(self, waiting.connection), waiting.address

    if timeout != 0:  # who does not block cannot be left blocked
        # Its own __class__: a socket has slots, no attributes, and whoever waits in accept() has this very object.
        sock.__class__ = type(
            plain.__name__, (plain,), {"__slots__": (), "__module__": plain.__module__, "accept": accept}
        )


class _LoopSocket:
    """A door: a listener on which an event loop accepts."""

    def __init__(self, host: Host, sock: socket.socket, loop: Any) -> None:
        self.label = describe(sock)
        self._host = host
        self._sock = sock
        self._loop = loop
        if not host.doors.add(self):
            self._close()

    def shut(self, done: Callable[[], object]) -> None:
        """Close in the loop, which would go on looking at a descriptor that is not unregistered: see doors.Door."""

        def close() -> None:
            self._close()
            done()

        try:
            self._loop.call_soon_threadsafe(close)
        except RuntimeError:  # the loop is closed
            close()

    def _close(self) -> None:
        if self._sock.fileno() < 0:
            return
        with contextlib.suppress(
            RuntimeError, NotImplementedError, AttributeError
        ):  # closed, or without readers
            self._loop.remove_reader(self._sock.fileno())
        if self._host.listening.was_passed(self._sock):
            self._host.doors.watch(self._sock)
        self._host.listening.unlink(self._sock)
        self._sock.close()
