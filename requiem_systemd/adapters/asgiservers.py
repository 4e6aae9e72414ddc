"""The server under an ASGI application: its listeners are doors, and it hears of the stop when they are closed.

Servers begin to listen after `lifespan.startup`, by their loop's `create_server` or `create_unix_server`: there each is tracked. Their own stop handler is
called when the doors are closed and what was kept alive has had its grace: they close idle connections at once, and a client
that sends in that instant loses its request (0.25 requests a restart under load).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from requiem_systemd.adapters import loaded

# The most that listen(2) takes; the kernel cuts it to net.core.somaxconn.
BACKLOG: Final = 65535
# What is known of one server only: the module that is loaded where it runs, and the function that gets (service, loop).
_SERVERS: Final = {
    "uvicorn.server": "requiem_systemd.adapters.uvicorn:attach",
}


def attach(host: Any, loop: asyncio.AbstractEventLoop, grace: float) -> None:
    """Have the drain close what the loop will listen on, then tell the server."""
    for name in ("create_server", "create_unix_server"):
        setattr(loop, name, _tracking(host, getattr(loop, name)))
    host.doors.add(OwnStop(host, grace))
    for module, function in _SERVERS.items():
        if module in sys.modules:
            loaded(function)(host, loop)


def _tracking(host: Any, create: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loop's method that makes servers, with each server that it makes tracked."""

    async def create_server(*args: Any, **kwargs: Any) -> Any:
        if listens(kwargs.get("sock")):  # a smaller backlog would be that of everybody who has this listener
            kwargs["backlog"] = max(kwargs.get("backlog") or 0, BACKLOG)
        server = await create(*args, **kwargs)
        host.track_socket(server)
        return server

    return create_server


def listens(sock: Any) -> bool:
    """Say whether a socket is a listener already."""
    return sock is not None and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class OwnStop:
    """A door: the server's own stop handler."""

    label: str = "and idle connections of the server"

    def __init__(self, host: Any, grace: float) -> None:
        self._host = host
        self._grace = grace

    def shut(self, done: Callable[[], object]) -> None:
        """Call it after the grace: see doors.Door."""
        engine = self._host.engine

        def tell() -> None:
            engine.wayout.tell_others(unasked=True)
            done()

        engine.loop.alarm(tell, engine.loop.clock.now() + self._grace)
