"""`systemctl reload` of the templates: it waits, its exit status is the verdict, and operators find the reason."""

from __future__ import annotations

import json
import subprocess
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from requiem_systemd.journal import MESSAGE_IDS
from tests.systemd.conftest import UNITS, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.systemd.sandbox import Sandbox

CHECKOUT = Path(__file__).parents[2]

# What is reloaded is told by a file: how long it takes, and whether it goes well.
APP = """
import os, pathlib, time
import requiem_systemd as requiem

@requiem.on("reload")
def reload():
    seconds, _, error = pathlib.Path("{orders}").read_text().partition(" ")
    time.sleep(float(seconds))
    print("handler ends", flush=True)
    if error:
        raise requiem.ReloadError(error)

requiem.initialize()
requiem.ready("up")
requiem.wait()
"""


class Service(Unit):
    """A unit made of a template, under a name of its own."""

    @property
    def orders(self) -> str:
        """The file that says what a reload does."""
        return f"/srv/{self.name.removesuffix('.service')}/orders"

    def order(self, text: str) -> None:
        """Say what the next reload does."""
        self.box.write(self.orders, text)

    def try_reload(self) -> subprocess.CompletedProcess[str]:
        """Reload, and return how systemctl took it."""
        return self.box.systemctl("reload", self.name, check=False)

    def wait_until_reloading(self) -> None:
        """Wait until the service has said so."""
        self.box.run(
            "sh",
            "-c",
            f"until systemctl show -P StatusText {self.name} | grep -q Reloading; do sleep 0.02; done",
        )

    def records(self, kind: str) -> list[dict[str, str]]:
        """Return its journal's records of one kind."""
        self.box.run("journalctl", "--sync")
        text = self.box.run(
            "journalctl", "-u", self.name, f"MESSAGE_ID={MESSAGE_IDS[kind]}", "-o", "json"
        ).stdout
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def template(
    sandbox: Sandbox, python: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a unit made of a template, hardening and all, with settings of its own added."""
    units: list[Unit] = request.node.stash.setdefault(UNITS, [])

    def template(name: str, **settings: object) -> Service:
        unit = Service(
            sandbox,
            f"rl-{request.node.name.split('[')[0].removeprefix('test_').replace('_', '-')[:40]}.service",
        )
        units.append(unit)
        stem = unit.name.removesuffix(".service")
        sandbox.write(f"/srv/{stem}/app.py", textwrap.dedent(APP).format(orders=unit.orders))
        sandbox.write(
            f"/srv/{stem}/venv/bin/requiem-systemd",
            f'#!/bin/sh\nexec {python} -m requiem_systemd "$@"\n',
            0o755,
        )
        sandbox.run("ln", "-sfn", python, f"/srv/{stem}/venv/bin/python")
        unit.order("0")
        sandbox.unit(
            unit.name, (CHECKOUT / "units" / name).read_text().replace("venv/bin/python -m app", "app")
        )
        own = {
            "Environment": f"PYTHONPATH={CHECKOUT}",
            "ExecStart": ["", f"{python} -u /srv/{stem}/app.py"],
            **settings,
        }
        lines = [
            f"{key}={one}"
            for key, value in own.items()
            for one in (value if isinstance(value, list) else [value])
        ]
        sandbox.unit(f"{unit.name}.d/test.conf", "\n".join(["[Service]", *lines, ""]))
        sandbox.daemon_reload()
        unit.start()
        return unit

    yield template
    for unit in units:
        sandbox.systemctl("stop", unit.name, check=False)
        sandbox.systemctl("reset-failed", unit.name, check=False)


def test_waits(template: Callable[..., Service], repetitions: int) -> None:
    """It returns when the handlers have ended, each time, and not before."""
    unit = template("plain.service")
    unit.order("0.3")
    for done in range(1, repetitions + 1):
        unit.reload()
        assert done == unit.journal().count("handler ends")
        assert (unit.state, unit.status_text) == ("active", "up")


def test_fails(template: Callable[..., Service]) -> None:
    """It fails when a handler failed; the reason is in STATUS, in the journal, and in what the command said."""
    unit = template("plain.service")
    unit.order("0.1 line 3: no colon")
    assert unit.try_reload().returncode != 0
    assert (unit.state, unit.status_text) == ("active", "Reload failed: line 3: no colon")
    assert "requiem-systemd reload: line 3: no colon" in unit.journal()
    (record,) = unit.records("reload-failed")
    assert (record["REQUIEM_REASON"], record["PRIORITY"]) == ("line 3: no colon", "3")
    unit.order("0")
    unit.reload()
    assert unit.status_text == "up"


def test_records_once(template: Callable[..., Service], repetitions: int) -> None:
    """A change of state is in the unit's journal once, with its fields, although it was logged in the last moment."""
    unit = template("plain.service")
    unit.stop()
    for _ in range(repetitions - 1):
        unit.start()
        unit.stop()
    states = [record["REQUIEM_STATE"] for record in unit.records("state")]
    assert ["RUNNING", "DRAINING", "STOPPED"] * repetitions == states
    assert repetitions == unit.journal().count("draining -> stopped")


def test_long_reload_is_extended(template: Callable[..., Service]) -> None:
    """A reload that takes longer than TimeoutStartSec= is let end."""
    unit = template("plain.service", TimeoutStartSec=2)
    unit.order("5")
    unit.reload()
    assert "handler ends" in unit.journal()


@pytest.mark.timeout(200)
def test_daemon_reload_in_mid_reload(template: Callable[..., Service], repetitions: int) -> None:
    """A reload that has outlived TimeoutStartSec= survives daemon-reload."""
    unit = template("plain.service", TimeoutStartSec=2)
    unit.order("3.5")
    for done in range(1, repetitions + 1):
        with unit.box.popen("systemctl", "reload", unit.name) as reload:
            unit.wait_until_reloading()
            time.sleep(2.1)  # until the configured timeout has passed, nothing tells of which
            for _ in range(3):
                unit.box.daemon_reload()
            assert reload.wait(30) == 0
        assert done == unit.journal().count("handler ends")
    assert unit.state == "active"


@pytest.mark.timeout(100)
def test_stop_in_mid_reload(template: Callable[..., Service], repetitions: int) -> None:
    """A stop cuts in: the reload is cancelled, the service drains until the handler has ended, and has not failed."""
    unit = template("plain.service")
    unit.order("1")
    for done in range(1, repetitions + 1):
        unit.start()
        with unit.box.popen("systemctl", "reload", unit.name, stderr=subprocess.DEVNULL) as reload:
            unit.wait_until_reloading()
            unit.stop()
            assert reload.wait(30) != 0
        assert done == unit.journal().count("handler ends")
        assert unit.result == "success"


def test_begin_in_mid_reload(template: Callable[..., Service]) -> None:
    """A drain that the service begins by itself answers who waits for the reload, before the handler has ended."""
    unit = template("plain.service")
    unit.order("2")
    with unit.box.popen("systemctl", "reload", unit.name, stderr=subprocess.DEVNULL) as reload:
        unit.wait_until_reloading()
        unit.kill("INT")
        reload.wait(30)  # systemd 252 calls it done when the unit has ended, 262 at once
    unit.stop()
    journal = unit.journal()
    assert journal.index("requiem-systemd reload: the service is draining") < journal.index("handler ends")
    assert unit.result == "success"


def test_by_unit_name(template: Callable[..., Service], python: str) -> None:
    """An operator's `requiem-systemd reload UNIT` finds the socket, as root, and has the verdict."""
    unit = template("plain.service")
    command = (python, "-m", "requiem_systemd", "reload", unit.name)
    assert unit.box.run(*command, env={"PYTHONPATH": str(CHECKOUT)}).returncode == 0
    unit.order("0 no")
    done = unit.box.run(*command, check=False, env={"PYTHONPATH": str(CHECKOUT)})
    assert (done.returncode, done.stderr) == (1, "requiem-systemd reload: no\n")
    unit.stop()
    done = unit.box.run(*command, check=False, env={"PYTHONPATH": str(CHECKOUT)})
    assert done.returncode == 3
    assert "inactive" in done.stderr


def test_without_runtime_directory(template: Callable[..., Service]) -> None:
    """A unit without RuntimeDirectory= is told what it lacks, and nothing is reloaded."""
    unit = template("plain.service", RuntimeDirectory="")
    assert unit.try_reload().returncode != 0
    assert "RuntimeDirectory=%N" in unit.journal()
    assert "handler ends" not in unit.journal()


def test_by_pid_from_another_unit(template: Callable[..., Service], python: str) -> None:
    """Who asks with another unit's $RUNTIME_DIRECTORY reaches the process that was named, not its own service."""
    unit = template("plain.service")
    pid = str(unit.main_pid)
    env = {"PYTHONPATH": str(CHECKOUT), "RUNTIME_DIRECTORY": "/run/nowhere"}
    assert unit.box.run(python, "-m", "requiem_systemd", "reload", "--pid", pid, env=env).returncode == 0
    env["RUNTIME_DIRECTORY"] = f"/run/{unit.name.removesuffix('.service')}"
    done = unit.box.run(python, "-m", "requiem_systemd", "reload", "--pid", "1", check=False, env=env)
    assert done.returncode == 3


@pytest.mark.since("253", "Type=notify-reload")
def test_notify_reload(template: Callable[..., Service], repetitions: int) -> None:
    """Where systemd asks for the reload it waits too; a failed one has no verdict but the STATUS."""
    unit = template("notify-reload.service")
    unit.order("0.3")
    for done in range(1, repetitions + 1):
        unit.reload()
        assert done == unit.journal().count("handler ends")
    unit.order("0 line 3: no colon")
    unit.reload()
    assert unit.status_text == "Reload failed: line 3: no colon"


@pytest.mark.since("255", "varlinkctl")
def test_varlinkctl(template: Callable[..., Service], sandbox: Sandbox) -> None:
    """The varlinkctl of systemd understands the socket."""
    unit = template("plain.service")
    path = f"/run/{unit.name.removesuffix('.service')}/requiem"
    assert "io.requiem-systemd.Service" in sandbox.run("varlinkctl", "info", path).stdout
    assert "Reload" in sandbox.run("varlinkctl", "introspect", path, "io.requiem-systemd.Service").stdout
    unit.order("0.1 no")
    done = sandbox.run("varlinkctl", "call", path, "io.requiem-systemd.Service.Reload", "{}", check=False)
    assert done.returncode != 0
    assert "ReloadFailed" in done.stderr


@pytest.mark.since("255", "varlinkctl")
def test_varlinkctl_asks(template: Callable[..., Service], sandbox: Sandbox) -> None:
    """It introspects the methods that tell, and calls them."""
    unit = template("plain.service")
    path = f"/run/{unit.name.removesuffix('.service')}/requiem"
    interface = "io.requiem-systemd.Service"
    text = sandbox.run("varlinkctl", "introspect", path, interface).stdout
    assert all(f"method {name}(" in text for name in ("Reload", "Describe", "InFlight"))
    assert all(f"type {name} (" in text or f"type {name}(" in text for name in ("Effect", "Limits", "Worker", "Holder", "Process", "Thread"))
    described = json.loads(sandbox.run("varlinkctl", "--json=short", "call", path, f"{interface}.Describe", "{}").stdout)
    assert (described["unit"], described["state"], described["status"]) == (unit.name, "running", "up")
    holding = json.loads(sandbox.run("varlinkctl", "--json=short", "call", path, f"{interface}.InFlight", '{"stacks": true}').stdout)
    assert (holding["holders"], holding["omitted"]) == ([], 0)
    assert "MainThread" in [thread["name"] for thread in holding["threads"]]
