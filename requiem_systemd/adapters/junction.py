"""One descriptor for several: what a server's own selector looks at instead of its listener.

`selectors` takes whatever has a `fileno()`, and an epoll can be looked at by a poll: so a wake descriptor joins the listener without
a change to the server's loop. (Closing the listener under a polling `serve_forever()` leaves the port open and spins; `shutdown()`
takes up to its poll_interval of 0.5 s.) BSD's and macOS's kqueue can do the same. Elsewhere (Windows) there is nothing of
the kind: then the server's loop sees its shutdown flag within its poll_interval.
"""

from __future__ import annotations

import contextlib
import select
import sys
from typing import Any, Final, Protocol


class Junction(Protocol):
    """Readable whenever one of the descriptors in it is."""

    def fileno(self) -> int:
        """Return the one descriptor."""

    def remove(self, fd: int) -> None:
        """Look at a descriptor no longer; before it is closed, since the kernel would go on while others hold it."""

    def close(self) -> None:
        """Give the one descriptor back."""


def _original(name: str) -> Any:
    """Return what `select` has of that name, or had before gevent took it out: a descriptor to look at blocks nobody."""
    monkey: Any = sys.modules.get("gevent.monkey")
    saved = getattr(monkey, "saved", {}).get("select", {})
    return getattr(select, name, None) or saved.get(name)


_make_epoll: Final = _original("epoll")


class _Epoll:
    def __init__(self, fds: tuple[int, ...]) -> None:
        self._epoll: Any = _make_epoll()
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close
        for fd in fds:
            self._epoll.register(fd, select.POLLIN)  # EPOLLIN by another name, which gevent leaves in place

    def remove(self, fd: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)


class _Kqueue:
    def __init__(self, fds: tuple[int, ...]) -> None:
        kernel: Any = select
        self._event = kernel.kevent
        self._read = kernel.KQ_FILTER_READ
        self._delete = kernel.KQ_EV_DELETE
        self._queue = kernel.kqueue()
        self.fileno = self._queue.fileno
        self.close = self._queue.close
        self._queue.control([self._event(fd, self._read, kernel.KQ_EV_ADD) for fd in fds], 0)

    def remove(self, fd: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._queue.control([self._event(fd, self._read, self._delete)], 0)


CAN_JOIN: Final = _make_epoll is not None or hasattr(select, "kqueue")


def join(*fds: int) -> Junction:
    """Make one of several; only where CAN_JOIN."""
    kind = _Epoll if _make_epoll is not None else _Kqueue
    made: Junction = kind(tuple(fd for fd in fds if fd >= 0))
    return made
