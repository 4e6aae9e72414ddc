"""The wheel and the source archive: built offline, they hold what they should and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from requiem_systemd.cli import VERBS

if TYPE_CHECKING:
    from email.message import Message

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "requiem_systemd"
#: What a module folder may hold. Anything else lies there by mistake.
SUFFIXES: Final = {".py", ".typed"}

pytest.importorskip("hatchling")
if not PACKAGE.is_dir():
    pytest.skip("the installed package is tested, there is no tree to build", allow_module_level=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both archives, by hatchling alone: no isolation, thus no network."""
    target = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "hatchling", "build", "--directory", str(target))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> list[str]:
    """Return the names of all files in the wheel."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    """Return the wheel's metadata."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def sdist(built: Path) -> list[str]:
    """Return the names of all files in the source archive, without its top folder."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return [member.name.partition("/")[2] for member in archive if member.isfile()]


def modules() -> set[str]:
    """Return the package's files in the tree; without the unit templates, which lie there too while Debian's package is built."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if not {"__pycache__", "units"} & set(path.relative_to(ROOT).parts)}


def templates() -> set[str]:
    """Return the unit templates, where they are in the wheel."""
    folder = ROOT / "units"
    return {f"requiem_systemd/units/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}


def test_wheel_holds_the_package(wheel: list[str]) -> None:
    """The wheel holds every file of the package, the unit templates, the mark of its types, and its own metadata."""
    found = {name for name in wheel if ".dist-info/" not in name}
    assert modules() | templates() == found
    assert "requiem_systemd/py.typed" in found


def test_wheel_is_pure(built: Path, wheel: list[str]) -> None:
    """It installs on every system without a compiler, and brings the licence."""
    assert [path.name for path in built.glob("*-py3-none-any.whl")] == [path.name for path in built.glob("*.whl")]
    assert any(name.endswith("/LICENSE") for name in wheel)


def test_nothing_foreign_lies_in_the_package() -> None:
    """A module folder holds Python and nothing else: what lies there is published."""
    assert set() == {name for name in modules() if Path(name).suffix not in SUFFIXES}


def test_sdist_holds_what_a_packager_needs(sdist: list[str]) -> None:
    """The source archive holds the package, what its tests read, and the papers."""
    papers = {"ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"}
    needed = modules() | papers | {"completions/requiem-systemd", "pyproject.toml", "tests/unit/test_packaging.py"}
    assert set() == needed - set(sdist)


def test_sdist_holds_nothing_else(sdist: list[str]) -> None:
    """What lies about in a working tree is not published; Debian's part comes from its own archive."""
    tops = {"completions", "docs", "examples", "man", "requiem_systemd", "tests", "units"}
    papers = {"ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"}
    papers |= {".gitignore", "PKG-INFO", "pyproject.toml"}
    assert set() == {name.partition("/")[0] for name in sdist} - tops - papers
    assert [name for name in sdist if "__pycache__" in name or name.endswith((".pyc", ".gz"))] == []


def test_metadata_asks_for_sdnotify_alone(metadata: Message) -> None:
    """A plain install needs no compiler: one dependency, pure Python; systemd-python is an extra."""
    required = metadata.get_all("Requires-Dist", [])
    assert [one for one in required if "extra ==" not in one] == ["sdnotify>=0.3.1"]
    assert "systemd" in metadata.get_all("Provides-Extra", [])


def test_metadata_is_the_readme(metadata: Message) -> None:
    """The index shows the README."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text().strip()


@pytest.mark.timeout(60)
def test_wheel_runs_from_its_own_files(built: Path, tmp_path: Path) -> None:
    """Unpacked somewhere else, without the tree, it imports and tracks."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import requiem_systemd as r\n"
        "with r.track('job'): print(r.__file__, r.in_flight()[0].label)"
    )
    done = subprocess.run((sys.executable, "-c", code, str(tmp_path)), check=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "requiem_systemd" / "__init__.py"), "job"]


@pytest.mark.timeout(60)
def test_wheel_writes_units(built: Path, tmp_path: Path) -> None:
    """Unpacked somewhere else it finds its templates in itself."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    command = (sys.executable, "-m", "requiem_systemd", "new", "shop", "--serve", "shop:app", "--directory", str(tmp_path / "out"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"shop.service", "shop.socket"}


@pytest.mark.parametrize("example", ["examples/10_seed.py", "examples/11_cluster.py"])
def test_what_was_ported_says_whose_it_is(example: str) -> None:
    """The ported example, the licence, and Debian's copyright file (where it is there) name the same author and file."""
    assert "cluster-requiem" in (ROOT / example).read_text()
    licence = (ROOT / "LICENSE").read_text()
    assert f"{example} is ported from cluster-requiem" in licence
    assert "Copyright (c) 2014 Pagar.me\n" in licence
    copyright_file = ROOT / "debian" / "copyright"
    assert not copyright_file.exists() or f"Files: {example}\nCopyright: 2014 Pagar.me\n" in copyright_file.read_text()


def test_manual_has_every_verb() -> None:
    """Each verb of the command has a section of its own in the manual page."""
    manual = (ROOT / "man" / "requiem-systemd.1").read_text()
    assert list(VERBS) == re.findall(r"^\.SS (\S+)$", manual, re.MULTILINE)


def test_page_for_packagers_is_the_example() -> None:
    """What docs/debian.md shows stands in the example's files, line by line; its anchor and listener are the templates, but for what the page says."""
    page = (ROOT / "docs" / "debian.md").read_text()
    files = {"make": "rules", "sh": "shop.postinst", "ini": "shop@.service"}
    shown = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert sorted(files) == sorted(kind for kind, _ in shown)
    example = ROOT / "examples" / "debian-package" / "debian"
    assert [line for kind, text in shown for line in text.splitlines() if line not in (example / files[kind]).read_text().splitlines()] == []


@pytest.mark.parametrize("suffix", [".service", ".socket", "@.service"])
def test_packaged_units_are_the_templates(suffix: str) -> None:
    """The example's units are the templates, but for what names and moves the service."""
    named = ("Description=", "Documentation=", "Also=", "ListenStream=", "ExecStart=/usr/bin/python3", "ExecStart=/srv/", "RuntimeDirectory", "WorkingDirectory=")

    def lines(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "ExecStartPre=", *named))]

    assert lines(ROOT / "units" / f"rolling{suffix}") == lines(ROOT / "examples" / "debian-package" / "debian" / f"shop{suffix}")
