"""A descriptor that becomes readable once, for any number of pollers, also in forked children."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any, Final

# Where a system has no poll (Windows), select() takes sockets, which is all there is to wait on here.
HAS_POLL: Final = hasattr(select, "poll")


class Wake:
    """Readable from `set()` on: one byte that nobody reads.

    Not the end of a pipe: a forked child holds the other end as well, and would never see it close.
    """

    def __init__(self) -> None:
        """Open a pair of sockets."""
        self._reader, self._writer = socket.socketpair()
        self._reader.settimeout(0.0)
        self._writer.settimeout(0.0)

    def __bool__(self) -> bool:
        """Say whether it is set, without a poll: gevent's may not have looked yet."""
        try:
            return bool(self._reader.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self._reader.fileno()

    def set(self) -> None:
        """Make it readable; again: nothing."""
        with contextlib.suppress(OSError):  # full, or closed: whoever waited has gone
            self._writer.send(b"\0")

    def close(self) -> None:
        """Give the descriptors back."""
        self._reader.close()
        self._writer.close()

    def __del__(self) -> None:
        """Give the descriptors back without a ResourceWarning: whoever waited has gone."""
        self.close()


def readable(*files: Any, timeout: float | None = None) -> list[int]:
    """Wait until one of them can be read (or has ended); return the descriptors that can, none when the time ran out."""
    fds = [file if isinstance(file, int) else file.fileno() for file in files]
    fds = [fd for fd in fds if fd >= 0]
    if not HAS_POLL:
        return list(select.select(fds, [], [], timeout)[0])
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(None if timeout is None else max(0.0, timeout) * 1000)]
