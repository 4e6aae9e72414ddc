"""An upgrade by apt, with the real needrestart in automatic mode: nobody waits for a drain, no job is lost, no request fails."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.systemd.conftest import UNITS, Unit, unit_text
from tests.systemd.load import Load
from tests.systemd.rolling import SERVER, Rolled
from tests.systemd.sandbox import CHECKOUT, Sandbox, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

APT: Final = {"DEBIAN_FRONTEND": "noninteractive"}
INSTALL: Final = ("apt-get", "--quiet", "--yes", "--no-install-recommends", "install")
#: So long may an upgrade take: dpkg, needrestart's look at all processes, and what it restarts.
HELD: Final = 10.0
#: As pip writes it, so that it knows under which name it was called.
COMMAND: Final = """\
#!{python}
import sys
sys.path.insert(0, "{checkout}")
from requiem_systemd.cli import main
sys.exit(main())
"""
#: Two packages: a library of one function, which returns the version, and nothing at all.
PACKAGES: Final = """
set -e
for version in 1 2; do
    mkdir -p /root/$version/usr/lib
    echo "int demo(void) { return $version; }" | gcc -shared -fPIC -x c - -o /root/$version/usr/lib/libdemo.so.1
done
for package in libdemo_1 libdemo_2 nothing_1; do
    tree=/root/${package#libdemo_}
    mkdir -p $tree/DEBIAN
    cat >$tree/DEBIAN/control <<EOF
Package: ${package%_*}
Version: ${package#*_}
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: for a test
EOF
    dpkg-deb --build $tree /root/$package.deb
done
"""
#: A repository of it, by file:, of which alone unattended-upgrades takes anything.
REPOSITORY: Final = """
set -e
mkdir -p /srv/repo
cd /srv/repo
cp /root/libdemo_2.deb .
{
    dpkg-deb --field libdemo_2.deb
    echo "Filename: ./libdemo_2.deb"
    echo "Size: $(stat --format=%s libdemo_2.deb)"
    echo "SHA256: $(sha256sum libdemo_2.deb | cut -d ' ' -f 1)"
} >Packages
cat >Release <<EOF
Origin: Demo
Suite: stable
Date: $(date -R -u)
SHA256:
 $(sha256sum Packages | cut -d ' ' -f 1) $(stat --format=%s Packages) Packages
EOF
echo "deb [trusted=yes] file:/srv/repo ./" >/etc/apt/sources.list.d/demo.list
cat >/etc/apt/apt.conf.d/zz-demo <<EOF
#clear Unattended-Upgrade::Origins-Pattern;
Unattended-Upgrade::Origins-Pattern { "origin=Demo"; };
EOF
apt-get --quiet update -o Dir::Etc::sourcelist=sources.list.d/demo.list -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0
"""
LIBRARY: Final = """
import ctypes
demo = ctypes.CDLL("/usr/lib/libdemo.so.1")
"""
#: A job from the start on, which lasts for so long, and until a file is there; SECONDS is replaced.
JOB: Final = """
def work():
    time.sleep(SECONDS)
    while not os.path.exists("FOLDER/release"):
        time.sleep(0.02)
    print("job done", flush=True)

requiem.track(threading.Thread(target=work)).start()
"""
#: A service with a job that ends when a file is there; NAME is replaced.
PLAIN: Final = (
    """
import os, pathlib, time
import requiem_systemd as requiem
"""
    + LIBRARY
    + """
requiem.initialize()
requiem.on("reload", lambda: print("reloaded", flush=True))
with requiem.track("export 42"):
    requiem.ready()
    while not pathlib.Path("/run/NAME.release").exists():
        time.sleep(0.02)
print("job done", flush=True)
requiem.wait()
"""
)

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def box(request: pytest.FixtureRequest, python: str) -> Iterator[Sandbox]:
    """Return a sandbox of its own with needrestart, as Debian has it, in automatic mode, and our part of its configuration."""
    if reason := missing():
        pytest.skip(f"no systemd: {reason}")
    with Sandbox(request.config.getoption("--sandbox-root"), bind=request.config.getoption("--sandbox-bind")) as box:
        second = Path(python).parents[1] / "checkout"
        if second.is_dir():
            box.bind(CHECKOUT, at=second)
        install = (*INSTALL, "needrestart", "unattended-upgrades")
        if box.run(*install, check=False, timeout=300, env=APT).returncode:  # the usual reason: old package lists, or none
            box.run("apt-get", "--quiet", "update", timeout=300, env=APT)
            box.run(*install, timeout=300, env=APT)
        box.write("/usr/bin/requiem-systemd", COMMAND.format(python=python, checkout=CHECKOUT), 0o755)
        box.write("/etc/needrestart/conf.d/requiem-systemd.conf", (CHECKOUT / "units/needrestart/requiem-systemd.conf").read_text())
        box.write("/etc/needrestart/conf.d/automatic.conf", "$nrconf{restart} = 'a';\n")
        # As /run is where Debian's initramfs has mounted it; of ours other things run from there.
        box.run("mkdir", "-p", "/run/requiem-systemd")
        box.run("mount", "-t", "tmpfs", "-o", "noexec,mode=0755", "tmpfs", "/run/requiem-systemd")
        box.run("sh", "-c", PACKAGES)
        box.run("sh", "-c", REPOSITORY)
        yield box


def upgrade(box: Sandbox, package: str) -> tuple[str, float]:
    """Install a package; return what apt and needrestart wrote, and how long that took."""
    begin = time.monotonic()
    done = box.run(*INSTALL, "--allow-downgrades", "--reinstall", f"/root/{package}.deb", timeout=300, env=APT)
    took = time.monotonic() - begin
    print(f"apt was held for {took:.1f} s")
    return done.stdout + done.stderr, took


def check_held(*seconds: float) -> None:
    """Fail if apt was held for long, unless much else runs on this machine."""
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        assert max(seconds) < HELD


def unattended(box: Sandbox) -> tuple[str, float]:
    """Have unattended-upgrades do the same; its own look at what there is to upgrade does not count, dpkg and needrestart do."""
    log = "/var/log/unattended-upgrades/unattended-upgrades-dpkg.log"
    box.run("rm", "-f", log)
    box.run("unattended-upgrade", timeout=300)
    said = box.read(log)
    begin, end = (datetime.fromisoformat(" ".join(words)) for words in re.findall(r"^Log (?:started|ended): (\S+) +(\S+)$", said, re.MULTILINE))
    took = (end - begin).total_seconds()
    print(f"apt was held for {took:.0f} s")
    return said, took


@pytest.fixture
def rolled(box: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[Rolled]:
    """Return a rolled service, not started."""
    stem = "nr-" + re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_")).strip("-")
    unit = Rolled(box, stem, python)
    request.node.stash.setdefault(UNITS, []).append(unit)
    yield unit
    unit.clear()


@pytest.mark.parametrize(("way", "seconds"), [("apt", 60), ("unattended-upgrades", 1)])
def test_rolled(box: Sandbox, rolled: Rolled, free_port: int, way: str, seconds: int) -> None:
    """A rolled service whose library is upgraded is rolled: apt goes on at once, no request fails, its job ends, after a minute by apt."""
    upgrade(box, "libdemo_1")
    rolled.install(port=free_port, settings={"MemoryDenyWriteExecute": "no"})
    code = LIBRARY + SERVER.replace('b"VERSION"', "str(demo.demo()).encode()").replace("JOBS", JOB)
    rolled.write(code.replace("SECONDS", str(seconds)))
    rolled.start()
    with Load(f"127.0.0.1:{free_port}", new=100, keep=100) as load:
        said, held = unattended(box) if way == "unattended-upgrades" else upgrade(box, "libdemo_2")
        print(said)
        assert f"{rolled.name}: rolled" in said
        assert rolled.states() == {"1": "deactivating", "2": "active"}
        # The next step of the same upgrade: what drains still has the old library, and is neither restarted nor rolled once more.
        said, again = upgrade(box, "nothing_1")
        assert f"{rolled.stem}@1.service: left alone: it drains already: Draining" in said
        assert rolled.states() == {"1": "deactivating", "2": "active"}
        rolled.finish_jobs()
        rolled.await_states({"2": "active"}, timeout=90)
        figures = load.stop()
    done = rolled.text("1").count("job done")
    failed = sum(figures.failed.values())
    print(f"jobs finished: {done} of 1, requests failed: {failed} of {figures.sent}, apt was held for {held:.1f} s and {again:.1f} s")
    assert figures.failed == {}
    assert done == 1
    assert set(figures.bodies) == {"new 1", "kept 1", "new 2", "kept 2"}
    assert figures.bodies["new 1"][2] < figures.bodies["new 2"][2]
    check_held(held, again)


@pytest.fixture
def plain(box: Sandbox, python: str, request: pytest.FixtureRequest) -> Iterator[dict[str, Unit]]:
    """Return two plain services with a job each: one that can be reloaded, and one that cannot."""
    upgrade(box, "libdemo_1")
    units = {}
    for name, more in (("nr-reloads", {"ExecReload": "/usr/bin/requiem-systemd reload --pid $MAINPID"}), ("nr-restarts", {})):
        box.write(f"/root/{name}.py", PLAIN.replace("NAME", name))
        settings = {"RuntimeDirectory": "%N", "Environment": f"PYTHONPATH={CHECKOUT}", **more}
        box.unit(f"{name}.service", unit_text(f"{python} -u /root/{name}.py", settings))
        units[name] = Unit(box, f"{name}.service")
    request.node.stash.setdefault(UNITS, []).extend(units.values())
    box.systemctl("start", *units)
    yield units
    box.systemctl("kill", "--signal=KILL", *units, check=False)
    box.systemctl("stop", *units, check=False)


def test_plain(box: Sandbox, plain: dict[str, Unit]) -> None:
    """A plain unit is reloaded where it can be, else it restarts in the background; what is left running is said."""
    before = {name: unit.main_pid for name, unit in plain.items()}
    said, held = upgrade(box, "libdemo_2")
    print(said)
    comm = {name: box.read(f"/proc/{pid}/comm").strip() for name, pid in before.items()}
    left = {name: f"{before[name]} ({comm[name]})" for name in plain}
    assert f"nr-reloads.service: reloaded; left running as before: {left['nr-reloads']};" in said
    assert "reloaded" in plain["nr-reloads"].journal()
    assert plain["nr-reloads"].main_pid == before["nr-reloads"]
    assert "nr-restarts.service: restarts in the background, when its jobs have ended" in said
    assert f"left running until then: {left['nr-restarts']}" in said
    assert plain["nr-restarts"].state == "deactivating"
    box.write("/run/nr-restarts.release", "")
    plain["nr-restarts"].wait_for("job done")
    box.run("sh", "-c", "until [ $(systemctl show -P ActiveState nr-restarts) = active ]; do sleep 0.02; done")
    assert plain["nr-restarts"].main_pid not in (0, before["nr-restarts"])
    check_held(held)


def test_the_operator_s_own_script_wins(box: Sandbox, plain: dict[str, Unit]) -> None:
    """A script in /etc/needrestart/restart.d is run as ever, also for a service of ours."""
    script = "/etc/needrestart/restart.d/nr-reloads.service"
    box.write(script, "#!/bin/sh\necho by hand: ${0##*/}\n", 0o755)
    try:
        said, _ = upgrade(box, "libdemo_2")
    finally:
        box.run("rm", script)
    assert "by hand: nr-reloads.service" in said
    assert "nr-reloads.service: reloaded" not in said
