"""Jobs for RQ: nothing of ours in them."""

import time

from record import record


def job(name, seconds):
    """Work."""
    record(f"begun {name}")
    time.sleep(seconds)
    record(f"ended {name}")


def fail(name, seconds):
    """Work in vain."""
    time.sleep(seconds)
    raise ZeroDivisionError(name)
