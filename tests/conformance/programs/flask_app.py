"""A Flask application, as `flask run` starts it; what is ours is the two last lines."""

import threading
import time

import flask

import requiem_systemd as requiem
from record import hang, job
from requiem_systemd.wsgi import TrackRequests

app = flask.Flask(__name__)


def begin(function, *arguments):
    """Have a function run in a daemon thread that holds the stop."""
    threading.Thread(target=requiem.track(function.__name__)(function), args=arguments, daemon=True).start()


def chain(seconds):
    """Work, then have another job begin."""
    job("first", seconds)
    begin(job, "second", 1)


def seconds():
    """How long, by the request."""
    return float(flask.request.args.get("s", 1))


@app.get("/")
@app.get("/slow")
def slow():
    """Answer, after a while."""
    if flask.request.path != "/":
        time.sleep(seconds())
    return flask.request.path


@app.get("/job")
def background():
    """Begin a job."""
    begin(job, flask.request.args.get("name", "job"), seconds())
    return "/job"


@app.get("/chain")
def two():
    """Begin a job that begins another."""
    begin(chain, seconds())
    return "/chain"


@app.get("/fail")
def fail():
    """Fail."""
    raise ZeroDivisionError


@app.get("/hang")
def never():
    """Never answer."""
    hang()
    return ""


@app.get("/stream")
def stream():
    """Answer in pieces."""
    number, pause = int(flask.request.args["n"]), seconds()

    def pieces():
        for piece in range(number):
            yield f"piece {piece}\n"
            time.sleep(pause)
        yield "end\n"

    return flask.Response(pieces(), mimetype="text/plain")


app.wsgi_app = TrackRequests(app.wsgi_app, health="/health")
requiem.ready()
