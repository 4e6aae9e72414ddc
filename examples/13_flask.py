"""A Flask application under gunicorn: one line here, two in 13_gunicorn.conf.py, and its workers' jobs hold the stop.

gunicorn --chdir examples -c 13_gunicorn.conf.py 13_flask:app
"""

import os
import threading
import time

from flask import Flask

import requiem_systemd as requiem
from requiem_systemd.wsgi import TrackRequests

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
app = Flask(__name__)


@requiem.track("export")
def export() -> None:
    """Do what must not be cut off, long after the answer."""
    print("export: begun", flush=True)
    time.sleep(SECONDS)
    print("export: done", flush=True)


@app.get("/")
def hello() -> str:
    """Answer at once."""
    return "Hello world!"


@app.get("/export")
def start_export() -> str:
    """Begin a job in a thread, and answer at once."""
    threading.Thread(target=export, daemon=True).start()
    return "begun"


app.wsgi_app = TrackRequests(app.wsgi_app, health="/health")  # type: ignore[method-assign] # as Flask's documentation has it
