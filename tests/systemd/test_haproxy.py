"""docs/fleet.md as it stands: HAProxy before two instances of a unit, restarted one after the other under load."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.conftest import any_port
from tests.systemd.conftest import UNITS, Unit
from tests.systemd.load import Load
from tests.systemd.rolling import settings_text
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.sandbox import Sandbox

FLEET: Final = CHECKOUT / "examples" / "fleet"
#: Answers with its process's number.
SHOP: Final = """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    answer = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(answer)).encode())]})
    await send({"type": "http.response.body", "body": answer})
"""


class Shop:
    """Two instances and the HAProxy before them."""

    def __init__(self, box: Sandbox, python: str, folder: Path, example: str) -> None:
        """Store; `install` and `proxied` use the configuration of that name among the examples."""
        self.box = box
        self.example = example
        self.port, self.agent, *self.ports = (any_port() for _ in range(4))
        self.units = [Unit(box, f"shop@{port}.service") for port in self.ports]
        self._python = python
        self._folder = folder

    def install(self) -> None:
        """Write the units."""
        self.box.write("/srv/shop/shop.py", SHOP)
        self.box.run("sh", "-c", f"rm -rf /srv/shop/venv && ln -s {Path(self._python).parents[1]} /srv/shop/venv")
        self.box.unit("shop@.service", (CHECKOUT / "units/instance@.service").read_text())
        self.box.unit("shop@.service.d/fleet.conf", (FLEET / "fleet.conf").read_text())
        own = {"Environment": f"PYTHONPATH={CHECKOUT}", "WorkingDirectory": "/srv/shop"}
        self.box.unit("shop@.service.d/test.conf", f"[Service]\n{settings_text(own)}")
        if "agent-check" in self.configuration():
            self.box.unit("drain-agent@.service", (FLEET / "drain-agent@.service").read_text())
            self.box.unit("drain-agent.socket", (FLEET / "drain-agent.socket").read_text().replace(":9707", f":{self.agent}"))
        self.box.daemon_reload()

    def configuration(self) -> str:
        """Return the example's configuration, with its addresses changed."""
        text = (FLEET / self.example).read_text().replace("/run/haproxy/admin.sock", str(self.stats))
        for number, port in zip(("8080", "8001", "8002"), (self.port, *self.ports), strict=True):
            text = re.sub(rf"^(\s+(?:bind|server)\b.*?):{number}\b", rf"\1:{port}", text, flags=re.MULTILINE).replace(f"shop@{number}", f"shop@{port}")
        return text.replace("agent-port 9707", f"agent-port {self.agent}")

    def ask(self, cookie: str = "") -> tuple[str, str]:
        """Send a request through HAProxy, as a client that is bound or is not; return what it is bound to, and the process that answers."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            client.request("GET", "/", headers={"Cookie": f"SERVED_BY={cookie}"} if cookie else {})
            answer = client.getresponse()
            return (answer.getheader("Set-Cookie") or "").partition(";")[0].removeprefix("SERVED_BY="), answer.read().decode()

    @property
    def stats(self) -> Path:
        """The socket by which HAProxy tells of itself."""
        return self._folder / "admin.sock"

    def states(self) -> list[str]:
        """Return what HAProxy makes of the instances: UP, DOWN, DRAIN (agent)."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.stats))
            sock.sendall(b"show stat\n")
            lines = sock.makefile().read().splitlines()
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:] if line]
        return [row["status"] for row in rows if row["svname"] in ("8001", "8002")]

    def await_states(self, *wanted: str) -> None:
        """Wait until HAProxy sees the instances so."""
        deadline = time.monotonic() + 15
        while (found := self.states()) != list(wanted):
            assert time.monotonic() < deadline, f"{found}, not {wanted}"
            time.sleep(0.02)

    @contextlib.contextmanager
    def proxied(self) -> Iterator[None]:
        """Run HAProxy; it is ours, and ends with the block."""
        program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin") or pytest.skip("no haproxy (Debian: apt install haproxy)")
        path = self._folder / "haproxy.cfg"
        path.write_text(self.configuration())
        with subprocess.Popen([program, "-db", "-f", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                deadline = time.monotonic() + 15
                while not self.stats.exists():
                    assert process.poll() is None, process.communicate()[0]
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                yield
            finally:
                process.terminate()
                try:
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()


@pytest.fixture
def shop(sandbox: Sandbox, python: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """Return a shop that is to be installed and started; it ends with the test."""
    made = Shop(sandbox, python, tmp_path, getattr(request, "param", "haproxy.cfg"))
    request.node.stash.setdefault(UNITS, []).extend(made.units)
    yield made
    names = [unit.name for unit in made.units]
    sandbox.systemctl("stop", "--no-block", *names, check=False)
    sandbox.systemctl("kill", "--signal=KILL", *names, check=False)
    sandbox.systemctl("stop", *names, check=False)
    sandbox.systemctl("stop", "drain-agent.socket", check=False)
    sandbox.run("sh", "-c", "rm -rf /run/systemd/system/shop@.service* /run/systemd/system/drain-agent*")
    sandbox.daemon_reload()


def restart_all(shop: Shop, times: int, pause: float) -> None:
    """Restart one after the other under 500 requests/s, so many times, with so many seconds after each: none fails, and each serves."""
    shop.await_states("UP", "UP")
    with Load(f"127.0.0.1:{shop.port}", new=250, keep=250) as load:
        time.sleep(1.0)
        for _ in range(times):
            for unit in shop.units:
                unit.restart()
                time.sleep(pause)
        time.sleep(1.0)
        figures = load.stop()
    answered = {body.split()[1] for body in figures.bodies}
    print(
        f"{times} rolling restarts of two instances, {shop.example}: {figures.sent} requests, {sum(figures.failed.values())} failed, "
        f"slowest {figures.slowest:.3f} s, {len(answered)} processes answered"
    )
    assert figures.failed == {}
    assert len(answered) == 2 * (times + 1)


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """Return how often all are restarted."""
    return 10 if request.config.getoption("--full") else 2


@pytest.mark.timeout(240)
def test_rolling_restart(shop: Shop, times: int) -> None:
    """`for i in 8001 8002; do systemctl restart shop@$i || break; done` under load fails no request, again and again."""
    shop.install()
    for unit in shop.units:
        unit.start()
    with shop.proxied():
        restart_all(shop, times, 0.0)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("shop", ["haproxy-agent.cfg"], indirect=True)
def test_agent(shop: Shop, times: int) -> None:
    """Told by an agent, with a second between two restarts, no request fails either; a bound client still reaches an instance that drains."""
    shop.install()
    shop.box.systemctl("start", "drain-agent.socket", *(unit.name for unit in shop.units))
    with shop.proxied():
        restart_all(shop, times, 1.0)
        cookie, process = shop.ask()
        which = ("8001", "8002").index(cookie)
        shop.box.systemctl("stop", "--no-block", shop.units[which].name)
        shop.await_states(*("DRAIN (agent)" if number == which else "UP" for number in range(2)))
        assert shop.ask(cookie)[1] == process
        assert shop.ask()[1] != process
