"""The Debian packages: built from the tree, and installed in a sandbox. Standard library only, see tests/supplies.py."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


def copy(target: Path, *, only: frozenset[str] = frozenset()) -> None:
    """Copy the tree's files, or those below some of its top names."""
    for source in sources():
        if not only or source.parts[0] in only:
            (target / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / source, target / source)


def missing() -> str:
    """Say why there can be no build on this machine; empty if there can."""
    for tool in ("dpkg-buildpackage", "git"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: apt build-dep .)"
    lacking = subprocess.run(("dpkg-checkbuilddeps",), check=False, cwd=CHECKOUT, env=ENVIRONMENT, capture_output=True, text=True)
    return f"{lacking.stderr.strip()} (Debian: apt build-dep .)" if lacking.returncode else ""


def build(folder: Path, *, environment: Mapping[str, str] | None = None, umask: int = 0o022, later: float = 0.0) -> None:
    """Build the packages from a copy of the tree in `folder`, into `folder`; BuildError if that fails.

    Args:
        folder: where; made if need be.
        environment: what is otherwise than in ENVIRONMENT.
        umask: the build's, and that of the clone.
        later: seconds by which its files are younger than ours here.
    """
    tree = folder / "tree"
    copy(tree)
    for path in tree.rglob("*"):
        programs = path.is_dir() or os.access(path, os.X_OK)
        path.chmod((0o777 if programs else 0o666) & ~umask)  # as git does
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + later))
    _build("binary", tree, {**ENVIRONMENT, **(environment or {})}, umask)


def build_source(folder: Path) -> None:
    """Build the source package into `folder`, its archive as a release's would be; BuildError if that fails."""
    tree = folder / "tree"
    copy(tree)
    version = re.match(r"(\S+) \((.+)-", (tree / "debian" / "changelog").read_text())
    assert version
    top = f"{version[1]}-{version[2]}"
    with tarfile.open(folder / f"{version[1]}_{version[2]}.orig.tar.gz", "w:gz") as archive:
        archive.add(tree, top, filter=lambda member: None if member.name == f"{top}/debian" else member)
    _build("source", tree, ENVIRONMENT)


def _build(what: str, tree: Path, environment: Mapping[str, str], umask: int = 0o022) -> None:
    """Run the tool; what it writes is beside what it makes."""
    with (tree.parent / "build.log").open("w+") as output:
        command = (*BUILD, f"--build={what}")
        done = subprocess.run(command, check=False, cwd=tree, env=environment, umask=umask, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        if done.returncode:
            output.seek(0)
            raise BuildError(output.read())


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each package in a folder, by name."""
    return {deb.name: hashlib.sha256(deb.read_bytes()).hexdigest() for deb in sorted(folder.glob("*.deb"))}


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
