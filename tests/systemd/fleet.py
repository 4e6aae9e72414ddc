"""Many units of different scripts, started and stopped side by side: what lasts seconds is waited for once."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import time
from typing import TYPE_CHECKING

from tests.systemd.conftest import unit_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from tests.systemd.sandbox import Sandbox

_SHOWN = (
    "Id",
    "ActiveState",
    "Result",
    "ExecMainStatus",
    "ActiveExitTimestampMonotonic",
    "InactiveEnterTimestampMonotonic",
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one unit ended."""

    result: str
    status: int
    seconds: float  # from the begin of the stop until the unit was inactive
    journal: str

    @property
    def verdict(self) -> tuple[str, int]:
        """Result= and the exit status (or the number of the signal)."""
        return self.result, self.status


class Fleet:
    """Units in one sandbox; they end with the `with` block."""

    def __init__(self, box: Sandbox, python: str, stem: str) -> None:
        """Store; `add` writes."""
        self.box = box
        self.units: dict[str, list[str]] = {}
        self._python = python
        self._stem = stem

    def __enter__(self) -> Fleet:  # noqa: PYI034 -- see Sandbox
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs."""
        names = [f"{self._stem}-*"]
        self.box.systemctl("stop", "--no-block", *names, check=False)
        self.box.systemctl("kill", "--signal=KILL", *names, check=False)
        self.box.systemctl("stop", *names, check=False)
        self.box.systemctl("reset-failed", *names, check=False)

    def add(self, name: str, script: str, count: int, **settings: object) -> None:
        """Write a Python script as `count` units."""
        path = f"/run/requiem-tests/{self._stem}-{name}.py"
        self.box.write(path, textwrap.dedent(script).lstrip())
        # The folder is for sockets: %t/%N
        usual = {"RuntimeDirectory": "%N", "TimeoutStartSec": 180, "Environment": ["PYTHONUNBUFFERED=1"]}
        text = unit_text(f"{self._python} {path}", {**usual, **settings})
        self.box.unit(f"{self._stem}-{name}@.service", text)
        self.units[name] = [f"{self._stem}-{name}@{number}.service" for number in range(count)]

    @property
    def names(self) -> list[str]:
        """Every unit."""
        return [unit for units in self.units.values() for unit in units]

    def start(self) -> None:
        """Start all, and wait until systemd has them for started."""
        # systemd forgets a unit that has ended well, with its result and its times, unless another refers to it.
        holder = f"{self._stem}-all.target"
        self.box.unit(holder, f"[Unit]\nAfter={' '.join(self.names)}\n")
        self.box.systemctl("start", holder, *self.names, timeout=120)

    def stop(self, *, block: bool = True) -> None:
        """Stop all by one `systemctl stop`."""
        self.box.systemctl("stop", *(() if block else ("--no-block",)), *self.names, timeout=120)

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until all have ended."""
        self._wait(self.names, {"active", "activating", "deactivating"}, timeout)

    def end(self, *names: str, timeout: float = 60.0) -> None:
        """Tell units of these names, through a FIFO in their folders, to end by themselves; wait until systemd has heard that they do.

        A manager that starts a hundred services reads their notifications seconds late: whoever tells it all on its own account has to
        wait for that before the times that it gives mean anything.
        """
        units = [unit for name in names for unit in self.units[name]]
        self.box.run("sh", "-c", 'for unit; do : > "/run/${unit%.service}/end"; done', "end", *units)
        self._wait(units, {"active"}, timeout)

    def _wait(self, units: Sequence[str], states: set[str], timeout: float) -> None:
        """Wait until none of them is in one of these states."""
        deadline = time.monotonic() + timeout
        while any(values["ActiveState"] in states for values in self._show(units)):
            if time.monotonic() > deadline:
                message = f"still there after {timeout:.0f} s: {self._show(units)}"
                raise TimeoutError(message)
            time.sleep(0.1)

    def ended(self) -> dict[str, list[Ended]]:
        """Say how all ended, by their names."""
        journals = self._journals()
        found = {}
        for values in self._show(self.names):
            begin, end = (
                int(values[f"{edge}TimestampMonotonic"]) for edge in ("ActiveExit", "InactiveEnter")
            )
            lines = "\n".join(journals.get(values["Id"], ()))
            found[values["Id"]] = Ended(
                values["Result"], int(values["ExecMainStatus"]), (end - begin) / 1e6, lines
            )
        return {name: [found[unit] for unit in units] for name, units in self.units.items()}

    def _show(self, units: Sequence[str]) -> Sequence[dict[str, str]]:
        text = self.box.systemctl("show", f"--property={','.join(_SHOWN)}", "--", *units).stdout
        return [
            dict(line.split("=", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")
        ]

    def _journals(self) -> dict[str, list[str]]:
        self.box.run("journalctl", "--sync")
        journals: dict[str, list[str]] = {}
        fields = "--output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT"
        text = self.box.run("journalctl", "--quiet", "--output=json", fields, f"--unit={self._stem}-*").stdout
        for record in map(json.loads, text.splitlines()):
            unit = record.get("UNIT") or record.get("_SYSTEMD_UNIT")
            at = int(record["__MONOTONIC_TIMESTAMP"]) / 1e6
            message = record["MESSAGE"]  # a list of bytes where it is not text
            journals.setdefault(unit, []).append(
                f"{at:.3f} {message if isinstance(message, str) else bytes(message)!r}"
            )
        return journals


def rounds(repetitions: int, most: int = 3) -> Iterator[int]:
    """Split repetitions: no more units at once than there are inotify instances for root (fs.inotify.max_user_instances=128)."""
    while repetitions > 0:
        yield min(most, repetitions)
        repetitions -= most
