"""The Debian package: installed on a Debian that has nothing of it, it keeps its promise there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.systemd import debs
from tests.systemd.sandbox import CHECKOUT, Sandbox, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCUMENTATION: Final = "/usr/share/doc/python3-requiem-systemd"

pytestmark = [pytest.mark.slow, pytest.mark.package, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def installed(built: Path, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Return a sandbox of its own with the packages installed, and what they depend on by apt."""
    if reason := missing():
        pytest.skip(f"no systemd: {reason}")
    with Sandbox(request.config.getoption("--sandbox-root")) as box:
        debs.install(box, built)
        yield box


def test_debian_s_python_finds_it(installed: Sandbox) -> None:
    """Debian's Python imports the package's own files, and both of the libraries under it."""
    code = "import requiem_systemd, sdnotify, systemd.journal; print(requiem_systemd.__file__)"
    assert installed.run("/usr/bin/python3", "-c", code).stdout.strip() == f"{debs.INSTALLED}/__init__.py"


def test_documentation_is_there(installed: Sandbox) -> None:
    """Units, examples and docs are there to be read and copied, not packed."""
    files = installed.run("dpkg", "--listfiles", "python3-requiem-systemd").stdout.splitlines()
    assert f"{DOCUMENTATION}/docs/deploying.md" in files
    assert f"{DOCUMENTATION}/examples/01_threads.py" in files
    assert [name for name in files if name.startswith(f"{DOCUMENTATION}/units/") and name.endswith(".service")]
    assert [name for name in files if "/systemd/system/" in name] == []  # a library ships no enabled unit


def test_command_has_its_verbs(installed: Sandbox) -> None:
    """The command is in PATH, runs by Debian's Python, and has a manual page."""
    assert "reload" in installed.run("requiem-systemd", "--help").stdout
    first = installed.run("head", "--lines=1", "/usr/bin/requiem-systemd").stdout
    assert first == "#!/usr/bin/python3\n"
    files = installed.run("dpkg", "--listfiles", "requiem-systemd").stdout.splitlines()
    assert "/usr/share/man/man1/requiem-systemd.1.gz" in files
    assert "/usr/share/bash-completion/completions/requiem-systemd" in files  # where the package bash-completion looks for it


def test_example_finishes_its_jobs(installed: Sandbox) -> None:
    """An example, as it is installed, finishes the jobs in flight at a stop that takes longer than TimeoutStopSec=."""
    done = installed.run("sh", CHECKOUT / "debian" / "tests" / "systemd", check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_removing_leaves_nothing(installed: Sandbox) -> None:
    """Purged, nothing of it is left; the last test, therefore."""
    names = installed.run("dpkg-query", "--show", "--showformat=${Package}\n", "*requiem-systemd*").stdout.split()
    files = {name for one in names for name in installed.run("dpkg", "--listfiles", one).stdout.splitlines() if "requiem" in name}
    installed.run("apt-get", "--quiet", "--yes", "purge", *names, timeout=300, env=debs.APT)
    script = "import os, sys; print(*filter(os.path.lexists, sys.argv[1:]))"
    assert installed.run("/usr/bin/python3", "-c", script, *sorted(files)).stdout.strip() == ""
