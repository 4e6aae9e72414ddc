"""One drain: from the begin until nothing is in flight."""

from __future__ import annotations

import functools
import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

from requiem_systemd import journal, report
from requiem_systemd.chronicle import Chronicle
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.latch import Latch
from requiem_systemd.ledger import HOOK, JOB, LISTENER, REQUEST, WORKER, Entry, More, Record
from requiem_systemd.limits import Limits, kind_of
from requiem_systemd.protocol import duration
from requiem_systemd.setting import Setting
from requiem_systemd.stacks import TaskIndex, brief, describe

LOG: Final = logging.getLogger("requiem_systemd")
SHOW_EVERY: Final = 1.0
# When a drain that lasts is a warning: after 1 and 5 minutes, then every 15.
LONG: Final = (60.0, 300.0, 900.0)


class Drain:
    """Closes the doors, applies the limits, tells operators what is waited for.

    `idle` is called when the ledger is empty and closed, `expired` when `drain_timeout` has passed. Runs in the loop's thread.
    """

    def __init__(self, setting: Setting, idle: Callable[[], object], expired: Callable[[], object], chronicle: Chronicle) -> None:
        self._setting = setting
        self._chronicle = chronicle
        self._idle = idle
        self._expired = expired
        self.begun: Latch = Latch()
        self.closing: Latch = Latch()
        self.closed: Latch = Latch()
        self.limits: Limits = Limits(setting)
        self._began = 0.0
        self._status = ""
        self._shown = ""
        self._shutting: set[Record] = set()
        self._lame: list[Entry] = []
        self._lame_hold: Record | None = None

    # -- its course ----------------------------------------------------------------------------------------------------

    def begin(self) -> str:
        """Let nothing in at the front doors any more; returns the first status line."""
        self._setting.ledger.begin()
        self._began = self._setting.now()
        try:
            return self._line()
        except Exception:  # what a drain says must not cost the stop its extension
            LOG.exception("the drain cannot be described")
            return "Draining"

    def run(self, reason: str, tell: Callable[..., object]) -> None:
        """Set the alarms, run the `begin` handlers, then close the doors; `tell` gets what is known of the holders, as fields."""
        setting, now = self._setting, self._setting.now()
        self.begun.set()
        setting.loop.alarm(self._show, now + SHOW_EVERY)
        setting.loop.alarm(self._warn, now + LONG[0])
        if setting.options.drain_timeout is not None:
            setting.loop.alarm(self._expire, now + setting.options.drain_timeout)
        self._begin_lame_duck(now)
        opening = self._hold("the begin of the drain", HOOK)
        setting.hooks.emit("begin", (reason,), lambda _: setting.loop.post(lambda: self._handled(opening)))
        # A hung handler does not keep the doors open for ever; it holds the stop all the same.
        setting.loop.alarm(lambda: self._handled(opening), now + setting.options.request_timeout)
        self._chronicle.begin(reason)
        tell(**self._chronicle.first())
        self.limits.check()

    def look(self) -> None:
        """See what has ended: the drain, a lame duck that waited for its jobs; and whether limits have come."""
        ledger = self._setting.ledger
        self._chronicle.look()
        if self._lame_hold is not None and self._setting.options.lame_duck == "jobs":
            while self._lame and self._lame[-1] not in ledger.live:
                self._lame.pop()
            if not self._lame:
                self._end_lame_duck()
        if ledger.limits_changed:
            self.limits.check()
        if not ledger.live and ledger.close():
            self._idle()

    def end(self) -> None:
        """It is over: nothing is shown and nothing expires any more."""
        self._chronicle.end(len(self.limits.abandoned))
        for alarm in (self._show, self._warn, self._expire):
            self._setting.loop.cancel(alarm)
        self.limits.end()
        self._close_doors()

    def abandon(self) -> None:
        """Hold the stop for nothing any longer; name the jobs."""
        self.limits.abandon([entry for entry, _ in self._setting.ledger.entries() if kind_of(entry) in (JOB, WORKER)])
        self._setting.ledger.close(force=True)

    def close(self) -> None:
        """Give the descriptors back."""
        self.begun.close()
        self.closing.close()
        self.closed.close()

    # -- doors ---------------------------------------------------------------------------------------------------------

    def _handled(self, opening: Record) -> None:
        if self._lame_hold is None:
            self._close_doors()
        self._setting.ledger.leave(opening)

    def _begin_lame_duck(self, now: float) -> None:
        duck = self._setting.options.lame_duck
        on_terminal = not self._setting.notifier and sys.stderr is not None and sys.stderr.isatty()
        if not duck or on_terminal:
            return
        if duck == "jobs":
            self._lame = [entry for entry, _ in self._setting.ledger.entries() if kind_of(entry) == JOB][::-1]
        else:
            self._setting.loop.alarm(self._end_lame_duck, now + float(duck))
        self._lame_hold = self._hold("lame duck", HOOK)

    def _end_lame_duck(self) -> None:
        hold, self._lame_hold = self._lame_hold, None
        if hold is not None:
            self._close_doors()
            self._setting.ledger.leave(hold)

    def _close_doors(self) -> None:
        self.closing.set()
        doors = {self._hold(f"listener {door.label}", LISTENER): door for door in self._setting.doors.close()}
        self._shutting |= doors.keys()
        for record, door in doors.items():
            try:
                door.shut(functools.partial(self._has_shut, record))
            except Exception:
                LOG.exception("%s could not be closed", record.name)
                self._has_shut(record)
        self._look_at_doors()

    def _has_shut(self, record: Record) -> None:
        """Hear, in whatever thread, that a door is closed."""
        self._shutting.discard(record)
        self._setting.loop.post(self._look_at_doors)
        self._setting.ledger.leave(record)

    def _look_at_doors(self) -> None:
        if not self._shutting:
            self.closed.set()

    def _hold(self, name: str, kind: str) -> Record:
        record = Record(name, None)
        record.more = More(kind)
        if not self._setting.ledger.closed:
            self._setting.ledger.enter(record)
        return record

    # -- what operators see --------------------------------------------------------------------------------------------

    def jobs(self) -> tuple[JobInfo, ...]:
        """Show what is in flight, oldest first; any thread."""
        return self._described(self._setting.ledger.entries())

    def listing(self) -> str:
        """List the oldest that are in flight, and how many more there are; empty if none is."""
        return report.listing(self._described(self._setting.ledger.oldest(report.LISTED)), len(self._setting.ledger.live))

    def _described(self, entries: list[tuple[Entry, float]]) -> tuple[JobInfo, ...]:
        now, redact = self._setting.ledger.clock(), self._setting.options.redact
        index = TaskIndex(entry for entry, _ in entries)  # one pass over the tasks for all, not one for each
        return tuple(describe(entry, now - start, redact, index.task_of) for entry, start in entries)

    def set_status(self, text: str) -> None:
        """Show a text behind the drain's own line."""
        self._status = text

    def sums(self) -> dict[str, object]:
        """Say in a worker what its primary adds up; elsewhere nothing."""
        setting = self._setting
        if setting.environment.worker is None:
            return {}
        entries = setting.ledger.entries()
        kinds = Counter(kind_of(entry) for entry, _ in entries)
        oldest = next((entry for entry, _ in entries if kind_of(entry) == JOB), None)
        sums: dict[str, object] = {"X_REQUIEM_JOBS": kinds[JOB] + kinds[HOOK], "X_REQUIEM_REQUESTS": kinds[REQUEST]}
        return sums if oldest is None else {**sums, "X_REQUIEM_OLDEST": brief(self.limits.info(oldest))}

    def _line(self) -> str:
        setting = self._setting
        entries, now = setting.ledger.entries(), setting.ledger.clock()
        kinds = Counter(kind_of(entry) for entry, _ in entries)
        oldest = next((describe(entry, now - start, setting.options.redact) for entry, start in entries if kind_of(entry) == JOB), None)
        status = "the container runtime's own stop timeout goes on" if setting.in_container() else setting.shown(self._status)
        return report.draining(setting.now() - self._began, kinds, oldest, setting.doors.waiting(), status)

    def _show(self) -> None:
        self._setting.loop.alarm(self._show, self._setting.now() + SHOW_EVERY)
        if self._setting.notifier:
            line = self._line()
            if line != self._shown:
                self._shown = line
                self._setting.notifier.tell(STATUS=line, **self.sums())

    def _warn(self) -> None:
        elapsed = self._setting.now() - self._began
        following = next((at for at in LONG if at > elapsed + 1), elapsed + LONG[-1])
        self._setting.loop.alarm(self._warn, self._began + following)
        LOG.warning(
            "draining for %s: %s. To hurry it up: systemctl kill -s QUIT %sUNIT",
            duration(elapsed),
            self.listing(),
            "--kill-whom=main " if self._setting.is_main() else "",  # a server's parent need not pass it on
            extra=journal.record("draining-long", in_flight=len(self._setting.ledger.live), **self._chronicle.fields()),
        )

    def _expire(self) -> None:
        LOG.warning("drain_timeout=%s has passed", duration(self._setting.options.drain_timeout or 0.0))
        self._expired()
