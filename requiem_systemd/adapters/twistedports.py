"""Twisted: `track_socket(port)`, what `reactor.listenTCP`, `listenSSL`, `listenUNIX`, `adoptStreamPort` or an endpoint's `listen` gives.

- Of a port whose factory is a `twisted.web` Site a request holds the stop from its first line until its answer is out; what is let go
  after `request_timeout` has its connection aborted (`notifyFinish` tells); a WebSocket may hold as long as a request. Of any other factory
  only the listener is closed. Deferreds are not tracked: write `@requiem_systemd.track` above a job's coroutine function, or
  `create_tracker`.
- The port is closed without the shutdown() that Twisted does on ports of its own, and made non-blocking:
  `reactor.adoptStreamPort(sock.fileno(), sock.family, site)`, with `sock = requiem_systemd.listener("http")`, is all that socket activation
  takes. (Of what was passed Twisted takes note when its endpoints are imported, and removes it from the environment: it is found there.)
- The reactor stops when the ledger is empty, in the stead of its signal handlers: the `shutdown` triggers run after the last job, once. A
  `reactor.stop()` of somebody else begins the drain, and is kept back until then. Where the reactor does not run in the main thread, it is
  left alone.
- `initialize()` is yours, and `ready()`: `reactor.callWhenRunning(requiem_systemd.ready)`.
- `root.putChild(b"health", requiem_systemd.adapters.twistedports.health())` answers 200, from the begin of the drain 503.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.twistedsites import Site, post
from requiem_systemd.doors import shut_late
from requiem_systemd.listen import describe
from requiem_systemd.wake import readable

if TYPE_CHECKING:
    from collections.abc import Callable


def door(service: Any, port: Any, grace: float) -> None:
    """Have the drain close a port, and see to the requests of a Site."""
    Door(service, port)
    factory = port.factory
    while hasattr(factory, "wrappedFactory"):  # TLS
        factory = factory.wrappedFactory
    web: Any = sys.modules.get("twisted.web.http")
    if web is not None and isinstance(factory, web.HTTPFactory) and not hasattr(factory, "requiem"):
        factory.requiem = Site(service, factory, port.reactor, grace)  # one, of however many ports
    if not hasattr(port.reactor, "requiem"):  # not vars(): who has once been asked for it is a percent slower in CPython 3.11
        port.reactor.requiem = Stop(service, port.reactor)


def passed() -> tuple[tuple[int, str], ...]:
    """Return what Twisted was passed by the manager, this very process: it has removed it from the environment."""
    parser: Any = getattr(sys.modules.get("twisted.internet.endpoints"), "_SystemdParser", None)
    found: Any = getattr(parser, "_sddaemon", None)
    return () if found is None else tuple(zip(found._descriptors, found._names, strict=False))  # noqa: SLF001 - by name it gives one of each only


def health() -> Any:
    """Make a resource for the health path, which holds nothing."""
    from twisted.web import resource  # noqa: PLC0415 - the framework is loaded by its user

    class Health(resource.Resource):  # type: ignore[misc] # where Twisted is not installed it is of no type
        isLeaf = True  # noqa: N815 - Twisted's name

        def render_GET(self, request: Any) -> bytes:  # noqa: N802 - same
            tracked = getattr(request, "requiem", None)
            draining = tracked is not None and tracked.untrack()
            request.setResponseCode(503 if draining else 200)
            request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
            request.setHeader(b"Cache-Control", b"no-store")
            return b"draining\n" if draining else b"ok\n"

    made: Any = Health
    return made()


class Door:
    """A door: one port."""

    def __init__(self, service: Any, port: Any) -> None:
        """Have the drain shut it."""
        self.label: str = describe(port.socket)
        self._service = service
        self._port = port
        port.socket.setblocking(False)
        if not service.doors.add(self):
            shut_late(self, service.ledger)

    def shut(self, done: Callable[[], object]) -> None:
        """Close in the reactor, the backlog accepted first where it is ours to serve: see doors.Door."""
        try:
            post(self._port.reactor, functools.partial(self._shut, done))
        except RuntimeError:  # the reactor has ended, and its ports with it
            done()

    def _shut(self, done: Callable[[], object]) -> None:
        port, listening = self._port, self._service.listening
        if not port.connected or port.disconnecting:
            done()
            return
        sock = port.socket
        port.stopReading()
        if listening.serves_backlog(sock):
            while readable(sock, timeout=0):
                before = port.sessionno
                port.doRead()
                if port.sessionno == before:  # nothing could be accepted: no descriptors left
                    break
        elif listening.was_passed(sock):
            self._service.doors.watch(sock)
        listening.unlink(sock)
        listening.close_original(sock)
        port._shouldShutdown = False  # noqa: SLF001 - it would reach everybody who has this listener
        port.stopListening().addBoth(lambda _: done())


class Stop:
    """The reactor's end: when the ledger is empty."""

    def __init__(self, service: Any, reactor: Any) -> None:
        """Take over when it runs."""
        self._service = service
        self._reactor = reactor
        self._staying = contextlib.ExitStack()
        self._stopping = False
        reactor.callWhenRunning(self._running)

    def _running(self) -> None:
        """Take the signals back that it took at its start; its own handlers would have it stop at once."""
        if threading.current_thread() is not threading.main_thread():
            return
        service, reactor = self._service, self._reactor
        service.retake()
        if service.gate is not None:
            service.gate.unchain(lambda handler: getattr(handler, "__self__", None) is reactor)
        self._staying.enter_context(service.keeping_main())
        reactor.addSystemEventTrigger("before", "shutdown", self._hold)
        reactor.addSystemEventTrigger("after", "shutdown", self._staying.close)
        service.engine.stopped.then(lambda: reactor.callFromThread(self._stop))

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()

    def _hold(self) -> Any:
        """Keep a stop of somebody else's back."""
        from twisted.internet.defer import Deferred  # noqa: PLC0415 - the framework is loaded by its user

        self._stopping = True
        held: Any = Deferred()
        self._service.begin("the reactor stops")
        self._service.engine.stopped.then(lambda: self._reactor.callFromThread(held.callback, None))
        return held
