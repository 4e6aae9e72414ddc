"""Servers and workers of another make, rolled as they are: nothing of the library is in them."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any

import pytest

from tests import redisserver
from tests.systemd import test_rolling
from tests.systemd.load import Load
from tests.systemd.test_rolling import Setup, versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.systemd.rolling import Rolled
    from tests.systemd.sandbox import Sandbox

rolled = test_rolling.rolled  # the fixture


def foreign(command: str) -> dict[str, Any]:
    """Return settings that have a server of another make run what is in its folder; without bytecode, which goes by whole seconds."""
    return {
        "WorkingDirectory": "/srv/%p",
        "ExecStart": ["", command],
        "Environment": ["PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"],
        "WatchdogSec": 0,
        "TimeoutStopSec": 10,
        "MemoryDenyWriteExecute": "no",  # V8, and Python's ctypes and JITs
    }


# -- servers


@pytest.mark.since("25", "stop that answers all whom it has accepted", "gunicorn")
@pytest.mark.timeout(60)
def test_gunicorn(rolled: Setup, python: str, free_port: int) -> None:
    """As it is gunicorn is rolled: it says READY=1, and takes its listener from systemd."""
    unit = rolled(None, port=free_port, **foreign(f"{python} -m gunicorn --preload --threads 2 app:app"))
    unit.write(WSGI)
    unit.start()
    roll_under_load(unit, free_port, WSGI, "import nowhere")


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(60)
def test_uvicorn(rolled: Setup, python: str, free_port: int) -> None:
    """uvicorn, which says no READY=1, is rolled with Type=exec and a probation as long as its start."""
    command = f"{python} -m uvicorn --fd 3 --log-level warning app:app"
    unit = rolled(None, port=free_port, roll="--probation 3s", Type="exec", **foreign(command))
    unit.write(ASGI)
    unit.start()
    roll_under_load(unit, free_port, ASGI, "import nowhere")


#: How a Node server is proved to be up: it has not ended, or it has said so by a program that systemd brings along.
PROOFS = {
    "probation": ("--probation 1s", {"Type": "exec"}, ""),
    "ready": ("", {"NotifyAccess": "all"}, 'server.on("listening", () => require("child_process").execFile("systemd-notify", ["--ready"]));'),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("proof", PROOFS)
def test_node(rolled: Setup, sandbox: Sandbox, free_port: int, proof: str) -> None:
    """A server in JavaScript is rolled: it listens on descriptor 3, and at SIGTERM stops listening."""
    roll, settings, line = PROOFS[proof]
    unit = rolled(None, port=free_port, roll=roll, **{**foreign(f"{node(sandbox)} app.py"), **settings})
    unit.write(NODE + line)
    unit.start()
    roll_under_load(unit, free_port, NODE + line, 'require("nowhere")')


@pytest.mark.timeout(60)
def test_node_ends_its_requests(rolled: Setup, sandbox: Sandbox, free_port: int) -> None:
    """What an old generation in JavaScript answers when it is rolled is answered to the end; then it goes."""
    roll, settings, line = PROOFS["ready"]
    unit = rolled(None, port=free_port, roll=roll, **{**foreign(f"{node(sandbox)} app.py"), **settings})
    unit.write(NODE + line)
    unit.start()
    connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=15)
    connection.request("GET", "/slow")
    answer = connection.getresponse()
    assert answer.readline() == b"begun by one\n"
    unit.write(NODE + line, "two")
    unit.reload()
    assert unit.states() == {"1": "deactivating", "2": "active"}
    unit.finish_jobs()
    assert answer.read() == b"ended by one\n"
    connection.close()
    unit.await_states({"2": "active"})


def node(box: Sandbox) -> str:
    """Return where Node is; where it is not, that is no reason to leave its tests out."""
    found = box.run("sh", "-c", "command -v node", check=False).stdout.strip()
    return found or pytest.fail("no node (Debian: apt install nodejs)")


WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "3"), ("Connection", "close")])
    return [b"VERSION"]
"""
ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"VERSION"})
"""
NODE = """
const fs = require("fs"), http = require("http");
const server = http.createServer((request, response) => {
    if (request.url != "/slow")
        return response.writeHead(200, {"Content-Length": 3, "Connection": "close"}).end("VERSION");
    response.write("begun by VERSION\\n");
    const look = setInterval(() => {
        if (fs.existsSync("FOLDER/release")) {
            clearInterval(look);
            response.end("ended by VERSION\\n");
        }
    }, 20);
});
server.listen({fd: 3});
process.on("SIGTERM", () => server.close());
"""


def roll_under_load(unit: Rolled, port: int, code: str, broken: str) -> None:
    """Roll a server under 50 new connections/s, to new code, to broken code, and to new code by a restart: nothing fails."""
    with Load(f"127.0.0.1:{port}", new=50, keep=0) as load:
        unit.write(code, "two")
        unit.reload()
        unit.write(broken)
        assert unit.command("reload").returncode != 0
        unit.write(code, "new")
        unit.restart()
        figures = load.stop()
    assert figures.failed == {}
    assert versions(figures) == {"one", "two", "new"}
    unit.stop()
    assert unit.states() == {}


# -- a queue's worker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[redisserver.Server]:
    """Start a Redis; the container has this machine's loopback."""
    with redisserver.serving(tmp_path) as server:
        yield server


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(120)
def test_rq(rolled: Setup, python: str, broker: redisserver.Server) -> None:
    """`rq worker` is rolled: the job in hand is ended by the old, the others are done by the new at once, each job once."""
    command = f"{python} -m rq.cli worker --url {broker.url} --config app"
    settings = {**foreign(command), "TimeoutStopSec": 60}  # for RQ's jobs nobody asks for more
    unit = rolled(None, roll="--probation 2s", Type="exec", **settings)
    code = RQ.replace("URL", broker.url)
    unit.write(code)
    unit.start()
    for old, new in (("one", "two"), ("two", "three")):
        submit(broker, "long", old)
        broker.ask("BLPOP", "begun", 20)
        submit(broker, "short", *(f"{number} after {old}" for number in range(5)))
        unit.write("import nowhere")
        assert unit.command("reload").returncode != 0
        unit.write(code, new)
        unit.reload()
        assert [ended(broker) for _ in range(5)] == [f"{number} after {old} by {new}" for number in range(5)]
        assert list(unit.states().values()) == ["deactivating", "active"]
        broker.ask("RPUSH", f"release {old}", "now")
        assert ended(broker) == f"{old} by {old}"
        unit.await_states({str(unit.newest()): "active"})
    unit.stop()
    assert unit.states() == {}
    assert broker.ask("LLEN", "ended") == broker.ask("ZCARD", "rq:failed:default") == 0  # none twice, none lost


RQ = """
import redis

def job(kind, name):
    with redis.Redis.from_url("URL") as broker:
        if kind == "long":
            broker.rpush("begun", name)
            broker.blpop(f"release {name}")
        broker.rpush("ended", f"{name} by VERSION")
"""


def submit(broker: redisserver.Server, kind: str, *names: str) -> None:
    """Put jobs into RQ's queue."""
    from redis import Redis  # noqa: PLC0415 - not in what Debian's build has
    from rq import Queue  # noqa: PLC0415 - as above

    with Redis(port=broker.port) as client:
        for name in names:
            Queue("default", connection=client).enqueue("app.job", kind, name)


def ended(broker: redisserver.Server) -> str:
    """Return the next job to have ended, and the code that did it."""
    _, text = broker.ask("BLPOP", "ended", 20)
    return str(text)
