"""Celery: one line below the app; a stop waits for the tasks that run, and what was only fetched ahead goes back to the broker.

celery --workdir examples -A 15_celery worker
python examples/15_celery.py                     (puts a task into the queue)
"""

import os
import time

from celery import Celery

import requiem_systemd.adapters.celery

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))

app = Celery("15_celery", broker=os.environ.get("EXAMPLE_BROKER", "redis://localhost:6379/0"))
requiem_systemd.adapters.celery.hold(app)
# The broker gives a task that is not acknowledged for so long to another worker: with acks_late, more than the longest takes.
app.conf.broker_transport_options = {"visibility_timeout": 24 * 3600}


@app.task(name="export", acks_late=True)  # should the machine fail, another worker does it again
def export(number: int) -> None:
    """Do what must not be cut off."""
    print(f"export {number}: begun", flush=True)
    time.sleep(SECONDS)
    print(f"export {number}: done", flush=True)


if __name__ == "__main__":
    export.delay(42)
