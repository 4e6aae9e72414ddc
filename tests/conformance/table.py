"""The tables: what each subject can, by the tests that there are for it. CI runs them all, so a cell that says yes has passed."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.conformance.subjects import HTTP, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FULL: Final = CHECKOUT / "docs" / "adapters.md"
README: Final = CHECKOUT / "README.md"
MARKS: Final = ("<!-- adapters: written by tests/run conformance --write-table -->\n", "<!-- /adapters -->\n")
YES: Final = "yes"
NO: Final = "no"
NOTHING: Final = "-"
#: A column of the README's table, and the tests that it sums up.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "listener closed": ("stops_accepting", "backlog"),
        "requests held": ("request_in_flight", "stream", "hung_request", "failing_handler"),
        "keep-alive": ("keepalive", "announces_close"),
        "WebSocket, SSE": ("websocket", "events"),
        "jobs held": ("background_job", "job_begun_in_the_drain", "double_sigterm"),
        "socket activation": ("inherited_listener",),
    }
)


class Cell(NamedTuple):
    """One test: its file's stem, its name, its docstring, and the subject (or whatever it is parametrized by)."""

    file: str
    row: str
    says: str
    subject: str


class Tables:
    """Knows the tests of the whole folder, whatever is selected."""

    def __init__(self) -> None:
        """Store."""
        self.cells: list[Cell] = []
        self.texts: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)  # before what was not asked for is taken out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Take note of the tests."""
        for item in items:
            function = getattr(item, "function", None)
            if function is None or item.path.parent != Path(__file__).parent or item.path.stem == "test_table":
                continue
            name, _, subject = item.name.removeprefix("test_").partition("[")
            self.cells.append(Cell(item.path.stem.removeprefix("test_"), name, function.__doc__ or "", subject.rstrip("]")))
            self.texts[self.cells[-1].file] = (function.__globals__["__doc__"] or "").partition("\n")[0]

    def full(self) -> str:
        """Write docs/adapters.md."""
        return "\n".join([HEAD, *self._http(), *self._others(), ""])

    def short(self) -> str:
        """Write the README's part."""
        http = [cell for cell in self.cells if cell.file == "http"]
        lines = [f"| server | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for subject in HTTP:
            rows = {cell.row for cell in http if cell.subject == subject.name}
            cells = (summed(subject, rows, column) for column in COLUMNS.values())
            lines.append(f"| {subject} | {' | '.join(cells)} |")
        return "\n".join([*lines, ""])

    def _http(self) -> Iterator[str]:
        rows = {cell.row: cell.says for cell in self.cells if cell.file == "http"}
        yield from (f"{number}. *{row.replace('_', ' ')}*: {first(says)}" for number, (row, says) in enumerate(rows.items(), 1))
        yield f"\n| | {' | '.join(map(str, range(1, len(rows) + 1)))} |"
        yield "|---" * (len(rows) + 1) + "|"
        for subject in HTTP:
            tested = {cell.row for cell in self.cells if cell.file == "http" and cell.subject == subject.name}
            yield f"| {subject} | {' | '.join(summed(subject, tested, (row,)) for row in rows)} |"
        yield from sorted({f"\n`-` {subject}: {row.replace('_', ' ')}: {why}" for subject in HTTP for row, why in subject.lacks.items()})
        yield from sorted({f"\n`no` {subject}: {row.replace('_', ' ')}; at its start it says: {why}" for subject in HTTP for row, why in subject.limits.items()})

    def _others(self) -> Iterator[str]:
        for file in sorted({cell.file for cell in self.cells} - {"http"}):
            yield f"\n## {self.texts[file]}\n"
            rows: dict[str, list[str]] = {}
            for cell in self.cells:
                if cell.file == file:
                    rows.setdefault(first(cell.says), []).append(cell.subject)
            for says, subjects in rows.items():
                named = ", ".join(filter(None, subjects))
                yield f"- {says}" + (f" ({named})" if named else "")


def summed(subject: Subject, tested: Iterable[str], rows: tuple[str, ...]) -> str:
    """Sum up some tests of a subject: yes where there are some and all may pass."""
    there = [row for row in rows if row in tested]
    if not there:
        return NOTHING
    return NO if any(row in subject.limits for row in there) else YES


def first(text: str) -> str:
    """Return a docstring's first line."""
    return text.strip().partition("\n")[0]


def with_table(readme: str, table: str) -> str:
    """Return the README with the table in its place."""
    head, begin, rest = readme.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    return f"{head}{begin}{table}{end}{tail}"


HEAD: Final = """# What the adapters cover

Written by `tests/run conformance --write-table` from the tests, which that command runs (CI: all but further ways to start the same server,
and what takes minutes): a cell says yes where there is a test, which passes; no
where the framework makes it impossible, and says so at its start; and nothing where it has no meaning there.

## HTTP servers
"""
