"""What the drain does with a server, by kind: one module for each, loaded when such a server is tracked.

A kind of your own takes one line: `requiem_systemd.adapters.register("package.module.Server", factory)`. `factory` is a function, or
"package.module:function", that gets `(service, server, keepalive_grace)`, and has `service.doors` shut what it makes of it: see
`requiem_systemd.doors.Door`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from requiem_systemd.accepting import Host

Factory: TypeAlias = "Callable[[Any, Any, float], object]"

_KINDS: Final[dict[str, Factory | str]] = {
    "socket.socket": "requiem_systemd.adapters.sockets:door",
    "socketserver.BaseServer": "requiem_systemd.adapters.socketservers:door",
    "http.server.HTTPServer": "requiem_systemd.adapters.httpservers:door",
    "asyncio.base_events.Server": "requiem_systemd.adapters.aservers:door",
    "uvloop.loop.Server": "requiem_systemd.adapters.aservers:door",
    "aiohttp.web_app.Application": "requiem_systemd.adapters.aiohttpapps:application",
    "aiohttp.web_runner.AppRunner": "requiem_systemd.adapters.aiohttpapps:app_runner",
    "aiohttp.web_runner.ServerRunner": "requiem_systemd.adapters.aiohttpapps:server_runner",
    "tornado.httpserver.HTTPServer": "requiem_systemd.adapters.tornadoservers:http",
    "tornado.tcpserver.TCPServer": "requiem_systemd.adapters.tornadoservers:tcp",
    "waitress.server.BaseWSGIServer": "requiem_systemd.adapters.waitressservers:one",
    "waitress.server.MultiSocketServer": "requiem_systemd.adapters.waitressservers:several",
    "twisted.internet.tcp.Port": "requiem_systemd.adapters.twistedports:door",
    "grpc._server._Server": "requiem_systemd.adapters.grpc:door",
    "grpc.aio._server.Server": "requiem_systemd.adapters.grpc:aio_door",
}


def register(kind: str | type, factory: Factory | str) -> None:
    """Have `track_socket` take servers of a class, given as such or by its qualified name, and of its subclasses."""
    _KINDS[kind if isinstance(kind, str) else _name(kind)] = factory


def attach(service: Host, server: object, keepalive_grace: float) -> None:
    """Track a server; TypeError for one of no known kind."""
    for base in type(server).__mro__:
        factory = _KINDS.get(_name(base))
        if factory is not None:
            loaded(factory)(service, server, keepalive_grace)
            return
    msg = (
        f"track_socket({type(server).__name__}): there is no adapter for {_name(type(server))}; there are some for {', '.join(_KINDS)}. "
        "Add one by requiem_systemd.adapters.register(kind, factory)"
    )
    raise TypeError(msg)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def loaded(function: Callable[..., object] | str) -> Callable[..., object]:
    """Return a function that is given as such or as "package.module:function"."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), name)
    return found
