"""`requiem-systemd history`: what became of a real unit's drains, reloads and rolls, from its real journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.systemd.rolling import HOLDING, Rolled

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.systemd.conftest import ServiceFactory
    from tests.systemd.sandbox import Sandbox

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

# Two jobs, one of which outlives TimeoutStopSec=2; a reload that fails where a file says so.
JOBS = """
import os, threading, time
import requiem_systemd as requiem

@requiem.on("reload")
def reload():
    if os.path.exists("/run/requiem-tests/bad"):
        raise requiem.ReloadError("line 3: no colon")

def work(label, seconds):
    with requiem.track(label):
        requiem.wait_begin()
        time.sleep(seconds)

requiem.initialize()
threading.Thread(target=work, args=("mail 7", 0.2)).start()
threading.Thread(target=work, args=("export 42", 2.5)).start()
while len(requiem.in_flight()) < 2:
    time.sleep(0.01)
requiem.ready()
requiem.wait()
"""

# Two workers with a job each, which outlive TimeoutStopSec=2.
WORKERS = """
import threading, time
import requiem_systemd as requiem

def serve(service):
    def work():
        with requiem.track("export"):
            requiem.wait_begin()
            time.sleep(3)
    threading.Thread(target=work).start()
    while not requiem.in_flight():
        time.sleep(0.01)
    requiem.ready()
    requiem.wait()

if __name__ == "__main__":
    requiem.Cluster(serve, workers=2).run()
"""


def history(box: Sandbox, python: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the verb inside, when the journal has all."""
    box.run("journalctl", "--sync")
    return box.run(python, "-m", "requiem_systemd", "history", *words, check=False, env={"PYTHONPATH": str(CHECKOUT)})


def told(box: Sandbox, python: str, unit: str) -> list[dict[str, Any]]:
    """Return what it tells, the oldest first."""
    done = history(box, python, unit, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["happenings"]
    return found[::-1]


def test_stops_and_reloads(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """Two reloads, of which one fails; a stop with a job that outlives the timeout; a stop in which the process is killed."""
    reload = f"{python} -m requiem_systemd reload --pid $MAINPID"
    unit = service(JOBS, Environment=f"PYTHONPATH={CHECKOUT}", RuntimeDirectory="%N", ExecReload=reload)
    unit.reload()
    sandbox.write("/run/requiem-tests/bad", "")
    sandbox.systemctl("reload", unit.name, check=False)
    assert unit.stop().result == "success"
    unit.start()
    sandbox.systemctl("stop", "--no-block", unit.name)
    unit.wait_for("the drain is held")
    unit.wait_for('the drain is held by "export 42"')
    open_yet = told(sandbox, python, unit.name)[-1]
    unit.kill("KILL")
    well, badly, drain, _ = told(sandbox, python, unit.name)
    assert [(one["what"], one["outcome"], one["reason"]) for one in (well, badly)] == [
        ("reload", "ok", ""),
        ("reload", "failed", "line 3: no colon"),
    ]
    assert (drain["outcome"], drain["reason"], drain["drain"]["outlived"], drain["drain"]["stop_timeout"]) == ("ended", "SIGTERM", 1, 2.0)
    assert 2.4 < drain["seconds"] < 10
    bars = {bar["label"]: bar for bar in drain["drain"]["bars"]}
    assert set(bars) == {"mail 7", "export 42"}
    assert bars["mail 7"]["end"] < bars["export 42"]["end"]
    assert "now" in open_yet["outcome"]


def test_killed_in_the_drain(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """A drain that was ended by a kill is told as far as it went, with whom it held; the text has its timeline, the picture too."""
    unit = service(JOBS, Environment=f"PYTHONPATH={CHECKOUT}")
    sandbox.systemctl("stop", "--no-block", unit.name)
    unit.wait_for("the drain is held")
    unit.kill("KILL")
    unit.wait_for("Failed with result 'signal'")
    (drain,) = told(sandbox, python, unit.name)
    assert drain["outcome"] == "killed: signal 9"
    assert [bar["label"] for bar in drain["drain"]["bars"] if bar["end"] is None] == ["export 42"]
    done = history(sandbox, python, unit.name, "--svg", "/run/requiem-tests/drain.svg")
    assert "job export 42" in done.stdout
    assert "TimeoutStopSec=2 s" in done.stdout
    assert sandbox.read("/run/requiem-tests/drain.svg").startswith("<svg ")


def test_killed_at_once(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """A drain that was killed in its first second has the names of its jobs too."""
    unit = service(JOBS, Environment=f"PYTHONPATH={CHECKOUT}")
    unit.kill("TERM")
    unit.wait_for("running -> draining")
    unit.kill("KILL")
    unit.wait_for("Failed with result 'signal'")
    (drain,) = told(sandbox, python, unit.name)
    assert drain["outcome"] == "killed: signal 9"
    assert "export 42" in [bar["label"] for bar in drain["drain"]["bars"] if bar["end"] is None]


def test_not_for_everybody(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """Who may not read the journal hears so, and what to do; a unit that nothing is known of is 1."""
    service(JOBS, Environment=f"PYTHONPATH={CHECKOUT}")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = sandbox.run(*nobody, python, "-m", "requiem_systemd", "history", "x", check=False, env={"PYTHONPATH": str(CHECKOUT)})
    assert done.returncode == 3
    assert "systemd-journal" in done.stderr
    assert history(sandbox, python, "nothing-of-this-name").returncode == 1
    assert history(sandbox, python, "nothing-of-this-name", "--since", "soonish").returncode == 2


@pytest.fixture
def rolled(sandbox: Sandbox, python: str) -> Iterator[Rolled]:
    """Return a service made of the templates, which runs."""
    unit = Rolled(sandbox, "rh-history", python)
    unit.install(settings={})
    unit.write(HOLDING)
    unit.start()
    yield unit
    unit.clear()


def test_rolls(rolled: Rolled, sandbox: Sandbox, python: str) -> None:
    """A roll by systemctl and one by hand are told, with the drains of the generations that they replaced."""
    rolled.command("reload", check=True)
    assert rolled.run("roll").returncode == 0
    rolled.finish_jobs()
    rolled.await_states({"3": "active"})
    found = told(sandbox, python, rolled.stem)
    rolls = [(one["old"], one["new"], one["outcome"]) for one in found if one["what"] == "roll"]
    name = rolled.stem
    assert rolls == [("", f"{name}@1", "ok"), (f"{name}@1", f"{name}@2", "ok"), (f"{name}@2", f"{name}@3", "ok")]
    drains = {one["unit"]: [bar["label"] for bar in one["drain"]["bars"]] for one in found if one["what"] == "drain"}
    assert drains == {f"{name}@1.service": ["export"], f"{name}@2.service": ["export"]}


@pytest.mark.soak
def test_cluster(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """Each worker tells its own drain, by the service's deadline; the jobs are counted once."""
    unit = service(WORKERS, Environment=f"PYTHONPATH={CHECKOUT}")
    assert unit.stop().result == "success"
    found = {one["drain"]["role"]: one["drain"] for one in told(sandbox, python, unit.name) if one["what"] == "drain"}
    assert set(found) == {"main", "worker 1", "worker 2"}
    assert [found[role]["bars"][0]["label"] for role in ("worker 1", "worker 2")] == ["export", "export"]
    assert [round(found[role]["deadline"]) for role in sorted(found)] == [2, 2, 2]
    assert found["main"]["outlived"] == 2
    assert "2 outlived TimeoutStopSec=" in history(sandbox, python, unit.name, "--since", "1h").stdout


@pytest.mark.soak
def test_without_systemd_python(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """A plain install tells the same, names and all."""
    script = "import sys\nsys.modules['systemd'] = None\n" + JOBS
    unit = service(script, Environment=f"PYTHONPATH={CHECKOUT}")
    assert unit.stop().result == "success"
    (drain,) = told(sandbox, python, unit.name)
    assert (drain["outcome"], drain["drain"]["role"], drain["drain"]["outlived"]) == ("ended", "main", 1)
    assert {bar["label"] for bar in drain["drain"]["bars"]} == {"mail 7", "export 42"}


@pytest.mark.soak
def test_without_the_socket(service: ServiceFactory, sandbox: Sandbox, python: str) -> None:
    """Lines on standard error are enough for when and how long."""
    unit = service(JOBS, Environment=f"PYTHONPATH={CHECKOUT}", InaccessiblePaths="/run/systemd/journal/socket")
    assert unit.stop().result == "success"
    (drain,) = told(sandbox, python, unit.name)
    assert (drain["outcome"], drain["reason"], drain["drain"]["in_flight"], drain["drain"]["bars"]) == ("ended", "SIGTERM", 2, [])
    assert 2.4 < drain["seconds"] < 10
