"""A scheduler of each kind, on a job store in Redis, or in memory where there is none; what is ours is one line."""

import asyncio
import datetime as dt
import os
import sys

import requiem_systemd as requiem
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from record import job, record
from requiem_systemd import aio
from requiem_systemd.adapters.apscheduler import track_scheduler

KIND = sys.argv[1] if sys.argv[1:] else ""
SECONDS = float(os.environ.get("SECONDS", "4"))


async def coroutine(name, seconds):
    """Work, in a task."""
    record(f"begun {name}")
    await asyncio.sleep(seconds)
    record(f"ended {name}")


def fail():
    """Raise."""
    record("failed")
    raise ZeroDivisionError


def now():
    """Return the time."""
    return dt.datetime.now(dt.UTC)


def configured(kind):
    """Make it."""
    options = {}
    if "REDIS_PORT" in os.environ:
        options["jobstores"] = {"default": RedisJobStore(port=int(os.environ["REDIS_PORT"]))}
    if "GRACE" not in os.environ:  # processes may take a second to start
        options["job_defaults"] = {"misfire_grace_time": None}
    if kind == "processes":
        options["executors"] = {"default": ProcessPoolExecutor(2)}
    classes = {"asyncio": AsyncIOScheduler, "blocking": BlockingScheduler}
    return track_scheduler(classes.get(kind, BackgroundScheduler)(**options))


def fill(scheduler, function):
    """Give it a job for now, one that fails, one that comes again and again, and, when the drain begins, one that comes due in it."""
    if os.environ.get("FILL") == "no":
        return
    scheduler.add_job(function, args=("job", SECONDS), id="job")
    scheduler.add_job(fail, "date", run_date=now(), id="fail")
    scheduler.add_job(record, "interval", seconds=0.1, args=("tick",), id="tick", replace_existing=True)
    due = {"args": ("due", 0), "id": "due"}
    requiem.on("begin", lambda: scheduler.add_job(job, "date", run_date=now() + dt.timedelta(seconds=1), **due))


def shutdown():
    """The program's own."""
    record("shutdown")


async def main():
    """Run the one that lives in a loop."""
    scheduler = configured("asyncio")
    fill(scheduler, coroutine)
    scheduler.start()
    requiem.ready()
    await aio.wait()
    scheduler.shutdown()
    shutdown()


def plain():
    """Run one of those that have threads."""
    requiem.initialize()
    scheduler = configured(KIND)
    fill(scheduler, job)
    if KIND == "blocking":
        scheduler.add_listener(lambda _: requiem.ready(), 1)
        try:
            scheduler.start()
        finally:
            shutdown()
    else:
        scheduler.start()
        requiem.ready()
        requiem.wait()
        scheduler.shutdown()
        shutdown()


if __name__ == "__main__":
    if KIND == "asyncio":
        aio.run(main())
    else:
        plain()
