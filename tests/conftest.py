"""What all tests share: options, free ports, and a look at what each test leaves behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.patience import TEST

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Folders of tests of real processes.
REAL: Final = ("process", "fault", "conformance")
#: How long what a test leaves behind may take to go by itself, in seconds.
ABOUT_TO_END: Final = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of our own; here, since pytest asks only the uppermost conftest.py in time."""
    group = parser.getgroup("requiem_systemd")
    group.addoption("--full", action="store_true", help="20 repetitions of what is random instead of 3")
    group.addoption("--write-table", action="store_true", help="write the adapters' tables anew")
    group.addoption(
        "--sandbox-root", default="/", metavar="DIR", help="the tree whose systemd is used (default: /)"
    )
    group.addoption(
        "--sandbox-bind", action="append", default=[], metavar="PATH", help="share PATH with it, live"
    )
    group.addoption("--sandbox-turn", type=float, default=0.0, metavar="PART", help="begin with the file behind this part (0.33) of the tests")
    group.addoption("--sandbox-debs", metavar="DIR", help="install the packages in DIR there; the tree of the tests shall have no package then")
    group.addoption(
        "--sandbox-python", default=sys.executable, metavar="PATH", help="the Python of units in it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give real processes time."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in REAL and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST))


@pytest.fixture(scope="session")
def repetitions(request: pytest.FixtureRequest) -> int:
    """How often to try what is up to chance."""
    return 20 if request.config.getoption("--full") else 3


@pytest.fixture
def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    return any_port()


def any_port() -> int:
    """Return such a port, where a test needs several."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Held(NamedTuple):
    """What the process holds."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]


@pytest.fixture(autouse=True)
def leak_check() -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor or a child process behind."""
    before = _held()
    yield
    left = _left(before)
    if any(left):
        gc.collect()  # what is only waiting for the collector is no leak
        deadline = time.monotonic() + ABOUT_TO_END
        while any(left := _left(before)) and time.monotonic() < deadline:  # nor is what is just about to end (grpc's core has threads of its own)
            time.sleep(0.02)
    if any(left):
        message = "left behind: " + "; ".join(_described(left))
        for child in left.children:  # the next test shall not suffer
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        pytest.fail(message, pytrace=False)


def _held() -> Held:
    """Look at the process."""
    return Held(frozenset(threading.enumerate()), frozenset(_descriptors()), frozenset(_children()))


def _left(before: Held) -> Held:
    """Return what is held now and was not before; of threads, those to be waited for, and our own."""
    now = _held()
    threads = {t for t in now.threads - before.threads if not t.daemon or t.name.startswith("requiem-")}
    processes, descriptors = _of_multiprocessing()
    return Held(
        frozenset(threads),
        frozenset(entry for entry in now.descriptors - before.descriptors if entry[0] not in descriptors),
        now.children - before.children - processes,
    )


def _descriptors() -> Iterator[tuple[int, str]]:
    """Yield open descriptors and what they are; nothing where there is no /proc."""
    for path in Path("/proc/self/fd").glob("*"):
        try:
            yield int(path.name), str(path.readlink())
        except FileNotFoundError:
            continue  # the one that was used for listing


def _children() -> Iterator[int]:
    """Yield child processes, also those that have ended and were not waited for."""
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            yield from map(int, path.read_text().split())
        except FileNotFoundError:
            continue  # a thread that has just ended


def _of_multiprocessing() -> tuple[set[int], set[int]]:
    """Return the processes and descriptors that multiprocessing keeps until the interpreter ends."""
    tracker, server = resource_tracker._resource_tracker, forkserver._forkserver
    processes = {getattr(tracker, "_pid", None), getattr(server, "_forkserver_pid", None)}
    descriptors = {
        getattr(tracker, "_fd", None),
        getattr(server, "_forkserver_alive_fd", None),
        getattr(server, "_forkserver_fd", None),
    }
    return {pid for pid in processes if pid}, {fd for fd in descriptors if fd is not None}


def _described(left: Held) -> Iterator[str]:
    """Yield a phrase for each thing."""
    for thread in left.threads:
        yield f"thread {thread.name!r}"
    for number, what in sorted(left.descriptors):
        yield f"descriptor {number} ({what})"
    for child in sorted(left.children):
        try:
            words = (
                Path(f"/proc/{child}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
        except FileNotFoundError:
            words = ""
        yield f"child {child} ({words or 'ended, not waited for'})"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a file with a key and a certificate that it signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=here",
    ]
    subprocess.run(
        [*command, "-keyout", path, "-out", tmp_path / "cert.pem"], check=True, capture_output=True
    )
    path.write_text(path.read_text() + (tmp_path / "cert.pem").read_text())
    return path
