"""ASGI: every request holds the stop, and so does every task that a request has started.

Source: the ASGI specification 3.0, "HTTP & WebSocket" 2.4 and "Lifespan" 2.0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from threading import get_ident
from typing import Any, Final, cast

from requiem_systemd import journal
from requiem_systemd.adapters import asgiservers
from requiem_systemd.adapters.tasks import INSIDE, in_request, latched, track_tasks
from requiem_systemd.errors import DrainingError, NotMainThreadError
from requiem_systemd.ledger import CONNECTION, JOB, REQUEST, Ledger, Whole
from requiem_systemd.protocol import length
from requiem_systemd.report import first_segment, health_path
from requiem_systemd.service import Service, process

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG: Final = logging.getLogger("requiem_systemd")
NEEDS_ASYNCIO: Final = "TrackRequests needs asyncio; start the server with an asyncio worker (hypercorn: --worker-class asyncio or uvloop, not trio)"
_NOBODYS: Final = object()
_KINDS: Final = {"http": REQUEST, "websocket": CONNECTION}


class Exchange(Whole):
    """One request or WebSocket: what the ledger has and shows of it, and what it sends.

    Its label is method and route template, else method and first path segment; never its arguments. One object for all of this, with
    slots and no `__init__`: each call for a request costs a percent of what a server can do, and so does a dict.
    """

    __slots__ = ("_sending", "cut", "of", "pass_on", "scope")

    scope: Scope
    pass_on: Send
    of: TrackRequests
    cut: asyncio.Task[Any]  # set: it was cancelled
    _sending: Awaitable[None] | None  # what sends the last of the answer; None: it is not over; not set: it has not begun

    def __str__(self) -> str:
        scope = self.scope
        if self.of.label is not None:
            return self.of.label(scope)
        route = getattr(scope.get("route"), "path", None)  # Starlette and FastAPI fill it in when they have matched
        return f"{scope.get('method', 'WEBSOCKET')} {route or first_segment(scope.get('path', ''))}"

    def send(self, message: Message) -> Awaitable[None]:
        """Send what the application sends; from the begin of the drain HTTP/1 answers announce the connection's end."""
        pass_on = self.pass_on  # on its own: CPython 3.11 looks for a method first where an attribute is called
        if message["type"] == "http.response.body":
            sending = pass_on(message)
            if not message.get("more_body"):
                self._sending = sending
            return sending
        if self.of.ledger.began is not None and message["type"] == "http.response.start" and self.scope.get("http_version", "1.1") < "2":
            message["headers"] = _closing(message.get("headers", ()))
        self._sending = None
        return pass_on(message)

    @property
    def kind(self) -> str:  # type: ignore[override] # written by nobody else
        """What it counts as: when the answer is out, what the application still does is a job.

        Seen when somebody asks: a coroutine that is over has no frame; one of our own around it would cost every request.
        """
        sending = getattr(self, "_sending", None)
        return _KINDS[self.scope["type"]] if sending is None or getattr(sending, "cr_frame", None) is not None else JOB

    @property
    def owner(self) -> int:
        """The thread that its loop runs in."""
        return self.of.ident

    @property
    def loop(self) -> Any:
        """Where it runs: see stacks.task_of."""
        return self.of.loop

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer was sent."""
        return hasattr(self, "_sending")

    def let_go(self, owner: object) -> None:
        """Cancel it: the server would wait for it for ever."""
        if isinstance(owner, asyncio.Task):
            self.cut = owner
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                owner.get_loop().call_soon_threadsafe(owner.cancel)

    async def uncancel(self) -> None:
        """Go on after our own cancellation: answer, if nothing was answered."""
        self.cut.uncancel()
        if not self.has_begun and self.scope["type"] == "http":
            await _answer(self.send, 503, b"stopped\n")


class Straight(Exchange):
    """One whose server knows how far its answer is: until the drain begins, the application has the server's own `send`.

    Ours around it would cost a percent of what the server can do; so would the mark of its tasks, which its connection has. `of` is an
    attribute of a class that each TrackRequests makes.
    """

    __slots__ = ()

    @property
    def scope(self) -> Scope:  # type: ignore[override] # written by nobody else
        """The request's."""
        return cast("Scope", self._cycle.scope)

    @property
    def kind(self) -> str:  # type: ignore[override] # written by nobody else
        """See Exchange."""
        return JOB if self._cycle.response_complete else REQUEST

    @property
    def has_begun(self) -> bool:
        """See Exchange."""
        return bool(self._cycle.response_started)

    @property
    def _cycle(self) -> Any:
        send: Any = self.pass_on
        return send.__self__

    def announce_end(self) -> None:
        """Have the server say that the connection ends with this answer, if it is still to begin."""
        self._cycle.default_headers = _closing(self._cycle.default_headers)


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
        self.app = app
        self._health = health_path(health)
        self.label = label
        self._tasks = tasks
        self._grace = length("keepalive_grace", keepalive_grace)
        self._service = service
        self._hooks: object = None  # of the service as it was armed: a fork's child, and a closed one, has others
        self.ledger: Ledger = service.ledger
        self._serving = False  # a server runs this application
        self._straight: object = _NOBODYS  # the function of the server's own `send`, where that knows how far the answer is
        self._entry: type[Straight] = type("Straight", (Straight,), {"__slots__": (), "of": self})
        self.loop: Any = None
        self.ident: int = 0  # of the loop's thread
        asgiservers.expect(self._start)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        exchange: Exchange
        token = None
        if getattr(send, "__func__", None) is self._straight and scope["path"] != self._health:  # only HTTP's, and while a server runs it
            exchange, sending = self._entry(), send
        else:
            if (not self._serving or scope["type"] != "http" or scope["path"] == self._health) and await self._seldom(scope, receive, send):
                return
            exchange = Exchange()
            exchange.scope, exchange.of = scope, self
            sending, token = exchange.send, in_request.set(INSIDE)
        exchange.pass_on = send
        ledger, app = self.ledger, self.app  # see Exchange.send
        clock, live = ledger.clock, ledger.live
        live[exchange] = clock()
        if ledger.alert:
            if not await self._admits(exchange):
                return
            sending = exchange.send
        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:
            if not hasattr(exchange, "cut"):
                raise
            await exchange.uncancel()
        finally:
            live.pop(exchange, None)
            if ledger.alert:
                ledger.left(exchange, was_in=True)
            if token is not None and not self._serving:  # a server has a context for each request, a test's client may go on in this one
                in_request.reset(token)

    async def _seldom(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve what is not tracked, and say whether this was such; for all else, see to it that the service is armed."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind not in _KINDS:
            await self.app(scope, receive, send)
        elif self._health is not None and kind == "http" and scope["path"] == self._health:
            await self._answer_health(send)
        else:
            if not self._serving:
                self._arm()  # asks for the running loop, which costs as much as a third of all this (CPython 3.11: getpid)
            return False
        return True

    # -- requests ------------------------------------------------------------------------------------------------------

    async def _admits(self, exchange: Exchange) -> bool:
        """Say whether the ledger takes it; else it is answered."""
        try:
            self.ledger.check(exchange)
        except DrainingError:
            if exchange.scope["type"] != "http":
                raise
            await _answer(exchange.send, 503, b"stopped\n")
            return False
        return True

    def _announce_ends(self) -> None:
        """Have the answers that are under way at the begin of the drain say that the connection ends; in the engine's thread."""
        for entry in list(self.ledger.live):
            if isinstance(entry, self._entry):
                entry.announce_end()

    async def _answer_health(self, send: Send) -> None:
        draining = self._service.draining()
        await _answer(send, 503 if draining else 200, b"draining\n" if draining else b"ok\n")

    # -- lifespan ------------------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _in_asyncio():
            LOG.error(NEEDS_ASYNCIO, extra=journal.record("mistake"))
            await receive()
            await send({"type": "lifespan.startup.failed", "message": NEEDS_ASYNCIO})
            return
        self._serve()
        try:
            with self._service.keeping_main():  # the server makes it leave, after its own shutdown
                await self._live(scope, receive, send)
        finally:
            self._serving, self._straight = False, _NOBODYS

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the application's lifespan on: its startup says READY=1, its shutdown waits for the jobs."""
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
                self._straight = asgiservers.own_send(self.loop) or _NOBODYS
                self._service.ready()

        try:
            await self.app(scope, receiving, sending)
        except Exception:  # an application that knows no lifespan raises: the protocol is kept for it
            if started:
                raise
        if not started:
            await _keep_lifespan(receiving, sending)

    def _start(self) -> None:
        """Begin under a server that knows no lifespan; called in its loop."""
        self._serve()
        self._service.ready()

    def _serve(self) -> None:
        self._arm()
        self._serving = True

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        if self.loop is loop and self._service.hooks is self._hooks:
            return
        self.loop, self.ident = loop, get_ident()
        try:
            self._service.arm()
        except NotMainThreadError:  # a server that runs its loop in a thread: its shutdown begins the drain
            self._service.arm(signals=False)
        self._service.hooks.loop = loop
        asgiservers.attach(self._service, loop, self._grace)
        self._service.engine.begun.then(self._announce_ends)
        if self._tasks:
            track_tasks(loop, self._service)
        self._hooks = self._service.hooks


def _in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
