"""A WSGI application without a framework; what is ours is its last line."""

import os
import threading
import time
import urllib.parse

import requiem_systemd as requiem
from record import hang, job
from requiem_systemd.wsgi import TrackRequests


def begin(function, *arguments, limit=None):
    """Have a function run in a daemon thread that holds the stop."""
    tracked = requiem.track(function.__name__, drain_timeout=limit)(function)
    threading.Thread(target=tracked, args=arguments, daemon=True).start()


def chain(seconds):
    """Work, then have another job begin."""
    job("first", seconds)
    begin(job, "second", 1)


def plain(environ, start_response):
    """Serve one request."""
    path = environ["PATH_INFO"]
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    seconds = float(query.get("s", 1))
    match path:
        case "/slow":
            time.sleep(seconds)
        case "/job":
            begin(job, query.get("name", "job"), seconds, limit=float(query["limit"]) if "limit" in query else None)
        case "/chain":
            begin(chain, seconds)
        case "/fail":
            raise ZeroDivisionError
        case "/hang":
            hang()
        case "/stream":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return stream(int(query["n"]), seconds)
    body = str(os.getpid()).encode() if path == "/pid" else path.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def stream(number, pause):
    """Answer in pieces."""
    for piece in range(number):
        yield f"piece {piece}\n".encode()
        time.sleep(pause)
    yield b"end\n"


app = plain if "PLAIN" in os.environ else TrackRequests(plain, health="/health")
