"""Actors of dramatiq; what is ours is one line. Run by itself, it sends a message: ACTOR [ARGUMENT...]."""

import os
import sys
import threading
import time

import dramatiq
import requiem_systemd as requiem
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, Shutdown
from record import job, record
from requiem_systemd.adapters.dramatiq import Hold


class Hooks(Middleware):
    """The program's own."""

    def after_worker_boot(self, broker, worker):
        """Start."""
        record("startup")

    def before_worker_shutdown(self, broker, worker):
        """Begin to shut down."""
        record("shutting down")

    def after_worker_shutdown(self, broker, worker):
        """Shut down."""
        record("shutdown")


broker = RedisBroker(url=os.environ["REDIS_URL"])
broker.add_middleware(Hold())
broker.add_middleware(Hooks())
dramatiq.set_broker(broker)


@dramatiq.actor
def work(name, seconds):
    """Work."""
    job(name, float(seconds))


@dramatiq.actor
def chain(seconds):
    """Work, then have another job begin, in a thread, and send a message."""
    job("first", float(seconds))
    requiem.track(threading.Thread(target=job, args=("second", 1)), label="second").start()
    work.send("third", 0)


@dramatiq.actor(max_retries=0)
def fail():
    """Raise."""
    record("failed")
    raise ZeroDivisionError


@dramatiq.actor(notify_shutdown=True, max_retries=0)
def heed():
    """Work until interrupted."""
    record("begun heed")
    try:
        while True:
            time.sleep(0.05)
    except Shutdown:
        record("interrupted")


if __name__ == "__main__":
    broker.get_actor(sys.argv[1]).send(*sys.argv[2:])
