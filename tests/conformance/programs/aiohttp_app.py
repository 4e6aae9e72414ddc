"""An aiohttp application; what is ours in it is the route of the health path, and what asks should_stop()."""

import asyncio

from aiohttp import web

from record import record
from requiem_systemd import should_stop
from requiem_systemd.adapters import aiohttpapps

TASKS = set()


async def job(name, seconds):
    """Work, in a task."""
    record(f"begun {name}")
    await asyncio.sleep(seconds)
    record(f"ended {name}")


async def chain(seconds):
    """Work, then have another job begin."""
    await job("first", seconds)
    begin(job("second", 1))


def begin(coroutine):
    """Have a coroutine run, and keep it."""
    task = asyncio.create_task(coroutine)
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)


async def plain(request):
    """Serve what is answered in one piece."""
    seconds = float(request.query.get("s", 1))
    match request.path:
        case "/slow":
            await asyncio.sleep(seconds)
        case "/job":
            begin(job(request.query.get("name", "job"), seconds))
        case "/chain":
            begin(chain(seconds))
        case "/fail":
            raise ZeroDivisionError
        case "/hang":
            await asyncio.sleep(1000)
    return web.Response(text=request.path)


async def stream(request):
    """Answer in pieces."""
    response = web.StreamResponse()
    await response.prepare(request)
    for piece in range(int(request.query["n"])):
        await response.write(f"piece {piece}\n".encode())
        await asyncio.sleep(float(request.query["s"]))
    await response.write(b"end\n")
    return response


async def events(request):
    """Send events until told to stop."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while not should_stop():
        await response.write(b"data: tick\n\n")
        await asyncio.sleep(0.1)
    await response.write(b"data: bye\n\n")
    return response


async def websocket(request):
    """Say when it is time to go; or, at /deaf, never."""
    if "Upgrade" not in request.headers:
        return await plain(request)
    response = web.WebSocketResponse()
    await response.prepare(request)
    while request.path == "/deaf" or not should_stop():
        await response.send_str("tick")
        await asyncio.sleep(0.1)
    await response.close(code=1012)
    return response


async def context(_app):
    """Start, and, at the end, shut down."""
    record("startup")
    yield
    await asyncio.sleep(1.5)  # longer than any grace: nothing cuts it off
    record("shutdown")


def make():
    """Make the application."""
    app = web.Application()
    app.cleanup_ctx.append(context)
    app.router.add_get("/stream", stream)
    app.router.add_get("/events", events)
    app.router.add_get("/health", aiohttpapps.health)
    app.router.add_get("/", websocket)
    app.router.add_get("/deaf", websocket)
    app.router.add_get("/{path}", plain)
    return app
