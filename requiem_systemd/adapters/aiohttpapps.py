"""aiohttp: `track_socket(app)` before `web.run_app(app)`, or `track_socket(runner)` before `await runner.setup()`.

- A request holds the stop until its answer is out, and so does every task that a request has started, as a job. What is let go after
  `request_timeout` is cancelled; a WebSocket may hold as long as a request.
- Each listener is closed at the begin; none that was passed is made to listen anew with a smaller backlog.
- Under `run_app` the service is armed when the application starts, and READY=1 is said when its first listener is open. `run_app`'s own
  stop (GracefulExit: `on_shutdown`, `on_cleanup`, `cleanup_ctx`, its `shutdown_timeout`, the cancelling of all tasks) comes when the
  ledger is empty, in the stead of its signal handlers; where somebody else raises it before, it is kept back until then.
- Under a runner all that is yours: `initialize()` or `aio.run`, `ready()` when its sites are started, `runner.cleanup()` at the end.
- `app.router.add_get("/health", requiem_systemd.adapters.aiohttpapps.health)` answers 200, from the begin of the drain 503, and holds nothing.

A request is met where its connection has its task run (`RequestHandler._handle_request`, read from aiohttp 3.8 to 3.14): a middleware, a signal
at each answer and a callback of each task would cost a third of what such a server can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from requiem_systemd.adapters.asgiservers import hang_up, keep_backlog
from requiem_systemd.adapters.connections import Connections, Request, RequestName
from requiem_systemd.adapters.tasks import INSIDE, Inside, Unseen, in_request, is_plain, latched, track_tasks
from requiem_systemd.errors import DrainingError, NotMainThreadError
from requiem_systemd.gate import SIGNALS, name_of
from requiem_systemd.hooks import running_loop
from requiem_systemd.ledger import CONNECTION, REQUEST, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable


def application(service: Any, app: Any, grace: float) -> None:
    """Have the drain see to an application; RuntimeError if it is set up already."""
    if app.pre_frozen:
        msg = "track_socket(Application): the application is set up already; call it before run_app() or runner.setup()"
        raise RuntimeError(msg)
    tracked = App(service, grace, lambda handler: getattr(handler, "__self__", None) is app)
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
    theirs = runner._web_server.request_handler  # noqa: SLF001 - runner.server is None before setup()
    App(service, grace, lambda handler: handler is theirs).watch(loop)


async def health(request: Any) -> Any:
    """Answer for the health path, in a route: 200, from the begin of the drain 503. It holds nothing."""
    app: App | None = getattr(request.protocol, "requiem", None)
    if app is None:
        msg = "aiohttpapps.health answers for an application that is tracked; call track_socket(app) before run_app()"
        raise RuntimeError(msg)
    return app.answer_health(request.protocol)


class Answer(Request, Inside):
    """One request, while the task runs that answers it and writes the answer out. `of` is an attribute of a class that each App makes."""

    __slots__ = ("cutting", "request")

    of: App
    request: Any
    cutting: bool  # set: its task was cancelled by us

    def __str__(self) -> str:
        request = self.request
        resource = getattr(getattr(getattr(request, "match_info", None), "route", None), "resource", None)
        return str(RequestName(request.method, request.path, resource and resource.canonical))

    @property
    def kind(self) -> str:  # type: ignore[override] # written by nobody else
        """What it counts as."""
        return CONNECTION if self.request.headers.get("Upgrade", "").lower() == "websocket" else REQUEST

    def let_go(self, owner: object = None) -> None:
        """Cancel it: see Terms."""
        del owner
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self.owner.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if not self.owner.done():
            self.cutting = True
            self.owner.cancel()

    def may_still_answer(self) -> bool:
        """Say whether it was cancelled by us with nothing answered; then it goes on."""
        if not hasattr(self, "cutting") or self.request.writer.output_size or self.kind == CONNECTION:
            return False
        self.owner.uncancel()
        return True

    def announce_end(self) -> None:
        """Have its answer say that the connection ends, if that is still to begin (RFC 9112, 9.6); in any thread."""
        self.request._message = self.request._message._replace(should_close=True)  # noqa: SLF001 - it is asked when the answer is prepared


def _watched(kind: Any, app: App, *, marked: bool) -> type:
    """Make the subclass of a class of connections whose requests an application hears of; `marked`: their contexts say so already."""
    handle, ledger, loop = kind._handle_request, app.ledger, app.loop  # noqa: SLF001 - see the top
    clock, live = ledger.clock, ledger.live  # on its own: see asgi.Exchange.send
    make: Any = type("Answer", (Answer,), {"__slots__": (), "of": app})

    class Watched(kind):  # type: ignore[misc] # of whatever class there is
        __slots__ = ()
        requiem = app

        async def _handle_request(self, request: Any, start_time: Any, request_handler: Any) -> Any:
            answer = make()
            answer.request, answer.owner = request, _current(loop)
            live[answer] = clock()
            if ledger.alert and not app.admits(answer):
                return await handle(self, request, start_time, _say_stopped)
            if not marked:
                in_request.set(answer)  # it has a task, and so a context, of its own
            try:
                return await handle(self, request, start_time, request_handler)
            except asyncio.CancelledError:
                if self._handler_waiter is not None or not answer.may_still_answer():
                    raise
                return await handle(self, request, start_time, _say_stopped)
            finally:
                if not ledger.alert:
                    live.pop(answer, None)
                if ledger.alert:  # where it was before, the connection holds before the request ceases to
                    app.connections.leave(answer)
                answer.owner = None  # whose context has it: a cycle, which the collector would have to find

    Watched.__name__, Watched.__qualname__, Watched.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Watched


class App:
    """One application, or one low-level server. `is_ours` knows the handler of all its requests."""

    def __init__(self, service: Any, grace: float, is_ours: Callable[[Any], bool]) -> None:
        """Store."""
        self._service = service
        self._grace = grace
        self._is_ours = is_ours
        self.ledger: Ledger = service.ledger
        self.connections: Connections
        self.loop: Any = None
        self._unseen: Unseen | None = None
        self._watched: dict[tuple[type, bool], type] = {}
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
        self.loop = loop
        self.connections = Connections(self._service, "aiohttp", self._grace, loop.call_soon_threadsafe, loop.call_later)
        self.connections.missing = self._join
        if sys.version_info < (3, 12):  # from 3.12 on aiohttp makes them without the loop
            self._unseen = Unseen(loop)
        track_tasks(loop, self._service)
        for name in ("create_server", "create_unix_server"):
            if hasattr(loop, name):
                setattr(loop, name, functools.partial(self._create, getattr(loop, name)))

        def stopped() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._stopped)

        self._service.engine.begun.then(self._announce_ends)
        self._service.engine.stopped.then(stopped)

    def _stopped(self) -> None:
        for answer in self._answers():  # abandoned: cleanup() would wait for them, for shutdown_timeout
            answer.let_go()
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
            marked = self._unseen is not None and is_plain(self.loop)
            kind: Any = type(protocol)
            if (kind, marked) not in self._watched:
                self._watched[kind, marked] = _watched(kind, self, marked=marked)
            protocol.__class__ = self._watched[kind, marked]
            if marked:  # its task, which makes those of the requests, begins after this
                protocol._loop = self._unseen  # noqa: SLF001
                in_request.set(INSIDE)
            self.connections.opened(protocol, transport.get_extra_info("socket"), functools.partial(_close, protocol, transport))

        def connection_lost(protocol: Any, error: BaseException | None = None) -> None:
            lost(protocol, error)
            self.connections.closed(protocol)

        manager.connection_made, manager.connection_lost = connection_made, connection_lost

    # -- requests ------------------------------------------------------------------------------------------------------

    def admits(self, answer: Answer) -> bool:
        """Say whether one that is in the ledger may stay there, now that somebody looks; see to it that its connection ends with it."""
        try:
            self.ledger.check(answer)
        except DrainingError:
            return False
        self.connections.join(answer, answer.request.protocol)
        if self.ledger.began is not None:
            answer.announce_end()
        return True

    def _answers(self) -> list[Answer]:
        return [entry for entry, _ in self.ledger.entries() if isinstance(entry, Answer) and entry.of is self]

    def _announce_ends(self) -> None:
        for answer in self._answers():  # in the engine's thread
            answer.announce_end()

    def _join(self) -> None:
        for answer in self._answers():
            self.connections.join(answer, answer.request.protocol)

    def answer_health(self, protocol: Any) -> Any:
        """Answer for the health path, which holds nothing."""
        for answer in self._answers():
            if answer.request.protocol is protocol:  # one at a time
                self.connections.leave(answer)
        draining = self.ledger.began is not None
        text = "draining\n" if draining else "ok\n"
        return _web().Response(status=503 if draining else 200, text=text, headers={"Cache-Control": "no-store"})


# That of CPython 3.11 is a function of Python's, which costs as much as the entry in the ledger.
_current: Any = asyncio.current_task if isinstance(asyncio.current_task, BuiltinFunctionType) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined] # noqa: SLF001


def _close(protocol: Any, transport: Any) -> None:
    """Close an idle connection."""
    protocol.force_close()
    hang_up(transport)


def _web() -> Any:
    from aiohttp import web  # noqa: PLC0415 - the framework is loaded by its user

    return web


async def _say_stopped(_request: Any) -> Any:
    """Answer in the stead of a handler that was cancelled, or that the exit would cut off."""
    response = _web().Response(status=503, text="stopped\n")
    response.force_close()
    return response


def _nothing() -> None:
    """Hear of a signal, and do nothing."""
