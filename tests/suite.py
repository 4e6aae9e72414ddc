"""Get ready what the tests need, run them part by part, and say how it went (`tests/run` is the way in).

Standard library only, and fit for Debian's python3: it runs before there is any virtual environment.

There are two virtual environments for each Python. One holds everything from the index, is shared by all
checkouts, and is named after the lists it was made from. The other is thin, belongs to one checkout, looks
into the first, and holds the package itself, editable: two checkouts that are tested at the same time never
test each other's code.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

CHECKOUT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
from tests.systemd import sandbox  # noqa: E402 -- found thanks to the line above, before anything is installed

#: What runs side by side prints as a whole.
PRINTING: Final = threading.Lock()

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Parts that are pytest's, and where their tests are.
FOLDERS: Final = {
    "unit": ("tests/unit",),
    "property": ("tests/property",),
    "process": ("tests/process", "tests/fault"),
    "conformance": ("tests/conformance",),
    "systemd": ("tests/systemd",),
    "bench": ("tests/bench",),
    "slow": ("tests",),
}
#: How many tests at once, where they wait most of the time.
PARALLEL: Final = {"process": 6, "conformance": 8}
#: Parts that are run on every Python.
PORTABLE: Final = ("unit", "property", "process")
EVERYTHING: Final = ("lint", "types", "unit", "property", "process", "conformance", "systemd", "roots", "slow")
# What newer versions of systemd do otherwise than 252; CI, which has 20 minutes, runs only this on them. `tests/run roots`: all.
DIFFERS: Final = "(reload or reexec or units or journal or unhealthy) and not (example or rolling or cluster or queues or adapters)"
PARTS: Final = (*EVERYTHING, "bench")
#: Parts that are run at the same time where all of them are: they wait most of the time.
TOGETHER: Final = ("conformance", "systemd")
GROUPS: Final = ("tests", "frameworks", "lint", "types")
#: What other Pythons get. CI, which has 20 minutes, does without the frameworks there, and without the tests with a real systemd that need them.
ELSEWHERE: Final = ("tests",) if os.environ.get("CI") else ("tests", "frameworks")
#: Groups that do not go with the frameworks: each in `apart/GROUP` of the virtual environment, for those who put that on their path.
APART: Final = ("arq",)
NEEDS_ROOT: Final = ("systemd", "roots")

#: Debian packages: what the virtual environment needs to be made, and what parts need beside it.
BASE: Final = ("gcc", "libsystemd-dev", "pkg-config", "python3-dev", "python3-venv")
#: What debian/control asks for, and the tools around it.
PACKAGING: Final = (
    *("build-essential", "debhelper", "dh-python", "dpkg-dev", "git", "lintian", "pybuild-plugin-pyproject", "python3-all"),
    *("python3-hatchling", "python3-pytest", "python3-pytest-timeout", "python3-sdnotify", "python3-systemd"),
)
PACKAGES: Final = {
    "conformance": ("redis-server",),
    "unit": ("redis-server",),
    "process": ("redis-server",),
    "systemd": ("haproxy", "nodejs", "redis-server", "systemd-container"),
    "bench": ("redis-server", "wrk"),
    "slow": ("nodejs", "redis-server", "systemd-container", *PACKAGING),
    "roots": ("mmdebstrap", "systemd-container"),
}

#: A Python that Debian 12 does not have; run where one is found.
PYTHON: Final = "3.12"
#: Other Debians: Python 3.13 and systemd 257; Python 3.14 and systemd 262.
SUITES: Final = {
    "trixie": (),
    "forky": ('--aptopt=Acquire::Check-Valid-Until "false"',),  # mirrors of testing may lag
}
IN_ROOTS: Final = (
    *("ca-certificates", "dbus", "git", "iproute2", "mount", "nodejs", "procps", "python3", "redis-server"),
    *("systemd", "systemd-sysv", *BASE),
)
#: The host's ways to the network, which a root shares.
NETWORK_FILES: Final = ("/etc/pip.conf", "~/.config/pip/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
NETWORK_ENVIRONMENT: Final = ("PIP_", "SSL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CI")


@dataclasses.dataclass
class Row:
    """A line of the closing table."""

    part: str
    verdict: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0


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


# -- parts


def run_tools(part: str, venv: Path, *commands: Sequence[str]) -> Row:
    """Run linters, all of them, whatever the first says."""
    begin = time.monotonic()
    failed = 0
    for command in commands:
        say(shlex.join(command))
        program = venv / "bin" / command[0]
        failed += bool(subprocess.run((program, *command[1:]), check=False, cwd=CHECKOUT).returncode)
    return Row(part, "failed" if failed else "ok", time.monotonic() - begin, len(commands) - failed, failed)


def lint(venv: Path) -> Row:
    """Run ruff."""
    return run_tools("lint", venv, ("ruff", "check", "."))


def types(venv: Path) -> Row:
    """Run the type checkers over the code, the tests, and what users see of the types."""
    own = f"--python-executable={venv / 'bin' / 'python'}"
    verify = (
        "pyright",
        f"--pythonpath={venv / 'bin' / 'python'}",
        "--ignoreexternal",
        "--verifytypes",
        "requiem_systemd",
    )
    return run_tools("types", venv, ("mypy", own), verify)


def run_pytest(part: str, venv: Path, arguments: Sequence[str], *, name: str = "") -> Row:
    """Run the tests of a part; none at all is a failure, but for the slow, of which there may be none."""
    folders = [folder for folder in FOLDERS[part] if (CHECKOUT / folder).is_dir()]
    row = Row(name or part, "NO TESTS")
    if not folders:
        return row
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="requiem-report-") as folder:
        report = Path(folder, "report.xml")
        slow = "slow and not soak" if os.environ.get("CI") else "slow"
        marks = slow if part == "slow" else "not slow"
        cacheless: tuple[str, ...] = ()
        if not os.access(CHECKOUT, os.W_OK):  # another user's: pytest and hypothesis warn that they cannot write
            cacheless = ("-p", "no:cacheprovider")
            os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(cache() / "hypothesis")
        parallel = ("-n", str(PARALLEL[part])) if part in PARALLEL else ()
        pytest = (str(venv / "bin" / "python"), "-m", "pytest", "--durations=12", *cacheless)
        command = (*pytest, "-m", marks, *parallel, *folders, *arguments)
        say(f"{row.part}: {shlex.join(command[1:])}")
        status = subprocess.run((*command, f"--junit-xml={report}"), check=False, cwd=CHECKOUT).returncode
        if report.exists():
            for suite in ET.parse(report).getroot().iter("testsuite"):
                counts = {key: int(suite.get(key, "0")) for key in ("tests", "errors", "failures", "skipped")}
                row.failed += counts["errors"] + counts["failures"]
                row.skipped += counts["skipped"]
                row.passed += counts["tests"] - counts["errors"] - counts["failures"] - counts["skipped"]
    row.seconds = time.monotonic() - begin
    if status == 0 and row.passed:
        row.verdict = "ok"
    elif part == "slow" and status == 5:
        row.verdict = "none"
    elif status not in (0, 5):
        row.verdict = "failed"
    return row


# -- other Pythons, other systemds


def side_by_side(places: Sequence[str], arguments: Sequence[str]) -> list[Row]:
    """Run parts, or what is to be run in other places, all at once; each by a run of its own, whose output is shown when it has ended."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(aside, place, arguments) for place in places]
        return [row for run in runs for row in run.result()]


def aside(place: str, arguments: Sequence[str]) -> list[Row]:
    """Run one part, or what is to be run in one place, by this script."""
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="requiem-place-") as report, tempfile.TemporaryFile() as output:
        words = (sys.executable, "-B", __file__, f"--report={report.name}", f"--place={place}", *arguments)
        subprocess.run(words, check=False, stdout=output, stderr=output)
        output.seek(0)
        with PRINTING:
            say(f"{place}, {time.monotonic() - begin:.0f} s:")
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
        text = report.read().decode()
    return [Row(**row) for row in json.loads(text)["rows"]] if text else [Row(place, "failed")]


def at(place: str, arguments: Sequence[str]) -> list[Row]:
    """Run what is to be run on another Python that is here, or in the tree of another Debian."""
    if place not in SUITES:
        return [row for python in pythons_here(place) for row in elsewhere(place, [python, "-B", __file__], arguments).rows]
    begin = time.monotonic()
    try:
        return in_root(root_tree(place, SUITES[place]), arguments)
    except (sandbox.SandboxError, subprocess.SubprocessError) as error:
        say(f"{place}: {error}")
        return [Row(place, "failed", time.monotonic() - begin)]


def pythons_here(version: str) -> list[str]:
    """Return one interpreter of that version that really runs (a pyenv shim may not), or none."""
    candidates = [
        shutil.which(f"python{version}") or "",
        *Path.home().glob(f".pyenv/versions/{version}*/bin/python"),
    ]
    for candidate in filter(None, map(str, candidates)):
        test = subprocess.run((candidate, "-c", "import ctypes, ssl, venv"), check=False, capture_output=True)
        if test.returncode == 0:
            return [candidate]
    say(f"no Python {version} here: left out")
    return []


def root_tree(suite: str, options: Sequence[str]) -> Path:
    """Return the tree of another Debian, made if need be."""
    path = cache() / f"root-{suite}-{digest(*IN_ROOTS, *options)}"

    def build() -> None:
        with step(f"making {path} (half a minute)"):
            include = f"--include={','.join(IN_ROOTS)}"
            quietly("mmdebstrap", "--quiet", "--variant=apt", include, *options, suite, path)

    make(path, suite, build)
    return path


def in_root(tree: Path, arguments: Sequence[str]) -> list[Row]:
    """Run the portable parts in a booted container of that tree, and the systemd tests against it."""
    with sandbox.Sandbox(tree, bind=(CHECKOUT, cache())) as box:
        for name in NETWORK_FILES:
            path = Path(name).expanduser()
            if path.is_file():
                box.write(path, path.read_text())
        env = {key: value for key, value in os.environ.items() if key.startswith(NETWORK_ENVIRONMENT)}
        env |= {**sandbox.ENVIRONMENT, "REQUIEM_TEST_CACHE": str(cache())}
        label = box.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
        systemd = box.systemd_version
        command = box.command("/usr/bin/python3", "-B", __file__, env=env, cwd=CHECKOUT)
        inside = elsewhere(label, command, arguments)
    if not inside.venv:
        return inside.rows
    there = (
        f"--sandbox-root={tree}",
        f"--sandbox-bind={cache()}",
        f"--sandbox-python={inside.venv}/bin/python",
    )
    ours = virtual_environment(GROUPS)
    some = ("-k", DIFFERS) if os.environ.get("CI") and not arguments else ()
    name = f"systemd {systemd}" + (" (some)" if some else "")
    return [*inside.rows, run_pytest("systemd", ours, (*there, *some, *arguments), name=name)]


@dataclasses.dataclass
class Report:
    """What a run by another Python hands back."""

    rows: list[Row]
    venv: str = ""


def elsewhere(label: str, command: Sequence[str], arguments: Sequence[str]) -> Report:
    """Run the portable parts by this script under another Python."""
    with tempfile.NamedTemporaryFile(dir=cache(), prefix="report-", suffix=".json") as file:
        # CI has 20 minutes.
        parts = [part for part in PORTABLE if part != "process"] if os.environ.get("CI") else PORTABLE
        words = (*command, f"--report={file.name}", *parts, *arguments)
        subprocess.run(words, check=False)
        text = file.read().decode()
    if not text:
        return Report([Row(label, "failed")])
    report = json.loads(text)
    rows = [Row(**row) for row in report["rows"]]
    for row in rows:
        row.part = f"{row.part} {label}"
    return Report(rows, report["venv"])


# -- the whole


def run_part(part: str, venv: Path, arguments: Sequence[str]) -> list[Row]:
    """Run one part."""
    match part:
        case "lint":
            return [lint(venv)]
        case "types":
            return [types(venv)]
        case "roots":  # what is portable on other Pythons, and the tests with a real systemd on newer ones
            return side_by_side((PYTHON, *SUITES), arguments)
        case place if place in (PYTHON, *SUITES):
            return at(place, arguments)
        case _:
            return [run_pytest(part, venv, arguments)]


def batches(parts: Sequence[str]) -> list[Sequence[str]]:
    """Return the parts in their order, with those together that are run at the same time."""
    if not set(TOGETHER) <= set(parts):
        return [(part,) for part in parts]
    first, *rest = TOGETHER
    return [TOGETHER if part == first else (part,) for part in parts if part not in rest]


def table(rows: Sequence[Row]) -> str:
    """Return the closing table."""
    lines = [f"{'part':<20}{'':<10}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}"]
    for row in rows:
        counts = f"{row.passed:>8}{row.failed:>8}{row.skipped:>8}{row.seconds:>9.1f}"
        lines.append(f"{row.part:<20}{row.verdict:<10}{counts}")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line: options of ours, names of parts, then all that is pytest's."""
    parser = argparse.ArgumentParser(
        prog="tests/run",
        description="Run the tests: all parts, or those named. What follows them goes to pytest.",
    )
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # we are run by ourselves
    parser.add_argument("--place", help=argparse.SUPPRESS)  # the same
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    words = list(argv)
    own = []
    while words and (words[0] in (*PARTS, "-h", "--help") or words[0].startswith(("--report=", "--place="))):
        own.append(words.pop(0))
    if words and not words[0].startswith("-") and not own:
        parser.error(f"there is no part {words[0]!r}, only {', '.join(PARTS)}")
    return parser.parse_args(own), words


def main(argv: Sequence[str]) -> int:
    """Run the parts that were asked for, and say how it went."""
    begin = time.monotonic()
    # Under nohup, or as a background job of a plain shell, these are ignored, and the services under test would keep it so.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options, arguments = parse(argv)
    parts = [options.place] if options.place else options.parts or list(EVERYTHING)
    rows = []
    if os.geteuid() != 0:
        rows = [Row(part, "LEFT OUT") for part in parts if part in NEEDS_ROOT]
        parts = [part for part in parts if part not in NEEDS_ROOT]
    venv = None
    try:
        if not options.report:
            install([*BASE, *(package for part in parts for package in PACKAGES.get(part, ()))])
            prune()
        venv = virtual_environment(ELSEWHERE if options.report and not options.place else GROUPS)
        os.environ["PATH"] = f"{venv / 'bin'}:{os.environ['PATH']}"
        for some in batches(parts):
            rows += side_by_side(some, arguments) if len(some) > 1 else run_part(some[0], venv, arguments)
    except NotReadyError as error:
        say(str(error))
        rows.append(Row("preparation", "failed"))
    except KeyboardInterrupt:
        rows.append(Row("the rest", "failed"))
    if options.report:
        report = {"rows": [dataclasses.asdict(row) for row in rows], "venv": str(venv or "")}
        options.report.write_text(json.dumps(report))
    else:
        say(f"{time.monotonic() - begin:.0f} s in all\n\n{table(rows)}")
        for row in rows:
            if row.verdict == "LEFT OUT":
                say(f"{row.part} was left out: it needs root")
    return int(any(row.verdict in ("failed", "NO TESTS") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
