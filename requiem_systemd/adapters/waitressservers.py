"""waitress: its listener is a door; the connections of WSGI requests end with the answer once the drain has begun.

waitress has one thread for all sockets, which `trigger` has make a call. Its own way to stop is SystemExit in that thread, but what
`trigger` calls swallows that. So its loop is left with nothing to wait for, when the listener is closed, and each connection with its
last answer or after the grace: `run()` returns.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any


def door(service: Any, server: Any, grace: float) -> None:
    """Have the drain close a waitress server: one with one listener."""
    made = WaitressDoor(service, server, grace)
    server.channel_class = made.channel_class(server.channel_class)
    made.add_task, server.add_task = server.add_task, made.tasked
    if not service.doors.add(made):
        made.shut(_nothing)


class WaitressDoor:
    """A door: one server. Everything but `shut` runs in the server's threads."""

    def __init__(self, service: Any, server: Any, grace: float) -> None:
        self.label: str = f"{server.effective_host}:{server.effective_port}"
        self.add_task: Callable[[Any], object] = _ignore
        self._service = service
        self._server = server
        self._grace = grace
        self._done: Callable[[], object] | None = None

    def shut(self, done: Callable[[], object]) -> None:
        """Stop accepting, then hang up on who is silent: see doors.Door."""
        self._done = done
        loop = self._service.engine.loop
        self._server.trigger.pull_trigger(self._stop)
        loop.post(lambda: loop.alarm(self._hang_up, loop.clock.now() + self._grace))

    def tasked(self, channel: Any) -> None:
        """Have a request that comes in the drain be the last of its connection."""
        if self._service.draining():
            _last(channel)
        self.add_task(channel)

    def channel_class(self, kind: Any) -> Any:
        """Make a class of connections that say when they are closed."""
        door = self

        class Channel(kind):  # type: ignore[misc] # waitress's
            def del_channel(self, map: Any = None) -> None:  # noqa: A002 - waitress's name
                super().del_channel(map)
                door.look()

        return Channel

    def look(self) -> None:
        """See whether the last connection has been closed."""
        if self._done is not None and not self._server.accepting and not self._server.active_channels:
            done, self._done = self._done, None
            self._server._map.clear()  # noqa: SLF001 - what its loop lasts for
            done()

    def _stop(self) -> None:
        server, listening = self._server, self._service.listening
        sock = server.socket
        if listening.serves_backlog(sock):
            listening.unlink(sock)
            while select.select([sock], [], [], 0)[0]:
                server.handle_accept()
        if listening.was_passed(sock):
            self._service.doors.watch(sock)
        server.accepting = False
        server.del_channel()
        sock.close()
        for channel in list(server.active_channels.values()):
            _last(channel)
        self.look()

    def _hang_up(self) -> None:
        loop = self._service.engine.loop
        if self._done is not None:
            self._server.trigger.pull_trigger(self._close_silent)
            loop.alarm(self._hang_up, loop.clock.now() + self._grace)

    def _close_silent(self) -> None:
        for channel in list(self._server.active_channels.values()):
            if not channel.requests and channel.request is None and not channel.total_outbufs_len:
                channel.will_close = True


def _last(channel: Any) -> None:
    """Have the answers to what a connection has asked say that it is closed (waitress goes by what the client wants)."""
    for request in list(channel.requests):
        request.headers["CONNECTION"] = "close"


def _ignore(channel: Any) -> None:
    """Do nothing: replaced by the server's own."""
    del channel


def _nothing() -> None:
    """Do nothing: nobody waits for this door."""
