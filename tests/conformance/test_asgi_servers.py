"""What is particular to hypercorn, granian and daphne: their limits, their parent processes, what they say at the start."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import Connection, get, refused
from tests.conformance.subjects import HTTP, Subject

if TYPE_CHECKING:
    from tests.conformance.conftest import Server

BY_NAME: Final = {subject.name: subject for subject in HTTP}
OURS: Final = [subject for subject in HTTP if subject.name.startswith(("hypercorn", "granian", "daphne"))]


def variant(name: str, *options: str) -> Subject:
    """Return a subject started with other options."""
    subject = BY_NAME[name]
    return dataclasses.replace(subject, name=" ".join([name, *options]), command=(*subject.command, *options), limits={})


def cpu_time(server: Server) -> float:
    """Return the seconds that a server's processes have computed."""
    stats = (Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split() for pid in server.processes())
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


SPAWNED: Final = dataclasses.replace(BY_NAME["granian"], name="granian, spawned", command=("{python}", "granian_spawn.py", "{port}"))


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("subject", OURS, ids=str)
@pytest.mark.timeout(180)
def test_long_job(server: Server) -> None:
    """A job of 90 s, longer than any limit of theirs, lives to its end."""
    server.start()
    get(server.port, "/job?s=90")
    server.wait_recorded("begun job")
    server.stop()
    assert "ended job" in server.ended(patience=120)
    assert server.manager.result == "success"


@pytest.mark.parametrize("subject", [BY_NAME["hypercorn --workers 0"]], ids=str)
def test_limits_are_lifted_in_one_line(server: Server) -> None:
    """That hypercorn's limits are lifted is said once, in the journal; both, and what is set in their place."""
    server._output.touch()
    journal = server._output.stat()
    server.start(JOURNAL_STREAM=f"{journal.st_dev}:{journal.st_ino}")
    server.stop()
    server.ended()
    lines = [line for line in server.output.splitlines() if "are lifted" in line]
    assert len(lines) == 1
    assert "graceful_timeout=3.0 s and shutdown_timeout=60.0 s are lifted: REQUIEM_REQUEST_TIMEOUT=" in lines[0]


@pytest.mark.parametrize("subject", [variant("daphne", "--application-close-timeout", "2")], ids=str)
def test_application_close_timeout(server: Server) -> None:
    """What a request does after its answer is not cut in a drain by daphne's limit, which is named."""
    server.start()
    get(server.port, "/after?s=6")
    server.stop()
    assert "ended after" in server.ended()
    assert "--application-close-timeout=2 is lifted" in server.output


@pytest.mark.parametrize("subject", [subject for subject in OURS if subject.name != "daphne"], ids=str)
def test_client_that_does_not_read(server: Server) -> None:
    """With the limits lifted, a client that never reads its answer does not keep the process: it is cut when all else is done."""
    server.start(REQUIEM_REQUEST_TIMEOUT="2s")
    with Connection(server.port) as connection:
        connection.send("/flood")
        connection.head()
        server.stop()
        server.ended(patience=20)
    assert "let go" in server.output


@pytest.mark.parametrize("subject", [BY_NAME["hypercorn"], BY_NAME["hypercorn --workers 2"]], ids=str)
def test_reload(server: Server) -> None:
    """SIGHUP, at which hypercorn's parent waits for the old workers, holds their jobs; the new ones listen on the same port again."""
    server.start()
    get(server.port, "/job?s=3")
    server.wait_recorded("begun job")
    server.manager.kill("SIGHUP")
    server.wait_recorded("ended job")
    server.wait_for(lambda: server.recorded.count("startup") == 2 * server.subject.workers, poll=True)
    server.wait_for(lambda: not refused(server.port), poll=True)
    assert get(server.port, "/").status == 200
    assert server.manager.state == "running"
    server.manager.stop()
    assert server.ended().count("shutdown") == 2 * server.subject.workers


@pytest.mark.parametrize("subject", [variant("hypercorn", "--max-requests", "3")], ids=str)
def test_max_requests(server: Server) -> None:
    """A worker that has served enough drains, its jobs held; who connects meanwhile waits for the next one."""
    server.start()
    get(server.port, "/job?s=3")
    server.wait_recorded("begun job")
    for _ in range(3):
        get(server.port, "/")
    server.wait_for(lambda: any("Draining" in message.values.get("STATUS", "") for message in server.manager.messages))
    while "ended job" not in server.recorded:
        assert get(server.port, "/").status == 200
    assert server.recorded[-3:] == ["ended job", "shutdown", "startup"]
    assert server.manager.state == "running"
    server.manager.stop()
    server.ended()


@pytest.mark.parametrize("subject", [variant("granian", "--workers-kill-timeout", "100")], ids=str)
def test_workers_kill_timeout(server: Server) -> None:
    """The setting by which granian's main process kills is named."""
    server.start()
    server.wait_for(lambda: "--workers-kill-timeout=100 kills" in server.output, poll=True)
    server.stop()
    server.ended()


@pytest.mark.parametrize("subject", [SPAWNED], ids=str)
def test_spawned(server: Server) -> None:
    """Workers that are not forked see nothing of the main process, and do the same."""
    server.start()
    get(server.port, "/job?s=4")
    server.wait_recorded("begun job")
    server.stop()
    server.wait_for(lambda: refused(server.port), poll=True)
    assert "ended job" in server.ended()


@pytest.mark.parametrize("subject", [BY_NAME["granian"], BY_NAME["granian --workers 2"]], ids=str)
def test_listener_is_closed_at_once(server: Server) -> None:
    """The port refuses also while a WebSocket holds granian's own stop back, and its threads do not spin on what was put there."""
    from websockets.sync.client import connect  # noqa: PLC0415 - not in what Debian's build has

    server.start(REQUIEM_REQUEST_TIMEOUT="4s")
    with connect(f"ws://127.0.0.1:{server.port}/deaf", proxy=None) as deaf:
        deaf.recv()
        server.stop()
        server.wait_for(lambda: refused(server.port), poll=True)
        before = cpu_time(server)
        for _ in range(20):  # two seconds of ticks: it is not cut
            deaf.recv(timeout=5)
        assert cpu_time(server) - before < 1
        server.ended()


STOPS: Final = dataclasses.replace(BY_NAME["daphne"], command=("{bin}/daphne", "--port", "{port}", "daphne_stop:app"))


@pytest.mark.parametrize("subject", [STOPS], ids=str)
def test_reactor_stop(server: Server) -> None:
    """Whoever stops Twisted's reactor begins the drain, and it stops when all is done."""
    server.start()
    get(server.port, "/job?s=3")
    server.wait_recorded("begun job")
    get(server.port, "/stop")
    assert "ended job" in server.ended()
    assert "STOPPING" in server.manager.sent


@pytest.mark.parametrize("subject", OURS, ids=str)
def test_connection_ends_with_its_answer(server: Server) -> None:
    """A connection that was answered in the drain is closed then, not when the last job has ended."""
    server.start()
    get(server.port, "/job?s=5")
    server.wait_recorded("begun job")
    with Connection(server.port) as connection:
        connection.send("/slow?s=2")
        server.stop()
        connection.receive()
        assert connection.ended()
        assert "ended job" not in server.recorded
    server.ended()
