"""A worker's loop: `jobs(fetch)` holds the stop from before a job is fetched, so that none is lost between two lines.

The queue is a folder: whoever has work puts a file there.
"""

import os
import time
from pathlib import Path

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
SPOOL = Path(os.environ.get("EXAMPLE_SPOOL", "/var/spool/example"))


def fetch() -> str | None:
    """Take the next job off the queue (with Redis: `BLPOP queue 1`); None: there is none yet."""
    for path in sorted(SPOOL.glob("*.job")):
        text = path.read_text()
        path.unlink()  # from here on only this process knows of it
        return text.strip()
    time.sleep(0.1)
    return None


requiem.initialize()
SPOOL.mkdir(parents=True, exist_ok=True)
requiem.ready()
for job in requiem.jobs(fetch):
    print(f"{job}: begun", flush=True)
    time.sleep(SECONDS)
    print(f"{job}: done", flush=True)
