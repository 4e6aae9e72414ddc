"""Programs as services of a manager that plays systemd, in real time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import requiem_systemd
from tests.patience import PatientManager
from tests.process.running import Manager, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = str(Path(requiem_systemd.__file__).parents[1])


class Program:
    """One Python program as the unit's main process; what it writes is kept in a file."""

    def __init__(self, manager: PatientManager, folder: Path) -> None:
        """Store; `start` acts."""
        self.manager = manager
        self._output = folder / "output"
        self._folder = folder
        self._prefix: list[str] = []
        self.process: subprocess.Popen[Any]

    def start(
        self, code: str, *, prefix: tuple[str, ...] = (), until: str | None = "running", **env: str
    ) -> Program:
        """Run a program, and wait until the unit is in a state."""
        path = self._folder / "program.py"
        path.write_text("import requiem_systemd as requiem\n" + textwrap.dedent(code))
        with self._output.open("wb") as output:
            self.process = self.manager.spawn(
                [*prefix, sys.executable, "-X", "dev", str(path)],
                env={"PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if until is not None:
            self.wait_for(until)
        return self

    def wait_for(self, what: Any) -> None:
        """Wait for a state; show what the program wrote if it does not come."""
        try:
            self.manager.wait_for(what)
        except TimeoutError as error:
            error.add_note(self.output)
            raise

    def ended(self, status: int = 0) -> str:
        """Wait for its end; it must have that exit status. Return what it wrote."""
        self.wait_for(lambda: self.manager.unit.state in ("dead", "failed"))
        assert self.process.returncode == status, self.output
        return self.output

    @property
    def output(self) -> str:
        """What it has written."""
        return self._output.read_text()


@pytest.fixture
def manager() -> Iterator[PatientManager]:
    """Return a manager whose stop timeout is long: these tests are of the program's own behaviour."""
    with PatientManager(timeout_stop=60) as manager:
        yield manager


@pytest.fixture
def program(manager: PatientManager, tmp_path: Path) -> Program:
    """Return what runs programs under `manager`."""
    return Program(manager, tmp_path)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Return a process to be started under a socket that only listens; it ends with the test."""
    with (
        contextlib.closing(Manager(tmp_path / "notify")) as socket,
        contextlib.closing(Running(socket, tmp_path)) as process,
    ):
        yield process
