"""A control socket under attack by its own user: malformed and hostile messages, idle and deaf clients, in mid-drain."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from requiem_systemd import varlink
from tests.caller import Caller
from tests.patience import PATIENCE, PatientManager
from tests.process.conftest import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE: Final = """
import os, threading, time

def job():
    with requiem.track("export"):
        while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
            time.sleep(0.01)
    print("job done", flush=True)

requiem.initialize()
threading.Thread(target=job).start()
requiem.ready()
time.sleep(1000)
"""
DESCRIBE: Final = f"{varlink.SERVICE}.Describe"
METHODS: Final = (
    *(f"{varlink.SERVICE}.{name}" for name in ("Describe", "InFlight", "Reload", "Nothing")),
    *(f"{varlink.STANDARD}.{name}" for name in ("GetInfo", "GetInterfaceDescription")),
    *("", ".", "a", "a.b", "\ud800", "x" * 3000, "io.requiem-systemd.Service.describe"),
)
VALUES: Final[tuple[object, ...]] = (
    *(None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 10**400, "", "\0", "\ud800", "x" * 1000),
    *([], {}, [[]] * 50, {"stacks": True}, varlink.SERVICE, varlink.STANDARD),
)
WORDS: Final = (b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"null", b"true", b"NaN", b"1e999", b"\xff\xfe", b"\n", b" ", b'"method"', b'"parameters"')
IDLE: Final = 200
#: KiB that a process's memory may grow by: an arena or two of the allocator, and not what 100,000 messages would take.
GROWTH: Final = 8192


class Attacked(Program):
    """A service in mid-drain, and its control socket."""

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self._folder / "requiem"

    def begin(self) -> None:
        """Start, and begin the drain, which a job holds."""
        self.start(SERVICE, RUNTIME_DIRECTORY=str(self._folder))
        self.manager.stop()
        self.wait_for(lambda: "STOPPING" in self.manager.sent)

    def finish(self) -> None:
        """Let the job end: the drain has been kept."""
        (self._folder / "go").touch()
        assert "job done" in self.ended()
        assert self.manager.result == "success"
        assert "the engine failed" not in self.output

    def describe(self) -> dict[str, object]:
        """Ask as an honest client does."""
        with contextlib.closing(Caller(self.socket)) as caller:
            answer: dict[str, object] = caller.ask(DESCRIBE)["parameters"]
            return answer

    def descriptors(self) -> int:
        """Count its open descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def memory(self) -> int:
        """Return its resident memory, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])

    def await_descriptors(self, most: int) -> None:
        """Wait until it holds no more than so many descriptors: it sees in its own time that a client has gone."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.descriptors()) > most:
            assert time.monotonic() < deadline, f"{found} descriptors, {most} before"
            self.describe()


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attacked]:
    """Return a service in mid-drain."""
    with PatientManager(timeout_stop=300) as manager:
        service = Attacked(manager, tmp_path)
        service.begin()
        yield service


def message(chance: random.Random) -> bytes:
    """Make up a message: random bytes, words in a wrong order, valid requests with hostile values, valid ones that were damaged."""
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(200)) + b"\0"
        case 1:
            return b"".join(chance.choices(WORDS, k=chance.randrange(40))) + b"\0"
        case 2:
            return chance.choice((b"[", b'{"a":')) * chance.randrange(20000) + b"\0"
        case 3:
            return b"\0" * chance.randrange(100)
        case kind:
            request = {
                "method": chance.choice(METHODS),
                "parameters": {chance.choice(("stacks", "interface", "x")): chance.choice(VALUES)},
                chance.choice(("oneway", "more", "upgrade", "x")): chance.choice(VALUES),
            }
            text = bytearray(json.dumps(request).encode())
            for _ in range(chance.randrange(1, 4) if kind == 4 else 0):
                text[chance.randrange(len(text))] = chance.randrange(256)
            return bytes(text) + b"\0"


def attack(path: Path, count: int, chance: random.Random) -> int:
    """Send so many messages; return how many were sent.

    Half of them come one on a connection, and it is waited for what becomes of each; the others many on a connection, until it is hung up
    on, by clients that never read.
    """
    sent = 0
    while sent < count:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(path))
            deaf = chance.random() < 0.01
            sock.settimeout(0.0 if deaf else PATIENCE)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                for _ in range(chance.randrange(1, 200) if deaf else 1):
                    sock.sendall(message(chance))
                    sent += 1
                if not deaf:
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
    return sent


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(600)])])
def test_hostile_messages(attacked: Attacked, count: int) -> None:
    """After thousands of hostile messages it answers, keeps its drain, and holds no more than before."""
    chance = random.Random(count)
    attack(attacked.socket, 2_000, chance)  # what it loads and keeps at the first of each kind
    descriptors, memory = attacked.descriptors(), attacked.memory()
    begin = time.monotonic()
    sent = attack(attacked.socket, count, chance)
    print(f"{sent} messages in {time.monotonic() - begin:.1f} s, {attacked.memory() - memory} KiB and {attacked.descriptors() - descriptors} descriptors more")
    assert attacked.describe()["state"] == "draining"
    attacked.await_descriptors(descriptors)
    assert attacked.memory() - memory < GROWTH
    attacked.finish()


def test_idle_clients(attacked: Attacked) -> None:
    """Two hundred clients that say nothing cost no more than the few places there are; whoever comes is served."""
    attacked.describe()
    descriptors, memory = attacked.descriptors(), attacked.memory()
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(contextlib.closing(Caller(attacked.socket)))
            assert attacked.describe()["in_flight"] == 1
        print(f"{IDLE} idle clients: {attacked.memory() - memory} KiB and {attacked.descriptors() - descriptors} descriptors more")
        assert attacked.descriptors() <= descriptors + 17
        assert attacked.memory() - memory < GROWTH
    attacked.await_descriptors(descriptors)
    attacked.finish()


def test_half_messages(attacked: Attacked) -> None:
    """Clients that begin a message, or ask and never read, hold up neither the others nor the end of the drain."""
    request = json.dumps({"method": f"{varlink.SERVICE}.InFlight", "parameters": {"stacks": True}}).encode() + b"\0"
    with contextlib.ExitStack() as stack:
        for number in range(40):
            caller = stack.enter_context(contextlib.closing(Caller(attacked.socket)))
            caller.sock.settimeout(0.0)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                caller.sock.sendall(b'{"method": "' if number % 2 else request * 2000)
            assert attacked.describe()["state"] == "draining"
        attacked.finish()
