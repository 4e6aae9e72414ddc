"""Threads: four workers, each with one job after the other; `systemctl stop` waits for those that are in flight."""

import logging
import os
import threading
import time

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))


def work() -> None:
    """Do one job after the other, until the stop begins."""
    name = threading.current_thread().name
    number = 0
    while not requiem.should_stop():
        number += 1
        with requiem.track(f"{name}, job {number}"):
            logging.info("%s, job %d begins", name, number)
            time.sleep(SECONDS)  # what must not be cut off
            logging.info("%s, job %d done", name, number)


logging.basicConfig(level=logging.INFO, format="%(message)s")
requiem.initialize()
for index in range(4):
    threading.Thread(target=work, name=f"worker {index}").start()
requiem.ready("four workers")
requiem.wait()
