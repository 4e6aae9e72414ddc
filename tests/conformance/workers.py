"""Workers of queues as services, any number side by side, each of a manager of its own; one broker and one record for all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance.conftest import CHECKOUT, PROGRAMS, TIMEOUT_STOP, Server, wait_until
from tests.patience import PatientManager

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.subjects import Subject
    from tests.redisserver import Server as Redis

# Words that no worker writes when all is well.
ALARMS = ("Traceback", "Warning", "WARNING", "was destroyed", "CRITICAL", "ERROR", "Unrecoverable", "Requeuing")


def environment(broker: Redis) -> dict[str, str]:
    """Return what the programs find."""
    return {**os.environ, "PYTHONPATH": f"{PROGRAMS}:{CHECKOUT}", "BROKER": broker.url, "PYTHONDONTWRITEBYTECODE": "1"}


def submit(program: str, broker: Redis, *words: object) -> None:
    """Put jobs into a queue: kind, name, seconds, and so on."""
    command = (sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, words))
    subprocess.run(command, env=environment(broker), check=True, timeout=30)


class Worker(Server):
    """One worker; its port is the broker's."""

    def __init__(self, subject: Subject, manager: PatientManager, folder: Path, broker: Redis, number: int) -> None:
        """Store; `begin` acts."""
        super().__init__(subject, manager, folder, broker.port)
        self._broker = broker
        self._output = folder / f"output{number}"

    @property
    def words(self) -> tuple[str, ...]:
        """How it is started."""
        assert self.subject.activated is not None
        return self.subject.activated

    def add(self, *words: str) -> None:
        """Have it started with more words."""
        self.subject = dataclasses.replace(self.subject, activated=(*self.words, *words))

    def begin(self, **env: str) -> Worker:
        """Start it, and wait until it is ready."""
        self.start(activated=True, ready=True, **{"BROKER": self._broker.url, **env})
        return self


class Workers:
    """All workers of a test."""

    def __init__(self, subject: Subject, folder: Path, broker: Redis) -> None:
        """Store."""
        self.subject = subject
        self.broker = broker
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._all: list[Worker] = []

    def make(self) -> Worker:
        """Make one, not started."""
        manager = self._stack.enter_context(PatientManager(timeout_stop=TIMEOUT_STOP))
        worker = Worker(self.subject, manager, self._folder, self.broker, len(self._all))
        self._stack.callback(worker.kill)
        self._all.append(worker)
        return worker

    def begin(self, **env: str) -> Worker:
        """Start one, and wait until it is ready."""
        return self.make().begin(**env)

    def submit(self, *words: object) -> None:
        """Put jobs into the queue: kind, name, seconds, and so on."""
        submit(self.subject.env["PROGRAM"], self.broker, *words)

    def control(self, *words: str) -> str:
        """Have Celery's own command say something to all of them."""
        command = (str(Path(sys.executable).with_name("celery")), "-A", "celery_app", *words)
        return subprocess.run(command, env=environment(self.broker), cwd=PROGRAMS, check=False, timeout=30, stdout=subprocess.PIPE, text=True).stdout

    def let_go(self) -> None:
        """Let the jobs end that are held."""
        (self._folder / "record.go").touch()

    @property
    def recorded(self) -> list[str]:
        """What happened in any of them."""
        return (self._folder / "record").read_text().splitlines()

    def counted(self, word: str) -> Counter[str]:
        """Count what was begun, or ended, by name."""
        return Counter(line.removeprefix(f"{word} ") for line in self.recorded if line.startswith(f"{word} "))

    def wait_recorded(self, line: str) -> None:
        """Wait until one of them has written a line into the record."""
        try:
            wait_until(lambda: line in self.recorded)
        except TimeoutError as error:
            error.add_note("\n".join(["", *self.recorded, *(worker.output for worker in self._all)]))
            raise

    def wait_ended(self, count: int) -> None:
        """Wait until so many jobs have ended."""
        wait_until(lambda: sum(self.counted("ended").values()) >= count)

    def close(self) -> None:
        """End whatever is left of them."""
        self._stack.close()


@contextlib.contextmanager
def workers_of(subject: Subject, folder: Path, broker: Redis) -> Iterator[Workers]:
    """Return what starts them; they end with the block, and the next test finds an empty broker."""
    made = Workers(subject, folder, broker)
    (folder / "record").touch()
    try:
        yield made
    finally:
        made.close()
        broker.flush()
