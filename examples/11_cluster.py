"""What cluster-requiem's README shows, in Python, line by line (its licence: see LICENSE)."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requiem_systemd as requiem
from requiem_systemd import cluster

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PORT = int(os.environ.get("EXAMPLE_PORT", "8080"))


class Hello(BaseHTTPRequestHandler):
    """Answers every request alike."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Hello world!")


if cluster.is_primary():
    worker = cluster.fork()
    listening = threading.Event()
    cluster.on("listening", lambda _: requiem.ready("the worker listens"))
    cluster.on("listening", lambda _: listening.set())

    def disconnect() -> None:
        """Let the worker go when it has served for two seconds."""
        listening.wait()
        time.sleep(2)
        print("disconnecting", worker.id, flush=True)
        worker.disconnect(lambda: print("done", flush=True))

    threading.Thread(target=disconnect, daemon=True).start()
else:

    def long_job_that_cant_be_interrupted() -> None:
        """Do what must not be cut off."""
        time.sleep(SECONDS)
        print("job done", flush=True)

    requiem.initialize()

    requiem.on("begin", lambda: print("grabs the violin", flush=True))

    server = ThreadingHTTPServer(("", PORT), Hello)

    requiem.track(threading.Thread(target=long_job_that_cant_be_interrupted, daemon=True)).start()

    requiem.track_socket(server)

    requiem.ready()
    print("listening", flush=True)
    server.serve_forever()
