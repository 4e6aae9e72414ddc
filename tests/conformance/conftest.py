"""Servers as services of a manager that plays systemd in real time, and the table of what they can."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from requiem_systemd.testing import FakeManager
from tests.conformance import table
from tests.conformance.client import refused
from tests.conformance.subjects import HTTP, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = Path(__file__).with_name("programs")
# The unit's TimeoutStopSec=: what takes longer was extended for.
TIMEOUT_STOP: Final = 2.0
PATIENCE: Final = 40.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which the table is written anew."""
    parser.addoption("--write-table", action="store_true", help="write docs/adapters.md from this run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with each subject that it says something about."""
    metafunc.definition.add_marker(pytest.mark.timeout(120))
    if "subject" in metafunc.fixturenames:
        row = metafunc.function.__name__.removeprefix("test_")
        subjects = [subject for subject in HTTP if row not in subject.lacks]
        metafunc.parametrize("subject", subjects, ids=str)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the cells."""
    config.pluginmanager.register(table.Table(config), "conformance-table")


class Server:
    """One subject as a running service."""

    def __init__(self, subject: Subject, manager: FakeManager, folder: Path, port: int) -> None:
        """Store; `start` acts."""
        self.subject = subject
        self.manager = manager
        self.port = port
        self._record = folder / "record"
        self._output = folder / "output"
        self._record.touch()
        self.process: subprocess.Popen[Any]

    def start(self, *, activated: bool = False, **env: str) -> Server:
        """Start it, and wait until it is ready."""
        words = self.subject.activated if activated else self.subject.command
        assert words is not None
        self.spawn(words, **env)
        self.wait_for("running")
        if not activated:  # servers say that they are ready a moment before they listen
            self.wait_for(lambda: not refused(self.port), poll=True)
        return self

    def spawn(self, words: Sequence[str], **env: str) -> None:
        """Start a command as the service; wait for nothing."""
        fill = {"bin": str(Path(sys.executable).parent), "python": sys.executable, "port": str(self.port)}
        with self._output.open("ab") as output:
            self.process = self.manager.spawn(
                [word.format_map(fill) for word in words],
                env={
                    "PYTHONPATH": f"{PROGRAMS}:{CHECKOUT}",
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "RECORD": str(self._record),
                    **self.subject.env,
                    **env,
                },
                cwd=PROGRAMS,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, what: Any, *, poll: bool = False) -> None:
        """Wait for a state of the unit or for a question's answer; show what the program wrote if it does not come."""
        try:
            if poll:
                wait_until(what)
            else:
                self.manager.wait_for(what, PATIENCE)
        except TimeoutError as error:
            error.add_note(f"{self.output}\n{self.recorded}")
            raise

    def wait_recorded(self, line: str) -> None:
        """Wait until the program has written a line into its record."""
        self.wait_for(lambda: line in self.recorded, poll=True)

    def stop(self) -> None:
        """`systemctl stop --no-block`; come back when the service has said that it drains."""
        self.manager.stop()
        self.manager.wait_message("EXTEND_TIMEOUT_USEC", timeout=PATIENCE)

    def ended(self, status: int = 0) -> list[str]:
        """Wait for its end, which must be a success (or have that status); no process of it may be left. Return its record."""
        self.wait_for(lambda: self.manager.unit.state in ("dead", "failed"))
        assert self.process.returncode == status, self.output
        assert not self.processes(), self.output
        return self.recorded

    def processes(self) -> list[int]:
        """Return the processes of its session: itself, and all that it has started."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(path.parent.name))
        return sorted(found)

    def kill(self) -> None:
        """End whatever is left of it."""
        if hasattr(self, "process"):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    @property
    def recorded(self) -> list[str]:
        """What happened in it."""
        return self._record.read_text().splitlines()

    @property
    def output(self) -> str:
        """What it has written."""
        return self._output.read_text(errors="replace")


def wait_until(question: Callable[[], object]) -> None:
    """Ask until the answer is yes: of another process's files and sockets nothing tells."""
    deadline = time.monotonic() + PATIENCE
    while not question():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


@pytest.fixture
def server(subject: Subject, tmp_path: Path, free_port: int) -> Iterator[Server]:
    """Return a subject, not started; it ends with the test."""
    with FakeManager(timeout_stop=TIMEOUT_STOP, notify_access=subject.notify_access) as manager:
        made = Server(subject, manager, tmp_path, free_port)
        try:
            yield made
        finally:
            made.kill()
