"""What stands between systemd and a container: a stand-in for podman's conmon, and for `podman rm -f`, which ends the container.

    conmon.py [--old] FOLDER COMMAND...     run a container's first process, and forward what it notifies
    conmon.py --stop SECONDS FOLDER         SIGTERM, so many seconds, SIGKILL

What is forwarded is as in conmon's read_remote_sock() (src/conn_sock.c): up to 2.1.8 (--old) only READY=1 and WATCHDOG=1, from 2.1.9 on the
lines of the tables below. No version forwards EXTEND_TIMEOUT_USEC=, MAINPID=, FDSTORE=1 or descriptors. systemd sees conmon as the sender.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

LINES: Final = ("READY=1", "RELOADING=1", "STOPPING=1", "WATCHDOG=1", "WATCHDOG=trigger")
STARTS: Final = ("STATUS=", "ERRNO=", "BUSERROR=", "MONOTONIC_USEC=")
#: What a container has of our environment: what was given to it by --env, so to speak.
GIVEN: Final = ("REQUIEM_", "PYTHON", "PATH", "JOB")


def forwarded(message: str, *, old: bool) -> str:
    """Return what is left of a message."""
    if old:
        return next((line for line in ("READY=1", "WATCHDOG=1") if line in message), "")
    return "\n".join(line for line in message.splitlines() if line in LINES or line.startswith(STARTS))


def run(folder: Path, command: list[str], *, old: bool) -> int:
    """Run the container, and return its status."""
    path = folder / "notify.sock"
    path.unlink(missing_ok=True)
    inside = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inside.bind(str(path))
    outside = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    outside.connect(os.environ["NOTIFY_SOCKET"])
    given = {name: value for name, value in os.environ.items() if name.startswith(GIVEN)}
    environ = {**given, "NOTIFY_SOCKET": str(path), "container": "podman"}
    with subprocess.Popen(command, env=environ, start_new_session=True) as process:
        (folder / "pid").write_text(str(process.pid))
        ended = os.pidfd_open(process.pid)
        while True:
            ready, _, _ = select.select([inside.fileno(), ended], [], [])
            if inside.fileno() in ready and (text := forwarded(inside.recv(4096).decode(), old=old)):
                outside.send(text.encode())
            elif ended in ready and inside.fileno() not in ready:
                status = process.wait()
                return status if status >= 0 else 128 - status


def stop(folder: Path, seconds: float) -> None:
    """End the container, as `podman stop --time` and `podman rm -f` do, and wait for conmon: systemd sends SIGTERM to what is left."""
    if "MAINPID" not in os.environ:  # it has ended already
        return
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        conmon = os.pidfd_open(int(os.environ["MAINPID"]))
        pid = int((folder / "pid").read_text())
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        if not select.select([ended], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        select.select([conmon], [], [], 10)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--stop", seconds, folder]:
            stop(Path(folder), float(seconds))
        case ["--old", folder, *command]:
            sys.exit(run(Path(folder), command, old=True))
        case [folder, *command]:
            sys.exit(run(Path(folder), command, old=False))
