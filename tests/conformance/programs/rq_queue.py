"""Put jobs into RQ's queue: rq_queue.py FUNCTION[/RETRIES] NAME SECONDS [FUNCTION NAME SECONDS]..."""

import os
import sys

from redis import Redis
from rq import Queue, Retry

queue = Queue("default", connection=Redis.from_url(os.environ["BROKER"]))
for what, name, seconds in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
    kind, _, retries = what.partition("/")
    queue.enqueue(f"rq_jobs.{kind}", name, float(seconds), job_id=name, retry=Retry(max=int(retries)) if retries else None)
