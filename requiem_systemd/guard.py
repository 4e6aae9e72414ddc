"""Sees the manager reload itself.

A `systemctl daemon-reload` or `daemon-reexec` makes the manager forget every extension of a timeout (systemd issue 43000, 252 to
262): what has outlived the configured one is killed at once. While it reloads, the manager deletes and makes anew its generator
folders beside the notification socket, 70 to 100 ms before the timers are counted again. An extension sent then is queued, and
read before the timer fires. So: watch that folder with inotify(7), by ctypes, and let the engine extend at each event.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, Final

_IN_NONBLOCK: Final = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0
_IN_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
# inotify(7): IN_CREATE | IN_DELETE | IN_MOVED_TO | IN_CLOSE_WRITE | IN_ONLYDIR
_MASK: Final = 0x100 | 0x200 | 0x80 | 0x8 | 0x0100_0000
_EVENT: Final = struct.Struct("iIII")
# What the manager touches when it reloads or executes itself; other units' files come and go in the same folder.
_SIGNS: Final = (b"generator", b"systemd-units-load", b"private", b"notify")


class Guard:
    """Watches one manager's runtime folder; made unwatching, when it holds no descriptor. OSError where there is no inotify."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        # Loaded when a service is armed, not by the bare import: with some builds of libffi it keeps a descriptor.
        import ctypes  # noqa: PLC0415

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "inotify_init1"):
            raise OSError(errno.ENOSYS, "this system has no inotify")
        self._fd: int | None = None

    def _call(self, function: Any, *args: object) -> int:
        result = int(function(*args))
        if result < 0:
            number = self._ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)}: {self.folder}")
        return result

    def watch(self) -> int | None:
        """Begin to watch; return the descriptor that tells, None if it was watched already.

        An idle service has none: a user's services share 128 of them (fs.inotify.max_user_instances). Raises OSError where there
        is none left, and where the folder is not there (RootDirectory=, a /run of its own).
        """
        if self._fd is not None:
            return None
        fd = self._call(self._libc.inotify_init1, _IN_NONBLOCK | _IN_CLOEXEC)
        try:
            self._call(self._libc.inotify_add_watch, fd, self.folder.encode(), _MASK)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return fd

    def unwatch(self) -> int | None:
        """Watch no longer; return the descriptor, to be closed when nobody waits on it any more."""
        fd, self._fd = self._fd, None
        return fd

    def reloading(self) -> bool:
        """Read what has happened; say whether the manager reloads itself."""
        seen = False
        while self._fd is not None:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return seen
            position = 0
            while position < len(data):
                _, mask, _, size = _EVENT.unpack_from(data, position)
                name = data[position + _EVENT.size : position + _EVENT.size + size]
                position += _EVENT.size + size
                seen = seen or name.startswith(_SIGNS) or bool(mask & 0x4000)  # IN_Q_OVERFLOW: anything may have been there
        return seen


def folder_of(notify_socket: str | None) -> str | None:
    """Return the folder to watch: the one that holds the manager's socket; None for abstract and vsock addresses."""
    return os.path.dirname(notify_socket) if notify_socket and notify_socket.startswith("/") else None
