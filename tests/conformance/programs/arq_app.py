"""An arq worker; what is ours is one line. Run by itself, it enqueues: FUNCTION [ARGUMENT...]."""

import asyncio
import os
import sys

from arq import create_pool
from arq.connections import RedisSettings
from record import record
from requiem_systemd import aio
from requiem_systemd.adapters.arq import hold

SETTINGS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


async def work(ctx, name, seconds):
    """Work."""
    record(f"begun {name}")
    try:
        await asyncio.sleep(float(seconds))
    except asyncio.CancelledError:
        record(f"cancelled {name}")
        raise
    record(f"ended {name}")


async def chain(ctx, seconds):
    """Work, have another job begin, and enqueue one."""
    await work(ctx, "first", seconds)
    aio.spawn(work(ctx, "second", 1), "second")
    await ctx["redis"].enqueue_job("work", "third", 0)


async def fail(ctx):
    """Raise."""
    record("failed")
    raise ZeroDivisionError


async def startup(ctx):
    """Start."""
    record("startup")


async def shutdown(ctx):
    """Shut down."""
    record("shutdown")


class WorkerSettings:
    """As arq's documentation has it."""

    functions = [work, chain, fail]  # noqa: RUF012 - as arq's documentation has it
    redis_settings = SETTINGS
    on_startup = startup
    on_shutdown = shutdown
    poll_delay = 0.1
    max_jobs = int(os.environ.get("MAX_JOBS", "10"))


WorkerSettings = hold(WorkerSettings)


async def enqueue(function, *arguments):
    """Enqueue a job."""
    pool = await create_pool(SETTINGS)
    await pool.enqueue_job(function, *arguments)
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(enqueue(*sys.argv[1:]))
