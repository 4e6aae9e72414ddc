"""The other end of the control socket: one call, one answer."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd import varlink
from requiem_systemd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A service that lives accepts at once: its engine does nothing that takes time.
CONNECT_WITHIN: Final = 10.0


def connect(path: str) -> socket.socket:
    """Connect to a control socket. Raises OSError where nobody answers."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_WITHIN)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def peer(sock: socket.socket) -> int:
    """Return the process that listens, as numbered here; 0 where it cannot be seen from here."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[0])


def call(sock: socket.socket, method: str, timeout: float | None, **parameters: object) -> tuple[str, Mapping[str, Any]]:
    """Make one call and wait for its answer: the error's name, "" for none, and the parameters.

    Raises TimeoutError after `timeout` seconds, ConnectionError where the service hangs up first, ProtocolError for nonsense.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    sock.settimeout(timeout)
    sock.sendall(varlink.write_call(method, **parameters))
    data = b""
    while b"\0" not in data:
        sock.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        more = sock.recv(65536)
        if not more:
            msg = "the service hung up"
            raise ConnectionError(msg)
        data += more
        if len(data) > varlink.MESSAGE_MAX:
            msg = f"an answer of more than {varlink.MESSAGE_MAX} bytes"
            raise ProtocolError(msg)
    return varlink.read_reply(data.partition(b"\0")[0])
