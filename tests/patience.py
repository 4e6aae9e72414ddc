"""How long tests wait for what comes at once on a machine that is not busy: time that only a failure takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from requiem_systemd.testing import FakeManager

if TYPE_CHECKING:
    from collections.abc import Callable

    from requiem_systemd.testing import Message

#: Seconds. A machine that shares two cores among ten processes takes 15 to start one that imports a framework.
PATIENCE: Final = 60.0
#: For a whole test of real processes, in place of `timeout` in pyproject.toml: it waits several times.
TEST: Final = 120.0


class PatientManager(FakeManager):
    """A FakeManager whose `wait_` methods are patient unless told otherwise."""

    def wait_for(self, what: str | Callable[[], object], timeout: float = PATIENCE) -> None:
        """Wait for a state of the unit, or until a question is answered with yes."""
        super().wait_for(what, timeout)

    def wait_message(self, key: str, value: str | None = None, timeout: float = PATIENCE) -> Message:
        """Wait for a message with an assignment, and return the first."""
        return super().wait_message(key, value, timeout)
