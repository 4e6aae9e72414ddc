"""A service and the manager that plays systemd for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import Service
from requiem_systemd.testing import FakeManager

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    """Return a manager with short timeouts: whatever outlives them was extended."""
    with FakeManager(timeout_start=20, timeout_stop=10) as manager:
        yield manager


@pytest.fixture
def service(manager: FakeManager) -> Service:
    """Return a service that is up, and that `manager` looks after."""
    service = manager.arm(Service())
    service.ready()
    return service


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return, growing, what is logged as a warning or worse."""
    caplog.set_level(logging.INFO, "requiem_systemd")
    found: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            found.append(record.getMessage())
        return True

    caplog.handler.addFilter(keep)
    return found
