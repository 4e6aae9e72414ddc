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
        from zope.interface import alsoProvides, directlyProvidedBy  # noqa: PLC0415 - the framework is loaded by its user

        self.service: Any = service
        self.ledger: Ledger = service.ledger
        self.reactor: Any = reactor
        self.exchange: type[Exchange] = type("Exchange", (Exchange,), {"__slots__": (), "site": self, "owner": None})
        there = functools.partial(post, reactor)
        self.connections: Connections = Connections(service, "twisted", grace, there, reactor.callLater)
        self.connections.missing = self._join
        self._kinds: dict[type, type] = {}
        self._build = site.buildProtocol
        self._make = site.requestFactory
        site.buildProtocol = self._build_protocol
        make: Any = self._tracked(self._make) if isinstance(self._make, type) else functools.partial(self._made)
        alsoProvides(make, directlyProvidedBy(self._make))  # each request asks what it provides; a class that does not know is slow
        site.requestFactory = make

    def _build_protocol(self, address: Any) -> Any:
        protocol = self._build(address)
        if protocol is not None:  # with Twisted's own proxy, which may get another channel, all three are its channel's
            theirs = protocol.makeConnection

            def make_connection(transport: Any) -> None:
                del protocol.makeConnection
                self._opened(transport)
                theirs(transport)

            protocol.makeConnection = make_connection
        return protocol

    def _opened(self, transport: Any) -> None:
        """A connection was made. Its transport tells of its end, also where something else takes the place of its protocol."""
        transport.requiem = None
        transport.connectionLost = functools.partial(self._lost, transport)
        self.connections.opened(transport, getattr(transport, "socket", None), functools.partial(_close, transport))

    def _lost(self, transport: Any, reason: Any) -> None:
        del transport.connectionLost  # ours
        transport.connectionLost(reason)
        exchange, transport.requiem = transport.requiem, None
        if exchange is not None:  # perhaps a WebSocket's: whoever took it over tells nobody
            exchange.done()
        self.connections.lost(transport)

    def _made(self, channel: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a request by somebody else's function; CPython is slower with the attributes of what has changed its class."""
        request = self._make(channel, *args, **kwargs)
        request.__class__ = self._tracked(type(request))
        request.requiem_begin(channel)
        return request

    def _tracked(self, kind: type) -> type:
        if kind not in self._kinds:
            self._kinds[kind] = _tracked(kind, self)
        return self._kinds[kind]

    def _join(self) -> None:
        for entry, _ in self.ledger.entries():
            if isinstance(entry, self.exchange):
                self.connections.join(entry, entry.transport)


class Exchange(Request):
    """One request, from its first line on. `site`, and that nobody is its `owner`, are attributes of a class that each Site makes."""

    __slots__ = ("request", "transport")

    site: Site
    request: Any
    transport: Any

    @property
    def kind(self) -> str:  # type: ignore[override] # what it is shows in its header
        """A connection's, if a WebSocket has it."""
        request = self.request  # once: this is the engine's thread, and it may be over in the reactor's
        upgrades = request and request.requestHeaders.getRawHeaders(b"upgrade")
        return CONNECTION if upgrades and upgrades[0].lower() == b"websocket" else REQUEST

    def __str__(self) -> str:
        request = self.request
        if request is None or request.path is None:  # over, or its header is still to come
            return "request"
        return str(RequestName(request.method.decode("latin-1"), request.path.decode("latin-1")))

    def begin(self) -> None:
        """Hold the stop."""
        with contextlib.suppress(DrainingError):  # stopped: the reactor is about to end
            self.site.connections.enter(self, self.transport)

    def done(self) -> None:
        """It is over. Again: nothing."""
        self.site.connections.leave(self)
        self.request = None  # which has this: a cycle, which the collector would have to find

    def untrack(self) -> bool:
        """Hold nothing from now on; say whether the drain has begun."""
        self.done()
        return self.site.ledger.began is not None

    def let_go(self, owner: object) -> None:
        """Abort its connection: see Terms."""
        del owner
        with contextlib.suppress(RuntimeError):  # the reactor has ended
            post(self.site.reactor, self.transport.abortConnection)


def _tracked(kind: type, site: Site) -> type:  # noqa: C901 - the methods of one class
    """Make the subclass of a class of requests that tells its `requiem` of what becomes of it."""
    base: Any = kind
    ledger, make = site.ledger, site.exchange
    live, clock = ledger.live, ledger.clock

    class Tracked(base):  # type: ignore[misc] # of whatever class there is
        def __init__(self, channel: Any, *args: Any, **kwargs: Any) -> None:
            if len(args) == 1 and not kwargs:  # as HTTP/1 has it: CPython 3.11 is slow with stars
                base.__init__(self, channel, args[0])
            else:
                base.__init__(self, channel, *args, **kwargs)
            self.requiem_begin(channel)

        def requiem_begin(self, channel: Any) -> None:
            transport = getattr(channel, "_conn", channel).transport  # of HTTP/2 the channel is one stream
            exchange = self.requiem = transport.requiem = make()
            exchange.request, exchange.transport = self, transport
            live[exchange] = clock()
            if ledger.alert:
                exchange.begin()

        def write(self, data: bytes) -> None:
            if ledger.began is not None and not self.startedWriting:
                _announce_end(self)
            base.write(self, data)

        def finish(self) -> Any:
            try:
                return base.finish(self)
            finally:
                exchange = self.requiem
                exchange.request = None
                if not ledger.alert:  # on its own: see asgi.Exchange.send
                    live.pop(exchange, None)
                if ledger.alert:  # where it was before, the connection holds before the request ceases to
                    exchange.done()

        def connectionLost(self, reason: Any) -> None:  # noqa: N802 - Twisted's name
            base.connectionLost(self, reason)
            self.requiem.done()

    Tracked.__name__, Tracked.__qualname__, Tracked.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Tracked


def _announce_end(request: Any) -> None:
    """Have an answer, which is given in the drain, say that the connection ends (RFC 9112, 9.6)."""
    if request.clientproto == b"HTTP/1.1" and request.code != 101:
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        request.channel.persistent = False


def _close(transport: Any) -> None:
    """Close an idle connection.

    Under TLS it would stay open as long as its channel produces for it, which it does for all its life, and then until its client closes
    it too: to wait for that is not asked for (RFC 8446, 6.1).
    """
    transport.unregisterProducer()
    transport.loseConnection()
    under = getattr(transport, "transport", None)
    if under is not None and transport.getHandle().get_shutdown():  # all is out, the alert that says so too
        under.loseConnection()


def post(reactor: Any, call: Callable[[], object]) -> None:
    """Make a call in a reactor; RuntimeError if it has ended."""
    if not reactor.running and reactor._startedBefore:  # noqa: SLF001 - nothing else tells "over" from "not begun"
        msg = "the reactor has ended"
        raise RuntimeError(msg)
    reactor.callFromThread(call)
