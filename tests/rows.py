"""What became of tests, counted: the lines of the closing table."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from tests.supplies import CHECKOUT, cache

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What pytest says by its exit status: all passed, and there were none.
PASSED: Final = 0
NO_TESTS: Final = 5
#: The property of a report by which a run says what it left out, and why.
LEFT_OUT: Final = "left out"


@dataclasses.dataclass
class Row:
    """A line of the closing table, and what is to be said under it."""

    part: str
    verdict: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)


def counted(name: str, words: Sequence[str], *, cwd: Path = CHECKOUT, none: str = "NO TESTS", env: dict[str, str] | None = None) -> Row:
    """Run pytest, and count; `none` is the verdict where it finds no test."""
    row = Row(name, none)
    begin = time.monotonic()
    env = {**os.environ, **(env or {})}
    cacheless: tuple[str, ...] = ()
    if not os.access(cwd, os.W_OK):  # another user's: pytest and hypothesis warn that they cannot write
        cacheless = ("-p", "no:cacheprovider")
        env["HYPOTHESIS_STORAGE_DIRECTORY"] = str(cache() / "hypothesis")
    with tempfile.TemporaryDirectory(prefix="requiem-report-") as folder:
        report = Path(folder, "report.xml")
        status = subprocess.run((*words, *cacheless, f"--junit-xml={report}"), check=False, cwd=cwd, env=env).returncode
        if report.exists():
            _count(row, ET.parse(report).getroot())
    row.seconds = time.monotonic() - begin
    if status == PASSED and row.passed:
        row.verdict = "ok"
    elif status not in (PASSED, NO_TESTS):
        row.verdict = "failed"
    return row


def _count(row: Row, report: ET.Element) -> None:
    """Add up a report of pytest's."""
    for suite in report.iter("testsuite"):
        counts = {key: int(suite.get(key, "0")) for key in ("tests", "errors", "failures", "skipped")}
        row.failed += counts["errors"] + counts["failures"]
        row.skipped += counts["skipped"]
        row.passed += counts["tests"] - counts["errors"] - counts["failures"] - counts["skipped"]
    row.notes += [one.get("value", "") for one in report.iter("property") if one.get("name") == LEFT_OUT]


def table(rows: Sequence[Row]) -> str:
    """Return the closing table."""
    width = max(18, *(len(row.part) for row in rows)) + 2
    lines = [f"{'part':<{width}}{'':<10}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}"]
    for row in rows:
        counts = f"{row.passed:>8}{row.failed:>8}{row.skipped:>8}{row.seconds:>9.1f}"
        lines += [f"{row.part:<{width}}{row.verdict:<10}{counts}", *(f"    {note}" for note in row.notes)]
    return "\n".join(lines)
