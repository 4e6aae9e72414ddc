"""Trackers that have held the drain for too long: let go, abandoned, or reported as stalled."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

from requiem_systemd import journal, report
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.ledger import Entry, More
from requiem_systemd.protocol import duration, usec
from requiem_systemd.setting import Setting
from requiem_systemd.stacks import TaskIndex, describe, stack, task_of

LOG: Final = logging.getLogger("requiem_systemd")
# Of a drain that abandons thousands, so many get a record of their own: the journal limits a service's rate.
RECORDS_MAX: Final = 20
PLAIN: Final = More()


def kind_of(entry: Entry) -> str:
    """Return what kind of thing an entry stands for."""
    return (entry.extra() or PLAIN).kind


class Limits:
    """Applies the limits while draining; knows what was abandoned."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.abandoned: tuple[JobInfo, ...] = ()
        self.owners: set[object] = set()

    def info(self, entry: Entry, find: Callable[[Entry], object] = task_of) -> JobInfo:
        """Show one entry as it stands; `find`: `task_of`."""
        ledger = self._setting.ledger
        now = ledger.clock()
        return describe(entry, now - ledger.live.get(entry, now), self._setting.options.redact, find)

    def check(self) -> None:
        """See what has run out, and set the alarm for what is next."""
        ledger, options = self._setting.ledger, self._setting.options
        ledger.limits_changed = False
        due = ledger.due(ledger.clock(), options.request_timeout)
        for entry in due.stalled:
            self._stalled(entry)
        for entry in due.released:
            self._let_go(entry)
        self.abandon(due.abandoned)
        for entry in due.abandoned:
            ledger.leave(entry)
        if due.deadline < math.inf:
            self._setting.loop.alarm(self.check, due.deadline)

    def end(self) -> None:
        """Apply them no longer."""
        self._setting.loop.cancel(self.check)

    def abandon(self, entries: Sequence[Entry]) -> None:
        """Name what is abandoned, with its stacks: the first twenty one by one, then the sum."""
        index = TaskIndex(entries)  # one pass over the tasks for all, not one for each
        found = [(self.info(entry, index.task_of), index.task_of(entry)) for entry in entries]
        self.abandoned += tuple(info for info, _ in found)
        self.owners.update(owner for _, owner in found)
        for info, owner in found[:RECORDS_MAX]:
            self._record("abandoned", info, "abandoned %s, %s, at\n%s", report.listing([info]), info.owner, stack(owner))
        rest = len(found) - RECORDS_MAX
        if rest > 0:
            LOG.warning("abandoned %d more", rest, extra=journal.record("abandoned", count=rest))
        for entry in entries:
            self._setting.ledger.give_up(entry)

    def _let_go(self, entry: Entry) -> None:
        info = self.info(entry)
        limit = duration(self._setting.options.request_timeout)
        self._record("let-go", info, "%s let go after %s of draining: %s", info.kind, limit, report.listing([info]))
        owner = task_of(entry)
        self.owners.add(owner)  # a thread of it that hangs on does not keep the process either
        self._setting.ledger.give_up(entry)
        self._setting.ledger.leave(entry)
        if (more := entry.extra()) is not None:
            more.let_go(owner)

    def _stalled(self, entry: Entry) -> None:
        info = self.info(entry)
        if (more := entry.extra()) is not None:
            more.stalled = True
        self._record("stalled", info, "stalled, no heartbeat: %s, %s, at\n%s", report.listing([info]), info.owner, stack(task_of(entry)))
        self._setting.hooks.emit("stalled", (info,), lambda _: self._setting.loop.wake())

    def _record(self, kind: str, info: JobInfo, text: str, *arguments: object) -> None:
        fields = {"label": info.label, "age_usec": usec(info.age), "owner": info.owner, "where": info.where}
        LOG.warning(text, *arguments, extra=journal.record(kind, **fields))
