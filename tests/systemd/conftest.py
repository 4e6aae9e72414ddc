"""A booted systemd for the session, and scripts as units in it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import signal
import subprocess
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from tests.systemd import debs
from tests.systemd.sandbox import CHECKOUT, CommandError, Sandbox, SandboxError, missing, systemd_version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from pluggy import Result

UNITS = pytest.StashKey[list["Unit"]]()


#: What is not run against an installed package, and why.
WITH_A_CHECKOUT: Final = {
    "test_adapters.py": "the newest of every server, which no Debian has: `tests/run systemd` runs it",
    "test_queues.py": "the same of task queues",
    "test_sandbox.py": "of the tests' own container, nothing of the package's",
}
collect_ignore = [] if (CHECKOUT / "requiem_systemd").is_dir() else list(WITH_A_CHECKOUT)
#: What was left out, and why: lines for the report.
LEFT_OUT = pytest.StashKey[list[str]]()


@pytest.hookimpl(hookwrapper=True)  # not `wrapper`: Debian 12's pytest does not know it
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark what is in this folder; of what is chosen, leave out what this systemd cannot do, and say so."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("systemd")
    yield
    lacking = _lacking(config, items)
    config.stash[LEFT_OUT] = [f"left out: {name}, {WITH_A_CHECKOUT[name]}" for name in collect_ignore]
    config.stash[LEFT_OUT] += [f"left out: {count} test{'s' * (count > 1)}, {why}" for why, count in Counter(lacking.values()).items()]
    if lacking:
        config.hook.pytest_deselected(items=list(lacking))
        items[:] = [item for item in items if item not in lacking]
    items[:] = _turned(items, config.getoption("--sandbox-turn"))


def _turned(items: list[pytest.Item], part: float) -> list[pytest.Item]:
    """Begin elsewhere, at the top of a file: who runs the same tests side by side has not all of them under load at once."""
    if not items:
        return items
    begin = items[int(len(items) * part)].path
    first = next(number for number, item in enumerate(items) if item.path == begin)
    return [*items[first:], *items[:first]]


def _lacking(config: pytest.Config, items: list[pytest.Item]) -> dict[pytest.Item, str]:
    """Return the tests that want something newer than there is, and what that lacks."""
    if missing():
        return {}
    found = {}
    for item in items:
        for mark in item.iter_markers("since"):
            if reason := lacks(config, *mark.args):
                found[item] = reason
    return found


def lacks(config: pytest.Config, since: str, what: str, of: str = "systemd") -> str:
    """Say that the systemd of the tests, or another package of that Debian, is older than a version; empty if it is not."""
    version = _version(config.getoption("--sandbox-root"), config.getoption("--sandbox-python"), of)
    older = version and [int(part) for part in re.findall(r"\d+", version)] < [int(part) for part in since.split(".")]
    return f"{of} {version} has no {what} ({since})" if older else ""


@functools.cache
def _version(root: str, python: str, of: str) -> str:
    """Return a version in a tree; empty, which is the newest, of what comes from the index or is not there."""
    if of == "systemd":
        return str(systemd_version(root))
    if (CHECKOUT / "requiem_systemd").is_dir():
        return ""
    code = f"import importlib.metadata; print(importlib.metadata.version({of!r}))"
    return subprocess.run(("chroot", root, python, "-c", code), check=False, capture_output=True, text=True).stdout.strip()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out."""
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line)


@pytest.hookimpl(hookwrapper=True)  # not `wrapper`: Debian 12's pytest does not know it
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Result[pytest.TestReport], None]:
    """Show the journal of the units of a test that failed."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for unit in item.stash.get(UNITS, []):
            try:
                text = unit.journal()
            except (CommandError, SandboxError, subprocess.TimeoutExpired) as error:
                text = str(error)
            report.sections.append((f"journal of {unit.name}", text))


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]) -> Iterator[Sandbox]:
    """Return a booted container, the same for all tests: name units so that they do not meet."""
    if reason := missing():
        pytest.skip(f"no systemd: {reason}")
    for line in request.config.stash.get(LEFT_OUT, []):
        record_testsuite_property("left out", line)
    with booted(request.config) as box:
        yield box


@contextlib.contextmanager
def booted(config: pytest.Config, *, bind: Iterable[Path] = ()) -> Iterator[Sandbox]:
    """Boot a container in which units find the package: this checkout's, or that which --sandbox-debs= has installed."""
    with Sandbox(config.getoption("--sandbox-root"), bind=[*config.getoption("--sandbox-bind"), *bind]) as box:
        second = Path(config.getoption("--sandbox-python")).parents[1] / "checkout"
        if second.is_dir():
            box.bind(CHECKOUT, at=second)
        if folder := config.getoption("--sandbox-debs"):
            debs.install(box, folder)
        yield box


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the Debian packages, built here unless REQUIEM_DEBS= says where they are."""
    if given := os.environ.get("REQUIEM_DEBS"):
        return Path(given)
    if reason := debs.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("package")
    debs.build(folder)
    return folder


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> str:
    """Return the Python by which units are run: it has the package."""
    path: str = request.config.getoption("--sandbox-python")
    return path


@dataclasses.dataclass(frozen=True)
class Stopped:
    """How a unit ended, by systemd's own account."""

    result: str  # Result=: "success", "timeout", "exit-code", "watchdog" ...
    status: int  # the exit status of the main process, or the signal that killed it
    seconds: float  # from the begin of the stop until the unit was inactive


class Unit:
    """A service in the sandbox."""

    def __init__(self, box: Sandbox, name: str) -> None:
        """Store; the `service` fixture writes."""
        self.box = box
        self.name = name

    def __repr__(self) -> str:
        """Name the unit."""
        return f"<Unit {self.name}>"

    def start(self) -> None:
        """Start it, and wait until systemd has it for started."""
        self.box.systemctl("start", self.name)

    def stop(self) -> Stopped:
        """Stop it, and say how that went."""
        return stop(self)[0]

    def restart(self) -> None:
        """Restart it."""
        self.box.systemctl("restart", self.name)

    def reload(self) -> None:
        """Reload it."""
        self.box.systemctl("reload", self.name)

    def kill(self, name: str, whom: str = "main") -> None:
        """Send it a signal, by name."""
        self.box.systemctl("kill", f"--signal={name}", f"--kill-who={whom}", self.name)

    def show(self, *properties: str) -> dict[str, str]:
        """Return properties."""
        return self.box.show(self.name, *properties)

    def journal(self) -> str:
        """Return its journal."""
        return self.box.journal(self.name)

    def wait_for(self, text: str, timeout: int = 10) -> str:
        """Wait until it has written a line with `text` to the journal, and return that line."""
        follow = ("journalctl", "--follow", "--lines=all", "--output=cat", f"--unit={self.name}")
        with self.box.popen("timeout", str(timeout), *follow, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                return next(line for line in process.stdout if text in line)
            except StopIteration:
                pytest.fail(f"{self.name} wrote no {text!r} within {timeout} s")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    @property
    def state(self) -> str:
        """ActiveState=: "active", "inactive", "failed", "deactivating" ..."""
        return self.show("ActiveState")["ActiveState"]

    @property
    def result(self) -> str:
        """Result=."""
        return self.show("Result")["Result"]

    @property
    def status_text(self) -> str:
        """What the service last said by STATUS=."""
        return self.show("StatusText")["StatusText"]

    @property
    def main_pid(self) -> int:
        """Its main process, as numbered inside; 0 if there is none."""
        return int(self.show("MainPID")["MainPID"])

    def stopped(self) -> Stopped:
        """Say how it ended."""
        values = self.show(
            "Result", "ExecMainStatus", "ActiveExitTimestampMonotonic", "InactiveEnterTimestampMonotonic"
        )
        begin, end = (int(values[f"{edge}TimestampMonotonic"]) for edge in ("ActiveExit", "InactiveEnter"))
        return Stopped(values["Result"], int(values["ExecMainStatus"]), (end - begin) / 1e6)


def stop(*units: Unit) -> list[Stopped]:
    """Stop units side by side, by one `systemctl stop`, and say how that went for each."""
    units[0].box.systemctl("stop", *(unit.name for unit in units), timeout=120)
    return [unit.stopped() for unit in units]


class ServiceFactory(Protocol):
    """What the `service` fixture returns."""

    def __call__(self, script: str, *, start: bool = True, **settings: object) -> Unit:
        """Write a Python script as a unit, with `settings` for [Service] over the usual, and start it."""


class ServicesFactory(Protocol):
    """What the `services` fixture returns."""

    def __call__(self, count: int, script: str, *, start: bool = True, **settings: object) -> list[Unit]:
        """Write a Python script as several units, and start them side by side."""


@pytest.fixture
def services(sandbox: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[ServicesFactory]:
    """Return a function that writes and starts units; they end with the test."""
    units = request.node.stash.setdefault(UNITS, [])
    stem = re.sub(r"[^A-Za-z0-9]+", "-", request.node.nodeid.rpartition("/")[2]).strip("-")

    def services(count: int, script: str, *, start: bool = True, **settings: object) -> list[Unit]:
        new = [Unit(sandbox, f"{stem}-{len(units) + number}.service") for number in range(count)]
        units.extend(new)
        path = f"/run/requiem-tests/{new[0].name.removesuffix('.service')}.py"
        sandbox.write(path, textwrap.dedent(script).lstrip())
        for unit in new:
            sandbox.unit(unit.name, unit_text(f"{python} -u {path}", settings))
        # systemd forgets a unit that has ended well, its result and its times, unless another refers to it.
        holder = new[0].name.replace(".service", ".target")
        sandbox.unit(holder, f"[Unit]\nAfter={' '.join(unit.name for unit in new)}\n")
        sandbox.systemctl("start", holder, *(unit.name for unit in new if start))
        return new

    yield services
    if units:
        names = [unit.name for unit in units]
        sandbox.systemctl("stop", "--no-block", *names, check=False)
        sandbox.systemctl("kill", "--signal=KILL", *names, check=False)
        sandbox.systemctl("stop", *names, check=False)
        sandbox.systemctl("reset-failed", *names, check=False)


@pytest.fixture
def service(services: ServicesFactory) -> ServiceFactory:
    """Return a function that writes and starts one unit."""

    def service(script: str, *, start: bool = True, **settings: object) -> Unit:
        return services(1, script, start=start, **settings)[0]

    return service


def unit_text(command: str, settings: Mapping[str, object]) -> str:
    """Return a unit; a setting that is None is left out, one that is a list comes several times."""
    usual = {
        "Type": "notify",
        "NotifyAccess": "main",
        "KillMode": "mixed",
        "TimeoutStartSec": 60,  # many may start at once, on a machine that is busy
        "TimeoutStopSec": 2,
        "ExecStart": command,
    }
    lines = ["[Unit]", "StartLimitIntervalSec=0", "[Service]"]
    for name, value in {**usual, **settings}.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"{name}={single}" for single in values if single is not None]
    return "\n".join([*lines, ""])
