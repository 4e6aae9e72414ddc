"""The violin: where it all comes from, the example of cluster-requiem, as far as one process goes.

A job of ten seconds that cannot be interrupted, and a server; stop it, and it closes the server, finishes the job, and goes.

Ported from https://github.com/leanderdulac/cluster-requiem (README.md), Copyright (c) 2014 Pagar.me, MIT licence: see LICENSE.
"""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requiem_systemd as requiem


def long_job_that_cant_be_interrupted() -> None:
    """Take ten seconds, in which nobody may end it."""
    time.sleep(10)
    print("job done", flush=True)


class Hello(BaseHTTPRequestHandler):
    """Answer everybody the same."""

    def do_GET(self) -> None:
        """Say hello."""
        body = b"Hello world!"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


requiem.initialize()


@requiem.on("begin")
def begin() -> None:
    """Play."""
    print("grabs the violin", flush=True)


server = ThreadingHTTPServer(("127.0.0.1", 8080), Hello)
requiem.track(threading.Thread(target=long_job_that_cant_be_interrupted)).start()
requiem.track_socket(server)

print("listening", flush=True)
requiem.ready()
server.serve_forever()
