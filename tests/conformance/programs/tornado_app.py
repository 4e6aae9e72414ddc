"""A Tornado application; what is ours is the line that tracks its server, and the handler of the health path."""

import asyncio
import os
import sys

from tornado import httpserver, web, websocket

import requiem_systemd as requiem
from record import record
from requiem_systemd.adapters import tornadorequests

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


class Plain(web.RequestHandler):
    """Serves what is answered in one piece."""

    async def get(self):
        """Answer."""
        seconds = float(self.get_argument("s", "1"))
        match self.request.path:
            case "/slow":
                await asyncio.sleep(seconds)
            case "/job":
                begin(job(self.get_argument("name", "job"), seconds))
            case "/chain":
                begin(chain(seconds))
            case "/fail":
                raise ZeroDivisionError
            case "/hang":
                await asyncio.sleep(1000)
        self.write(self.request.path)


class Stream(web.RequestHandler):
    """Answers in pieces."""

    async def get(self):
        """Answer."""
        for piece in range(int(self.get_argument("n"))):
            self.write(f"piece {piece}\n")
            await self.flush()
            await asyncio.sleep(float(self.get_argument("s")))
        self.write("end\n")


class Events(web.RequestHandler):
    """Sends events until told to stop."""

    async def get(self):
        """Answer."""
        self.set_header("Content-Type", "text/event-stream")
        while not requiem.should_stop():
            self.write("data: tick\n\n")
            await self.flush()
            await asyncio.sleep(0.1)
        self.write("data: bye\n\n")


class Socket(websocket.WebSocketHandler):
    """Says when it is time to go; or, at /deaf, never."""

    async def get(self):
        """Answer, or switch protocols."""
        if "Upgrade" in self.request.headers:
            await super().get()
        else:
            self.write(self.request.path)

    async def open(self):
        """Send."""
        while self.request.path == "/deaf" or not requiem.should_stop():
            await self.write_message("tick")
            await asyncio.sleep(0.1)
        self.close(1012)


async def main():
    """Serve."""
    record("startup")
    handlers = [("/health", tornadorequests.health()), ("/stream", Stream), ("/events", Events), ("(?:/|/deaf)", Socket), ("/.+", Plain)]
    server = httpserver.HTTPServer(web.Application(handlers), ssl_options={"certfile": sys.argv[2]} if sys.argv[2:] else None)
    if "PLAIN" not in os.environ:
        requiem.track_socket(server)
    if sys.argv[1:]:
        server.listen(int(sys.argv[1]), "127.0.0.1")
    else:
        server.add_sockets([requiem.listener("http")])
    requiem.ready()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(1.5)  # longer than any grace: nothing cuts it off
        record("shutdown")


requiem.aio.run(main())
