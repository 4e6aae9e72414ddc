"""Mistakes in the unit that the service names by itself, because they would cost a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from tests.systemd.conftest import ServiceFactory

PATH = f"PYTHONPATH={CHECKOUT}"
SERVICE = """
import requiem_systemd as requiem
requiem.initialize()
requiem.ready()
requiem.process.engine.loop.call(lambda: print("named", flush=True))
requiem.wait()
"""
# As a server with worker processes does: the main process is not the one that has the jobs.
PARENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import signal, threading, requiem_systemd as requiem
requiem.initialize()
with requiem.track("job"):
    requiem.ready()
    requiem.process.engine.loop.call(lambda: print("named", flush=True))
    requiem.process.wait_begin()
    threading.Event().wait(6)
    print("job ended", flush=True)
'''])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
child.wait()
"""


@pytest.mark.parametrize(
    ("mode", "named"), [("mixed", False), (None, True), ("control-group", True), ("process", True)]
)
def test_killmode(service: ServiceFactory, mode: str | None, *, named: bool) -> None:
    """A KillMode= other than mixed, also the default one, is named once, with what it does to jobs."""
    unit = service(SERVICE, KillMode=mode, Environment=PATH)
    unit.wait_for("named")
    assert unit.journal().count(f"KillMode={mode or 'control-group'} in {unit.name}") == named


def test_worker_that_nobody_listens_to(service: ServiceFactory) -> None:
    """A worker process under NotifyAccess=main is told that its messages are dropped, and what to write."""
    unit = service(PARENT, NotifyAccess="main", Type="exec", Environment=PATH)
    unit.wait_for("named")
    assert "Write NotifyAccess=all" in unit.journal()


def test_watchdog_that_nobody_feeds(service: ServiceFactory) -> None:
    """A worker process whose parent is to feed the watchdog says that it does not, and what to write."""
    unit = service(PARENT, NotifyAccess="all", WatchdogSec=60, Environment=PATH)
    unit.wait_for("named")
    assert f"WatchdogSec= is for process {unit.main_pid}" in unit.journal()


def test_worker_holds_the_stop(service: ServiceFactory) -> None:
    """Under NotifyAccess=all a worker's extensions count, nothing is wrong, and its job outlives TimeoutStopSec=."""
    unit = service(PARENT, NotifyAccess="all", Environment=PATH)
    unit.wait_for("named")
    assert "Write NotifyAccess=all" not in unit.journal()
    assert unit.stop().result == "success"
    assert "job ended" in unit.journal()
