"""Where a service stands, as a value to tell: its state, its limits, what the next signal does. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final, NamedTuple

from requiem_systemd.lifecycle import State


class WorkerInfo(NamedTuple):
    """A worker process as its primary sees it; `oldest` is its oldest job, as STATUS shows it."""

    id: int
    pid: int
    phase: str
    status: str
    jobs: int
    requests: int
    oldest: str


class Standing(NamedTuple):
    """One service; lengths in seconds, None where there is nothing to tell.

    `since`: how long it is in its state. `drain_left`: until `drain_timeout` abandons what is in flight. `exit_left`: until
    `exit_timeout` ends the process. `extension`: until what the manager was last asked for runs out. `signals`: what the next one does.
    """

    state: State
    since: float
    reason: str
    status: str
    drain_age: float | None
    drain_left: float | None
    exit_left: float | None
    extension: float | None
    abandoned: int
    signals: dict[str, str]
    workers: list[WorkerInfo]


_BEGINS: Final = "begins the drain"
_AGAIN: Final = "changes nothing: the drain has begun"
_LEAVES: Final = "changes nothing: the process is on its way out"
_QUITS: Final = "abandons what is in flight, and ends the process"
_LOST: Final = "does nothing any more: nothing is reloaded once the drain has begun"

# What a signal does (promise 6 of the README), by what has become of the service: not draining, draining, stopped.
_EFFECTS: Final = MappingProxyType(
    {
        "SIGTERM": (_BEGINS, _AGAIN, _LEAVES),
        "SIGINT": (
            _BEGINS,
            "is the first: changes nothing, but another, a second later, abandons what is in flight",
            _LEAVES,
        ),
        "SIGHUP": ("reloads", _LOST, _LOST),
        "SIGQUIT": (_QUITS, _QUITS, "ends the process, without waiting for the rest of the way out"),
    }
)
_INTERRUPTED: Final = (_BEGINS, _QUITS, "ends the process, without waiting for the rest of the way out")
_HANG_UP: Final = (_BEGINS, _AGAIN, _LEAVES)


def effects(
    state: State, *, taken: Callable[[str], bool], interrupted: bool, reloads: bool
) -> dict[str, str]:
    """Say what the next of each signal does.

    `taken`: says whether the service has taken a signal; `interrupted`: a SIGINT has come; `reloads`: there is what SIGHUP can reload.
    """
    stage = {State.DRAINING: 1, State.STOPPED: 2}.get(state, 0)
    found = {}
    for name, row in _EFFECTS.items():
        if name == "SIGINT" and interrupted:
            row = _INTERRUPTED  # noqa: PLW2901 - the same signal's other row
        elif name == "SIGHUP" and not reloads:
            row = _HANG_UP  # noqa: PLW2901 - same
        found[name] = (
            row[stage]
            if taken(name)
            else "is not taken by the service: it is ignored, or its program's own business"
        )
    return found
