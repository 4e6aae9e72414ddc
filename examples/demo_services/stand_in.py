"""What can be shown without root: a stand-in for systemd that kills at TimeoutStopSec=2 unless it is asked for time."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import request
from say import say

STOP_TIMEOUT = 2.0


def stop_held(script: Path, port: int, jobs: int, environment: dict[str, str]) -> tuple[int, float]:
    """Run a service, begin its jobs, stop it; return how many jobs were done, and how long the stop took."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        env = {**os.environ, **environment, "NOTIFY_SOCKET": f"{folder}/notify", "PORT": str(port)}
        with subprocess.Popen(
            [sys.executable, script], env=env, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                manager.settimeout(10)
                while "READY=1" not in manager.recv(4096).decode().splitlines():
                    pass
                for number in range(jobs):
                    request(port, "POST", f"/{number + 1}")
                say(f"{jobs} jobs are in flight")
                begin = time.monotonic()
                process.send_signal(signal.SIGTERM)
                say("SIGTERM")
                _kill_in_time(process, manager, begin)
                output, _ = process.communicate()
                return output.count("done"), time.monotonic() - begin
            except BaseException:  # Ctrl-C, for one: leave nothing behind
                process.kill()
                raise


def _kill_in_time(process: subprocess.Popen[str], manager: socket.socket, begin: float) -> None:
    """Do as systemd does: EXTEND_TIMEOUT_USEC moves the deadline, later only, and SIGKILL comes at it."""
    deadline = begin + STOP_TIMEOUT
    pidfd = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([pidfd, manager], [], [], max(0.0, deadline - time.monotonic()))
            if pidfd in ready:
                return
            if not ready:
                say(f"{time.monotonic() - begin:3.0f} s  TimeoutStopSec=2 has passed: SIGKILL")
                process.kill()
                return
            for line in manager.recv(4096).decode().splitlines():
                name, _, value = line.partition("=")
                if name == "EXTEND_TIMEOUT_USEC":
                    deadline = max(deadline, time.monotonic() + int(value) / 1e6)
                elif name == "STATUS":
                    say(f"{time.monotonic() - begin:3.0f} s  {value}")
    finally:
        os.close(pidfd)
