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

from requiem_systemd.adapters.uvicorn import cycle
from requiem_systemd.asgi import TrackRequests
from requiem_systemd.service import Service

#: Which of uvicorn's protocols serves.
SETTINGS: Final[dict[str, Any]] = {}
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
    while not server.started:  # noqa: ASYNC110 - it has no event for this
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


def test_protocol_of_somebody_elses() -> None:
    """A protocol that is not uvicorn's own may know other things: it is not asked."""
    own: Any = uvicorn.Config(answering(), **SETTINGS)
    own.load()

    class Theirs(own.http_protocol_class):  # type: ignore[misc]
        pass

    async def cycles(protocol: type) -> type | None:
        async with served(answering(start, finish), lifespan="off") as (reader, _):
            await head(reader)
            for task in asyncio.all_tasks():
                coroutine: Any = task.get_coro()
                found = coroutine.cr_frame.f_locals.get("self")
                if isinstance(found, uvicorn.Server):
                    found.config.http_protocol_class = protocol
            return cycle(asyncio.get_running_loop())

    assert asyncio.run(cycles(own.http_protocol_class)) is sys.modules[own.http_protocol_class.__module__].RequestResponseCycle
    assert asyncio.run(cycles(Theirs)) is None
