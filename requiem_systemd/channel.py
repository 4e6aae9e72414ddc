"""The channel between a primary and its worker: a SEQPACKET socket pair that speaks sd_notify(3), in both directions.

Upward a worker says what any service says to its manager, and X_REQUIEM_* beside it; downward the primary says DRAIN. A listener is
asked for over a socket of its own, which goes up with the question: so any thread may ask, whoever reads the channel.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from requiem_systemd.errors import ListenerError, ProtocolError
from requiem_systemd.loop import Loop
from requiem_systemd.protocol import clean, decode, encode

LOG: Final = logging.getLogger("requiem_systemd")
# More than a datagram may have: one that is too long is seen to be.
ROOM: Final = 8192
FDS_MAX: Final = 16
# Packets taken in one turn of the loop.
BATCH: Final = 64
# What a primary needs to bind a listener; it does nothing else meanwhile.
ANSWER_WITHIN: Final = 30.0


class Packet(NamedTuple):
    """What came in one packet."""

    values: Mapping[str, str]
    fds: tuple[int, ...] = ()


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a channel: the primary's end, and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def receive(sock: socket.socket) -> Packet | None:
    """Take one packet; None where the other side has gone. Raises BlockingIOError where there is none now."""
    try:
        data, fds, flags, _ = socket.recv_fds(sock, ROOM, FDS_MAX, socket.MSG_DONTWAIT)
    except ConnectionError:
        return None
    if not data and not fds:
        return None
    try:
        data = b"" if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else data  # too long, or with too many descriptors
        return Packet(dict(decode(data)), tuple(fds))
    except ProtocolError as error:
        LOG.debug("a packet is dropped: %s", error)
        close_all(fds)
        return Packet({})


def close_all(fds: Any) -> None:
    """Give descriptors back."""
    for fd in fds:
        os.close(fd)


class Upward:
    """A worker's end, read in the loop: `drain` is called with the primary's reason, `lost` when the primary has gone."""

    def __init__(
        self, fd: int, loop: Loop, drain: Callable[[str], object], lost: Callable[[], object]
    ) -> None:
        self._sock = socket.socket(fileno=os.dup(fd))
        self._loop = loop
        self._drain = drain
        self._lost = lost
        loop.reader(self._sock.fileno(), self._ready)

    def close(self) -> None:
        """Give the descriptor back, when the loop has ended."""
        self._sock.close()

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            packet = receive(self._sock)
            if packet is None:
                self._loop.unreader(self._sock.fileno())
                self._lost()
                return
            close_all(packet.fds)
            if "DRAIN" in packet.values:
                self._drain(packet.values["DRAIN"])


def drain(sock: socket.socket, reason: str) -> None:
    """Tell a worker to drain."""
    with contextlib.suppress(OSError):  # gone, or so busy that it reads nothing: its end is seen all the same
        sock.send(encode({"DRAIN": clean(reason, 200) or "disconnect"}).encode())


# -- listeners


def ask_listener(channel: int, name: str, fallback: Any, *, keep: bool) -> tuple[int, str]:
    """Ask the primary for the listener of a name; return its descriptor and where it comes from."""
    where = os.fspath(fallback) if isinstance(fallback, (str, os.PathLike)) else fallback
    try:
        question = encode({"X_REQUIEM_LISTENER": json.dumps({"name": name, "fallback": where, "keep": keep})})
    except (TypeError, ProtocolError) as error:
        msg = f"fallback={fallback!r}: give (host, port), or a path for AF_UNIX"
        raise TypeError(msg) from error
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, socket.socket(fileno=os.dup(channel)) as sock:
        with theirs:
            sock.setblocking(True)
            try:
                socket.send_fds(sock, [question.encode()], [theirs.fileno()])
            except OSError as error:
                msg = f"listener {name!r} was not passed, and the primary has gone: {error.strerror}"
                raise ListenerError(msg) from error
        ours.settimeout(ANSWER_WITHIN)
        try:
            data, fds, _, _ = socket.recv_fds(ours, ROOM, 1)
        except OSError as error:
            msg = f"listener {name!r} was not passed, and the primary does not answer: {error}"
            raise ListenerError(msg) from error
    return _answered(name, data, fds)


def _answered(name: str, data: bytes, fds: list[int]) -> tuple[int, str]:
    values = dict(decode(data)) if data else {}
    if fds:
        return fds[0], values.get("ORIGIN", "b")
    text = values.get("ERROR") or f"listener {name!r} was not passed, and the primary has gone"
    error = {"TypeError": TypeError, "ValueError": ValueError}.get(values.get("KIND", ""), ListenerError)
    raise error(text)


def answer_listener(packet: Packet, find: Callable[[str, Any, bool], tuple[socket.socket, str]]) -> None:
    """Answer a worker's question: `find` returns the listener and where it comes from."""
    for number, fd in enumerate(packet.fds):
        with socket.socket(fileno=fd) as sock, contextlib.suppress(OSError):
            if number == 0:
                _answer(sock, packet.values["X_REQUIEM_LISTENER"], find)


def _answer(sock: socket.socket, question: str, find: Callable[[str, Any, bool], tuple[socket.socket, str]]) -> None:
    sock.setblocking(False)
    try:
        asked = json.loads(question)
        fallback = tuple(asked["fallback"]) if isinstance(asked["fallback"], list) else asked["fallback"]
        listener, origin = find(asked["name"], fallback, asked["keep"])
    except (ListenerError, TypeError, ValueError) as error:
        sock.send(encode({"KIND": type(error).__name__, "ERROR": error}).encode())
    else:
        socket.send_fds(sock, [encode({"ORIGIN": origin}).encode()], [listener.fileno()])
