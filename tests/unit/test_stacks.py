"""Whose a tracker is, where that cannot be seen from outside."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from requiem_systemd.ledger import More
from requiem_systemd.service import Service
from requiem_systemd.stacks import task_of

uvloop = pytest.importorskip("uvloop")
uvloop.new_event_loop().close()  # the first makes a pipe that stays: libuv's, for the process's signals


def test_task_of_a_loop_without_frames() -> None:
    """A loop that is written in C and that asyncio does not run shows no frame; what knows its loop is found all the same."""
    loop: Any = uvloop.new_event_loop()

    class Knows(More):
        """What knows its loop."""

        loop: Any

    hold = Service(environ={}).open("request", Knows())
    entered, seen = threading.Event(), threading.Event()

    async def work() -> None:
        async with hold:
            loop.call_soon(entered.set)
            while not seen.is_set():  # noqa: ASYNC110 - an event of a thread, in a loop that must have a task to show
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: loop.run_until_complete(loop.create_task(work(), name="mine")))
    thread.start()
    try:
        assert entered.wait(5)
        assert task_of(hold) == thread.ident
        hold.more.loop = loop  # type: ignore[attr-defined] # it is a Knows
        owner: Any = task_of(hold)
        assert owner.get_name() == "mine"
    finally:
        seen.set()
        thread.join()
        loop.close()
