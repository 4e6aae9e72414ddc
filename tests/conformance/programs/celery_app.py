"""A Celery app; what is ours is the line below its making."""

import os
import sys
import threading
import time

from celery import Celery
from celery.signals import worker_shutdown, worker_shutting_down

import requiem_systemd as requiem
import requiem_systemd.adapters.celery
from record import record

app = Celery("celery_app", broker=os.environ["BROKER"])
requiem_systemd.adapters.celery.hold(app)
app.conf.broker_transport_options = {"visibility_timeout": float(os.environ.get("VISIBILITY", "3600"))}
app.conf.worker_soft_shutdown_timeout = float(os.environ.get("SOFT", "0"))
app.conf.broker_connection_retry_on_startup = True


@app.task
def job(name, seconds):
    """Work."""
    record(f"begun {name}")
    time.sleep(seconds)
    record(f"ended {name}")


@app.task(acks_late=True)
def late(name, seconds):
    """Work, acknowledged when it is done."""
    job(name, seconds)


@app.task(rate_limit="1/h")
def rare(name, seconds):
    """Work now and then."""
    job(name, seconds)


@app.task
def fail(name, seconds):
    """Work in vain."""
    time.sleep(seconds)
    raise ZeroDivisionError(name)


@app.task
def chain(name, seconds):
    """Work, then have a thread go on."""
    job(name, seconds)
    threading.Thread(target=requiem.track("second")(job), args=(f"{name} second", 1)).start()


@worker_shutting_down.connect
def shutting_down(**kwargs):
    """Hear of the stop."""
    record("shutting down")


@worker_shutdown.connect
def shutdown(**kwargs):
    """Shut down."""
    record("shutdown")


if __name__ == "__main__":  # celery_app.py TASK NAME SECONDS [TASK/COUNTDOWN NAME SECONDS]...
    for what, name, seconds in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        kind, _, countdown = what.partition("/")
        app.send_task(f"celery_app.{kind}", (name, float(seconds)), countdown=float(countdown) if countdown else None)
