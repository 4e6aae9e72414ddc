"""A program as a job: `track(subprocess.Popen(...))` holds the stop until it has ended (with KillMode=mixed)."""

import os
import subprocess

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))

requiem.initialize()
requiem.ready()
while True:
    script = f"echo conversion: begun; sleep {SECONDS}; echo conversion: done"
    # The library has taken NOTIFY_SOCKET out of the environment: children cannot speak for the service.
    conversion = requiem.track(subprocess.Popen(["/bin/sh", "-c", script]), label="conversion")
    if requiem.wait_begin(timeout=SECONDS):
        break
    conversion.wait()
