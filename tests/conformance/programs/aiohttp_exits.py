"""An aiohttp application that stops itself, in the middle of a job, as its documentation has it."""

import asyncio
import os
import sys

from aiohttp import web

import requiem_systemd as requiem
from record import record

TASKS = []


async def job():
    """Work, in a task."""
    record("begun job")
    await asyncio.sleep(3)
    record("ended job")


def leave():
    """Stop the server."""
    raise web.GracefulExit


async def handler(request):
    """Begin a job, and stop in one of two ways."""
    TASKS.append(asyncio.create_task(job()))
    if request.path == "/exit":
        asyncio.get_running_loop().call_later(0.1, leave)
    else:
        requiem.begin()
    return web.Response()


async def clean(_app):
    """Clean up, which takes a while."""
    await asyncio.sleep(1.5)
    record("cleaned")


app = web.Application()
app.router.add_get("/{way}", handler)
app.on_cleanup.append(clean)
requiem.track_socket(app)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, handle_signals="OWN_SIGNALS" not in os.environ)
record("behind run_app")
