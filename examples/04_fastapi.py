"""A FastAPI application under uvicorn: one line, the last, and requests and their tasks hold the stop.

uvicorn --app-dir examples 04_fastapi:app
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from requiem_systemd.asgi import TrackRequests

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Own what the jobs use: it is given back after the last of them."""
    app.state.tasks = set()
    yield
    print("lifespan: shut down", flush=True)


application = FastAPI(lifespan=lifespan)


async def export() -> None:
    """Do what must not be cut off, long after the answer."""
    print("export: begun", flush=True)
    await asyncio.sleep(SECONDS)
    print("export: done", flush=True)


@application.get("/")
async def hello() -> str:
    """Answer at once."""
    return "Hello world!"


@application.get("/export")
async def start_export() -> str:
    """Begin a job, and answer at once."""
    task = asyncio.create_task(export())
    application.state.tasks.add(task)
    task.add_done_callback(application.state.tasks.discard)
    return "begun"


app = TrackRequests(application)
