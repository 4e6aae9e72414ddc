"""Get ready what the tests need, run them part by part, and say how it went (`tests/run` is the way in).

Standard library only, and fit for Debian's python3: it runs before there is any virtual environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
from tests import matrix  # noqa: E402 -- found thanks to the line above, before anything is installed
from tests.debians import BOOTED, root_tree  # noqa: E402
from tests.rows import Row, counted, table  # noqa: E402
from tests.supplies import (  # noqa: E402
    BASE,
    GROUPS,
    PACKAGING,
    NotReadyError,
    cache,
    install,
    prune,
    say,
    virtual_environment,
)
from tests.systemd import sandbox  # noqa: E402

#: What runs side by side prints as a whole.
PRINTING: Final = threading.Lock()

if TYPE_CHECKING:
    from collections.abc import Sequence

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
PARTS: Final = (*EVERYTHING, "matrix", "bench")
#: Rows of parts that are run at the same time where all of them are: they wait most of the time.
TOGETHER: Final = (("conformance", "slow"), ("systemd",))
#: What other Pythons get. CI, which has 20 minutes, does without the frameworks there, and without the tests with a real systemd that need them.
ELSEWHERE: Final = ("tests",) if os.environ.get("CI") else ("tests", "frameworks")
NEEDS_ROOT: Final = ("systemd", "roots", "matrix")

PACKAGES: Final = {
    "conformance": ("openssl", "redis-server"),
    "unit": ("redis-server",),
    "process": ("openssl", "redis-server"),
    "systemd": ("haproxy", "nodejs", "redis-server", "systemd-container"),
    "bench": ("redis-server", "wrk"),
    "slow": ("nodejs", "redis-server", "systemd-container", *PACKAGING),
    "roots": ("mmdebstrap", "systemd-container"),
    "matrix": ("haproxy", "mmdebstrap", "nodejs", "redis-server", "systemd-container", *PACKAGING),
}

#: A Python that Debian 12 does not have; run where one is found.
PYTHON: Final = "3.12"
#: Other Debians: Python 3.13 and systemd 257; Python 3.14 and systemd 262.
SUITES: Final = ("trixie", "forky")
#: What is in their trees, for the virtual environments made there and the tests run there.
IN_ROOTS: Final = (*BOOTED, "git", "redis-server", *BASE)
#: The host's ways to the network, which a root shares.
NETWORK_FILES: Final = ("/etc/pip.conf", "~/.config/pip/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
NETWORK_ENVIRONMENT: Final = ("PIP_", "SSL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CI")


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
    if not folders:
        return Row(name or part, "NO TESTS")
    slow = "slow and not soak" if os.environ.get("CI") else "slow"
    marks = slow if part == "slow" else "not slow"
    parallel = ("-n", str(PARALLEL[part])) if part in PARALLEL else ()
    words = (str(venv / "bin" / "python"), "-m", "pytest", "--durations=12", "-m", marks, *parallel, *folders, *arguments)
    say(f"{name or part}: {shlex.join(words[1:])}")
    return counted(name or part, words, none="none" if part == "slow" else "NO TESTS")


# -- other Pythons, other systemds


def side_by_side(rows: Sequence[Sequence[str]], arguments: Sequence[str]) -> list[Row]:
    """Run rows of parts, or of what is to be run in other places, all at once; each part by a run of its own, whose output is shown when it ends."""

    def one_by_one(places: Sequence[str]) -> list[Row]:
        return [row for place in places for row in aside(place, arguments)]

    with ThreadPoolExecutor() as pool:
        return [row for ran in pool.map(one_by_one, rows) for row in ran]


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
        return in_root(root_tree(place, IN_ROOTS), arguments)
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
            rows = [lint(venv)]
        case "types":
            rows = [types(venv)]
        case "roots":  # what is portable on other Pythons, and the tests with a real systemd on newer ones
            rows = side_by_side([(place,) for place in (PYTHON, *SUITES)], arguments)
        case place if place in (PYTHON, *SUITES):
            rows = at(place, arguments)
        case "matrix":  # the Debian package, installed on each Debian
            rows = run_matrix(arguments)
        case place if place in matrix.PLACES:
            rows = matrix.run(place, venv, arguments)
        case _:
            rows = [run_pytest(part, venv, arguments)]
    return rows


def run_matrix(arguments: Sequence[str]) -> list[Row]:
    """Build the Debian package, and run what is to be run against it, on all Debians at once."""
    with matrix.built() as row:
        return [row, *(side_by_side([(place,) for place in matrix.PLACES], arguments) if row.passed else ())]


def batches(parts: Sequence[str]) -> list[Sequence[Sequence[str]]]:
    """Return the parts in their order, each a row of its own, but for the rows that are run at the same time."""
    together = [part for row in TOGETHER for part in row]
    if not set(together) <= set(parts):
        return [((part,),) for part in parts]
    return [TOGETHER if part == together[0] else ((part,),) for part in parts if part == together[0] or part not in together]


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
            rows += side_by_side(some, arguments) if len(some) > 1 else run_part(some[0][0], venv, arguments)
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
