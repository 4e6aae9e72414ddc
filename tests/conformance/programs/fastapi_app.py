"""A FastAPI application with background tasks; what is ours is its last line."""

import asyncio
import contextlib
import time

from fastapi import BackgroundTasks, FastAPI

from record import job as work
from record import record
from requiem_systemd.asgi import TrackRequests


@contextlib.asynccontextmanager
async def lifespan(_):
    """Start and shut down."""
    record("startup")
    yield
    record("shutdown")


api = FastAPI(lifespan=lifespan)


async def awaited(seconds):
    """Work, in the loop."""
    record("begun awaited")
    await asyncio.sleep(seconds)
    record("ended awaited")


@api.get("/job")
async def job(s: float, background: BackgroundTasks):
    """Answer, then work: in the loop, and after that in a thread."""
    background.add_task(awaited, s)
    background.add_task(work, "threaded", 1)
    return {}


@api.get("/slow")
def slow(s: float):
    """Work in a thread, then answer."""
    time.sleep(s)
    return {}


app = TrackRequests(api)
