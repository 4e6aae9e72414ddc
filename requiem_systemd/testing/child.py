"""A program as a manager's main process: real signals, real time, listeners from descriptor 3 on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# What systemd does between fork and exec: descriptors to 3 and on, LISTEN_PID and the like filled in. Not a preexec_fn: that is not
# safe in a process with threads.
_SHIM: Final = """
import fcntl, os, signal, sys
passed = [int(fd) for fd in sys.argv[1].split(",") if fd]
moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + 2 * len(passed)) for fd in passed]
for fd in passed:
    os.close(fd)
for number, fd in enumerate(moved, 3):
    os.dup2(fd, number)
for name in filter(None, sys.argv[2].split(",")):
    os.environ[name] = str(os.getpid())
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Child:
    """One running program; `ended` is called, from any thread, when it has ended."""

    def __init__(
        self, argv: Sequence[str], environ: Mapping[str, str], fds: Sequence[int], options: Mapping[str, Any]
    ) -> None:
        names = ["SYSTEMD_EXEC_PID"]
        names += ["LISTEN_PID"] if "LISTEN_FDS" in environ else []
        names += ["WATCHDOG_PID"] if "WATCHDOG_USEC" in environ else []
        passed = ",".join(map(str, fds))
        shim = [sys.executable, "-I", "-S", "-c", _SHIM, passed, ",".join(names), *argv]
        self.process: subprocess.Popen[Any] = subprocess.Popen(  # noqa: S603 - the caller's program
            shim, env=dict(environ), pass_fds=tuple(fds), **options
        )
        self.pid: int = self.process.pid
        self._pidfd: int | None = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    def watch(
        self, reader: Callable[[int, Callable[[], object]], object], ended: Callable[[], object]
    ) -> None:
        """Have `ended` called when it has ended; `reader` calls when a descriptor is readable."""
        if self._pidfd is not None:
            reader(self._pidfd, ended)
            return

        def wait() -> None:
            self.process.wait()
            ended()

        threading.Thread(target=wait, name=f"wait-{self.pid}").start()

    def unwatch(self, unreader: Callable[[int], object]) -> None:
        """Look no longer."""
        if self._pidfd is not None:
            unreader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def kill(self, name: str) -> bool:
        """Send a signal; its death is seen when it comes."""
        self.process.send_signal(getattr(signal, name))  # nothing where it has ended and been reaped
        return False

    def ended(self) -> tuple[int, str] | None:
        """Return the exit status and the signal it died of; None: it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return (code, "") if code >= 0 else (0, signal.Signals(-code).name)

    def close(self) -> None:
        """End it if it runs, and give its pipes back."""
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.process.wait()
