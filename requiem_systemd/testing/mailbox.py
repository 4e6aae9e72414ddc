"""The manager's end of NOTIFY_SOCKET: datagrams, who sent them, and the descriptors that came with them."""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import socket
import struct
import tempfile
from collections import deque
from typing import Final, NamedTuple

# More than a datagram may have: the manager sees that it was too long.
_ROOM: Final = 8192
_FDS_MAX: Final = 253
_CREDENTIALS: Final = struct.Struct("3i")
# What a reload of the manager deletes and makes anew, beside its socket.
_GENERATORS: Final = ("generator", "generator.early", "generator.late")


class Letter(NamedTuple):
    """One datagram as it came; `pid` is the sender's by SCM_CREDENTIALS, our own where the system does not tell."""

    data: bytes
    pid: int
    fds: tuple[int, ...] = ()


class Mailbox:
    """A bound AF_UNIX datagram socket in a runtime folder of its own, or in the abstract namespace.

    Where there is no AF_UNIX (Windows) it is a list only: what is in this process delivers by `put`.
    """

    def __init__(self, folder: str | None, *, abstract: bool) -> None:
        self._temporary = tempfile.mkdtemp(prefix="requiem-") if folder is None else None
        self.folder: str = os.path.join(folder or self._temporary or "", "systemd")
        self.address: str = f"@{self.folder}/notify" if abstract else f"{self.folder}/notify"
        self.socket: socket.socket | None = None
        self._letters: deque[Letter] = deque()
        os.makedirs(self.folder, exist_ok=True)
        self._make_generators()
        self.bind()

    def bind(self) -> None:
        """Make the socket, also anew: whoever was connected to the old one is not to this."""
        if not hasattr(socket, "AF_UNIX"):
            return
        if self.socket is not None:
            self.socket.close()
        if not self.address.startswith("@"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        with contextlib.suppress(AttributeError, OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)

    def put(self, letter: Letter) -> None:
        """Deliver without a socket."""
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        """Return what has come."""
        while self.socket is not None:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(_ROOM, socket.CMSG_SPACE(_FDS_MAX * 4) + 64)
            except BlockingIOError:
                break
            self._letters.append(_letter(data, ancillary))
        letters, self._letters = list(self._letters), deque()
        return letters

    def dance(self) -> None:
        """Delete and make anew what a manager that reloads itself does, beside its socket."""
        for name in _GENERATORS:
            os.rmdir(os.path.join(self.folder, name))
        self._make_generators()

    def close(self) -> None:
        """Give the socket and the folder back."""
        for letter in self.take():
            close_all(letter.fds)
        sock, self.socket = self.socket, None
        if sock is not None:
            sock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _make_generators(self) -> None:
        for name in _GENERATORS:
            os.makedirs(os.path.join(self.folder, name), exist_ok=True)


def close_all(fds: tuple[int, ...]) -> None:
    """Give descriptors back."""
    for fd in fds:
        os.close(fd)


def _letter(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> Letter:
    pid, fds = os.getpid(), array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        elif level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
            pid = _CREDENTIALS.unpack_from(content)[0]
    return Letter(data, pid, tuple(fds))
