"""The control: without the library a job is killed, and systemd does let one that asks for time live.

If one of these fails, the sandbox lies, and no other test with systemd means anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.systemd import debs
from tests.systemd.conftest import stop
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    import pytest

    from tests.systemd.conftest import ServiceFactory, ServicesFactory

#: A job of 6 s in a thread, begun before READY=1; SIGTERM as usual in Python: SystemExit, then threads.
JOB = """
import os, signal, socket, sys, threading, time

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

def work():
    time.sleep(6)
    print("job done", flush=True)

job = threading.Thread(target=work)
job.start()
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
"""
PLAIN = f"""{JOB}
notify("READY=1")
signal.pause()
"""
HAND_WRITTEN = f"""{JOB}
notify("READY=1")
try:
    signal.pause()
finally:
    while job.is_alive():
        notify("STOPPING=1\\nEXTEND_TIMEOUT_USEC=2000000")
        job.join(0.5)
"""


def test_units_import_what_is_tested(service: ServiceFactory, python: str, request: pytest.FixtureRequest) -> None:
    """What a unit imports is the checkout's package; where packages are installed, or the tree of the tests has none, the installed one."""
    own = (CHECKOUT / "requiem_systemd").is_dir() and not request.config.getoption("--sandbox-debs")
    trees = (CHECKOUT, Path(python).parents[1] / "checkout")  # the second is where a virtual environment has it
    places = [f"{tree}/requiem_systemd" for tree in trees] if own else [debs.INSTALLED]
    unit = service("import requiem_systemd; print('imported from', requiem_systemd.__file__)", Type="oneshot")
    assert unit.wait_for("imported from").split()[-1] in [f"{place}/__init__.py" for place in places]


def test_plain_dies(services: ServicesFactory, repetitions: int) -> None:
    """A service with a job longer than TimeoutStopSec= is killed when that has passed."""
    for unit, stopped in zip(units := services(repetitions, PLAIN), stop(*units), strict=True):
        assert stopped.result == "timeout"
        assert stopped.seconds >= 2.0
        assert "job done" not in unit.journal()


def test_hand_written_survives(services: ServicesFactory, repetitions: int) -> None:
    """A service that extends by hand, every half second, is let live until its job is done."""
    for unit, stopped in zip(units := services(repetitions, HAND_WRITTEN), stop(*units), strict=True):
        assert stopped.result == "success"
        assert stopped.seconds > 5.0
        assert "job done" in unit.journal()


def test_hardened_runs(service: ServiceFactory) -> None:
    """A unit of another user, which sees a read-only system, can run this Python and import the package."""
    script = """
    import os, socket, requiem_systemd, sdnotify
    print("ran as", "root" if os.getuid() == 0 else "another", flush=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    """
    unit = service(script, DynamicUser="yes", ProtectSystem="strict", ProtectHome="yes", PrivateTmp="yes")
    assert "ran as another" in unit.journal()


def test_leftovers_are_waited_for(service: ServiceFactory) -> None:
    """The unit is not gone before its last process is (in a container with a shared cgroup it would be)."""
    script = """
    import os, signal, socket, subprocess
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 2; echo leftover ends"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    signal.pause()
    """
    unit = service(script, KillMode="control-group", TimeoutStopSec=5)
    stopped = unit.stop()
    assert stopped.result == "success"
    assert stopped.seconds > 1.5
    assert "leftover ends" in unit.journal()


def test_journal_is_waited_for(service: ServiceFactory) -> None:
    """A line that is written later is seen; the rest of the suite waits by it instead of sleeping."""
    unit = service("import time; time.sleep(0.3); print('here I am'); time.sleep(60)", Type="exec")
    assert unit.wait_for("here I") == "here I am\n"
