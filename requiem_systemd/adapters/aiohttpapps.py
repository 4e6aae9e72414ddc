"""aiohttp: `track_socket(app)` before `web.run_app(app)`, or `track_socket(runner)` before `await runner.setup()`.

- A request holds the stop until its answer is out, and so does every task that a request has started, as a job. What is let go after
  `request_timeout` is cancelled; a WebSocket may hold as long as a request.
- Each listener is closed at the begin; none that was passed is made to listen anew with a smaller backlog.
- Under `run_app` the service is armed when the application starts, and READY=1 is said when its first listener is open. `run_app`'s own
  stop (GracefulExit: `on_shutdown`, `on_cleanup`, `cleanup_ctx`, its `shutdown_timeout`, the cancelling of all tasks) comes when the
  ledger is empty, in the stead of its signal handlers; where somebody else raises it before, it is kept back until then.
- Under a runner all that is yours: `initialize()` or `aio.run`, `ready()` when its sites are started, `runner.cleanup()` at the end.
- `app.router.add_get("/health", requiem_systemd.adapters.aiohttpapps.health)` answers 200, from the begin of the drain 503, and holds nothing.
- Answers of a `ServerRunner`'s handler that were prepared by itself do not say that their connection ends; it does all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.asgiservers import keep_backlog
from requiem_systemd.adapters.connections import Connections, RequestName
from requiem_systemd.adapters.tasks import INSIDE, Cut, in_request, latched, track_tasks
from requiem_systemd.errors import DrainingError, NotMainThreadError
from requiem_systemd.gate import SIGNALS, name_of
from requiem_systemd.hooks import running_loop
from requiem_systemd.ledger import CONNECTION, REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable


def application(service: Any, app: Any, grace: float) -> None:
    """Have the drain see to an application; RuntimeError if it is set up already."""
    if app.pre_frozen:
        msg = "track_socket(Application): the application is set up already; call it before run_app() or runner.setup()"
        raise RuntimeError(msg)
    tracked = App(service, grace, lambda handler: getattr(handler, "__self__", None) is app)
    app.middlewares.insert(0, _middleware(tracked))
    app.on_response_prepare.append(tracked.preparing)
    app.on_startup.insert(0, tracked.starting)
    app.on_shutdown.insert(0, tracked.shutting_down)


def app_runner(service: Any, runner: Any, grace: float) -> None:
    """Have the drain see to a runner's application; RuntimeError if it is set up already."""
    application(service, runner.app, grace)


def server_runner(service: Any, runner: Any, grace: float) -> None:
    """Have the drain see to a low-level server; RuntimeError outside its loop."""
    loop = running_loop()
    if loop is None:
        msg = "track_socket(ServerRunner): call it in the server's event loop"
        raise RuntimeError(msg)
    server = runner._web_server  # noqa: SLF001 - runner.server is None before setup()
    theirs = server.request_handler

    async def handle(request: Any) -> Any:
        response = await tracked.handle(request, theirs)
        if service.draining() and response is not None:
            response.force_close()
        return response

    server.request_handler = handle
    tracked = App(service, grace, lambda handler: handler is handle)
    tracked.watch(loop)


async def health(_request: Any) -> Any:
    """Stand for the health path in a route; it is answered before it comes here."""
    msg = "aiohttpapps.health answers for an application that is tracked; call track_socket(app) before run_app()"
    raise RuntimeError(msg)


def _middleware(tracked: App) -> Any:
    async def track(request: Any, handler: Any) -> Any:
        if request.match_info.handler is health:
            return tracked.answer_health()
        return await tracked.handle(request, handler)

    return _web().middleware(track)


class App:
    """One application, or one low-level server. `is_ours` knows the handler of all its requests."""

    def __init__(self, service: Any, grace: float, is_ours: Callable[[Any], bool]) -> None:
        """Store."""
        self._service = service
        self._grace = grace
        self._is_ours = is_ours
        self._connections: Connections
        self._cuts: set[Cut] = set()
        self._managers: list[Any] = []
        self._run_app: Any = None
        self._leaving = False

    # -- its life ------------------------------------------------------------------------------------------------------

    async def starting(self, _app: Any) -> None:
        """on_startup, first."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        self.watch(loop)
        coroutine: Any = None if task is None else task.get_coro()
        if task is not None and getattr(coroutine, "cr_code", None) is _web()._run_app.__code__:  # noqa: SLF001 - nothing else tells
            self._run_app = task
            self._take_over(loop, task)

    def _take_over(self, loop: Any, task: asyncio.Task[Any]) -> None:
        """Arm the service, and have run_app stop when all is done: see the top."""
        service = self._service
        try:
            service.arm()
        except NotMainThreadError:  # run_app in a thread: whoever ends it begins the drain
            service.arm(signals=False)
        service.hooks.loop = loop
        service.retake()
        if service.gate is not None and service.gate.chained():
            for number in SIGNALS:
                if name_of(number) in ("SIGTERM", "SIGINT"):  # theirs raise GracefulExit; one is enough, and it is ours
                    loop.add_signal_handler(number, _nothing)
            service.retake()
        staying = contextlib.ExitStack()
        staying.enter_context(service.keeping_main())

        def over(_: object) -> None:
            staying.close()
            service.retake()  # cleanup() has given SIGTERM back to the system, which would kill what comes behind run_app

        task.add_done_callback(over)

    def watch(self, loop: Any) -> None:
        """Take note of the listeners that are made for it in a loop, of its connections, and of the tasks of its requests."""
        self._connections = Connections(self._service, "aiohttp", self._grace, loop.call_soon_threadsafe, loop.call_later)
        track_tasks(loop, self._service)
        for name in ("create_server", "create_unix_server"):
            if hasattr(loop, name):
                setattr(loop, name, functools.partial(self._create, getattr(loop, name)))

        def stopped() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._stopped)

        self._service.engine.stopped.then(stopped)

    def _stopped(self) -> None:
        for cut in tuple(self._cuts):  # abandoned: cleanup() would wait for them, for shutdown_timeout
            cut()
        if self._run_app is not None and not self._leaving:
            self._leaving = True
            raise _web().GracefulExit

    async def shutting_down(self, _app: Any) -> None:
        """on_shutdown, first: under run_app all tasks are cancelled afterwards."""
        if self._run_app is not None:
            self._leaving = True
            self._service.begin("run_app ends")
            await latched(self._service.engine.stopped)

    # -- listeners and connections -------------------------------------------------------------------------------------

    async def _create(self, theirs: Any, factory: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not self._is_ours(getattr(factory, "request_handler", None)):
            return await theirs(factory, *args, **kwargs)
        self._adopt(factory)
        keep_backlog(kwargs)
        server = await theirs(factory, *args, **kwargs)
        self._service.track_socket(server)
        if self._run_app is not None:
            self._service.ready()
        return server

    def _adopt(self, manager: Any) -> None:
        """Hear of a server's connections: it tells itself, by these two methods."""
        if manager in self._managers:
            return
        self._managers.append(manager)
        made, lost = manager.connection_made, manager.connection_lost

        def connection_made(protocol: Any, transport: Any) -> None:
            made(protocol, transport)
            self._connections.opened(protocol, transport.get_extra_info("socket"), protocol.force_close)

        def connection_lost(protocol: Any, error: BaseException | None = None) -> None:
            lost(protocol, error)
            self._connections.closed(protocol)

        manager.connection_made, manager.connection_lost = connection_made, connection_lost

    # -- requests ------------------------------------------------------------------------------------------------------

    async def handle(self, request: Any, handler: Any) -> Any:
        """Answer a request while it holds the stop; till its task has ended, which writes the answer out."""
        kind = CONNECTION if request.headers.get("Upgrade", "").lower() == "websocket" else REQUEST
        cut, task = Cut(), asyncio.current_task()
        try:
            tracked = self._connections.request(request.protocol, _name(request), kind, cut=cut, owner=task)
        except DrainingError:
            return _stopped()

        def over(_: object) -> None:
            self._cuts.discard(cut)
            tracked.done()

        self._cuts.add(cut)
        if task is not None:  # there is one: this is a coroutine function that aiohttp calls
            task.add_done_callback(over)
        token = in_request.set(INSIDE)
        try:
            return await handler(request)
        except asyncio.CancelledError:
            if request.writer.output_size or kind == CONNECTION or not cut.uncancel():
                raise
            return _stopped()
        finally:
            in_request.reset(token)

    async def preparing(self, request: Any, response: Any) -> None:
        """on_response_prepare: say that the connection ends with this answer (RFC 9112, 9.6)."""
        if self._service.draining() and response.status != 101:
            response.force_close()
            if request.version >= (1, 1):
                response.headers["Connection"] = "close"

    def answer_health(self) -> Any:
        """Answer for the health path."""
        draining = self._service.draining()
        text = "draining\n" if draining else "ok\n"
        return _web().Response(status=503 if draining else 200, text=text, headers={"Cache-Control": "no-store"})


def _name(request: Any) -> object:
    """Return a request's label: method and route template, else method and first path segment."""
    resource = getattr(getattr(getattr(request, "match_info", None), "route", None), "resource", None)
    return RequestName(request.method, request.path, resource and resource.canonical)


def _web() -> Any:
    from aiohttp import web  # noqa: PLC0415 - the framework is loaded by its user

    return web


def _stopped() -> Any:
    """Answer in the stead of a handler that was cancelled, or that the exit would cut off."""
    response = _web().Response(status=503, text="stopped\n")
    response.force_close()
    return response


def _nothing() -> None:
    """Hear of a signal, and do nothing."""
