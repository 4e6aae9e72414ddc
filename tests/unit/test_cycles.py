"""Servers in asyncio's loops: what stands for a request goes with it, and is not left to the collector, which would take longer than the request."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any, Final

import pytest

from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS: Final = 5


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service that takes no signals."""
    made = Service(environ={}, signals=False)
    yield made
    made.close()


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """Have nothing collected meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def ask(port: int) -> None:
    """Ask some times on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(REQUESTS):
        writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
    writer.close()
    await writer.wait_closed()


def left(*kinds: type) -> list[Any]:
    """Return what there is of some kinds; the last request may still be on its way out."""
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)][1:]


@pytest.mark.usefixtures("_uncollected")
def test_aiohttp(service: Service) -> None:
    """A request of aiohttp, whose task's context has what stands for it."""
    web = pytest.importorskip("aiohttp.web")
    from requiem_systemd.adapters.aiohttpapps import Answer  # noqa: PLC0415 - it is loaded with its framework

    async def handle(_: Any) -> Any:
        return web.Response(text="ok")

    async def main() -> list[Any]:
        app = web.Application()
        app.router.add_get("/x", handle)
        runner = web.AppRunner(service.track_socket(app))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await ask(runner.addresses[0][1])
        found = left(Answer)
        await runner.cleanup()
        return found

    assert asyncio.run(main()) == []


@pytest.mark.usefixtures("_uncollected")
def test_tornado(service: Service) -> None:
    """A request of Tornado, the same."""
    web = pytest.importorskip("tornado.web")
    from tornado.httpserver import HTTPServer  # noqa: PLC0415 - may not be there
    from tornado.testing import bind_unused_port  # noqa: PLC0415 - same

    from requiem_systemd.adapters.connections import Request  # noqa: PLC0415 - same

    class Handler(web.RequestHandler):  # type: ignore[misc,name-defined] # mypy skips Tornado
        async def get(self) -> None:
            self.write("ok")

    async def main() -> list[Any]:
        server = service.track_socket(HTTPServer(web.Application([("/x", Handler)])))
        sock, port = bind_unused_port()
        server.add_sockets([sock])
        await ask(port)
        found = left(Request)
        server.stop()
        await server.close_all_connections()
        return found

    assert asyncio.run(main()) == []
