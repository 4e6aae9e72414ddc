"""`requiem-systemd serve`: run an ASGI or WSGI application, in one process or in several."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from requiem_systemd.binding import Fallback
    from requiem_systemd.service import Service

WRONG: Final = 2
LISTENER: Final = "http"
_DESCRIPTION: Final = """\
Run an ASGI application (by uvicorn) or a WSGI application (by waitress), ready to be stopped, restarted and reloaded without a
failed request: every request holds the stop, and so does every job that the application tracks."""
_EPILOG: Final = """\
Under a .socket unit the listener is the one with FileDescriptorName=http, or the only one; else --bind.

With --workers, a primary keeps that many processes: a worker that dies is replaced, and a reload (systemctl reload, SIGHUP) puts
new ones, with the code as it is then, in the places of the old, which end their jobs in the background."""


class ServeError(Exception):
    """Raised where the application cannot be run; the message says why, and what to do."""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    from requiem_systemd import cluster  # noqa: PLC0415 - `--help` need not load it
    from requiem_systemd.service import initialize  # noqa: PLC0415 - as above

    options = _parser().parse_args(argv)
    target = functools.partial(_serve, options)
    try:
        if options.workers is None:
            target(initialize())
        else:
            cluster.Cluster(
                target, workers=options.workers, max_requests=options.max_requests, max_age=options.max_age
            ).run()
    except ServeError as error:
        print(f"requiem-systemd serve: {error}", file=sys.stderr)  # noqa: T201 - what a command line is for
        return WRONG
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "requiem-systemd serve",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", metavar="MODULE:APP", help="where the application is; :APP is :app if left out")
    parser.add_argument(
        "--bind",
        type=address,
        default=("127.0.0.1", 8000),
        metavar="ADDRESS",
        help="HOST:PORT, [HOST]:PORT, :PORT or unix:PATH (default: 127.0.0.1:8000)",
    )
    parser.add_argument(
        "--workers", type=workers, metavar="N", help='so many processes, or "auto" (default: this one)'
    )
    parser.add_argument("--max-requests", type=int, metavar="N", help="recycle a worker after N requests")
    parser.add_argument("--max-age", type=span, metavar="SPAN", help='recycle a worker of this age, such as "1h"')
    parser.add_argument("--interface", choices=("auto", "asgi", "wsgi"), default="auto", help="default: as it looks")
    parser.add_argument("--factory", action="store_true", help="APP is a function that returns the application")
    parser.add_argument("--app-dir", default=".", metavar="DIR", help="where MODULE is looked for first (default: here)")
    parser.add_argument("--health", metavar="PATH", help="a path that answers 200, and 503 from the begin of a drain")
    return parser


def address(text: str) -> Fallback:
    """Read an address to bind."""
    if text.startswith("unix:") and len(text) > 5:
        return text[5:]
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:
        msg = f"{text!r}: give HOST:PORT or unix:PATH"
        raise argparse.ArgumentTypeError(msg)
    return host, int(port)


def workers(text: str) -> Any:
    """Read a number of workers."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        msg = f'{text!r}: give 1 or more, or "auto"'
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def span(text: str) -> float:
    """Read a time span."""
    from requiem_systemd.protocol import length, timespan  # noqa: PLC0415 - as in `run`

    try:
        return length("--max-age", timespan(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def load(text: str, *, factory: bool = False) -> Any:
    """Return the application of "module:attribute"; ServeError where there is none."""
    module, _, path = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        msg = f"there is no module {error.name!r}; is it in the folder of --app-dir?"
        raise ServeError(msg) from error
    for name in (path or "app").split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            msg = f"{module} has no {path or 'app'!r}; write MODULE:APP"
            raise ServeError(msg) from error
    return found() if factory else found


def interface(app: Any) -> str:
    """Say what an application looks like: ASGI 3.0, a coroutine function of three arguments; WSGI, a function of two."""
    call = getattr(app, "__call__", None)  # noqa: B004 - the method itself is looked at
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(call):
        return "asgi"
    try:
        signature = inspect.signature(app)
        signature.bind(object(), object())
    except TypeError:
        return "asgi" if callable(app) else ""
    except ValueError:  # a builtin
        return "wsgi"
    return "wsgi"


def _serve(options: argparse.Namespace, service: Service) -> None:
    """Run the application: the Cluster's target, or this process's own work."""
    sys.path.insert(0, os.path.abspath(options.app_dir))
    with service.starting(f"loading {options.app}"):
        app = load(options.app, factory=options.factory)
    kind = interface(app) if options.interface == "auto" else options.interface
    if kind not in _SERVERS:
        msg = f"{options.app} is no application: it cannot be called"
        raise ServeError(msg)
    _SERVERS[kind](service, app, _listener(service, options.bind), options.health)


def _listener(service: Service, fallback: Fallback) -> socket.socket:
    passed = service.listeners()
    if LISTENER not in passed and sum(map(len, passed.values())) == 1:
        return service.listener(next(iter(passed)))
    return service.listener(LISTENER, fallback=fallback)


def _needed(module: str, kind: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        msg = f"{kind} applications are served by {module}, which is not installed: pip install 'requiem-systemd[{module}]'"
        raise ServeError(msg) from error


def _uvicorn(service: Service, app: Any, listener: socket.socket, health: str | None) -> None:
    uvicorn = _needed("uvicorn", "ASGI")
    from requiem_systemd import asgi  # noqa: PLC0415 - WSGI applications need no asyncio

    tracked = app if isinstance(app, asgi.TrackRequests) else asgi.TrackRequests(app, health=health, service=service)
    # No Server: header, here and below: it tells a stranger what to try, and to write it costs uvicorn two percent of a small answer.
    uvicorn.Server(uvicorn.Config(tracked, access_log=False, server_header=False)).run(sockets=[listener])


def _waitress(service: Service, app: Any, listener: socket.socket, health: str | None) -> None:
    server = _needed("waitress", "WSGI")
    from requiem_systemd import wsgi  # noqa: PLC0415 - ASGI applications need it not

    tracked = app if isinstance(app, wsgi.TrackRequests) else wsgi.TrackRequests(app, health=health, service=service)
    server = service.track_socket(server.create_server(tracked, sockets=[listener], ident=None))
    service.ready()
    server.run()


_SERVERS: Final[dict[str, Callable[..., None]]] = {"asgi": _uvicorn, "wsgi": _waitress}
