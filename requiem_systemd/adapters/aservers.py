"""asyncio.Server: closed in its loop; connections hold nothing unless tracked."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

from requiem_systemd.accepting import Host
from requiem_systemd.listen import describe
from requiem_systemd.wake import readable

# The loop accepts what waits in one turn, up to its backlog; a listener that never runs dry is closed all the same.
TURNS: Final = 100
# From accept() to the first line of a client_connected_cb, asyncio takes four turns.
SETTLE: Final = 8


def door(host: Host, server: Any, _grace: float) -> None:  # noqa: ANN401 - asyncio's or uvloop's
    """Have the drain close an asyncio server."""
    Door(host, server)


class Door:
    """A door: one asyncio server and its listeners."""

    def __init__(self, host: Host, server: Any) -> None:  # noqa: ANN401 - see door
        self._host = host
        self._server = server
        self.label = ", ".join(describe(sock) for sock in server.sockets) or "closed"
        self._loop = server.get_loop()
        if not host.doors.add(self):
            self.shut(lambda: None)

    def shut(self, done: Callable[[], object]) -> None:
        """Close in the server's loop, its backlog accepted first if it is ours to serve: see doors.Door."""
        try:
            self._loop.call_soon_threadsafe(self._close, done, TURNS)
        except RuntimeError:  # the loop is closed, and its servers with it
            done()

    def _close(self, done: Callable[[], object], turns: int) -> None:
        sockets = list(self._server.sockets)
        ours = [sock for sock in sockets if self._host.listening.serves_backlog(sock)]
        if turns == TURNS:
            for sock in ours:
                self._host.listening.unlink(sock)
        if turns and ours and self._server.is_serving() and readable(*ours, timeout=0):
            self._loop.call_soon(self._close, done, turns - 1)  # the loop accepts in between
            return
        for sock in sockets:
            if self._host.listening.was_passed(sock):
                with _raw(sock) as raw:
                    self._host.doors.watch(raw)
        self._server.close()
        self._later(done, SETTLE)

    def _later(self, done: Callable[[], object], turns: int) -> None:
        """Report it closed when what was accepted last has come to its handler, which may track it."""
        if turns:
            self._loop.call_soon(self._later, done, turns - 1)
        else:
            done()


@contextlib.contextmanager
def _raw(sock: Any) -> Any:  # noqa: ANN401 - asyncio.trsock.TransportSocket, which has a dup() but is no socket
    raw = sock.dup() if not isinstance(sock, socket.socket) else sock
    try:
        yield raw
    finally:
        if raw is not sock:
            raw.close()


