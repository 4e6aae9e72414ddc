"""The server under an ASGI application, where its own way of stopping would hide what is ours."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from requiem_systemd import Service
from requiem_systemd.adapters import asgiservers
from requiem_systemd.adapters.tasks import latched
from requiem_systemd.testing import FakeManager
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


def test_loop_that_is_behind() -> None:
    """The server's own stop waits for a loop that has more to do than it can: what it has not read yet is not idle."""
    done: list[str] = []

    async def serve(service: Service) -> None:
        loop = asyncio.get_running_loop()

        def work(left: int) -> None:  # a turn each, longer than that of a loop with nothing to do
            time.sleep(2 * asgiservers.CAUGHT_UP)
            done.append("work")
            if left:
                loop.call_soon(work, left - 1)

        own = asgiservers.OwnStop(service, loop, 0.0, lambda: done.append("own stop"))
        closed = threading.Event()
        loop.call_soon(work, 9)
        service.engine.loop.post(lambda: own.shut(closed.set))
        await asyncio.to_thread(closed.wait, PATIENCE)

    with Service(environ={}, signals=False) as service:
        asyncio.run(serve(service))
    assert done == ["work"] * 10 + ["own stop"]


def test_loop_that_runs_no_more() -> None:
    """A loop that has ended is not waited for."""
    loop = asyncio.new_event_loop()
    closed = threading.Event()
    with Service(environ={}, signals=False) as service:
        own = asgiservers.OwnStop(service, loop, 0.0, bool)
        service.engine.loop.post(lambda: own.shut(closed.set))
        assert closed.wait(asgiservers.BEHIND_MAX / 2)
    loop.close()


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
