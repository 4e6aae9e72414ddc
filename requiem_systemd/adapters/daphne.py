"""daphne: it has no lifespan, and Twisted's reactor stops at SIGTERM at once, so the reactor hears of it when all is done.

Read from daphne 4.2 (server.py, http_protocol.py) and Twisted 26.10 (internet/asyncioreactor.py, internet/tcp.py, web/http.py). At
`reactor.stop()` daphne cancels every request and Twisted cuts every connection. Until then listeners are closed, connections that are
idle after the grace too, and all others end with their answer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from requiem_systemd.adapters.twistedports import Door

LOG: Final = logging.getLogger("requiem_systemd")
# RFC 6455, 7.4.1, and its registry: going away, restarting, try again later. autobahn lets no application say these.
GOING: Final = frozenset((1001, 1012, 1013))


def expect(start: Callable[[], object]) -> None:
    """Start when the reactor runs: by then it has taken its signals and listens. It never runs where daphne is only imported."""
    reactor: Any = sys.modules["daphne.server"].reactor
    reactor.callWhenRunning(reactor.callLater, 0, start)


def attach(service: Any, loop: Any) -> Callable[[], object] | None:
    """See to the daphne whose loop this is; returns what closes its idle connections."""
    daphne: Any = sys.modules["daphne.server"]
    if loop is not daphne.twisted_loop:
        return None
    reactor = daphne.reactor
    service.retake()
    _stop_last(service, reactor)
    _close_after_answers(service)
    _let_websockets_say_why()
    for server in {_server(port) for port in _ports(reactor)} - {None}:
        _lift(service, server)
    service.listeners()  # so that one that was given by --fd is known again
    for port in _ports(reactor):
        Door(service, port)
    return lambda: reactor.callFromThread(_close_idle, reactor)


def _stop_last(service: Any, reactor: Any) -> None:
    """Have the reactor's stop, whoever asks for it, begin the drain, and come when all is done."""
    stop = reactor.stop
    held = contextlib.ExitStack()

    reactor.stop = lambda: service.begin("reactor.stop()")
    held.enter_context(service.keeping_main())  # the reactor's end is the main thread's
    reactor.addSystemEventTrigger("after", "shutdown", held.close)
    if service.gate is not None:
        service.gate.unchain(lambda handler: getattr(handler, "__self__", None) is reactor)
    service.engine.stopped.then(lambda: reactor.callFromThread(stop))


def _close_after_answers(service: Any) -> None:
    """Have each answer in the drain be its connection's last: Twisted looks at the request's headers, not at the answer's."""
    kind: Any = sys.modules["daphne.http_protocol"].WebRequest
    reply = kind.handle_reply

    def handle_reply(self: Any, message: Any) -> None:
        if service.draining() and self.channel is not None:
            self.channel.persistent = False
        reply(self, message)

    kind.handle_reply = handle_reply


def _let_websockets_say_why() -> None:
    """Let an application close a WebSocket with the codes that a drain is the reason for: else daphne answers 1011, with a traceback."""
    kind: Any = sys.modules["daphne.ws_protocol"].WebSocketProtocol
    close = kind.serverClose

    def serverClose(self: Any, code: int | None = None) -> None:  # noqa: N802 - daphne's name
        if code in GOING:
            self.sendCloseFrame(code=code)
        else:
            close(self, code)

    kind.serverClose = serverClose


def _lift(service: Any, server: Any) -> None:
    """Have what a request does after its answer end by itself in the drain."""
    LOG.info(
        "daphne's --application-close-timeout=%s is lifted in a drain; before, it cuts what a request does for so many seconds after its answer",
        server.application_close_timeout,
    )

    def lift() -> None:
        server.application_close_timeout = math.inf

    service.engine.begun.then(lift)


def _ports(reactor: Any) -> list[Any]:
    """Return what listens."""
    kind: Any = sys.modules["twisted.internet.tcp"].Port
    return [reader for reader in reactor.getReaders() if isinstance(reader, kind)]


def _server(port: Any) -> Any:
    factory = port.factory
    while hasattr(factory, "wrappedFactory"):  # TLS
        factory = factory.wrappedFactory
    return getattr(factory, "server", None)


def _close_idle(reactor: Any) -> None:
    """Close the connections on which no request is under way."""
    for channel in list(_channels(reactor)):
        if not channel.requests:
            channel.loseConnection()


def _channels(reactor: Any) -> Iterator[Any]:
    for reader in reactor.getReaders():
        protocol: Any = getattr(reader, "protocol", None)
        while hasattr(protocol, "wrappedProtocol"):  # TLS
            protocol = protocol.wrappedProtocol
        channel = getattr(protocol, "_channel", protocol)  # behind what chooses between HTTP/1 and HTTP/2
        if isinstance(channel, sys.modules["twisted.web.http"].HTTPChannel):
            yield channel
