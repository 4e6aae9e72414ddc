"""What happened to a unit, as a table and as a drain's timeline for people, and as JSON. No I/O."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import unicodedata
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from requiem_systemd import report
from requiem_systemd.cli.colours import plain
from requiem_systemd.cli.history import events
from requiem_systemd.cli.show import BOLD, DIM, RED, YELLOW, line_of, widths_of
from requiem_systemd.ledger import JOB
from requiem_systemd.protocol import clean, duration
from requiem_systemd.tally import OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requiem_systemd.cli.colours import Paint
    from requiem_systemd.cli.history.events import Bar, Course, Happening

HEAD: Final = ("#", "WHEN", "UNIT", "WHAT", "TOOK", "HELD BY", "OUTLIVED", "WAITING", "END")
GREEN: Final = "32"
WIDTH, NARROWEST, WIDEST = 100, 60, 200
LABEL_MAX: Final = 40
# A deadline that lies farther off than so many times the drain's length is told, not drawn.
FAR: Final = 1.5


class Glyphs(NamedTuple):
    """What a timeline is drawn with."""

    bar: str
    line: str
    crossing: str
    mark: str
    lost: str
    goes_on: str


PLAIN: Final = Glyphs("=", "|", "#", "^", "x", ">")
DRAWN: Final = Glyphs("━", "│", "┿", "▴", "×", "▸")  # noqa: RUF001 - a sign of loss, not a letter


def glyphs(encoding: str | None) -> Glyphs:
    """Return what a stream of that encoding can show."""
    try:
        "".join(DRAWN).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return DRAWN


# -- the table


def table(told: Sequence[Happening], paint: Paint = plain) -> list[str]:
    """Show all, a row each, numbered from the newest on; then the sum."""
    rows = [tuple(map(printable, _row(number, one))) for number, one in enumerate(told, 1)]
    widths = widths_of([HEAD, *rows])
    lines = [line_of(HEAD, widths, (BOLD,) * len(HEAD), paint)]
    lines += [line_of(row, widths, _colours(one), paint) for row, one in zip(rows, told, strict=True)]
    return [*lines, "", *total(told)]


def _row(number: int, one: Happening) -> tuple[str, ...]:
    course = one.course
    unit = clean(one.run.unit, 300) + (f" {course.role}" if course is not None and course.role.startswith("worker") else "")
    row = (str(number), clock(one.when), unit, one.what, "?" if one.seconds is None else took(one.seconds))
    if course is None:
        return (*row, "", "", "", ending(one))
    outlived = "" if course.deadline is None else "?" if course.outlived is None else str(course.outlived)
    return (*row, held(course), outlived, "" if course.waiting is None else str(course.waiting), ending(one))


def _colours(one: Happening) -> tuple[str, ...]:
    bad = one.outcome not in (events.ENDED, events.NOW, OK)
    return ("", DIM, BOLD, "", "", "", YELLOW if one.course is not None and one.course.outlived else "", "", RED if bad else "")


def held(course: Course) -> str:
    """Say who held a drain."""
    if any(course.held.values()):
        return report.counts(course.held)
    return "nothing" if not course.in_flight else f"{course.in_flight} in flight"


def ending(one: Happening) -> str:
    """Say how it ended."""
    told = {
        events.ENDED: "all ended",
        events.ABANDONED: "abandoned",
        events.NOW: "goes on",
        events.UNKNOWN: "not told: crash, power cut, or the journal has lost it",
    }
    text = told.get(one.outcome, one.outcome)
    if one.course is not None and one.course.abandoned:
        text = f"{one.course.abandoned} abandoned"
    if open_yet := events.lost(one):
        text += f", with {len(open_yet)} in flight when that was last told"
    if one.what == events.ROLL:
        text = f"{text}: {one.new or 'nothing'}" + (f" for {one.old}" if one.old else "")
    if one.what != events.DRAIN and one.reason:
        text += f": {one.reason}"
    return text


def total(told: Sequence[Happening]) -> list[str]:
    """Sum up: how many jobs there were, and how many would have been killed."""
    drains = [one for one in told if one.course is not None]
    if not drains:
        return []
    # A primary counts its workers' jobs at the deadline; what a worker tells of it is the same jobs.
    mains = {one.run for one in drains if one.course is not None and one.course.role == "main"}
    jobs = outlived = 0
    for one in drains:
        if one.course is not None:
            jobs += one.course.held.get(JOB, 0)
            if one.course.role == "main" or one.run not in mains:
                outlived += one.course.outlived or 0
    text = f"{len(drains)} drain{'' if len(drains) == 1 else 's'} with {jobs} job{'' if jobs == 1 else 's'}"
    if any(one.course is not None and one.course.deadline is not None for one in drains):
        text += f"; {outlived} outlived TimeoutStopSec=, and would have been killed"
    return [text]


def clock(when: float) -> str:
    """Write a time as the clock on the wall here showed it."""
    try:
        return dt.datetime.fromtimestamp(when, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


def took(seconds: float) -> str:
    """Write a length, short ones with a tenth of a second."""
    return f"{max(0.0, seconds):.1f}".removesuffix(".0") + " s" if seconds < 10 else duration(seconds)


def extended(course: Course) -> str:
    """Say how often the manager was asked for more time."""
    return "extended once" if course.extended == 1 else f"extended {course.extended or 0} times"


# -- the timeline


class Scale(NamedTuple):
    """From a drain's begin to the right edge: `end` in seconds; `deadline`: where to draw it, None: not within."""

    end: float
    deadline: float | None


def scale(one: Happening, now: float | None = None) -> Scale:
    """Return what a drain's timeline shows; `now`: how long it has lasted, where it goes on."""
    course = one.course
    lasted = next((value for value in (one.seconds, now, course.told_at if course else None) if value is not None), 0.0)
    lasted = max(lasted, 0.001)
    deadline = course.deadline if course is not None else None
    within = deadline is not None and 0 <= deadline <= FAR * lasted
    return Scale(max(lasted, (deadline or 0.0) * 1.02) if within else lasted, deadline if within else None)


def timeline(one: Happening, paint: Paint = plain, *, width: int = WIDTH, drawn: Glyphs = DRAWN, now: float | None = None) -> list[str]:
    """Draw a drain: who held it as bars, extensions as marks, the deadline as a line."""
    course = one.course
    if course is None:
        return []
    lines = [paint(heading(one), BOLD)]
    if course.bars:
        lines += _chart(one, course, scale(one, now), _Canvas(paint, drawn, max(NARROWEST, min(width, WIDEST))))
    return [*lines, *(f"  {note}" for note in notes(one))]


class _Canvas(NamedTuple):
    paint: Paint
    drawn: Glyphs
    width: int


def _chart(one: Happening, course: Course, to: Scale, canvas: _Canvas) -> list[str]:
    names = [cut(f"{bar.kind} {printable(bar.label)}", min(LABEL_MAX, canvas.width // 3)) for bar in course.bars]
    margin = max(wide(name) for name in (*names, extended(course)))
    tails = [tail(bar, one) for bar in course.bars]
    room = max(20, canvas.width - margin - max(map(len, tails)) - 6)
    line = None if to.deadline is None else _column(to.deadline, to.end, room)
    lines = []
    for name, bar, text in zip(names, course.bars, tails, strict=True):
        lines.append(f"  {pad(name, margin)}  {_bar(bar, one, (to, room, line), canvas)}  {text}".rstrip())
    if course.extended:
        marks = {_column(at, to.end, room) for at in course.extensions}
        cells = (canvas.drawn.mark if column in marks else canvas.drawn.line if column == line else " " for column in range(room))
        lines.append(f"  {pad(extended(course), margin)}  {''.join(cells)}".rstrip())
    lines.append(f"  {' ' * margin}  {_axis(course, to, room, line)}".rstrip())
    return lines


def _column(at: float, end: float, room: int) -> int:
    return min(room - 1, max(0, int(at / end * room)))


def _bar(bar: Bar, one: Happening, where: tuple[Scale, int, int | None], canvas: _Canvas) -> str:
    (to, room, line), drawn = where, canvas.drawn
    first = _column(bar.begin, to.end, room)
    last = _column(to.end if bar.end is None else bar.end, to.end, room)
    if bar.end is None and one.seconds is not None:
        last = _column(one.seconds, to.end, room)

    def cell(column: int) -> tuple[str, str]:
        if column == last and bar.fate != events.ENDED:
            return RED, drawn.goes_on if _goes_on(bar, one) else drawn.lost
        if first <= column <= last:
            return GREEN if line is None or column < line else YELLOW, drawn.crossing if column == line else drawn.bar
        return "", drawn.line if column == line else " "

    runs = ((colour, "".join(sign for _, sign in run)) for colour, run in itertools.groupby(map(cell, range(room)), key=lambda pair: pair[0]))
    return "".join(canvas.paint(text, colour) if colour else text for colour, text in runs)


def _goes_on(bar: Bar, one: Happening) -> bool:
    return bar.fate == events.OPEN and one.outcome in (events.NOW, events.UNKNOWN)


def _axis(course: Course, to: Scale, room: int, line: int | None) -> str:
    right = took(to.end)
    cells = "0 s".ljust(room - len(right)) + right
    if line is None:
        return cells
    name = f"TimeoutStopSec={took(course.stop_timeout or 0.0)}"
    start = max(4, min(line - len(name) // 2, room - len(name)))
    if start + len(name) > room:
        return cells
    end = start + len(name)
    keeps = cells[end:] if end + 1 <= room - len(right) else " " * (room - end)
    return cells[:start] + name + keeps


def tail(bar: Bar, one: Happening) -> str:
    """Say how long one held, and what became of it where it did not end."""
    if bar.fate == events.ENDED and bar.end is not None:
        return took(bar.end - max(bar.begin, 0.0))
    if bar.fate == events.OPEN:
        return "holds" if one.outcome == events.NOW else "not told" if one.outcome == events.UNKNOWN else "killed, or ended unseen"
    return {events.ABANDONED: "abandoned", "let-go": "let go"}.get(bar.fate, bar.fate)


def heading(one: Happening) -> str:
    """Name a drain."""
    course = one.course
    role = f" ({printable(course.role)})" if course is not None and course.role not in ("", "main") else ""
    begun = f", begun by {printable(one.reason)}" if one.reason else ""
    lasted = "" if one.seconds is None else f", {took(one.seconds)}"
    return f"drain of {printable(clean(one.run.unit, 300))}, process {one.process}{role}, {clock(one.when)}{begun}{lasted}: {printable(ending(one))}"


def notes(one: Happening) -> list[str]:
    """Say in words what a chart leaves out."""
    course = one.course
    if course is None:
        return []
    lines = []
    if not course.bars and course.in_flight and not course.held:
        lines.append("who held it is not told: its records are lines without fields (no /run/systemd/journal/socket where it runs), or an older release's")
    if course.unlisted:
        lines.append(f"and {course.unlisted} more held it, which are not told one by one")
    if course.stop_timeout is not None and math.isinf(course.stop_timeout):
        lines.append("TimeoutStopSec=infinity: nothing would have been killed")
    elif course.deadline is None and course.stop_timeout is not None:
        lines.append("no TimeoutStopSec= ran: this process was replaced, its service was not stopped")
    elif course.outlived:
        lines.append(f"{course.outlived} job{'' if course.outlived == 1 else 's'} outlived TimeoutStopSec={took(course.stop_timeout or 0.0)}, and would have been killed")
    elif course.deadline is not None and scale(one).deadline is None:
        lines.append(f"it was over before TimeoutStopSec={took(course.stop_timeout or 0.0)} had passed")
    if course.waiting:
        lines.append(f"{course.waiting} client{'' if course.waiting == 1 else 's'} waited at its listeners when it ended")
    return lines


# -- text of any width


def printable(text: str) -> str:
    """Replace what does not show, or turns a line's direction."""
    return "".join(one if one.isprintable() else " " for one in text)


def wide(text: str) -> int:
    """Return how many columns a text takes on a terminal."""
    return sum(0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "FW" else 1 for one in text)


def cut(text: str, most: int) -> str:
    """Cut a text to so many columns."""
    if wide(text) <= most:
        return text
    kept = ""
    for one in text:
        if wide(kept + one) > most - 1:
            break
        kept += one
    return f"{kept}~"


def pad(text: str, most: int) -> str:
    """Fill a text up to so many columns."""
    return text + " " * (most - wide(text))


# -- JSON


def as_json(unit: str, told: Sequence[Happening]) -> dict[str, Any]:
    """Write all as values: times in seconds since 1970, lengths in seconds, null for what is not known."""
    return {"unit": unit, "happenings": [_as_json(one) for one in told]}


def _as_json(one: Happening) -> dict[str, Any]:
    values = one._asdict()
    for name in ("at", "course", "run"):
        del values[name]
    values.update(one.run._asdict())
    if one.what != events.ROLL:
        del values["new"], values["old"]
    if one.course is not None:
        course = one.course._asdict()
        del course["told_at"]
        infinite = one.course.stop_timeout is not None and math.isinf(one.course.stop_timeout)
        course["stop_timeout"] = "infinity" if infinite else one.course.stop_timeout
        course["bars"] = [bar._asdict() for bar in one.course.bars]
        values["drain"] = course
    return values
