"""hypercorn: what it would cut short, and what its parent process keeps from its workers.

Read from hypercorn 0.18: run.py, asyncio/run.py, asyncio/lifespan.py. It runs the application in child processes, also with one
worker; only with `--workers 0` in the main process. The parent runs no line of ours. At SIGTERM it sets an event that the workers
look at every 0.1 s, waits for them without a limit, sends those that are left a SIGTERM when the first has ended (it changes nothing),
and ends after them. The workers tell the manager (NotifyAccess=all): READY=1 each, EXTEND_TIMEOUT_USEC= while they drain.

A worker that stops closes what is idle, waits `graceful_timeout` for its connections and `shutdown_timeout` for the lifespan. So it is
told late, after the doors and the grace, and both limits are lifted: `request_timeout` and `drain_timeout` say how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from requiem_systemd import journal
from requiem_systemd.adapters.tasks import latched
from requiem_systemd.latch import Latch
from requiem_systemd.listen import describe

LOG: Final = logging.getLogger("requiem_systemd")
# The worker that hears last of the stop closes its listener so much later than the first: it looks every 0.1 s.
SIBLINGS: Final = 0.3
_LIMITS: Final = ("graceful_timeout", "shutdown_timeout")


def attach(service: Any, loop: Any) -> Callable[[], object] | None:
    """See to the hypercorn that runs in this loop; returns what tells it to stop."""
    run = sys.modules.get("hypercorn.asyncio.run")
    if run is None:  # it is imported, but serves nothing here
        return None
    found = list(_serving(loop))
    if not found:
        _mistake("hypercorn was not found in its loop: its graceful_timeout and shutdown_timeout cut requests and jobs; set both to the longest drain")
    for local in found:
        grace = local["config"].graceful_timeout
        _lift(local["config"])
        service.engine.stopped.then(lambda grace=grace: _soon(loop, _cut_later, loop, grace))
        if multiprocessing.parent_process() is not None:
            _tell_of_parent()
            _shut_copies(service, loop, local)
    told = Latch()
    _drain_first(service, run, told)

    def tell() -> None:
        service.engine.wayout.tell_others(unasked=True)
        told.set()

    return tell


def _serving(loop: Any) -> Iterator[dict[str, Any]]:
    """Yield the local variables of each `worker_serve()` that some task is in, however deep."""
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            if (frame.f_code.co_name, frame.f_globals.get("__name__")) == ("worker_serve", "hypercorn.asyncio.run"):
                yield frame.f_locals
                break
            coroutine = coroutine.cr_await


def _lift(config: Any) -> None:
    """Have hypercorn wait as long as we do."""
    limits = {name: getattr(config, name) for name in _LIMITS}
    for name in _LIMITS:
        setattr(config, name, None)  # asyncio.wait_for: no limit
    LOG.info(
        "hypercorn's %s are lifted: REQUIEM_REQUEST_TIMEOUT= says how long a stop waits for requests, REQUIEM_DRAIN_TIMEOUT= for everything",
        " and ".join(f"{name}={value} s" for name, value in limits.items()),
    )


def _drain_first(service: Any, run: Any, told: Latch) -> None:
    """Put ours in the place of the function in which hypercorn waits for its stop: there the drain begins, and there it is told."""
    raise_shutdown = getattr(run.raise_shutdown, "hypercorns", run.raise_shutdown)

    async def drained(trigger: Callable[..., Awaitable[object]]) -> None:
        asked = asyncio.ensure_future(_first(trigger))
        hears = asyncio.ensure_future(latched(told))
        try:
            await asyncio.wait({asked, hears}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                await asked
                service.begin("hypercorn stops")
            await hears
        finally:
            asked.cancel()
            hears.cancel()
        await raise_shutdown(_at_once)

    drained.hypercorns = raise_shutdown  # type: ignore[attr-defined] # to find it again: one process may serve twice
    run.raise_shutdown = drained


async def _first(trigger: Callable[..., Awaitable[object]]) -> None:
    await trigger()


async def _at_once() -> None:
    """Be a trigger that has been pulled."""


# -- connections that hang on --------------------------------------------------------------------------------------------------------


def _soon(loop: Any, function: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(function, *arguments)


def _cut_later(loop: Any, grace: float | None) -> None:
    """Everything that is tracked has ended: give connections what hypercorn gives them, then cut those that nobody reads from."""
    loop.call_later(grace or 0.0, _cut, loop)


def _cut(loop: Any) -> None:
    for task in asyncio.all_tasks(loop):
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_code.co_name == "_server_callback" and "writer" in frame.f_locals:
            frame.f_locals["writer"].transport.abort()


# -- the parent process --------------------------------------------------------------------------------------------------------------


def _tell_of_parent() -> None:
    """Say, in the first worker, what the parent makes impossible."""
    if multiprocessing.current_process().name.endswith("-1"):
        _mistake(
            "hypercorn's parent process passes no second SIGINT and no SIGQUIT on, and ends with status 0 where jobs were abandoned: "
            "write --workers 0, which runs the application in the main process, or hurry a drain up by systemctl kill -s QUIT UNIT"
        )


def _shut_copies(service: Any, loop: Any, local: dict[str, Any]) -> None:
    """See to the listeners that hypercorn has bound: the parent holds each open until its last worker has ended."""
    config: Any = local["config"]
    event: Any = getattr(local["shutdown_trigger"], "args", (None,))[0]
    if not hasattr(event, "is_set") or any(bind.startswith("fd://") for bind in (*config.bind, *config.insecure_bind)):
        return  # passed: open for the next process
    create = loop.create_server

    async def create_server(factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        server = await create(factory, *args, **kwargs)
        if (sock := kwargs.get("sock")) is not None:
            tls = {name: kwargs[name] for name in ("ssl", "ssl_handshake_timeout") if name in kwargs}
            service.doors.add(Copy(service, loop, sock.dup(), event.is_set, lambda sock: loop.connect_accepted_socket(factory, sock, **tls)))
        return server

    loop.create_server = create_server


class Copy:
    """A door: a listener that a parent process holds open too, and accepts nothing on.

    Closed here, it would go on to take connections, for nobody. So when all workers have closed theirs, what waits is accepted, and
    the listener is shut down for every process; unless it is this worker only that stops (`--max-requests`). At SIGHUP, which the
    workers cannot tell from a stop, the parent hands it to new workers when all old ones have ended: they listen again, and until then
    it refuses.
    """

    def __init__(
        self, service: Any, loop: Any, listener: socket.socket, all_stop: Callable[[], bool], serve: Callable[[socket.socket], Any]
    ) -> None:
        self.label: str = f"{describe(listener)} in the parent process"
        self._service = service
        self._loop = loop
        self._listener = listener
        self._all_stop = all_stop
        self._serve = serve
        self._accepted: set[asyncio.Task[Any]] = set()

    def shut(self, done: Callable[[], object]) -> None:
        """Shut it down when the siblings have closed theirs: see doors.Door."""
        turns = self._service.engine.loop

        def shut() -> None:
            try:
                self._loop.call_soon_threadsafe(self._shut, done)
            except RuntimeError:  # the loop is closed
                done()

        turns.alarm(shut, turns.clock.now() + SIBLINGS)

    def _shut(self, done: Callable[[], object]) -> None:
        if self._all_stop():
            with contextlib.suppress(OSError):  # nobody waits any more, or a sibling has shut it down
                while True:
                    self._take(self._listener.accept()[0])
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RD)
        self._listener.close()
        done()

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = self._loop.create_task(self._serve(connection))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)


def _mistake(text: str) -> None:
    LOG.warning("%s", text, extra=journal.record("mistake"))
