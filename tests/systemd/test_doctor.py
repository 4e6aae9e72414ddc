"""`doctor` on units that systemd has loaded, and `new`: what it writes starts, serves and is clean."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd.cli.doctor import parse
from requiem_systemd.cli.doctor.facts import Facts, Source
from requiem_systemd.protocol import timespan
from requiem_systemd.unitfile import Unit
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.conftest import ServiceFactory
    from tests.systemd.sandbox import Sandbox

SLEEPER = "import threading; print(4711, flush=True); threading.Event().wait()"
APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"ANSWER"})
"""
CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(20)
    sock.connect(sys.argv[1])
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(sock.makefile("rb").read().decode().rpartition("\\r\\n\\r\\n")[2])
"""


class Command:
    """`requiem-systemd` inside, run by the Python of the units."""

    def __init__(self, box: Sandbox, python: str) -> None:
        """Store."""
        self.box = box
        self.python = python

    def run(self, *words: str, cwd: str = "/", env: dict[str, str] | None = None) -> tuple[int, str]:
        """Run a verb; return its exit status, and what it wrote."""
        environ = {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        done = self.box.run(self.python, "-m", "requiem_systemd", *words, check=False, cwd=cwd, env=environ)
        return done.returncode, done.stdout + done.stderr

    def findings(self, *words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        """Ask doctor, and return the findings by their ids."""
        _, text = self.run("doctor", "--json", *words, env=env)
        (unit,) = json.loads(text)
        return {one["id"]: one for one in unit["findings"]}

    def ask(self, name: str) -> str:
        """Return what the service of that name answers."""
        return self.box.run(self.python, "-c", CLIENT, f"/run/{name}.sock").stdout.strip()


@pytest.fixture
def command(sandbox: Sandbox, python: str) -> Command:
    """Return the command inside."""
    return Command(sandbox, python)


def test_drop_in_of_a_loaded_unit(command: Command, service: ServiceFactory, sandbox: Sandbox) -> None:
    """A loaded unit is read with its drop-ins; that one has changed since is said, for it is not in force."""
    unit = service(SLEEPER, Type="exec", NotifyAccess=None, TimeoutStopSec=60, Restart="always")
    assert set(command.findings(unit.name)) == set()
    path = f"/run/systemd/system/{unit.name}.d/stop.conf"
    sandbox.write(path, "[Service]\nKillMode=none\nTimeoutStopSec=2\n")
    sandbox.daemon_reload()
    assert set(command.findings(unit.name)) == {"killmode-none", "stop-timeout-short"}
    assert command.run("doctor", unit.name)[0] == 1
    sandbox.write(path, "[Service]\nKillMode=mixed\n")
    assert set(command.findings(unit.name)) == {"stale"}
    sandbox.daemon_reload()
    assert command.run("doctor", unit.name.removesuffix(".service"))[0] == 0


@pytest.mark.parametrize(
    ("shell", "stays"),
    [("/bin/sh -c 'true; {}'", True), ("/bin/sh -c 'exec {}'", False), ("/bin/bash -c 'true && {}'", False)],
)
def test_shell_that_stays(
    command: Command, service: ServiceFactory, python: str, shell: str, *, stays: bool
) -> None:
    """Whether a shell is the main process is seen where the service runs; in a file bash is a guess."""
    start = shell.format(f'{python} -u -c "{SLEEPER}"')
    unit = service("", Type="exec", NotifyAccess=None, TimeoutStopSec=60, Restart="always", ExecStart=start)
    unit.wait_for("4711")
    assert ("wrapper" in command.findings(unit.name)) == stays
    assert "wrapper-maybe" not in command.findings(unit.name)


def test_unit_that_was_killed(command: Command, service: ServiceFactory) -> None:
    """A last run that ended by SIGKILL is said."""
    unit = service(
        f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}",
        Type="exec",
        NotifyAccess=None,
        Restart="always",
    )
    unit.wait_for("4711")
    assert unit.stop().result == "timeout"
    assert {"was-killed", "stop-timeout-short"} == set(command.findings(unit.name))


def test_version_is_asked(command: Command, service: ServiceFactory, sandbox: Sandbox) -> None:
    """Type=notify-reload is a mistake where systemd does not know it, and only there."""
    unit = service(SLEEPER, start=False, Type="notify-reload", Restart="always", TimeoutStopSec=60)
    assert ("notify-reload-unknown" in command.findings(unit.name)) == (sandbox.systemd_version < 253)


def test_manager_that_waits_no_longer(command: Command, service: ServiceFactory, sandbox: Sandbox) -> None:
    """How long a reboot waits is asked."""
    unit = service(SLEEPER, Type="exec", NotifyAccess=None, TimeoutStopSec="20min", Restart="always")
    assert set(command.findings(unit.name)) == set()
    sandbox.write("/run/systemd/system/reboot.target.d/soon.conf", "[Unit]\nJobTimeoutSec=10min\n")
    sandbox.daemon_reload()
    try:
        assert "after 10 min" in command.findings(unit.name)["reboot-limit"]["why"]
    finally:
        sandbox.run("rm", "-r", "/run/systemd/system/reboot.target.d")
        sandbox.daemon_reload()


ODD = r"""
[Service]
Type=simple
KillMode=mixed
KillMode=
Restart=always
Restart=
ExecStart=/bin/false
ExecStart=
ExecStart=-@/bin/sleep 'a name' "infinity" \
# a comment, \
   ; another
   \x41=%%%N "b \" c" 'd e'f \; $$x
Environment=A=1 "B=2 3"
Environment=
Environment='C=4 \
  5' D=6
TimeoutStopSec=1min \
  30s
"""


def test_read_as_systemd_reads(service: ServiceFactory, sandbox: Sandbox) -> None:
    """Of a unit with every oddity of the syntax doctor's reading is systemd's."""
    unit = service("", start=False)
    sandbox.unit(unit.name, ODD)
    sandbox.daemon_reload()
    facts = Facts(Source(unit.name, Unit((ODD,))))
    (command,) = facts.commands("ExecStart")
    shown = unit.show("ExecStart", "KillMode", "Restart", "Environment", "TimeoutStopUSec")
    argv = re.search(r"argv\[\]=(.*?) ; ignore_errors=(\w+)", shown["ExecStart"])
    assert argv is not None
    assert (argv[1], argv[2]) == (" ".join(("a name", *command.words[1:])), "yes")
    assert (
        (facts.kill_mode, facts.restart)
        == (shown["KillMode"], shown["Restart"])
        == ("control-group", "always")
    )
    assert [f"{key}={value}" for key, value in facts.environment.items()] == parse.words(shown["Environment"])
    assert facts.stop_timeout == timespan(shown["TimeoutStopUSec"])


def test_unknown_unit(command: Command) -> None:
    """A unit that is not there is 3, and said."""
    status, said = command.run("doctor", "nothing-of-that-name")
    assert (status, "not-found" in said) == (3, True)


@pytest.fixture
def user(sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """Return the environment of root's own manager."""
    if sandbox.systemctl("start", "user@0.service", check=False).returncode:
        pytest.skip("no user manager can be had here")
    yield {"XDG_RUNTIME_DIR": "/run/user/0"}
    sandbox.systemctl("stop", "user@0.service", check=False)


def test_user_manager(command: Command, sandbox: Sandbox, user: dict[str, str]) -> None:
    """In a user's manager what ends that counts: its own stop timeout, and the last logout."""
    text = f"[Service]\nType=exec\nExecStart={command.python} -c pass\nTimeoutStopSec=10min\nRestart=always\n"
    sandbox.write("/root/.config/systemd/user/limited.service", text)
    sandbox.run("systemctl", "--user", "daemon-reload", env=user)
    found = command.findings("--user", "limited", env=user)
    assert set(found) == {"user-limit", "user-linger"}
    assert "2 min" in found["user-limit"]["why"]
    sandbox.write("/var/lib/systemd/linger/root", "")
    try:
        assert set(command.findings("--user", "limited", env=user)) == {"user-limit"}
    finally:
        sandbox.run("rm", "/var/lib/systemd/linger/root")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "options", [[], ["--workers", "2"], ["--rolling"], ["--rolling", "--workers", "2"]], ids=" ".join
)
def test_new_serves(
    command: Command, sandbox: Sandbox, request: pytest.FixtureRequest, options: list[str]
) -> None:
    """What `new` writes starts, serves, is clean by what systemd has loaded, and takes new code by a reload."""
    name = f"new{request.node.callspec.indices['options']}"
    sandbox.write(f"/srv/{name}/web.py", APP.replace("ANSWER", "one"))
    words = ("new", name, "--serve", "web:app", "--socket", f"/run/{name}.sock", *options)
    status, said = command.run(*words, cwd=f"/srv/{name}")
    assert status == 0, said
    for unit in (f"{name}.service", f"{name}@.service"):
        sandbox.write(
            f"/etc/systemd/system/{unit}.d/test.conf",
            f"[Service]\nEnvironment=PYTHONPATH={CHECKOUT} PYTHONDONTWRITEBYTECODE=1\n",
        )
    try:
        for line in said.split("\n\n")[1].splitlines()[:2]:
            sandbox.run(*line.split())
        assert command.ask(name) == "one"
        assert {key: one for key, one in command.findings(name).items() if one["severity"] != "notes"} == {}
        sandbox.write(f"/srv/{name}/web.py", APP.replace("ANSWER", "two"))
        sandbox.systemctl("reload" if options else "restart", name)  # one process has its code for life
        assert command.ask(name) == "two"
    finally:
        sandbox.systemctl("disable", "--now", f"{name}.service", f"{name}.socket", check=False)
