"""The server under an ASGI application, where its own way of stopping would hide what is ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from requiem_systemd import Service
from requiem_systemd.adapters import asgiservers
from requiem_systemd.adapters.tasks import latched
from requiem_systemd.testing import FakeManager

if TYPE_CHECKING:
    from pathlib import Path


def test_unix_listener(tmp_path: Path) -> None:
    """A listener with a path is closed by the drain like one with a port."""

    async def serve(service: Service) -> bool:
        loop = asyncio.get_running_loop()
        asgiservers.attach(service, loop, 0.0)
        server = await loop.create_unix_server(asyncio.Protocol, str(tmp_path / "http"))
        service.begin()
        await latched(service.engine.stopped)
        return server.is_serving()

    with FakeManager() as manager:
        service = manager.arm(Service())
        service.ready()
        assert asyncio.run(serve(service)) is False
