"""What is found in a unit, and what a rule is. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from requiem_systemd.cli.doctor.facts import Facts

#: A job or a request is cut off.
KILLS: Final = "kills"
#: A connection is refused or reset, or nobody serves.
DROPS: Final = "drops"
#: Neither by itself; but what goes wrong is not seen, or is made worse.
WARNS: Final = "warns"
#: True, and nothing to mend in this unit.
NOTES: Final = "notes"
#: What a stop must leave to a program of which nothing is known: as long as a request may take at most places.
ORDINARY: Final = 30.0
#: The worst first.
SEVERITIES: Final = (KILLS, DROPS, WARNS, NOTES)


class Finding(NamedTuple):
    """One thing that is found."""

    id: str
    severity: str
    why: str
    line: str  # to write, or to do
    see: str  # where it is written


#: What a rule's function returns: nothing, why, or why and a line that fits better than the rule's.
Verdict = str | tuple[str, str] | Literal[False] | None


class Rule(NamedTuple):
    """One rule: a row of a table."""

    id: str
    severity: str
    judge: Callable[[Facts], Verdict]
    line: str
    see: str

    def apply(self, facts: Facts) -> Finding | None:
        """Return the finding, if there is one."""
        verdict = self.judge(facts)
        if not verdict:
            return None
        why, line = (verdict, self.line) if isinstance(verdict, str) else verdict
        return Finding(self.id, self.severity, why, line, self.see)
