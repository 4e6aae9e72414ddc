"""The README's programs are compiled and run as they stand; what it says of names and defaults is so."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import requiem_systemd
from requiem_systemd.options import Options
from requiem_systemd.protocol import read

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS: Final = [text for kind, text in BLOCKS if kind == "python"]
UNITS: Final = [text for kind, text in BLOCKS if kind == "ini"]
PAGES: Final = sorted(str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "units/*.md", "examples/*.md") for path in ROOT.glob(pattern))
TITLES: Final = ("fastapi", "threads", "asyncio", "worker")
HEADINGS: Final = (
    *("What dies elsewhere", "What you add", "See it", "Do you need this?", "The servers and workers that you already run", "Limits"),
    *("What a unit does to a drain", "Exit statuses", "What it runs on", "Install"),
)
PATIENCE: Final = 15.0


def test_there_are_four_programs() -> None:
    """One for each kind of service, as the tests below take them."""
    assert len(TITLES) == len(PROGRAMS)


def test_order() -> None:
    """A newcomer reads: what dies, what to add, how to see it, whether it is needed, what it cannot do."""
    assert list(HEADINGS) == re.findall(r"^## (.+)$", README, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=TITLES)
def test_program_compiles(program: str) -> None:
    """Each program is Python."""
    compile(program, "README.md", "exec")


@pytest.mark.parametrize("program", PROGRAMS, ids=TITLES)
def test_program_adds_at_most_six_lines(program: str) -> None:
    """What is added is marked, and little."""
    assert 1 <= sum(line.endswith("# +") for line in program.splitlines()) <= 6


@pytest.mark.parametrize("unit", UNITS, ids=range(len(UNITS)))
def test_unit_has_the_line_that_bears_the_load(unit: str) -> None:
    """Without KillMode=mixed systemd signals the jobs' own processes."""
    assert "KillMode=mixed\n" in unit
    assert "TimeoutStopSec=" in unit


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Files that are linked to are there, from the README and from every page beside and below it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_pages_are_found() -> None:
    """The README leads to every page of docs/."""
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)\)", README))
    assert {page for page in PAGES if page.startswith("docs/")} == linked


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_pages_hold_python(page: str) -> None:
    """What a page shows as Python is Python."""
    for program in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        compile(program, page, "exec")


def test_limits_in_the_unit_are_understood() -> None:
    """Every REQUIEM_* line of the README is taken as it stands, and each option has one."""
    assignments = dict(re.findall(r"`Environment=(REQUIEM_\w+)=(\w+)`", README))
    environment = read(assignments, os.getpid())
    assert environment.problems == ()
    assert {"drain_timeout", "request_timeout", "lame_duck", "exit_timeout"} == set(environment.limits)


def test_defaults_are_the_code_s() -> None:
    """The defaults in the table of limits are those of `initialize`."""
    said = dict(re.findall(r"\| ([^|]+) \| `Environment=REQUIEM_(\w+)=", README))
    defaults = {name.lower(): default for default, name in said.items()}
    written = {"no limit": None, "30 s": 30.0, "0": 0.0, "90 s": 90.0}
    assert {name: getattr(Options(), name) for name in defaults} == {name: written[text] for name, text in defaults.items()}


def test_status_75_is_the_code_s() -> None:
    """What abandoned jobs exit with is what the table of exit statuses says."""
    assert os.EX_TEMPFAIL == 75
    assert "| 75 | jobs were abandoned" in README


class Program:
    """A program of the README as a service's process, under a manager that is a bare socket."""

    def __init__(self, process: subprocess.Popen[str], manager: socket.socket) -> None:
        """Store."""
        self.process = process
        self.manager = manager
        self.said = ""
        self.output = ""

    def wait_for(self, *, said: str = "", printed: str = "") -> None:
        """Wait until the manager has been told something, or something was printed."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while said not in self.said or printed not in self.output:
            manager, output = self.manager.fileno(), self.process.stdout.fileno()
            readable, _, _ = select.select([manager, output], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{said or printed!r} did not come: {self.said}{self.output}"
            if manager in readable:
                self.said += self.manager.recv(4096).decode()
            if output in readable:
                new = os.read(output, 65536).decode()
                assert new, f"it has ended: {self.said}{self.output}"
                self.output += new

    def stop(self) -> int:
        """Send SIGTERM, as systemd does; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_for(said="STOPPING=1")
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.output += rest
        return self.process.returncode


@contextlib.contextmanager
def running(folder: Path, text: str, *arguments: str) -> Iterator[Program]:
    """Run a program, by `python app.py` or as `arguments` say."""
    (folder / "app.py").write_text(text, encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        # The package in this process is the one that the program gets.
        path = os.pathsep.join((str(Path(requiem_systemd.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])))
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            (sys.executable, *(arguments or ("app.py",))),
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield Program(process, manager)
            finally:
                process.kill()


def post(port: int) -> int:
    """Ask for an export; return the answer's status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/export")
        return connection.getresponse().status


def test_fastapi_program_finishes_its_job(tmp_path: Path, free_port: int) -> None:
    """Stopped under uvicorn with a task in flight, it exits 0 when the task has ended."""
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name)
    with running(tmp_path, PROGRAMS[0], "-m", "uvicorn", "app:app", "--port", str(free_port)) as program:
        program.wait_for(said="READY=1")
        program.wait_for(printed="Uvicorn running")
        assert post(free_port) == 200
        program.wait_for(printed="export begins")
        assert program.stop() == 0
        assert "export done" in program.output


def test_threaded_program_finishes_its_job(tmp_path: Path, free_port: int) -> None:
    """Stopped with a job in a daemon thread, it exits 0 when the job has ended."""
    with running(tmp_path, PROGRAMS[1].replace("8080", str(free_port))) as program:
        program.wait_for(said="READY=1")
        assert post(free_port) == 202
        program.wait_for(printed="export begins")
        assert program.stop() == 0
        assert "export done" in program.output


def test_asyncio_program_finishes_its_jobs(tmp_path: Path) -> None:
    """Stopped with tasks in flight, it exits 0 when all have ended."""
    with running(tmp_path, PROGRAMS[2]) as program:
        program.wait_for(said="READY=1")
        program.wait_for(printed="export begins")
        assert program.stop() == 0
        assert program.output.count("export begins") == program.output.count("export done") > 0


def test_worker_finishes_its_job(tmp_path: Path) -> None:
    """Stopped inside a job, it finishes that one, fetches no other, and exits 0."""
    with running(tmp_path, PROGRAMS[3]) as program:
        program.wait_for(said="READY=1")
        program.wait_for(printed="export 0 begins")
        assert program.stop() == 0
        assert program.output.split("\n") == ["export 0 begins", "export 0 done", ""]


def test_names_exist() -> None:
    """What the programs use of the library is there."""
    used = set(re.findall(r"requiem\.(\w+)", "".join(PROGRAMS)))
    assert set() == {name for name in used if not hasattr(requiem_systemd, name)}
    assert importlib.util.find_spec("requiem_systemd.asgi") is not None
