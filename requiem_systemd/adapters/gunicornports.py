"""What stands in for a gunicorn worker's listener, so that the engine's thread can close it while the worker's only thread is busy."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.junction import join
from requiem_systemd.wake import Wake

if TYPE_CHECKING:
    from collections.abc import Callable


class Port:
    """Stands in for one of a worker's listeners."""

    def __init__(self, listener: Any, emptied: Callable[[], object]) -> None:
        """Store; `emptied` is called when somebody accepts and all is handed out."""
        self._listener = listener
        self._emptied = emptied
        self._wake = Wake()
        self._junction = join(listener.fileno(), self._wake.fileno())
        self._lock = threading.Lock()
        self._pending: deque[tuple[Any, Any]] = deque()
        self._name = listener.getsockname()
        self.family: int = listener.family  # asked for when it may be closed, like the next two
        self.type: int = listener.type
        self.proto: int = listener.proto
        self.closed: bool = False
        self.last: Any = None
        self.fileno: Callable[[], int] = self._junction.fileno

    def __getattr__(self, name: str) -> Any:
        """Be the listener in all else; gevent would serve the `_sock` in it."""
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return getattr(self._listener, name)
        except OSError as error:  # a closed one of gevent's
            raise AttributeError(name) from error

    def __str__(self) -> str:
        """Be shown as the listener is."""
        return str(self._listener)

    def getsockname(self) -> Any:
        """Return the address, also when closed."""
        return self._name

    def setblocking(self, flag: Any) -> None:
        """Block or not; closed: nothing."""
        if not self.closed:
            self._listener.setblocking(flag)

    def accept(self) -> tuple[Any, Any]:
        """Accept without blocking, what waited when it was closed first."""
        with self._lock:
            if self._pending:
                accepted = self._pending.popleft()
            elif not self.closed:
                accepted = self._take()
            else:
                self._junction.remove(self._wake.fileno())  # seen: it would keep an event loop turning
                self._emptied()
                raise BlockingIOError(errno.EAGAIN, "the listener is closed: the service drains")
            self.last = accepted[0]
        return accepted

    def _take(self) -> tuple[Any, Any]:
        accepted: tuple[Any, Any] = self._listener.accept()
        return accepted

    def empty(self) -> bool:
        """Say whether it is closed and all is handed out."""
        return self.closed and not self._pending

    def shut(self, *, backlog: bool) -> None:
        """Close it; with `backlog` what waits is accepted before. Never shutdown(): others have the same listener."""
        with self._lock, contextlib.suppress(OSError):
            while backlog:
                self._pending.append(self._take())
        self.close()
        self._wake.set()

    def close(self) -> None:
        """Close it; again: nothing."""
        with self._lock:
            if not self.closed:
                self.closed = True
                self._junction.remove(self._listener.fileno())
                self._listener.close()


class GreenPort(Port):
    """The same for gevent, whose servers take descriptors; its `accept()` would switch greenlets."""

    def _accept(self) -> tuple[Any, Any]:
        return self.accept()

    def _take(self) -> tuple[Any, Any]:
        accepted: tuple[Any, Any] = self._listener._accept()  # noqa: SLF001 - what gevent's server calls
        return accepted
