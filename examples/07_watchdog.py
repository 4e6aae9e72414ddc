"""A watchdog that means something: WatchdogSec= is fed only while `health` finds that the worker still turns."""

import os
import threading
import time

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))

last_turn = time.monotonic()


def is_healthy() -> bool:
    """Say whether the worker has turned lately; asked at half of WatchdogSec= until the drain begins."""
    return time.monotonic() - last_turn < 2 * SECONDS


def turn() -> None:
    """Do what must not be cut off, again and again."""
    global last_turn  # noqa: PLW0603 -- an example has no room for a class
    while not requiem.should_stop():
        with requiem.track("turn"):
            print("turn: begun", flush=True)
            time.sleep(SECONDS)
            print("turn: done", flush=True)
        last_turn = time.monotonic()


requiem.initialize(health=is_healthy)
threading.Thread(target=turn, daemon=True).start()
requiem.ready()
requiem.wait()
