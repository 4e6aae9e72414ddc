"""New code under load, with a job in flight: other ways to reload beside ours, each in turn, under the same load.

250 requests/s over new connections and 250 over kept ones, on loopback. One request begins a job of 45 s in whichever process answers it;
two seconds later new code is there and the reload is asked for; the load goes on until the job must have ended. At last code comes that
does not even load. Each peer has two worker processes, and answers the same: its version; at /job it begins the job beside.

    tests/bench/peers                          all, one after the other: a minute each
    tests/bench/peers gunicorn "our units"     some

Each peer that has a limit on draining which would cut the job comes twice: as it is delivered, and with that limit raised.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from tests import suite, supplies
from tests.systemd.conftest import Unit, unit_text
from tests.systemd.load import Figures, Load
from tests.systemd.rolling import COMMAND, Rolled
from tests.systemd.sandbox import CHECKOUT, Sandbox

JOB: Final = 45.0
RATE: Final = 250
#: How much of the load comes before the job, and how long after the job's end it is looked for.
BEFORE, AFTER = 2.0, 3.0
PATIENCE: Final = 60.0
#: The version that does not load, in any of the languages; and how long after its reload one looks who answers.
BAD, BAD_AFTER = "bad", 5.0


class Peer(NamedTuple):
    """One way to bring new code, set up and serving."""

    port: int
    write: Callable[[str], object]  # puts a version of the code where the next reload finds it
    reload: Callable[[], object]  # the command; comes back when the command does
    ended: Callable[[], str]  # what jobs have written at their end
    version: str


class Row(NamedTuple):
    """What became of it."""

    failed: Mapping[str, int]
    sent: int
    jobs: int
    first: float
    last: float
    silence: float
    took: float
    bad: str
    version: str


# -- the programs: each answers its version, begins a job at /job, and writes a line at the job's end

WSGI: Final = """
import threading, time

def job():
    time.sleep(SECONDS)
    with open("RECORD", "a") as file:
        file.write("ended VERSION\\n")

def app(environ, start_response):
    if environ["PATH_INFO"] == "/job":
        threading.Thread(target=job).start()
    start_response("200 OK", [("Content-Length", "3")])
    return [b"VERSION"]
"""
NODE: Final = """
const fs = require("fs"), http = require("http");
let jobs = 0, leaving = false;
const leave = () => { if (leaving && !(HOLDS && jobs)) process.exit(0); };
const job = () => {
    jobs += 1;
    setTimeout(() => { fs.appendFileSync("RECORD", "ended VERSION\\n"); jobs -= 1; leave(); }, SECONDS * 1000);
};
const server = http.createServer((request, response) => {
    if (request.url == "/job")
        job();
    response.writeHead(200, {"Content-Length": 3});
    response.end("VERSION");
});
server.listen(PORT, "127.0.0.1", () => process.send("ready"));
process.on("SIGINT", () => server.close(() => { leaving = true; leave(); }));  // as PM2's manual has it, under Graceful Stop
"""
OURS: Final = """
import http.server, threading, time
import requiem_systemd as requiem
from requiem_systemd import Cluster

def job():
    time.sleep(SECONDS)
    with open("RECORD", "a") as file:
        file.write("ended VERSION\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/job":
            requiem.track(threading.Thread(target=job, daemon=True), label="job").start()
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"VERSION")

    def log_message(self, *_):
        pass

def serve(service):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = service.listener("http", fallback=("127.0.0.1", PORT))
    service.track_socket(server)
    service.ready("VERSION")
    server.serve_forever()

"""


def fill(code: str, record: object, port: int, **more: str) -> Callable[[str], str]:
    """Return what makes a program of a version."""
    words = {"RECORD": str(record), "PORT": str(port), "SECONDS": f"{JOB:g}", **more}

    def made(version: str) -> str:
        text = code if version != BAD else "this is no program"
        for word, value in {**words, "VERSION": version}.items():
            text = text.replace(word, value)
        return text

    return made


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            message = f"nobody listens on port {port}"
            raise TimeoutError(message)
        time.sleep(0.05)


def read(path: Path) -> str:
    """Return a file's text; nothing where there is none yet."""
    return path.read_text() if path.exists() else ""


# -- the peers


@contextlib.contextmanager
def gunicorn(*options: str) -> Iterator[Peer]:
    """Run gunicorn, which is reloaded by SIGHUP."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = fill(WSGI, folder / "record", port)

        def write(version: str) -> None:
            (folder / "app.py").write_text(code(version))

        write("one")
        words = ("--workers=2", "--worker-class=gthread", "--threads=16", "--log-level=error", "--no-control-socket", *options)
        command = (sys.executable, "-B", "-m", "gunicorn", f"--bind=127.0.0.1:{port}", *words, "app:app")
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as master:
            try:
                wait_for_port(port)
                yield Peer(port, write, lambda: master.send_signal(signal.SIGHUP), lambda: read(folder / "record"), version("gunicorn"))
            finally:
                master.send_signal(signal.SIGQUIT)


def version(distribution: str) -> str:
    """Name a Python package with its version."""
    from importlib.metadata import version as found  # noqa: PLC0415 - a name that is better kept for this function

    return f"{distribution} {found(distribution)}"


@contextlib.contextmanager
def pm2(*options: str, holds: bool = False) -> Iterator[Peer]:
    """Run a Node cluster under PM2; `holds`: the program itself waits for its jobs."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = {**os.environ, "PM2_HOME": str(folder / "home")}
        install = ("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", name, "pm2")
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        code = fill(NODE, folder / "record", port, HOLDS=str(holds).lower())

        def run(*words: str) -> str:
            command = (str(folder / "node_modules/.bin/pm2"), *words)
            return subprocess.run(command, check=True, env=environ, cwd=folder, capture_output=True, encoding="utf-8").stdout

        def write(version: str) -> None:
            (folder / "app.js").write_text(code(version))

        write("one")
        try:
            run("start", "app.js", "--name", "app", "--instances", "2", *options)
            wait_for_port(port)
            node = subprocess.run(("node", "--version"), check=True, capture_output=True, text=True).stdout.strip()
            named = f"PM2 {run('--version').split()[-1]}, Node {node}"
            yield Peer(port, write, lambda: run("reload", "app"), lambda: read(folder / "record"), named)
        finally:
            run("kill")


@contextlib.contextmanager
def units() -> Iterator[Peer]:
    """Run our rolling units, under a real systemd."""
    port = free_port()
    with Sandbox() as box:
        unit = Rolled(box, "peer", sys.executable)
        # The drop-in's TimeoutStopSec= is 2 s: the service itself asks for more.
        unit.install(port=port, roll="--workers 2", settings={"StateDirectory": "%p"})
        record = "/var/lib/private/peer/record"
        code = fill(OURS + "serve(requiem.initialize())\n", "/var/lib/peer/record", port)
        unit.write(code("one"))
        unit.start()
        yield Peer(port, lambda version: unit.write(code(version)), unit.reload, lambda: inside(box, record), named(box))


@contextlib.contextmanager
def cluster() -> Iterator[Peer]:
    """Run our Cluster in one unit, under a real systemd; it binds its own port."""
    port = free_port()
    with Sandbox() as box:
        path, record = "/run/requiem-tests/peer.py", "/run/requiem-tests/peer.record"
        code = fill(OURS + "Cluster(serve, workers=2).run()\n", record, port)
        box.write(path, code("one"))
        box.write(COMMAND, f'#!/bin/sh\nexec {sys.executable} -m requiem_systemd "$@"\n', 0o755)
        settings = {
            "Environment": f"PYTHONPATH={CHECKOUT}",
            "RuntimeDirectory": "%N",
            "ExecReload": f"{COMMAND} reload --pid $MAINPID",
        }
        unit = Unit(box, "peer.service")
        box.unit(unit.name, unit_text(f"{sys.executable} -u {path}", settings))
        unit.start()
        yield Peer(port, lambda version: box.write(path, code(version)), unit.reload, lambda: inside(box, record), named(box))
        unit.kill("QUIT")


def inside(box: Sandbox, path: str) -> str:
    """Return the text of a file in the container; nothing where there is none yet."""
    return box.run("cat", path, check=False).stdout


def named(box: Sandbox) -> str:
    """Name what ours runs on."""
    return f"systemd {box.systemd_version}, Python {platform.python_version()}"


PEERS: Final[Mapping[str, Callable[[], AbstractContextManager[Peer]]]] = {
    "gunicorn": gunicorn,
    "gunicorn, limits raised": lambda: gunicorn("--graceful-timeout=120", "--timeout=120"),
    "PM2": lambda: pm2("--wait-ready"),
    "PM2, limits raised": lambda: pm2("--wait-ready", "--kill-timeout", "120000", holds=True),
    "our units": units,
    "our Cluster": cluster,
}


# -- measuring


def measure(peer: Peer) -> Row:
    """Reload one under load."""
    with Load(f"127.0.0.1:{peer.port}", new=RATE, keep=RATE) as load:
        time.sleep(BEFORE)
        ask(peer.port, "/job")
        begun = time.monotonic()
        time.sleep(BEFORE)
        peer.write("two")
        asked = time.monotonic()
        peer.reload()
        took = time.monotonic() - asked
        time.sleep(max(0.0, begun + JOB + AFTER - time.monotonic()))
        end = time.monotonic()
        figures = load.stop()
    jobs = peer.ended().count("ended one")
    times = (*turn(figures, asked), figures.silence(asked, end), took)
    return Row(figures.failed, figures.sent, jobs, *times, with_bad_code(peer), peer.version)


def with_bad_code(peer: Peer) -> str:
    """Reload to code that does not load; say what the command said of it, and who answers then."""
    peer.write(BAD)
    try:
        peer.reload()
        said = "succeeds"
    except subprocess.CalledProcessError:
        said = "fails"
    time.sleep(BAD_AFTER)
    try:
        ask(peer.port, "/")
    except OSError:
        return f"command {said}, nobody answers"
    return f"command {said}, the old code answers"


def ask(port: int, path: str) -> None:
    """Ask once, and wait for the answer; OSError where there is none."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", path)
        connection.getresponse().read()


def turn(figures: Figures, asked: float) -> tuple[float, float]:
    """Return how long after the command the first request was sent that new code answered, and the last that old code answered."""
    first = min((span[1] for where, span in figures.bodies.items() if where.endswith(" two")), default=float("nan"))
    last = max((span[2] for where, span in figures.bodies.items() if where.endswith(" one")), default=float("nan"))
    return first - asked, last - asked


def line(name: str, row: Row) -> str:
    """Return a row of the table."""
    kinds = "; ".join(f"{count} {what}" for what, count in sorted(row.failed.items()))
    failed = f"{sum(row.failed.values())} of {row.sent}" + (f" ({kinds})" if kinds else "")
    times = " | ".join(f"{time:.2f} s" for time in (row.first, row.last, row.silence, row.took))
    return f"| {name} | {failed} | {row.jobs} of 1 | {times} | {row.bad} |"


def main() -> None:
    """Measure the peers that were named, or all, and print one table."""
    in_environment()
    parser = argparse.ArgumentParser("tests/bench/peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"default: all of {', '.join(PEERS)}")
    options = parser.parse_args()
    if unknown := set(options.peers) - PEERS.keys():
        parser.error(f"there is no {unknown.pop()!r}, only {', '.join(PEERS)}")
    rows = {}
    for name in options.peers or PEERS:
        with PEERS[name]() as peer:
            rows[name] = measure(peer)
        print(line(name, rows[name]), file=sys.stderr, flush=True)
    print("| | failed requests | job of 45 s finished | first answer of new code | last of old | longest silence | the command took | code that does not load |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(line(name, row))
    print("; ".join(dict.fromkeys(row.version for row in rows.values())))


def in_environment() -> None:
    """Go on in the tests' virtual environment, made if need be, unless this is one."""
    if importlib.util.find_spec("gunicorn") is None:
        supplies.install([*supplies.BASE, *suite.PACKAGES["systemd"]])
        python = str(supplies.virtual_environment(supplies.GROUPS) / "bin/python")
        os.execv(python, [python, "-B", "-m", "tests.bench.peers", *sys.argv[1:]])


if __name__ == "__main__":
    main()
