"""The version matrix: the Debian package installed on each Debian, and the tests with a real systemd run against it there.

One build, as it would be published, goes to every Debian. The tests run from a copy of the tree that has no
`requiem_systemd` in it, so that what a unit imports can only be what is installed; `test_control.py` sees to it
that it is. They are run here, and their units there, by that Debian's own Python.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.debians import BOOTED, root_tree
from tests.rows import Row, counted
from tests.supplies import CHECKOUT, cache, say, step
from tests.systemd import debs
from tests.systemd.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The Debians, by the names of the runs for them.
PLACES: Final = {f"matrix-{suite}": suite for suite in ("bookworm", "trixie", "forky")}
#: What the package needs, and the servers that the tests run, as each Debian has them.
PACKAGES: Final = (
    *(*BOOTED, "libpam-systemd", "python-is-python3", "python3-sdnotify", "python3-systemd"),
    *("celery", "gunicorn", "python3-aiohttp", "python3-fastapi", "python3-flask", "python3-grpcio", "python3-prometheus-client"),
    *("python3-redis", "python3-rq", "python3-waitress", "uvicorn"),
)
#: What the tests read beside themselves: what Debian's build and its autopkgtest give them too.
TREE: Final = CHECKOUT / "debian" / "pybuild.testfiles"
#: By which the run for one Debian is told where the packages are; test_package.py heeds it too.
DEBS: Final = "REQUIEM_DEBS"
PYTHON: Final = "/usr/bin/python"


@contextlib.contextmanager
def built() -> Iterator[Row]:
    """Build the packages, unless they are given; yield how that went. Who runs inside the block finds them."""
    begin = time.monotonic()
    row = Row("packages", "ok", passed=1)
    with contextlib.ExitStack() as stack:
        if DEBS not in os.environ:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matrix-", dir=cache())))
            try:
                with step("building the packages, with their unit tests"):
                    debs.build(folder)
            except debs.BuildError as error:
                say(str(error))
                row = Row("packages", "failed", failed=1)
            os.environ[DEBS] = str(folder)
            stack.callback(os.environ.pop, DEBS)
        row.seconds = time.monotonic() - begin
        row.notes = [f"{checksum}  {name}" for name, checksum in debs.checksums(Path(os.environ[DEBS])).items()]
        yield row


def run(place: str, venv: Path, arguments: Sequence[str]) -> list[Row]:
    """Run the suite against the package installed on one Debian, and the package's own tests there."""
    tree = root_tree(PLACES[place], PACKAGES)
    name = describe(PLACES[place], tree)
    none = "none" if arguments else "NO TESTS"  # they may choose from one of the two only
    pytest = (str(venv / "bin" / "python"), "-m", "pytest", "--durations=12")
    with tempfile.TemporaryDirectory(prefix="matrix-", dir=cache()) as folder:
        copy = Path(folder) / "tree"
        debs.copy(copy, only=frozenset(TREE.read_text().split()))
        there = ("tests/systemd", f"--sandbox-root={tree}", f"--sandbox-python={PYTHON}", f"--sandbox-debs={os.environ[DEBS]}")
        turn = f"--sandbox-turn={tuple(PLACES).index(place) / len(PLACES):.2f}"
        suite = counted(f"{name}: suite", (*pytest, "-m", "not slow", *there, turn, *arguments), cwd=copy, none=none)
    package = counted(f"{name}: package", (*pytest, "-m", "package", "tests/systemd", f"--sandbox-root={tree}", *arguments), cwd=CHECKOUT, none=none)
    return [suite, package]


def describe(suite: str, tree: Path) -> str:
    """Return a Debian's name, and its versions of systemd and Python."""
    with Sandbox(tree) as box:
        version = box.run(PYTHON, "-c", "import platform; print(platform.python_version())").stdout.strip()
        return f"{suite}, systemd {box.systemd_version}, Python {version}"
