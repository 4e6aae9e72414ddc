"""A package whose service is rolled (examples/debian-package), upgraded by apt in mid-job and under load; a test begins where the one before it ended.

With --sandbox-root the tree of another Debian; the packages are built here, for all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.conftest import any_port
from tests.systemd import debs
from tests.systemd.conftest import Unit
from tests.systemd.load import Load
from tests.systemd.rolling import Rolled
from tests.systemd.sandbox import CHECKOUT, Sandbox, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds for which apt may be held: the issue's.
HELD: Final = 10.0
#: Seconds of a job that outlives any upgrade.
LONG: Final = 30

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(600)]


class Shop(NamedTuple):
    """The service, and the packages of it."""

    box: Sandbox
    packages: Path
    address: str

    @property
    def rolled(self) -> Rolled:
        """Its generations."""
        return Rolled(self.box, "shop", "")

    def load(self) -> Load:
        """Return a client."""
        return Load(self.address, new=100, keep=100)

    def ask(self, path: str = "/", method: str = "GET") -> str:
        """Send a request; return the answer."""
        request = urllib.request.Request(f"http://{self.address}{path}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def export(self, seconds: float) -> str:
        """Begin a job; return its name."""
        return self.ask(f"/export?seconds={seconds}", "POST")

    def apt(self, verb: str, what: str | Path) -> tuple[subprocess.CompletedProcess[str], float]:
        """Run apt-get; return how it went, and for how many seconds it was held."""
        begin = time.monotonic()
        done = self.box.run("apt-get", "--quiet", "--yes", "--no-install-recommends", verb, what, check=False, timeout=300, env=debs.APT)
        return done, time.monotonic() - begin

    def install(self, version: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Install or upgrade; return how it went, and for how many seconds apt was held."""
        done, held = self.apt("install", self.packages / f"shop_{version}_all.deb")
        print(f"systemd {self.box.systemd_version}: apt install of shop {version}: status {done.returncode}, held for {held:.1f} s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.box.run("dpkg", "--audit").stdout == ""
        assert version in self.box.run("dpkg-query", "--show", "shop").stdout
        return done, held

    def was_not_held(self, held: float) -> bool:
        """Say whether apt came back in time; on a machine where much else runs that says nothing, and so it did."""
        return held < HELD or os.getloadavg()[0] > 2 * (os.cpu_count() or 1)

    def files(self) -> set[str]:
        """Return all that is called after it."""
        found = self.box.run("find", "/etc", "/run", "/usr", "/var/lib", "-name", "*shop*", "-not", "-path", f"{CHECKOUT}/*")
        return set(found.stdout.splitlines())


def run(*command: str | Path) -> str:
    """Run a tool of Debian's; return what it wrote."""
    done = subprocess.run(command, check=False, env=debs.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the versions of the example."""
    if reason := debs.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("shop")
    run("sh", CHECKOUT / "tests" / "systemd" / "shop-packages", folder)
    return folder


@pytest.fixture(scope="module")
def shop(built: Path, packages: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """Return the service, whose package is not installed yet, on a machine as Debian boots it."""
    if reason := missing():
        pytest.skip(f"no systemd: {reason}")
    with Sandbox(request.config.getoption("--sandbox-root"), bind=[packages]) as box:
        debs.install(box, built)
        box.run("rm", "-f", "/usr/sbin/policy-rc.d")  # this machine's: packages start no services here
        box.run("mount", "-o", "remount,noexec", "/run")  # initramfs-tools does it, a container's systemd does not
        address = f"127.0.0.1:{any_port()}"
        box.write("/etc/systemd/system/shop.socket.d/port.conf", f"[Socket]\nListenStream=\nListenStream={address}\n")
        yield Shop(box, packages, address)


@pytest.fixture(scope="module")
def before(shop: Shop) -> set[str]:
    """Return what is called after the service before its package was installed."""
    return shop.files()


@pytest.mark.parametrize("version", ["1.0", "2.0", "2.1", "3.0"])
def test_lintian_is_content(packages: Path, version: str) -> None:
    """No error and no warning: the recipe is one that Debian would take."""
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian")
    (changes,) = packages.glob(f"shop_{version}_*.changes")
    assert run("lintian", "--allow-root", "--fail-on=error,warning", changes) == ""


def test_upgrade_in_mid_job(shop: Shop, before: set[str]) -> None:
    """Apt is not held, no request fails, the new version answers; jobs end by the code that they have begun with, which has gone from the disk."""
    shop.install("1.0")
    assert shop.ask() == "1.0"
    with shop.load() as load:
        jobs = [shop.export(LONG) for _ in range(4)]
        _, held = shop.install("2.0")
        assert shop.rolled.states() == {"1": "deactivating", "2": "active"}
        assert shop.ask() == "2.0"
        assert shop.box.run("test", "-e", "/usr/share/shop/shop/receipt.py", check=False).returncode == 1
        shop.rolled.await_states({"2": "active"}, timeout=LONG + 20)
        figures = load.stop()
    done = [job for job in jobs if f"{job} done by 1.0" in shop.rolled.text("1")]
    print(*(line for line in shop.box.run("requiem-systemd", "history", "shop").stdout.splitlines() if " roll " in line), sep="\n")
    print(f"jobs: {len(jobs)} begun, {len(done)} done; requests: {figures.sent} sent, {sum(figures.failed.values())} failed")
    assert done == jobs
    assert figures.failed == {}
    assert shop.was_not_held(held)
    assert shop.box.run("test", "-e", "/run/shop@1/shop", check=False).returncode == 1


def test_what_does_not_come_up_leaves_the_old(shop: Shop) -> None:
    """The package is installed all the same, with a warning; the version before it serves on, jobs and all."""
    with shop.load() as load:
        job = shop.export(5)
        done, held = shop.install("2.1")
        assert "the old one serves on; journalctl -u shop says why" in done.stdout
        assert shop.ask() == "2.0"
        shop.rolled.wait_for("no_such_module")
        Unit(shop.box, "shop@2.service").wait_for(f"{job} done by 2.0")
        figures = load.stop()
    assert figures.failed == {}
    assert shop.was_not_held(held)
    assert shop.rolled.states() == {"2": "active"}
    assert shop.rolled.state == "active"


def test_crash_brings_back_what_served(shop: Shop) -> None:
    """A generation that crashes comes back with its own code, though files that do not come up lie on the disk."""
    shop.rolled.kill_generation("2")
    assert shop.ask() == "2.0"  # it waits in the listener's queue until there is somebody again


def test_next_version_mends_it(shop: Shop) -> None:
    """The next upgrade is a roll like any other, and nothing is left of the failure."""
    with shop.load() as load:
        shop.install("3.0")
        assert shop.ask() == "3.0"
        figures = load.stop()
    assert figures.failed == {}
    assert shop.box.systemctl("list-units", "--failed", "--plain", "--no-legend", "shop*").stdout == ""


def test_what_an_administrator_stopped_stays_stopped(shop: Shop) -> None:
    """Disabled and stopped, the service is not started by an upgrade."""
    shop.box.systemctl("disable", "--now", "shop.socket", "shop.service")
    done, _ = shop.apt("reinstall", shop.packages / "shop_3.0_all.deb")
    assert done.returncode == 0, done.stdout + done.stderr
    assert shop.rolled.states() == {}
    assert shop.box.show("shop.socket", "ActiveState")["ActiveState"] == "inactive"
    shop.box.systemctl("enable", "--now", "shop.socket", "shop.service")
    assert shop.ask() == "3.0"


def test_removal_waits_for_jobs(shop: Shop) -> None:
    """A removal is a stop: it takes code and units away, and therefore waits."""
    job = shop.export(4)
    done, _ = shop.apt("remove", "shop")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{job} done by 3.0" in shop.rolled.generations_text()
    assert shop.rolled.states() == {}


def test_purge_leaves_nothing(shop: Shop, before: set[str]) -> None:
    """Purged, nothing of it is left, but in /run until the next boot: the roll's lock, and links of systemd's to folders that are gone."""
    done, _ = shop.apt("purge", "shop")
    assert done.returncode == 0, done.stdout + done.stderr
    left = shop.files() - before
    links = {name for name in left if shop.box.run("sh", "-c", f"[ -L {name} ] && ! [ -e {name} ]", check=False).returncode == 0}
    assert left - links == {"/run/requiem-systemd/shop.lock"}
    assert {name.partition("@")[0] for name in links} <= {"/run/shop"}
    assert shop.box.systemctl("list-units", "--all", "--plain", "--no-legend", "shop*").stdout == ""


def test_autopkgtest(shop: Shop) -> None:
    """The same upgrade as Debian's own tests have it."""
    script = CHECKOUT / "debian" / "tests" / "upgrade"
    done = shop.box.run("sh", script, check=False, timeout=180, cwd=CHECKOUT, env={"SHOP_PACKAGES": str(shop.packages)})
    print(*(line for line in done.stdout.splitlines() if line.startswith("jobs: ")))
    assert done.returncode == 0, done.stdout + done.stderr
