"""Log records on their way to the journal: once each, whole, and never a failure of who logged."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import journal
from requiem_systemd.journal import LOG, JournalHandler
from requiem_systemd.limits import RECORDS_MAX
from requiem_systemd.protocol import Environment
from requiem_systemd.service import Service
from tests.unit.conftest import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sent() -> Iterator[Journal]:
    """Return what the library's logger sends while the test runs."""
    kept = Journal()
    handler = JournalHandler(kept.send)
    handler.take(LOG)
    yield kept
    handler.give_back()


@pytest.fixture
def stream() -> Iterator[tuple[int, int]]:
    """Return both ends of a pipe; the second stands for a stderr that is the journal's."""
    reading, writing = os.pipe()
    yield reading, writing
    journal.uninstall()
    os.close(reading)
    os.close(writing)


def environment_of(fd: int) -> Environment:
    """Return the environment of a process whose journal stream is that descriptor."""
    found = os.fstat(fd)
    return Environment(journal_stream=(found.st_dev, found.st_ino))


def in_process(script: str, *, journal_stream: bool) -> str:
    """Run a script whose stderr is a pipe, which the environment calls the journal's or not; return what it wrote there."""
    reading, writing = os.pipe()
    found = os.fstat(writing)
    environ = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino if journal_stream else 1}"}
    try:
        done = subprocess.run((sys.executable, "-c", script), check=False, env=environ, stderr=writing)
    finally:
        os.close(writing)
        with os.fdopen(reading) as file:
            text = file.read()
    assert done.returncode == 0, text
    return text


def test_fields(sent: Journal) -> None:
    """A record carries its kind's MESSAGE_ID, its REQUIEM_ fields, its priority and its place in the code."""
    LOG.warning("%s is let go", "x", extra=journal.record("let-go", label="GET /", age_usec=5_000_000))
    (record,) = sent.records
    assert record["MESSAGE"] == "x is let go"
    assert journal.MESSAGE_IDS["let-go"] == record["MESSAGE_ID"]
    assert (record["REQUIEM_LABEL"], record["REQUIEM_AGE_USEC"], record["PRIORITY"]) == (
        "GET /",
        "5000000",
        "4",
    )
    assert (__file__, "test_fields") == (record["CODE_FILE"], record["CODE_FUNC"])


def test_many_lines_are_one_record(sent: Journal) -> None:
    """A stack stays with its message."""
    LOG.warning("stalled, at\n%s", "a.py:1:f\nb.py:2:g")
    assert [record["MESSAGE"] for record in sent.records] == ["stalled, at\na.py:1:f\nb.py:2:g"]


def test_lone_surrogates(sent: Journal) -> None:
    """A label that is no text is shown by its escapes."""
    LOG.warning("job %s", "\udcff", extra=journal.record("abandoned", label="\udcff"))
    assert (sent.records[0]["MESSAGE"], sent.records[0]["REQUIEM_LABEL"]) == ("job \\udcff", "\\udcff")


@pytest.mark.parametrize(("level", "number"), [(10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2)])
def test_priorities(level: int, number: int) -> None:
    """Python's levels are syslog's."""
    assert number == journal.priority(level)


def test_state_changes(seen: Journal) -> None:
    """Each change of state is one record that names both states, at INFO, which is let through."""
    with Service(signals=False, environ={}):
        pass
    changes = [(record["REQUIEM_PREVIOUS"], record["REQUIEM_STATE"]) for record in seen.of("state")]
    assert changes == [("RUNNING", "DRAINING"), ("DRAINING", "STOPPED")]


def test_abandoned_in_detail_then_a_sum(seen: Journal) -> None:
    """Of many jobs that are abandoned the first 20 have a record each, the others one for all."""
    service = Service(signals=False, environ={}, drain_timeout=0.0, exit=False)
    service.arm()
    held = [service.create_tracker(f"job {number}") for number in range(RECORDS_MAX + 7)]
    service.begin("test")
    assert service.engine.stopped.wait(10)
    service.close()
    for tracker in held:
        tracker.done()
    records = seen.of("abandoned")
    assert [f"job {number}" for number in range(RECORDS_MAX)] == [
        record["REQUIEM_LABEL"] for record in records[:-1]
    ]
    assert records[-1]["REQUIEM_COUNT"] == "7"


def test_failing_send_falls_back(stream: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    """A record that the journal does not take is written on stderr, once, and who logged hears nothing of it."""

    def refuse(*_: bytes) -> None:
        raise OSError(97, "no AF_UNIX")

    handler = JournalHandler(refuse)
    handler.take(LOG)
    LOG.error("first\nsecond")
    handler.give_back()
    assert capfd.readouterr().err == "<3>first\n<3>second\n"


def fill(path: str) -> int:
    """Send datagrams by a sender of its own until none goes; return how many went."""
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood, contextlib.suppress(BlockingIOError):
        flood.connect(path)
        flood.settimeout(0.0)
        while True:
            flood.send(b"x")
            sent += 1
    return sent


def test_full_queue_falls_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """While the journal's queue is full nothing is sent to it, which would block with the GIL held."""
    kept = Journal()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        handler = JournalHandler(kept.send, journal.connected(str(tmp_path / "socket")))
        handler.handle(logging.makeLogRecord({"msg": "room", "levelno": logging.INFO}))
        while fill(str(tmp_path / "socket")):
            pass  # a sender has room for fewer than the queue of a machine, 512
        handler.handle(logging.makeLogRecord({"msg": "none", "levelno": logging.INFO}))
        handler.close()
    assert [record["MESSAGE"] for record in kept.records] == ["room"]
    assert capfd.readouterr().err == "<6>none\n"


def test_bad_arguments_stay_here(capfd: pytest.CaptureFixture[str]) -> None:
    """A log call whose text cannot be made does not raise."""
    kept = Journal()
    JournalHandler(kept.send).handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    assert kept.records == []
    assert "no number" in capfd.readouterr().err


def test_installed_on_the_stream(stream: tuple[int, int]) -> None:
    """Where stderr is the journal's stream there is one handler, and nothing goes to the root logger too."""
    journal.install(environment_of(stream[1]), stream[1])
    journal.install(environment_of(stream[1]), stream[1])
    assert [JournalHandler] == [type(handler) for handler in LOG.handlers]
    assert not LOG.propagate
    assert LOG.isEnabledFor(logging.INFO)


def test_uninstalled(stream: tuple[int, int]) -> None:
    """What was taken from the logger is given back."""
    before = (LOG.handlers[:], LOG.propagate, LOG.level)
    journal.install(environment_of(stream[1]), stream[1])
    journal.uninstall()
    assert before == (LOG.handlers, LOG.propagate, LOG.level)


def test_chosen_level_is_kept(stream: tuple[int, int]) -> None:
    """Who has set the logger's level, before or after, has set it."""
    try:
        LOG.setLevel(logging.ERROR)
        journal.install(environment_of(stream[1]), stream[1])
        assert LOG.level == logging.ERROR
        LOG.setLevel(logging.DEBUG)
        journal.uninstall()
        assert LOG.level == logging.DEBUG
    finally:
        LOG.setLevel(logging.NOTSET)


@pytest.mark.parametrize("environment", [Environment(), Environment(journal_stream=(1, 2))])
def test_not_installed_elsewhere(stream: tuple[int, int], environment: Environment) -> None:
    """Where stderr is something else, a terminal or a file, logging stays what it is."""
    journal.install(environment, stream[1])
    assert LOG.handlers == []
    assert LOG.propagate


def test_closed_stderr() -> None:
    """A process without stderr has no stream."""
    assert not journal.is_journal(Environment(journal_stream=(1, 2)), 9999)


SCRIPT = """
import logging, os, sys
logging.basicConfig(format="root %(message)s")
sys.modules["systemd"] = None
import requiem_systemd
from requiem_systemd import journal
journal._SOCKET = os.environ.get("JOURNAL_SOCKET", "/nonexistent")
with requiem_systemd.Service(signals=False):
    logging.getLogger("requiem_systemd").warning("one\\ntwo")
"""


def test_fields_without_systemd_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without systemd-python records reach the journal with their fields all the same, by the protocol that it documents."""
    monkeypatch.setenv("JOURNAL_SOCKET", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        journald.settimeout(10)
        assert in_process(SCRIPT, journal_stream=True) == ""
        records = [journald.recv(65536) for _ in range(3)]
    # the name alone, then the value's length in 64 bits, little end first
    assert b"MESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\n" in records[0]
    assert b"\nPRIORITY=4\n" in records[0]
    assert b"MESSAGE=running -> draining: the end of the with block, 0 in flight\n" in records[1]
    assert f"\nMESSAGE_ID={journal.MESSAGE_IDS['state']}\n".encode() in records[1]


def test_full_queue_without_systemd_python(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal's queue does not take, or no datagram can hold, is written on standard error; nothing waits for it."""
    monkeypatch.setitem(sys.modules, "systemd.journal", None)  # the module itself: it may be loaded already
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(path)
        sock = journal.connected(path)
        assert sock is not None
        handler = JournalHandler(journal._sender(sock))
        handler.handle(logging.makeLogRecord({"msg": "x" * 10_000_000, "levelno": logging.INFO}))
        while fill(path):
            pass
        handler.handle(logging.makeLogRecord({"msg": "none", "levelno": logging.INFO}))
        sock.close()
    assert [len(line) for line in capfd.readouterr().err.splitlines()] == [10_000_003, 7]


def test_prefixed_without_the_socket() -> None:
    """Where the journal's socket is not to be had each line has its priority in front, and no line comes twice."""
    text = in_process(SCRIPT, journal_stream=True)
    assert "<4>one\n<4>two\n" in text
    assert "<6>running -> draining: the end of the with block, 0 in flight\n" in text
    assert "root" not in text


def test_plain_outside() -> None:
    """Outside the journal the user's own logging has the records, warnings and above."""
    assert in_process(SCRIPT, journal_stream=False) == "root one\ntwo\n"


def test_bare_import_is_light() -> None:
    """Neither systemd-python nor json is loaded before it is of use."""
    script = "import sys, requiem_systemd; sys.exit(bool({'systemd', 'json', 'argparse'} & set(sys.modules)))"
    assert subprocess.run((sys.executable, "-c", script), check=False).returncode == 0
