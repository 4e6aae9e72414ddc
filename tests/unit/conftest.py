"""A service and the manager that plays systemd for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import Service, journal
from requiem_systemd.journal import LOG
from requiem_systemd.testing import FakeManager

if TYPE_CHECKING:
    from collections.abc import Iterator


class Journal(logging.Handler):
    """What was sent, record by record; as a handler of its own it outlives a service's `install`."""

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__(logging.INFO)
        self.records: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take what would be sent."""
        self.send(*journal.fields(record, self.format(record)))

    def send(self, *fields: bytes) -> None:
        """Take one record."""
        self.records.append(dict(field.decode().split("=", 1) for field in fields))

    def of(self, kind: str) -> list[dict[str, str]]:
        """Return the records of one kind."""
        return [record for record in self.records if record.get("MESSAGE_ID") == journal.MESSAGE_IDS[kind]]


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


@pytest.fixture
def seen() -> Iterator[Journal]:
    """Return what would be sent while services come and go."""
    kept = Journal()
    LOG.addHandler(kept)
    LOG.setLevel(logging.INFO)
    yield kept
    LOG.setLevel(logging.NOTSET)
    LOG.removeHandler(kept)
