"""The tables in docs/ and README.md are those of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conformance import table

if TYPE_CHECKING:
    import pytest


def test_tables(tables: table.Tables, pytestconfig: pytest.Config) -> None:
    """No cell says what no test shows."""
    readme = table.README.read_text()
    if pytestconfig.getoption("--write-table"):
        table.FULL.write_text(tables.full())
        table.README.write_text(table.with_table(readme, tables.short()))
    assert table.FULL.read_text() == tables.full()
    assert readme == table.with_table(readme, tables.short()) or pytestconfig.getoption("--write-table")
