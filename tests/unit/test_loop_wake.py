"""A wake is never lost."""

from __future__ import annotations

import select
import socket

from requiem_systemd.loop import Clock, Loop


class Reading:
    """A socket that is woken just before it is read, once."""

    def __init__(self, loop: Loop, wakeup: socket.socket) -> None:
        """Store."""
        self._loop = loop
        self._wakeup = wakeup
        self._woken = False

    def recv(self, size: int) -> bytes:
        """Read, with another thread's wake in the instant before."""
        if not self._woken:
            self._woken = True
            self._loop.wake()
        return self._wakeup.recv(size)

    def close(self) -> None:
        """Close."""
        self._wakeup.close()


def test_wake_while_the_bytes_are_read() -> None:
    """A wake whose byte is read with those before it does not keep later ones from waking."""
    loop = Loop(Clock(), lambda _: None, lambda: None)
    wakeup = loop._wakeup
    loop._wakeup = Reading(loop, wakeup)  # type: ignore[assignment] # what the loop uses of a socket
    try:
        loop.wake()
        loop._drain()
        loop.wake()
        readable, _, _ = select.select([wakeup], [], [], 0)
        assert readable
    finally:
        loop.close()
