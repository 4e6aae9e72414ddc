"""An aiohttp application: requests and their tasks hold the stop, and the port is systemd's where there is a socket unit.

python examples/12_aiohttp.py
"""

import asyncio
import os

from aiohttp import web

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PORT = int(os.environ.get("EXAMPLE_PORT", "8080"))
TASKS: set[asyncio.Task[None]] = set()
routes = web.RouteTableDef()


async def export() -> None:
    """Do what must not be cut off, long after the answer."""
    print("export: begun", flush=True)
    await asyncio.sleep(SECONDS)
    print("export: done", flush=True)


@routes.get("/")
async def hello(_request: web.Request) -> web.Response:
    """Answer at once."""
    return web.Response(text="Hello world!")


@routes.get("/export")
async def start_export(_request: web.Request) -> web.Response:
    """Begin a job, and answer at once."""
    task = asyncio.create_task(export())
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)
    return web.Response(text="begun")


app = web.Application()
app.add_routes(routes)
requiem.track_socket(app)
# Passed by systemd as FileDescriptorName=http, else bound here.
web.run_app(app, sock=requiem.listener("http", fallback=("127.0.0.1", PORT)), print=None)
