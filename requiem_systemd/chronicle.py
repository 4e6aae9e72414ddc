"""What becomes of a drain, kept for its records in the journal: who held it and how long, what was extended, and the deadline before that.

Nothing here is on a tracker's way in or out: the ledger is looked at in the turns that a drain takes anyway (whoever leaves wakes it), so
what begins and ends between two of them is not seen. It is bounded, whatever is in flight: KEPT are kept one by one, jobs before requests,
and of what has ended those that held longest; all are counted. `fields` fits one record, and `requiem-systemd history` reads it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from typing import Final

from requiem_systemd import journal, report, unitfile
from requiem_systemd.ledger import BOUNDED, HOOK, JOB, OLDEST_TRIES, REQUEST, WORKER, Entry
from requiem_systemd.limits import kind_of
from requiem_systemd.protocol import clean, duration, usec
from requiem_systemd.setting import Setting

LOG: Final = logging.getLogger("requiem_systemd")
# So many are told one by one, in so many bytes each at most: 7 kB, of which the journal makes one record.
KEPT: Final = 40
LABEL_MAX: Final = 120
# So many extensions are told; of more every second, every fourth, and so on.
MARKS: Final = 48
# When the unit is asked for its TimeoutStopSec=: not while the doors are to be closed.
ASK_AFTER: Final = 0.1
# A drain that lasts is told of before it ends, since it may be killed; and again with each warning of a long one.
TELL_AFTER: Final = 1.0
# A handler that took less is nothing to tell.
SHORT: Final = 0.1
# Idle connections and listeners are nothing to tell; handlers are told and not counted.
_FIRST: Final = (JOB, WORKER, HOOK)
_THEN: Final = (REQUEST,)
_COUNTED: Final = (JOB, WORKER, REQUEST)


class Marks:
    """Points in time, at most MARKS of them, spread evenly over all that there were."""

    def __init__(self) -> None:
        self.count: int = 0
        self.kept: list[float] = []
        self._stride = 1

    def add(self, now: float) -> None:
        """Note one."""
        if self.count % self._stride == 0:
            if len(self.kept) >= MARKS:
                del self.kept[1::2]
                self._stride *= 2
            if self.count % self._stride == 0:
                self.kept.append(now)
        self.count += 1


class Holder:
    """One that held the drain. Its label is made when it is told: `redact=` is user code. The entry is let go when it ends: a task may be large."""

    __slots__ = ("end", "fate", "kind", "label", "name", "start")

    def __init__(self, entry: Entry, start: float) -> None:
        self.name: object = entry.name
        self.kind: str = kind_of(entry)
        self.start: float = start
        self.end: float | None = None
        self.fate: str = "open"
        self.label: str | None = None

    def finish(self, entry: Entry, now: float) -> None:
        """Note that it holds no longer, and why."""
        if not isinstance(self.name, str):  # the entry itself, say, which may hold all of a request
            self.name = clean(self.name)
        more = entry.extra()
        given_up = more is not None and more.abandoned
        self.end = now
        self.fate = "ended" if not given_up else "let-go" if self.kind in BOUNDED else "abandoned"


class Chronicle:
    """Keeps one drain's course. Runs in the loop's thread; `jobs` counts the jobs in flight, those of workers too."""

    def __init__(self, setting: Setting, jobs: Callable[[], int]) -> None:
        self._setting = setting
        self._jobs = jobs
        self._reason = ""
        self._began = 0.0
        self._newest = 0.0  # the latest start that was seen
        self._open: dict[Entry, Holder] = {}
        self._holders: list[Holder] = []
        self._counts: Counter[str] = Counter()
        self._stop_timeout: float | None = None
        self._outlived: int | None = None
        self._extensions = Marks()

    # -- its course ----------------------------------------------------------------------------------------------------

    def begin(self, reason: str) -> None:
        """See who is in, when the manager has been told of the drain."""
        self._reason = reason
        self._began = self._newest = self._setting.ledger.began or 0.0
        entries = self._setting.ledger.entries()
        kinds = [kind_of(entry) for entry, _ in entries]
        for rank in (_FIRST, _THEN):
            self._see(islice((item for item, kind in zip(entries, kinds, strict=True) if kind in rank), KEPT))
        for kind, count in Counter(kinds).items():  # thousands may be in
            if kind in _COUNTED:
                self._counts[kind] = count
        self._setting.loop.alarm(self._ask, self._setting.now() + ASK_AFTER)
        self._setting.loop.alarm(self._tell, self._setting.now() + TELL_AFTER)

    def first(self) -> dict[str, object]:
        """Return what there is to tell at the begin, of a drain that may be killed at once: nothing where nobody holds it."""
        shown = [holder for holder in self._holders if holder.kind != HOOK]  # handlers have only just begun, if there are any
        try:
            return self.fields(shown) if shown else {}
        except Exception:  # a label is user code, and the drain goes on
            LOG.exception("who holds the drain cannot be told")
            return {}

    def look(self) -> None:
        """See who has left, and who has come."""
        now, live = self._setting.ledger.clock(), self._setting.ledger.live
        for entry, holder in list(self._open.items()):
            if live.get(entry) != holder.start:
                holder.finish(entry, now)
                del self._open[entry]
        self._see(self._late())

    def extended(self, now: float) -> None:
        """Note that the manager was asked for more time."""
        if self._setting.ledger.began is not None:
            self._extensions.add(now)

    def end(self, abandoned: int) -> None:
        """Tell the whole, if anybody held."""
        for call in (self._ask, self._tell, self._count):
            self._setting.loop.cancel(call)
        try:
            self._conclude(abandoned)
        except Exception:  # what a drain leaves behind must not cost its end
            LOG.exception("the drain's record cannot be made")

    def _conclude(self, abandoned: int) -> None:
        now = self._setting.ledger.clock()
        self.look()
        for entry, holder in self._open.items():
            holder.finish(entry, now)
        self._open.clear()
        if not self._shown():
            return
        text = f"drained in {duration(now - self._began)}: {report.counts(self._counts)}"
        if self._outlived:
            text += f", {self._outlived} job{'' if self._outlived == 1 else 's'} beyond TimeoutStopSec={duration(self._stop_timeout or 0.0)}"
        text += f", {abandoned} abandoned" if abandoned else ""
        waiting = self._setting.doors.waiting()
        text += f"; {waiting} client{'' if waiting == 1 else 's'} left waiting" if waiting else ""
        LOG.info("%s", text, extra=journal.record("drained", abandoned=abandoned, **self.fields()))

    # -- what is told --------------------------------------------------------------------------------------------------

    def fields(self, shown: Sequence[Holder] | None = None) -> dict[str, object]:
        """Return what there is to tell now, for `journal.record`: lengths in microseconds, within the drain in milliseconds."""
        shown = self._shown() if shown is None else shown
        timeout = self._stop_timeout
        return {
            "reason": self._reason,
            "role": self._setting.role(),
            "elapsed_usec": usec(self._setting.ledger.clock() - self._began),
            "stop_timeout_usec": None if timeout is None else "infinity" if math.isinf(timeout) else usec(timeout),
            "outlived": self._outlived,
            "held": " ".join(f"{kind}={count}" for kind, count in sorted(self._counts.items())),
            "holders": "\n".join(map(self._line, shown)),
            "unlisted": self._counts.total() - sum(holder.kind != HOOK for holder in shown),
            "waiting": self._setting.doors.waiting(),
            "extended": self._extensions.count,
            "extensions": " ".join(str(self._milliseconds(at)) for at in self._extensions.kept),
        }

    def _shown(self) -> list[Holder]:
        return [holder for holder in self._holders if holder.kind != HOOK or holder.end is None or holder.end - holder.start >= SHORT]

    def _line(self, holder: Holder) -> str:
        """Write "kind begin end fate label"; begin and end from the drain's begin on, "-" for what holds yet."""
        if holder.label is None:
            holder.label = clean(self._setting.shown(clean(holder.name)), LABEL_MAX)
        end = "-" if holder.end is None else self._milliseconds(holder.end)
        return f"{holder.kind} {self._milliseconds(holder.start)} {end} {holder.fate} {holder.label}"

    def _milliseconds(self, at: float) -> int:
        return round((at - self._began) * 1000)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _see(self, entries: Iterable[tuple[Entry, float]]) -> None:
        for entry, start in entries:
            self._newest = max(self._newest, start)
            kind = kind_of(entry)
            if entry in self._open or kind not in (*_FIRST, *_THEN):
                continue
            if kind in _COUNTED:
                self._counts[kind] += 1
            if len(self._holders) < KEPT or self._make_room():
                holder = self._open[entry] = Holder(entry, start)
                self._holders.append(holder)

    def _make_room(self) -> bool:
        """Drop whoever has ended and held the shortest; say whether there was one."""
        ended = [holder for holder in self._holders if holder.end is not None]
        if not ended:
            return False
        self._holders.remove(min(ended, key=self._held))
        return True

    def _held(self, holder: Holder) -> float:
        return (holder.end or 0.0) - max(holder.start, self._began)

    def _late(self) -> list[tuple[Entry, float]]:
        """Return who has come since the last look: what comes is last in the ledger."""
        live = self._setting.ledger.live
        for _ in range(OLDEST_TRIES):
            try:
                return list(takewhile(lambda item: item[1] > self._newest, reversed(live.items())))[::-1]
            except RuntimeError:  # it has changed meanwhile
                continue
        return []

    def _ask(self) -> None:
        """Read how long systemd would have waited, where that can be known."""
        folders = unitfile.folders_of(_manager(self._setting))
        name = unitfile.own_service() if folders else None
        self._stop_timeout = unitfile.stop_timeout(name, folders) if name else None
        # The timeout is the main process's: a worker that is replaced has none.
        if self._stop_timeout is not None and self._stop_timeout < math.inf and self._setting.role() == "main":
            self._outlived = 0
            self._setting.loop.alarm(self._count, self._began + self._stop_timeout)

    def _count(self) -> None:
        self._outlived = self._jobs()

    def _tell(self) -> None:
        self.look()
        fields = self.fields()
        names = [f'"{holder.label}"' for holder in self._holders if holder.end is None]
        if names:
            more = len(self._setting.ledger.live) - min(len(names), report.LISTED)
            listing = ", ".join(names[: report.LISTED]) + (f" and {more} more" if more > 0 else "")
            LOG.info("the drain is held by %s", listing, extra=journal.record("held", **fields))


def _manager(setting: Setting) -> str | None:
    """Return where systemd listens: to us, or to our primary."""
    return setting.environment.above if setting.is_worker() else setting.environment.notify_socket
