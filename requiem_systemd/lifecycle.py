"""A service is a table: state and event in, state and actions out.

Rule: everything that decides what a service does next stands in `TRANSITIONS`. Nothing here does I/O or looks at a clock.
A second stage of something is a state (`START_RELOAD_QUEUED`, `RELOAD_QUEUED`), never a flag beside the state.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final


class State(enum.Enum):
    """Where in its life a service is."""

    STARTING = "starting"
    START_RELOAD_QUEUED = "starting, reload queued"
    RUNNING = "running"
    RELOADING = "reloading"
    RELOAD_QUEUED = "reloading, another queued"
    DRAINING = "draining"
    STOPPED = "stopped"


class Event(enum.Enum):
    """What happens to a service."""

    READY = "ready"
    RELOAD = "reload"
    RELOADED = "reloaded"
    DRAIN = "drain"
    IDLE = "idle"
    EXPIRED = "expired"


class Action(enum.Enum):
    """What a service has to do about it, in the order given."""

    SAY_READY = "say READY"
    SAY_RELOADING = "say RELOADING"
    RUN_RELOAD = "run the reload"
    SAY_STOPPING = "say STOPPING"
    RUN_DRAIN = "run the drain"
    RELEASE = "release"
    ABANDON = "abandon"


_RELOAD: Final = (Action.SAY_RELOADING, Action.RUN_RELOAD)
_DRAIN: Final = (State.DRAINING, (Action.SAY_STOPPING, Action.RUN_DRAIN))

# sd_notify(3), v259: STOPPING=1 is final. So no row leads from DRAINING or STOPPED to anything that says READY or RELOADING.
TRANSITIONS: Final = MappingProxyType(
    {
        (State.STARTING, Event.READY): (State.RUNNING, (Action.SAY_READY,)),
        (State.STARTING, Event.RELOAD): (State.START_RELOAD_QUEUED, ()),
        (State.START_RELOAD_QUEUED, Event.READY): (State.RELOADING, (Action.SAY_READY, *_RELOAD)),
        (State.RUNNING, Event.RELOAD): (State.RELOADING, _RELOAD),
        (State.RELOADING, Event.RELOAD): (State.RELOAD_QUEUED, ()),
        (State.RELOADING, Event.RELOADED): (State.RUNNING, (Action.SAY_READY,)),
        (State.RELOAD_QUEUED, Event.RELOADED): (State.RELOADING, (Action.SAY_READY, *_RELOAD)),
        (State.STARTING, Event.DRAIN): _DRAIN,
        (State.START_RELOAD_QUEUED, Event.DRAIN): _DRAIN,
        (State.RUNNING, Event.DRAIN): _DRAIN,
        (State.RELOADING, Event.DRAIN): _DRAIN,
        (State.RELOAD_QUEUED, Event.DRAIN): _DRAIN,
        (State.DRAINING, Event.IDLE): (State.STOPPED, (Action.RELEASE,)),
        (State.DRAINING, Event.EXPIRED): (State.STOPPED, (Action.ABANDON,)),
    }
)


def step(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """Look the next state and the actions up; an event that has no row changes nothing."""
    return TRANSITIONS.get((state, event), (state, ()))
