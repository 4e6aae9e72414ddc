"""What has happened to a service, counted for whoever asks: nothing here is on the way of a job or a request."""

from __future__ import annotations

from collections import Counter
from typing import Final

from requiem_systemd.report import NO_RELOAD

OK: Final = "ok"
FAILED: Final = "failed"
REFUSED: Final = "refused"
VERDICTS: Final = (OK, FAILED, REFUSED)


def verdict(reason: str) -> str:
    """Return the verdict of a reload or a roll that ended with a reason, "" for none: a drain that cut in refuses it."""
    return REFUSED if reason == NO_RELOAD else FAILED if reason else OK


class Tally:
    """Counters that only grow, by a service's engine and by its primary, in the loop's thread."""

    def __init__(self) -> None:
        self.reloads: Counter[str] = Counter()
        self.rolls: Counter[str] = Counter()
        self.stopped: float | None = None  # when the service's own drain had ended, by the ledger's clock
        # Of workers that have drained and ended, while their primary went on or drained with them.
        self.drains: int = 0
        self.drain_seconds: float = 0.0

    def drained(self, seconds: float) -> None:
        """Count a worker's drain."""
        self.drains += 1
        self.drain_seconds += seconds
