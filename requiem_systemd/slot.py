"""The process's one service, for those that stand above it and act on it when they are given no other.

`service` fills the slot when it is imported, and `import requiem_systemd` imports it. An import the other way round would be a cycle.
"""

from __future__ import annotations

from typing import Any

_filled: list[Any] = []


def fill(service: Any) -> None:
    """Put the process's service in; once."""
    _filled.append(service)


def own(given: Any = None) -> Any:
    """Return the service that was given, else the process's."""
    return _filled[0] if given is None else given
