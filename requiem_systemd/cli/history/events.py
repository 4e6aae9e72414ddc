"""What happened to a unit, put together from its records: drains, reloads and rolls. No I/O.

Lengths are differences of the boot's own clock, so that whoever sets the time changes none. A drain whose end is not told (a kill, a
power cut, a journal that has lost it) is told as far as its last record goes, and closed by what systemd says of its process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.cli.history import records
from requiem_systemd.cli.history.records import invocation_of, number_of, unit_of, words_of
from requiem_systemd.ledger import JOB
from requiem_systemd.protocol import clean
from requiem_systemd.tally import FAILED, OK, REFUSED, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from requiem_systemd.cli.history.records import Record

DRAIN, RELOAD, ROLL = "drain", "reload", "roll"
#: How a drain ended: all have, or were given up; its process was ended from outside; it goes on; nobody says.
ENDED, ABANDONED, KILLED, NOW, UNKNOWN = "ended", "abandoned", "killed", "now", "unknown"
OPEN: Final = "open"
# More lines than this in one record are not ours.
BARS: Final = 500
_FATES: Final = (ENDED, ABANDONED, "let-go", OPEN)
_RELOADING: Final = ("RELOADING", "RELOAD_QUEUED")


class Bar(NamedTuple):
    """Who held a drain: from `begin` to `end`, in seconds from the drain's begin on; None: it held yet when that was told."""

    kind: str
    label: str
    begin: float
    end: float | None
    fate: str


class Course(NamedTuple):
    """A drain: lengths in seconds, times from its begin on, None for what was not told.

    `deadline`: when TimeoutStopSec= alone would have ended it; `outlived`: how many jobs were in flight then. `unlisted`: who held beside `bars`.
    """

    role: str = ""
    bars: tuple[Bar, ...] = ()
    held: Mapping[str, int] = {}
    unlisted: int = 0
    in_flight: int | None = None
    extended: int | None = None
    extensions: tuple[float, ...] = ()
    stop_timeout: float | None = None
    deadline: float | None = None
    outlived: int | None = None
    abandoned: int = 0
    waiting: int | None = None
    told_at: float | None = None


class Run(NamedTuple):
    """One start of a unit, in one boot."""

    boot: str
    unit: str
    invocation: str


class Happening(NamedTuple):
    """A drain, a reload or a roll. `when`: seconds since 1970; `at`: of the boot's own clock; `seconds`: how long, None: not known."""

    what: str
    run: Run
    process: int
    at: float
    when: float
    seconds: float | None
    outcome: str
    reason: str = ""
    course: Course | None = None
    new: str = ""
    old: str = ""


def happenings(found: Iterable[Record]) -> list[Happening]:
    """Put records together; the newest first."""
    runs: dict[Run, dict[int, _Life]] = {}
    begun: dict[Run, list[float]] = {}  # when a stop began, by systemd or by the main process
    rolls = []
    for record in sorted(found, key=lambda one: one.at):
        run = Run(record.boot, unit_of(record), invocation_of(record))
        if record.kind() == "rolled":
            rolls.append(_roll(record))
        elif records.is_systemd(record):
            if record.fields["MESSAGE_ID"] == records.STOPPING:
                begun.setdefault(run, []).append(record.at)
            _close(record, runs.get(run, {}).values())
        elif record.kind():
            process = number_of(record.fields, "_PID") or 0
            runs.setdefault(run, {}).setdefault(process, _Life(run, process)).take(record)
    told = [one for lives in runs.values() for life in lives.values() for one in life.all()]
    for one in told:
        if one.course is not None and one.course.role == "main":
            begun.setdefault(one.run, []).append(one.at)
    told = [_with_deadline(one, begun.get(one.run, ())) for one in told]
    return sorted([*told, *rolls], key=lambda one: one.when, reverse=True)


class _Life:
    """What one process told, in its order."""

    def __init__(self, run: Run, process: int) -> None:
        """Begin with nothing."""
        self.run: Run = run
        self.process: int = process
        self.done: list[Happening] = []
        self.drain: Happening | None = None
        self.reload: Happening | None = None

    def all(self) -> list[Happening]:
        """Return all that happened, what is open yet too."""
        return [*self.done, *filter(None, (self.drain, self.reload))]

    def take(self, record: Record) -> None:
        """Take the next record."""
        match record.kind():
            case "state":
                self._change(record)
            case "held" | "draining-long" | "drained" as kind:
                self._course(record, ended=kind == "drained")
            case "reload-failed" if self.reload is not None:
                self.reload = self.reload._replace(outcome=FAILED, reason=clean(record.fields.get("REQUIEM_REASON", ""), 300))
            case "exit-stuck" if self.drain is not None:
                self.drain = self.drain._replace(reason=f"{self.drain.reason}; its exit took too long".lstrip("; "))

    def _change(self, record: Record) -> None:
        state, previous = record.fields.get("REQUIEM_STATE", ""), record.fields.get("REQUIEM_PREVIOUS", "")
        elapsed = _elapsed(record)
        if previous in _RELOADING and state != "RELOAD_QUEUED":
            self._end_reload(record, REFUSED if state == "DRAINING" else OK)
        if state == "RELOADING":
            self._keep_reload()
            self.reload = self._begun(RELOAD, record)
        elif state == "DRAINING":
            self._keep_drain()
            reason = record.fields.get("REQUIEM_REASON") or _cause(record.fields.get("MESSAGE", ""))
            course = Course(in_flight=number_of(record.fields, "REQUIEM_IN_FLIGHT"))
            if "REQUIEM_HOLDERS" in record.fields:
                course = course_of(record.fields, course, elapsed)
            self.drain = self._begun(DRAIN, record, elapsed)._replace(reason=clean(reason, 300), course=course)
        elif state == "STOPPED" and self.drain is not None and self.drain.seconds is None:
            self.drain = self.drain._replace(seconds=max(0.0, record.at - self.drain.at), outcome=ENDED)

    def _begun(self, what: str, record: Record, elapsed: float = 0.0) -> Happening:
        return Happening(what, self.run, self.process, record.at - elapsed, record.when - elapsed, None, UNKNOWN)

    def _end_reload(self, record: Record, outcome: str) -> None:
        if self.reload is not None:
            ended = self.reload._replace(seconds=max(0.0, record.at - self.reload.at))
            self.reload = ended if ended.outcome == FAILED else ended._replace(outcome=outcome)
            self._keep_reload()

    def _keep_reload(self) -> None:
        if self.reload is not None:
            self.done.append(self.reload)
            self.reload = None

    def _keep_drain(self) -> None:
        if self.drain is not None:
            self.done.append(self.drain)
            self.drain = None

    def _course(self, record: Record, *, ended: bool) -> None:
        """Take a chronicle's record; its drain's begin may be further back than was read."""
        elapsed = _elapsed(record)
        if self.drain is None:
            if "REQUIEM_ELAPSED_USEC" not in record.fields:
                return
            reason = clean(record.fields.get("REQUIEM_REASON", ""), 300)
            self.drain = self._begun(DRAIN, record, elapsed)._replace(reason=reason, course=Course())
        course = course_of(record.fields, self.drain.course or Course(), elapsed)
        self.drain = self.drain._replace(course=course)
        if ended:
            outcome = ABANDONED if course.abandoned else ENDED
            self.drain = self.drain._replace(seconds=elapsed, outcome=outcome)

    def cut(self, at: float, outcome: str) -> None:
        """End what is open: its process has gone."""
        if self.drain is not None and self.drain.seconds is None and self.drain.outcome == UNKNOWN:
            self.drain = self.drain._replace(seconds=max(0.0, at - self.drain.at), outcome=outcome)
        if self.reload is not None:
            self.reload = self.reload._replace(reason=self.reload.reason or outcome)
            self._keep_reload()


def _elapsed(record: Record) -> float:
    return (number_of(record.fields, "REQUIEM_ELAPSED_USEC") or 0) / 1e6


def _cause(message: str) -> str:
    """Return why a drain began, of "running -> draining: SIGTERM, 3 in flight"."""
    _, colon, rest = message.partition("draining: ")
    return rest.rpartition(", ")[0] if colon else ""


def _close(record: Record, lives: Iterable[_Life]) -> None:
    """Take what systemd says: a main process that ended, or a unit of which nothing runs any more."""
    fields, number = record.fields, record.fields["MESSAGE_ID"]
    if number == records.STOPPING or (number == records.EXITED and fields.get("COMMAND") != "ExecStart"):
        return
    if number == records.EXITED:
        status = clean(fields.get("EXIT_STATUS", "?"), 20)
        outcome = f"{KILLED}: signal {status}" if fields.get("EXIT_CODE") in ("killed", "dumped") else f"{KILLED}: it ended with status {status}"
    else:
        outcome = KILLED
    for life in lives:
        role = life.drain.course.role if life.drain is not None and life.drain.course is not None else ""
        if number != records.EXITED or role in ("", "main"):
            life.cut(record.at, outcome)


def _roll(record: Record) -> Happening:
    fields = record.fields
    seconds = _elapsed(record)
    verdict = fields.get("REQUIEM_VERDICT", "")
    return Happening(
        what=ROLL,
        run=Run(record.boot, fields.get("REQUIEM_UNIT", ""), ""),
        process=number_of(fields, "_PID") or 0,
        at=record.at - seconds,
        when=record.when - seconds,
        seconds=seconds,
        outcome=verdict if verdict in VERDICTS else UNKNOWN,
        reason=clean(fields.get("REQUIEM_REASON", ""), 300),
        new=clean(fields.get("REQUIEM_NEW", ""), 300),
        old=clean(fields.get("REQUIEM_OLD", ""), 300),
    )


# -- a chronicle's fields


def course_of(fields: Mapping[str, str], before: Course, elapsed: float) -> Course:
    """Read what a chronicle told; nonsense is as if it were not there."""
    timeout = number_of(fields, "REQUIEM_STOP_TIMEOUT_USEC")
    infinite = fields.get("REQUIEM_STOP_TIMEOUT_USEC") == "infinity"
    found = filter(None, map(_bar, fields.get("REQUIEM_HOLDERS", "").split("\n")[:BARS]))
    marks = (mark for word in words_of(fields, "REQUIEM_EXTENSIONS")[:BARS] if (mark := _seconds(word)) is not None)
    return before._replace(
        role=clean(fields.get("REQUIEM_ROLE", ""), 40),
        bars=tuple(sorted(found, key=lambda bar: bar.begin)),
        held=dict(_counts(words_of(fields, "REQUIEM_HELD")[:20])),
        unlisted=max(0, number_of(fields, "REQUIEM_UNLISTED") or 0),
        extended=number_of(fields, "REQUIEM_EXTENDED"),
        extensions=tuple(marks),
        stop_timeout=math.inf if infinite else None if timeout is None else timeout / 1e6,
        outlived=number_of(fields, "REQUIEM_OUTLIVED"),
        abandoned=number_of(fields, "REQUIEM_ABANDONED") or 0,
        waiting=number_of(fields, "REQUIEM_WAITING"),
        told_at=elapsed,
    )


def _bar(line: str) -> Bar | None:
    words = line.split(" ", 4)
    if len(words) != 5:
        return None
    kind, begin, end, fate, label = words
    began, ended = _seconds(begin), _seconds(end)
    if began is None or (ended is None and end != "-"):
        return None
    return Bar(clean(kind, 20), clean(label, 200), began, ended, fate if fate in _FATES else OPEN)


def _seconds(milliseconds: str) -> float | None:
    try:
        value = float(milliseconds) / 1000
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _counts(words: Iterable[str]) -> Iterable[tuple[str, int]]:
    for word in words:
        kind, _, count = word.partition("=")
        if count.isascii() and count.isdecimal() and len(count) < 12:
            yield clean(kind, 20), int(count)


# -- the deadline


def _with_deadline(one: Happening, begun: Iterable[float]) -> Happening:
    """Say when systemd would have killed: a main process by its own drain's begin, a worker by its service's, if that was stopped too."""
    course = one.course
    if course is None or course.stop_timeout is None or math.isinf(course.stop_timeout):
        return one
    begin: float | None = one.at
    if course.role != "main":
        end = math.inf if one.seconds is None else one.at + one.seconds
        begin = min((at for at in begun if at <= end), default=None)
    if begin is None:
        return one  # it was replaced: no timeout ran
    deadline = begin + course.stop_timeout - one.at
    return one._replace(course=course._replace(deadline=deadline, outlived=outlived(course, deadline, one.seconds)))


def outlived(course: Course, deadline: float, seconds: float | None) -> int | None:
    """Return how many jobs were in flight at the deadline; None where that was not told."""
    if course.outlived is not None and course.told_at is not None and course.told_at >= deadline:
        return course.outlived
    if seconds is not None and seconds < deadline:
        return 0
    jobs = [bar for bar in course.bars if bar.kind == JOB]
    if course.told_at is None or course.unlisted or any(bar.end is None for bar in jobs):
        return None
    return sum(bar.end is not None and bar.end > deadline for bar in jobs)


def lost(one: Happening) -> list[Bar]:
    """Return who held a drain that was ended from outside, as far as its last record tells."""
    if one.course is None or not one.outcome.startswith(KILLED):
        return []
    return [bar for bar in one.course.bars if bar.end is None]
