"""`requiem-systemd ps` and `why` on a real systemd: rolling units and clusters, under load and in mid-drain."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.systemd.load import Load
from tests.systemd.rolling import CHECKOUT, COMMAND, FOUR_JOBS, HOLDING, SERVER
from tests.systemd.test_cluster import clustered, failed  # noqa: F401 - a fixture
from tests.systemd.test_rolling import rolled  # noqa: F401 - a fixture

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.systemd.conftest import ServiceFactory
    from tests.systemd.sandbox import Sandbox
    from tests.systemd.test_cluster import Cluster
    from tests.systemd.test_rolling import Setup

def ask(box: Sandbox, python: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command as root does."""
    return box.run(python, "-m", "requiem_systemd", *words, check=check, env={"PYTHONPATH": str(CHECKOUT)})


def rows(table: str) -> dict[str, str]:
    """Return the state of each process, by its unit (and what it is in a cluster)."""
    found = {}
    for line in table.splitlines()[1:]:
        if not line.startswith(" "):
            unit, process, state, *_ = re.split(r"  +", line)
            found[" ".join([unit, *process.split()[1:]])] = state
    return found


def test_generations(rolled: Setup) -> None:  # noqa: F811 - pytest's way
    """An anchor's generations are shown, the old one in mid-drain past its TimeoutStopSec=; then it ends well."""
    unit = rolled(HOLDING)
    unit.command("reload", check=True)
    unit.await_states({"1": "deactivating", "2": "active"})
    time.sleep(2.1)  # until the configured timeout has passed, nothing tells of which
    shown = unit.run("ps")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert rows(shown.stdout) == {f"{unit.stem}@1.service": "draining", f"{unit.stem}@2.service": "running"}
    assert shown.stdout.count('"export"') == 2
    why = unit.box.run(COMMAND, "why", f"{unit.stem}@1", env={"PYTHONPATH": str(CHECKOUT)}).stdout
    assert f"{unit.stem}@1.service, process " in why
    assert "begun by SIGTERM" in why
    assert f"{unit.folder}/app.py:" in why
    assert re.search(r"TimeoutStopSec=2s has passed, \d+ s ago; extended for [12]\d s more", why), why
    assert f"systemctl kill -s QUIT --kill-whom=main {unit.stem}@1.service" in why
    refused = unit.box.run(COMMAND, "reload", f"{unit.stem}@1", check=False, env={"PYTHONPATH": str(CHECKOUT)})
    assert (refused.returncode, refused.stderr) == (1, "requiem-systemd reload: the service is draining: nothing is reloaded any more\n")
    unit.box.run(COMMAND, "reload", f"{unit.stem}@2", env={"PYTHONPATH": str(CHECKOUT)})
    everything = unit.box.run(COMMAND, "ps", env={"PYTHONPATH": str(CHECKOUT)}).stdout
    assert rows(shown.stdout).items() <= rows(everything).items()
    unit.finish_jobs()
    unit.await_states({"2": "active"})
    assert "job done: one" in unit.text("1")
    unit.stop()
    stopped = unit.run("why")
    assert stopped.returncode == 3
    assert f"{unit.stem}.service is inactive" in stopped.stderr


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(120)
def test_rolls_under_load(rolled: Setup, free_port: int) -> None:  # noqa: F811 - pytest's way
    """Asked all the time while it rolls under load: no request fails, and a draining generation tells its four kinds of jobs."""
    code = SERVER.replace("JOBS", FOUR_JOBS.replace("SECONDS", "8"))
    unit = rolled(code, port=free_port)
    taken, kinds = [], set[str]()
    with Load(f"127.0.0.1:{free_port}", new=50, keep=50) as load:
        for number in range(3):
            unit.write(code, f"v{number + 1}")
            unit.command("reload", check=True)
            unit.box.run(COMMAND, "reload", f"{unit.stem}@{number + 2}", env={"PYTHONPATH": str(CHECKOUT)})
            for verb in ("ps", "why", "ps"):
                begin = time.monotonic()
                shown = unit.run(verb, "--json")
                taken.append(time.monotonic() - begin)
                assert shown.returncode == 0, shown.stdout
                for one in json.loads(shown.stdout)["services"]:
                    if one["described"]["state"] == "draining":
                        kinds |= {holder["owner"].partition(" ")[0] for holder in one["in_flight"]["holders"]}
        figures = load.stop()
    print(f"asked {len(taken)} times, {max(taken):.2f} s at most, {figures.sent} requests, {failed(figures)} failed")
    assert failed(figures) == 0, figures.failed
    assert kinds >= {"thread", "task", "process"}
    assert unit.stop().result == "success"
    for kind in ("thread", "daemon thread", "process", "task"):
        assert unit.generations_text().count(f"job done: {kind}\n") == 4


@pytest.mark.timeout(120)
def test_cluster(clustered: Callable[..., Cluster], python: str) -> None:  # noqa: F811 - pytest's way
    """Under load, a reload, and in mid-drain: the primary and each worker tell of themselves, the old ones too; all jobs end."""
    made = clustered(jobs=2, seconds=8)
    name = made.unit.name
    with made.load() as load:
        for version in ("one", "two"):
            made.write(version)
            if version == "one":
                made.unit.reload()
            else:
                assert ask(made.box, python, "reload", name).stderr == ""
            told = json.loads(ask(made.box, python, "ps", name, "--json").stdout)["services"]
            assert [one["problem"] for one in told] == [None] * len(told)
            assert ask(made.box, python, "why", name).stdout.count(":job\n") >= 2
        figures = load.stop()
    assert failed(figures) == 0, figures.failed
    described: list[dict[str, Any]] = [one["described"] for one in told]
    assert [one["unit"] for one in described] == [name] * 7
    assert [one["state"] for one in described].count("draining") == 4
    phases = [worker["phase"] for worker in described[0]["workers"]]
    assert sorted(phases) == ["leaving"] * 4 + ["listening"] * 2
    for one in told[1:]:
        assert {holder["label"] for holder in one["in_flight"]["holders"]} >= {"job 0", "job 1"}
    with made.box.popen("systemctl", "stop", name) as stop:
        time.sleep(2.5)  # past TimeoutStopSec=2
        table = ask(made.box, python, "ps", name).stdout
        assert rows(table)[f"{name} primary"] == "draining"
        why = ask(made.box, python, "why", name).stdout
        assert why.count(":job\n") >= 4
        assert "TimeoutStopSec=2s has passed" in why
        assert "orphan" not in why
        assert "the service is draining" in ask(made.box, python, "reload", name, check=False).stderr
        assert stop.wait(30) == 0
    assert made.count("job done") == made.count("job begins") == 12
    assert made.unit.result == "success"


def test_orphans(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """Children, grandchildren and orphans are told apart; who systemd runs beside, as ExecReload=, is none of the service's."""
    unit = service(
        """
        import os, subprocess, time
        import requiem_systemd as requiem

        requiem.initialize()
        subprocess.run(["sh", "-c", "sleep 301 &"])
        child = subprocess.Popen(["sh", "-c", "sleep 302; true"])
        requiem.ready("up")
        requiem.wait()
        """,
        Environment=f"PYTHONPATH={CHECKOUT}",
        RuntimeDirectory="%N",
        ExecReload="sleep 30",
    )
    with sandbox.popen("systemctl", "reload", unit.name):
        sandbox.run("sh", "-c", f"until systemctl show -P ControlPID {unit.name} | grep -qv '^0'; do sleep 0.02; done")
        control = unit.show("ControlPID")["ControlPID"]
        why = ask(sandbox, python, "why", unit.name).stdout
        told = json.loads(ask(sandbox, python, "ps", unit.name, "--json").stdout)["services"][0]
        sandbox.run("kill", control)
    relations = sorted((one["relation"], one["name"]) for one in told["in_flight"]["processes"])
    assert relations == [("child", "sh"), ("descendant", "sleep"), ("orphan", "sleep")]
    assert int(control) not in [one["pid"] for one in told["in_flight"]["processes"]]
    assert "its parent has ended" in why
    assert "301" not in why
    assert told["described"]["unit"] == unit.name


def test_unit_without_a_socket(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """A unit that has no RuntimeDirectory= has a row by what systemd knows, and is told what it lacks."""
    unit = service(
        "import requiem_systemd as requiem; requiem.initialize(); requiem.ready('up and about'); requiem.wait()",
        Environment=f"PYTHONPATH={CHECKOUT}",
    )
    shown = ask(sandbox, python, "ps", unit.name, check=False)
    assert shown.returncode == 1
    assert rows(shown.stdout) == {unit.name: "active"}
    assert "up and about" in shown.stdout
    assert "RuntimeDirectory=%N in its unit gives it one" in shown.stdout
