"""What services told, as lines for people. No I/O."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from requiem_systemd import report
from requiem_systemd.cli import look
from requiem_systemd.errors import ProtocolError
from requiem_systemd.ledger import BOUNDED
from requiem_systemd.protocol import clean, duration, timespan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from requiem_systemd.cli.look import Holder, Told

HEAD: Final = ("UNIT", "PROCESS", "STATE", "FOR", "IN FLIGHT")
# Of the holders of one process, so many are shown in a table.
MOST: Final = 20
_BOLD, _DIM, _RED, _YELLOW = "1", "2", "31", "33"
_COLOURS: Final = {"draining": _YELLOW, "stopped": _YELLOW, "reloading": _YELLOW, "starting": _DIM}
Paint = Callable[[str, str], str]


def plain(text: str, colour: str) -> str:
    """Leave a text as it is."""
    del colour
    return text


def coloured(text: str, colour: str) -> str:
    """Colour a text for a terminal."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text else text


# -- ps


def table(told: Sequence[Told], paint: Paint = plain) -> list[str]:
    """Show all processes, a row each, and below it what they hold."""
    rows = [_row(one) for one in told]
    jobs = [[_job(holder) for holder in look.holders(one)[:MOST]] for one in told]
    widths = _widths([HEAD, *(cells for cells, _ in rows)])
    inner = _widths(itertools.chain.from_iterable(jobs))
    lines = [_line(HEAD, widths, (_BOLD,) * len(HEAD), paint)]
    for one, (cells, colours), held_by in zip(told, rows, jobs, strict=True):
        lines.append(_line(cells, widths, colours, paint))
        lines += ["    " + _line(job, inner, ("",) * len(job), paint) for job in held_by]
        if more := _more(one, len(held_by)):
            lines.append(f"    {more}")
        if one.problem:
            lines.append(paint(f"    {clean(one.problem, 1000)}", _RED))
    return lines


def _row(told: Told) -> tuple[tuple[str, ...], tuple[str, ...]]:
    described = told.described
    if not described:
        said = clean(told.shown.get("StatusText", ""), 300)
        state = clean(told.shown.get("ActiveState", ""), 40) or "?"
        return (told.unit, clean(told.shown.get("MainPID", "?"), 20), state, "?", said or "?"), (
            _BOLD,
            "",
            "",
            "",
            "",
        )
    state = look.text(described, "state", 40)
    since = look.number(described, "since")
    cells = (told.unit, process(told), state, "?" if since is None else duration(since), held(told))
    return cells, (_BOLD, "", _COLOURS.get(state.partition(",")[0], ""), "", "")


def process(told: Told) -> str:
    """Name a process: its number, and what it is where it is not all of the service."""
    pid, role = look.whole(told.described, "pid"), look.text(told.described, "role", 40)
    if role == "main":
        return f"{pid} primary" if look.objects(told.described, "workers") else str(pid)
    return f"{pid} {role}"


def held(told: Told) -> str:
    """Say how much is in flight."""
    if look.text(told.described, "state") == "stopped":
        names = ", ".join(holder.label for holder in look.holders(told)[:3])
        return f"its exit: {names}" if names else "its exit"
    if not told.in_flight:
        number = look.whole(told.described, "in_flight")
        return f"{number} in flight" if number else "nothing"
    counts = look.counts(told)
    listeners = counts.pop("listener", 0)
    parts = [report.counts(counts)] if any(counts.values()) else []
    if listeners:
        parts.append(f"{listeners} listener{'' if listeners == 1 else 's'}")
    return ", ".join(parts) or "nothing"


def _job(holder: Holder) -> tuple[str, ...]:
    status = f"{holder.status}{' ' if holder.status and holder.stalled else ''}{'(stalled)' if holder.stalled else ''}"
    return (holder.kind, f'"{holder.label}"', duration(holder.age), holder.owner, status)


def _more(told: Told, shown: int) -> str:
    omitted = len(look.holders(told)) - shown + look.whole(told.in_flight, "omitted")
    return f"and {omitted} more" if omitted > 0 else ""


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    widths: list[int] = []
    for cells in rows:
        widths = [
            max(len(cell), width) for cell, width in zip(cells, widths or [0] * len(cells), strict=True)
        ]
    return widths


def _line(cells: Sequence[str], widths: Sequence[int], colours: Sequence[str], paint: Paint) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    padded[-1] = cells[-1]
    shown = (paint(cell, colour) if colour else cell for cell, colour in zip(padded, colours, strict=True))
    return "  ".join(shown).rstrip()


# -- why


def account(told: Told, now: float | None = None, paint: Paint = plain) -> list[str]:
    """Say all about one process: what holds its stop, its limits, and what the next signal does; `now`: systemd's monotonic clock."""
    described = told.described
    heading = f"{told.unit}, process {process(told)}" if described else told.unit
    lines = [paint(heading, _BOLD)]
    if described:
        lines += [f"  {_state(told)}", *_holding(told, paint), *_processes(told), *_workers(told)]
        lines += [
            "  limits:",
            *(f"    {line}" for line in _limits(told, time.monotonic() if now is None else now)),
        ]
        lines += ["  the next signal:", *(f"    {line}" for line in _signals(told))]
    if told.problem:
        lines.append(paint(f"  {clean(told.problem, 1000)}", _RED))
    return lines


def _state(told: Told) -> str:
    described = told.described
    state, since = look.text(described, "state", 40), look.number(described, "since") or 0.0
    reason = look.text(described, "reason")
    begun = f", begun by {reason}" if reason and state in ("draining", "stopped") else ""
    shown = {"stopped": "all jobs have ended; on its way out", "running": "running: nothing stops it"}.get(
        state, state
    )
    line = f"{shown}, for {duration(since)}{begun}"
    if status := look.text(described, "status"):
        line += f"; it says: {status}"
    if abandoned := look.whole(described, "abandoned"):
        line += f"; {abandoned} abandoned"
    return line


def _holding(told: Told, paint: Paint) -> list[str]:
    state = look.text(told.described, "state")
    passive = "is" if state in ("draining", "stopped") else "would be"
    holders = look.holders(told)
    if not holders and not look.whole(told.in_flight, "omitted"):
        return [f"  its stop {passive} held by nothing"] if told.in_flight else []
    lines = [
        f"  its {'exit' if state == 'stopped' else 'stop'} {passive} held by {'' if state == 'stopped' else held(told)}".rstrip()
        + ":"
    ]
    for holder in holders:
        lines.append(f"    {paint(_named(holder), _BOLD)}")
        lines += [f"        {frame}" for frame in holder.stack or ((holder.where,) if holder.where else ())]
    if more := _more(told, len(holders)):
        lines.append(f"    {more}")
    return lines


def _named(holder: Holder) -> str:
    line = f'{holder.kind} "{holder.label}", {duration(holder.age)}'
    line += f", {holder.owner}" if holder.owner and holder.owner != holder.label else ""
    line += f" ({holder.status})" if holder.status else ""
    line += ", stalled: no heartbeat" if holder.stalled else ""
    if holder.left is not None:
        fate = "let go" if holder.kind in BOUNDED else "abandoned"
        line += f", {fate} in {duration(max(0.0, holder.left))}"
    return line


def _processes(told: Told) -> list[str]:
    found = look.objects(told.in_flight, "processes")
    if not found:
        return []
    lines = ["  its processes:"]
    for one in found:
        age = duration(look.number(one, "age") or 0.0)
        relation = look.text(one, "relation", 40)
        line = f"    {relation} {look.whole(one, 'pid')} {look.text(one, 'name', 100)}, {age}"
        if relation == "descendant":
            line += f", of process {look.whole(one, 'parent')}"
        if relation == "orphan":
            line += (
                ": its parent has ended; under KillMode=mixed it is killed when the main process has ended"
            )
        if look.text(one, "state", 4) == "Z":
            line += " (has ended, and nobody has waited for it)"
        lines.append(line)
    return lines


def _workers(told: Told) -> list[str]:
    found = look.objects(told.described, "workers")
    if not found:
        return []
    lines = ["  its workers:"]
    for one in found:
        counts = {"job": look.whole(one, "jobs"), "request": look.whole(one, "requests")}
        line = f"    worker {look.whole(one, 'id')}, process {look.whole(one, 'pid')}: {look.text(one, 'phase', 40)}"
        line += f", {report.counts(counts)}" if any(counts.values()) else ""
        oldest = look.text(one, "oldest")
        lines.append(line + (f", oldest {oldest}" if oldest else ""))
    return lines


def _limits(told: Told, now: float) -> list[str]:
    described = told.described
    found = described.get("limits")
    limits: Mapping[str, Any] = found if isinstance(found, dict) else {}
    total, left = look.number(limits, "drain_timeout"), look.number(described, "drain_left")
    lines = [_limit("drain_timeout", total, left, "abandons what is in flight")]
    lines.append(
        _limit(
            "request_timeout", look.number(limits, "request_timeout"), None, "lets a request or connection go"
        )
    )
    lines.append(
        _limit(
            "exit_timeout",
            look.number(limits, "exit_timeout"),
            look.number(described, "exit_left"),
            "ends the process on its way out",
        )
    )
    if line := _stop_timeout(told, now):
        lines.append(line)
    return lines


def _limit(name: str, total: float | None, left: float | None, effect: str) -> str:
    if total is None:
        return f"{name}: none"
    return f"{name}: {effect} after {duration(total)}" + ("" if left is None else f", in {duration(left)}")


def _stop_timeout(told: Told, now: float) -> str:
    """Say when systemd would kill: at TimeoutStopSec=, or when the last extension runs out, whichever is later."""
    extension = look.number(told.described, "extension")
    text = told.shown.get("TimeoutStopUSec", "")
    held = (
        ""
        if extension is None
        else f"extended for {duration(max(0.0, extension))} more, and again before that has passed"
    )
    if not text:
        return f"TimeoutStopSec=: {held}" if held else ""
    try:
        total = timespan(text)
    except ProtocolError:
        return ""
    if total == float("inf"):
        return "TimeoutStopSec=infinity"
    if told.shown.get("ActiveState") != "deactivating":
        return f"TimeoutStopSec={clean(text, 40)}: it is not being stopped by systemd"
    since = told.shown.get("StateChangeTimestampMonotonic", "")
    left = total - (now - int(since) / 1e6) if since.isdecimal() else total
    when = f"passes in {duration(left)}" if left > 0 else f"has passed, {duration(-left)} ago"
    return f"TimeoutStopSec={clean(text, 40)} {when}" + (f"; {held}" if held else "; it is not extended")


def _signals(told: Told) -> list[str]:
    found = [
        (look.text(one, "signal", 20), look.text(one, "effect"))
        for one in look.objects(told.described, "signals")
    ]
    lines = [f"{name:<8}{effect}" for name, effect in found if name and effect]
    if look.text(told.described, "role", 40) == "main" and told.shown.get("Id"):
        lines.append(f"         systemctl kill -s QUIT --kill-whom=main {told.unit}")
    return lines
