"""docs/containers.md: a service behind a proxy that forwards to systemd what podman's does, and no extension."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from requiem_systemd.cli.doctor import sources
from requiem_systemd.cli.doctor.rules import findings
from requiem_systemd.protocol import timespan
from tests.systemd import conmon
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.systemd.conftest import ServiceFactory, Unit

CONMON: Final = Path(conmon.__file__).resolve()
PAGE: Final = (CHECKOUT / "docs" / "containers.md").read_text(encoding="utf-8")
SERVICE: Final = """
    import os, sys, threading, time
    import requiem_systemd as requiem

    def export():
        time.sleep(float(os.environ["JOB"]))
        print("job done", flush=True)

    requiem.initialize()
    requiem.track(threading.Thread(target=export, daemon=True), label="export 42").start()
    requiem.ready("up")
    if sys.argv[1:]:
        requiem.begin("on its own account")
    requiem.wait()
"""


@pytest.fixture
def container(service: ServiceFactory, python: str) -> Callable[..., Unit]:
    """Return a function that starts a container as a unit, with the lines that Quadlet writes."""

    def container(*argv: str, old: bool = False, job: float = 4, stop: float = 10, unit: float = 60, **env: str) -> Unit:
        path = "/run/requiem-tests/contained.py"
        words = f"{python} -u {CONMON} {'--old ' if old else ''}%t/%N {python} -u {path} {' '.join(argv)}"
        environment = {"PYTHONPATH": str(CHECKOUT), "JOB": str(job), **env}
        made = service(
            SERVICE,
            start=False,
            ExecStart=words,
            ExecStop=f"{python} {CONMON} --stop {stop} %t/%N",
            Type="notify",
            NotifyAccess="all",
            KillMode="mixed",
            Delegate="yes",
            RuntimeDirectory="%N",
            TimeoutStopSec=unit,
            Environment=[f'"{name}={value}"' for name, value in environment.items()],
        )
        text = made.box.read(f"/run/requiem-tests/{made.name.removesuffix('.service')}.py")
        made.box.write(path, text)
        made.start()
        return made

    return container


@pytest.mark.parametrize(("old", "status"), [(True, ""), (False, "up")])
def test_readiness_is_forwarded(container: Callable[..., Unit], status: str, *, old: bool) -> None:
    """READY=1 comes through, from another process than it was said by; STATUS= since conmon 2.1.9."""
    unit = container(old=old, job=0)
    assert (unit.state, unit.status_text) == ("active", status)
    assert unit.stop().result == "success"


def test_what_is_forwarded() -> None:
    """Of the first message of a drain the extension is lost, and with old versions all of it."""
    said = "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=Draining"
    assert conmon.forwarded(said, old=False) == "STOPPING=1\nSTATUS=Draining"
    assert conmon.forwarded(said, old=True) == ""


def test_stop_is_not_extended(container: Callable[..., Unit]) -> None:
    """A job that is longer than podman's stop timeout dies with the container, whatever TimeoutStopSec= is; the start has warned of that."""
    unit = container(stop=1)
    unit.stop()
    journal = unit.journal()
    assert "job done" not in journal
    assert "--stop-timeout" in journal


@pytest.mark.parametrize("old", [True, False])
def test_jobs_are_named_before_the_kill(container: Callable[..., Unit], *, old: bool) -> None:
    """With REQUIEM_DRAIN_TIMEOUT= below the stop timeout it is named, and the unit has failed with 75."""
    unit = container(old=old, job=60, stop=8, REQUIEM_DRAIN_TIMEOUT="1s")
    ended = unit.stop()
    assert (ended.result, ended.status) == ("exit-code", 75)
    assert "export 42" in unit.journal()


def test_stop_timeout_is_what_counts(container: Callable[..., Unit]) -> None:
    """A job that is shorter than the stop timeout ends, if the unit's own timeout is longer still."""
    unit = container(job=3)
    ended = unit.stop()
    assert (ended.result, ended.status) == ("success", 0)
    assert "job done" in unit.journal()


@pytest.mark.parametrize(("old", "unit_timeout", "done"), [(False, 1, False), (False, 10, True), (True, 1, True)])
def test_drain_of_its_own(container: Callable[..., Unit], unit_timeout: float, *, old: bool, done: bool) -> None:
    """A drain that nobody asked for is held by TimeoutStopSec= alone: STOPPING=1 arms it since conmon 2.1.9, and the extension is lost."""
    unit = container("begin", old=old, job=3, unit=unit_timeout)
    unit.wait_for("Deactivated successfully" if done else "Failed with result")
    assert ("job done" in unit.journal()) == done
    assert unit.result == ("success" if done else "timeout")


def test_the_page_s_figures_fit(tmp_path: Path) -> None:
    """In the page's .container file each limit has room for the one inside it, and doctor finds nothing."""
    text = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
    drain, inner, outer = (
        timespan(re.findall(rf"{key}=(\w+)", text)[0]) for key in ("REQUIEM_DRAIN_TIMEOUT", "StopTimeout", "TimeoutStopSec")
    )
    assert drain < inner < outer
    (tmp_path / "shop.container").write_text(text)
    assert findings(sources.from_file(str(tmp_path / "shop.container"))) == []
