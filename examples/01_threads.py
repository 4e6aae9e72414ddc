"""Jobs in threads: `with track(...)` around a job holds the stop until the job has ended."""

import itertools
import os
import threading
import time

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))


def write_report(number: int) -> None:
    """Do what must not be cut off."""
    with requiem.track(f"report {number}"):
        print(f"report {number}: begun", flush=True)
        time.sleep(SECONDS)
        print(f"report {number}: done", flush=True)


requiem.initialize()
requiem.ready()
for number in itertools.count(1):
    threading.Thread(target=write_report, args=(number,), daemon=True).start()
    if requiem.wait_begin(timeout=SECONDS):  # until it is time for the next, or to stop
        break
# The main thread ends here; the process does when the last report is written.
