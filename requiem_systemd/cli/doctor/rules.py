"""The table of all rules, and what they find in a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import containers, listening, rolling, speaking, stopping, times
from requiem_systemd.cli.doctor.facts import Facts
from requiem_systemd.cli.doctor.finding import SEVERITIES, Finding

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Source
    from requiem_systemd.cli.doctor.finding import Rule

RULES: Final[tuple[Rule, ...]] = (
    *stopping.RULES,
    *times.RULES,
    *speaking.RULES,
    *listening.RULES,
    *rolling.RULES,
    *containers.RULES,
)
#: The rules that look at a socket's own file.
_FOR_SOCKETS: Final = frozenset(("socket-restarts", "socket-flushes"))


def findings(source: Source) -> list[Finding]:
    """Return what is found, the worst first."""
    facts = Facts(source)
    rules = [rule for rule in RULES if not facts.is_socket or rule.id in _FOR_SOCKETS]
    found = [finding for rule in rules if (finding := rule.apply(facts)) is not None]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
