"""What `TrackRequests`, or `track_socket`, costs a server, and `requiem-systemd serve` against uvicorn: requests a second by wrk, in turns.

The servers have one CPU, and the client another: with more of them chance says how many connections each process gets, and what else runs
on the machine says more than the servers do. A virtual machine's CPU is ten percent faster in one second than in the next, so the turns are
short: the client of the one is stopped while that of the other runs. A process is some percent faster or slower than another of the same
program for all its life, and so is one way to spread the connections over workers: each is started several times, and connected to anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import refused
from tests.conformance.conftest import CHECKOUT, PROGRAMS
from tests.conformance.subjects import HTTP, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The median of so many is good to 0.006: one start of a server by httptools is off by 0.025 for as long as it runs.
STARTS: Final = 24
PAIRS: Final = 2  # of each start
TURNS: Final = 10  # of each of a pair
# Of workers: how the connections are spread over them is good for ten percent, whatever the turns. Each pair spreads them anew.
PAIRS_OF_WORKERS: Final = 10
TURNS_OF_WORKERS: Final = 2
TURN: Final = 0.05  # seconds
AT_LEAST: Final = 0.95
SERVE_AT_LEAST: Final = 0.97
# uvicorn as `pip install uvicorn` brings it speaks by h11. By httptools, which uvicorn[standard] brings, it answers such a request in a third
# of the time, and ours is the same 1.0 us: at the promise or short of it, see docs/peers.md. This is so that it gets no worse.
BY_HTTPTOOLS_AT_LEAST: Final = 0.91
WITHOUT_HTTPTOOLS: Final = Path(__file__).parent / "without_httptools"
PATIENCE: Final = 30.0
# Programs that know PLAIN=1: the same without TrackRequests, or track_socket.
APPLICATIONS: Final = ("asgi_app:app", "wsgi_app:app", "wsgiref_server.py", "waitress_server.py", "werkzeug_server.py")
OWN: Final = ("aiohttp_run_app.py", "tornado_app.py", "twisted_site.py")
KNOWN: Final = (*APPLICATIONS, *OWN)
# One way to start each server: more of its processes do no other work.
SUBJECTS: Final = [subject for subject in HTTP if set(subject.command) & set(KNOWN) and " --" not in subject.name]
BY_HTTPTOOLS: Final = [subject for subject in SUBJECTS if "uvicorn" in subject.name]
APP: Final = ("asgi_app:app", "--workers", "2")
SERVE: Final = ("{python}", "-m", "requiem_systemd", "serve", *APP, "--app-dir", str(PROGRAMS), "--bind", "127.0.0.1:{port}")
UVICORN: Final = ("{python}", "-m", "uvicorn", *APP, "--no-access-log", "--port", "{port}")


@contextlib.contextmanager
def apart() -> Iterator[int]:
    """Keep this process, and so the client that it starts, off one CPU, and yield its number."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs: one for the servers, one for the client")
    os.sched_setaffinity(0, cpus - {min(cpus)})
    try:
        yield min(cpus)
    finally:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def served(cpu: int, command: Sequence[str], env: Mapping[str, str], *, httptools: bool = False) -> Iterator[int]:
    """Run a server on a CPU, and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    fill = {"bin": str(Path(sys.executable).parent), "python": sys.executable, "port": str(port)}
    path = f"{PROGRAMS}:{CHECKOUT}" if httptools else f"{WITHOUT_HTTPTOOLS}:{PROGRAMS}:{CHECKOUT}"
    environ = {**os.environ, "PYTHONPATH": path, "RECORD": os.devnull, **env}
    words = ("taskset", "--cpu-list", str(cpu), *(word.format_map(fill) for word in command))
    output = subprocess.DEVNULL
    with subprocess.Popen(words, env=environ, cwd=PROGRAMS, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while refused(port):
                assert time.monotonic() < deadline, f"{words} does not listen"
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()


class Load:
    """wrk on one server, stopped whenever it is not its turn."""

    def __init__(self, port: int) -> None:
        command = ("wrk", "-t1", "-c32", "-d60s", f"http://127.0.0.1:{port}/")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._process.send_signal(signal.SIGSTOP)
        self._seconds = 0.0

    def turn(self) -> None:
        """Let it run for a turn."""
        begin = time.monotonic()
        self._process.send_signal(signal.SIGCONT)
        time.sleep(TURN)
        self._process.send_signal(signal.SIGSTOP)
        self._seconds += time.monotonic() - begin

    def rate(self) -> float:
        """End it, and return the requests a second of its turns."""
        begin = time.monotonic()
        self._process.send_signal(signal.SIGCONT)
        text = None
        while text is None:  # it goes on for up to 100 ms, and says how many there were
            self._process.send_signal(signal.SIGINT)  # again: where another thread gets it, the main one sleeps on
            with contextlib.suppress(subprocess.TimeoutExpired):
                text = self._process.communicate(timeout=0.02)[0]
        self._seconds += time.monotonic() - begin
        found = re.search(r"([0-9]+) requests in", text)
        assert found, text
        return int(found[1]) / self._seconds


def pair(one: int, other: int, turns: int) -> float:
    """Return how many times as many requests the server at the one port answers as that at the other."""
    loads = Load(one), Load(other)
    for _ in range(turns):
        for load in loads:
            load.turn()
    first, second = (load.rate() for load in loads)
    return first / second


def compare(  # noqa: PLR0913 - two servers, and how they are measured
    name: str,
    ours: tuple[Sequence[str], Mapping[str, str]],
    theirs: tuple[Sequence[str], Mapping[str, str]],
    at_least: float,
    *,
    pairs: int = PAIRS,
    turns: int = TURNS,
    httptools: bool = False,
) -> None:
    """Run two in turns, the one first and then the other; expect the median of the pairs."""
    ratios = []
    with apart() as cpu:
        for _ in range(STARTS):
            with served(cpu, *theirs, httptools=httptools) as their, served(cpu, *ours, httptools=httptools) as our:
                pair(our, their, turns)  # warm
                ratios += [1 / pair(their, our, turns) if number % 2 else pair(our, their, turns) for number in range(pairs)]
    median = statistics.median(ratios)
    print(f"\n{name}: {median:.3f} x (at least {at_least}); from {min(ratios):.3f} to {max(ratios):.3f}")
    assert median >= at_least


@pytest.mark.timeout(240)
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_throughput(subject: Subject) -> None:
    """With TrackRequests, or `track_socket`, a server answers at least 0.95 times as many requests."""
    without = {**subject.env, "PLAIN": "1"}
    compare(f"{subject} with TrackRequests / without", (subject.command, subject.env), (subject.command, without), AT_LEAST)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("subject", BY_HTTPTOOLS, ids=str)
def test_throughput_by_httptools(subject: Subject) -> None:
    """Where the server is three times as fast, the same is more of it."""
    pytest.importorskip("httptools")
    ours, without = (subject.command, subject.env), (subject.command, {**subject.env, "PLAIN": "1"})
    compare(f"{subject} by httptools with TrackRequests / without", ours, without, BY_HTTPTOOLS_AT_LEAST, httptools=True)


@pytest.mark.timeout(240)
def test_serve() -> None:
    """`requiem-systemd serve` answers at least 0.97 times as many requests as uvicorn; neither writes an access log, both speak by h11."""
    name, theirs = "serve --workers 2 / uvicorn --workers 2", (UVICORN, {"PLAIN": "1"})
    compare(name, (SERVE, {}), theirs, SERVE_AT_LEAST, pairs=PAIRS_OF_WORKERS, turns=TURNS_OF_WORKERS)
