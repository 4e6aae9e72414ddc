"""What services told, as a table for people. No I/O."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from requiem_systemd import report
from requiem_systemd.cli import look
from requiem_systemd.cli.colours import plain
from requiem_systemd.protocol import clean, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from requiem_systemd.cli.colours import Paint
    from requiem_systemd.cli.look import Holder, Told

HEAD: Final = ("UNIT", "PROCESS", "STATE", "FOR", "IN FLIGHT")
# Of the holders of one process, so many are shown in a table.
MOST: Final = 20
BOLD, DIM, RED, YELLOW = "1", "2", "31", "33"
_COLOURS: Final = {"draining": YELLOW, "stopped": YELLOW, "reloading": YELLOW, "starting": DIM}


def table(told: Sequence[Told], paint: Paint = plain) -> list[str]:
    """Show all processes, a row each, and below it what they hold."""
    rows = [_row(one) for one in told]
    jobs = [[_job(holder) for holder in look.holders(one)[:MOST]] for one in told]
    widths = widths_of([HEAD, *(cells for cells, _ in rows)])
    inner = widths_of(itertools.chain.from_iterable(jobs))
    lines = [line_of(HEAD, widths, (BOLD,) * len(HEAD), paint)]
    for one, (cells, colours), held_by in zip(told, rows, jobs, strict=True):
        lines.append(line_of(cells, widths, colours, paint))
        lines += ["    " + line_of(job, inner, ("",) * len(job), paint) for job in held_by]
        if rest := more(one, len(held_by)):
            lines.append(f"    {rest}")
        if one.problem:
            lines.append(paint(f"    {clean(one.problem, 1000)}", RED))
    return lines


def _row(told: Told) -> tuple[tuple[str, ...], tuple[str, ...]]:
    described = told.described
    if not described:
        said = clean(told.shown.get("StatusText", ""), 300)
        state = clean(told.shown.get("ActiveState", ""), 40) or "?"
        return (told.unit, clean(told.shown.get("MainPID", "?"), 20), state, "?", said or "?"), (
            BOLD,
            "",
            "",
            "",
            "",
        )
    state = look.text(described, "state", 40)
    since = look.number(described, "since")
    cells = (told.unit, process(told), state, "?" if since is None else duration(since), held(told))
    return cells, (BOLD, "", _COLOURS.get(state.partition(",")[0], ""), "", "")


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


def more(told: Told, shown: int) -> str:
    """Say how many hold beside those that are shown; empty for none."""
    omitted = len(look.holders(told)) - shown + look.whole(told.in_flight, "omitted")
    return f"and {omitted} more" if omitted > 0 else ""


def widths_of(rows: Iterable[Sequence[str]]) -> list[int]:
    """Return how wide each column must be."""
    widths: list[int] = []
    for cells in rows:
        widths = [
            max(len(cell), width) for cell, width in zip(cells, widths or [0] * len(cells), strict=True)
        ]
    return widths


def line_of(cells: Sequence[str], widths: Sequence[int], colours: Sequence[str], paint: Paint) -> str:
    """Write one row."""
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    padded[-1] = cells[-1]
    shown = (paint(cell, colour) if colour else cell for cell, colour in zip(padded, colours, strict=True))
    return "  ".join(shown).rstrip()
