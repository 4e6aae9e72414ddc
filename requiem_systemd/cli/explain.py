"""All that one process told, as lines for people: what holds its stop, its limits, and what the next signal does. No I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from requiem_systemd import report
from requiem_systemd.cli import look
from requiem_systemd.cli.colours import plain
from requiem_systemd.cli.show import BOLD, RED, held, more, process
from requiem_systemd.errors import ProtocolError
from requiem_systemd.ledger import BOUNDED
from requiem_systemd.protocol import clean, duration, timespan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from requiem_systemd.cli.colours import Paint
    from requiem_systemd.cli.look import Holder, Told


def account(told: Told, now: float | None = None, paint: Paint = plain) -> list[str]:
    """Say all about one process: what holds its stop, its limits, and what the next signal does; `now`: systemd's monotonic clock."""
    described = told.described
    heading = f"{told.unit}, process {process(told)}" if described else told.unit
    lines = [paint(heading, BOLD)]
    if described:
        lines += [f"  {_state(told)}", *_holding(told, paint), *_processes(told), *_workers(told)]
        lines += [
            "  limits:",
            *(f"    {line}" for line in _limits(told, time.monotonic() if now is None else now)),
        ]
        lines += ["  the next signal:", *(f"    {line}" for line in _signals(told))]
    if told.problem:
        lines.append(paint(f"  {clean(told.problem, 1000)}", RED))
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
        lines.append(f"    {paint(_named(holder), BOLD)}")
        lines += [f"        {frame}" for frame in holder.stack or ((holder.where,) if holder.where else ())]
    if rest := more(told, len(holders)):
        lines.append(f"    {rest}")
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
