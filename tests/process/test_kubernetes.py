"""docs/containers.md, as far as it goes without Kubernetes: SIGTERM, a grace period, SIGKILL, and nobody who can be asked for more time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from requiem_systemd.protocol import timespan
from tests.process.running import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = (CHECKOUT / "docs" / "containers.md").read_text(encoding="utf-8")
#: Far above what the drains here take: a machine may be busy.
GRACE: Final = 8.0
SERVICE: Final = """
import sys, threading, time
import requiem_systemd as requiem

def export():
    print("job: begun", flush=True)
    time.sleep(float(sys.argv[1]))
    print("job: done", flush=True)

requiem.initialize()
requiem.track(threading.Thread(target=export, daemon=True), label="export 42").start()
requiem.ready()
requiem.wait()
"""


class Container:
    """One container's process, and what it writes to its log."""

    def __init__(self, *, seconds: float, prefix: tuple[str, ...] = (), **env: str) -> None:
        """Start it, and wait until its job has begun."""
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), **env}
        words = (*prefix, sys.executable, "-c", SERVICE, str(seconds))
        self.process = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.log = self.process.stdout.readline()
        assert self.log == "job: begun\n"

    def terminate(self, grace: float, pid: int | None = None) -> int:
        """End it as the kubelet does, and return how that went."""
        os.kill(pid or self.process.pid, signal.SIGTERM)
        try:
            rest, _ = self.process.communicate(timeout=grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            rest, _ = self.process.communicate()
        self.log += rest
        return self.process.returncode


@pytest.fixture
def containers() -> Iterator[list[Container]]:
    """Return a list of what is to be gone in the end."""
    made: list[Container] = []
    yield made
    for one in made:
        one.process.kill()
        one.process.communicate()


def test_jobs_are_named_before_the_kill(containers: list[Container]) -> None:
    """With REQUIEM_DRAIN_TIMEOUT= below the grace period a job that lasts longer is in the log, with where it stands, and the status is 75."""
    containers.append(container := Container(seconds=60, REQUIEM_DRAIN_TIMEOUT="1s"))
    assert container.terminate(GRACE) == 75
    assert 'abandoned "export 42" 1 s, thread' in container.log
    assert "<string>:7:export" in container.log


def test_without_it_nobody_is_told(containers: list[Container]) -> None:
    """Without it the same job dies with the process, at the end of the grace period, and the log does not say so."""
    containers.append(container := Container(seconds=60))
    assert container.terminate(1.5) == -signal.SIGKILL
    assert "abandon" not in container.log


def test_job_within_the_grace_period(containers: list[Container]) -> None:
    """A job that is shorter than both ends, and so does the process, at once and well."""
    containers.append(container := Container(seconds=0.5, REQUIEM_DRAIN_TIMEOUT="2s"))
    assert container.terminate(GRACE) == 0
    assert container.log.endswith("job: done\n")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_process_one(containers: list[Container]) -> None:
    """As PID 1 of a container, for whom the kernel drops signals without a handler, it drains in the same way."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    containers.append(container := Container(seconds=0.5, prefix=prefix))
    children = Path(f"/proc/{container.process.pid}/task/{container.process.pid}/children").read_text().split()
    assert container.terminate(GRACE, int(children[0])) == 0
    assert container.log.endswith("job: done\n")


def test_the_page_s_figures_fit() -> None:
    """In the page's manifest the grace period has room for the drain and the way out, and the drain for the lame duck."""
    grace = float(re.findall(r"terminationGracePeriodSeconds: (\d+)", PAGE)[0])
    given = {name: timespan(value) for name, value in re.findall(r"name: (REQUIEM_\w+), value: (\w+)", PAGE)}
    assert set(given) == {"REQUIEM_DRAIN_TIMEOUT", "REQUIEM_LAME_DUCK", "REQUIEM_EXIT_TIMEOUT"}
    assert given["REQUIEM_LAME_DUCK"] < given["REQUIEM_DRAIN_TIMEOUT"]
    assert given["REQUIEM_DRAIN_TIMEOUT"] + given["REQUIEM_EXIT_TIMEOUT"] < grace
