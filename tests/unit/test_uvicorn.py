"""What uvicorn knows of its answers, and we ask it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from requiem_systemd.adapters.tasks import track_tasks
from requiem_systemd.adapters.uvicorn import own_send
from requiem_systemd.asgi import TrackRequests
from requiem_systemd.service import Service

#: Which of uvicorn's protocols serves.
SETTINGS: Final[dict[str, Any]] = {}
UPGRADE: Final = (
    b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
LEGACY: Final = pytest.mark.filterwarnings("ignore:.*implementation is deprecated", "ignore::DeprecationWarning")  # but it is still there
OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


@pytest.fixture(autouse=True, params=["h11", "httptools"])
def _protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have either protocol serve."""
    pytest.importorskip(request.param)
    monkeypatch.setitem(SETTINGS, "http", request.param)


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service that takes no signals."""
    made = Service(environ={}, signals=False)
    yield made
    made.close()


def answering(*steps: Callable[[Any], Awaitable[object]]) -> Any:
    """Return an application that takes these steps with its `send`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        for step in steps:
            await step(send)

    return app


def middleware(app: Any) -> Any:
    """Return an application around one, with a `send` of its own."""

    async def around(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            await send(message)

        await app(scope, receive, sending)

    return around


@contextlib.asynccontextmanager
async def served(app: Any, **settings: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Run a server, and yield a connection to it that has asked."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **SETTINGS, **settings))
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110 - it has no event for this
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    yield reader, writer
    writer.close()
    server.should_exit = True
    await serving


async def head(reader: asyncio.StreamReader) -> bytes:
    """Return the head of the next answer, and read its body."""
    found = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(2) == b"ok"
    return found


async def start(send: Any) -> None:
    """Begin to answer."""
    await send(dict(OK))


async def finish(send: Any) -> None:
    """Answer the rest."""
    await send({"type": "http.response.body", "body": b"ok"})


def beginning(service: Service) -> Callable[[Any], Awaitable[object]]:
    """Return a step: the drain begins."""

    async def begin(_: Any) -> None:
        service.begin("a test")
        await asyncio.to_thread(service.engine.begun.wait)

    return begin


@pytest.mark.parametrize("between", [lambda app: app, middleware], ids=["uvicorn", "middleware"])
def test_whose_send(service: Service, between: Any) -> None:
    """The application has uvicorn's own `send`; ours stands around that of a middleware, which knows nothing."""
    names: list[str] = []

    async def note(send: Any) -> None:
        names.append(type(send.__self__).__name__)

    async def main() -> None:
        async with served(between(TrackRequests(answering(note, start, finish), service=service))) as (reader, _):
            await head(reader)

    asyncio.run(main())
    assert names == ["RequestResponseCycle" if between is not middleware else "Exchange"]


@pytest.mark.parametrize("between", [lambda app: app, middleware], ids=["uvicorn", "middleware"])
def test_announces_close(service: Service, between: Any) -> None:
    """An answer that begins after the drain has says that its connection is closed, whoever's `send` the application has; once."""

    async def main() -> bytes:
        app = TrackRequests(answering(beginning(service), start, finish), service=service)
        async with served(between(app)) as (reader, _):
            found = await head(reader)
            assert await reader.read() == b""
            return found

    assert asyncio.run(main()).count(b"connection: close\r\n") == 1


def test_next_request_in_the_drain(service: Service) -> None:
    """So does an answer to a request that came after the begin, on a connection that was idle."""

    async def main() -> bytes:
        app = TrackRequests(answering(start, finish), service=service)
        async with served(app) as (reader, writer):
            assert b"connection: close" not in await head(reader)
            await beginning(service)(None)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return await head(reader)

    assert b"connection: close\r\n" in asyncio.run(main())


@pytest.mark.parametrize("between", [lambda app: app, middleware], ids=["uvicorn", "middleware"])
def test_after_the_answer(service: Service, between: Any) -> None:
    """What goes on after its answer is a job, and no longer a request that request_timeout lets go."""
    kinds: list[str] = []

    async def note(_: Any) -> None:
        kinds.extend(job.kind for job in await asyncio.to_thread(service.in_flight))

    async def main() -> None:
        async with served(between(TrackRequests(answering(note, start, note, finish, note), service=service))) as (reader, _):
            await head(reader)

    asyncio.run(main())
    assert kinds == ["request", "request", "job"]


@pytest.mark.parametrize(("steps", "status"), [((), b"503"), ((start,), b"200")], ids=["before", "within"])
@pytest.mark.parametrize("between", [lambda app: app, middleware], ids=["uvicorn", "middleware"])
def test_let_go(between: Any, steps: Any, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is let go is answered with 503 if nothing was answered; uvicorn complains of no second answer."""
    service = Service(environ={}, signals=False, request_timeout=0.05)

    async def hang(_: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> bytes:
        app = TrackRequests(answering(*steps, beginning(service), hang), service=service)
        async with served(between(app)) as (reader, _):
            return await reader.read()

    found = asyncio.run(main())
    service.close()
    assert found.split()[1] == status
    assert (b"connection: close\r\n" in found) == (status == b"503")  # what has begun cannot say so any more
    assert "Exception in ASGI application" not in caplog.text


def test_protocol_of_somebody_elses(service: Service) -> None:
    """A protocol that is not uvicorn's own may know other things: it is not asked."""
    own: Any = uvicorn.Config(answering(), **SETTINGS)
    own.load()

    class Theirs(own.http_protocol_class):  # type: ignore[misc]
        pass

    async def sending(protocol: type) -> object:
        track_tasks(asyncio.get_running_loop(), service)
        async with served(answering(start, finish), lifespan="off") as (reader, _):
            await head(reader)
            for task in asyncio.all_tasks():
                coroutine: Any = task.get_coro()
                found = coroutine.cr_frame.f_locals.get("self")
                if isinstance(found, uvicorn.Server):
                    found.config.http_protocol_class = protocol
            return own_send(asyncio.get_running_loop())

    assert asyncio.run(sending(own.http_protocol_class)) is sys.modules[own.http_protocol_class.__module__].RequestResponseCycle.send
    assert asyncio.run(sending(Theirs)) is None


def begins(jobs: list[str], *, service: Service) -> Callable[[Any], Awaitable[object]]:
    """Return a step that begins a task, and notes what is in flight of it and, when that has ended, of nothing else."""

    async def export() -> None:
        await asyncio.sleep(0)

    async def step(_: Any) -> None:
        task = asyncio.create_task(export())
        jobs.extend(job.label for job in service.in_flight() if job.kind == "job")
        await task

    return step


@pytest.mark.parametrize("settings", [{}, {"reset_contextvars": True}], ids=["as it is", "reset_contextvars"])
@pytest.mark.parametrize("between", [lambda app: app, middleware], ids=["uvicorn", "middleware"])
def test_tasks_of_a_request(service: Service, between: Any, settings: Any) -> None:
    """A task that a request begins is a job; the one that answers the request is none, nor a pipelined one's."""
    jobs: list[str] = []

    async def main() -> None:
        app = TrackRequests(answering(begins(jobs, service=service), start, finish), service=service)
        async with served(between(app), **settings) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2)
            for _ in range(3):
                await head(reader)

    asyncio.run(main())
    assert jobs == ["begins.<locals>.export"] * 3


def test_tasks_under_a_factory_of_the_users(service: Service) -> None:
    """So it is where the tasks are made by somebody else's factory."""
    jobs: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(lambda loop, coro, **kwargs: asyncio.Task(coro, loop=loop, **kwargs))
        async with served(TrackRequests(answering(begins(jobs, service=service), start, finish), service=service)) as (reader, _):
            await head(reader)

    asyncio.run(main())
    assert jobs == ["begins.<locals>.export"]


def test_tasks_of_other_servers_in_the_loop(service: Service) -> None:
    """What a server that the application starts begins for its connections holds nothing."""
    jobs: list[str] = []

    async def converse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        jobs.extend(job.label for job in service.in_flight() if job.kind == "job")
        writer.close()

    async def main() -> None:
        async with served(TrackRequests(answering(start, finish), service=service)) as (reader, _):
            await head(reader)
            other = await asyncio.start_server(converse, "127.0.0.1", 0)
            theirs, ours = await asyncio.open_connection(*other.sockets[0].getsockname())
            await theirs.read()
            ours.close()
            other.close()

    asyncio.run(main())
    assert jobs == []


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto", pytest.param("websockets", marks=LEGACY)])
def test_tasks_of_a_websocket(service: Service, ws: str) -> None:
    """A WebSocket holds as a connection; what the server itself begins for it is no job, what the application begins is."""
    pytest.importorskip(ws.partition("-")[0])
    held: list[tuple[str, str]] = []

    async def export() -> None:
        held.extend((job.kind, job.label) for job in service.in_flight())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.create_task(export())
        await send({"type": "websocket.close"})

    async def main() -> None:
        async with served(TrackRequests(app, service=service), ws=ws) as (_, first):
            reader, writer = await asyncio.open_connection(*first.get_extra_info("peername"))
            writer.write(UPGRADE)
            assert b"101" in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.close()

    asyncio.run(main())
    assert held == [("connection", "WEBSOCKET /"), ("job", "test_tasks_of_a_websocket.<locals>.export")]
