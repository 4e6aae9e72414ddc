"""The table: what each subject can, by the tests that have passed, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.conformance import subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"
YES: Final = "yes"
NO: Final = "no"
NOTHING: Final = "-"


class Table:
    """Collects a cell for each test of a subject; on the controller where tests run in parallel."""

    def __init__(self, config: pytest.Config) -> None:
        """Store."""
        self._config = config
        self._cells: dict[tuple[str, str], bool] = {}

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's outcome: one that fails in any phase has failed."""
        row, bracket, subject = report.nodeid.rpartition("::test_")[2].partition("[")
        if bracket and "tests/conformance/" in report.nodeid:
            key = (row, subject.rstrip("]"))
            self._cells[key] = self._cells.get(key, True) and report.passed

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Write the table, if that was asked for."""
        if self._config.getoption("--write-table") and not hasattr(self._config, "workerinput"):
            FILE.write_text("\n".join([HEAD, *self._lines(), ""]))

    def _lines(self) -> Iterator[str]:
        rows = list(dict.fromkeys(row for row, _ in self._cells))
        names = [subject.name for subject in subjects.HTTP if any(name == subject.name for _, name in self._cells)]
        yield f"| | {' | '.join(names)} |"
        yield "|---" * (len(names) + 1) + "|"
        for row in rows:
            yield f"| {row.replace('_', ' ')} | {' | '.join(self._cell(row, name) for name in names)} |"

    def _cell(self, row: str, name: str) -> str:
        subject: Any = next(subject for subject in subjects.HTTP if subject.name == name)
        passed = self._cells.get((row, name))
        if passed is None:
            return NOTHING
        return NO if not passed or row in subject.limits else YES


HEAD: Final = """# What the adapters cover

Written by `tests/run conformance --write-table`: a cell says yes only where its test has passed.
"""
