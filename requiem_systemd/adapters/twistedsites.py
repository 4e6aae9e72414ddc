"""Twisted's web: the requests of a `twisted.web` Site, and its connections; see `twistedports`."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.connections import Connections, Request, RequestName
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import CONNECTION, REQUEST, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable


class Site:
    """One site: its connections, and the requests on them."""

    def __init__(self, service: Any, site: Any, reactor: Any, grace: float) -> None:
        """Hear of them as they are built."""
        from twisted.web.iweb import INonQueuedRequestFactory  # noqa: PLC0415 - the framework is loaded by its user
        from zope.interface import alsoProvides  # noqa: PLC0415 - same

        self.service: Any = service
        self.ledger: Ledger = service.ledger
        self.reactor: Any = reactor
        self._exchange: type[Exchange] = type("Exchange", (Exchange,), {"__slots__": (), "site": self})
        there = functools.partial(post, reactor)
        self.connections: Connections = Connections(service, "twisted", grace, there, reactor.callLater)
        self.connections.missing = self._join
        self._kinds: dict[type, type] = {}
        self._build = site.buildProtocol
        self._make = site.requestFactory
        self._tracked: Any = _tracked(self._make) if isinstance(self._make, type) else self._made_tracked
        site.buildProtocol = self._build_protocol
        make: Any = functools.partial(self._make_request)  # the interface below is noted on it
        if INonQueuedRequestFactory.providedBy(self._make):
            alsoProvides(make, INonQueuedRequestFactory)
        site.requestFactory = make

    def _build_protocol(self, address: Any) -> Any:
        protocol = self._build(address)
        if protocol is not None:  # a class of its own: what is set on this proxy is set on what it stands for, and a WebSocket overwrites it
            kind: type = type(protocol)
            if kind not in self._kinds:
                self._kinds[kind] = _watched(kind, self)
            protocol.__class__ = self._kinds[kind]
        return protocol

    def _make_request(self, channel: Any, *args: Any, **kwargs: Any) -> Any:
        request = self._tracked(channel, *args, **kwargs)
        exchange = request.requiem = self._exchange()
        exchange.kind, exchange.owner = REQUEST, None
        exchange.transport = getattr(channel, "_conn", channel).transport  # of HTTP/2 the channel is one stream
        ledger = self.ledger
        clock, live = ledger.clock, ledger.live  # on its own: see asgi.Exchange.send
        live[exchange] = clock()
        if ledger.alert:
            exchange.begin()
        return request

    def _join(self) -> None:
        for entry, _ in self.ledger.entries():
            if isinstance(entry, self._exchange):
                self.connections.join(entry, entry.transport)

    def _made_tracked(self, *args: Any, **kwargs: Any) -> Any:
        """Make a request by somebody else's function; CPython is slower with the attributes of what has changed its class."""
        request = self._make(*args, **kwargs)
        kind: Any = type(request)
        request.__class__ = _tracked(kind)
        return request


class Exchange(Request):
    """One request, from its first line on. `site` is an attribute of a class that each Site makes."""

    __slots__ = ("command", "path", "transport")

    site: Site
    transport: Any
    command: bytes  # not set: it is not known yet
    path: bytes

    def __str__(self) -> str:
        if not hasattr(self, "command"):
            return "request"
        return str(RequestName(self.command.decode("latin-1"), self.path.decode("latin-1").partition("?")[0]))

    def begin(self) -> None:
        """Hold the stop."""
        with contextlib.suppress(DrainingError):  # stopped: the reactor is about to end
            self.site.connections.enter(self, self.transport)

    def upgraded(self) -> None:
        """See that it is a WebSocket's: whoever takes it over tells nobody of its end but the connection."""
        self.kind = CONNECTION
        self.site.connections.join(self, self.transport)

    def announce(self, request: Any) -> None:
        """Have its answer say that the connection ends, if it is given in the drain (RFC 9112, 9.6)."""
        if self.site.ledger.began is not None and request.clientproto == b"HTTP/1.1" and request.code != 101:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            request.channel.persistent = False

    def done(self) -> None:
        """It is over. Again: nothing."""
        ledger = self.site.ledger
        joined = ledger.alert or self.kind == CONNECTION
        if not joined:
            ledger.live.pop(self, None)
        if joined or ledger.alert:  # a connection that is known to have it holds before it ceases to
            self.site.connections.leave(self)

    def untrack(self) -> bool:
        """Hold nothing from now on; say whether the drain has begun."""
        self.done()
        return self.site.ledger.began is not None

    def let_go(self, owner: object) -> None:
        """Abort its connection: see Terms."""
        del owner
        with contextlib.suppress(RuntimeError):  # the reactor has ended
            post(self.site.reactor, self.transport.abortConnection)


@functools.cache
def _tracked(kind: type) -> type:
    """Make the subclass of a class of requests that tells its `requiem` of what becomes of it."""
    base: Any = kind

    class Tracked(base):  # type: ignore[misc] # of whatever class there is
        def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802 - Twisted's name
            exchange = self.requiem
            exchange.command, exchange.path = command, path
            if self.requestHeaders.hasHeader(b"upgrade") and self.getHeader(b"upgrade").lower() == b"websocket":
                exchange.upgraded()
            base.requestReceived(self, command, path, version)

        def write(self, data: bytes) -> None:
            if not self.startedWriting:
                self.requiem.announce(self)
            base.write(self, data)

        def finish(self) -> Any:
            try:
                return base.finish(self)
            finally:
                self.requiem.done()

        def connectionLost(self, reason: Any) -> None:  # noqa: N802 - Twisted's name
            super().connectionLost(reason)
            self.requiem.done()

    Tracked.__name__, Tracked.__qualname__, Tracked.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Tracked


def _watched(kind: Any, site: Site) -> type:
    """Make the subclass of a class of protocols whose connections a site hears of."""

    class Watched(kind):  # type: ignore[misc] # of whatever class there is
        def makeConnection(self, transport: Any) -> None:  # noqa: N802 - Twisted's name
            self._requiem_transport = transport
            site.connections.opened(transport, getattr(transport, "socket", None), transport.loseConnection)
            super().makeConnection(transport)

        def connectionLost(self, reason: Any) -> None:  # noqa: N802 - same
            super().connectionLost(reason)
            site.connections.lost(self._requiem_transport)

    Watched.__name__, Watched.__qualname__, Watched.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Watched


def post(reactor: Any, call: Callable[[], object]) -> None:
    """Make a call in a reactor; RuntimeError if it has ended."""
    if not reactor.running and reactor._startedBefore:  # noqa: SLF001 - nothing else tells "over" from "not begun"
        msg = "the reactor has ended"
        raise RuntimeError(msg)
    reactor.callFromThread(call)
