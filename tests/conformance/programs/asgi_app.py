"""An ASGI application without a framework; what is ours is its last line."""

import asyncio
import atexit
import os
import time
import urllib.parse

from record import record

from requiem_systemd import should_stop
from requiem_systemd.asgi import TrackRequests

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


async def plain(scope, receive, send):  # noqa: C901 - one case for each path
    """Serve one scope."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path = scope["path"]
    query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
    seconds = float(query.get("s", 1))
    if scope["type"] == "websocket":
        await websocket(path, receive, send)
        return
    body = path.encode()
    match path:
        case "/slow":
            await asyncio.sleep(seconds)
        case "/job":
            begin(job(query.get("name", "job"), seconds))
            body = str(os.getpid()).encode()
        case "/block":
            asyncio.get_running_loop().call_soon(time.sleep, seconds)
        case "/chain":
            begin(chain(seconds))
        case "/fail":
            raise ZeroDivisionError
        case "/hang":
            await asyncio.sleep(1000)
        case "/stream":
            await stream(send, int(query["n"]), seconds)
            return
        case "/events":
            await events(send)
            return
        case "/flood":
            await flood(send)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    if path == "/after":
        await job("after", seconds)


async def stream(send, number, pause):
    """Answer in pieces."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in range(number):
        await send({"type": "http.response.body", "body": f"piece {piece}\n".encode(), "more_body": True})
        await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b"end\n"})


async def flood(send):
    """Answer without an end."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})


async def events(send):
    """Send events until told to stop."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while not should_stop():
        await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
        await asyncio.sleep(0.1)
    await send({"type": "http.response.body", "body": b"data: bye\n\n"})


async def websocket(path, receive, send):
    """Say when it is time to go; or, at /deaf, never."""
    await receive()
    await send({"type": "websocket.accept"})
    while path == "/deaf" or not should_stop():
        await send({"type": "websocket.send", "text": "tick"})
        await asyncio.sleep(0.1)
    await send({"type": "websocket.close", "code": 1012})


async def lifespan(receive, send):
    """Start and shut down."""
    await receive()
    record("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    record("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


@atexit.register
def leave():
    """Take as long over the exit as the environment says."""
    if "EXIT_TAKES" in os.environ:
        record("begun exit")
        time.sleep(float(os.environ["EXIT_TAKES"]))
        record("ended exit")


app = plain if "PLAIN" in os.environ else TrackRequests(plain, health="/health")
