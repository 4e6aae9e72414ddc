"""The ways in: what accepts connections, and how it stops."""

from __future__ import annotations

import functools
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import LISTENER, Ledger, More, Record


class Door(Protocol):
    """One thing that accepts connections."""

    label: str

    def shut(self, done: Callable[[], object]) -> None:
        """Stop accepting, unregister, close; then call `done`, from any thread.

        Called once, in the engine's thread, when the listeners are to be closed (after a lame duck). Must not block.
        """


class Doors:
    """All that is tracked, until the drain closes it; a door that comes later is shut at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._doors: list[Door] = []
        self._closed = False
        self._watched: list[socket.socket] = []

    def add(self, door: Door) -> bool:
        """Have the drain shut a door; False if they are shut already."""
        with self._lock:
            if not self._closed:
                self._doors.append(door)
            return not self._closed

    def remove(self, door: Door) -> None:
        """Forget a door: its server has been closed by its owner."""
        with self._lock:
            if door in self._doors:
                self._doors.remove(door)

    def close(self) -> list[Door]:
        """Return the doors to shut, once."""
        with self._lock:
            self._closed = True
            doors, self._doors = self._doors, []
            return doors

    def watch(self, listener: socket.socket) -> None:
        """Count who waits at an inherited listener: a copy of it stays open, the manager holds the same one anyway."""
        with self._lock:
            self._watched.append(listener.dup())

    def waiting(self) -> int:
        """Count the clients that wait at the listeners that are held closed."""
        with self._lock:
            return sum(backlog(listener) for listener in self._watched) if self._closed else 0

    def reset(self) -> None:
        """Give the copies back and begin anew."""
        with self._lock:
            watched, self._watched = self._watched, []
            self._doors, self._closed = [], False
        for listener in watched:
            listener.close()


def shut_late(door: Door, ledger: Ledger) -> None:
    """Shut a door that came when the others had been shut: it holds the stop until it is closed, unless that is over already."""
    record = Record(f"listener {door.label}", None)
    record.more = More(LISTENER)
    try:
        ledger.enter(record)
    except DrainingError:
        door.shut(_nothing)
    else:
        door.shut(functools.partial(ledger.leave, record))


def _nothing() -> None:
    """Do nothing: nobody waits for this door."""


def backlog(listener: socket.socket) -> int:
    """Return how many connections wait to be accepted; 0 where the system does not tell (AF_UNIX, other systems)."""
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    except (OSError, AttributeError):
        return 0
    # tcp(7), struct tcp_info: eight bytes, then 32-bit fields; of a listener tcpi_unacked, the fifth, is its accept queue
    return int(struct.unpack_from("I", info, 24)[0]) if len(info) >= 28 else 0
