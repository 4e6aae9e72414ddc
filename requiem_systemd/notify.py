"""Sends what the manager should know: sd_notify(3) over sdnotify's socket, descriptors included.

sdnotify carries the text. It is made here with a connection of our own, since its constructor reads the environment and its
socket blocks: PID 1 reads nothing during a daemon-reload, and after 513 datagrams a blocking send would stop the caller.
systemd-python's `notify` is not used: it holds the GIL in a blocking send.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from sdnotify import SystemdNotifier

from requiem_systemd.protocol import encode

LOG: Final = logging.getLogger("requiem_systemd")
# What must arrive is tried again for so long; the rest may be dropped when the manager's queue is full.
PATIENCE: Final = 2.0
_MUST_ARRIVE: Final = frozenset(("READY", "STOPPING", "RELOADING", "EXTEND_TIMEOUT_USEC", "FDSTORE"))
# What the manager's picture of us is made of: each is owed until it has arrived, and they arrive in order. A STOPPING=1 before
# its READY=1 is a failed start (262: "did not take the steps required").
_OWED: Final = frozenset(("READY", "STOPPING", "RELOADING"))
_OWED_MAX: Final = 16


class _Wire(SystemdNotifier):  # type: ignore[misc] # sdnotify has no types
    """sdnotify's notifier on a socket that is connected already; `debug` makes it raise what goes wrong."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.debug = True


def connect(address: str) -> socket.socket:
    """Connect to a manager's notification socket: /path, @abstract, vsock:CID:PORT and its typed forms; fd:N, a channel that is open.

    Raises OSError where nobody is there, ValueError for an address that sd_notify(3) does not describe.
    """
    if address.startswith("fd:"):  # a worker's channel to its primary
        sock = socket.socket(fileno=os.dup(int(address[3:])))
        sock.setblocking(False)
        return sock
    if not address.startswith("vsock"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        target: object = "\0" + address[1:] if address.startswith("@") else address
    else:
        # sd_notify(3), v253: vsock:CID:PORT, and vsock-stream, vsock-dgram, vsock-seqpacket
        scheme, cid, port = address.split(":")
        kinds = {"vsock": socket.SOCK_SEQPACKET, "vsock-stream": socket.SOCK_STREAM}
        kinds |= {"vsock-dgram": socket.SOCK_DGRAM, "vsock-seqpacket": socket.SOCK_SEQPACKET}
        target = (int(cid), int(port))
        sock = socket.socket(socket.AF_VSOCK, kinds[scheme])
    try:
        sock.settimeout(PATIENCE)
        sock.connect(target)  # type: ignore[arg-type] # one of the two address forms
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Notifier:
    """Speaks to one manager; any thread may send.

    An outage is logged once, when it begins, and never stops a job.
    """

    def __init__(self, address: str | None, speaker: str = "") -> None:
        self.address = address
        self._speaker = speaker  # who it is, where several processes write the one STATUS
        self._wire: _Wire | None = None
        self._lock = threading.Lock()
        self._failing = False
        self._owed: deque[Mapping[str, object]] = deque(maxlen=_OWED_MAX)

    def __bool__(self) -> bool:
        return self.address is not None

    def send(self, assignments: Mapping[str, object], fds: Sequence[int] = (), *, patience: float = PATIENCE) -> bool:
        """Send one datagram. False: there is no manager. True: sent. OSError: it could not be sent."""
        if self.address is None:
            return False
        text = encode(assignments)
        must_arrive = not _MUST_ARRIVE.isdisjoint(assignments)
        with self._lock:
            try:
                self._send(text, fds, patience if must_arrive else 0.0)
            except OSError as error:
                if not must_arrive and error.errno in (errno.EAGAIN, errno.ENOBUFS):
                    return True  # a full queue: the manager hears the next one
                self.close()
                raise
        self._failing = False
        return True

    def tell(self, **assignments: object) -> bool:
        """Send, after what is still owed; the first failure of an outage is logged instead of raised. The engine's thread only.

        False: there is no manager, or it could not be told. A change of state is then owed, and goes with the next call of this.
        """
        if self.address is None:
            return False
        if self._speaker and assignments.get("STATUS"):
            assignments["STATUS"] = f"{self._speaker}: {assignments['STATUS']}"
        if not _OWED.isdisjoint(assignments):
            self._owed.append(assignments)
            assignments = {}
        try:
            while self._owed:
                self.send(self._owed[0])
                self._owed.popleft()
            return not assignments or self.send(assignments)
        except (OSError, ValueError) as error:
            if not self._failing:
                self._failing = True
                names = ", ".join(assignments or self._owed[0])
                LOG.warning("the manager cannot be told %s at %s: %s", names, self.address, error)
            return False

    def close(self) -> None:
        """Give the socket back."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.socket.close()

    def _send(self, text: str, fds: Sequence[int], patience: float) -> None:
        for attempt in (1, 2):
            fresh = self._wire is None
            wire = self._wire or _Wire(_open(self.address or ""))
            self._wire = wire
            try:
                _send_on(wire, text, fds, patience)
            except (ConnectionError, BrokenPipeError):  # the manager's socket was made anew: container managers do that
                self.close()
                if fresh or attempt == 2:
                    raise
            else:
                if (self.address or "").startswith("vsock") and wire.socket.type != socket.SOCK_DGRAM:
                    self.close()  # sd_notify(3): one message a connection
                return


def _open(address: str) -> socket.socket:
    try:
        return connect(address)
    except (ValueError, KeyError) as error:
        raise OSError(errno.EAFNOSUPPORT, f"NOTIFY_SOCKET={address[:80]!r} is no address that sd_notify(3) describes") from error


def _send_on(wire: _Wire, text: str, fds: Sequence[int], patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            if fds:
                passed = array.array("i", fds)
                wire.socket.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            else:
                wire.notify(text.encode().decode("latin-1"))  # sdnotify encodes latin-1: this way UTF-8 leaves it
        except BlockingIOError:
            # Room is made for one, and all who wait are told: at a shutdown that is every service, so not the first time only.
            left = deadline - time.monotonic()
            if left <= 0 or not _writable(wire.socket, left):
                raise
        else:
            return


def _writable(sock: socket.socket, patience: float) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    return bool(poller.poll(patience * 1000))
