"""The servers that people already run, as units of a real systemd: stopped all side by side, restarted one by one under load."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import Connection, Response, get, refused
from tests.conformance.subjects import HTTP, Subject
from tests.systemd.conftest import Stopped, Unit, stop, unit_text
from tests.systemd.load import Load
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.sandbox import Sandbox

PROGRAMS: Final = CHECKOUT / "tests" / "conformance" / "programs"
# Which are restarted under load, each as its socket unit's service.
LOADED: Final = ("uvicorn", "hypercorn", "gunicorn gthread", "aiohttp run_app")
JOBS: Final = 4
# Those that can hold a job at all; the others say at their start that they cannot.
HOLDING: Final = [subject for subject in HTTP if "background_job" not in subject.limits]


@dataclasses.dataclass
class Service:
    """One subject as a unit, with its socket unit where it can take a listener."""

    subject: Subject
    unit: Unit
    port: int
    record: str
    slow: list[Response | OSError] = dataclasses.field(default_factory=list)
    kept_accepting: bool = False
    stopped: Stopped | None = None

    @property
    def socket_unit(self) -> str | None:
        """The name of its socket unit; None: it listens by itself."""
        return None if self.subject.activated is None else self.unit.name.replace(".service", ".socket")

    @property
    def recorded(self) -> list[str]:
        """What happened in it."""
        return self.unit.box.run("cat", self.record, check=False).stdout.splitlines()

    def begin_jobs(self, seconds: float) -> None:
        """Have it begin its background jobs."""
        for number in range(JOBS):
            assert get(self.port, f"/job?s={seconds}&name=job{number}").status == 200

    def ended_jobs(self) -> int:
        """Count its jobs that have come to their end."""
        return sum(line.startswith("ended job") for line in self.recorded)

    def ask_slowly(self) -> threading.Thread:
        """Send a request that takes 5 s; the answer is noted when it comes."""
        sent = threading.Event()

        def ask() -> None:
            try:
                with Connection(self.port) as connection:
                    connection.send("/slow?s=5")
                    sent.set()
                    self.slow.append(connection.receive())
            except OSError as error:
                sent.set()
                self.slow.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert sent.wait(30)
        return thread


def make(box: Sandbox, python: str, subject: Subject, stem: str) -> Service:
    """Write a subject's units."""
    name = f"{stem}-{re.sub(r'[^a-z0-9]+', '-', subject.name.lower())}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = subject.command if subject.activated is None else subject.activated
    fill = {"bin": str(Path(python).parent), "python": python, "port": str(port)}
    record = f"/run/requiem-tests/{name}.record"
    environment = {"PYTHONPATH": f"{PROGRAMS}:{CHECKOUT}", "RECORD": record, "PYTHONUNBUFFERED": "1", **subject.env}
    settings = {
        "NotifyAccess": subject.notify_access,
        "TimeoutStopSec": 3,
        "LimitNOFILE": 65536,  # after a drain of 8 s some 2000 clients wait to be accepted; the default is 1024, and a job opens files too
        "WorkingDirectory": PROGRAMS,
        "Environment": [f'"{key}={value}"' for key, value in environment.items()],
    }
    box.write(record, "")
    made = Service(subject, Unit(box, f"{name}.service"), port, record)
    if made.socket_unit:
        box.unit(made.socket_unit, f"[Socket]\nListenStream=127.0.0.1:{port}\nFileDescriptorName=http\n")
    box.unit(made.unit.name, unit_text(" ".join(word.format_map(fill) for word in words), settings))
    box.unit(f"{name}.target", f"[Unit]\nAfter={made.unit.name}\n")
    return made


def start(*services: Service) -> None:
    """Start units side by side, and see that they answer."""
    box = services[0].unit.box
    names = [name for service in services for name in (service.socket_unit, service.unit.name) if name]
    holders = [service.unit.name.replace(".service", ".target") for service in services]
    box.systemctl("start", *holders, *names, timeout=120)
    for service in services:
        deadline = time.monotonic() + 30
        while refused(service.port) and time.monotonic() < deadline:  # it says that it is ready a moment before
            time.sleep(0.02)


def end(*services: Service) -> None:
    """Stop whatever is left of them."""
    box = services[0].unit.box
    names = [name for service in services for name in (service.socket_unit, service.unit.name) if name]
    box.systemctl("stop", "--no-block", *names, check=False)
    box.systemctl("kill", "--signal=KILL", *names, check=False)
    box.systemctl("stop", *names, check=False)
    box.systemctl("reset-failed", *names, check=False)


@pytest.fixture(scope="module")
def fleet(sandbox: Sandbox, python: str) -> Iterator[dict[str, Service]]:
    """Stop all subjects side by side, with jobs of 8 s and a request of 5 s in flight; return what became of each."""
    services = [make(sandbox, python, subject, "stopped") for subject in HOLDING]
    try:
        start(*services)
        for service in services:
            service.begin_jobs(8)
        threads = [service.ask_slowly() for service in services]
        stopper = threading.Thread(target=lambda: note(services))
        stopper.start()
        for service in services:
            if service.socket_unit is None:
                service.kept_accepting = not closes(service.port)
        for thread in (*threads, stopper):
            thread.join()
        yield {service.subject.name: service for service in services}
    finally:
        end(*services)


def note(services: list[Service]) -> None:
    """Stop units, and note how each went."""
    for service, stopped in zip(services, stop(*(service.unit for service in services)), strict=True):
        service.stopped = stopped


def closes(port: int) -> bool:
    """Say whether a port refuses connections soon."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if refused(port):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.timeout(180)
@pytest.mark.parametrize("subject", HOLDING, ids=str)
def test_stop(fleet: dict[str, Service], subject: Subject) -> None:
    """TimeoutStopSec=3: jobs of 8 s end, a request of 5 s is answered in full, the port is closed, exit status 0, success."""
    service = fleet[subject.name]
    journal = service.unit.journal()
    assert service.ended_jobs() == JOBS, journal
    assert [answer if isinstance(answer, OSError) else answer.status for answer in service.slow] == [200], journal
    assert service.stopped is not None
    assert (service.stopped.result, service.stopped.status) == ("success", 0), journal
    assert not service.kept_accepting


@pytest.mark.timeout(60)
@pytest.mark.parametrize("subject", [subject for subject in HOLDING if subject.activated and "inherited_listener" not in subject.lacks], ids=str)
def test_inherited_listener(fleet: dict[str, Service], subject: Subject) -> None:
    """After the stop the socket unit listens on, and the next request starts the service again."""
    service = fleet[subject.name]
    assert get(service.port, "/").status == 200
    assert service.unit.state == "active"
    service.unit.box.systemctl("stop", service.socket_unit or "", service.unit.name, check=False)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LOADED)
def test_restart_under_load(sandbox: Sandbox, python: str, repetitions: int, name: str) -> None:
    """Under 500 requests/s, half of them on kept connections, and with four jobs of 8 s in flight, a restart fails no request and no job."""
    subject = next(subject for subject in HTTP if subject.name == name)
    service = make(sandbox, python, subject, "loaded")
    rounds = 5 if repetitions > 3 else 2
    try:
        start(service)
        silences = []
        with Load(f"127.0.0.1:{service.port}", new=250, keep=250) as load:
            for number in range(1, rounds + 1):
                service.begin_jobs(8)
                began = time.monotonic()
                service.unit.restart()
                silences.append((began, time.monotonic() + 0.2))
                assert service.ended_jobs() == JOBS * number, f"{service.recorded[-12:]}\n{service.unit.journal()[-6000:]}"
            figures = load.stop()
        spans = [figures.silence(*span) for span in silences]
        print(
            f"{name}: {rounds} restarts, {figures.sent} requests, {sum(figures.failed.values())} failed, "
            f"{service.ended_jobs()} of {JOBS * rounds} jobs ended, longest silence {statistics.median(spans):.1f} s"
        )
        assert not figures.failed, figures.failures[:20]
        service.begin_jobs(8)
        assert service.unit.stop().result == "success"
        assert service.ended_jobs() == JOBS * (rounds + 1)
    finally:
        with contextlib.suppress(OSError):
            end(service)
