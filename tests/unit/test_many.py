"""Thousands of tasks in flight: what the engine says of them takes it one look at the tasks, not one for each.

With a look for each, 2,000 took 13 s, and a drain's own warning made the engine miss its extensions. These tests would run into their
time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from requiem_systemd import AbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from requiem_systemd import Service
    from requiem_systemd.testing import FakeManager

MANY = 4_000


def amid_tasks(service: Service, work: Callable[[], object]) -> None:
    """Do something in another thread while each of many tasks is inside its tracker."""

    async def job(number: int, over: asyncio.Event) -> None:
        async with service.track(f"job {number}"):
            await over.wait()

    async def main() -> None:
        over = asyncio.Event()
        tasks = [asyncio.create_task(job(number, over), name=f"task-{number}") for number in range(MANY)]
        await asyncio.sleep(0)
        await asyncio.to_thread(work)
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_in_flight(service: Service) -> None:
    """Each is shown as its task's."""
    owners: list[str] = []
    amid_tasks(service, lambda: owners.extend(job.owner for job in service.in_flight()))
    assert owners == [f"task task-{number}" for number in range(MANY)]


def test_long_drain(service: Service, manager: FakeManager, warnings_of: list[str]) -> None:
    """The warning of a drain that lasts names the oldest twenty, and says how many more there are."""

    def drain() -> None:
        manager.stop()
        manager.advance(61)

    amid_tasks(service, drain)
    (warning,) = [text for text in warnings_of if text.startswith("draining for")]
    assert '"job 19"' in warning
    assert '"job 20"' not in warning
    assert f"and {MANY - 20} more" in warning
    assert service.wait(10)


def test_abandoned(service: Service, warnings_of: list[str]) -> None:
    """Given up all at once, the first are named with their tasks, and all are counted."""

    def hurry() -> None:
        service.engine.loop.call(lambda: service.engine.heard("SIGQUIT"))

    amid_tasks(service, hurry)
    assert f"abandoned {MANY - 20} more" in warnings_of
    assert any('"job 0"' in text and "task task-0" in text for text in warnings_of)
    with contextlib.suppress(AbandonedError):
        service.wait(10)
    assert len(service.engine.drain.limits.abandoned) == MANY
