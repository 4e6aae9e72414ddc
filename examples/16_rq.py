"""RQ: the worker is of our class, the jobs are as they were; a stop waits for the job that runs.

rq worker --path examples --worker-class requiem_systemd.adapters.rq.Worker
python examples/16_rq.py                         (puts a job into the queue)

In a program that makes its worker itself: `requiem_systemd.adapters.rq.hold(worker).work()`.
"""

import os
import time

from redis import Redis
from rq import Queue, Retry

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))


def export(number: int) -> None:
    """Do what must not be cut off."""
    print(f"export {number}: begun", flush=True)
    time.sleep(SECONDS)
    print(f"export {number}: done", flush=True)


if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(os.environ.get("EXAMPLE_BROKER", "redis://localhost:6379/0")))
    # RQ ends a job after 180 s unless told otherwise; one that is abandoned (systemctl kill -s QUIT) is done again.
    queue.enqueue("16_rq.export", 42, job_timeout="1h", retry=Retry(max=1))
