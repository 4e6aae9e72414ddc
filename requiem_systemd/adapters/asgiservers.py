"""The server under an ASGI application: its listeners are doors, and it hears of the stop when they are closed.

Servers begin to listen after `lifespan.startup`, by their loop's `create_server` or `create_unix_server`: there each is tracked. Their own stop handler is
called when the doors are closed and what was kept alive has had its grace: they close idle connections at once, and a client
that sends in that instant loses its request (0.25 requests a restart under load).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from requiem_systemd.adapters import loaded
from requiem_systemd.listen import Listener

LOG: Final = logging.getLogger("requiem_systemd")
# The most that listen(2) takes; the kernel cuts it to net.core.somaxconn.
BACKLOG: Final = 65535
# A loop that is behind has connections whose requests it has not read yet, and which its server would close as idle: after a long drain
# thousands come at once. A few turns that take no longer than this, in seconds, are those of a loop that has caught up; it is waited for
# so long.
CAUGHT_UP: Final = 0.002
QUIET_TURNS: Final = 5
BEHIND_MAX: Final = 5.0
# What is known of one server only: the module that is loaded where it runs, and the function that gets (service, loop). It may return
# what is to be called after the grace, in the engine's thread, in place of the server's own stop handler.
_SERVERS: Final = {
    "uvicorn.server": "requiem_systemd.adapters.uvicorn:attach",
    "hypercorn.config": "requiem_systemd.adapters.hypercorn:attach",
    "granian.asgi": "requiem_systemd.adapters.granian:attach",
    "daphne.server": "requiem_systemd.adapters.daphne:attach",
}
# Servers that know no lifespan: the function gets what is to be called when they run.
_WITHOUT_LIFESPAN: Final = {"daphne.server": "requiem_systemd.adapters.daphne:expect"}
# Servers whose `send` is a method of what knows how far the answer is, and whose connections are marked (see tasks.Unseen): the function
# gets the loop, and returns that method's function or None.
_SENDING: Final = {"uvicorn.server": "requiem_systemd.adapters.uvicorn:own_send"}


def expect(start: Callable[[], object]) -> None:
    """Have a server that will not say that it starts call `start`, in its loop, when it runs."""
    for module, function in _WITHOUT_LIFESPAN.items():
        if module in sys.modules:
            loaded(function)(start)


def own_send(loop: asyncio.AbstractEventLoop) -> object:
    """Return the function of the `send` that applications get, if its `__self__` has `response_started`, `response_complete`, `default_headers`."""
    return next(filter(None, (_see_to(function, loop) for module, function in _SENDING.items() if module in sys.modules)), None)


def attach(host: Any, loop: asyncio.AbstractEventLoop, grace: float) -> None:
    """Have the drain close what the loop will listen on, then tell the server."""
    for name in ("create_server", "create_unix_server"):
        setattr(loop, name, _tracking(host, getattr(loop, name)))
    remove = loop.remove_signal_handler

    def remove_signal_handler(sig: int) -> bool:  # as at the loop's end: from then on a second SIGTERM would kill
        removed = remove(sig)
        host.retake()
        return removed

    loop.remove_signal_handler = remove_signal_handler  # type: ignore[method-assign]
    told = [_see_to(function, host, loop) for module, function in _SERVERS.items() if module in sys.modules]
    tell: Any = next(filter(None, told), lambda: host.engine.wayout.tell_others(unasked=True))
    host.doors.add(OwnStop(host, loop, grace, tell))


def _tracking(host: Any, create: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loop's method that makes servers, with each server that it makes tracked."""

    async def create_server(*args: Any, **kwargs: Any) -> Any:
        keep_backlog(kwargs)
        server = await create(*args, **kwargs)
        host.track_socket(server)
        return server

    return create_server


def _see_to(function: str, *arguments: object) -> object:
    try:
        return loaded(function)(*arguments)
    except Exception:  # what it looks at is another's, and may be gone in the next version: the rest holds all the same
        LOG.exception("%s does not know this version of the server, whose own limits may cut requests and jobs", function.partition(":")[0])
        return None


def listens(sock: Any) -> bool:
    """Say whether a socket is a listener already."""
    return sock is not None and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def keep_backlog(kwargs: dict[str, Any]) -> None:
    """See to it that `create_server` cuts no listener's backlog: it would be that of everybody who has it."""
    sock = kwargs.get("sock")
    if not listens(sock):
        return
    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        kwargs["backlog"] = max(kwargs.get("backlog") or 0, BACKLOG)
    elif type(sock) is socket.socket:
        # asyncio's loops accept as many at once, too: with thousands in the queue all descriptors would be gone, and for each
        # that is not accepted they report an error. So the number stays, and the listener does not listen again.
        sock.__class__ = Listener


def hang_up(transport: Any) -> None:
    """Have a closing transport of asyncio or uvloop wait no longer for its client's close_notify; without TLS: nothing.

    It would wait for `ssl_shutdown_timeout` (30 s, CPython 3.11) where the client does not look, as a pool's idle connection does not; RFC
    8446, 6.1, does not ask for that. The client seems to have closed its side then: what is still to go out goes out.
    """
    if transport.get_extra_info("ssl_object") is None or transport.get_write_buffer_size():
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        sock.shutdown(socket.SHUT_RD)


class OwnStop:
    """A door: the server's own stop handler."""

    label: str = "and idle connections of the server"

    def __init__(self, host: Any, loop: asyncio.AbstractEventLoop, grace: float, tell: Callable[[], object]) -> None:
        self._host = host
        self._loop = loop
        self._grace = grace
        self._tell = tell

    def shut(self, done: Callable[[], object]) -> None:
        """Call it after the grace, when the loop has caught up: see doors.Door."""
        engine = self._host.engine
        told = False

        def tell() -> None:
            nonlocal told
            if told:
                return
            told = True
            engine.loop.cancel(tell)
            self._tell()
            done()

        def after(begin: float, left: int) -> None:  # in the server's loop, a turn later
            now = engine.loop.clock.now()
            left = left - 1 if now - begin < CAUGHT_UP else QUIET_TURNS
            if left:
                self._loop.call_soon(after, now, left)
            else:
                engine.loop.post(tell)

        def look() -> None:
            if not self._loop.is_running():
                tell()
                return
            with contextlib.suppress(RuntimeError):  # closed just now
                self._loop.call_soon_threadsafe(after, -math.inf, QUIET_TURNS)
            engine.loop.alarm(tell, engine.loop.clock.now() + BEHIND_MAX)

        engine.loop.alarm(look, engine.loop.clock.now() + self._grace)
