"""A worker that a program makes for itself; what is ours is `hold`."""

import os

from redis import Redis
from rq import Worker

from requiem_systemd.adapters.rq import hold

connection = Redis.from_url(os.environ["BROKER"])
hold(Worker(["default", "other"], connection=connection)).work()
