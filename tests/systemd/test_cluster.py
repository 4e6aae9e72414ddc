"""A cluster as one unit of a real systemd: stopped past its timeout, rolled under load, robbed of its processes."""

from __future__ import annotations

import textwrap
import time
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.systemd.conftest import UNITS, Unit
from tests.systemd.load import Course, Figures, Load
from tests.systemd.rolling import settings_text, traces
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.systemd.sandbox import Sandbox

SERVER = """
import ctypes, http.server, os, pathlib, threading, time
import requiem_systemd as requiem
from requiem_systemd import Cluster, cluster

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/hang":
            ctypes.PyDLL(None).sleep(60)  # holds the GIL
        answer = VERSION.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

def job():
    time.sleep(SECONDS)
    print("job done", flush=True)

def serve(service):
    global VERSION
    VERSION = pathlib.Path("FOLDER/version").read_text()
    if VERSION == "broken":
        raise SystemExit("broken")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = requiem.listener("http")
    requiem.track_socket(server)
    for number in range(JOBS):
        print("job begins", flush=True)
        requiem.track(threading.Thread(target=job, daemon=True), label=f"job {number}").start()
    requiem.ready("up")
    server.serve_forever()

cluster.on("exit", lambda worker, status, signal: print("exit", worker.id, status, signal, time.monotonic(), flush=True))
cluster.on("listening", lambda worker: print("listening", worker.id, time.monotonic(), flush=True))
requiem.initialize()
Cluster(serve, workers=2).run()
"""


class Cluster(NamedTuple):
    """A unit with two workers."""

    unit: Unit
    box: Sandbox
    folder: str
    port: int

    def write(self, version: str) -> None:
        """Put a version of the code there."""
        self.box.write(f"{self.folder}/version", version)

    def get(self, path: str = "/", timeout: float = 10) -> str:
        """Ask for a path over a new connection, and return the answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
            text: str = answer.read().decode()
            return text

    def wait_for_another(self, primary: int) -> None:
        """Wait until systemd has started another primary, and that says that all is well."""
        deadline = time.monotonic() + 30
        while self.unit.main_pid in (0, primary) or self.unit.state != "active":
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def count(self, text: str) -> int:
        """Count lines of its journal."""
        return self.unit.journal().count(text)

    def children(self) -> list[int]:
        """Return its workers' processes, as numbered inside."""
        return sorted(set(self.processes()) - {self.unit.main_pid})

    def processes(self) -> list[int]:
        """Return the processes in its cgroup."""
        group = self.unit.show("ControlGroup")["ControlGroup"]
        done = self.box.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False)
        return [int(word) for word in done.stdout.split()]

    def descriptors(self) -> int:
        """Count the primary's descriptors."""
        return len(self.box.run("ls", f"/proc/{self.unit.main_pid}/fd").stdout.split())

    def control_sockets(self) -> int:
        """Count the sockets in its runtime folder: the primary's, and one of each worker."""
        return len(self.box.run("ls", f"/run/{self.unit.name.removesuffix('.service')}").stdout.split())

    def load(self, rate: int = 250) -> Load:
        """Return a client."""
        return Load(f"127.0.0.1:{self.port}", new=rate, keep=rate)


@pytest.fixture
def clustered(
    sandbox: Sandbox, python: str, free_port: int, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Cluster]]:
    """Return a function that starts such a unit, made of the template, with jobs that its workers begin; it ends with the test."""
    name = f"cl-{request.node.name.split('[')[0].removeprefix('test_').replace('_', '-')[:28]}"  # the length of a user's name
    unit = Unit(sandbox, f"{name}.service")
    request.node.stash.setdefault(UNITS, []).append(unit)

    def clustered(*, jobs: int = 0, seconds: float = 0, **settings: object) -> Cluster:
        made = Cluster(unit, sandbox, f"/run/requiem-tests/{name}", free_port)
        made.write("old")
        script = textwrap.dedent(SERVER).replace("FOLDER", made.folder)
        sandbox.write(f"{made.folder}/app.py", script.replace("JOBS", str(jobs)).replace("SECONDS", str(seconds)))
        sandbox.unit(f"{name}.socket", f"[Socket]\nListenStream=127.0.0.1:{free_port}\nFileDescriptorName=http\n")
        sandbox.unit(unit.name, (CHECKOUT / "units/cluster.service").read_text().replace("plain.socket", f"{name}.socket"))
        own = {
            "ExecStart": ["", f"{python} -u {made.folder}/app.py"],
            "ExecReload": ["", f"{python} -m requiem_systemd reload --pid $MAINPID"],
            "Environment": f"PYTHONPATH={CHECKOUT}",
            "TimeoutStopSec": 2,
        }
        sandbox.unit(f"{unit.name}.d/test.conf", f"[Unit]\nStartLimitIntervalSec=0\n[Service]\n{settings_text({**own, **settings})}")
        sandbox.unit(f"{name}.target", f"[Unit]\nAfter={unit.name}\n")
        sandbox.daemon_reload()
        sandbox.systemctl("start", f"{name}.target", f"{name}.socket", unit.name)
        return made

    yield clustered
    names = (f"{name}.socket", unit.name)
    sandbox.systemctl("stop", "--no-block", *names, check=False)
    sandbox.systemctl("kill", "--signal=KILL", *names, check=False)
    sandbox.systemctl("stop", *names, check=False)
    sandbox.systemctl("reset-failed", *names, check=False)


def failed(figures: Figures) -> int:
    """Count what failed."""
    return sum(figures.failed.values())


def test_stop_holds_for_the_workers_jobs(clustered: Callable[..., Cluster]) -> None:
    """Four jobs in two workers outlive TimeoutStopSec=2, and a daemon-reload past it; the unit ends well."""
    made = clustered(jobs=2, seconds=8)
    with made.box.popen("systemctl", "stop", made.unit.name) as stop:
        time.sleep(2.5)  # until the configured timeout has passed, nothing tells of which
        assert "in them 4 jobs, oldest" in made.unit.status_text
        made.box.daemon_reload()
        assert stop.wait(30) == 0
    assert made.count("job done") == 4
    assert (made.unit.result, made.processes()) == ("success", [])


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(180)
def test_reload_under_load(clustered: Callable[..., Cluster], repetitions: int) -> None:
    """Reloads with four jobs of 8 s in flight: no request fails, every answer is new code's, every job ends."""
    made = clustered(jobs=2, seconds=8)
    with made.load() as load:
        course = Course.begin(repetitions)
        for number in range(repetitions):
            made.write(f"version {number}")
            course.roll(made.unit.reload)
        figures = load.stop()
    course.check(figures, surely=repetitions == 20)
    codes = ["old", *(f"version {number}" for number in range(repetitions - 1))]
    for version, (_, end) in zip(codes, course.rolls, strict=True):
        assert figures.bodies[f"new {version}"][2] < end
        assert figures.bodies[f"kept {version}"][2] < end + 0.5  # keepalive_grace
    assert made.unit.status_text.startswith("2 of 2 workers: up")
    assert made.unit.stop().result == "success"
    assert made.count("job begins") == made.count("job done") == 4 * (repetitions + 1)


def test_reload_that_fails(clustered: Callable[..., Cluster]) -> None:
    """New code that does not come up: systemctl reload fails and says why, the old serves on; the next reload goes well."""
    made = clustered()
    before = made.children()
    made.write("broken")
    with made.load(50) as load:
        done = made.box.systemctl("reload", made.unit.name, check=False)
        assert done.returncode != 0
        figures = load.stop()
    assert failed(figures) == 0, figures.failed
    assert "requiem-systemd reload: worker 3 ended with status 1 before it was ready" in made.unit.journal()
    assert (before, "active") == (made.children(), made.unit.state)
    assert "reload failed: worker 3 ended with status 1" in made.unit.status_text.lower()
    made.write("new")
    made.unit.reload()
    assert len(set(made.children()) - set(before)) == 2


def test_killed_worker_under_load(clustered: Callable[..., Cluster], request: pytest.FixtureRequest) -> None:
    """Upon kill -9 of a worker: what was in flight in it fails at most; soon there are two again."""
    made = clustered()
    with made.load() as load:
        time.sleep(1)  # of load before it
        victim = made.children()[0]
        kill = f"import os, time; print(time.monotonic()); os.kill({victim}, 9)"
        begin = float(made.box.run("python3", "-c", kill).stdout)
        line = made.unit.wait_for("listening 3 ")
        taken = float(line.split()[-1]) - begin
        time.sleep(0.3)  # of load after it
        figures = load.stop()
    ended = float(made.unit.wait_for("exit ").split()[-1])
    print(
        f"{figures.sent} requests, {failed(figures)} failed, the process had ended after {ended - begin:.3f} s, full strength after {taken:.3f} s"
    )
    assert all(when < ended for when, _ in figures.failures), (ended, figures.failures)
    assert failed(figures) <= 25, figures.failed  # those in flight, and the pooled connections that it held
    if request.config.getoption("--full"):  # what else runs at the same time counts too
        assert taken < 0.5
    assert len(made.children()) == 2


@pytest.mark.timeout(60)
def test_killed_primary(clustered: Callable[..., Cluster]) -> None:
    """Upon kill -9 of the primary its workers' jobs end, past the timeout of a stop too; then nothing is left, and all is started anew."""
    made = clustered(jobs=2, seconds=8)
    before, primary = made.processes(), made.unit.main_pid
    begin = time.monotonic()
    made.box.run("kill", "-9", str(primary))
    made.wait_for_another(primary)
    print(f"the next primary's workers were ready after {time.monotonic() - begin:.1f} s")
    assert not set(made.processes()) & set(before)
    assert len(made.processes()) == 3
    assert made.count("job done") == 4
    assert made.unit.stop().result == "success"
    assert made.count("job begins") == made.count("job done") == 8


@pytest.mark.timeout(60)
def test_hung_worker(clustered: Callable[..., Cluster]) -> None:
    """A worker that hangs in C code with the GIL held is killed within WatchdogSec=, and replaced; the other serves on, and systemd sees nothing of it."""
    made = clustered(WatchdogSec=2)
    before, primary = made.children(), made.unit.main_pid
    with pytest.raises(ConnectionError):  # when it is killed; a watchdog that does not bite is a timeout
        made.get("/hang", timeout=20)
    text = made.unit.wait_for("hung: its watchdog was not fed for 2 s, and died of SIGABRT: another is started")
    made.unit.wait_for("listening 3 ")
    after = made.children()
    assert {made.get() for _ in range(10)} == {"old"}
    assert (len(after), len(set(before) & set(after))) == (2, 1), text
    assert (made.unit.state, made.unit.main_pid, made.unit.show("NRestarts")["NRestarts"]) == ("active", primary, "0")


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(60)
def test_hung_primary(clustered: Callable[..., Cluster]) -> None:
    """A primary that hangs is ended by systemd's watchdog; its workers' jobs end all the same, past any timeout, and all is started anew."""
    made = clustered(jobs=2, seconds=8, WatchdogSec=2)
    before, primary = made.processes(), made.unit.main_pid
    made.box.run("kill", "-STOP", str(primary))
    made.unit.wait_for("Watchdog timeout")
    made.wait_for_another(primary)
    assert not set(made.processes()) & set(before)
    assert made.count("job done") == 4
    assert made.unit.stop().result == "success"
    assert made.count("job begins") == made.count("job done") == 8


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(60)
def test_stop_of_what_a_killed_primary_left(clustered: Callable[..., Cluster]) -> None:
    """Workers whose primary was killed hold a stop too: past its timeout, past the watchdog's, and through a daemon-reload."""
    made = clustered(jobs=2, seconds=8, WatchdogSec=2)
    made.box.run("kill", "-9", str(made.unit.main_pid))
    made.box.run("sh", "-c", f"until systemctl show -P StatusText {made.unit.name} | grep -q 'left alone'; do sleep 0.05; done")
    with made.box.popen("systemctl", "stop", made.unit.name) as stop:
        time.sleep(4)  # until both have passed, nothing tells of which
        made.box.daemon_reload()
        assert stop.wait(30) == 0
    assert made.count("job done") == 4
    assert (made.unit.state, made.processes()) == ("failed", [])  # by the primary's end, as anything that is killed
    made.unit.start()
    assert made.unit.stop().result == "success"


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(420)
def test_fifty_rolls(clustered: Callable[..., Cluster]) -> None:
    """Fifty reloads in a row with jobs of 60 s: no request fails, every job ends, nothing is left behind."""
    made = clustered(jobs=1, seconds=60)
    stem = made.unit.name.removesuffix(".service")
    descriptors, sockets = made.descriptors(), made.control_sockets()
    with made.load(50) as load:
        for number in range(50):
            made.write(f"version {number}")
            made.unit.reload()
        deadline = time.monotonic() + 120
        while len(made.processes()) > 3:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        figures = load.stop()
    print(f"50 reloads, {figures.sent} requests, {failed(figures)} failed")
    assert failed(figures) == 0, figures.failed
    assert (descriptors, sockets) == (made.descriptors(), made.control_sockets())
    made.unit.kill("INT")  # the last two have jobs of their own
    assert made.unit.stop().result == "success"
    assert made.count("job begins") == made.count("job done") == 102
    left = {trace for trace in traces(made.box, stem, made.folder) if not trace.startswith(f"unit {stem}.")}
    assert left == {f"path {made.folder}"}  # what the test has written
