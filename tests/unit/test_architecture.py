"""ARCHITECTURE.md is true: every module is in its list, and imports go up the list only."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import requiem_systemd

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = Path(requiem_systemd.__file__).parent
LIST: Final = re.findall(r"^(\w+)(?:\.py|/)  ", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)


def modules() -> dict[str, list[Path]]:
    """Return the package's modules, and sub-packages with all their files, by name."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py")}
    return found | {path.parent.name: sorted(path.parent.rglob("*.py")) for path in PACKAGE.glob("*/__init__.py")}


def imported(path: Path) -> Iterator[str]:
    """Yield what a file imports of this package, wherever in it, by module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module="requiem_systemd", names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module)) if module.startswith("requiem_systemd."):
                yield module.split(".")[1]
            case ast.ImportFrom(level=level) if level:
                yield "a relative import, which this test does not follow"
            case ast.Import(names=names):
                yield from (name.name.split(".")[1] for name in names if name.name.startswith("requiem_systemd."))


def test_list_is_complete() -> None:
    """Each module stands in the list once, and nothing else does."""
    assert sorted(modules()) == sorted(LIST)


def test_imports_go_up() -> None:
    """A module imports only from those above it."""
    down = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for module, paths in modules().items()
        for path in paths
        for name in imported(path)
        if name != module and name not in LIST[: LIST.index(module)]
    ]
    assert down == []


def test_only_the_gate_touches_signals() -> None:
    """Signal handlers are given back by who took them: one module."""
    users = {path.name for path in PACKAGE.glob("*.py") if re.search(r"^ *(import|from) signal\b", path.read_text(), re.MULTILINE)}
    assert {"gate.py"} == users
