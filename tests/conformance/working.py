"""Programs that are no HTTP servers, as services of a manager that plays systemd; and a Redis for those that fetch from one."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from tests import redisserver
from tests.conformance.conftest import TIMEOUT_STOP, Server
from tests.conformance.subjects import Subject
from tests.patience import PatientManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Words that nothing writes when all is well.
ALARMS: Final = (
    "Traceback",
    "Warning",
    "was destroyed",
    "never awaited",
    "never retrieved",
    "CRITICAL",
    "ERROR",
    "abandoned",
    "let go",
)


class Program(Server):
    """One program as a running service; it listens nowhere, or says itself when it does."""

    def launch(self, **env: str) -> Program:
        """Start it, and wait until it is ready."""
        self.start(activated=True, ready=True, **env)
        return self

    def sigint_again(self) -> None:
        """Send SIGINT twice, more than a second apart."""
        self.manager.kill("SIGINT")
        begun = self.manager.wait_message("EXTEND_TIMEOUT_USEC").at
        self.wait_for(lambda: any(message.at > begun + 1.2 for message in self.manager.messages))
        self.manager.kill("SIGINT")

    def is_clean(self) -> None:
        """Expect that nothing in its output says that anything was amiss."""
        assert not [word for word in ALARMS if word in self.output], self.output

    def signal_all(self, number: signal.Signals) -> None:
        """Signal every process of it, as a terminal, or KillMode=control-group, does."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def program(folder: Path, *command: str, port: int = 0, workers: int = 0) -> Iterator[Program]:
    """Return a program, not started: `{bin}`, `{python}` and `{port}` in the command are filled in. It ends with the block.

    `workers`: how many processes of its own it starts, which are those that speak to the manager.
    """
    notify_access = "all" if workers else "main"
    with PatientManager(timeout_stop=TIMEOUT_STOP, notify_access=notify_access) as manager:
        made = Program(Subject(command[0], command, command, notify_access=notify_access, workers=workers), manager, folder, port)
        try:
            yield made
        finally:
            made.kill()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run a Redis of our own that keeps nothing; return its URL."""
    with redisserver.serving(folder) as server:
        yield server.url
