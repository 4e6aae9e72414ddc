"""The unit templates and drop-ins: systemd understands every line, finds little to fear in them, and runs services under them."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.conftest import any_port
from tests.systemd.conftest import Unit, lacks
from tests.systemd.rolling import settings_text
from tests.systemd.sandbox import CHECKOUT
from tests.systemd.users import User
from tests.unit.test_doctor import CORPUS, DROP_INS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.sandbox import Sandbox

UNITS: Final = CHECKOUT / "units"
EXAMPLES: Final = CHECKOUT / "examples"
FOLDER: Final = "/run/requiem-verify"
#: A service that needs nothing but the library, and has a job when it is told to stop.
HOLDING: Final = """
    import os, time
    import requiem_systemd as requiem

    requiem.initialize()
    with requiem.track("export"):
        requiem.ready(os.environ.get("PORT", "up"))
        requiem.wait_begin()
        time.sleep(float(os.environ.get("EXAMPLE_SECONDS", "0")))
        print("export: done", flush=True)
    requiem.wait()
"""
#: What is left to it: capabilities; whether the system, the home and the control groups are read-only; what is in /tmp; the kernel's log.
PROBING: Final = """
import os

def read_only(path):
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)

with open("/proc/self/status") as file:
    capabilities = int(next(line for line in file if line.startswith("CapBnd:")).split()[1], 16)
home, kernel = os.path.expanduser("~"), os.access("/proc/kmsg", os.R_OK)
print("sandbox:", capabilities, read_only("/usr"), read_only(home), read_only("/sys/fs/cgroup"), os.listdir("/tmp"), kernel, flush=True)
"""
CLUSTER: Final = """
    import requiem_systemd as requiem

    def serve(service):
        requiem.listener("http")
        requiem.ready("up")
        requiem.wait()

    requiem.initialize()
    requiem.Cluster(serve, workers=2).run()
"""
GENERIC: Final[dict[str, str | Path]] = {"app.py": HOLDING}
#: What runs under each template: its files, by the template's name. (Celery and RQ, which need a broker: test_queues.)
PROGRAMS: Final[dict[str, dict[str, str | Path]]] = {
    "plain.service": GENERIC,
    "socket-activated.service": GENERIC,
    "notify-reload.service": GENERIC,
    "instance@.service": GENERIC,
    "rolling@.service": GENERIC,
    "cluster.service": {"app.py": CLUSTER},
    "uvicorn.service": {"app.py": EXAMPLES / "04_fastapi.py"},
    "gunicorn.service": {"app.py": EXAMPLES / "13_flask.py", "gunicorn.conf.py": EXAMPLES / "13_gunicorn.conf.py"},
    "aiohttp.service": {"app.py": EXAMPLES / "12_aiohttp.py"},
    "grpc.service": {"app.py": EXAMPLES / "17_grpc_aio.py"},
}
#: What those import that not every Python of the tests has.
NEEDS: Final = {"uvicorn.service": "fastapi", "gunicorn.service": "gunicorn, flask", "aiohttp.service": "aiohttp", "grpc.service": "grpc"}
#: Templates that systemd, or what they run, must have a certain version for.
SINCE: Final = {
    "notify-reload.service": ("253", "Type=notify-reload"),
    "gunicorn.service": ("25", "arbiter that the adapter can hold", "gunicorn"),
}
NOTIFY_RELOAD: Final = 253
#: Drop-ins that are for newer ones.
NEWER: Final = {"notify-reload": ("253", "Type=notify-reload"), "restart-pauses": ("254", "RestartSteps=")}


def executables(text: str, stem: str) -> list[str]:
    """Return the programs that a unit starts."""
    found = re.findall(r"^Exec\w+=([/%]\S+)", text, re.MULTILINE)
    return [program.replace("%N", stem).replace("%p", stem.partition("@")[0]).replace("%h", "/root") for program in found]


def install(box: Sandbox, path: str, text: str) -> None:
    """Write a unit, or a drop-in, and what stands for the programs that it starts."""
    box.write(path, text)
    name = Path(path).parent.name.removesuffix(".d") if path.endswith(".conf") else Path(path).name
    for program in executables(text, Path(name).stem):
        if box.run("test", "-e", program, check=False).returncode:
            box.write(program, "#!/bin/sh\n", mode=0o755)


# -- what systemd says of the lines


@pytest.fixture(scope="module")
def folder(sandbox: Sandbox) -> str:
    """Return a folder inside with all templates, and with the programs that they start."""
    for path in UNITS.glob("*.s*"):
        install(sandbox, f"{FOLDER}/{path.name}", path.read_text())
    return FOLDER


def verified(box: Sandbox, path: str) -> tuple[int, list[str]]:
    """Return how `systemd-analyze verify` ends, and what it says of a unit and its drop-ins."""
    user = ("--user",) if path.endswith("/user.service") else ()
    env = {"XDG_RUNTIME_DIR": "/run", "SYSTEMD_UNIT_PATH": f"{Path(path).parent}:"}
    done = box.run("systemd-analyze", *user, "verify", "--man=no", path, check=False, env=env)
    stem = Path(path).stem.removesuffix("@1")
    return done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if stem in line]


@pytest.mark.parametrize("name", [path.name for path in sorted(UNITS.glob("*.s*"))])
def test_verified(sandbox: Sandbox, folder: str, name: str) -> None:
    """`systemd-analyze verify` has nothing to say; of the type that is newer than 252 it says just that."""
    status, said = verified(sandbox, f"{folder}/{name.replace('@.', '@1.')}")
    if sandbox.systemd_version < NOTIFY_RELOAD:
        said = [line for line in said if "Failed to parse service type, ignoring: notify-reload" not in line]
    assert said == []
    assert status == 0


@pytest.mark.parametrize(("drop_in", "unit"), [one[:2] for one in DROP_INS], ids=[f"{one[0]}-{one[1]}" for one in DROP_INS])
def test_drop_in_verified(sandbox: Sandbox, drop_in: str, unit: str) -> None:
    """Nor has it of a server's documented unit with the drop-in for it."""
    place = f"{FOLDER}-{drop_in}-{unit}"
    install(sandbox, f"{place}/{unit}", (CORPUS / unit).read_text())
    for name in ("gunicorn.socket", unit.replace(".service", ".socket")):
        install(sandbox, f"{place}/{name}", f"[Socket]\nListenStream=80\nService={unit}\n")
    install(sandbox, f"{place}/{unit}.d/requiem.conf", (UNITS / "drop-ins" / f"{drop_in}.conf").read_text())
    assert verified(sandbox, f"{place}/{unit.replace('@.', '@1.')}") == (0, [])


@pytest.mark.parametrize(
    ("drop_in", "unit"),
    [
        pytest.param(name, unit, marks=[pytest.mark.since(*NEWER[name])] if name in NEWER else [])
        for name in ("notify-reload", "restart-pauses", "hardening")
        for unit in ("plain", "socket-activated", "cluster", "instance@", "user", "rolling@")
        if (name, unit) != ("hardening", "user")  # of the system's units: a user's manager has no DynamicUser=
    ],
)
def test_newer_drop_in_verified(sandbox: Sandbox, drop_in: str, unit: str) -> None:
    """Nor of a template with a drop-in for any unit, from the version on that the drop-in names."""
    place = f"{FOLDER}-{drop_in}-{unit}"
    for path in (UNITS / f"{unit}.service", UNITS / "plain.socket", UNITS / "rolling.socket", UNITS / "rolling.service"):
        install(sandbox, f"{place}/{path.name}", path.read_text())
    install(sandbox, f"{place}/{unit}.service.d/more.conf", (UNITS / "drop-ins" / f"{drop_in}.conf").read_text())
    name = f"{unit}1.service" if unit.endswith("@") else f"{unit}.service"
    assert verified(sandbox, f"{place}/{name}") == (0, [])


# -- services that run under them


@pytest.fixture(scope="module")
def running(sandbox: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Start a service under each template, all side by side; return the units by the templates' names."""
    usable = {name for name in PROGRAMS if name not in SINCE or not lacks(request.config, *SINCE[name])}
    usable -= {name for name, modules in NEEDS.items() if sandbox.run(python, "-c", f"import {modules}", check=False).returncode}
    units = {name: name.replace("@.", "@1.") for name in sorted(usable)}
    written = [_socket(sandbox, name) for name in ("plain.socket", "rolling.socket")]
    for name in units:
        written.append(f"/run/systemd/system/{name}")
        sandbox.write(written[-1], (UNITS / name).read_text())
        stem = name.partition(".")[0].removesuffix("@")
        _program(sandbox, python, stem, PROGRAMS[name])
        own = {"Environment": [f"PYTHONPATH={CHECKOUT}:/srv/{stem}", f"EXAMPLE_PORT={any_port()}"]}
        written.append(f"{written[-1]}.d")
        sandbox.write(f"{written[-1]}/test.conf", f"[Service]\n{settings_text(own)}")
    sandbox.daemon_reload()
    try:
        # What does not start is each test's own affair.
        sandbox.systemctl("start", *units.values(), timeout=120, check=False)
        yield units
    finally:
        sandbox.systemctl("stop", "plain.socket", "rolling.socket", *units.values(), check=False)
        sandbox.run("rm", "-r", *written)
        sandbox.daemon_reload()


def _socket(box: Sandbox, name: str) -> str:
    """Write a socket of the templates, at an address of its own."""
    address = f"ListenStream=127.0.0.1:{any_port()}"
    path = f"/run/systemd/system/{name}"
    box.write(path, (UNITS / name).read_text().replace("ListenStream=8080", address))
    return path


def _program(box: Sandbox, python: str, stem: str, files: dict[str, str | Path], home: str = "/srv") -> None:
    """Write what a service runs, at the place that its template names."""
    for file, source in files.items():
        text = textwrap.dedent(source) if isinstance(source, str) else source.read_text()
        box.write(f"{home}/{stem}/{file}", text)
    box.run("rm", "-rf", f"{home}/{stem}/venv")  # where there is what stands for it, see install()
    box.run("ln", "-s", Path(python).parents[1], f"{home}/{stem}/venv")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.since(*SINCE[name])] if name in SINCE else []) for name in PROGRAMS])
def test_secured(sandbox: Sandbox, running: dict[str, str], name: str) -> None:
    """`systemd-analyze security` gives 1.5 at most for a service that runs, and has said that it can serve."""
    if name not in running:
        pytest.skip("this Python lacks what it needs")
    shown = sandbox.show(running[name], "ActiveState", "NRestarts")
    assert shown == {"ActiveState": "active", "NRestarts": "0"}, sandbox.journal(running[name])
    done = sandbox.run("systemd-analyze", "security", "--threshold=15", "--no-pager", running[name], check=False)
    assert done.returncode == 0, done.stdout[-1500:]


def test_no_template_is_left_out() -> None:
    """Each service among the templates is one of those that are run somewhere; anchors have no process."""
    elsewhere = {"celery.service", "rq.service", "user.service", "rolling.service"}
    assert set(PROGRAMS) | elsewhere == {path.name for path in UNITS.glob("*.service")}


@pytest.mark.timeout(60)
def test_instances(sandbox: Sandbox, running: dict[str, str]) -> None:
    """An instance knows what it is, and stops alone."""
    sandbox.systemctl("start", "instance@2.service")
    try:
        one, two = Unit(sandbox, running["instance@.service"]), Unit(sandbox, "instance@2.service")
        assert (one.status_text, two.status_text) == ("1", "2")
        assert two.stop().status == 0
        assert (one.state, two.state) == ("active", "inactive")
    finally:
        sandbox.systemctl("stop", "instance@2.service")


@pytest.fixture
def user(sandbox: Sandbox) -> Iterator[User]:
    """Return a user without rights, whose manager runs."""
    # nspawn puts a file on it that is deleted, over which nothing can be mounted (ProtectKernelLogs=); no machine has it so
    sandbox.run("umount", "/proc/kmsg", check=False)
    with User(sandbox, "somebody", 1234) as made:
        yield made


@pytest.mark.timeout(60)
def test_user(user: User, python: str) -> None:
    """Under a user's own manager the sandbox holds, a job past the timeout too, the reload has a verdict, and history knows of it."""
    own = {"Environment": [f"PYTHONPATH={CHECKOUT}:{user.home}/user", "EXAMPLE_SECONDS=4"], "TimeoutStopSec": 2}
    _program(user.box, python, "user", {"app.py": PROBING + textwrap.dedent(HOLDING)}, home=user.home)
    user.write(".config/systemd/user/user.service", (UNITS / "user.service").read_text())
    user.write(".config/systemd/user/user.service.d/test.conf", f"[Service]\n{settings_text(own)}")
    # systemd forgets a unit that has ended well, with its result, unless another refers to it
    user.write(".config/systemd/user/holder.target", "[Unit]\nAfter=user.service\n")
    user.systemctl("daemon-reload")
    user.systemctl("start", "holder.target", "user")
    exposure = user.run("systemd-analyze", "--user", "security", "--threshold=15", "--no-pager", "user.service", check=False)
    print(exposure.stdout[-200:])
    assert exposure.returncode == 0, exposure.stdout[-1500:]
    user.systemctl("reload", "user")
    user.systemctl("stop", "user")
    shown = user.systemctl("show", "--property=Result,ExecMainStatus", "user").stdout.split()
    assert set(shown) == {"Result=success", "ExecMainStatus=0"}
    user.box.run("journalctl", "--sync")
    said = user.run("journalctl", "--output=cat", "_SYSTEMD_USER_UNIT=user.service").stdout.splitlines()
    assert "export: done" in said
    assert "sandbox: 0 True True True [] False" in said
    done = user.run(python, "-m", "requiem_systemd", "history", "--user", "user", "--json", PYTHONPATH=str(CHECKOUT))
    drain, reload = json.loads(done.stdout)["happenings"]
    assert (drain["what"], drain["outcome"], drain["drain"]["stop_timeout"], drain["drain"]["outlived"]) == ("drain", "ended", 2.0, 1)
    assert [bar["label"] for bar in drain["drain"]["bars"]] == ["export"]
    assert (reload["what"], reload["outcome"]) == ("reload", "ok")
