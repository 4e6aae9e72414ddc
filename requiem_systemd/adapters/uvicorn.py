"""uvicorn: what it would cut short by itself, and what its parent process keeps from its workers.

Read from uvicorn 0.54: server.py, supervisors/multiprocess.py, lifespan/. With `--workers` the parent is the service's main process and
runs no line of ours. It must do three things, and does: pass SIGTERM on to its workers, wait for them without a limit, end after
them. The workers tell the manager (NotifyAccess=all): READY=1 each, EXTEND_TIMEOUT_USEC= while they drain, never STOPPING=1, for the
parent also stops a worker to replace it (SIGHUP). What it must not do is listen on, and it does: see `_tell_of_parent`.

Its health ping (`timeout_worker_healthcheck`, 5 s) is answered by a thread: a worker whose loop is blocked passes it, one in a C call
that holds the GIL is killed. While a parent stops, or waits for a worker that it replaces, it pings nobody.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any, Final

from requiem_systemd import journal
from requiem_systemd.adapters import loaded
from requiem_systemd.adapters.asgiservers import hang_up
from requiem_systemd.adapters.tasks import INSIDE, Unseen, in_request, is_plain, latched

LOG: Final = logging.getLogger("requiem_systemd")
# How long a connection that was idle may send one more request, where uvicorn stops without having been told to.
KEEPALIVE_GRACE: Final = 0.5
# Whoever runs uvicorn in workers of its own: the module that is loaded there, and the function that gets (service, loop, server).
_HOSTS: Final = {"gunicorn.arbiter": "requiem_systemd.adapters.gunicornworker:attach"}


def attach(service: Any, loop: asyncio.AbstractEventLoop) -> None:
    """See to the uvicorn servers that run in this loop."""
    for server in set(_servers(loop)):
        server._captured_signals = _DealtWith(service)  # noqa: SLF001 - there is no other way to keep it from dying of them
        _lift_timeout(server.config)
        _drain_first(service, server)
        for name in ("create_server", "create_unix_server"):
            setattr(loop, name, _marking(loop, getattr(loop, name), server))
        if type(server.lifespan).__name__ == "LifespanOff":  # its module is loaded only where it is used
            _hold_without_lifespan(service, server.lifespan)
        _tell_of_parent(server.config)
        for module, function in _HOSTS.items():
            if module in sys.modules:
                loaded(function)(service, loop, server)


def own_send(loop: asyncio.AbstractEventLoop) -> object:
    """Return the `send` of what answers one request; see asgiservers.own_send."""
    return next((kind.send for server in _servers(loop) if (kind := _cycle(loop, server)) is not None), None)


def _cycle(loop: asyncio.AbstractEventLoop, server: Any) -> Any:
    """Return the class of what answers one request, if all is as it was read, and a request has its connection's context."""
    protocol = getattr(server.config, "http_protocol_class", None)  # a class of somebody else's is in another module
    kind: Any = getattr(sys.modules.get(getattr(protocol, "__module__", "")), "RequestResponseCycle", None)
    looks_at = getattr(getattr(getattr(kind, "send", None), "__code__", None), "co_names", ())
    parts = type(server).startup.__code__.co_consts
    takes_loop = any("self" in getattr(part, "co_freevars", ()) and "_loop" in part.co_varnames for part in parts)
    as_read = takes_loop and {"response_started", "response_complete", "default_headers"} <= set(looks_at)
    return kind if as_read and is_plain(loop) and not getattr(server.config, "reset_contextvars", False) else None


def _marking(loop: asyncio.AbstractEventLoop, create: Any, server: Any) -> Any:
    """Return a loop's method that makes servers, with the context of each connection of this one marked; see tasks.Unseen."""

    async def create_server(factory: Any, *args: Any, **kwargs: Any) -> Any:
        ours = any(cell.cell_contents is server for cell in getattr(factory, "__closure__", None) or ())
        if not ours or _cycle(loop, server) is None:
            return await create(factory, *args, **kwargs)
        token = in_request.set(INSIDE)
        try:
            return await create(functools.partial(factory, _loop=Unseen(loop)), *args, **kwargs)
        finally:
            in_request.reset(token)

    return create_server


def _servers(loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Yield whose `serve()` some task is in, however deep: its signal handlers tell only in the main thread."""
    kind = sys.modules["uvicorn.server"].Server
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            found = frame.f_locals.get("self")
            if isinstance(found, kind):
                yield found
                break
            coroutine = coroutine.cr_await


class _DealtWith(list[int]):
    """The signals that uvicorn has caught, which it sends to itself again at its end: of them it would die, past our exit status.

    It asks for them when it has put back the handlers that were there before it, which is when ours are to be taken up again: a
    SIGTERM that comes during the exit changes nothing.
    """

    def __init__(self, service: Any) -> None:
        super().__init__()
        self._service = service

    def __reversed__(self) -> Iterator[int]:
        self._service.retake()
        return iter(())


def _lift_timeout(config: Any) -> None:
    """Have uvicorn wait for its requests as long as we do: they are cancelled after request_timeout, background tasks are not."""
    limit = getattr(config, "timeout_graceful_shutdown", None)  # 0.22; before, it waits without a limit
    if limit is not None:
        config.timeout_graceful_shutdown = None
        _say(
            "uvicorn's --timeout-graceful-shutdown=%s would cut off requests and background tasks and is not applied: set REQUIEM_REQUEST_TIMEOUT= "
            "for requests, REQUIEM_DRAIN_TIMEOUT= for everything, and leave it out",
            limit,
        )


def _drain_first(service: Any, server: Any) -> None:
    """Begin the drain where uvicorn stops by itself: it would close its listener on those who wait at it, and extend nothing."""
    shutdown = server.shutdown

    async def drained(*args: Any, **kwargs: Any) -> None:
        service.begin("uvicorn stops")
        await latched(service.engine.drain.closing)
        if not server.should_exit:  # nobody has told it: the doors have only begun to close
            await asyncio.sleep(KEEPALIVE_GRACE)
        asyncio.get_running_loop().call_soon(_hang_up, server)  # when it has closed what is idle, it waits for the first time
        await shutdown(*args, **kwargs)

    server.shutdown = drained
    limit = server.config.limit_max_requests
    if limit is not None and limit < sys.maxsize:  # which is how gunicorn's worker writes that there is none
        _say(
            "uvicorn's --limit-max-requests=%s: after so many requests this process drains, and nobody is started in its place before its last job "
            "has ended; with long jobs leave it out",
            limit,
        )


def _hang_up(server: Any) -> None:
    """Have what uvicorn has closed, for it was idle, be over."""
    for connection in server.server_state.connections:
        transport = getattr(connection, "transport", None)
        if transport is not None and transport.is_closing():
            hang_up(transport)


def _hold_without_lifespan(service: Any, lifespan: Any) -> None:
    """Hold the loop without the protocol's help; what is lost is said."""

    async def shutdown() -> None:
        with service.keeping_main():
            await latched(service.engine.stopped)

    lifespan.shutdown = shutdown
    _say("uvicorn's --lifespan=off: no READY=1 is sent, and until the first request a stop is uvicorn's own; leave it out")


def _tell_of_parent(config: Any) -> None:
    """Say, in the first worker, what the parent makes impossible: it holds the listener that the workers accept on."""
    process = multiprocessing.parent_process() and multiprocessing.current_process()
    if not process or config.workers < 2 or not process.name.endswith("-1"):
        return
    port = "" if config.fd is not None else "keeps the port open during the drain, so that who connects then waits for nobody (pass it by a .socket unit and --fd 3), and "
    _say("uvicorn's --workers: its parent process %spasses no second SIGINT and no SIGQUIT on; to hurry a drain up: systemctl kill -s QUIT UNIT", port)


def _say(text: str, *arguments: object) -> None:
    LOG.warning(text, *arguments, extra=journal.record("mistake"))
