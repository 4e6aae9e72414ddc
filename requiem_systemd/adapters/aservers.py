"""asyncio.Server: closed in its loop; connections hold nothing unless tracked."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.listen import describe
from requiem_systemd.wake import readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from requiem_systemd.accepting import Host

# A listener that never runs dry is closed all the same after so many turns of the loop.
TURNS: Final = 200
# From accept() to the first line of a client_connected_cb asyncio takes four turns.
SETTLE: Final = 8


def door(host: Host, server: Any, _grace: float) -> None:
    """Have the drain close an asyncio server."""
    Door(host, server)


class Door:
    """A door: one asyncio server and its listeners."""

    def __init__(self, host: Host, server: Any) -> None:
        """Have the drain shut it."""
        self._host = host
        self._server = server
        self.label = ", ".join(describe(sock) for sock in server.sockets) or "closed"
        self._loop = server.get_loop()
        if not host.doors.add(self):
            self.shut(lambda: None)

    def shut(self, done: Callable[[], object]) -> None:
        """Close in the server's loop, its backlog accepted first if it is ours to serve: see doors.Door."""
        try:
            self._loop.call_soon_threadsafe(self._begin, done)
        except RuntimeError:  # the loop is closed, and its servers with it
            done()

    def _begin(self, done: Callable[[], object]) -> None:
        ours: list[Any] = []
        theirs: list[Any] = []
        for sock in self._server.sockets:
            (ours if self._host.listening.serves_backlog(sock) else theirs).append(sock)
            self._host.listening.unlink(sock)
        self._stop_reading(theirs)
        self._run_dry(done, ours if self._server.is_serving() else [], TURNS, SETTLE)

    def _run_dry(self, done: Callable[[], object], ours: list[Any], turns: int, quiet: int) -> None:
        """Let the loop accept until nobody has waited for some turns, then close.

        Not at once: between accept() and the making of its transport asyncio drops a connection whose server is closed.
        """
        if not quiet:
            self._close(done)
            return
        if turns == SETTLE:
            self._stop_reading(ours)
        waits = turns > SETTLE and ours and readable(*ours, timeout=0)
        self._loop.call_soon(self._run_dry, done, ours, max(turns - 1, 0), SETTLE if waits else quiet - 1)

    def _stop_reading(self, sockets: list[Any]) -> None:
        for sock in sockets:
            with contextlib.suppress(NotImplementedError):  # Windows' loop has no readers
                self._loop.remove_reader(sock.fileno())

    def _close(self, done: Callable[[], object]) -> None:
        for sock in self._server.sockets:
            if self._host.listening.was_passed(sock):
                with _raw(sock) as raw:
                    self._host.doors.watch(raw)
        self._server.close()
        done()


@contextlib.contextmanager
def _raw(sock: Any) -> Any:
    raw = sock.dup() if not isinstance(sock, socket.socket) else sock
    try:
        yield raw
    finally:
        if raw is not sock:
            raw.close()
