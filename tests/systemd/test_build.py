"""The Debian packages are built clean, and twice the same."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.systemd import debs

if TYPE_CHECKING:
    from pathlib import Path

#: What is otherwise in the second build. Its folder, its time and the times of all its files are too.
ANOTHER: Final = {
    "DEB_BUILD_OPTIONS": "nocheck parallel=2",  # the tests have been run by the first
    "HOME": "/nonexistent/second",
    "LANG": "C",
    "LC_ALL": "C",
    "PYTHONHASHSEED": "1",
    "TZ": "Pacific/Kiritimati",
    "USER": "somebody",
}
DAY: Final = 24 * 3600

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_lintian_is_content(built: Path, tmp_path: Path) -> None:
    """It has nothing to say of the packages nor of their source, not even what it is only pedantic about."""
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian")
    debs.build_source(tmp_path)
    words = ("lintian", "--allow-root", "--pedantic", "--display-info", "--display-experimental")
    changes = (*built.glob("*.changes"), *tmp_path.glob("*.changes"))
    done = subprocess.run((*words, *changes), check=False, env=debs.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert len(changes) == 2
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.soak
def test_builds_are_the_same(built: Path, tmp_path: Path) -> None:
    """A second build, elsewhere, on another day, with another umask, time zone and locale, makes the same bytes."""
    second = tmp_path / "a-folder-of-another-name"  # without a space: pybuild takes none
    debs.build(second, environment=ANOTHER, umask=0o002, later=DAY)
    assert debs.checksums(built) == debs.checksums(second)
    assert len(debs.checksums(second)) == 2
