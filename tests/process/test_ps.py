"""`requiem-systemd ps` and `why`, of real services: running, in mid-drain, on the way out; of a cluster; on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import PATIENCE
from tests.process.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.process.conftest import Program

#: Four jobs: in a thread, a daemon thread, a task and a process; they end when a file is there.
JOBS = """
import asyncio, os, subprocess, threading, time
FILE = os.path.join(os.path.dirname(__file__), "go")

def wait():
    while not os.path.exists(FILE):
        time.sleep(0.01)

def work(label):
    with requiem.track(label) as job:
        job.status("uploading")
        wait()

async def steps():
    while not os.path.exists(FILE):
        await asyncio.sleep(0.01)

async def task():
    async with requiem.track("in a task"):
        await steps()

def start():
    threading.Thread(target=work, args=("in a thread",), name="worker-1").start()
    threading.Thread(target=work, args=("in a daemon",), daemon=True).start()
    threading.Thread(target=asyncio.run, args=(task(),)).start()
    requiem.track(subprocess.Popen(["sh", "-c", f"until [ -e {FILE} ]; do sleep 0.05; done"]), label="in a process")
    while len(requiem.in_flight()) < 4:
        time.sleep(0.01)
"""
SERVICE = JOBS + "requiem.initialize(drain_timeout=600); start(); requiem.ready('up'); time.sleep(100)"
CLUSTER = (
    JOBS
    + """
from requiem_systemd import Cluster

def serve(service):
    start()
    requiem.ready("up")
    requiem.wait()

requiem.initialize()
Cluster(serve, workers=2).run()
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the unit's RuntimeDirectory=."""
    folder = tmp_path / "run" / "web"
    folder.mkdir(parents=True)
    return folder


def cli(folder: Path, *words: str, status: int = 0) -> str:
    """Run the command as an operator does, and return what it wrote."""
    environ = {**os.environ, "PYTHONPATH": ROOT, "XDG_RUNTIME_DIR": str(folder.parent)}
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "requiem_systemd", *words]
    done = subprocess.run(command, check=False, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def let_go(program: Program) -> None:
    """Let the program's jobs end."""
    (program._folder / "go").touch()


def told(folder: Path) -> list[dict[str, Any]]:
    """Return what the processes told, as JSON."""
    services: list[dict[str, Any]] = json.loads(cli(folder, "ps", "--user", "--json"))["services"]
    return services


def test_running_and_draining(program: Program, folder: Path) -> None:
    """Four jobs are shown while it runs and in mid-drain, each with its owner and where it stands; they still end well."""
    program.start(SERVICE, RUNTIME_DIRECTORY=str(folder))
    labels = ['"in a thread"', '"in a daemon"', '"in a task"', '"in a process"']
    running = cli(folder, "ps", "--user")
    assert all(label in running for label in labels)
    assert " 4 jobs" in running
    assert "uploading" in running
    program.manager.stop()
    program.wait_for(lambda: "STOPPING" in program.manager.sent)
    why = cli(folder, "why", str(folder / "requiem"))
    assert f"web, process {program.process.pid}" in why
    assert re.search(r"draining, for \d+ s, begun by SIGTERM", why)  # a slow machine takes seconds to start the command
    assert all(label in why for label in labels)
    assert re.search(rf"{re.escape(str(program._folder))}/program\.py:\d+:wait\n", why)
    assert ":steps\n" in why
    assert "task Task-1" in why
    assert "    child " in why
    assert "drain_timeout: abandons what is in flight after 10 min, in " in why
    assert "extended for " in why
    assert "SIGQUIT abandons what is in flight, and ends the process" in why
    let_go(program)
    program.ended()
    assert program.manager.result == "success"


def test_main_thread_has_ended(program: Program, folder: Path) -> None:
    """Where the main thread fell off its end, and the interpreter waits, it is told all the same."""
    program.start(JOBS + "requiem.initialize(); start(); requiem.ready('up')", until=None, RUNTIME_DIRECTORY=str(folder))
    program.wait_for(lambda: "STOPPING" in program.manager.sent)
    for _ in range(3):
        why = cli(folder, "why", str(folder / "requiem"))
        assert "draining" in why
        assert '"in a daemon"' in why
        assert ":wait\n" in why
    let_go(program)
    program.ended()


def test_on_the_way_out(program: Program, folder: Path) -> None:
    """When all jobs have ended it is told which threads the exit waits for, and where they stand."""
    code = JOBS + "import atexit; atexit.register(wait); requiem.initialize(exit_timeout=100); requiem.ready(); requiem.wait()"
    program.start(code, RUNTIME_DIRECTORY=str(folder))
    program.manager.stop()
    program.wait_for(lambda: "Exiting" in program.manager.status)
    why = cli(folder, "why", str(folder / "requiem"))
    assert "all jobs have ended; on its way out" in why
    assert 'thread "main thread"' in why
    assert ":wait\n" in why
    assert "exit_timeout: ends the process on its way out after 100 s, in " in why
    let_go(program)
    program.ended()


def test_no_thread_is_started_on_the_way_out(program: Program, folder: Path) -> None:
    """Whoever asks then is told without: a thread that begins when the interpreter finalizes crashes CPython 3.11."""
    code = """
    import atexit
    def watch():
        start = threading.Thread.start
        def told(thread):
            print("started", thread.name, flush=True)
            start(thread)
        threading.Thread.start = told
        wait()
    atexit.register(watch)
    requiem.initialize(exit_timeout=100)
    requiem.ready()
    requiem.wait()
    """
    program.start(JOBS + textwrap.dedent(code), RUNTIME_DIRECTORY=str(folder))
    program.manager.stop()
    program.wait_for(lambda: "Exiting" in program.manager.status)
    assert ":wait\n" in cli(folder, "why", str(folder / "requiem"))
    let_go(program)
    assert "started" not in program.ended()


def test_second_interrupt_is_announced(program: Program, folder: Path) -> None:
    """After one SIGINT it is said that the next abandons; before, that it is the first."""
    program.start(SERVICE, RUNTIME_DIRECTORY=str(folder))
    program.process.send_signal(signal.SIGTERM)
    program.wait_for(lambda: "STOPPING" in program.manager.sent)

    def effect() -> str:
        (one,) = told(folder)
        return str(next(each["effect"] for each in one["described"]["signals"] if each["signal"] == "SIGINT"))

    assert "is the first" in effect()
    program.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    while "abandons what is in flight" not in effect() or "is the first" in effect():
        assert time.monotonic() < deadline
    let_go(program)
    program.ended()


def test_cluster(program: Program, folder: Path) -> None:
    """A cluster's primary and its workers have a row each, in mid-drain too."""
    program.start(CLUSTER, RUNTIME_DIRECTORY=str(folder))
    for state in ("running", "draining"):
        primary, *workers = told(folder)
        assert primary["described"]["role"] == "main"
        assert [one["phase"] for one in primary["described"]["workers"]] == [{"running": "listening", "draining": "leaving"}[state]] * 2
        assert primary["in_flight"]["counts"] == {"worker": 2}
        assert {one["described"]["role"] for one in workers} == {"worker 1", "worker 2"}
        for one in workers:
            assert (one["described"]["state"], one["in_flight"]["counts"]) == (state, {"job": 4})
        if state == "running":
            program.manager.stop()
            program.wait_for(lambda: "in them 8 jobs" in program.manager.status)
    table = cli(folder, "ps", "--user")
    assert f"{program.process.pid} primary" in table
    assert table.count('"in a task"') == 2
    why = cli(folder, "why", str(folder / "requiem"))
    assert why.count("worker 1, process") == 1
    assert why.count(":steps\n") == 2
    let_go(program)
    program.ended()


def test_killed_worker(program: Program, folder: Path) -> None:
    """A worker that was killed has no row, and its socket goes when the next one comes."""
    program.start(CLUSTER, RUNTIME_DIRECTORY=str(folder))
    victim = told(folder)[1]["described"]["pid"]
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while (folder / f"requiem.{victim}").exists() or len(told(folder)) < 3:
        assert time.monotonic() < deadline
    assert victim not in [one["described"]["pid"] for one in told(folder)]
    let_go(program)
    program.manager.stop()
    program.ended()


def test_stopped_process_hides_nobody(program: Program, folder: Path) -> None:
    """A worker that does not run (SIGSTOP) is named, and the others are shown."""
    program.start(CLUSTER, RUNTIME_DIRECTORY=str(folder))
    victim = told(folder)[1]["described"]["pid"]
    os.kill(victim, signal.SIGSTOP)
    environ = {**os.environ, "PYTHONPATH": ROOT, "XDG_RUNTIME_DIR": str(folder.parent)}
    code = "from requiem_systemd.cli import look, main; look.WITHIN = 0.5; raise SystemExit(main(['ps', '--user']))"
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    os.kill(victim, signal.SIGCONT)
    assert done.returncode == 1
    assert done.stdout.count("does not answer within") == 1
    assert done.stdout.count('"in a task"') == 1
    let_go(program)
    program.manager.stop()
    program.ended()


@contextlib.contextmanager
def terminal(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command on a terminal of its own; yield it and the other end."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": ROOT, "XDG_RUNTIME_DIR": str(folder.parent), "TERM": "xterm", "NO_COLOR": ""}
    command = [sys.executable, "-m", "requiem_systemd", *words]
    process = subprocess.Popen(command, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(fd: int, text: bytes) -> bytes:
    """Read a terminal until it has shown something."""
    shown, deadline = b"", time.monotonic() + PATIENCE
    while text not in shown:
        assert select.select([fd], [], [], deadline - time.monotonic())[0], shown
        shown += os.read(fd, 65536)
    return shown


def test_watch(program: Program, folder: Path) -> None:
    """On a terminal --watch draws in colours, draws anew what has changed, and ends at Ctrl-C with 0."""
    program.start(SERVICE, RUNTIME_DIRECTORY=str(folder))
    with terminal(folder, "ps", "--user", "--watch") as (watch, screen):
        assert read_until(screen, b'"in a task"').startswith(b"\x1b[H\x1b[2J\x1b[1m")
        program.manager.stop()
        read_until(screen, b"draining")
        let_go(program)
        program.ended()
        read_until(screen, b"\x1b[2J")
        watch.send_signal(signal.SIGINT)
        assert watch.wait(PATIENCE) == 0
    assert b"Traceback" not in program._output.read_bytes()


@pytest.mark.parametrize(("options", "status"), [(("--watch",), 0), ((), 130)])
def test_interrupt_while_one_hangs(folder: Path, options: tuple[str, ...], status: int) -> None:
    """Ctrl-C ends it at once, also while it waits for a service that does not answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "requiem"))
        listener.listen()
        with terminal(folder, "ps", "--user", *options) as (ps, screen):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                ps.send_signal(signal.SIGINT)
                assert ps.wait(5) == status
                with contextlib.suppress(OSError):  # EIO: nothing was shown
                    assert b"Traceback" not in os.read(screen, 65536)


def test_reader_goes(program: Program, folder: Path) -> None:
    """A reader that has seen enough is no traceback."""
    program.start(SERVICE, RUNTIME_DIRECTORY=str(folder))
    environ = {**os.environ, "PYTHONPATH": ROOT, "XDG_RUNTIME_DIR": str(folder.parent)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "requiem_systemd", "ps", "--user"], check=False, env=environ, stdout=writer, stderr=subprocess.PIPE, timeout=PATIENCE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
    let_go(program)
    program.manager.stop()
    program.ended()
