"""A Python process under NOTIFY_SOCKET, started, signalled, read line by line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKOUT: Final = Path(__file__).resolve().parents[2]
PASS_ON: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """What NOTIFY_SOCKET leads to."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`."""
        self.path = path
        self.descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)

    def expect(self, assignment: str) -> str:
        """Wait for a message with this line in it, and return it whole."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            self.descriptors += descriptors
            if assignment in data.decode().splitlines():
                return data.decode()

    def close(self) -> None:
        """Give back what came."""
        self._socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


class Running:
    """One process, and what it says."""

    def __init__(self, manager: Manager, folder: Path) -> None:
        """Store; `start` starts."""
        self.manager = manager
        self.folder = folder
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        listener: socket.socket | None = None,
        ready: bool = True,
        **options: Any,  # whatever Popen takes
    ) -> None:
        """Start Python with these arguments under our manager, with a listener if there is one; wait until it is ready."""
        words = [sys.executable, "-u", *command]
        passed = {}
        if listener is not None:  # as systemd passes it: descriptor 3, and a PID that only the child can know
            words = [sys.executable, "-c", PASS_ON, str(listener.fileno()), *words]
            passed = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
        foreign = ("LISTEN_", "NOTIFY_", "WATCHDOG_", "SYSTEMD_", "REQUIEM_", "PYTEST_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environment |= {
            "NOTIFY_SOCKET": str(self.manager.path),
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
        }
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "stdin": subprocess.DEVNULL,
            **options,
        }
        self._process = subprocess.Popen(
            options.pop("wrapper", []) + words,
            env={**environment, **passed, **(env or {})},
            cwd=self.folder,
            pass_fds=() if listener is None else (listener.fileno(),),
            text=True,
            **options,
        )
        if ready:
            self.manager.expect("READY=1")

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process, started."""
        assert self._process is not None
        return self._process

    def expect(self, end: str) -> None:
        """Wait for a line of its output, not yet read, that ends so."""
        assert self.process.stdout is not None
        while True:
            text = self.process.stdout.readline()
            assert text, f"no {end!r} in {self.lines}"
            self.lines.append(text.rstrip("\n"))
            if self.lines[-1].endswith(end):
                return

    def signal(self, *numbers: signal.Signals) -> None:
        """Send it signals, as systemd does."""
        for number in numbers:
            self.process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end, read what it said, and return its status."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.lines += rest.splitlines()
        return self.process.returncode

    def ends_after(self, done: str) -> None:
        """Stop it while its job runs; expect that the job was done and that all was well."""
        self.signal(signal.SIGTERM)
        stopping = self.manager.expect("STOPPING=1")
        assert "EXTEND_TIMEOUT_USEC=" in stopping
        assert "Draining" in stopping
        self.expect(done)
        assert self.ends() == 0, self.lines

    def close(self) -> None:
        """End what is left."""
        if self._process is not None:
            with self._process:
                self._process.kill()
