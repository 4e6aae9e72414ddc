"""grpc and grpc.aio servers: RPCs in flight hold the stop, unary and streaming; from the begin no new one is let in.

grpc opens its ports by itself: its Python API takes no descriptor, and its wheels are built without systemd's socket activation
(src/core/lib/iomgr/systemd_utils.cc needs libsystemd). So a listener that was passed cannot be served; `track_socket` says so once.
`Server.stop(grace)` is all that there is to stop it: it closes the ports at once, sends GOAWAY on every connection (clients go elsewhere
with their next RPC), and cancels after the grace what is still in flight.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from requiem_systemd import journal
from requiem_systemd.errors import DrainingError
from requiem_systemd.hooks import running_loop
from requiem_systemd.ledger import CONNECTION, REQUEST, More, Record
from requiem_systemd.slot import own

LOG: Final = logging.getLogger("requiem_systemd")
# What is let go is cancelled so much later: first it is named, while it is in flight.
BEHIND: Final = 0.1
# A cancellation, or an answer of the last moment, is given so long to reach its client.
LINGER: Final = 1.0
_SHAPES: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


class TrackCalls:
    """Name what is in flight: `grpc.server(pool, interceptors=[TrackCalls()])`, `grpc.aio.server(interceptors=[TrackCalls()])`.

    Every RPC holds the stop under its method's name, for at most `request_timeout`, until its handler has returned: also where the
    client has gone. Without it `track_socket(server)` holds until the last RPC's answer is out, under one name for all.
    """

    def __init__(self, *, service: Any = None) -> None:
        import grpc  # noqa: PLC0415 - loaded when asked for

        self._service = own(service)
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        grpc.aio.ServerInterceptor.register(type(self))  # grpc.aio takes none but its own

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """See grpc.ServerInterceptor; under grpc.aio the continuation is a coroutine function."""
        handler = continuation(details)
        return self._later(handler, details.method) if asyncio.iscoroutine(handler) else self._tracked(handler, details.method)

    async def _later(self, coming: Any, method: str) -> Any:
        return self._tracked(await coming, method)

    def _tracked(self, handler: Any, method: str) -> Any:
        if handler is None:  # no such method
            return None
        plain, wrapped = self._wrapped.get(method, (None, None))
        if plain is not handler:
            wrapped = self._wrap(handler, method)
            self._wrapped[method] = handler, wrapped
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        import grpc  # noqa: PLC0415 - loaded when asked for

        shape = _SHAPES[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, shape)
        if hasattr(behaviour, "experimental_non_blocking"):  # it returns at once and answers from elsewhere
            return handler
        if handler.response_streaming and not _is_stream(behaviour):
            behaviour = _streamed(behaviour)
        kind = CONNECTION if handler.request_streaming or handler.response_streaming else REQUEST
        make: Any = getattr(grpc, f"{shape}_rpc_method_handler")
        return make(self._service.open(method, More(kind))(behaviour), handler.request_deserializer, handler.response_serializer)


def _is_stream(behaviour: Any) -> bool:
    """Say whether a call of it is over when its answers are; else it returns an iterator of them."""
    return inspect.isgeneratorfunction(behaviour) or inspect.isasyncgenfunction(behaviour) or inspect.iscoroutinefunction(behaviour)


def _streamed(behaviour: Any) -> Any:
    """Make a generator function of one that returns an iterator: its call is over when that has run dry."""

    @functools.wraps(behaviour)
    def answers(*args: Any) -> Iterator[Any]:
        yield from behaviour(*args)

    return answers


def door(host: Any, server: Any, _grace: float) -> None:
    """Have the drain close a server with threads."""
    Door(host, server).attach()


def aio_door(host: Any, server: Any, _grace: float) -> None:
    """Have the drain close a grpc.aio server."""
    AioDoor(host, server).attach()


class Door:
    """A door: one server. Until it has terminated a record holds the stop: grpc knows when the last answer is out."""

    label: str = "of the grpc server"

    def __init__(self, host: Any, server: Any) -> None:
        self._host = host
        self._server = server

    def attach(self) -> None:
        """Have the drain shut it."""
        names = ", ".join(repr(name) for name in self._host.listeners())
        if names:
            LOG.warning(
                "grpc opens its ports by itself and cannot take a listener that systemd has passed (%s): take ListenStream= of a port that "
                "grpc is to serve out of the .socket unit",
                names,
                extra=journal.record("mistake"),
            )
        if not self._host.doors.add(self):
            self.shut(_nothing)

    def shut(self, done: Callable[[], object]) -> None:
        """Close the ports, and let RPCs go on for `request_timeout`: see doors.Door."""
        record, grace = self._hold()
        terminated: threading.Event = self._server.stop(grace)

        def wait() -> None:
            terminated.wait()
            self._host.ledger.leave(record)

        # A daemon: what hangs on in a handler is not waited for once the stop is no longer held.
        waiter = threading.Thread(target=wait, name="requiem-grpc", daemon=True)
        try:
            waiter.start()
        except RuntimeError:  # the main thread has ended (CPython 3.12): what TrackCalls tracks is still held
            self._host.ledger.leave(record)
        done()

    def _hold(self) -> tuple[Record, float]:
        grace: float = self._host.engine.setting.options.request_timeout + BEHIND
        record = Record("connections of the grpc server", None)
        record.more = More(CONNECTION, grace + LINGER)
        try:
            self._host.ledger.enter(record)
        except DrainingError:  # too late for anybody
            grace = 0.0
        return record, grace


class AioDoor(Door):
    """A door: one grpc.aio server, which belongs to its loop."""

    def __init__(self, host: Any, server: Any) -> None:
        super().__init__(host, server)
        self._loop: Any = running_loop() or server._loop  # noqa: SLF001 - made outside of a loop, it knows which will be its own
        self._task: asyncio.Task[None] | None = None

    def shut(self, done: Callable[[], object]) -> None:
        """Close the ports in the server's loop: see doors.Door."""
        record, grace = self._hold()

        def leave(_: object = None) -> None:
            self._host.ledger.leave(record)

        def stop() -> None:
            self._task = self._loop.create_task(self._server.stop(grace))
            self._task.add_done_callback(leave)
            self._loop.call_soon(done)  # behind the task's first step, which closes

        try:
            self._loop.call_soon_threadsafe(stop)
        except RuntimeError:  # the loop is closed
            leave()
            done()


def _nothing() -> None:
    """Do nothing: nobody waits for this door."""
