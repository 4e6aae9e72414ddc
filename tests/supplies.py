"""What the tests need, got ready: Debian packages, and virtual environments.

Standard library only, and fit for Debian's python3: it runs before there is any virtual environment.

There are two virtual environments for each Python. One holds everything from the index, is shared by all
checkouts, and is named after the lists it was made from. The other is thin, belongs to one checkout, looks
into the first, and holds the package itself, editable: two checkouts that are tested at the same time never
test each other's code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[1]
GROUPS: Final = ("tests", "frameworks", "lint", "types")
#: Groups that do not go with the frameworks: each in `apart/GROUP` of the virtual environment, for those who put that on their path.
APART: Final = ("arq",)
#: Debian packages: what the virtual environment needs to be made, and what parts need beside it.
BASE: Final = ("gcc", "libsystemd-dev", "pkg-config", "python3-dev", "python3-venv")
#: What debian/control asks for, and the tools around it.
PACKAGING: Final = (
    *("build-essential", "debhelper", "dh-python", "dpkg-dev", "git", "lintian", "pybuild-plugin-pyproject", "python3-all"),
    *("python3-hatchling", "python3-pytest", "python3-pytest-timeout", "python3-sdnotify", "python3-systemd"),
)


class NotReadyError(Exception):
    """What a part needs cannot be had; the message says what, and what to do."""


# -- saying what goes on


def say(text: str) -> None:
    """Write a line of our own between those of the tools."""
    print(f"tests/run: {text}", flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Announce what may take longer than a second; say how long it took."""
    begin = time.monotonic()
    say(f"{text} ...")
    yield
    say(f"{text}: {time.monotonic() - begin:.0f} s")


def quietly(*argv: str | os.PathLike[str], env: dict[str, str] | None = None) -> None:
    """Run a command whose output matters only when it fails."""
    done = subprocess.run(
        argv,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        message = f"{shlex.join(map(str, argv))} failed with status {done.returncode}:\n{done.stdout}"
        raise NotReadyError(message)


# -- Debian packages


def install(packages: Sequence[str]) -> None:
    """Install the Debian packages that are missing; without root, say which."""
    lacking = [name for name in dict.fromkeys(packages) if not installed(name)]
    if not lacking:
        return
    command = f"apt install {' '.join(lacking)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        say(f"missing, some tests will be skipped or fail without: {command}")
        return
    apt = ("apt-get", "--quiet", "--yes", "--no-install-recommends", "install", *lacking)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"installing {' '.join(lacking)}"), no_services_started():
        try:
            quietly(*apt, env=env)
        except NotReadyError:
            # The usual reason: no package lists, or old ones. If another repository fails, never mind.
            subprocess.run(("apt-get", "--quiet", "update"), check=False, env=env, stdout=subprocess.DEVNULL)
            quietly(*apt, env=env)
    for service in {"haproxy", "redis-server"} & set(lacking):
        if shutil.which("systemctl") is not None:
            quietly("systemctl", "--quiet", "disable", service)


def installed(package: str) -> bool:
    """Say whether a Debian package is there (or, not on Debian, count as if it were)."""
    if shutil.which("dpkg-query") is None:
        return True
    query = ("dpkg-query", "--show", "--showformat=${db:Status-Status}", package)
    return subprocess.run(query, check=False, capture_output=True, text=True).stdout == "installed"


@contextlib.contextmanager
def no_services_started() -> Iterator[None]:
    """Forbid packages to start their services, for as long as this process lives."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield  # the administrator's own policy
        return
    policy.write_text(
        f"#!/bin/sh\n# left by a test run; harmless, and to be deleted, when {os.getpid()} is gone\n"
        f"kill -0 {os.getpid()} 2>/dev/null && exit 101\nexit 0\n"
    )
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


# -- virtual environments


def cache() -> Path:
    """Return the folder for what outlives a run."""
    if where := os.environ.get("REQUIEM_TEST_CACHE"):
        path = Path(where).resolve()
        if path.is_relative_to("/tmp") or path.is_relative_to("/run"):
            message = f"REQUIEM_TEST_CACHE={where}: a sandbox has a /tmp and a /run of its own, and would not see it; name another place"
            raise NotReadyError(message)
        return path
    if os.geteuid() == 0:
        return Path("/var/cache/requiem-systemd")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "requiem-systemd"


def requirements(groups: Sequence[str]) -> list[str]:
    """Return what pyproject.toml asks for: dependencies, extras, groups."""
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    found = list(declared["project"].get("dependencies", ()))
    for extra in declared["project"].get("optional-dependencies", {}).values():
        found += extra
    for group in groups:
        found += declared["dependency-groups"][group]
    own = declared["project"]["name"]  # an extra "all" may name the package itself
    found = sorted({entry for entry in found if not entry.startswith(own)})
    if not installed("libsystemd-dev") and os.geteuid() != 0:
        found = [entry for entry in found if not entry.startswith("systemd-python")]
    return found


def digest(*parts: str) -> str:
    """Return a short name for a content."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold others off that make the same thing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:  # a user whose home is /nonexistent, for one
        message = f"cannot write to {path.parent} ({error.strerror}): REQUIEM_TEST_CACHE=DIR names another place"
        raise NotReadyError(message) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting for another run that makes {path}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(path: Path, content: str, build: Callable[[], None]) -> None:
    """Have `build` make a folder, unless it is there and complete with this content."""
    stamp = path / ".complete"
    with locked(path):
        if not stamp.exists() or stamp.read_text() != content:
            if path.exists():
                shutil.rmtree(path)
            build()
            stamp.write_text(content)
        os.utime(stamp)  # prune() goes by it


def virtual_environment(groups: Sequence[str]) -> Path:
    """Return this checkout's virtual environment for the Python that runs this, made if need be."""
    version = ".".join(platform.python_version_tuple()[:2])
    wanted = requirements(groups)
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["dependency-groups"]
    apart = {name: declared[name] for name in APART if "frameworks" in groups}
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    origin = (sys.version, sys.base_prefix, release)
    shared = cache() / f"venv-{version}-{digest(*origin, *wanted, repr(apart))}"
    python = shared / "bin" / "python"

    def build_shared() -> None:
        with step(f"making {shared} (a minute or so)"):
            quietly(sys.executable, "-m", "venv", shared)
            pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            quietly(*pip, *wanted)
            for name, packages in apart.items():
                quietly(*pip, "--target", shared / "apart" / name, *packages)

    own = cache() / f"checkout-{version}-{digest(str(shared), str(CHECKOUT))}"

    def build_own() -> None:
        with step(f"installing {CHECKOUT}, editable, in {own}"):
            quietly(sys.executable, "-m", "venv", "--without-pip", own)
            packages = f"lib/python{version}/site-packages"
            # "checkout" is where a sandbox has it a second time: units with a /tmp or /home of their own may
            # not see the real one.
            (own / "checkout").mkdir()
            (own / "apart").symlink_to(shared / "apart")
            (own / packages / "_shared.pth").write_text(f"{shared / packages}\n{own / 'checkout'}\n")
            pip = (
                python,
                "-m",
                "pip",
                f"--python={own / 'bin' / 'python'}",
                "--quiet",
                "--disable-pip-version-check",
            )
            quietly(*pip, "install", "--no-deps", "--no-build-isolation", "--editable", CHECKOUT)
            copy_scripts(shared / "bin", own / "bin")

    make(shared, "\n".join((*wanted, repr(apart))), build_shared)
    make(own, f"{CHECKOUT}\n{(CHECKOUT / 'pyproject.toml').read_text()}", build_own)
    return own


def copy_scripts(source: Path, target: Path) -> None:
    """Give the thin environment the shared one's commands, run by the interpreter that finds the package."""
    for script in source.iterdir():
        copy = target / script.name
        if copy.exists() or copy.is_symlink() or not os.access(script, os.X_OK):
            continue
        first, newline, rest = script.read_bytes().partition(b"\n")
        if first.startswith(b"#!%s/python" % os.fsencode(source)):
            copy.write_bytes(b"#!%s/python" % os.fsencode(target) + newline + rest)
            copy.chmod(0o755)
        elif not script.is_symlink():
            copy.symlink_to(script)


def prune() -> None:
    """Delete virtual environments whose checkout is gone, or that no run has used for a month."""
    for stamp in cache().glob("*/.complete"):
        old = time.time() - stamp.stat().st_mtime > 30 * 24 * 3600
        orphan = (
            stamp.parent.name.startswith("checkout-")
            and not Path(stamp.read_text().partition("\n")[0]).exists()
        )
        if old or orphan:
            shutil.rmtree(stamp.parent)
