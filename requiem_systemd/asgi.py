"""ASGI: every request holds the stop, and so does every task that a request has started.

Source: the ASGI specification 3.0, "HTTP & WebSocket" 2.4 and "Lifespan" 2.0.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final

from requiem_systemd.adapters import asgiservers
from requiem_systemd.aio import latched
from requiem_systemd.errors import DrainingError, NotMainThreadError
from requiem_systemd.ledger import CONNECTION, JOB, REQUEST, More
from requiem_systemd.protocol import length
from requiem_systemd.report import first_segment
from requiem_systemd.service import Service, process

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_KINDS: Final = {"http": REQUEST, "websocket": CONNECTION}
_in_request: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar("requiem_in_request", default=False)


class RequestName:
    """A request's label: method and route template, else method and first path segment; never its arguments."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __str__(self) -> str:
        method = self._scope.get("method", "WEBSOCKET")
        route = getattr(self._scope.get("route"), "path", None)  # Starlette and FastAPI fill it in when they have matched
        return f"{method} {route or first_segment(self._scope.get('path', ''))}"


class TrackRequests:
    """Wrap an ASGI application: `app = TrackRequests(app)`.

    - Every request and WebSocket holds the stop, for at most `request_timeout`; what runs after the answer (background tasks), and
      every task that a request has started (`asyncio.create_task`), as a job, as long as it takes. `tasks=False`: such tasks hold
      nothing unless tracked.
    - The service is armed when the server starts the application; `lifespan.startup.complete` says READY=1.
    - `lifespan.shutdown` is kept back until the ledger is empty: the server's loop lives until the last job has ended, and the
      application's own shutdown runs after it, once.
    - From the begin of the drain every answer carries `Connection: close` (HTTP/1); a connection that was idle then may send one more
      request, for `keepalive_grace` seconds, before the server itself is told to stop.
    - A request that is let go after `request_timeout` is cancelled: the server would wait for it for ever.
    - `health`: a path that answers 200, and 503 from the first moment of the drain; itself never tracked.
    - `label`: a function of the scope that names a request, instead of method and route template.
    """

    def __init__(  # noqa: PLR0913 - the contract's, and what a server needs
        self,
        app: Application,
        *,
        health: str | None = None,
        label: Callable[[Scope], str] | None = None,
        tasks: bool = True,
        keepalive_grace: float = 0.5,
        service: Service = process,
    ) -> None:
        if health is not None and not health.startswith("/"):
            msg = f"TrackRequests(health={health!r}): give a path that begins with a slash"
            raise ValueError(msg)
        self.app = app
        self._health = health
        self._label = label
        self._tasks = tasks
        self._grace = length("keepalive_grace", keepalive_grace)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        kind = _KINDS.get(scope["type"])
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind is None:
            await self.app(scope, receive, send)
        elif scope.get("path") == self._health and kind == REQUEST:
            await self._answer_health(send)
        else:
            await self._request(kind, scope, receive, send)

    # -- requests ------------------------------------------------------------------------------------------------------

    async def _request(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._arm()
        more = More(kind)
        hold = self._service.open(self._label(scope) if self._label else RequestName(scope), more)
        cut = more.let_go = Cut()
        close = kind == REQUEST and str(scope.get("http_version", "1.1")).startswith("1")

        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start" and close and self._service.draining():
                message["headers"] = _closing(message.get("headers", ()))
            started = True
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                more.kind = JOB  # the answer is out: what the application does now, it does as a job

        token = _in_request.set(True)
        try:
            async with hold:
                await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            if not cut.uncancel():
                raise
            if kind == REQUEST and not started:
                await _answer(send, 503, b"stopped\n")
        except DrainingError:
            if hold in self._service.ledger.live or scope["type"] != "http":
                raise
            await _answer(send, 503, b"stopped\n")
        finally:
            _in_request.reset(token)

    async def _answer_health(self, send: Send) -> None:
        draining = self._service.draining()
        await _answer(send, 503 if draining else 200, b"draining\n" if draining else b"ok\n")

    # -- lifespan ------------------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._arm()
        started = False

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._service.begin("lifespan.shutdown")
                await latched(self._service.engine.stopped)
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._service.ready()
            elif message["type"] == "lifespan.shutdown.complete":
                _forget_captured(self._service)

        with self._service.keeping_main():  # the server makes it leave, after its own shutdown
            try:
                await self.app(scope, receiving, sending)
            except Exception:  # an application that knows no lifespan raises: the protocol is kept for it
                if started:
                    raise
            if not started:
                await _keep_lifespan(receiving, sending)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        try:
            self._service.arm()
        except NotMainThreadError:  # a server that runs its loop in a thread: its shutdown begins the drain
            self._service.arm(signals=False)
        self._service.hooks.loop = loop
        asgiservers.attach(self._service, loop, self._grace)
        if self._tasks:
            _track_tasks(loop, self._service)


class Cut:
    """Cancels the task that made it, when called from any thread; knows whether it has."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._done = False

    def __call__(self) -> None:
        """Cancel it."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._done = True
            self._task.cancel()

    def uncancel(self) -> bool:
        """Take the cancellation back; False: it was not ours."""
        if self._done and self._task is not None:
            self._task.uncancel()
        return self._done


def _track_tasks(loop: asyncio.AbstractEventLoop, service: Service) -> None:
    """Have every task that is created inside a request hold the stop."""
    factory = loop.get_task_factory()

    def create(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> Any:
        task: Any = factory(loop, coro, **kwargs) if factory is not None else asyncio.Task(coro, loop=loop, **kwargs)
        if _in_request.get() and isinstance(task, asyncio.Future):
            with contextlib.suppress(DrainingError):  # the loop is on its way out already
                service.track(task, label=_task_label(task))
        return task

    loop.set_task_factory(create)  # type: ignore[arg-type] # whatever keywords this Python's loop gives are passed on


def _task_label(task: Any) -> str:
    """Name a task that nobody named by what it runs."""
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", None) or task.get_name())


def _closing(headers: Any) -> list[tuple[bytes, bytes]]:
    """Say that the connection ends with this answer (RFC 9112, 9.6)."""
    return [(name, value) for name, value in headers if name.lower() != b"connection"] + [(b"connection", b"close")]


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _keep_lifespan(receive: Receive, send: Send) -> None:
    """Answer the server in the stead of an application that knows no lifespan."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


def _forget_captured(service: Service) -> None:
    """Keep uvicorn from sending itself, at its end, the SIGTERM that it has dealt with: it would die of it, past our exit status."""
    gate = service.gate
    if gate is None:
        return
    for handler in gate.chained():
        captured = getattr(getattr(handler, "__self__", None), "_captured_signals", None)
        if isinstance(captured, list):
            captured.clear()
