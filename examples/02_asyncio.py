"""Jobs that are asyncio tasks: `aio.run` instead of `asyncio.run` holds the loop until the last of them has ended."""

import asyncio
import itertools
import os

import requiem_systemd as requiem
from requiem_systemd import aio

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))


async def send_mail(number: int) -> None:
    """Do what must not be cut off."""
    print(f"mail {number}: begun", flush=True)
    await asyncio.sleep(SECONDS)
    print(f"mail {number}: done", flush=True)


async def main() -> None:
    """Start a job now and then."""
    requiem.ready()
    for number in itertools.count(1):
        if requiem.should_stop():
            break
        aio.spawn(send_mail(number), f"mail {number}")
        await asyncio.sleep(SECONDS)


aio.run(main())
