"""Each example as a process of its own: it is given a job, told to stop, and ends well when the job has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests import redisserver
from tests.patience import PATIENCE
from tests.process.running import CHECKOUT, Running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

EXAMPLES: Final = CHECKOUT / "examples"
SECONDS: Final = 0.5


def needs(module: str) -> pytest.MarkDecorator:
    """Skip a test where a framework is not installed: most builds do without."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"no {module}")


@pytest.fixture
def example(running: Running) -> Running:
    """Return an example to be started."""
    return running


def start(
    example: Running,
    *command: str,
    env: Mapping[str, str] | None = None,
    listener: socket.socket | None = None,
) -> None:
    """Start an example with quick jobs."""
    words = command if command[0] == "-m" else (str(EXAMPLES / command[0]),)
    quick = {"EXAMPLE_SECONDS": str(SECONDS), "PYTHONWARNINGS": "error", **(env or {})}
    example.start(*words, env=quick, listener=listener)


def ask(address: tuple[str, int] | str, path: str = "/") -> socket.socket:
    """Send a request, and return the connection that is to bring the answer."""
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.settimeout(PATIENCE)
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
def test_begins_jobs_by_itself(name: str, begun: str, done: str, example: Running) -> None:
    """What the example itself has begun is ended."""
    start(example, name)
    example.expect(begun)
    example.ends_after(done)


def test_03_http_server(example: Running) -> None:
    """On a listener that was passed a slow request is answered in the drain, and the listener is left as it was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start(example, "03_http_server.py", listener=listener)
        connection = ask(listener.getsockname(), "/slow")
        example.expect("request: begun")
        example.ends_after("request: done")
        assert "Hello world!" in answer(connection)
        with ask(listener.getsockname()):
            pass  # it waits for the next process: nobody shut the listener down


def test_04_fastapi(example: Running) -> None:
    """A task that a request began is ended; then, and once, the application's own shutdown runs."""
    uvicorn = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--uds", "http", "04_fastapi:app")
    start(example, *uvicorn)
    example.expect(
        "INFO:     Uvicorn running on unix socket http (Press CTRL+C to quit)"
    )  # it listens after it is ready
    assert "begun" in answer(ask(str(example.folder / "http"), "/export"))
    example.expect("export: begun")
    example.ends_after("export: done")
    assert example.lines.count("lifespan: shut down") == 1
    assert example.lines.index("export: done") < example.lines.index("lifespan: shut down")


def test_05_worker_loop(example: Running) -> None:
    """The job that was fetched is ended; the one behind it stays in the queue."""
    for number in ("first", "second"):
        (example.folder / f"{number}.job").write_text(number)
    start(example, "05_worker_loop.py", env={"EXAMPLE_SPOOL": str(example.folder)})
    example.expect("first: begun")
    example.ends_after("first: done")
    assert (example.folder / "second.job").exists()


def test_07_watchdog(example: Running) -> None:
    """The watchdog is fed while the service is healthy, and in the drain."""
    start(example, "07_watchdog.py", env={"WATCHDOG_USEC": "200000"})
    example.manager.expect("WATCHDOG=1")
    example.expect("turn: begun")
    example.ends_after("turn: done")
    example.manager.expect("WATCHDOG=1")


def test_08_reload(example: Running) -> None:
    """A reload takes the new configuration; one that cannot be read keeps the old, and says so."""
    config = example.folder / "config.json"
    config.write_text(json.dumps({"greeting": "Hello"}))
    start(example, "08_reload.py", env={"EXAMPLE_CONFIG": str(config)})
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


def test_09_fd_store(example: Running, free_port: int) -> None:
    """The listener goes to the manager's store, and the clients of the drain are not refused."""
    start(example, "09_fd_store.py", env={"EXAMPLE_PORT": str(free_port)})
    if not example.manager.descriptors:
        example.manager.expect("FDSTORE=1")
    assert len(example.manager.descriptors) == 1
    connection = ask(("127.0.0.1", free_port))
    example.expect("client: begun")
    example.ends_after("client: done")
    assert "Hello world!" in answer(connection)
    with ask(("127.0.0.1", free_port)):
        pass  # the listener lives in the store


def test_10_seed(example: Running, free_port: int) -> None:
    """The example of the README that all of this began with."""
    start(example, "10_seed.py", env={"EXAMPLE_PORT": str(free_port)})
    example.expect("job: begun")
    assert answer(ask(("127.0.0.1", free_port))).endswith("Hello world!")
    example.ends_after("job: done")
    assert "grabs the violin" in example.lines


def test_12_aiohttp(example: Running, free_port: int) -> None:
    """A task that a request began is ended."""
    pytest.importorskip("aiohttp")
    start(example, "12_aiohttp.py", env={"EXAMPLE_PORT": str(free_port)})
    assert "begun" in answer(ask(("127.0.0.1", free_port), "/export"))
    example.expect("export: begun")
    example.ends_after("export: done")


def test_13_flask(example: Running, free_port: int) -> None:
    """A thread that a request began in a worker of gunicorn's is waited for."""
    pytest.importorskip("flask")
    gunicorn = ("-m", "gunicorn", "--no-control-socket", "--chdir", str(EXAMPLES), "-c", str(EXAMPLES / "13_gunicorn.conf.py"))
    start(example, *gunicorn, "13_flask:app", env={"EXAMPLE_PORT": str(free_port), "PYTHONWARNINGS": "default"})
    assert "begun" in answer(ask(("127.0.0.1", free_port), "/export"))
    example.expect("export: begun")
    example.ends_after("export: done")


def test_17_grpc_aio(example: Running, free_port: int) -> None:
    """The job that a call began is ended, and the call was answered before."""
    grpc: Any = pytest.importorskip("grpc")
    start(example, "17_grpc_aio.py", env={"EXAMPLE_PORT": str(free_port)})
    with grpc.insecure_channel(f"127.0.0.1:{free_port}") as channel:
        export = channel.unary_unary("/example.Reports/Export")
        assert export(b"42", timeout=PATIENCE, wait_for_ready=True) == b"begun: 42"
        example.expect("export: begun")
        example.ends_after("export: done")


def test_11_cluster(example: Running, free_port: int) -> None:
    """The same with its worker: disconnected after 2 s, it ends its job, and the primary hears of it."""
    start(example, "11_cluster.py", env={"EXAMPLE_PORT": str(free_port), "EXAMPLE_SECONDS": "3"})
    assert answer(ask(("127.0.0.1", free_port))).endswith("Hello world!")
    assert example.ends() == 0
    assert [line for line in example.lines if " - - [" not in line] == [
        "listening",
        "disconnecting 1",
        "grabs the violin",
        "job done",
        "done",
    ]


def test_11_cluster_stopped(example: Running, free_port: int) -> None:
    """A stop of the primary is held for the worker's job."""
    start(example, "11_cluster.py", env={"EXAMPLE_PORT": str(free_port)})
    example.expect("listening")
    example.ends_after("job done")
    assert "grabs the violin" in example.lines


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[redisserver.Server]:
    """Start a Redis."""
    with redisserver.serving(tmp_path) as server:
        yield server


def queue_up(name: str, env: Mapping[str, str]) -> None:
    """Have an example put a job into its queue."""
    environment = {**os.environ, **env, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, EXAMPLES / name], check=True, timeout=PATIENCE, env=environment)


@needs("celery")
def test_15_celery(example: Running, broker: redisserver.Server) -> None:
    """A task that runs is ended."""
    env = {"EXAMPLE_BROKER": broker.url, "PYTHONWARNINGS": "default"}  # it warns where it is root
    start(example, "-m", "celery", "--workdir", str(EXAMPLES), "-A", "15_celery", "worker", "-c", "1", env=env)
    queue_up("15_celery.py", env)
    example.expect("export 42: begun")
    example.ends_after("export 42: done")


@needs("rq")
def test_16_rq(example: Running, broker: redisserver.Server) -> None:
    """A job that runs is ended."""
    env = {"EXAMPLE_BROKER": broker.url, "RQ_REDIS_URL": broker.url}
    start(example, "-m", "rq.cli", "worker", "--path", str(EXAMPLES), "-w", "requiem_systemd.adapters.rq.Worker", env=env)
    queue_up("16_rq.py", env)
    example.expect("export 42: begun")
    example.ends_after("export 42: done")


def test_under_sixty_lines() -> None:
    """No example has outgrown what one reads at a glance."""
    for path in EXAMPLES.glob("[0-9]*.py"):
        assert len(path.read_text().splitlines()) < 60
