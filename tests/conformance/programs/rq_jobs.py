"""Jobs for RQ: nothing of ours in them."""

import os
import time

from record import record


def job(name, seconds):
    """Work."""
    record(f"begun {name}")
    time.sleep(seconds)
    record(f"ended {name}")


def held(name, seconds):
    """Work until let go, and that long."""
    record(f"begun {name}")
    while not os.path.exists(os.environ["RECORD"] + ".go"):
        time.sleep(0.02)
    time.sleep(seconds)
    record(f"ended {name}")


def fail(name, seconds):
    """Work as long in vain."""
    held(name, seconds)
    raise ZeroDivisionError(name)
