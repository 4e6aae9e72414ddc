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

from tests.conformance import table
from tests.conformance.client import refused
from tests.conformance.subjects import HTTP, VARIANTS, Subject
from tests.patience import PATIENCE, PatientManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = Path(__file__).with_name("programs")
# The unit's TimeoutStopSec=: what takes longer was extended for.
TIMEOUT_STOP: Final = 2.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with each subject that it says something about."""
    given = any(mark.args[0] == "subject" for mark in metafunc.definition.iter_markers("parametrize"))
    if "subject" in metafunc.fixturenames and not given:
        row = metafunc.function.__name__.removeprefix("test_")
        subjects = [subject for subject in HTTP if row not in subject.lacks]
        metafunc.parametrize("subject", subjects, ids=str)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Look, in the stead of a test of what a subject makes impossible, for the line by which it says so."""
    subject = getattr(pyfuncitem, "callspec", None) and pyfuncitem.callspec.params.get("subject")
    row = pyfuncitem.originalname.removeprefix("test_")
    if not isinstance(subject, Subject) or row not in subject.limits:
        return None
    server = pyfuncitem.funcargs["server"]
    assert isinstance(server, Server)
    server.start()
    server.wait_for(lambda: subject.limits[row] in server.output, poll=True)
    server.stop()
    server.ended()
    assert sum(subject.limits[row] in line for line in server.output.splitlines()) == 1, server.output
    return True


TABLES: Final = table.Tables()


@pytest.hookimpl(trylast=True)  # when the tables have taken note of all
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave further ways to start the same one out of CI, which has 20 minutes: `tests/run conformance` runs all."""
    if not os.environ.get("CI"):
        return
    out = [item for item in items if getattr(getattr(item, "callspec", None), "params", {}).get("subject") in VARIANTS]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def pytest_configure(config: pytest.Config) -> None:
    """Have the tables take note of the tests."""
    config.pluginmanager.register(TABLES, "conformance-tables")


@pytest.fixture
def tables() -> table.Tables:
    """Return the tables."""
    return TABLES


class Server:
    """One subject as a running service."""

    def __init__(self, subject: Subject, manager: PatientManager, folder: Path, port: int) -> None:
        """Store; `start` acts."""
        self.subject = subject
        self.manager = manager
        self.port = port
        self._folder = folder
        self._record = folder / "record"
        self._output = folder / "output"
        self._record.touch()
        self.process: subprocess.Popen[Any]

    def start(self, *, activated: bool = False, ready: bool = True, **env: str) -> Server:
        """Start it, and wait until it is ready; `ready`: and says so."""
        words = self.subject.activated if activated else self.subject.command
        assert words is not None
        self.spawn(words, **env)
        self.wait_for("running")
        self.wait_for(lambda: not ready or self.told("READY"))
        if not activated:  # servers say that they are ready a moment before they listen
            self.wait_for(lambda: not refused(self.port), poll=True)
        return self

    def spawn(self, words: Sequence[str], **env: str) -> None:
        """Start a command as the service; wait for nothing."""
        fill = {"bin": str(Path(sys.executable).parent), "python": sys.executable, "port": str(self.port), "folder": str(self._folder)}
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

    def wait_for(self, what: Any, *, poll: bool = False, patience: float = PATIENCE) -> None:
        """Wait for a state of the unit or for a question's answer; show what the program wrote if it does not come."""
        try:
            if poll:
                wait_until(what)
            else:
                self.manager.wait_for(what, patience)
        except TimeoutError as error:
            error.add_note(f"{self.output}\n{self.recorded}")
            raise

    def wait_recorded(self, line: str) -> None:
        """Wait until the program has written a line into its record."""
        self.wait_for(lambda: line in self.recorded, poll=True)

    def stop(self) -> None:
        """`systemctl stop --no-block`; come back when the service has said that it drains."""
        self.manager.stop()
        self.wait_for(lambda: self.told("EXTEND_TIMEOUT_USEC"))

    def watch(self, seconds: float) -> None:
        """Have the manager wait for WATCHDOG=1; before the start."""
        self.manager.settings = self.manager.unit.settings = self.manager.settings._replace(watchdog=seconds)

    def stop_patiently(self) -> None:
        """`systemctl stop --no-block`, with time for a parent that hears of it late, where it is not the extension that is tested."""
        self.manager.unit.settings = self.manager.settings._replace(timeout_stop=PATIENCE)
        self.manager.stop()

    def told(self, key: str) -> bool:
        """Say whether the manager has heard something from each process that is to say it: the main one, or all workers."""
        heard = {message.pid for message in self.manager.messages if key in message.values}
        return len(heard - {self.process.pid}) >= self.subject.workers if self.subject.workers else self.process.pid in heard

    def ended(self, status: int = 0, patience: float = PATIENCE) -> list[str]:
        """Wait for its end, which must be a success (or have that status); no process of it may be left. Return its record."""
        self.wait_for(lambda: self.manager.unit.state in ("dead", "failed"), patience=patience)
        assert self.process.returncode == status, self.output
        wait_until(lambda: not self.processes())  # multiprocessing's resource tracker ends when it sees its parent's end
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
    with PatientManager(timeout_stop=TIMEOUT_STOP, notify_access=subject.notify_access) as manager:
        made = Server(subject, manager, tmp_path, free_port)
        try:
            yield made
        finally:
            made.kill()
