"""waitress: its loop closes the listener, answers what it has, and ends when the process does.

What is done to a server is done in the thread of its loop, between two of its turns. A request holds the stop from its first byte until
its answer is out of waitress's buffers, which is later than the application's end of it. `waitress.serve()` shows its server to
nobody: under a `TrackRequests` it is found when the drain begins.
"""

from __future__ import annotations

import functools
import sys
import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.adapters.connections import Connections, RequestName
from requiem_systemd.doors import shut_late
from requiem_systemd.errors import DrainingError
from requiem_systemd.listen import describe
from requiem_systemd.wake import readable

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE: Final = 0.5


def one(service: Any, server: Any, grace: float) -> None:
    """Have the drain close a server with one listener."""
    WaitressDoor(service, server, grace).attach(server)


def several(service: Any, server: Any, grace: float) -> None:
    """Have the drain close a server with several listeners, which stand in its map only."""
    for each in _listening(server):
        WaitressDoor(service, each, grace).attach(server)


def running(service: Any) -> None:
    """Have the drain, which begins, close what some thread runs and nobody has tracked."""
    module: Any = sys.modules["waitress.server"]
    runs = {module.BaseWSGIServer.run.__code__, module.MultiSocketServer.run.__code__}
    threads = {thread.ident: thread for thread in threading.enumerate()}
    for ident, top in sys._current_frames().items():  # noqa: SLF001 - the documented way to see other threads' frames
        for frame, _ in traceback.walk_stack(top):
            if frame.f_code in runs and ident in threads:
                server = frame.f_locals["self"]
                for each in [server] if hasattr(server, "active_channels") else _listening(server):
                    if not hasattr(each, "requiem_door"):
                        WaitressDoor(service, each, GRACE).attach(server, threads[ident])


def _listening(server: Any) -> list[Any]:
    return [each for each in server.map.values() if hasattr(each, "active_channels")]


class WaitressDoor:
    """A door: one listener of waitress, and its connections."""

    def __init__(self, service: Any, server: Any, grace: float) -> None:
        """Store; `attach` acts."""
        self.service = service
        self.server = server
        self.label: str = describe(server.socket)
        self._calls: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None
        self._ends = False
        self._runs: Callable[[], object]
        self._grace = grace
        self.connections: Connections
        server.requiem_door = self

    def attach(self, runner: Any, thread: threading.Thread | None = None) -> None:
        """Override what has to be, and have the drain shut it.

        `runner` is what is run: the server, or what holds several; `thread` where it runs already, and nothing may change beside it.
        """
        server = self.server
        self._thread = thread
        self._ends = thread not in (None, threading.main_thread())
        take_over: Callable[[], object] = functools.partial(_take_over, server, self)
        if thread is not None:
            self._calls.append(take_over)
        else:
            take_over()
        self.connections = Connections(self.service, self.label, self._grace, self._post, self._later)
        self._runs, runner.run = runner.run, self._run
        look = server.trigger.readable

        def turn() -> bool:
            while self._calls:
                self._calls.popleft()()
            return bool(look())

        server.trigger.readable = turn  # asked once a turn, in the loop's thread
        server.pull_trigger()
        self.service.engine.stopped.then(self._end)
        if not self.service.doors.add(self):
            shut_late(self, self.service.ledger)

    def _run(self) -> None:
        self._thread = threading.current_thread()
        self._ends = True
        with self.service.keeping_main():
            self._runs()

    def _post(self, call: Callable[[], object]) -> None:
        if self.server.trigger._closed:  # noqa: SLF001 - nothing else tells
            msg = "the server is closed"
            raise RuntimeError(msg)
        self._calls.append(call)
        self.server.pull_trigger()

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        loop = self.service.engine.loop
        loop.post(lambda: loop.alarm(lambda: self._post(call), loop.clock.now() + seconds))

    def _end(self) -> None:
        """All is done: the loop ends, but where it was found too late; from there the main thread is made to leave."""
        server = self.server
        if self._ends and not server.trigger._closed:  # noqa: SLF001 - see above
            self._post(server._map.clear)  # noqa: SLF001 - what its loop lasts for; closed when it is gone, not under its select()

    # -- closing -------------------------------------------------------------------------------------------------------

    def shut(self, done: Callable[[], object]) -> None:
        """Close the listener, its backlog accepted first if it is ours to serve: see doors.Door."""
        if self.server.trigger._closed or (self._thread is None and not self._is_waited_for()):  # noqa: SLF001 - see above
            self._close(done)
        else:
            self._post(lambda: self._close(done))

    def _is_waited_for(self) -> bool:
        return self._ours() and bool(readable(self.server.socket, timeout=0))

    def _ours(self) -> bool:
        return bool(self.service.listening.serves_backlog(self.server.socket))

    def _close(self, done: Callable[[], object]) -> None:
        server = self.server
        if server.socket is not None:
            while self._thread is not None and self._is_waited_for():
                server.handle_accept()
            if self.service.listening.was_passed(server.socket):
                self.service.doors.watch(server.socket)
            self.service.listening.unlink(server.socket)
            server.asyncore.dispatcher.close(server)  # its own close() would end the trigger, and the loop with it
        done()


def _take_over(server: Any, door: WaitressDoor) -> None:
    """Track the connections that come, and those that are there."""
    server.channel_class = _tracked(server.channel_class, door)
    for channel in list(server.active_channels.values()):
        channel.__class__ = server.channel_class
        channel.requiem_opened()


def _tracked(kind: Any, door: WaitressDoor) -> type:
    """Make a class of channels that tell what becomes of them."""
    theirs: Callable[[Any], bool] = kind.readable

    class Channel(_Channel, kind):  # type: ignore[misc] # of whatever class there is
        task_class = _closing(kind.task_class, door.service)
        requiem_door = door

        def readable(self) -> bool:
            """Say whether it is to be read from; asked once a turn of each connection there is, idle ones too: without super()."""
            if self.requiem_request is not None and self.requiem_idle():
                request, self.requiem_request = self.requiem_request, None
                self.requiem_door.connections.leave(request)
            return theirs(self)

    return Channel


def _closing(kind: Any, service: Any) -> type:
    class Task(kind):  # type: ignore[misc] # same
        def build_response_header(self) -> bytes:
            if service.draining():
                self.request.headers["CONNECTION"] = "close"  # as if the client had asked for it
            header: bytes = super().build_response_header()
            return header

    return Task


class _Channel:
    """A connection that tells its door what becomes of it; in the loop's thread. Mixed in before a class of channels."""

    requiem_door: WaitressDoor
    requiem_request: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requiem_opened()

    def requiem_opened(self: Any) -> None:
        """It is there, perhaps with a request."""
        self.requiem_door.connections.opened(self, self.socket, self.requiem_close)
        if not self.requiem_idle():
            self.requiem_begin()
        for request in self.requests:  # there before us: the drain has begun, and what answers it is none of our tasks
            request.headers["CONNECTION"] = "close"

    def requiem_close(self: Any) -> None:
        """Close it in the loop's next turn."""
        self.will_close = True

    def requiem_idle(self: Any) -> bool:
        """Say whether nothing is under way on it."""
        return not (self.requests or self.request or self.total_outbufs_len or self.close_when_flushed)

    def requiem_begin(self) -> None:
        """Hold the stop for a request."""
        self.requiem_request = self.requiem_door.connections.request(self, "request", cut=_nothing)

    def received(self: Any, data: bytes) -> bool:
        """Take what came."""
        if self.requiem_request is None:
            try:
                self.requiem_begin()
            except DrainingError:  # stopped: the exit would cut the answer off
                self.will_close = True
                return False
        went: bool = super().received(data)  # type: ignore[misc] # the class of channels
        if self.requests:
            request = self.requests[0]
            self.requiem_request.called = RequestName(request.command, request.path)
        return went

    def del_channel(self: Any, *args: Any) -> None:
        """Be closed."""
        super().del_channel(*args)  # type: ignore[misc] # same
        self.requiem_door.connections.lost(self)


def _nothing() -> None:
    """Do nothing: a thread cannot be cut off."""
