"""What pip makes of the archives that would be published: fetches what they ask for from the index, and installs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
#: What a build of systemd-python needs.
HEADERS: Final = ("pkg-config", "--exists", "libsystemd")

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(300)]
pytest.importorskip("hatchling")
if not (ROOT / "requiem_systemd").is_dir():
    pytest.skip("the installed package is tested, there is no tree to build", allow_module_level=True)


def run(*command: str | Path, cwd: str | Path = "/", path: str | None = None) -> str:
    """Run a command with nothing of the tests' own environment; return what it wrote."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **({} if path is None else {"PATH": path})}
    done = subprocess.run(command, check=False, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the source archive and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """Return the wheel."""
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Return a virtual environment that has pip and nothing else."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    return tmp_path / "venv"


def contents(path: Path) -> dict[str, bytes]:
    """Return the files in a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_comes_from_the_sdist(dist: Path, wheel: Path, venv: Path, tmp_path: Path) -> None:
    """Built from the source archive, with what it asks for and nothing else, the wheel is the same."""
    (sdist,) = dist.glob("*.tar.gz")
    run(venv / "bin" / "pip", "wheel", "--no-deps", "--no-binary=requiem-systemd", f"--wheel-dir={tmp_path}", sdist)
    assert contents(wheel) == contents(tmp_path / wheel.name)


def test_installs_without_a_compiler(wheel: Path, venv: Path) -> None:
    """In a bare environment it brings its one dependency, imports, tracks, and has its command."""
    path = str(venv / "bin")
    assert [name for name in ("cc", "gcc", "pkg-config") if shutil.which(name, path=path)] == []
    run(venv / "bin" / "pip", "install", wheel, path=path)
    listed = run(venv / "bin" / "pip", "list", "--format=freeze").split()
    assert {"requiem-systemd", "sdnotify"} == {line.partition("==")[0].lower() for line in listed} - {"pip", "setuptools"}
    code = "import requiem_systemd as r\nwith r.track('job'): print(r.in_flight()[0].label)"
    assert run(venv / "bin" / "python", "-c", code, path=path) == "job\n"
    assert run(venv / "bin" / "requiem-systemd", "--version", path=path).startswith("requiem-systemd ")


def test_installs_with_the_journal(wheel: Path, venv: Path) -> None:
    """With the headers the extra `systemd` is built, and imports."""
    if shutil.which("pkg-config") is None or subprocess.run(HEADERS, check=False).returncode:
        pytest.skip("needs libsystemd's headers (Debian: apt install libsystemd-dev pkg-config gcc python3-dev)")
    run(venv / "bin" / "pip", "install", f"{wheel}[systemd]")
    code = "import requiem_systemd, systemd.journal; print(systemd.journal.__file__)"
    assert run(venv / "bin" / "python", "-c", code).startswith(str(venv))


def test_metadata_renders(dist: Path, venv: Path) -> None:
    """The index can show the README: twine, which uploads, has nothing against either archive."""
    run(venv / "bin" / "pip", "install", "twine")
    said = run(venv / "bin" / "twine", "check", "--strict", *sorted(dist.iterdir()))
    assert said.count("PASSED") == 2
