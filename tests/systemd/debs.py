"""The Debian packages: built from the tree, and installed in a sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.sandbox import Sandbox

#: A build sees Debian's own tools, whatever comes first where the tests run (a virtual environment, pyenv).
ENVIRONMENT: Final = {"HOME": "/nonexistent", "LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
APT: Final = {"DEBIAN_FRONTEND": "noninteractive", **ENVIRONMENT}
#: Where Debian's Python finds the installed package.
INSTALLED: Final = "/usr/lib/python3/dist-packages/requiem_systemd"
BUILD: Final = ("dpkg-buildpackage", "--unsigned-source", "--unsigned-changes")


class BuildError(Exception):
    """There is no package to be had; the message has what the tool wrote, or where none is."""


def sources() -> Iterator[Path]:
    """Yield the tree's files as a clean clone would have them, with what is changed and not committed yet."""
    listing = ("git", "-C", str(CHECKOUT), "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    yield from (Path(name) for name in names if name and (CHECKOUT / name).is_file())


def copy(target: Path) -> None:
    """Copy the tree's files."""
    for source in sources():
        (target / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / source, target / source)


def missing() -> str:
    """Say why there can be no build on this machine; empty if there can."""
    for tool in ("dpkg-buildpackage", "git"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: apt build-dep .)"
    lacking = subprocess.run(("dpkg-checkbuilddeps",), check=False, cwd=CHECKOUT, env=ENVIRONMENT, capture_output=True, text=True)
    return f"{lacking.stderr.strip()} (Debian: apt build-dep .)" if lacking.returncode else ""


def build(folder: Path) -> None:
    """Build the packages from a copy of the tree in `folder`, into `folder`; BuildError if that fails."""
    tree = folder / "tree"
    copy(tree)
    done = subprocess.run((*BUILD, "--build=binary"), check=False, cwd=tree, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(done.stdout)


def install(box: Sandbox, folder: str | os.PathLike[str]) -> None:
    """Install the packages in a folder, with what they depend on by apt; BuildError if there are none."""
    debs = sorted(Path(folder).glob("*.deb"))
    if not debs:
        message = f"there are no packages in {folder}"
        raise BuildError(message)
    command: tuple[str | Path, ...] = ("apt-get", "--quiet", "--yes", "--no-install-recommends", "install", *debs)
    for deb in debs:
        box.bind(deb)
    if box.run(*command, check=False, timeout=300, env=APT).returncode:  # the usual reason: old package lists, or none
        box.run("apt-get", "--quiet", "update", timeout=300, env=APT)
        box.run(*command, timeout=300, env=APT)
