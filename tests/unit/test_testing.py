"""FakeManager is held to what was read in systemd's source and tried on 252 and 257."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import requiem_systemd as requiem
from requiem_systemd import Service
from requiem_systemd.service import process
from requiem_systemd.testing import FakeManager
from requiem_systemd.testing.unit import Settings, Unit, parse

if TYPE_CHECKING:
    from pathlib import Path


def unit(now: float = 0.0, **settings: object) -> tuple[Unit, list[str]]:
    """Return a started unit and the signals that it is sent."""
    signals: list[str] = []
    made = Unit(Settings(**{"timeout_start": 20.0, "timeout_stop": 10.0, **settings}), signals.append)  # type: ignore[arg-type]
    made.start(now)
    return made, signals


def say(unit: Unit, text: str, now: float) -> None:
    """Send a message."""
    unit.message(parse(text.encode()), now)


def test_ready_ends_the_start() -> None:
    """READY=1 makes a starting unit running, without a timeout."""
    made, _ = unit()
    say(made, "READY=1", 1.0)
    assert ("running", float("inf")) == (made.state, made.due())


def test_a_start_without_ready_times_out() -> None:
    """A start that never says READY=1 is terminated, with the result timeout."""
    made, signals = unit()
    assert made.expire(20.0)
    assert (made.state, made.result, signals) == ("stop-sigterm", "timeout", ["SIGTERM"])


def test_an_extension_counts_from_its_processing() -> None:
    """EXTEND_TIMEOUT_USEC is not added to what is left, it counts from now."""
    made, _ = unit()
    say(made, "EXTEND_TIMEOUT_USEC=30000000", 5.0)
    assert made.deadline == 35.0


def test_an_extension_never_shortens() -> None:
    """An earlier deadline than the one there is, is ignored."""
    made, _ = unit()
    say(made, "EXTEND_TIMEOUT_USEC=1000000", 1.0)
    assert made.deadline == 20.0


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "infinity", "30s", "", "18446744073709551615", "18446744073709551616"]
)
def test_a_senseless_extension_is_ignored(text: str) -> None:
    """What is no number of microseconds extends nothing."""
    made, _ = unit()
    say(made, f"EXTEND_TIMEOUT_USEC={text}", 5.0)
    assert made.deadline == 20.0


def test_an_extension_while_running_is_lost() -> None:
    """Where no timer runs there is nothing to extend; the stop begins with its own timeout."""
    made, _ = unit()
    say(made, "READY=1\nEXTEND_TIMEOUT_USEC=90000000", 1.0)
    made.stop(2.0)
    assert made.deadline == 12.0


def test_stopping_and_an_extension_in_one_datagram() -> None:
    """The state changes first, so the extension counts for the stop."""
    made, signals = unit()
    say(made, "READY=1", 1.0)
    say(made, "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000", 2.0)
    assert (made.state, made.deadline, signals) == ("stop-sigterm", 32.0, [])


def test_a_stop_after_stopping_sends_nothing() -> None:
    """A unit that said STOPPING=1 gets no SIGTERM any more."""
    made, signals = unit()
    say(made, "READY=1\nFOO=1", 1.0)
    say(made, "STOPPING=1", 2.0)
    made.stop(3.0)
    assert signals == []


def test_stopping_while_starting_waits_for_ready() -> None:
    """In start STOPPING=1 is only noted; at READY=1 (up to 258) it has been overwritten."""
    made, _ = unit(version=257)
    say(made, "STOPPING=1", 1.0)
    assert made.state == "start"


@pytest.mark.parametrize(("version", "state"), [(257, "READY"), (259, "STOPPING")])
def test_stopping_is_final_since_259(version: int, state: str) -> None:
    """READY=1 after STOPPING=1 is refused from 259 on; before, it is noted and changes nothing."""
    made, _ = unit(version=version)
    say(made, "READY=1", 1.0)
    say(made, "STOPPING=1", 2.0)
    say(made, "READY=1", 3.0)
    assert ("stop-sigterm", state) == (made.state, made.notify_state)


@pytest.mark.parametrize(("version", "state"), [(252, "running"), (257, "stop-sigterm")])
def test_rank_in_one_datagram(version: int, state: str) -> None:
    """252 takes the last of several states in a datagram, 253 and later the highest."""
    made, _ = unit(version=version)
    say(made, "READY=1", 1.0)
    say(made, "STOPPING=1\nREADY=1", 2.0)
    assert state == made.state


def test_the_stop_ends_in_sigkill() -> None:
    """A stop whose timeout has passed is killed, with the result timeout."""
    made, signals = unit()
    say(made, "READY=1", 1.0)
    made.stop(2.0)
    assert not made.expire(11.9)
    assert made.expire(12.0)
    assert (made.state, made.result, signals) == ("stop-sigkill", "timeout", ["SIGTERM", "SIGKILL"])


def test_no_timeout_is_no_timeout() -> None:
    """TimeoutStopSec=0 and infinity never expire, and an extension makes no limit."""
    made, _ = unit(timeout_stop=0.0)
    made.stop(1.0)
    say(made, "EXTEND_TIMEOUT_USEC=1000000", 2.0)
    assert made.due() == float("inf")


def test_a_ping_while_stopping_arms_the_watchdog() -> None:
    """WATCHDOG=1 is not checked against the state: one ping in the drain and then silence is SIGABRT."""
    made, signals = unit(watchdog=2.0)
    say(made, "READY=1", 1.0)
    made.stop(2.0)
    assert made.due() == 12.0
    say(made, "WATCHDOG=1", 3.0)
    assert made.expire(5.0)
    assert (made.state, made.result, signals) == ("stop-watchdog", "watchdog", ["SIGTERM", "SIGABRT"])


def test_an_extension_pushes_the_watchdog() -> None:
    """EXTEND_TIMEOUT_USEC acts on the watchdog's timer too."""
    made, _ = unit(watchdog=2.0)
    say(made, "READY=1", 1.0)
    say(made, "EXTEND_TIMEOUT_USEC=5000000", 2.0)
    assert made.watchdog_deadline == 7.0


def test_daemon_reload_forgets_extensions() -> None:
    """After a daemon-reload the configured timeout counts, from when the state began."""
    made, _ = unit()
    say(made, "READY=1", 1.0)
    made.stop(2.0)
    say(made, "EXTEND_TIMEOUT_USEC=60000000", 3.0)
    made.daemon_reload()
    assert made.deadline == 12.0


def test_notify_reload_wants_monotonic_usec() -> None:
    """RELOADING=1 counts as an answer only with a MONOTONIC_USEC that is not older than the request."""
    made, signals = unit(type="notify-reload")
    say(made, "READY=1", 1.0)
    made.reload(2.0, 500)
    say(made, "RELOADING=1", 3.0)
    say(made, "RELOADING=1\nMONOTONIC_USEC=499", 3.0)
    assert (made.state, signals) == ("reload-signal", ["SIGHUP"])
    say(made, "RELOADING=1\nMONOTONIC_USEC=500", 3.0)
    assert made.state == "reload-notify"
    say(made, "READY=1", 4.0)
    assert (made.state, made.reload_result) == ("running", "success")


def test_a_reload_without_an_answer_fails() -> None:
    """At TimeoutStartSec the reload has failed; the service goes on, and nobody is killed."""
    made, signals = unit(type="notify-reload")
    say(made, "READY=1", 1.0)
    made.reload(2.0, 500)
    assert made.expire(22.0)
    assert (made.state, made.reload_result, signals) == ("running", "timeout", ["SIGHUP"])


@pytest.mark.parametrize(("version", "state"), [(252, "reload"), (257, "reload-notify"), (259, "running")])
def test_a_reload_that_never_ends(version: int, state: str) -> None:
    """RELOADING=1 without READY=1: up to 258 the reload begins again, from 259 on it ends."""
    made, _ = unit(version=version)
    say(made, "READY=1", 1.0)
    say(made, "RELOADING=1", 2.0)
    assert made.expire(22.0)
    assert state == made.state


@pytest.mark.parametrize(("code", "state"), [(0, "dead"), (3, "failed")])
def test_exit_status(code: int, state: str) -> None:
    """A clean exit is a success, another a failure."""
    made, _ = unit()
    say(made, "READY=1", 1.0)
    made.exited(2.0, code=code)
    assert state == made.state


def test_messages_that_the_manager_drops() -> None:
    """Too long, or with a NUL: the whole datagram is dropped; invalid UTF-8: that field."""
    assert parse(b"READY=1\nSTATUS=" + b"x" * 4096) == ()
    assert parse(b"READY=1\0") == ()
    assert parse(b"STATUS=\xff\nREADY=1\nnonsense") == (("READY", "1"),)


def test_a_drain_holds_the_stop_for_minutes(manager: FakeManager, service: Service) -> None:
    """Ten minutes of drain with TimeoutStopSec=10 pass without a kill."""
    with service.track("export"):
        manager.stop()
        manager.advance(600)
        assert manager.state == "stop-sigterm"
        assert 'oldest "export" 10 min' in manager.status
    manager.wait_for("dead")
    assert manager.result == "success"


def test_expiry_kills(manager: FakeManager, service: Service) -> None:
    """A service that does not extend any more is recorded as killed, with the result timeout."""
    with service.track("export"):
        manager.stop()
        service.engine.loop.call(service.engine.extender.end)
        manager.advance(40)
        assert (manager.state, manager.result) == ("failed", "timeout")
        assert [kill.signal for kill in manager.kills] == ["SIGTERM", "SIGKILL"]


def test_the_same_course_each_time() -> None:
    """Virtual time is deterministic: two drains send the same messages at the same times."""
    courses = []
    for _ in range(2):
        with FakeManager(timeout_stop=10, watchdog=4) as manager:
            service = manager.arm(Service())
            service.ready("up")
            with service.track("export"):
                manager.advance(3)
                manager.stop()
                manager.advance(70)
            manager.wait_for("dead")
            courses.append([(message.at, dict(message.values)) for message in manager.messages])
    assert courses[0] == courses[1]


def test_abstract_socket() -> None:
    """The manager's socket may be in the abstract namespace."""
    with FakeManager(abstract=True) as manager:
        service = manager.arm(Service())
        service.ready()
        assert manager.address.startswith("@")
        assert manager.state == "running"


def test_another_process_is_not_main() -> None:
    """Under NotifyAccess=main a child's message is dropped, and its send succeeds."""
    with FakeManager() as manager:
        manager.arm(Service())
        _send_from_a_child(manager.address)
        assert manager.state == "start"
        assert [dict(message.values) for message in manager.rejected] == [{"READY": "1"}]


def test_notify_access_all() -> None:
    """Under NotifyAccess=all anybody may speak."""
    with FakeManager(notify_access="all") as manager:
        manager.arm(Service())
        _send_from_a_child(manager.address)
        assert manager.state == "running"


def _send_from_a_child(address: str) -> None:
    code = "import socket,sys; s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); s.sendto(b'READY=1', sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, address], check=True)


def test_fixtures_see_module_functions(requiem_manager: FakeManager) -> None:
    """What is tracked by the module's functions holds the stop of the fixture's manager."""
    with requiem.track("export"):
        requiem_manager.stop()
        requiem_manager.advance(120)
        assert '"export" 2 min' in requiem_manager.status
    requiem_manager.wait_for("dead")


def test_everything_is_given_back(requiem_manager: FakeManager) -> None:
    """After the manager's close the process's service is unarmed, and counts by the real clock again."""
    requiem_manager.stop()
    requiem_manager.close()
    assert not requiem.draining()
    assert os.environ is process._environ
    with requiem.track("after") as tracker:
        assert tracker.age < 60


def test_initialize_under_the_fixture(requiem_manager: FakeManager) -> None:
    """Code under test may call initialize with options: they count, but no signal is taken."""
    requiem.initialize(drain_timeout=5.0)
    with requiem.track("export"):
        requiem_manager.stop()
        requiem_manager.advance(4)
        assert requiem_manager.state == "stop-sigterm"
        requiem_manager.advance(2)
        assert (requiem_manager.state, requiem_manager.result) == ("failed", "exit-code")


def test_handlers_of_modules_survive() -> None:
    """A handler that was registered when a module was imported is called in every test."""
    service = Service()
    seen: list[str] = []
    service.on("begin", seen.append)
    for _ in range(2):
        with FakeManager() as manager:
            manager.arm(service)
            manager.stop()
            manager.wait_for("dead")
    assert seen == ["SIGTERM", "SIGTERM"]


KEEP = """
import array, os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
fd = os.memfd_create("state")
os.write(fd, b"kept")
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
s.connect(os.environ["NOTIFY_SOCKET"])
s.sendmsg([b"FDSTORE=1\\nFDNAME=state\\nREADY=1"], rights)
"""
SHOW = """
import os
print(os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"], os.environ["LISTEN_PID"] == str(os.getpid()), os.pread(4, 4, 0).decode())
"""


def test_listeners_and_the_fd_store_are_passed_on(tmp_path: Path) -> None:
    """The next start gets the socket unit's listeners from descriptor 3 on, then what is kept."""
    with FakeManager(fd_store_max=2) as manager:
        listener = manager.listen("http")
        assert listener.family == socket.AF_INET
        manager.spawn([sys.executable, "-c", KEEP])
        manager.wait_for("dead")
        with manager.spawn([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, text=True) as shown:
            assert shown.stdout is not None
            assert shown.stdout.read() == "2 http:state True kept\n"


def test_a_program_is_killed_in_real_time() -> None:
    """A program that ignores SIGTERM is killed at its timeout."""
    code = (
        "import signal,time,os,socket; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); time.sleep(100)"
    )
    with FakeManager(timeout_stop=0.3) as manager:
        process = manager.spawn([sys.executable, "-c", code])
        manager.wait_for("running")
        manager.stop()
        manager.wait_for("failed")
        assert (manager.result, process.returncode) == ("timeout", -9)


def test_the_plugin_imports_nothing_at_start() -> None:
    """Pytest starts with the plugin and without what plays systemd; what a package's own import loads is the core."""
    code = "import sys, requiem_systemd.testing.plugin as p; print('requiem_systemd.testing.manager' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout == "False\n"
