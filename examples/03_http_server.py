"""A threaded HTTP server on a socket of systemd's: requests are answered, and none is refused during a restart.

With a .socket unit that says `FileDescriptorName=http` systemd listens; without one, the server does itself.
"""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PORT = int(os.environ.get("EXAMPLE_PORT", "8080"))


class Handler(BaseHTTPRequestHandler):
    """Answers slowly at /slow, at once elsewhere."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer; the library holds the stop from the request's first byte to the answer's last."""
        if self.path == "/slow":
            print("request: begun", flush=True)
            time.sleep(SECONDS)
            print("request: done", flush=True)
        body = b"Hello world!\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing about each request."""


requiem.initialize()
server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler, bind_and_activate=False)
server.socket.close()  # the one it made for itself
server.socket = requiem.listener("http", fallback=("127.0.0.1", PORT))
requiem.track_socket(server)
requiem.ready()
server.serve_forever()
