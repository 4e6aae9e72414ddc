"""Each example as a process of its own: it is given a job, told to stop, and ends well when the job has."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
SECONDS: Final = 0.5
TIMEOUT: Final = 15.0
PASS_ON: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """What NOTIFY_SOCKET leads to."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`."""
        self.path = path
        self.descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(TIMEOUT)

    def expect(self, assignment: str) -> str:
        """Wait for a message with this line in it, and return it whole."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            self.descriptors += descriptors
            if assignment in data.decode().splitlines():
                return data.decode()

    def close(self) -> None:
        """Give back what came."""
        self._socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


class Example:
    """One example, running."""

    def __init__(self, manager: Manager, folder: Path) -> None:
        """Store; `start` starts."""
        self.manager = manager
        self.folder = folder
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self, *command: str, env: Mapping[str, str] | None = None, listener: socket.socket | None = None) -> None:
        """Start it under our manager, with a listener if there is one, and wait until it is ready."""
        python = (sys.executable, "-u")
        words = [*python, *command] if command[0] == "-m" else [*python, str(EXAMPLES / command[0])]
        passed = {}
        if listener is not None:  # as systemd passes it: descriptor 3, and a PID that only the child can know
            words = [sys.executable, "-c", PASS_ON, str(listener.fileno()), *words]
            passed = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
        self._process = subprocess.Popen(
            words,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith(("LISTEN_", "NOTIFY_"))},
                **{"NOTIFY_SOCKET": str(self.manager.path), "EXAMPLE_SECONDS": str(SECONDS), "PYTHONWARNINGS": "error"},
                **{"PYTHONPATH": str(EXAMPLES.parent), **passed, **(env or {})},
            },
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=() if listener is None else (listener.fileno(),),
            text=True,
        )
        self.manager.expect("READY=1")

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process, started."""
        assert self._process is not None
        return self._process

    def expect(self, line: str) -> None:
        """Wait for a line of its output, not yet read."""
        assert self.process.stdout is not None
        while True:
            text = self.process.stdout.readline()
            assert text, f"no {line!r} in {self.lines}"
            self.lines.append(text.rstrip("\n"))
            if self.lines[-1] == line:
                return

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, as systemd does."""
        self.process.send_signal(number)

    def ends_after(self, done: str) -> None:
        """Stop it while its job runs; expect that the job was done and that all was well."""
        self.signal(signal.SIGTERM)
        stopping = self.manager.expect("STOPPING=1")
        assert "EXTEND_TIMEOUT_USEC=" in stopping
        assert "Draining" in stopping
        self.expect(done)
        rest, _ = self.process.communicate(timeout=TIMEOUT)
        self.lines += rest.splitlines()
        assert self.process.returncode == 0, self.lines

    def close(self) -> None:
        """End what is left."""
        if self._process is not None:
            with self._process:
                self._process.kill()


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    """Return an example to be started."""
    with contextlib.closing(Manager(tmp_path / "notify")) as manager:
        with contextlib.closing(Example(manager, tmp_path)) as example:
            yield example


def ask(address: tuple[str, int] | str, path: str = "/") -> socket.socket:
    """Send a request, and return the connection that is to bring the answer."""
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.settimeout(TIMEOUT)
    connection.connect(address)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
    return connection


def answer(connection: socket.socket) -> str:
    """Return the answer, read to its end."""
    with connection, connection.makefile("rb") as stream:
        return stream.read().decode()


@pytest.mark.parametrize(
    ("name", "begun", "done"),
    [
        ("01_threads.py", "worker 3, job 1 begins", "worker 3, job 1 done"),
        ("02_asyncio.py", "mail 1: begun", "mail 1: done"),
        ("06_subprocess.py", "conversion: begun", "conversion: done"),
    ],
)
def test_begins_jobs_by_itself(name: str, begun: str, done: str, example: Example) -> None:
    """What the example itself has begun is ended."""
    example.start(name)
    example.expect(begun)
    example.ends_after(done)


def test_03_http_server(example: Example) -> None:
    """On a listener that was passed a slow request is answered in the drain, and the listener is left as it was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        example.start("03_http_server.py", listener=listener)
        connection = ask(listener.getsockname(), "/slow")
        example.expect("request: begun")
        example.ends_after("request: done")
        assert "Hello world!" in answer(connection)
        with ask(listener.getsockname()):
            pass  # it waits for the next process: nobody shut the listener down


def test_04_fastapi(example: Example) -> None:
    """A task that a request began is ended; then, and once, the application's own shutdown runs."""
    uvicorn = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--uds", "http", "04_fastapi:app")
    example.start(*uvicorn)
    example.expect("INFO:     Uvicorn running on unix socket http (Press CTRL+C to quit)")  # it listens after it is ready
    assert "begun" in answer(ask(str(example.folder / "http"), "/export"))
    example.expect("export: begun")
    example.ends_after("export: done")
    assert example.lines.count("lifespan: shut down") == 1
    assert example.lines.index("export: done") < example.lines.index("lifespan: shut down")


def test_05_worker_loop(example: Example) -> None:
    """The job that was fetched is ended; the one behind it stays in the queue."""
    for number in ("first", "second"):
        (example.folder / f"{number}.job").write_text(number)
    example.start("05_worker_loop.py", env={"EXAMPLE_SPOOL": str(example.folder)})
    example.expect("first: begun")
    example.ends_after("first: done")
    assert (example.folder / "second.job").exists()


def test_07_watchdog(example: Example) -> None:
    """The watchdog is fed while the service is healthy, and in the drain."""
    example.start("07_watchdog.py", env={"WATCHDOG_USEC": "200000"})
    example.manager.expect("WATCHDOG=1")
    example.expect("turn: begun")
    example.ends_after("turn: done")
    example.manager.expect("WATCHDOG=1")


def test_08_reload(example: Example) -> None:
    """A reload takes the new configuration; one that cannot be read keeps the old, and says so."""
    config = example.folder / "config.json"
    config.write_text(json.dumps({"greeting": "Hello"}))
    example.start("08_reload.py", env={"EXAMPLE_CONFIG": str(config)})
    example.expect("Hello: begun")
    config.write_text(json.dumps({"greeting": "Good evening"}))
    example.signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in example.manager.expect("RELOADING=1")
    example.manager.expect("READY=1")
    example.expect("config: Good evening")
    config.write_text("nonsense")
    example.signal(signal.SIGHUP)
    example.manager.expect("RELOADING=1")
    assert "Reload failed" in example.manager.expect("READY=1")
    example.expect("Good evening: begun")
    example.ends_after("Good evening: done")


def test_09_fd_store(example: Example, free_port: int) -> None:
    """The listener goes to the manager's store, and the clients of the drain are not refused."""
    example.start("09_fd_store.py", env={"EXAMPLE_PORT": str(free_port)})
    if not example.manager.descriptors:
        example.manager.expect("FDSTORE=1")
    assert len(example.manager.descriptors) == 1
    connection = ask(("127.0.0.1", free_port))
    example.expect("client: begun")
    example.ends_after("client: done")
    assert "Hello world!" in answer(connection)
    with ask(("127.0.0.1", free_port)):
        pass  # the listener lives in the store


def test_10_seed(example: Example, free_port: int) -> None:
    """The example of the README that all of this began with."""
    example.start("10_seed.py", env={"EXAMPLE_PORT": str(free_port)})
    example.expect("job: begun")
    assert answer(ask(("127.0.0.1", free_port))).endswith("Hello world!")
    example.ends_after("job: done")
    assert "grabs the violin" in example.lines


def test_under_sixty_lines() -> None:
    """No example has outgrown what one reads at a glance."""
    for path in EXAMPLES.glob("[0-9]*.py"):
        assert len(path.read_text().splitlines()) < 60
