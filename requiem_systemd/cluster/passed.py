"""Listeners that workers have too: bound here for all of them, and here only closed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from requiem_systemd.doors import Doors
from requiem_systemd.errors import ListenerError
from requiem_systemd.listen import Listeners, Origin
from requiem_systemd.service import Service


class Passed:
    """A door: the listeners that workers have too. Here they are only closed."""

    label: str = "of the workers"

    def __init__(self, listening: Listeners, doors: Doors) -> None:
        self._listening = listening
        self._doors = doors

    def shut(self, done: Callable[[], object]) -> None:
        """Close them: see doors.Door."""
        for _, sock, origin in self._listening.to_pass():
            if self._listening.was_passed(sock):
                self._doors.watch(sock)
            if origin == Origin.BOUND.letter:
                self._listening.unlink(sock)
            sock.close()
        done()


def find_listener(service: Service, name: str, fallback: Any, keep: bool) -> tuple[socket.socket, str]:  # noqa: FBT001 - as it came
    """Return the listener that a worker asks for, and where it comes from; bound now where nobody has asked before."""
    if service.draining():
        msg = f"listener {name!r} is not bound any more: the service drains"
        raise ListenerError(msg)
    sock = service.listening.listener(name, fallback=fallback, keep=keep)
    return sock, service.listening.origin(sock).letter
