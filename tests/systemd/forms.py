"""A service for every form of tracker, each with a job that lasts 6 s past the begin of the stop."""

from __future__ import annotations

import textwrap
from typing import Final

#: What all begin with: `work` and `awork` are jobs of three times TimeoutStopSec=2, counted from the begin.
COMMON: Final = """
import asyncio, contextlib, multiprocessing, os, socket, subprocess, sys, threading, time
import requiem_systemd as requiem
from requiem_systemd import aio

def work():
    requiem.ready()
    requiem.wait_begin()
    time.sleep(6)
    print("job done")

async def awork():
    requiem.ready()
    await aio.wait_begin()
    await asyncio.sleep(6)
    print("job done")

def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args, daemon=True)  # it is the tracker that holds
    thread.start()
    return thread

stay = threading.Event().wait

def stay_until_told():
    open(os.environ["RUNTIME_DIRECTORY"] + "/end").close()  # a FIFO: comes back when it was opened for writing
"""

THREADS: Final = {
    "with": """
        def job():
            with requiem.track("job"):
                work()
        requiem.initialize()
        in_thread(job)
        stay()
    """,
    "with-in-main": """
        requiem.initialize()
        with requiem.track("job"):
            work()
        stay()
    """,
    "decorated-function": """
        requiem.initialize()
        in_thread(requiem.track("job")(work))
        stay()
    """,
    "decorated-bare": """
        @requiem.track
        def job():
            work()
        requiem.initialize()
        in_thread(job)
        stay()
    """,
    "decorated-generator": """
        @requiem.track("job")
        def job():
            yield
            work()
            yield
        requiem.initialize()
        in_thread(list, job())
        stay()
    """,
    "future": """
        from concurrent.futures import ThreadPoolExecutor
        requiem.initialize()
        requiem.track(ThreadPoolExecutor().submit(work))
        stay()
    """,
    "thread": """
        requiem.initialize()
        requiem.track(in_thread(work))
        requiem.wait()
    """,
    "thread-not-started": """
        requiem.initialize()
        requiem.track(threading.Thread(target=work, daemon=True)).start()
        stay()
    """,
    "process": """
        def child(begun):
            begun.wait()
            time.sleep(6)
            print("job done", flush=True)
        if __name__ == "__main__":
            requiem.initialize()
            begun = multiprocessing.Event()
            requiem.on("begin", lambda: begun.set())
            requiem.track(multiprocessing.Process(target=child, args=(begun,), daemon=True)).start()
            requiem.ready()
            stay()
    """,
    "process-spawned": """
        def child(begun):
            begun.wait()
            time.sleep(6)
            print("job done", flush=True)
        if __name__ == "__main__":
            requiem.initialize()
            context = multiprocessing.get_context("spawn")
            begun = context.Event()
            requiem.on("begin", lambda: begun.set())
            requiem.track(context.Process(target=child, args=(begun,), daemon=True)).start()
            requiem.ready()
            stay()
    """,
    "popen": """
        requiem.initialize()
        job = requiem.track(subprocess.Popen(["sh", "-c", "read _; sleep 6; echo job done"], stdin=subprocess.PIPE))
        requiem.on("begin", lambda: job.stdin.close())
        requiem.ready()
        stay()
    """,
    "create-tracker": """
        requiem.initialize()
        tracker = requiem.create_tracker("job")
        def job():
            work()
            tracker.done()
        in_thread(job)
        stay()
    """,
    "admit": """
        def job():
            with requiem.admit("job"):
                work()
        requiem.initialize()
        in_thread(job)
        stay()
    """,
    "jobs": """
        import queue
        todo = queue.SimpleQueue()
        todo.put("job")
        def fetch():
            with contextlib.suppress(queue.Empty):
                return todo.get(timeout=0.2)
        def worker():
            for job in requiem.jobs(fetch):
                work()
        requiem.initialize()
        in_thread(worker)
        stay()
    """,
    "nested": """
        def job():
            with requiem.track("outer"):
                with requiem.track("inner"):
                    requiem.ready()
                    requiem.wait_begin()
                time.sleep(6)
                print("job done")
        requiem.initialize()
        in_thread(job)
        stay()
    """,
    "opened-in-the-drain": """
        def second():
            with requiem.track("second"):
                opened.set()
                time.sleep(6)
                print("job done")
        def first():
            with requiem.track("first"):
                requiem.ready()
                requiem.wait_begin()
                in_thread(second)
                opened.wait()
        opened = threading.Event()
        requiem.initialize()
        in_thread(first)
        stay()
    """,
    "wsgi": """
        import wsgiref.simple_server
        from requiem_systemd.wsgi import TrackRequests
        def app(environ, start_response):
            start_response("200 OK", [])
            def body():
                work()
                yield b"answered"
            return body()
        def client(port):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                connection.makefile("rb").read()
        app = TrackRequests(app)
        server = wsgiref.simple_server.make_server("127.0.0.1", 0, app)
        in_thread(client, server.server_port)
        in_thread(server.serve_forever)
        stay()
    """,
}

COROUTINES: Final = {
    "async-with": """
        async def main():
            async with requiem.track("job"):
                await awork()
            await asyncio.Event().wait()
        aio.run(main())
    """,
    "plain-asyncio-run": """
        async def main():
            async with requiem.track("job"):
                await awork()
            await asyncio.Event().wait()
        requiem.initialize()
        asyncio.run(main())
    """,
    "decorated-coroutine": """
        @requiem.track("job")
        async def job():
            await awork()
        async def main():
            await asyncio.gather(job(), asyncio.Event().wait())
        aio.run(main())
    """,
    "decorated-async-generator": """
        @requiem.track("job")
        async def job():
            yield
            await awork()
        async def main():
            async for _ in job():
                pass
            await asyncio.Event().wait()
        aio.run(main())
    """,
    "task": """
        async def main():
            task = requiem.track(asyncio.create_task(awork()))
            await asyncio.Event().wait()
        aio.run(main())
    """,
    "asyncio-future": """
        async def main():
            future = requiem.track(asyncio.get_running_loop().run_in_executor(None, work))
            await asyncio.Event().wait()
        aio.run(main())
    """,
    "spawn": """
        async def main():
            aio.spawn(awork(), "job")
            await asyncio.Event().wait()
        aio.run(main())
    """,
    "aio-jobs": """
        async def main():
            todo = asyncio.Queue()
            todo.put_nowait("job")
            async def fetch():
                with contextlib.suppress(asyncio.TimeoutError):
                    return await asyncio.wait_for(todo.get(), 0.2)
            async for job in aio.jobs(fetch):
                await awork()
            await asyncio.Event().wait()
        aio.run(main())
    """,
    "asgi": """
        import uvicorn
        from requiem_systemd.asgi import TrackRequests
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await awork()
            await send({"type": "http.response.body", "body": b"answered"})
        uvicorn.run(TrackRequests(app), uds=os.environ["RUNTIME_DIRECTORY"] + "/http", log_level="warning")
    """,
}

#: Services that begin by themselves, since their main thread ends; when they may, they are told through a FIFO in their own folder.
FIFO: Final = "%t/%N/end"
ENDS: Final = {
    "falls-off-its-end": """
        requiem.initialize()
        requiem.track(in_thread(work))
        stay_until_told()
    """,
    "serve-forever-returns": """
        import http.server
        requiem.initialize()
        requiem.track(in_thread(work))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
            def shut_down():
                stay_until_told()
                server.shutdown()
            in_thread(shut_down)
            server.serve_forever()
    """,
    "aio-main-returns": """
        async def main():
            requiem.track(asyncio.create_task(awork()))
            await asyncio.to_thread(stay_until_told)
        aio.run(main())
    """,
    "aio-main-returns-thread": """
        async def main():
            requiem.track(in_thread(work))
            await asyncio.to_thread(stay_until_told)
        aio.run(main())
    """,
}

#: A client that comes back when the answer has begun, and reads on behind the scenes.
CLIENT: Final = """
import os, socket, sys, time
from pathlib import Path
path = Path(sys.argv[1])
deadline = time.monotonic() + 20
while True:
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        break
    except OSError:
        assert time.monotonic() < deadline
        time.sleep(0.05)
connection.sendall(f"GET {sys.argv[2]} HTTP/1.1\\r\\nHost: here\\r\\nConnection: close\\r\\n\\r\\n".encode())
seen = b""
while b"begun" not in seen:
    seen += connection.recv(4096) or sys.exit(f"no answer: {seen}")
if os.fork() == 0:
    while connection.recv(4096):
        pass
"""


def script(text: str) -> str:
    """Return a whole script."""
    return COMMON + textwrap.dedent(text)
