"""What a reload, a restart, a daemon-reload and a SIGHUP pick up of what has changed on disk: docs/deploying.md, held against systemd."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.systemd.conftest import UNITS, Unit, unit_text
from tests.systemd.rolling import COMMAND, Rolled
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.systemd.sandbox import Sandbox

PAGE: Final = (CHECKOUT / "docs" / "deploying.md").read_text(encoding="utf-8")

# -- the table of the page

#: The columns, by what they begin with, and what the service says of each.
COLUMNS: Final = {
    "code": "code",
    "virtual environment": "venv",
    "Python itself": "python",
    "`Environment=`": "environment",
    "`EnvironmentFile=`": "file",
    "limits": "limit",
    "sandbox": "sandbox",
    "systemd's own": "own",
    "what your reload handler reads": "config",
}
KINDS: Final = ("plain", "rolling", "cluster")
VERBS: Final = ("reload", "restart", "daemon-reload", "SIGHUP")
YES, LATER, NO = "yes", "yes, after daemon-reload", "no"


def table() -> dict[tuple[str, str], dict[str, str]]:
    """Read the page's table: for each kind and verb what becomes of each thing."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
    start = next(number for number, cells in enumerate(rows) if cells[:2] == ["kind", "verb"])
    names = [COLUMNS[next(begin for begin in COLUMNS if title.startswith(begin))] for title in rows[start][2:]]
    return {(cells[0], cells[1].strip("`")): dict(zip(names, cells[2:], strict=True)) for cells in rows[start + 1 : start + 13]}


def test_table_is_whole() -> None:
    """The page has a row for each kind and verb, a cell for each thing, and three kinds of cells."""
    found = table()
    assert {(kind, verb) for kind in KINDS for verb in VERBS} == set(found)
    assert {frozenset(COLUMNS.values())} == {frozenset(cells) for cells in found.values()}
    assert {YES, LATER, NO} == {cell for cells in found.values() for cell in cells.values()}


# -- a service that says what it runs with

APP: Final = """
import json, os, pathlib, resource, sys, threading
import installed
import requiem_systemd as requiem

FOLDER = pathlib.Path("@FOLDER@")
said = {
    "code": "@TOKEN@",
    "venv": installed.VERSION,
    "python": os.path.realpath("/proc/self/exe"),
    "environment": os.environ["SET"],
    "file": os.environ["FILED"],
    "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "sandbox": [os.path.exists("/tmp/@NAME@"), bool(os.statvfs("/usr").f_flag & os.ST_RDONLY)],
}

def say():
    said["config"] = (FOLDER / "config").read_text()
    new = FOLDER / f"answer.{os.getpid()}"
    new.write_text(json.dumps(said))
    new.rename(FOLDER / "answer")

def serve(service):
    requiem.on("reload", say)
    say()
    requiem.ready("up")
    requiem.wait_begin()

@RUN@
"""
RUN: Final = {
    "plain": "serve(requiem.initialize())",
    "rolling": "serve(requiem.initialize())",
    "cluster": "requiem.Cluster(serve, workers=1).run()",
}


class Setting(NamedTuple):
    """What a service of a test finds on disk, once before and once after it has changed."""

    token: str
    limit: int
    sandbox: tuple[str, str]
    sees: list[bool]  # a file in the real /tmp; that /usr is read-only
    timeout: str


OLD: Final = Setting("one", 601, ("no", "no"), [True, False], "1min 1s")
NEW: Final = Setting("two", 602, ("yes", "full"), [False, True], "1min 2s")


class Service:
    """A service of one kind, of which everything can be changed on disk."""

    def __init__(self, box: Sandbox, kind: str, unit: Unit, python: str) -> None:
        """Store; `install` writes."""
        self.box = box
        self.kind = kind
        self.unit = unit
        self.name = unit.name.removesuffix(".service")
        self.folder = f"/srv/{self.name}"
        self._python = python

    # -- files

    def install(self) -> None:
        """Write everything as it is before."""
        self.box.write(f"/tmp/{self.name}", "")
        for token in ("one", "two"):
            make_python(self.box, self._python, f"{self.folder}/pythons/{token}")
            make_venv(self.box, self._python, f"{self.folder}/venvs/{token}", base=f"{self.folder}/python/bin/python", version=token)
        self.change(OLD)
        command = f"{self.folder}/venv/bin/python -u {self.folder}/app.py"
        if isinstance(self.unit, Rolled):
            own = {"ExecStart": ["", command], "DynamicUser": "no", "User": "", "EnvironmentFile": f"{self.folder}/environment"}
            self.unit.install(settings={**own, "ReadWritePaths": self.folder})
            return
        usual = {
            "Environment": f"PYTHONPATH={CHECKOUT}",
            "EnvironmentFile": f"{self.folder}/environment",
            "RuntimeDirectory": self.name,
            "ExecReload": f"{self._python} -m requiem_systemd reload --pid $MAINPID",
        }
        self.box.unit(self.unit.name, unit_text(command, usual))
        self.box.daemon_reload()

    def change(self, to: Setting) -> None:
        """Change everything that can be: code, virtual environment, Python, environment, limits, sandbox, configuration."""
        app = APP.replace("@TOKEN@", to.token).replace("@FOLDER@", self.folder).replace("@NAME@", self.name).replace("@RUN@", RUN[self.kind])
        self.box.write(f"{self.folder}/app.py", app)
        for what in ("venv", "python"):
            self.box.run("ln", "-sfn", f"{what}s/{to.token}", f"{self.folder}/{what}")
        self.box.write(f"{self.folder}/environment", f"FILED={to.token}\n")
        self.configure(to.token)
        tmp, system = to.sandbox
        lines = f"Environment=SET={to.token}\nLimitNOFILE={to.limit}\nPrivateTmp={tmp}\nProtectSystem={system}\n"
        template = "@" if self.kind == "rolling" else ""
        timeout = f"TimeoutStopSec={to.timeout}\n"
        self.box.unit(f"{self.name}{template}.service.d/zz.conf", f"[Service]\n{lines}{timeout}")

    def configure(self, token: str) -> None:
        """Change what a reload handler reads."""
        self.box.write(f"{self.folder}/config", token)

    # -- what it runs with

    @property
    def process_unit(self) -> str:
        """The unit that has the process: of a rolled service the generation that serves."""
        if isinstance(self.unit, Rolled):
            (serving,) = (one.unit for one in self.unit.instances().values() if one.live)
            return serving
        return self.unit.name

    def answer(self) -> dict[str, Any]:
        """Return what it says of itself, and systemd of it."""
        said: dict[str, Any] = json.loads(self.box.read(f"{self.folder}/answer"))
        return {**said, "own": self.box.show(self.process_unit, "TimeoutStopUSec")["TimeoutStopUSec"]}

    def expected(self, setting: Setting) -> dict[str, Any]:
        """Return what it says where it runs with all of a setting."""
        tokens = dict.fromkeys(("code", "venv", "environment", "file", "config"), setting.token)
        python = f"{self.folder}/pythons/{setting.token}/bin/python"
        return {**tokens, "python": python, "limit": setting.limit, "sandbox": setting.sees, "own": setting.timeout}

    def do(self, verb: str) -> None:
        """Type what the page says, and wait until it has been heeded."""
        if verb == "daemon-reload":
            self.box.daemon_reload()
        elif verb == "SIGHUP":
            self.box.systemctl("kill", "-s", "HUP", "--kill-whom=main", self.process_unit)
        else:
            self.box.systemctl(verb, self.unit.name)

    def await_config(self, token: str) -> dict[str, Any]:
        """Wait until it has read its configuration, as each of the verbs but daemon-reload has it do, and return what it says."""
        deadline = time.monotonic() + 5
        while (said := self.answer())["config"] != token:
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        return said


def executable(box: Sandbox, python: str) -> str:
    """Return the file of a Python, past all links."""
    return box.run("readlink", "-f", python).stdout.strip()


def make_python(box: Sandbox, python: str, folder: str) -> None:
    """Make a Python of its own: the same, as another file."""
    script = 'mkdir -p "$2/bin" && cp "$1" "$2/bin/python" && ln -s "$3/lib" "$2/lib"'
    prefix = box.run(python, "-c", "import sys; print(sys.base_prefix)").stdout.strip()
    box.run("sh", "-c", script, "make_python", executable(box, python), folder, prefix)


def make_venv(box: Sandbox, python: str, folder: str, *, base: str, version: str) -> None:
    """Make a virtual environment as venv does, in which the module `installed` has a version, and there is what `python` has."""
    code = "import site, sys; print('python%d.%d' % sys.version_info[:2], *site.getsitepackages(), sep='\\n')"
    named, *packages = box.run(python, "-c", code).stdout.splitlines()
    box.write(f"{folder}/pyvenv.cfg", f"home = {base.rpartition('/')[0]}\ninclude-system-site-packages = false\n")
    box.write(f"{folder}/lib/{named}/site-packages/installed.py", f"VERSION = {version!r}\n")
    box.write(f"{folder}/lib/{named}/site-packages/more.pth", "".join(f"import site; site.addsitedir({one!r})\n" for one in packages))
    box.run("sh", "-c", 'mkdir "$1/bin" && ln -s "$2" "$1/bin/python"', "make_venv", folder, base)


def unit_name(request: pytest.FixtureRequest) -> str:
    """Return a test's own name for its units, of 31 letters at most."""
    return "pu-" + re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[-28:].strip("-")


def new_unit(box: Sandbox, name: str, kind: str, python: str) -> Unit:
    """Return the unit that an operator types, of a kind."""
    return Rolled(box, name, python) if kind == "rolling" else Unit(box, f"{name}.service")


def clear(unit: Unit) -> None:
    """End a unit at once, whatever state it is in."""
    if isinstance(unit, Rolled):
        unit.clear()
        return
    unit.box.systemctl("kill", "--signal=KILL", unit.name, check=False)
    unit.box.systemctl("stop", unit.name, check=False)
    unit.box.systemctl("reset-failed", unit.name, check=False)


@pytest.fixture
def installed(sandbox: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Service]]:
    """Return a function that writes and starts a service; it ends with the test."""
    name = unit_name(request)
    made: list[Service] = []

    def installed(kind: str) -> Service:
        unit = new_unit(sandbox, name, kind, python)
        request.node.stash.setdefault(UNITS, []).append(unit)
        service = Service(sandbox, kind, unit, python)
        made.append(service)
        service.install()
        unit.start()
        return service

    yield installed
    for service in made:
        clear(service.unit)


def picked_up(said: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Return what is new in an answer; what is neither old nor new has changed by half."""
    assert {what: value for what, value in said.items() if value not in (old[what], new[what])} == {}
    return {what for what, value in said.items() if value == new[what]}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", KINDS)
def test_picks_up(installed: Callable[[str], Service], kind: str, verb: str) -> None:
    """All has changed on disk: a verb picks up what the page says, at once, or when a daemon-reload came before."""
    service = installed(kind)
    old, new = service.expected(OLD), service.expected(NEW)
    assert service.answer() == old
    service.change(NEW)
    service.do(verb)
    at_once = picked_up(service.answer() if verb == "daemon-reload" else service.await_config("two"), old, new)
    later = at_once
    if verb != "daemon-reload":
        service.configure("three")
        service.do("daemon-reload")
        service.do(verb)
        later = picked_up({**service.await_config("three"), "config": "two"}, old, new)
    found = {what: YES if what in at_once else LATER if what in later else NO for what in new}
    assert table()[kind, verb] == found


def test_sighup_does_not_reach_an_anchor(installed: Callable[[str], Service]) -> None:
    """The unit that an operator types has no process there; the command says so, and fails."""
    service = installed("rolling")
    done = service.box.systemctl("kill", "-s", "HUP", "--kill-whom=main", service.unit.name, check=False)
    assert done.returncode != 0
    assert "No main process" in done.stderr


# -- releases

#: Each release has a job that lasts as long as a file is missing, and only then imports what it needs, beside it and installed.
RELEASE: Final = """
PIN
import os, pathlib, threading, time
import requiem_systemd as requiem

log = os.open("FOLDER/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

def job():
    while not pathlib.Path("FOLDER/go").exists():
        time.sleep(0.02)
    try:
        from late import late
        from installed import VERSION
        write(f"imports {late} {VERSION}")
    except ImportError as error:
        write(f"cannot import: {error}")

def write(text):
    os.write(log, f"TOKEN {text}\\n".encode())

def begin():
    requiem.on("begin", lambda: write("drains"))
    requiem.track(threading.Thread(target=job), label="job").start()

def serve(service):
    begin()
    requiem.ready()
    requiem.wait_begin()

async def app(scope, receive, send):
    assert scope["type"] == "http"

if __name__ == "__main__":
    RUN
else:
    begin()  # it is an application as it is
"""


class Released:
    """A service of releases 41 and 42, whose units and commands are the page's."""

    def __init__(self, box: Sandbox, unit: Unit, python: str) -> None:
        """Store; `install` writes."""
        self.box = box
        self.unit = unit
        self.name = unit.name.removesuffix(".service")
        self.folder = f"/srv/{self.name}"
        self._python = python

    def page(self, kind: str, number: int) -> str:
        """Return a block of the page, with this service's names in it."""
        block: str = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[number]
        named = block.replace("/srv/shop", self.folder).replace(" shop\n", f" {self.name}\n")
        return named.replace("/usr/bin/requiem-systemd", COMMAND)

    def install(self, *texts: str, pin: str = "", run: str = RUN["plain"]) -> None:
        """Write both releases, the link to the first, and units with settings from the page."""
        for release in ("41", "42"):
            folder = f"{self.folder}/releases/{release}"
            app = RELEASE.replace("PIN", pin).replace("FOLDER", self.folder).replace("TOKEN", release).replace("RUN", run)
            self.box.write(f"{folder}/app.py", app)
            self.box.write(f"{folder}/late.py", f"late = {release}")
            make_venv(self.box, self._python, f"{folder}/venv", base=executable(self.box, self._python), version=release)
        self.box.run("ln", "-s", "releases/41", f"{self.folder}/current")
        if isinstance(self.unit, Rolled):
            self.unit.install(settings={"DynamicUser": "no", "User": "", "ReadWritePaths": self.folder})
        else:
            settings = {"Environment": f"PYTHONPATH={CHECKOUT}", "RuntimeDirectory": self.name}
            self.box.unit(self.unit.name, unit_text("/bin/false", settings))
        for suffix, text in zip(("", "@"), texts, strict=False):
            again = "".join(f"{line.partition('=')[0]}=\n" for line in text.splitlines() if line.startswith("Exec"))
            self.box.unit(f"{self.name}{suffix}.service.d/zz.conf", text.replace("[Service]\n", f"[Service]\n{again}"))
        self.box.daemon_reload()
        self.unit.start()

    def log(self) -> list[str]:
        """Return what its processes have written."""
        return self.box.run("cat", f"{self.folder}/log", check=False).stdout.splitlines()

    def await_line(self, begin: str) -> str:
        """Wait until a line that begins so is written, and return it."""
        deadline = time.monotonic() + 15
        while not (lines := [line for line in self.log() if line.startswith(begin)]):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        return lines[0]

    def deploy(self, commands: str) -> tuple[str, str]:
        """Deploy 42 while 41 has a job; return what the job imports when the old process drains, and what one of the new does."""
        with self.box.popen("sh", "-ec", commands) as deploy:
            self.await_line("41 drains")
            self.box.write(f"{self.folder}/go", "")
            assert deploy.wait(15) == 0
        return self.await_line("41 imports"), self.await_line("42 imports")


@pytest.fixture
def released(sandbox: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Released]]:
    """Return a function that prepares a service of a kind with releases; it ends with the test."""
    name = unit_name(request)
    made: list[Unit] = []

    def released(kind: str) -> Released:
        unit = new_unit(sandbox, name, kind, python)
        request.node.stash.setdefault(UNITS, []).append(unit)
        made.append(unit)
        return Released(sandbox, unit, python)

    yield released
    for unit in made:
        clear(unit)


def test_release_of_a_plain_unit(released: Callable[[str], Released]) -> None:
    """The page's unit and commands: the new release runs, and the old process has imported from its own to its end."""
    service = released("plain")
    service.install(service.page("ini", 0))
    assert service.deploy(service.page("sh", 0)) == ("41 imports 41 41", "42 imports 42 42")


def test_release_of_a_rolled_service(released: Callable[[str], Released]) -> None:
    """The page's units and commands: the new release serves while a job of the old runs, which imports from its own."""
    service = released("rolling")
    service.install(service.page("ini", 1), service.page("ini", 2))
    assert service.deploy(service.page("sh", 1)) == ("41 imports 41 41", "42 imports 42 42")
    assert isinstance(service.unit, Rolled)
    service.unit.await_states({"42": "active"})


@pytest.mark.parametrize("number", [3, 4], ids=["of-its-own", "by-serve"])
def test_release_of_a_cluster(released: Callable[[str], Released], number: int, free_port: int) -> None:
    """The page's unit, lines and commands: a reload starts workers of the new release, and the old ones stay with their own."""
    service = released("cluster")
    unit = service.page("ini", number).replace("--workers 4", f"--workers 1 --bind 127.0.0.1:{free_port}")
    service.install(unit, pin=service.page("python", 0), run=RUN["cluster"])
    assert service.deploy(service.page("sh", 2)) == ("41 imports 41 41", "42 imports 42 42")


# -- and what goes wrong without

THROUGH_THE_LINK: Final = "[Service]\nExecStart=/srv/shop/current/venv/bin/python /srv/shop/current/app.py\n"


def test_link_alone(released: Callable[[str], Released]) -> None:
    """Started through the link, a process that drains imports its own code, and packages from the new virtual environment."""
    service = released("plain")
    service.install(THROUGH_THE_LINK.replace("/srv/shop", service.folder))
    assert service.deploy(service.page("sh", 0)) == ("41 imports 41 42", "42 imports 42 42")


def test_link_without_a_reload(released: Callable[[str], Released]) -> None:
    """A worker that crashes between the switch of the link and the reload is replaced by one of the new release."""
    service = released("cluster")
    service.install(service.page("ini", 3), pin=service.page("python", 0), run=RUN["cluster"])
    service.box.run("sh", "-ec", service.page("sh", 2).splitlines()[0])
    (worker,) = service.box.run("sh", "-c", f"cat /proc/{service.unit.main_pid}/task/*/children").stdout.split()
    service.box.run("kill", "-9", worker)
    service.box.write(f"{service.folder}/go", "")
    assert service.await_line("4") == "42 imports 42 42"


#: What an upgrade in place does to a file that a job has not imported yet.
UPGRADES: Final = {
    "replaced": ("cp -a --remove-destination releases/42/. releases/41", "41 imports 42 42"),
    "removed": ("rm releases/41/late.py", "41 cannot import: No module named 'late'"),
    "renamed": ("echo later = 42 > releases/41/late.py", "41 cannot import: cannot import name 'late'"),
}


@pytest.mark.parametrize("how", UPGRADES)
def test_upgrade_in_place(released: Callable[[str], Released], how: str) -> None:
    """Under a job that runs, an upgrade in place mixes old code with new, or has it fail where it imports late."""
    service = released("plain")
    service.install(service.page("ini", 0))
    upgrade, line = UPGRADES[how]
    service.box.run("sh", "-ec", upgrade, cwd=service.folder)
    service.box.write(f"{service.folder}/go", "")
    assert service.await_line("41 ").startswith(line)
