"""Processes under a socket of our own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.process.running import Manager, Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Return a process to be started; it ends with the test."""
    with (
        contextlib.closing(Manager(tmp_path / "notify")) as manager,
        contextlib.closing(Running(manager, tmp_path)) as process,
    ):
        yield process
