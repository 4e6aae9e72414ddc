"""Fixtures for pytest. The library is imported by the first test that asks for one, not when pytest starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requiem_systemd.testing import FakeClock, FakeManager


@pytest.fixture
def requiem_manager() -> Iterator[FakeManager]:
    """Play systemd for the process's own service: what the code under test tracks holds this manager's stop.

    The service is armed without signals and without an exit; everything is given back after the test.
    """
    from requiem_systemd.testing import FakeManager  # noqa: PLC0415 - see the top

    with FakeManager() as manager:
        manager.arm()
        yield manager


@pytest.fixture
def requiem_clock(requiem_manager: FakeManager) -> FakeClock:
    """Return the virtual clock of `requiem_manager`; asking for it is asking for the manager too."""
    return requiem_manager.clock
