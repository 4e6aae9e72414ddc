"""A thing that happens once, and everybody who waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Latch:
    """Set once, for good. Threads wait on it, callbacks run at it, pollers see the end of a pipe."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._pipe: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Happen. Again: nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
            if self._pipe is not None:
                os.close(self._pipe[1])
        for callback in callbacks:
            callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it; False if the time, in seconds, ran out."""
        return self._event.wait(timeout)

    def then(self, callback: Callable[[], object]) -> None:
        """Call back when it happens, in the thread that makes it happen; now if it has."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def fileno(self) -> int:
        """Return a descriptor that reads as ended (POLLIN or POLLHUP) from then on, for any number of pollers."""
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                if self._event.is_set():
                    os.close(self._pipe[1])
            return self._pipe[0]

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            pipe, self._pipe = self._pipe, None
            if pipe is not None:
                os.close(pipe[0])
                if not self._event.is_set():
                    os.close(pipe[1])
