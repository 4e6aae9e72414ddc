"""Put jobs into RQ's queue: rq_queue.py FUNCTION[/RETRIES] NAME SECONDS [FUNCTION NAME SECONDS]..."""

import os
import sys

from redis import Redis
from rq import Queue, Retry

queue = Queue("default", connection=Redis.from_url(os.environ["BROKER"]))
for kind, name, seconds in zip(*(iter(sys.argv[1:]),) * 3):
    kind, _, retries = kind.partition("/")
    queue.enqueue(f"rq_jobs.{kind}", name, float(seconds), job_id=name, retry=Retry(max=int(retries)) if retries else None)
