"""What TrackRequests costs a server: requests a second with it and without, by wrk, in turns."""

from __future__ import annotations

import contextlib
import os
import re
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
    from collections.abc import Iterator

PAIRS: Final = 11
AT_LEAST: Final = 0.95
PATIENCE: Final = 30.0
# Programs that know PLAIN=1: the same without TrackRequests.
KNOWN: Final = ("asgi_app:app", "wsgi_app:app", "wsgiref_server.py", "waitress_server.py", "werkzeug_server.py")
SUBJECTS: Final = [subject for subject in HTTP if set(subject.command) & set(KNOWN)]


@contextlib.contextmanager
def served(subject: Subject, **env: str) -> Iterator[int]:
    """Run a server, and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    fill = {"bin": str(Path(sys.executable).parent), "python": sys.executable, "port": str(port)}
    environ = {**os.environ, "PYTHONPATH": f"{PROGRAMS}:{CHECKOUT}", "RECORD": os.devnull, **subject.env, **env}
    words = [word.format_map(fill) for word in subject.command]
    output = subprocess.DEVNULL
    with subprocess.Popen(words, env=environ, cwd=PROGRAMS, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while refused(port):
                assert time.monotonic() < deadline, f"{subject} does not listen"
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()


def rate(port: int, connections: int = 8) -> float:
    """Return the requests a second of one second's load."""
    command = ("wrk", "-t1", f"-c{connections}", "-d1s", f"http://127.0.0.1:{port}/")
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    assert found, text
    return float(found[1])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_throughput(subject: Subject) -> None:
    """With TrackRequests a server answers at least 0.95 times as many requests, by the median of pairs."""
    with served(subject, PLAIN="1") as without, served(subject) as tracked:
        rate(without), rate(tracked)
        ratios = [rate(tracked) / rate(without) for _ in range(PAIRS)]
    median = statistics.median(ratios)
    print(f"{subject}: {median:.3f} times the throughput (at least {AT_LEAST}); from {min(ratios):.3f} to {max(ratios):.3f}")
    assert median >= AT_LEAST
