"""socketserver: the thread that accepts stops, the listener is closed, serve_forever() returns; a handler's call holds the stop.

The server's own methods are overridden on the instance: `fileno` (see `junction`), `get_request`, which enters each connection before
it is accepted and stops the loop when the listener is closed, and those by which connections and the server are closed.

Discussion of who closes. The engine does, under the lock under which connections are accepted, so that a handler that keeps the
only thread busy does not keep the port open; what waited in the backlog is accepted there too, and goes through `get_request`.
Where accepting is more than accept() (TLS, a `get_request` of somebody's own) it can block, so there the serving thread does both.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.adapters.junction import CAN_JOIN, Junction, join
from requiem_systemd.adapters.lines import Lines, cut_when_silent
from requiem_systemd.doors import shut_late
from requiem_systemd.ledger import CONNECTION, More, Record
from requiem_systemd.listen import Listener, describe
from requiem_systemd.wake import Wake, readable

if TYPE_CHECKING:
    from collections.abc import Callable

LOG: Final = logging.getLogger("requiem_systemd")
_PLAIN_GET: Final = (socketserver.TCPServer.get_request, socketserver.UDPServer.get_request)


def door(service: Any, server: socketserver.BaseServer, grace: float) -> None:
    """Have the drain close a server; RuntimeError if it serves already."""
    ServerDoor(service, server, grace).attach()


class ServerDoor:
    """A door: one socketserver, its listener and its connections."""

    # Whether a connection holds the stop from its begin, or only while something is under way on it.
    begins_idle = False

    def __init__(self, service: Any, server: Any, grace: float) -> None:
        """Store; RuntimeError if the server serves already."""
        if _serves(server):
            msg = f"track_socket({type(server).__name__}): the server serves already; call it before serve_forever()"
            raise RuntimeError(msg)
        self.service = service
        self.server = server
        self.grace = grace
        self.label: str = describe(server.socket)
        self.lines: Lines = Lines(service.ledger, f"connection at {self.label}", begin_idle=self.begins_idle)
        self.begun: Wake = Wake()
        self.pid: int = os.getpid()
        self._shutting = Wake()
        self._lock = threading.Lock()
        self._pending: deque[tuple[Any, Any]] = deque()
        self._done: Callable[[], object] | None = None
        self._closed = False
        self._serving = 0
        self._has_served = False
        self._by_call = False
        self._junction: Junction | None = None
        self._theirs: dict[str, Callable[..., Any]] = {}

    # -- taking over ---------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Override what has to be, and have the drain shut it."""
        names = [
            "fileno",
            "get_request",
            "shutdown_request",
            "close_request",
            "server_close",
            "serve_forever",
            "handle_request",
        ]
        if hasattr(os, "fork") and isinstance(self.server, socketserver.ForkingMixIn):
            names += ["process_request", "finish_request"]
        for name in names:
            self._theirs[name] = getattr(self.server, name)
            setattr(self.server, name, getattr(self, f"_{name}"))
        self.service.engine.begun.then(self._begin)
        if not self.service.doors.add(self):
            shut_late(self, self.service.ledger)

    def _begin(self) -> None:
        """The drain begins: in the engine's thread, before anything is looked at or closed."""
        self.lines.begin()
        self.begun.set()
        if not self.begins_idle:
            self._cut_after(self.grace)

    def _cut(self) -> None:
        following = self.lines.cut(self.grace)
        if following is not None:
            self._cut_after(following)

    def _cut_after(self, seconds: float) -> None:
        loop = self.service.engine.loop
        loop.post(lambda: loop.alarm(self._cut, loop.clock.now() + seconds))

    # -- serving: in the server's threads ------------------------------------------------------------------------------

    def _serve_forever(self, poll_interval: float = 0.5) -> None:
        with self._served():
            self._theirs["serve_forever"](poll_interval)

    def _handle_request(self) -> None:
        self._by_call = True
        with self._served():
            if (
                self._closed and not self._pending
            ):  # as of any server that is closed; to return would have the caller spin
                raise OSError(errno.EBADF, f"the server at {self.label} is closed: the service drains")
            self._theirs["handle_request"]()

    @contextlib.contextmanager
    def _served(self) -> Any:
        with self._lock:
            self._serving += 1
            self._has_served = True
            if CAN_JOIN and self._junction is None:
                self._junction = join(self.server.socket.fileno(), self._shutting.fileno())
        try:
            yield
        finally:
            self._unserve()

    def _unserve(self) -> None:
        if self._done is not None and not self._closed and not CAN_JOIN:
            while self._ours() and readable(self.server.socket, timeout=0):
                self.server._handle_request_noblock()  # noqa: SLF001 - what its loop does
        with self._lock:
            self._serving -= 1
            junction = None
            if not self._serving:
                junction, self._junction = self._junction, None
            if self._done is not None and not self._serving:
                self._close()
        if junction is not None:
            junction.close()

    def _fileno(self) -> int:
        junction = self._junction
        fd: int = junction.fileno() if junction is not None else self.server.socket.fileno()
        return fd

    def _get_request(self) -> tuple[Any, Any]:
        waiting = self._waiting()
        if waiting is not None:
            return waiting
        line = self.lines.open()
        try:
            request, address = self._accept()
        except BaseException:
            self.lines.end(line)
            raise
        self.lines.named(line, request)
        if self.lines.began is not None and not self.begins_idle:
            self._cut_after(self.grace)
        return request, address

    def _waiting(self) -> tuple[Any, Any] | None:
        """Return what was accepted when the listener was closed; None as long as it is open; when all is done, stop."""
        with self._lock:
            if self._pending:
                return self._pending.popleft()
            if self._done is None and not self._closed:
                return None
            if (
                not self._closed
                and not self._by_engine()
                and self._ours()
                and readable(self.server.socket, timeout=0)
            ):
                return None
            self._close()
        self.server._BaseServer__shutdown_request = True  # noqa: SLF001 - shutdown() would wait for this very thread
        raise OSError(errno.EBADF, "the listener is closed: the service drains")

    def _accept(self) -> tuple[Any, Any]:
        plain = self._plain()
        with self._lock if plain else contextlib.nullcontext():
            if self._closed:
                raise OSError(errno.EBADF, "the listener is closed: the service drains")
            return self._accept_now(plain=plain)

    def _accept_now(self, *, plain: bool) -> tuple[Any, Any]:
        sock = self.server.socket
        if hasattr(os, "set_blocking"):
            os.set_blocking(sock.fileno(), False)
        request, address = self._theirs["get_request"]()
        if plain and request.__class__ is not tuple:
            request.settimeout(socket.getdefaulttimeout())  # BSD and macOS: the listener's flag is inherited
        return request, address

    def _plain(self) -> bool:
        kind = type(self.server)
        return kind.get_request in _PLAIN_GET and type(self.server.socket) in (socket.socket, Listener)

    def _shutdown_request(self, request: Any) -> None:
        try:
            self._theirs["shutdown_request"](request)
        finally:
            self.ended(request)

    def _close_request(self, request: Any) -> None:
        try:
            self._theirs["close_request"](request)
        finally:
            self.ended(request)

    def ended(self, request: object) -> None:
        """A connection is closed."""
        line = self.lines.of(request)
        if line is not None:
            self.lines.end(line)
        if self._done is not None and self._datagrams():
            with self._lock:
                self._close()

    # -- forking -------------------------------------------------------------------------------------------------------

    def _process_request(self, request: Any, address: Any) -> None:
        before = set(self.server.active_children or ())
        record = Record(f"process at {self.label}", None)
        record.more = More(CONNECTION)
        self.service.ledger.enter(record)
        try:
            self._theirs["process_request"](request, address)
        finally:
            child = next(iter(set(self.server.active_children or ()) - before), None)
            if child is None:
                self.service.ledger.leave(record)
            else:
                record.owner = f"process {child}"
                record.more = _Cut(child)
                self.service.follow(record, child)

    def _finish_request(self, request: Any, address: Any) -> None:
        if os.getpid() != self.pid:
            self.lines.forked()
            self._lock = threading.Lock()
            if not self.begins_idle and isinstance(request, socket.socket):
                threading.Thread(
                    target=self._cut_in_child, args=(request,), name="requiem-cut", daemon=True
                ).start()
        self._theirs["finish_request"](request, address)

    def _cut_in_child(self, request: socket.socket) -> None:
        """The parent has closed its copy: here the grace is kept by a thread that hears of the begin through the wake descriptor."""
        readable(self.begun)
        began = self.lines.began = time.monotonic()
        ended = threading.Event()
        cut_when_silent(request, lambda: began, self.grace, ended.wait)

    # -- closing -------------------------------------------------------------------------------------------------------

    def shut(self, done: Callable[[], object]) -> None:
        """Close the listener, its backlog accepted first if it is ours to serve: see doors.Door."""
        with self._lock:
            if self._closed:
                done()
                return
            self._done = done
            if self.server.socket.fileno() < 0 or not self._will_serve():
                self._close()
            elif self._by_engine():
                self._accept_backlog()
                self._close()
            elif not CAN_JOIN:
                self.server._BaseServer__shutdown_request = True  # noqa: SLF001 - shutdown() would block the engine
        self._shutting.set()

    def _will_serve(self) -> bool:
        """Say whether somebody serves, or is about to: a signal may come between `ready()` and `serve_forever()`, when clients wait."""
        if self._serving or self._by_call:
            return True
        return not self._has_served and self._ours() and bool(readable(self.server.socket, timeout=0))

    def _by_engine(self) -> bool:
        return CAN_JOIN and (self._plain() or not self._ours())

    def _ours(self) -> bool:
        return bool(self.service.listening.serves_backlog(self.server.socket))

    def _datagrams(self) -> bool:
        """Its handlers answer by the listener itself, which is closed when the last has returned."""
        return isinstance(self.server, socketserver.UDPServer)

    def _accept_backlog(self) -> None:
        if not self._ours():
            return
        self.service.listening.unlink(self.server.socket)
        while True:
            line = self.lines.open()
            try:
                request, address = self._accept_now(plain=True)
            except OSError as error:
                self.lines.end(line)
                if error.errno in (errno.ECONNABORTED, errno.EPROTO, errno.EINTR):
                    continue
                if error.errno != errno.EAGAIN:
                    LOG.warning("not all that waited at %s could be accepted: %s", self.label, error.strerror)
                return
            self.lines.named(line, request)
            self._pending.append((request, address))
            if not self.begins_idle:
                self._cut_after(self.grace)

    def _close(self) -> None:
        """Unregister, then close; under the lock. A datagram server is closed when its last handler has answered."""
        if self._closed:
            return
        sock = self.server.socket
        if sock.fileno() >= 0 and self._junction is not None:
            self._junction.remove(sock.fileno())
        if self._datagrams() and len(self.lines):
            return
        self._closed = True
        if sock.fileno() >= 0:
            self.service.listening.unlink(sock)
            if self.service.listening.was_passed(sock) and not self._datagrams():
                self.service.doors.watch(sock)
            sock.close()
        done, self._done = self._done, None
        if done is not None:
            done()

    def _server_close(self) -> None:
        self.service.doors.remove(self)
        with self._lock:
            self._close()
            self._closed = True
        self._theirs["server_close"]()


class _Cut(More):
    """A process for one request: ended when it is let go, which would outlive us."""

    def __init__(self, pid: int) -> None:
        super().__init__(CONNECTION)
        self._pid = pid

    def let_go(self, owner: object) -> None:
        del owner
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)


def _serves(server: object) -> bool:
    """Say whether serve_forever() runs: socketserver keeps no flag that tells this from "not begun"."""
    code = socketserver.BaseServer.serve_forever.__code__
    for frame in sys._current_frames().values():  # noqa: SLF001 - the documented way to see other threads' frames
        current = frame
        while current is not None:
            if current.f_code is code and current.f_locals.get("self") is server:
                return True
            current = current.f_back  # type: ignore[assignment] # None ends it
    return False
