"""The closing table of `tests/run`: what it counts, and what it says under a row."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.rows import Row, counted, table

if TYPE_CHECKING:
    from pathlib import Path

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
TESTS = """
    import pytest

    @pytest.fixture(scope="session")
    def reporting(record_testsuite_property):
        record_testsuite_property("left out", "left out: 2 tests, systemd 252 has no moon (253)")

    def test_passes(reporting): pass
    def test_fails(): assert False
    def test_skipped(): pytest.skip()
"""


@pytest.mark.timeout(60)
def test_counts_and_notes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A row has how many passed, failed and were skipped, and each line by which the run says what it left out."""
    (tmp_path / "test_it.py").write_text(textwrap.dedent(TESTS))
    row = counted("some", PYTEST, cwd=tmp_path)
    assert (row.verdict, row.passed, row.failed, row.skipped) == ("failed", 1, 1, 1)
    assert row.notes == ["left out: 2 tests, systemd 252 has no moon (253)"]


@pytest.mark.timeout(60)
def test_nothing_to_count(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No tests at all is a verdict of its own."""
    assert counted("some", PYTEST, cwd=tmp_path).verdict == "NO TESTS"


def test_table() -> None:
    """Columns stand under each other however long a name is; notes stand under their row."""
    rows = [Row("bookworm, systemd 252, Python 3.11.2: suite", "ok", 12.3, 7, notes=["left out: a moon"]), Row("unit", "ok", 1.0, 5)]
    head, first, note, second = table(rows).splitlines()
    assert len(head) == len(first) == len(second)
    assert note == "    left out: a moon"
