"""What cluster-requiem's README shows, in Python, as far as one process goes (its licence: see LICENSE)."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PORT = int(os.environ.get("EXAMPLE_PORT", "8080"))


def long_job_that_cant_be_interrupted() -> None:
    """Do what must not be cut off."""
    print("job: begun", flush=True)
    time.sleep(SECONDS)
    print("job: done", flush=True)


class Hello(BaseHTTPRequestHandler):
    """Answers every request alike."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Hello world!")


requiem.initialize()


@requiem.on("begin")
def begin() -> None:
    """Hear that the ship is going down."""
    print("grabs the violin", flush=True)


server = ThreadingHTTPServer(("", PORT), Hello)

requiem.track(
    threading.Thread(target=long_job_that_cant_be_interrupted, daemon=True), label="long job"
).start()

requiem.track_socket(server)

print("listening", flush=True)
requiem.ready()
server.serve_forever()
