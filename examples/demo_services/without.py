"""A threaded HTTP server as one writes it: GET answers, POST begins a job of 6 s. SIGTERM stops it when its jobs are done."""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import sdnotify


def job(number: str) -> None:
    """Do what must not be cut off."""
    print(f"job {number}: begun", flush=True)
    time.sleep(6)
    print(f"job {number}: done", flush=True)


class Handler(BaseHTTPRequestHandler):
    """Answers."""

    def do_GET(self) -> None:
        """Answer at once."""
        self.answer(b"Hello world!\n")

    def do_POST(self) -> None:
        """Begin a job, and answer at once."""
        threading.Thread(target=job, args=(self.path[1:],), daemon=False).start()
        self.answer(b"begun\n")

    def answer(self, body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing about each request."""


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Python itself waits for the threads before it ends
sdnotify.SystemdNotifier().notify("READY=1")
server.serve_forever()
