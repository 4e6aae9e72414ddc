"""Findings as text and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.cli.doctor.finding import DROPS, KILLS, NOTES, SEVERITIES, WARNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requiem_systemd.cli.colours import Paint
    from requiem_systemd.cli.doctor.finding import Finding

_COLORS: Final = MappingProxyType({KILLS: "1;31", DROPS: "31", WARNS: "33", NOTES: "2"})
_WIDTH: Final = 110


def as_json(told: Sequence[tuple[str, Sequence[Finding]]]) -> list[dict[str, Any]]:
    """Return what is written as JSON."""
    return [
        {
            "unit": what,
            "clean": not any(one.severity != NOTES for one in found),
            "findings": [one._asdict() for one in found],
        }
        for what, found in told
    ]


def as_text(told: Sequence[tuple[str, Sequence[Finding]]], paint: Paint) -> str:
    """Return what a person reads."""
    return "\n\n".join(_unit(what, found, paint) for what, found in told)


def _unit(what: str, found: Sequence[Finding], paint: Paint) -> str:
    lines = [paint(f"{what}: {_summary(found)}", "1")]
    for one in found:
        lines.append(f"  {paint(one.severity, _COLORS[one.severity])}  {one.id}")
        lines += _indented(one.why)
        lines += _indented(one.line, "write: ") if one.line else []
        lines += _indented(one.see, "see:   ")
    return "\n".join(lines)


def _summary(found: Sequence[Finding]) -> str:
    counted = Counter(one.severity for one in found)
    said = ", ".join(f"{counted[severity]} {severity}" for severity in SEVERITIES if counted[severity])
    return said or "nothing kills a drain or drops a connection"


def _indented(text: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"      {first}",
        subsequent_indent=" " * (6 + len(first)),
        break_long_words=False,
        break_on_hyphens=False,
    )
