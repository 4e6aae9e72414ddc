"""Clusters as real processes, under a manager that plays systemd."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from requiem_systemd.protocol import TAKEN
from tests.patience import PATIENCE, PatientManager
from tests.process.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVENTS = """
from requiem_systemd import Cluster, cluster
import os, pathlib, sys, threading, time

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

for event in ("fork", "online", "listening", "disconnect", "exit"):
    cluster.on(event, lambda worker, *more, event=event: say(event, worker.id, worker.pid, *more))
"""
# One request a connection: "pid" is answered at once; "slow" when the test lets go; "job" begins one that lasts as long.
SERVER = f"""
import requiem_systemd as requiem
{EVENTS}

def until_let_go():
    open(os.environ["LET_GO"]).close()

def job():
    until_let_go()
    say("job done")

def answer(connection, text):
    with requiem.track(text), connection:
        if text == "slow":
            until_let_go()
        if text == "job":
            requiem.track(threading.Thread(target=job, daemon=True), label="export").start()
        connection.sendall(str(os.getpid()).encode())

def serve(service):
    FAULT
    requiem.initialize()
    sock = service.listener("http", fallback=("127.0.0.1", int(os.environ["PORT"])))
    requiem.ready("up")
    for connection, _ in requiem.accept(sock):
        text = connection.recv(10).decode()
        threading.Thread(target=answer, args=(connection, text)).start()

def fault():
    path = os.environ["FAULT"]
    if os.path.exists(path):
        exec(open(path).read())

requiem.initialize()
Cluster(serve, OPTIONS).run()
say("run returned")
"""


class Primary:
    """A program that is a cluster's primary."""

    def __init__(self, manager: PatientManager, folder: Path, port: int) -> None:
        """Store; `start` acts."""
        self.manager = manager
        self.lines: list[str] = []
        self.port = port
        self.fault = folder / "fault"
        self.let_go_path = folder / "let_go"
        self._folder = folder
        self._rest = b""
        self._pidfds: dict[int, int] = {}
        self.process: subprocess.Popen[bytes]

    def start(self, code: str, *, ready: bool = True) -> Primary:
        """Run it, and wait until its unit is up."""
        os.mkfifo(self.let_go_path)
        path = self._folder / "program.py"
        path.write_text(textwrap.dedent(code))
        env = {"PYTHONPATH": ROOT, "PORT": str(self.port), "FAULT": str(self.fault), "LET_GO": str(self.let_go_path)}
        command = [sys.executable, "-u", "-X", "dev", "-W", "error", str(path)]
        self.process = self.manager.spawn(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if ready:
            self.state("running")
        return self

    def serve(self, options: str = "workers=2", *, ready: bool = True, before: str = "requiem.initialize()") -> Primary:
        """Run the server."""
        code = SERVER.replace("OPTIONS", options).replace("FAULT\n", "fault()\n")
        return self.start(code.replace("requiem.initialize()\nCluster(", f"{before}\nCluster("), ready=ready)

    def state(self, what: str, timeout: float = PATIENCE) -> None:
        """Wait for a state of the unit."""
        try:
            self.manager.wait_for(what, timeout)
        except TimeoutError as error:
            error.add_note("\n".join(self.read()))
            raise

    def status(self, text: str) -> None:
        """Wait for a status."""
        self.manager.wait_for(lambda: text in self.manager.unit.status)

    def expect(self, *words: object) -> list[str]:
        """Wait for a line that begins so, beyond those that were waited for before; return its words."""
        begin = " ".join(map(str, words))
        deadline = time.monotonic() + PATIENCE
        seen: list[str] = []
        while True:
            while b"\n" in self._rest:
                raw, _, self._rest = self._rest.partition(b"\n")
                line = raw.decode().rstrip()
                self.lines.append(line)
                seen.append(line)
                if f"{line} ".startswith(f"{begin} "):
                    found = line.split()
                    if found[0] == "fork":
                        with contextlib.suppress(ProcessLookupError):  # it has ended already
                            self._pidfds[int(found[2])] = os.pidfd_open(int(found[2]))
                    return found
            assert self.process.stdout is not None
            if not select.select([self.process.stdout], [], [], deadline - time.monotonic())[0]:
                pytest.fail(f"no {begin!r} in {seen}")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                pytest.fail(f"no {begin!r} in {seen}, and it has ended")
            self._rest += data

    def forked(self) -> tuple[int, int]:
        """Wait for the next worker; return its number and its process."""
        _, number, pid = self.expect("fork")
        return int(number), int(pid)

    def gone(self, pid: int) -> None:
        """Wait until a worker's process has ended, whoever reaps it."""
        assert select.select([self._pidfds[pid]], [], [], PATIENCE)[0], f"{pid} lives"

    def connect(self, text: str) -> socket.socket:
        """Ask for something."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        connection.sendall(text.encode())
        return connection

    def ask(self, text: str = "pid") -> int:
        """Ask, and return which process answered."""
        with self.connect(text) as connection:
            return int(connection.recv(100))

    def listens(self) -> bool:
        """Say whether anybody accepts connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def let_go(self) -> None:
        """Have those end who wait for it."""
        descriptor = os.open(self.let_go_path, os.O_RDWR | os.O_NONBLOCK)
        self._pidfds[-1] = descriptor  # kept open: whoever comes later is let go as well

    def ends(self, status: int = 0) -> list[str]:
        """Wait for its end; return what it said after the last line that was waited for."""
        self.manager.wait_for(lambda: self.manager.unit.state in ("dead", "failed"), PATIENCE)
        lines = self.read()
        assert status == self.process.returncode, lines
        return lines

    def read(self) -> list[str]:
        """Return what is there to be read."""
        os.set_blocking(self.process.stdout.fileno(), False)  # type: ignore[union-attr] # it was asked for
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.process.stdout.fileno(), 65536):  # type: ignore[union-attr] # as above
                self._rest += data
        rest, self._rest = [line.rstrip() for line in self._rest.decode().splitlines()], b""
        self.lines += rest
        return rest

    def close(self) -> None:
        """End what is left."""
        for pid, fd in self._pidfds.items():
            if pid > 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


@pytest.fixture
def primary(manager: PatientManager, tmp_path: Path, free_port: int) -> Iterator[Primary]:
    """Return a primary to be started; it and its workers end with the test."""
    with contextlib.closing(Primary(manager, tmp_path, free_port)) as primary:
        yield primary


# -- by hand

BY_HAND = f"""
import requiem_systemd as requiem
{EVENTS}
requiem.initialize()
if cluster.is_primary():
    worker = cluster.fork()
    say("alive", worker.is_connected(), worker.is_dead(), worker.exited_after_disconnect)
    requiem.ready()
    open(os.environ["LET_GO"]).close()
    worker.disconnect(lambda worker: say("done", worker.is_connected(), worker.exited_after_disconnect))
    say("disconnecting", worker.id)
    while not worker.is_dead():
        time.sleep(0.01)
    worker.disconnect(lambda: say("done again"))
    requiem.wait()
else:
    def job():
        requiem.wait_begin()
        time.sleep(0.3)
        say("job done", requiem.should_stop())
    requiem.track(threading.Thread(target=job, daemon=True)).start()
    requiem.ready()
    requiem.wait()
"""


def test_fork_and_disconnect(primary: Primary) -> None:
    """A worker is forked, heard of, disconnected, and ends its job; each event comes once, in order."""
    primary.start(BY_HAND)
    _, pid = primary.forked()
    primary.expect("listening", 1, pid)
    primary.let_go()
    primary.expect("done again")
    primary.manager.stop()
    primary.ends()
    lines = primary.lines
    for line in ("alive True False False", "disconnecting 1", "done False True"):
        assert line in lines
    events = [line for line in lines if line.split()[0] in ("fork", "online", "listening", "job", "disconnect", "exit")]
    assert events == [
        f"fork 1 {pid}",
        f"online 1 {pid}",
        f"listening 1 {pid}",
        "job done True",
        f"disconnect 1 {pid}",
        f"exit 1 {pid} 0",
    ]
    assert primary.manager.rejected == []  # nobody but the primary has spoken to the manager


def test_stop_holds_for_a_workers_job(primary: Primary) -> None:
    """The primary's stop is the workers'; it goes last, and says what they wait for."""
    primary.serve()
    pids = {primary.forked()[1] for _ in range(2)}
    assert primary.ask("job") in pids
    primary.manager.stop()
    primary.status('1 worker; in them 1 job, oldest "export"')
    for _ in range(3):
        primary.manager.kill("SIGTERM")
    with pytest.raises(ConnectionRefusedError):
        primary.connect("pid")
    primary.let_go()
    assert "run returned" in primary.ends()
    assert "job done" in primary.lines
    assert (primary.manager.sent, primary.manager.result) == (["READY", "STOPPING"], "success")


def test_interrupted_twice_abandons(primary: Primary) -> None:
    """A second SIGINT, a second later, abandons: workers name their jobs and go, then the primary, with status 75."""
    primary.serve("workers=1")
    _, pid = primary.forked()
    primary.ask("job")
    primary.manager.kill("SIGINT")
    primary.status("in them 1 job")
    time.sleep(1.1)  # within a second it would be the same Ctrl-C
    primary.manager.kill("SIGINT")
    lines = primary.ends(75)
    primary.gone(pid)
    assert any('abandoned "export"' in line for line in lines)


def test_limit_of_the_drain_is_the_workers(primary: Primary) -> None:
    """Past drain_timeout the worker abandons and names its job; the primary ends after it, with its status."""
    primary.serve("workers=1", before="requiem.initialize(drain_timeout=0.3)")
    _, pid = primary.forked()
    primary.ask("job")
    primary.manager.stop()
    lines = primary.ends(75)
    primary.gone(pid)
    assert any('abandoned "export"' in line for line in lines)
    assert f"exit 1 {pid} 75" in lines


def test_stopped_while_workers_start(primary: Primary) -> None:
    """A stop that comes before anybody is ready ends it at once, and well."""
    primary.fault.write_text("import threading; threading.Event().wait()")
    primary.serve(ready=False)
    primary.forked()
    primary.manager.stop()
    primary.ends()
    assert primary.manager.sent == ["STOPPING"]


def test_jobs_child_does_not_speak_for_its_worker(primary: Primary) -> None:
    """What a worker starts finds neither a manager nor a place in the cluster in its environment."""
    code = f"import os; print('child', sorted({set(TAKEN)!r} & os.environ.keys()))"
    primary.fault.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])")
    primary.serve("workers=1")
    primary.expect("child []")
    primary.manager.stop()
    primary.ends()


def test_worker_cannot_be_started(primary: Primary) -> None:
    """Where no process can be had the service ends, and says why."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (11, 11)); requiem.initialize()"
    primary.serve("workers=1, max_crashes=2", ready=False, before=limit)
    assert any("WorkerError: worker " in line and " cannot be started: " in line for line in primary.ends(1))
    assert "Failed: worker" in primary.manager.status


def test_nothing_can_be_run_again_from_a_pipe(manager: PatientManager) -> None:
    """A program from standard input is a WorkerError at once."""
    process = manager.spawn(
        [sys.executable, "-"],
        env={"PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, _ = process.communicate("from requiem_systemd import Cluster\nCluster(print, workers=1).run()\n", PATIENCE)
    assert "WorkerError: this program came by standard input" in output
    assert process.returncode == 1


# -- kept


def test_killed_worker_is_replaced(primary: Primary) -> None:
    """After a kill -9 there are as many workers as before; only its own requests have failed. How soon is for tests/systemd."""
    primary.serve()
    for _ in range(2):
        primary.forked()
    with primary.connect("slow") as first, primary.connect("slow") as second:
        primary.status("2 of 2 workers: up")
        victim = primary.ask()
        os.kill(victim, signal.SIGKILL)
        primary.expect("exit")
        _, pid = primary.forked()
        primary.expect("listening", 3, pid)
        primary.let_go()
        answers = []
        for connection in (first, second):
            with contextlib.suppress(ConnectionResetError):
                answers.append(connection.recv(100))
    assert str(victim).encode() not in answers
    primary.manager.stop()
    primary.ends()


def test_killed_primary_leaves_nothing(primary: Primary) -> None:
    """Its workers accept no more, end their jobs, and go by themselves."""
    primary.serve()
    pids = [primary.forked()[1] for _ in range(2)]
    busy = primary.ask("job")
    primary.manager.kill("SIGKILL")
    for pid in pids:
        if pid != busy:
            primary.gone(pid)
    deadline = time.monotonic() + PATIENCE
    while primary.listens() and time.monotonic() < deadline:  # the busy one closes it when it hears of the end
        continue
    assert not primary.listens()
    os.kill(busy, 0)
    primary.let_go()
    primary.gone(busy)
    primary.expect("job done")


def test_roll(primary: Primary) -> None:
    """A reload puts new workers in the places of the old; those end their jobs in the background."""
    primary.serve()
    old = {primary.forked()[1] for _ in range(2)}
    busy = primary.ask("job")
    primary.manager.reload()
    primary.manager.wait_message("RELOADING")
    new = {primary.forked()[1] for _ in range(2)}
    primary.manager.wait_for(lambda: primary.manager.sent.count("READY") == 2)
    assert {primary.ask() for _ in range(20)} <= new
    primary.gone(*(old - {busy}))
    primary.status('2 of 2 workers: up; 1 leaving: 1 job, oldest "export"')
    primary.let_go()
    primary.gone(busy)
    primary.expect("job done")
    primary.manager.stop()
    primary.ends()


def test_roll_ends_when_the_old_accept_no_more(primary: Primary) -> None:
    """A reload has not succeeded before the old workers have closed their doors, also where a handler of their begin takes its time."""
    primary.fault.write_text("requiem.on('begin', lambda: time.sleep(0.4))")
    primary.serve()
    for _ in range(2):
        primary.forked()
    primary.manager.reload()
    primary.manager.wait_message("RELOADING")
    new = {primary.forked()[1] for _ in range(2)}
    primary.manager.wait_for(lambda: primary.manager.sent.count("READY") == 2)
    assert {primary.ask() for _ in range(20)} <= new
    primary.manager.stop()
    primary.ends()


def test_roll_that_fails_keeps_the_old(primary: Primary) -> None:
    """New workers that do not come up change nothing; the reload says why."""
    primary.serve()
    old = {primary.forked()[1] for _ in range(2)}
    primary.fault.write_text("raise SystemExit(3)")
    primary.manager.reload()
    primary.status("Reload failed: worker 3 ended with status 3 before it was ready")
    assert {primary.ask() for _ in range(20)} <= old
    primary.fault.unlink()
    primary.manager.reload()
    primary.manager.wait_for(lambda: primary.manager.sent.count("READY") == 3)
    primary.manager.wait_for(lambda: "failed" not in primary.manager.status)
    assert not {primary.ask() for _ in range(20)} & old
    primary.manager.stop()
    primary.ends()


def test_roll_that_never_gets_ready_fails(primary: Primary) -> None:
    """After start_timeout the reload fails."""
    primary.serve("workers=1, start_timeout=4.0")
    primary.forked()
    primary.fault.write_text("import threading; threading.Event().wait()")
    primary.manager.reload()
    primary.status("reload failed: worker")
    assert "was not ready within 4 s" in primary.manager.unit.status
    primary.manager.wait_for(lambda: primary.manager.sent.count("READY") == 2)
    primary.manager.stop()
    primary.ends()


def test_stop_in_mid_roll(primary: Primary) -> None:
    """A drain that cuts into a roll ends it."""
    primary.serve("workers=1")
    primary.forked()
    primary.fault.write_text("import threading; threading.Event().wait()")
    primary.manager.reload()
    primary.forked()
    primary.manager.stop()
    primary.ends()
    assert primary.manager.result == "success"


def test_recycling(primary: Primary) -> None:
    """A worker that has served its number of requests goes when its replacement is ready, and no request fails."""
    requests = SERVER.replace("requiem.track(text)", "process.open(text, More(REQUEST))").replace(
        "def answer(",
        "from requiem_systemd.ledger import REQUEST, More\nfrom requiem_systemd.service import process\n\ndef answer(",
    )
    primary.start(requests.replace("OPTIONS", "workers=2, max_requests=20, jitter=0.5").replace("FAULT\n", "fault()\n"))
    pids = set[int]()
    while len(pids) < 6:
        pids.add(primary.ask())
    primary.status("2 of 2 workers: up")
    primary.manager.stop()
    lines = [line.split()[0] for line in primary.ends() if line.startswith(("listening ", "exit "))]
    while lines.pop() == "exit":  # in the stop
        pass
    alive = list(itertools.accumulate(1 if line == "listening" else -1 for line in lines))
    assert min(alive[1:]) == 2  # never fewer, once there are two


def test_age(primary: Primary) -> None:
    """A worker of the given age is recycled."""
    primary.serve("workers=1, max_age=0.5")
    first = primary.forked()
    second = primary.forked()
    primary.expect("listening", *second)
    primary.expect("exit", *first)
    primary.manager.stop()
    primary.ends()


def test_crash_loop_ends_the_service(primary: Primary) -> None:
    """Where no worker comes up, the service ends, says why, and fails."""
    primary.fault.write_text("raise SystemExit(3)")
    primary.serve("workers=2, max_crashes=3", ready=False)
    lines = primary.ends(1)
    assert "Failed: crash loop: 6 workers in a row did not last" in primary.manager.status
    assert any("WorkerError: crash loop" in line for line in lines)
    assert primary.manager.result == "exit-code"


def test_one_that_crashes_now_and_then_is_no_loop(primary: Primary) -> None:
    """The first replacement after a crash comes at once; the service is up."""
    primary.fault.write_text("import os; os.path.exists(path + '2') or (open(path + '2', 'x'), os._exit(4))")
    primary.serve("workers=1, max_crashes=3")
    first = primary.forked()
    primary.expect("exit", *first, 4)
    primary.manager.stop()
    primary.ends()


def test_worker_that_drains_unasked_is_replaced(primary: Primary) -> None:
    """An operator's SIGTERM to one worker: it ends its jobs, while another is in its place."""
    primary.serve("workers=1")
    primary.forked()
    busy = primary.ask("job")
    os.kill(busy, signal.SIGTERM)
    second = primary.forked()
    primary.expect("listening", *second)
    assert second[1] == primary.ask()
    primary.let_go()
    primary.expect("exit", 1, busy, 0)
    primary.manager.stop()
    primary.ends()


# -- the watchdog

WATCHDOG = 5.0  # of the primary too, which must not seem to hang on a busy machine: nor while its interpreter finalizes, when nothing feeds


@pytest.fixture
def watched(tmp_path: Path, free_port: int) -> Iterator[Primary]:
    """Return a primary to be started in a unit with WatchdogSec=."""
    with PatientManager(timeout_stop=60, watchdog=WATCHDOG) as manager, contextlib.closing(Primary(manager, tmp_path, free_port)) as primary:
        yield primary


def test_unhealthy_worker_is_replaced(watched: Primary) -> None:
    """A worker whose health check says no is killed within the unit's WatchdogSec=, and replaced; the primary, not asked itself, says why."""
    # Nothing that warns: what a worker writes bit by bit would mix with the primary's lines.
    health = "not cluster.is_primary() and pathlib.Path(os.environ['FAULT'] + '.ill').read_text() != str(os.getpid())"
    ill = watched.fault.with_suffix(".ill")
    ill.touch()
    watched.serve(before=f"requiem.initialize(health=lambda: {health})")
    victim, other = (watched.forked()[1] for _ in range(2))
    ill.write_text(str(victim))
    number = watched.expect("exit")[1]
    assert f"exit {number} {victim} None SIGABRT" in watched.lines
    _, pid = watched.forked()
    watched.expect("listening", 3, pid)
    assert {watched.ask() for _ in range(20)} <= {other, pid}
    watched.manager.stop()
    watched.ends()
    assert any(f"worker {number} hung: its watchdog was not fed for 5 s, and died of SIGABRT: another is started" in line for line in watched.lines)


def test_starved_worker_is_replaced(watched: Primary) -> None:
    """A worker that does not run at all, and so is deaf to SIGABRT too, is killed and replaced."""
    watched.serve("workers=1")
    number, pid = watched.forked()
    os.kill(pid, signal.SIGSTOP)
    watched.expect("exit", number, pid, None, "SIGKILL")
    _, pid = watched.forked()
    watched.expect("listening", 2, pid)
    assert pid == watched.ask()
    watched.manager.stop()
    watched.ends()


def test_busy_worker_is_left_alone(watched: Primary) -> None:
    """A job that outlasts the watchdog several times, in the drain too, is no hang."""
    watched.serve("workers=1")
    watched.forked()
    pid = watched.ask("job")
    watched.manager.stop()
    watched.status('in them 1 job, oldest "export"')
    fed = watched.manager.sent.count("WATCHDOG")
    watched.manager.wait_for(lambda: watched.manager.sent.count("WATCHDOG") >= fed + 4, PATIENCE)  # two intervals
    watched.let_go()
    watched.expect("exit", 1, pid, 0)
    watched.ends()


# -- what is left


def test_control_socket_goes_with_its_worker(primary: Primary, tmp_path: Path) -> None:
    """In the unit's runtime folder nothing is left of a worker that has ended, though none is started in its place."""
    folder = tmp_path / "run"
    folder.mkdir()
    primary.serve(before=f"os.environ['RUNTIME_DIRECTORY'] = '{folder}'; requiem.initialize()")
    numbers = {pid: number for number, pid in (primary.forked(), primary.forked())}

    def left() -> set[str]:
        return {path.name for path in folder.iterdir()}

    assert left() == {"requiem", *(f"requiem.{pid}" for pid in numbers)}
    busy = primary.ask("job")
    (idle,) = set(numbers) - {busy}
    primary.manager.stop()
    primary.expect("exit", numbers[idle], idle, 0)
    deadline = time.monotonic() + PATIENCE
    while left() != {"requiem", f"requiem.{busy}"}:
        assert time.monotonic() < deadline, left()
        time.sleep(0.01)
    primary.let_go()
    primary.expect("exit", numbers[busy], busy, 0)
    primary.ends()


# -- listeners


def test_passed_listener_is_everybodys(primary: Primary) -> None:
    """A socket unit's listener reaches every worker, and is alive when all have gone."""
    listener = primary.manager.listen("http")
    primary.port = listener.getsockname()[1]
    primary.serve()
    pids = {primary.forked()[1] for _ in range(2)}
    assert primary.ask() in pids
    primary.manager.stop()
    primary.ends()
    with primary.connect("pid"):
        assert select.select([listener], [], [], PATIENCE)[0]


def test_target_runs_alone(primary: Primary) -> None:
    """What is a Cluster's target is a service by itself."""
    alone = SERVER.replace("FAULT\n", "fault()\n").replace("Cluster(serve, OPTIONS).run()", "serve(requiem.initialize())")
    primary.start(alone)
    assert primary.process.pid == primary.ask()
    primary.manager.stop()
    primary.ends()
