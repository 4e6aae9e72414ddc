"""A socketserver that nobody has tracked (`flask run`, `app.run()`): found in its thread when the drain begins.

Too late to see its connections, so requests hold by `TrackRequests` alone. Its own thread accepts what waits, in a turn of its
`serve_forever()`, at most poll_interval (0.5 s) later, and returns from it; whoever called it closes the listener.
"""

from __future__ import annotations

import socketserver
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.listen import describe
from requiem_systemd.wake import readable

if TYPE_CHECKING:
    from collections.abc import Callable

# How long a request that was accepted last may take to come to the application.
FRESH: Final = 0.1


def serving(service: Any) -> None:
    """Have the drain, which begins, end what some thread serves and nobody has tracked."""
    code = socketserver.BaseServer.serve_forever.__code__
    for top in list(sys._current_frames().values()):  # noqa: SLF001 - the documented way to see other threads' frames
        for frame, _ in traceback.walk_stack(top):
            if frame.f_code is code and "serve_forever" not in vars(frame.f_locals["self"]):
                service.doors.add(LateDoor(service, frame.f_locals["self"]))


class LateDoor:
    """A door: a server that serves, and that can be asked between two turns of its loop only."""

    def __init__(self, service: Any, server: Any) -> None:
        """Store."""
        self.service = service
        self.server = server
        self.label: str = describe(server.socket)

    def shut(self, done: Callable[[], object]) -> None:
        """Have the loop end: see doors.Door."""
        server, theirs = self.server, self.server.service_actions

        def service_actions() -> None:
            theirs()
            while self.service.listening.serves_backlog(server.socket) and readable(server.socket, timeout=0):
                server._handle_request_noblock()  # noqa: SLF001 - what its loop does
            server._BaseServer__shutdown_request = True  # noqa: SLF001 - shutdown() would wait for this very thread
            loop = self.service.engine.loop
            loop.post(lambda: loop.alarm(done, loop.clock.now() + FRESH))

        server.service_actions = service_actions
