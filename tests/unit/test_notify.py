"""Telling the manager: what addresses there are, and what happens where nobody listens."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import ProtocolError, Service
from requiem_systemd.notify import Notifier, connect
from requiem_systemd.testing import FakeManager

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a bound datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(str(tmp_path / "n"))
        yield sock


@contextlib.contextmanager
def notifier(address: str | None) -> Iterator[Notifier]:
    """Return a notifier, and close it."""
    made = Notifier(address)
    yield made
    made.close()


def test_no_manager() -> None:
    """Without an address nothing is sent: False, and no error."""
    with notifier(None) as made:
        assert not made
        assert made.send({"READY": 1}) is False
        assert made.tell(READY=1) is False


def test_sent(receiver: socket.socket) -> None:
    """With one the message arrives as one datagram: True."""
    with notifier(receiver.getsockname()) as made:
        assert made
        assert made.send({"READY": 1, "STATUS": "grün"}) is True
        assert receiver.recv(4096).decode() == "READY=1\nSTATUS=grün\n"


def test_descriptors(receiver: socket.socket) -> None:
    """Descriptors go along."""
    with notifier(receiver.getsockname()) as made, socket.socket() as passed:
        made.send({"FDSTORE": 1}, [passed.fileno()])
        data, ancillary, _, _ = receiver.recvmsg(4096, socket.CMSG_SPACE(4))
        assert data == b"FDSTORE=1\n"
        os.close(struct.unpack("i", ancillary[0][2])[0])


def test_abstract() -> None:
    """An address that begins with @ is in the abstract namespace."""
    name = f"@requiem-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver, notifier(name) as made:
        receiver.bind("\0" + name[1:])
        assert made.send({"READY": 1})
        assert receiver.recv(4096) == b"READY=1\n"


def test_unreachable(tmp_path: Path) -> None:
    """Where nobody is bound, send is an OSError."""
    with notifier(str(tmp_path / "nobody")) as made, pytest.raises(OSError, match="No such file"):
        made.send({"READY": 1})


def test_an_outage_is_logged_once(tmp_path: Path, warnings_of: list[str]) -> None:
    """However often it fails, one warning; after it has worked, another."""
    path = tmp_path / "n"
    with notifier(str(path)) as made:
        assert [made.tell(STATUS="x"), made.tell(STATUS="y")] == [False, False]
        assert len(warnings_of) == 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            assert made.tell(STATUS="z") is True
        path.unlink()
        assert made.tell(STATUS="z") is False
        assert len(warnings_of) == 2


def test_a_socket_made_anew() -> None:
    """A manager that makes its socket anew is found again, without a message lost."""
    with FakeManager(timeout_stop=10) as manager:
        service = manager.arm(Service())
        service.ready()
        assert manager.state == "running"
        manager.mailbox.bind()
        with service.track("job"):
            manager.stop()
            manager.advance(60)
            assert manager.state == "stop-sigterm"
        manager.wait_for("dead")
        assert "STOPPING" in manager.sent


def test_a_manager_that_is_gone(warnings_of: list[str]) -> None:
    """With the socket gone for good the drain goes on, and is over when its jobs are."""
    with FakeManager() as manager:
        service = manager.arm(Service())
        service.ready()
        Path(manager.address).unlink()
        assert manager.mailbox.socket is not None
        manager.mailbox.socket.close()
        manager.mailbox.socket = None
        with service.track("job"):
            service.begin()
            manager.advance(30)
        assert service.wait(10)
        assert sum("cannot be told" in text for text in warnings_of) == 1


def _fill(made: Notifier) -> None:
    """Send what may be dropped until the queue is full."""
    for _ in range(2000):
        made.send({"STATUS": "x"})


def test_a_full_queue_drops_what_may_be_dropped(receiver: socket.socket) -> None:
    """STATUS and WATCHDOG never block and never fail."""
    with notifier(receiver.getsockname()) as made:
        _fill(made)
        assert made.send({"WATCHDOG": 1}) is True


def test_a_full_queue_is_waited_for(receiver: socket.socket) -> None:
    """READY, STOPPING and EXTEND wait for room."""
    with notifier(receiver.getsockname()) as made:
        _fill(made)
        thread = threading.Thread(target=lambda: made.send({"STOPPING": 1}, patience=10))
        thread.start()
        while receiver.recv(4096) != b"STOPPING=1\n":
            pass
        thread.join()


def test_a_full_queue_that_many_wait_for(receiver: socket.socket) -> None:
    """Room that another takes first is waited for again: at a shutdown all services stop at once."""
    failures: list[OSError] = []

    def stop() -> None:
        with notifier(receiver.getsockname()) as made:
            try:
                made.send({"STOPPING": 1}, patience=10)
            except OSError as error:
                failures.append(error)

    with notifier(receiver.getsockname()) as made:
        _fill(made)
    threads = [threading.Thread(target=stop) for _ in range(20)]
    for thread in threads:
        thread.start()
    stopping = 0
    while stopping < len(threads) and not failures:
        stopping += receiver.recv(4096) == b"STOPPING=1\n"
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_full_queue_is_not_waited_for_for_ever(receiver: socket.socket) -> None:
    """After its patience it is an OSError."""
    with notifier(receiver.getsockname()) as made:
        _fill(made)
        with pytest.raises(BlockingIOError):
            made.send({"STOPPING": 1}, patience=0.01)


@pytest.mark.parametrize(
    "address",
    ["relative", "vsock", "vsock:1", "vsock:a:b", "vsock-foo:1:2", "vsock:1:2:3", "vsockets:1:2", "vsock::"],
)
def test_nonsense(address: str) -> None:
    """An address that sd_notify(3) does not describe is an OSError that says so."""
    with notifier(address) as made, pytest.raises(OSError, match=r"NOTIFY_SOCKET|No such file"):
        made.send({"READY": 1})


def test_a_path_with_a_nul() -> None:
    """An address that no system call takes is an OSError, too."""
    with notifier("/run/\0x") as made, pytest.raises(OSError, match=r"refused|No such file|Permission denied"):
        made.send({"READY": 1})


def test_a_path_that_is_too_long() -> None:
    """A path that is longer than sun_path is an OSError."""
    with notifier("/" + "x" * 200) as made, pytest.raises(OSError, match="too long"):
        made.send({"READY": 1})


@pytest.mark.parametrize(
    ("address", "kind", "target"),
    [
        ("vsock:2:1234", "SOCK_SEQPACKET", (2, 1234)),
        ("vsock-stream:2:1234", "SOCK_STREAM", (2, 1234)),
        ("vsock-dgram:2:1234", "SOCK_DGRAM", (2, 1234)),
        ("vsock-seqpacket:2:1234", "SOCK_SEQPACKET", (2, 1234)),
    ],
)
def test_vsock(address: str, kind: str, target: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of vsock addresses; recorded, for few machines have the device."""
    seen: list[object] = []

    class Recorder:
        def __init__(self, *how: object) -> None:
            seen.append(how)

        def connect(self, target: object) -> None:
            seen.append(target)

        def settimeout(self, seconds: float) -> None: ...

        def setblocking(self, flag: bool) -> None: ...  # noqa: FBT001 - socket's

    monkeypatch.setattr(socket, "socket", Recorder)
    connect(address)
    assert seen == [(socket.AF_VSOCK, getattr(socket, kind)), target]


def test_notify_refuses_garbage(service: Service) -> None:
    """What cannot be a message is a ProtocolError, and nothing is sent."""
    with pytest.raises(ProtocolError):
        service.notify(ready=1)


def test_notify_of_the_service(manager: FakeManager, service: Service) -> None:
    """The bare protocol goes to the manager."""
    assert service.notify(ERRNO=2, STATUS="no such file") is True
    assert manager.status == "no such file"


def test_notify_before_the_service_is_armed(receiver: socket.socket) -> None:
    """The bare protocol needs no `initialize`: nothing is armed, and nothing taken from the environment."""
    environ = {"NOTIFY_SOCKET": receiver.getsockname()}
    bare = Service(environ=environ)
    assert bare.notify(STATUS="loading") is True
    assert receiver.recv(4096) == b"STATUS=loading\n"
    assert environ == {"NOTIFY_SOCKET": receiver.getsockname()}
    assert not bare.armed
    bare.close()


def test_many_threads(manager: FakeManager, receiver: socket.socket) -> None:
    """Any thread may send; each message arrives whole."""
    with notifier(receiver.getsockname()) as made:
        threads = [
            threading.Thread(target=lambda n=n: [made.send({"READY": 1, "N": n}) for _ in range(20)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        texts = {receiver.recv(4096) for _ in range(80)}
        for thread in threads:
            thread.join()
    assert texts == {f"READY=1\nN={n}\n".encode() for n in range(4)}


def test_ready_is_said_again(tmp_path: Path) -> None:
    """READY=1 that could not be sent, as into a full queue, is sent when it can be: a start must not time out."""
    address = tmp_path / "notify"
    with Service(signals=False, exit=False, environ={"NOTIFY_SOCKET": str(address)}) as service:
        service.ready()  # nobody is there yet
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(10)
            assert b"READY=1" in manager.recv(4096)
            service.begin()


def test_what_is_owed_arrives_in_order(tmp_path: Path) -> None:
    """A stop that begins before READY=1 could be delivered is told after it: the other way round the start has failed."""
    address = tmp_path / "notify"
    with Service(signals=False, exit=False, environ={"NOTIFY_SOCKET": str(address)}) as service:
        job = service.create_tracker("job")
        service.ready()  # nobody is there yet
        service.begin()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            manager.settimeout(10)
            assert [manager.recv(4096).partition(b"=")[0] for _ in range(2)] == [b"READY", b"STOPPING"]
            job.done()


def test_a_worker_does_not_stop_the_service(receiver: socket.socket) -> None:
    """A process that is not the main one extends, but says neither STOPPING=1 nor RELOADING=1: it may be one of many."""
    environ = {"NOTIFY_SOCKET": receiver.getsockname(), "SYSTEMD_EXEC_PID": str(os.getppid())}
    with Service(signals=False, exit=False, environ=environ) as service:
        service.ready()
        assert b"READY=1" in receiver.recv(4096)
        with service.track("job"):
            service.begin()
            told = receiver.recv(4096)
            assert b"EXTEND_TIMEOUT_USEC=" in told
            assert b"STOPPING" not in told


@pytest.mark.parametrize("ours", [True, False])
def test_watchdog_that_waits_for_a_parent(caplog: pytest.LogCaptureFixture, *, ours: bool) -> None:
    """A worker whose parent is to feed the watchdog, and has left that to nobody, says so; the main process feeds it, and says nothing."""
    parent = os.getpid() if ours else os.getppid()
    with FakeManager() as manager:
        service = manager.arm(
            Service(), environ={"SYSTEMD_EXEC_PID": str(parent), "WATCHDOG_PID": str(parent), "WATCHDOG_USEC": "30000000"}
        )
        service.ready()
        manager.advance(0)
        assert ("WATCHDOG" in manager.sent) == ours
    assert (f"WatchdogSec= is for process {parent}, this is {os.getpid()}" in caplog.text) != ours


def test_status_of_a_worker() -> None:
    """Where a server's parent is the main process, a worker's status says whose it is, and is gone when it has drained."""
    with FakeManager() as manager:
        service = manager.arm(Service(), environ={"SYSTEMD_EXEC_PID": str(os.getppid())})
        service.ready()
        with service.track("export"):
            service.begin()
            assert manager.status.startswith(f"worker {os.getpid()}: Draining 0 s: 1 job")
        manager.wait_for(lambda: service.engine.stopped)
        assert manager.status == ""
        assert "STOPPING" not in manager.sent


def test_hurry_of_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    """A worker's long drain is hurried up by a signal to all: its parent need not pass one on."""
    with FakeManager() as manager:
        service = manager.arm(Service(), environ={"SYSTEMD_EXEC_PID": str(os.getppid())})
        service.ready()
        with service.track("export"):
            service.begin()
            manager.advance(61)
    assert "systemctl kill -s QUIT UNIT" in caplog.text


def test_stop_behind_a_workers_back() -> None:
    """A stop that begins when a worker drains already is held too: what it had extended before counts for nothing."""
    with FakeManager(timeout_stop=2) as manager:
        service = manager.arm(Service(), environ={"SYSTEMD_EXEC_PID": str(os.getppid())})
        service.ready()
        with service.track("export"):
            service.begin()
            manager.advance(3.5)
            manager.unit.stop(manager.clock.now())
            manager.advance(60)
            assert manager.state == "stop-sigterm"
