"""Services that are rolled: new code comes without a failed request, jobs end in peace, and what is broken changes nothing."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from requiem_systemd.protocol import timespan
from tests.systemd.conftest import UNITS, Unit, booted
from tests.systemd.load import Course, Figures, Load
from tests.systemd.rolling import COMMAND, FOUR_JOBS, HOLDING, SERVER, Rolled
from tests.systemd.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parents[2]
PLAIN = SERVER.replace("JOBS", "")


class Setup(Protocol):
    """What the `rolled` fixture returns."""

    def __call__(self, code: str | None, *, port: int | None = None, roll: str = "", **settings: object) -> Rolled:
        """Write a service made of the templates, and start it (unless there is no code)."""


@pytest.fixture
def rolled(sandbox: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Return a function that writes and starts a service that can be rolled; it ends with the test."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name.removeprefix("test_"))[-24:].strip("-")  # User=%p
    made: list[Rolled] = []

    def rolled(code: str | None, *, port: int | None = None, roll: str = "", **settings: object) -> Rolled:
        unit = Rolled(sandbox, f"r{len(made)}-{stem}", python)
        made.append(unit)
        request.node.stash.setdefault(UNITS, []).append(unit)
        unit.install(port=port, roll=roll, settings=settings)
        if code is not None:
            unit.write(code)
            unit.start()
        return unit

    yield rolled
    for unit in made:
        unit.clear()


# -- the ladder


def test_reload_starts_the_next(rolled: Setup) -> None:
    """A reload starts the next instance, and has the old one drain without waiting for its job."""
    unit = rolled(HOLDING)
    assert unit.states() == {"1": "active"}
    unit.write(HOLDING, "two")
    unit.reload()
    assert unit.states() == {"1": "deactivating", "2": "active"}
    assert unit.instances()["2"].text == "two"
    unit.finish_jobs()
    unit.await_states({"2": "active"})
    assert "job done: one" in unit.text("1")


@pytest.mark.parametrize("verb", ["restart", "try-restart", "reload-or-restart", "try-reload-or-restart"])
def test_restart_is_a_roll(rolled: Setup, verb: str) -> None:
    """Whatever restarts the anchor rolls: the old one drains in the background, and nobody waits for its job."""
    unit = rolled(HOLDING)
    unit.command(verb, check=True)
    assert unit.states() == {"1": "deactivating", "2": "active"}
    assert unit.state == "active"


def test_stop_waits(rolled: Setup) -> None:
    """A stop drains all generations, and waits for the last job."""
    unit = rolled(HOLDING)
    unit.reload()
    with unit.beside("systemctl", "stop", unit.stem) as stop:
        unit.await_states({"1": "deactivating", "2": "deactivating"})
        assert stop.poll() is None
        assert unit.state == "deactivating"
        unit.finish_jobs()
        assert stop.wait(10) == 0
    assert unit.states() == {}
    assert unit.generations_text().count("job done") == 2
    assert (unit.state, unit.result) == ("inactive", "success")


# -- under load


@pytest.fixture
def rolls(request: pytest.FixtureRequest) -> int:
    """How many rolls to do under load, of each kind."""
    return 20 if request.config.getoption("--full") else 3


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(400)
def test_under_load(rolled: Setup, free_port: int, rolls: int) -> None:
    """Reloads and restarts under 500 requests/s, four jobs in flight: none fails, every job ends, and all answers are new."""
    code = SERVER.replace("JOBS", FOUR_JOBS.replace("SECONDS", "8"))
    unit = rolled(code, port=free_port)
    with Load(f"127.0.0.1:{free_port}", new=250, keep=250) as load:
        course = Course.begin(2 * rolls)
        for number in range(2 * rolls):
            unit.write(code, f"v{number + 1}")
            course.roll(functools.partial(unit.command, "reload" if number < rolls else "restart", check=True))
        figures = load.stop()
    unit.stop()
    course.check(figures, surely=rolls == 20)
    jobs = re.findall(r"job done: ([a-z ]+)", unit.generations_text())
    assert dict.fromkeys(("thread", "daemon thread", "task", "process"), 2 * rolls + 1) == Counter(jobs)
    codes = ["one", *(f"v{number}" for number in range(1, 2 * rolls))]
    late = {
        where: max(figures.bodies[f"{where} {version}"][2] - end for version, (_, end) in zip(codes, course.rolls, strict=True))
        for where in ("new", "kept")
    }
    print(f"last request that old code answered: {late['new']:+.3f} s after a roll's end, {late['kept']:+.3f} s over a kept connection")
    assert late["new"] < 0
    assert late["kept"] < 0.5  # keepalive_grace


def versions(figures: Figures) -> set[str]:
    """Return which code answered."""
    return {body.partition(" ")[2] for body in figures.bodies}


# -- what is broken


BROKEN = {
    "does-not-import": ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'", "exited with status 1"),
    "never-ready": ("import signal; print('thinking', flush=True); signal.pause()", "thinking", "READY=1 within TimeoutStartSec="),
    "crashes-after-ready": (
        "import requiem_systemd as r; r.initialize(); r.ready(); raise SystemExit('no such table')",
        "no such table",
        "came up, but did not stay: it exited with status 1",
    ),
    "ends-after-ready": ("import requiem_systemd as r; r.initialize(); r.ready()", "", "ended by itself, with status 0"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", BROKEN)
def test_broken(rolled: Setup, free_port: int, kind: str) -> None:
    """A generation that is broken leaves the old serving; the command fails, says why, and a later good roll works."""
    unit = rolled(PLAIN, port=free_port, TimeoutStartSec=2)
    code, line, why = BROKEN[kind]
    with Load(f"127.0.0.1:{free_port}", new=40, keep=40) as load:
        unit.write(code)
        for verb in ("reload", "restart"):
            done = unit.command(verb)
            assert done.returncode != 0
            unit.await_states({"1": "active"})
        said = unit.journal()
        assert why in said
        assert line in said
        assert f"{unit.stem}@1: still serving" in said
        unit.write(PLAIN, "two")
        unit.command("restart", check=True)
        figures = load.stop()
    assert figures.failed == {}
    assert versions(figures) == {"one", "two"}
    assert unit.state == "active"


def test_stop_after_a_failed_restart(rolled: Setup) -> None:
    """A stop right behind a restart that failed stops the old generation, although it was the anchor that failed."""
    unit = rolled(HOLDING)
    unit.write("import nowhere")
    unit.finish_jobs()
    done = unit.box.run("sh", "-c", f"systemctl restart {unit.stem} || systemctl stop {unit.stem}", check=False)
    assert "failed" in done.stderr
    assert done.returncode == 0
    assert unit.states() == {}
    assert "job done: one" in unit.text("1")


def test_roll_behind_a_failed_restart(rolled: Setup) -> None:
    """A roll by hand right behind a restart that failed rolls, and says so: systemctl reload would be a part of the start that comes then."""
    unit = rolled(PLAIN_WORKER)
    unit.write("import nowhere")
    unit.box.write(f"{unit.folder}/good.py", PLAIN_WORKER.replace("VERSION", "two"))
    roll = " ".join(unit.by_hand("roll"))
    done = unit.box.run("sh", "-c", f"systemctl restart {unit.stem} || cp {unit.folder}/good.py {unit.folder}/app.py; {roll}", check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (
        0,
        [f"{unit.stem}@{unit.newest()}: serving; {unit.stem}@1: draining in the background"],
    )
    assert unit.instances()[str(unit.newest())].text == "two"
    unit.await_anchor("active")


def test_first_start_is_tried_on(rolled: Setup) -> None:
    """A first generation that does not come up fails the start, and is tried on until it does; a stop ends that."""
    unit = rolled(None, RestartSec="100ms")
    unit.write("import pathlib, sys; pathlib.Path('FOLDER/there').exists() or sys.exit('no database')" + PLAIN_WORKER)
    assert unit.command("start").returncode != 0
    assert "no database" in unit.journal()
    unit.box.write(f"{unit.folder}/there", "")
    unit.await_states({"1": "active"})
    unit.await_anchor("active")  # it was started once more, and did nothing; a reload meanwhile would be part of that
    unit.command("reload", check=True)
    unit.await_states({"2": "active"})
    unit.box.run("rm", f"{unit.folder}/there")
    unit.kill_generation("2")
    unit.box.run("sh", "-c", f"until systemctl show -P NRestarts {unit.stem}@2 | grep -q '[1-9]'; do sleep 0.02; done")
    unit.stop()
    assert unit.states() == {}


def test_crash_is_mended(rolled: Setup) -> None:
    """A generation that crashes is started again by systemd, more often than any start limit; a roll replaces it."""
    unit = rolled(PLAIN_WORKER, RestartSec="50ms")
    for times in range(1, 8):
        unit.kill_generation("1")
        unit.box.run(
            "sh", "-c", f"until [ $(systemctl show -P NRestarts {unit.stem}@1) = {times} ]; do sleep 0.02; done"
        )
        unit.await_states({"1": "active"})
    unit.reload()
    unit.await_states({"2": "active"})


def test_pauses_grow(sandbox: Sandbox, python: str) -> None:
    """`requiem-systemd new --rolling` asks this systemd whether it knows growing pauses: where it does they grow, else it hears of none."""
    words = ("new", "pausing", "--exec", f"{python} -c exit(1)", "--rolling", "--working-directory", "/")
    sandbox.run(python, "-m", "requiem_systemd", *words, env={"PYTHONPATH": str(CHECKOUT)})
    unit = Unit(sandbox, "pausing@1.service")
    try:
        sandbox.daemon_reload()
        sandbox.systemctl("start", "--no-block", unit.name)
        sandbox.run("sh", "-c", f"until [ $(systemctl show -P NRestarts {unit.name}) -ge 2 ]; do sleep 0.02; done")
        if sandbox.systemd_version < 254:
            assert unit.show("RestartUSec")["RestartUSec"] == "1s"
        else:
            assert timespan(unit.show("RestartUSecNext")["RestartUSecNext"]) > timespan(unit.show("RestartUSec")["RestartUSec"]) == 1.0
        assert "Unknown" not in unit.journal()
    finally:
        sandbox.systemctl("stop", unit.name, check=False)
        sandbox.run("sh", "-c", "rm /etc/systemd/system/pausing*")
        sandbox.daemon_reload()


# -- a stop, another roll, a daemon-reload in the middle

SLOW = """
import pathlib, time
import requiem_systemd as requiem

requiem.initialize()
print("starting: VERSION", flush=True)
with requiem.starting("warm-up"):
    while not pathlib.Path("FOLDER/warm").exists() and not requiem.draining():
        time.sleep(0.02)
requiem.ready("VERSION")
requiem.wait_begin()
"""
PLAIN_WORKER = """
import requiem_systemd as requiem

requiem.initialize()
requiem.ready("VERSION")
requiem.wait_begin()
"""


@pytest.mark.parametrize("verb", ["reload", "restart", "by hand"])
def test_stop_in_mid_roll(rolled: Setup, verb: str) -> None:
    """A stop while a new generation starts stops that one and the old, waits for the old one's job, and nothing has failed."""
    unit = rolled(HOLDING)
    unit.write(SLOW, "two")
    words = unit.by_hand("roll") if verb == "by hand" else ["systemctl", verb, unit.stem]
    with unit.beside(*words) as roll:
        unit.await_states({"1": "active", "2": "activating"})
        with unit.beside("systemctl", "stop", unit.stem) as stop:
            unit.await_states({"1": "deactivating"})
            assert stop.poll() is None
            unit.finish_jobs()
            assert stop.wait(10) == 0
        assert roll.wait(10) != 0
    assert unit.states() == {}
    assert (unit.state, unit.result) == ("inactive", "success")
    assert "job done: one" in unit.text("1")
    unit.write(PLAIN_WORKER, "three")
    unit.start()


def test_stop_in_mid_restart(rolled: Setup) -> None:
    """A stop that comes when a restart has stopped the anchor, and has not begun to start it, drains the generations too."""
    unit = rolled(HOLDING)
    unit.drop_in("", f"[Service]\nEnvironment=PYTHONPATH={CHECKOUT}\nExecStopPost=/bin/sh -c 'touch {unit.folder}/looked; sleep 1'\n")
    unit.box.daemon_reload()
    with unit.beside("systemctl", "restart", unit.stem) as restart:
        unit.box.run("sh", "-c", f"until test -e {unit.folder}/looked; do sleep 0.02; done")  # the drain before it has looked
        unit.stop()
        assert restart.wait(10) != 0
    unit.await_states({"1": "deactivating"})
    unit.finish_jobs()
    unit.await_states({})
    assert (unit.state, unit.result) == ("inactive", "success")
    assert "job done: one" in unit.text("1")


def test_restart_that_lacks_something(rolled: Setup) -> None:
    """A restart that fails since what the anchor requires does not start leaves the old generation serving."""
    unit = rolled(HOLDING)
    lacking = f"{unit.stem}-database.service"
    unit.box.unit(lacking, "[Service]\nType=oneshot\nExecStart=/bin/false\n")
    unit.drop_in("", f"[Unit]\nRequires={lacking}\nAfter={lacking}\n[Service]\nEnvironment=PYTHONPATH={CHECKOUT}\n")
    unit.box.daemon_reload()
    assert unit.command("restart").returncode != 0
    unit.box.run("sh", "-c", f"until journalctl -b | grep -q 'not started again, for want of {lacking}'; do sleep 0.05; done")
    assert unit.states() == {"1": "active"}


def test_roll_in_mid_stop(rolled: Setup) -> None:
    """A roll while the service is being stopped is refused by hand; a start waits for the stop, then starts."""
    unit = rolled(HOLDING)
    with unit.beside("systemctl", "stop", unit.stem):
        unit.await_states({"1": "deactivating"})
        done = unit.run("roll")
        assert done.returncode == 3
        assert f"systemctl start {unit.stem}" in done.stderr
        with unit.beside("systemctl", "start", unit.stem) as start:
            unit.finish_jobs()
            assert start.wait(10) == 0
    assert unit.states() == {"1": "active"}


def test_two_rolls_at_once(rolled: Setup) -> None:
    """Rolls at the same time are done one after the other."""
    unit = rolled(PLAIN_WORKER)
    roll = unit.by_hand("roll")
    with (
        unit.beside(*roll) as one,
        unit.beside(*roll) as two,
        unit.beside("systemctl", "reload", unit.stem) as three,
    ):
        texts = [process.communicate(timeout=15)[0] for process in (one, two, three)]
        assert [process.returncode for process in (one, two, three)] == [0, 0, 0], texts
    unit.await_states({"4": "active"})
    assert any("is under way: waiting for it" in text for text in texts)


def test_interrupted_by_hand(rolled: Setup) -> None:
    """Ctrl-C in a roll leaves the old serving, and nothing of the new."""
    unit = rolled(PLAIN_WORKER)
    unit.write(SLOW, "two")
    with unit.beside(*unit.by_hand("roll")) as roll:
        unit.await_states({"1": "active", "2": "activating"})
        os.killpg(roll.pid, signal.SIGINT)
        text, _ = roll.communicate(timeout=10)
    assert "interrupted" in text
    unit.await_states({"1": "active"})


def test_daemon_reload_in_mid_drain(rolled: Setup) -> None:
    """A daemon-reload while the old one drains, past its TimeoutStopSec=, harms neither."""
    unit = rolled(HOLDING)
    unit.write(PLAIN_WORKER, "two")
    unit.reload()
    time.sleep(2.2)  # until the configured timeout has passed, nothing tells of which
    for _ in range(3):
        unit.box.daemon_reload()
    assert unit.states() == {"1": "deactivating", "2": "active"}
    unit.finish_jobs()
    unit.await_states({"2": "active"})
    assert "job done: one" in unit.text("1")


def test_isolate(rolled: Setup, sandbox: Sandbox) -> None:
    """`systemctl isolate` of a target that wants the anchor leaves the generation; of another it drains."""
    unit = rolled(PLAIN_WORKER)
    line = "[Unit]\nAllowIsolate=yes\nRequires=basic.target\nAfter=basic.target\n"
    sandbox.unit(f"{unit.stem}-with.target", f"{line}Wants={unit.name}\n")
    sandbox.unit(f"{unit.stem}-without.target", line)
    sandbox.daemon_reload()
    sandbox.systemctl("isolate", f"{unit.stem}-with.target")
    assert unit.states() == {"1": "active"}
    sandbox.systemctl("isolate", f"{unit.stem}-without.target")
    unit.await_states({})
    unit.await_anchor("inactive")


# -- the options


def test_workers(rolled: Setup) -> None:
    """`--workers 3`: three instances a generation, rolled together; one that fails takes the new ones with it."""
    unit = rolled(PLAIN_WORKER, roll="--workers 3")
    assert list(unit.states()) == ["1-1", "1-2", "1-3"]
    unit.write("import os, sys\nos.environ['INSTANCE'].endswith('-2') and sys.exit('no')\n" + PLAIN_WORKER)
    unit.reconfigure(Environment="INSTANCE=%i")
    assert unit.command("reload").returncode != 0
    unit.await_states({f"1-{number}": "active" for number in (1, 2, 3)})
    unit.write(PLAIN_WORKER)
    unit.reload()
    unit.await_states({f"{unit.newest()}-{number}": "active" for number in (1, 2, 3)})


def test_max_generations(rolled: Setup) -> None:
    """A roll beyond --max-generations is refused with what still runs; nothing is killed, and later it works."""
    unit = rolled(HOLDING, roll="--max-generations 2")
    unit.reload()
    for verb in ("reload", "restart"):
        assert unit.command(verb).returncode != 0
        assert unit.states() == {"1": "deactivating", "2": "active"}
    said = unit.journal()
    assert "2 generations" in said
    assert f"{unit.stem}@1  draining for" in said
    assert 'oldest "export"' in said
    assert f"{unit.stem}@2  serving for" in said
    unit.finish_jobs()
    unit.await_states({"2": "active"})
    unit.reload()


def test_release(rolled: Setup, sandbox: Sandbox) -> None:
    """`--release`: the instance's name is the release, which its folder has; a link names the one to run."""
    unit = rolled(None, roll="--release /srv/roll-release/current", WorkingDirectory="/srv/roll-release/releases/%i")
    for release in ("2026-11-22.1", "v2"):
        sandbox.write(f"/srv/roll-release/releases/{release}/name", release)
    unit.write("print('working in', open('name').read(), flush=True)" + HOLDING)
    link = ("ln", "-sfn", "-T")
    sandbox.run(*link, "releases/2026-11-22.1", "/srv/roll-release/current")
    unit.start()
    assert unit.states() == {"2026-11-22.1": "active"}
    sandbox.run(*link, "releases/v2", "/srv/roll-release/current")
    unit.reload()
    assert unit.states() == {"2026-11-22.1": "deactivating", "v2": "active"}
    assert "working in v2" in unit.text("v2")
    done = unit.run("roll", "--release", "2026-11-22.1")
    assert done.returncode == 4
    assert "still drains" in done.stderr
    done = unit.run("roll", "--release", "v2")
    assert done.returncode == 0
    assert "serves already" in done.stdout
    done = unit.run("roll", "--release", "v3")
    assert done.returncode == 1
    assert "WorkingDirectory= is not there" in done.stderr
    unit.await_states({"2026-11-22.1": "deactivating", "v2": "active"})


def test_progress_by_hand(rolled: Setup) -> None:
    """A person sees each step."""
    unit = rolled(PLAIN_WORKER)
    done = unit.run("roll")
    assert re.sub(r"\d\.\d s", "N s", done.stdout).splitlines() == [
        f"{unit.stem}@2: starting",
        f"{unit.stem}@2: up after N s",
        f"{unit.stem}@2: serving; {unit.stem}@1: draining in the background",
    ]
    assert unit.run("drain").returncode == 0
    assert unit.states() == {}


def test_changed_unit(rolled: Setup) -> None:
    """The next generation runs with the unit as it is on disk, and nobody is sent to daemon-reload for it."""
    unit = rolled(PLAIN_WORKER)
    unit.box.unit(f"{unit.stem}@.service.d/later.conf", "[Unit]\nDescription=later\n")
    assert "daemon-reload" not in unit.run("roll").stdout
    assert unit.box.show(f"{unit.stem}@2.service", "Description") == {"Description": "later"}


def test_changed_unit_of_a_release_that_failed(rolled: Setup) -> None:
    """A release that ended badly, which systemd therefore still knows, is read anew as well when it comes back."""
    unit = rolled(HOLDING)
    unit.run("roll", "--release", "v1")
    unit.run("roll")
    unit.box.systemctl("kill", "--signal=KILL", f"{unit.stem}@v1.service")
    unit.await_states({"1": "deactivating", "2": "active"})
    assert unit.instances()["v1"].active == "failed"
    unit.box.unit(f"{unit.stem}@.service.d/later.conf", "[Unit]\nDescription=later\n")
    assert unit.run("roll", "--release", "v1").returncode == 0
    assert unit.box.show(f"{unit.stem}@v1.service", "Description") == {"Description": "later"}


def test_says_what_to_do(rolled: Setup, sandbox: Sandbox) -> None:
    """What cannot be rolled is said, with what to do: 3."""
    unit = rolled(None)
    for words, hint in (
        (("nowhere",), "nowhere.service: systemctl says not-found"),
        ((unit.stem,), f"{unit.name} is inactive: systemctl start {unit.stem}"),
    ):
        done = sandbox.run(COMMAND, "roll", *words, check=False, env={"PYTHONPATH": str(CHECKOUT)})
        assert (done.returncode, hint in done.stderr) == (3, True), done.stderr
    sandbox.unit(f"{unit.stem}-alone.service", sandbox.read(f"/run/systemd/system/{unit.name}"))
    done = sandbox.systemctl("start", f"{unit.stem}-alone", check=False)
    assert done.returncode != 0
    assert f"{unit.stem}-alone@.service must be there" in sandbox.journal(f"{unit.stem}-alone.service")
    sandbox.systemctl("stop", f"{unit.stem}-alone")


# -- the listener


@pytest.mark.parametrize("setting", ["yes", "no"])
def test_nonblocking(rolled: Setup, sandbox: Sandbox, free_port: int, setting: str) -> None:
    """NonBlocking=yes keeps an old generation's listener from blocking its loop; the control shows that without it would."""
    code = """
    import asyncio, os, socket
    async def main():
        listener = socket.socket(fileno=3)
        listener.setblocking(False)
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        await asyncio.Event().wait()
    asyncio.run(main())
    """
    late = code.replace("listener.setblocking(False)", "pass")  # has not come to that yet
    unit = rolled(code, port=free_port, NonBlocking=setting)
    pid = unit.instances()["1"].pid
    unit.write(late)
    sandbox.systemctl("start", f"{unit.stem}@2")
    flags = int(re.findall(r"flags:\s+(\d+)", sandbox.read(f"/proc/{pid}/fdinfo/3"))[0], 8)
    assert bool(flags & os.O_NONBLOCK) == (setting == "yes")


@pytest.mark.timeout(60)
def test_several_listeners(rolled: Setup, sandbox: Sandbox, free_port: int) -> None:
    """A service with two sockets is rolled and stopped with both."""
    code = """
    import requiem_systemd as requiem
    requiem.initialize()
    names = sorted(requiem.listeners())
    requiem.ready(" ".join(names))
    requiem.wait_begin()
    """
    unit = rolled(None, port=free_port)
    second = f"{unit.stem}-admin.socket"
    text = f"[Socket]\nListenStream=/run/requiem-tests/{unit.stem}\nFileDescriptorName=admin\nService={unit.name}\n"
    sandbox.unit(second, text)
    sandbox.unit(f"{unit.name}.d/second.conf", f"[Unit]\nRequires={second}\nAfter={second}\n")
    sandbox.unit(f"{unit.stem}@.service.d/second.conf", f"[Service]\nSockets={second}\n")
    sandbox.daemon_reload()
    unit.write(code)
    unit.start()
    unit.command("restart", check=True)
    assert unit.instances()["2"].text == "admin http"
    unit.stop()
    assert unit.states() == {}
    for name in (second, f"{unit.stem}.socket"):
        assert sandbox.show(name, "ActiveState")["ActiveState"] == "inactive"


# -- any service


QUEUE = """
import os, pathlib, time
import requiem_systemd as requiem

state = pathlib.Path(os.environ["STATE_DIRECTORY"])
for name in ("queue", "mine"):
    (state / name).mkdir(exist_ok=True)

def fetch():
    for path in (state / "queue").iterdir():
        try:
            return path.rename(state / "mine" / path.name)
        except FileNotFoundError:
            continue  # another generation was quicker
    time.sleep(0.01)

requiem.initialize()
requiem.ready("VERSION")
log = os.open(state / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for job in requiem.jobs(fetch):
    if job.name in ("10", "50", "90"):
        time.sleep(3)  # past the next roll
    os.write(log, f"{job.name} VERSION\\n".encode())
"""


@pytest.mark.timeout(60)
def test_queue_worker(rolled: Setup, sandbox: Sandbox) -> None:
    """A worker without a listener, built on jobs(): over three rolls each job is done once."""
    unit = rolled(QUEUE, StateDirectory="%p", roll="--workers 2")
    folder = f"/var/lib/private/{unit.stem}"
    produce = 'i=0; while [ $i -lt 300 ]; do : > "$0/queue/$i"; sleep 0.02; i=$((i + 1)); done'
    with unit.beside("sh", "-c", produce, folder) as producer:
        for version in ("two", "three", "four"):
            unit.write(QUEUE, version)
            unit.reload()
        producer.wait(30)
    unit.box.run("sh", "-c", f"until [ -z $(ls {folder}/queue | head -1) ]; do sleep 0.02; done")
    unit.stop()
    lines = [line.split() for line in sandbox.read(f"{folder}/log").splitlines()]
    assert list(range(300)) == sorted(int(line[0]) for line in lines)
    assert {"one", "two", "three", "four"} == {line[1] for line in lines}


# -- the manager's life


@pytest.mark.timeout(60)
def test_shutdown(request: pytest.FixtureRequest, python: str, tmp_path: Path) -> None:
    """A shutdown waits for the drains of all generations, though nobody stops the anchor first."""
    code = HOLDING.replace("while not", "begun = time.monotonic()\nwhile time.monotonic() < begun + 4 and not")
    code = code.replace("held.done()", f"pathlib.Path('{tmp_path}/VERSION').touch()\nheld.done()")
    with booted(request.config, bind=[tmp_path]) as box:
        unit = Rolled(box, "down", python)
        unit.install(
            settings={"DynamicUser": "no", "User": "", "ReadWritePaths": str(tmp_path), "PrivateTmp": "no"}
        )
        unit.write(code)
        unit.start()
        unit.write(code, "two")
        unit.reload()
        box.systemctl("poweroff", check=False)
        deadline = time.monotonic() + 20
        while not {"one", "two"} <= {path.name for path in tmp_path.iterdir()}:
            assert time.monotonic() < deadline, list(tmp_path.iterdir())
            time.sleep(0.05)


def test_enabled(sandbox: Sandbox) -> None:
    """`systemctl enable` of the anchor alone has the service started at boot, and its socket."""
    for suffix in (".service", "@.service", ".socket"):
        text = (CHECKOUT / f"units/rolling{suffix}").read_text()
        sandbox.write(f"/etc/systemd/system/shop{suffix}", text)
    sandbox.systemctl("enable", "shop")
    for wants in ("multi-user.target.wants/shop.service", "sockets.target.wants/shop.socket"):
        sandbox.run("test", "-e", f"/etc/systemd/system/{wants}")
    sandbox.systemctl("disable", "shop")
    sandbox.run("sh", "-c", "rm /etc/systemd/system/shop*")


@pytest.mark.timeout(60)
def test_user_manager(sandbox: Sandbox, python: str) -> None:
    """A user's own manager rolls, reloads and stops in the same way, by --user."""
    if sandbox.systemctl("start", "user@0.service", check=False).returncode:
        pytest.skip("no user manager here")
    environ = {"XDG_RUNTIME_DIR": "/run/user/0", "PYTHONPATH": str(CHECKOUT)}
    folder = "/run/user/0/systemd/user"
    sandbox.write("/srv/mine/app.py", HOLDING.replace("FOLDER", "/srv/mine").replace("VERSION", "one"))
    sandbox.write(COMMAND, f'#!/bin/sh\nexec {python} -m requiem_systemd "$@"\n', 0o755)
    verb = f"Environment=PYTHONPATH={CHECKOUT}\nExecStart={COMMAND} roll --user %N\nExecReload={COMMAND} roll --user %N\n"
    stop = f"ExecStopPost={COMMAND} drain --user %N\nTimeoutStopSec=infinity\n"
    sandbox.write(f"{folder}/mine.service", f"[Service]\nType=oneshot\nRemainAfterExit=yes\n{verb}{stop}")
    command = f"Environment=PYTHONPATH={CHECKOUT}\nExecStart={python} /srv/mine/app.py\n"
    sandbox.write(f"{folder}/mine@.service", f"[Service]\nType=notify\nKillMode=mixed\nTimeoutStopSec=2\n{command}")

    def systemctl(*words: str) -> str:
        return sandbox.run("systemctl", "--user", *words, env=environ).stdout

    try:
        systemctl("daemon-reload")
        systemctl("start", "mine")
        systemctl("reload", "mine")
        assert systemctl("show", "-P", "ActiveState", "mine@1", "mine@2").split() == ["deactivating", "active"]
        sandbox.write("/srv/mine/app.py", "import nowhere")
        done = sandbox.run(COMMAND, "roll", "--user", "mine", check=False, env=environ)
        assert done.returncode == 1
        assert "No module named 'nowhere'" in done.stderr
        assert "--user" in sandbox.run(COMMAND, "roll", "mine", check=False, env=environ).stderr
        sandbox.write("/srv/mine/release", "")
        systemctl("stop", "mine")
        assert systemctl("show", "-P", "ActiveState", "mine@1", "mine@2").split() == ["inactive", "inactive"]
    finally:
        sandbox.systemctl("stop", "user@0.service", check=False)
