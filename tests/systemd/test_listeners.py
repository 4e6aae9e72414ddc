"""Listeners as a real systemd passes them, and restarts under load."""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import textwrap
import time
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.systemd.conftest import UNITS, Unit, unit_text
from tests.systemd.load import Figures, Load
from tests.systemd.sandbox import CHECKOUT, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = """
import http.server, threading, time
import requiem_systemd as requiem

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        answer = b"hello"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

OPTIONS

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = requiem.listener(LISTENER)
requiem.track_socket(server)
BACKGROUND
requiem.ready()
server.serve_forever()
"""
JOBS = """
for number in range(4):
    job = threading.Thread(target=time.sleep, args=(6,), name=f"job {number}")
    requiem.track(job)
    job.start()
"""


class Setup(Protocol):
    """What the `activated` fixture returns."""

    def __call__(self, script: str, sockets: dict[str, str] | None = None, **settings: object) -> Unit:
        """Write a service with .socket units (suffix: lines of [Socket]), and start both."""


@pytest.fixture
def activated(sandbox: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Return a function that writes and starts a service with its socket units; they end with the test."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    names: list[str] = []

    def activated(script: str, sockets: dict[str, str] | None = None, **settings: object) -> Unit:
        unit = Unit(sandbox, f"{stem}-{len(names)}.service")
        units = [f"{unit.name.removesuffix('.service')}{suffix}.socket" for suffix in sockets or {}]
        for name, lines in zip(units, (sockets or {}).values(), strict=True):
            sandbox.unit(
                name,
                f"[Unit]\nStartLimitIntervalSec=0\n[Socket]\nService={unit.name}\n{textwrap.dedent(lines)}\n",
            )
        path = f"/run/requiem-tests/{unit.name.removesuffix('.service')}.py"
        sandbox.write(path, textwrap.dedent(script).lstrip())
        settings = {
            "Environment": f"PYTHONPATH={CHECKOUT}",
            **({"Sockets": " ".join(units)} if units else {}),
            **settings,
        }
        sandbox.unit(unit.name, unit_text(f"{python} -u {path}", settings))
        holder = unit.name.replace(".service", ".target")
        sandbox.unit(holder, f"[Unit]\nAfter={unit.name}\n")
        names.extend((unit.name, *units))
        request.node.stash.setdefault(UNITS, []).append(unit)
        sandbox.systemctl("start", holder, *units, unit.name)
        return unit

    yield activated
    if names:
        sockets_first = sorted(names, key=lambda name: not name.endswith(".socket"))
        sandbox.systemctl("stop", "--no-block", *sockets_first, check=False)
        sandbox.systemctl("kill", "--signal=KILL", *names, check=False)
        sandbox.systemctl("stop", *sockets_first, check=False)
        sandbox.systemctl("reset-failed", *names, check=False)


def test_each_kind_is_passed(activated: Setup, sandbox: Sandbox, free_port: int) -> None:
    """TCP4, TCP6, stream, datagram and seqpacket sockets come by name, of the right family and type."""
    script = """
    import socket, requiem_systemd as requiem
    for name in ("four", "six", "stream", "dgram", "seqpacket"):
        sock = requiem.listener(name)
        print("got", name, sock.family.name, sock.type.name, sock.getsockname())
    requiem.initialize()
    print("same", requiem.listener("four") is requiem.listeners()["four"][0])
    requiem.ready()
    requiem.wait_begin()
    """
    unit = activated(
        script,
        {
            "-4": f"ListenStream=127.0.0.1:{free_port}\nFileDescriptorName=four",
            "-6": f"ListenStream=[::1]:{free_port}\nFileDescriptorName=six",
            "-s": "ListenStream=/run/requiem-tests/kinds.stream\nFileDescriptorName=stream",
            "-d": "ListenDatagram=/run/requiem-tests/kinds.dgram\nFileDescriptorName=dgram",
            "-q": "ListenSequentialPacket=/run/requiem-tests/kinds.seqpacket\nFileDescriptorName=seqpacket",
        },
    )
    journal = unit.journal()
    for line in (
        f"got four AF_INET SOCK_STREAM ('127.0.0.1', {free_port})",
        f"got six AF_INET6 SOCK_STREAM ('::1', {free_port}, 0, 0)",
        "got stream AF_UNIX SOCK_STREAM /run/requiem-tests/kinds.stream",
        "got dgram AF_UNIX SOCK_DGRAM /run/requiem-tests/kinds.dgram",
        "got seqpacket AF_UNIX SOCK_SEQPACKET /run/requiem-tests/kinds.seqpacket",
        "same True",
    ):
        assert line in journal


def test_several_under_one_name(activated: Setup) -> None:
    """Several sockets under one name are had by listeners(); listener() says so."""
    script = """
    import requiem_systemd as requiem
    requiem.initialize()
    try:
        requiem.listener("web")
    except requiem.ListenerError as error:
        print("refused:", error)
    print("paths", *(sock.getsockname() for sock in requiem.listeners()["web"]))
    requiem.ready()
    requiem.wait_begin()
    """
    lines = "ListenStream=/run/requiem-tests/several.1\nListenStream=/run/requiem-tests/several.2\nFileDescriptorName=web"
    journal = activated(script, {"": lines}).journal()
    assert "listeners()['web']" in journal
    assert "paths /run/requiem-tests/several.1 /run/requiem-tests/several.2" in journal


def test_not_passed_says_which_line_is_missing(activated: Setup) -> None:
    """A listener under another name is an error that lists what was passed and names the line to add."""
    script = """
    import requiem_systemd as requiem
    requiem.initialize()
    try:
        requiem.listener("http")
    except requiem.ListenerError as error:
        print("refused:", error)
    requiem.ready()
    requiem.wait_begin()
    """
    unit = activated(script, {"": "ListenStream=/run/requiem-tests/missing"})
    journal = unit.journal()
    assert f"{unit.name.removesuffix('.service')}.socket" in journal
    assert "FileDescriptorName=http" in journal


def test_stop_leaves_the_socket_unit_alive(activated: Setup, sandbox: Sandbox, free_port: int) -> None:
    """After a stop the socket unit listens on, and the next connection starts the service again."""
    unit = activated(server(), {"": f"ListenStream=127.0.0.1:{free_port}\nFileDescriptorName=http"})
    name = unit.name.replace(".service", ".socket")
    assert ask(free_port).startswith(b"HTTP/1.1 200")
    assert unit.stop().result == "success"
    assert sandbox.show(name, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "listening"}
    assert ask(free_port).startswith(b"HTTP/1.1 200")
    assert unit.state == "active"


def test_kept_listener_keeps_its_port(activated: Setup, free_port: int) -> None:
    """A listener that was bound here and kept is the same one after a restart; after a stop the port is free."""
    script = """
    import os, requiem_systemd as requiem
    requiem.initialize()
    sock = requiem.listener("http", fallback=("127.0.0.1", PORT), keep=True)
    print("inode", os.fstat(sock.fileno()).st_ino)
    requiem.ready()
    for connection, _ in requiem.accept(sock):
        with requiem.track("connection"), connection:
            connection.sendall(b"hello")
    """
    unit = activated(script.replace("PORT", str(free_port)), FileDescriptorStoreMax=4)
    for _ in range(2):
        assert ask(free_port) == b"hello"
        unit.restart()
    assert len(set(re.findall(r"inode (\d+)", unit.journal()))) == 1
    assert unit.stop().result == "success"
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", free_port), 5):
        pytest.fail("the port is still open")


# -- under load


def test_restart_under_load(activated: Setup, free_port: int, restarts: int) -> None:
    """A restart of a socket-activated http.server under 500 requests/s fails none."""
    unit = activated(server(), {"": f"ListenStream=127.0.0.1:{free_port}\nFileDescriptorName=http"})
    report("socket unit", *restarted(unit, free_port, restarts), 0)


def test_restart_of_a_kept_listener_under_load(activated: Setup, free_port: int, restarts: int) -> None:
    """A restart of an http.server whose listener is kept in the fd store, under 500 requests/s, fails none."""
    kept = f"'http', fallback=('127.0.0.1', {free_port}), keep=True"
    unit = activated(server(listener=kept), FileDescriptorStoreMax=4)
    report("fd store", *restarted(unit, free_port, restarts), 0)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(240)
def test_lame_duck_hides_the_jobs(activated: Setup, free_port: int, restarts: int) -> None:
    """With lame_duck="jobs" four jobs of 6 s make the silence of a restart no longer, by the median, than without them."""
    bound = f"'http', fallback=('127.0.0.1', {free_port})"
    plain = activated(server(listener=bound, options="requiem.initialize()"))
    _, without = restarted(plain, free_port, restarts, pause=0.5)
    plain.stop()
    jobs = activated(server(listener=bound, options="requiem.initialize(lame_duck='jobs')", background=JOBS))
    _, with_jobs = restarted(jobs, free_port, restarts, pause=0.5)
    medians = statistics.median(without), statistics.median(with_jobs)
    print(f"longest silence, median of {restarts}: without jobs {medians[0]:.3f} s, with {medians[1]:.3f} s")
    assert medians[1] <= medians[0] + 0.1


@pytest.fixture
def restarts(request: pytest.FixtureRequest) -> int:
    """How many restarts to do under load."""
    return 10 if request.config.getoption("--full") else 3


def server(*, listener: str = "'http'", options: str = "requiem.initialize()", background: str = "") -> str:
    """Return the script of an HTTP server."""
    return SERVER.replace("OPTIONS", options).replace("LISTENER", listener).replace("BACKGROUND", background)


def ask(port: int) -> bytes:
    """Connect, say something, and return the first that comes back."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        return client.recv(100)


def restarted(unit: Unit, port: int, times: int, *, pause: float = 0.3) -> tuple[Figures, list[float]]:
    """Restart a unit under load; return the client's figures and the longest silence of each restart."""
    spans = []
    with Load(f"127.0.0.1:{port}", new=250, keep=250) as load:
        for _ in range(times):
            time.sleep(pause)  # of load between two restarts
            begin = time.monotonic()
            unit.restart()
            spans.append((begin, time.monotonic() + 0.2))
        time.sleep(pause)
        figures = load.stop()
    return figures, [figures.silence(*span) for span in spans]


def report(what: str, figures: Figures, silences: list[float], allowed: int) -> None:
    """Print the figures, and fail if more requests failed than are allowed to."""
    print(
        f"{what}: {len(silences)} restarts, {figures.sent} requests, {sum(figures.failed.values())} failed, slowest "
        f"{figures.slowest:.3f} s, longest silence {statistics.median(silences):.3f} s (median), {max(silences):.3f} s (worst)"
    )
    assert sum(figures.failed.values()) <= allowed, figures.failed
