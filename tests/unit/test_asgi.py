"""`asgi` without a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from requiem_systemd.asgi import NEEDS_ASYNCIO, TrackRequests
from requiem_systemd.service import Service


def test_without_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """Under another loop (trio) the server is told not to start, and one line says why."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with caplog.at_level(logging.ERROR), pytest.raises(StopIteration):
        TrackRequests(app, service=Service(environ={}))({"type": "lifespan"}, receive, send).send(None)
    assert sent == [{"type": "lifespan.startup.failed", "message": NEEDS_ASYNCIO}]
    assert [record.message for record in caplog.records] == [NEEDS_ASYNCIO]


async def _drive(app: TrackRequests, scope: Any) -> None:
    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        return

    await app(scope, receive, send)


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service that takes no signals."""
    made = Service(environ={}, signals=False)
    yield made
    made.close()


def test_request_is_seen(service: Service) -> None:
    """A request holds with its label, kind and task; the one that hangs is named, not another that has only got its `send`."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def stream(send: Any) -> None:
            await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b""})

        streaming = [asyncio.create_task(stream(send), name="streaming") for _ in range(5)]
        await asyncio.sleep(0)
        seen.extend(job for job in await asyncio.to_thread(service.in_flight) if job.kind == "request")
        await asyncio.gather(*streaming)

    async def main() -> None:
        serving = asyncio.get_running_loop().create_task(
            _drive(TrackRequests(app, service=service, tasks=False), {"type": "http", "method": "GET", "path": "/a/b"}), name="serving"
        )
        await serving

    asyncio.run(main())
    assert [(job.label, job.kind, job.owner) for job in seen] == [("GET /a/…", "request", "task serving")]
    assert service.in_flight() == ()


def test_another_loop(service: Service) -> None:
    """The application serves in a second loop when the first one is closed: its tasks are tracked there too."""
    held: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.create_task(asyncio.sleep(0), name="job")
        held.extend(job.label for job in service.in_flight() if job.kind == "job")
        await task

    tracked = TrackRequests(app, service=service)
    for _ in range(2):
        asyncio.run(_drive(tracked, {"type": "http", "method": "GET", "path": "/"}))
    assert held == ["sleep", "sleep"]


def test_what_follows_a_request_is_no_job(service: Service) -> None:
    """Called by a test's client, which goes on in the same context: what that begins afterwards holds nothing."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    async def main() -> tuple[object, ...]:
        await _drive(TrackRequests(app, service=service), {"type": "http", "method": "GET", "path": "/"})
        task = asyncio.create_task(asyncio.sleep(0))
        held = service.in_flight()
        await task
        return held

    assert asyncio.run(main()) == ()


def test_another_loop_after_a_server(service: Service) -> None:
    """A second server, in a loop of its own, serves the application when the first has ended: its tasks are tracked there too."""
    held: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            task = asyncio.create_task(asyncio.sleep(0), name="job")
            held.extend(job.label for job in service.in_flight() if job.kind == "job")
            await task
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.create_task(_drive(tracked, {"type": "http", "method": "GET", "path": "/"}))

    async def serve() -> None:
        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            return

        await tracked({"type": "lifespan"}, receive, send)

    tracked = TrackRequests(app, service=service)
    for _ in range(2):
        asyncio.run(serve())
        asyncio.run(_drive(tracked, {"type": "http", "method": "GET", "path": "/"}))
    assert held == ["sleep"] * 4
