"""The same server with the library: the jobs hold the stop, and the listener may be systemd's."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requiem_systemd as requiem


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
        requiem.track(
            threading.Thread(target=job, args=(self.path[1:],), daemon=False), label=f"job {self.path[1:]}"
        ).start()
        self.answer(b"begun\n")

    def answer(self, body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing about each request."""


requiem.initialize()
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket.close()  # the one it made for itself
server.socket = requiem.listener("http", fallback=("127.0.0.1", int(os.environ["PORT"])))
requiem.track_socket(server)
requiem.ready()
server.serve_forever()
