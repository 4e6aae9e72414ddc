"""Garbage from the environment and from callers: reported or refused at once, never a crash later."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import requiem_systemd as requiem
from requiem_systemd import NotMainThreadError, Service
from requiem_systemd.protocol import read
from requiem_systemd.service import process

if TYPE_CHECKING:
    from requiem_systemd.testing import FakeManager

GARBAGE = ["", " ", "-1", "1.5", "abc", "0x3", "٣", "3 ", "+3", "9" * 30, "1" * 5000, "\udcff", "NaN"]


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("name", ["LISTEN_FDS", "LISTEN_PID"])
def test_listen_garbage(name: str, value: str) -> None:
    """No listener is taken over, and the problem is named."""
    environment = read({"LISTEN_PID": "42", "LISTEN_FDS": "2", name: value}, 42)
    assert environment.listeners == ()
    assert len(environment.problems) == 1
    assert name in environment.problems[0]


def test_listen_fds_of_another_process() -> None:
    """What was passed to somebody else is not ours, and no problem."""
    environment = read({"LISTEN_PID": "41", "LISTEN_FDS": "2"}, 42)
    assert (environment.listeners, environment.problems) == ((), ())


def test_listen_pidfdid_of_another_process() -> None:
    """A process that got our pid later is told apart by its pidfd's inode (systemd 259)."""
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": "1", "LISTEN_PIDFDID": "777"}
    assert read(environ, 42, pidfdid=778).listeners == ()
    assert read(environ, 42, pidfdid=777).listeners == ((3, "unknown"),)
    assert read(environ, 42).listeners == ((3, "unknown"),)  # cannot be known: not looked at


def test_huge_listen_fds() -> None:
    """More than there can be is a problem, not a gigabyte of names."""
    environment = read({"LISTEN_PID": "42", "LISTEN_FDS": "4000000000"}, 42)
    assert environment.listeners == ()
    assert len(environment.problems) == 1


@pytest.mark.parametrize("names", ["a", "a:b:c", ":::"])
def test_a_wrong_number_of_names(names: str) -> None:
    """Names that do not match the descriptors are ignored, the descriptors are not."""
    environment = read({"LISTEN_PID": "42", "LISTEN_FDS": "2", "LISTEN_FDNAMES": names}, 42)
    assert environment.listeners == ((3, "unknown"), (4, "unknown"))
    assert "LISTEN_FDNAMES" in environment.problems[0]


@pytest.mark.parametrize("value", [*GARBAGE, "0"])
def test_watchdog_garbage(value: str) -> None:
    """The watchdog is not fed, and the problem is named."""
    environment = read({"WATCHDOG_USEC": value, "WATCHDOG_PID": "42"}, 42)
    assert environment.watchdog is None
    assert "WATCHDOG_USEC" in environment.problems[0]


@pytest.mark.parametrize("pid", ["41", "", "abc"])
def test_watchdog_of_another_process(pid: str) -> None:
    """A watchdog that is not ours is not fed."""
    assert read({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": pid}, 42).watchdog is None


@pytest.mark.parametrize("value", ["relative", "//", " /run/x", "unix:/run/x", "\n"])
def test_notify_socket_garbage(value: str) -> None:
    """What is no address is named, or fails when it is used: reading never does."""
    environment = read({"NOTIFY_SOCKET": value}, 42)
    assert (environment.notify_socket is None) == bool(environment.problems)


@pytest.mark.parametrize("value", ["", "soon", "-5", "NaN", "1e400", "5 parsecs", "\udcff", "infinite"])
@pytest.mark.parametrize("name", ["DRAIN_TIMEOUT", "REQUEST_TIMEOUT", "LAME_DUCK", "EXIT_TIMEOUT"])
def test_limit_garbage(name: str, value: str) -> None:
    """A limit that makes no sense is named and ignored."""
    environment = read({f"REQUIEM_{name}": value}, 42)
    assert (dict(environment.limits), len(environment.problems)) == ({}, 1)
    assert f"REQUIEM_{name}" in environment.problems[0]


@pytest.mark.parametrize("value", ["", ":", "8", "a:b", "-1:2", "8:1:2", "²:1"])
def test_journal_stream_garbage(value: str) -> None:
    """What is no device and inode is none."""
    assert read({"JOURNAL_STREAM": value}, 42).journal_stream is None


def test_garbage_everywhere(manager: FakeManager, warnings_of: list[str]) -> None:
    """A service whose whole environment is garbage works, and says what is wrong."""
    names = (
        "LISTEN_FDS",
        "LISTEN_PID",
        "WATCHDOG_USEC",
        "REQUIEM_DRAIN_TIMEOUT",
        "JOURNAL_STREAM",
        "SYSTEMD_EXEC_PID",
    )
    service = manager.arm(Service(), environ=dict.fromkeys(names, "\udcffgarbage"))
    service.ready()
    with service.track("job"):
        manager.stop()
        manager.advance(30)
        assert manager.state == "stop-sigterm"
    manager.wait_for("dead")
    assert len(warnings_of) == 3


@pytest.mark.parametrize(
    "label",
    [
        "",
        "\n\nREADY=1\n",
        "a\0b",
        "\udcff",
        "x" * 1_000_000,
        "€" * 400_000,
        "\u2028",
        "\x1b[31m",
        "%s %d",
        "{0}",
        '"' * 2000,
    ],
)
def test_labels(manager: FakeManager, service: Service, label: str) -> None:
    """Labels, statuses and reasons may hold anything: nothing is smuggled in, and every datagram fits."""
    service.status(label)
    with service.track(label) as tracker:
        tracker.status(label)
        service.begin(label)
        manager.advance(30)
        assert manager.state == "stop-sigterm"
        assert manager.status.startswith("Draining 30 s: 1 job")
        assert manager.sent == ["READY", "STOPPING"]
    manager.wait_for("dead")
    assert manager.rejected == []


def test_starting_with_a_bad_label(manager: FakeManager) -> None:
    """The label of a slow start too."""
    service = manager.arm(Service())
    with service.starting("\n" + "x" * 1_000_000):
        manager.advance(30)
    service.ready("\nSTOPPING=1" + "y" * 1_000_000)
    assert manager.state == "running"


def test_a_label_that_fails(manager: FakeManager, service: Service) -> None:
    """Where a label is made of a user's object, its __str__ may fail."""

    class Bad:
        def __str__(self) -> str:
            raise KeyError

    with service.open(Bad()):
        manager.stop()
        manager.advance(12)
        assert manager.state == "stop-sigterm"
    manager.wait_for("dead")


def test_initialize_in_a_thread() -> None:
    """Outside the main thread it is an error that says signals=False, and nothing is armed."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            requiem.initialize()
        except NotMainThreadError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "signals=False" in str(errors[0])
    assert process._armed is None
    process.close()


def test_initialize_in_a_thread_without_signals() -> None:
    """What the error says, works."""
    done: list[bool] = []

    def work() -> None:
        requiem.initialize(signals=False, exit=False)
        requiem.begin()
        done.append(requiem.wait(10))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    process.close()
    assert done == [True]


def run(code: str, **environ: str) -> str:
    """Run a program by itself, and return what it prints."""
    shown = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.strip()


def test_initialize_in_a_forked_child() -> None:
    """A fork's child may have a service of its own, in whatever state the parent's is."""
    code = """
import os, requiem_systemd as r
r.initialize(exit=False)
with r.track("job"):
    r.begin()
    child = os.fork()
    if child == 0:
        ok = not r.draining() and r.in_flight() == ()
        r.initialize(exit=False)
        r.begin()
        os._exit(0 if ok and r.wait(10) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code) == "0"


def test_initialize_in_a_subinterpreter() -> None:
    """There it is an error that says signals=False too."""
    code = """
import sys
try:
    import _interpreters as interpreters
    config = {"config": "legacy"}
except ImportError:
    import _xxsubinterpreters as interpreters
    config = {}
interpreter = interpreters.create(**({"isolated": False} if not config else {})) if not config else interpreters.create("legacy")
ran = interpreters.run_string(interpreter, '''
import requiem_systemd as r
try:
    r.initialize()
except r.NotMainThreadError as error:
    print("signals=False" in str(error))
''')
interpreters.destroy(interpreter)
"""
    assert run(code) == "True"


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf"), -0.1])
@pytest.mark.parametrize("name", ["drain_timeout", "request_timeout", "lame_duck", "exit_timeout"])
def test_bad_lengths(name: str, value: Any) -> None:
    """Negative, NaN and infinite lengths are a ValueError where they are given."""
    with pytest.raises(ValueError, match=name):
        Service(**{name: value})
