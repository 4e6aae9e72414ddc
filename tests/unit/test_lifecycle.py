"""The table, cell by cell."""

from __future__ import annotations

import itertools

import pytest

from requiem_systemd.lifecycle import TRANSITIONS, Action, Event, State, step

RELOAD = (Action.SAY_RELOADING, Action.RUN_RELOAD)
DRAIN = (State.DRAINING, (Action.SAY_STOPPING, Action.RUN_DRAIN))
# The design's table, written down once more: one that is changed must be changed twice.
EXPECTED = {
    (State.STARTING, Event.READY): (State.RUNNING, (Action.SAY_READY,)),
    (State.STARTING, Event.RELOAD): (State.START_RELOAD_QUEUED, ()),
    (State.STARTING, Event.DRAIN): DRAIN,
    (State.START_RELOAD_QUEUED, Event.READY): (State.RELOADING, (Action.SAY_READY, *RELOAD)),
    (State.START_RELOAD_QUEUED, Event.DRAIN): DRAIN,
    (State.RUNNING, Event.RELOAD): (State.RELOADING, RELOAD),
    (State.RUNNING, Event.DRAIN): DRAIN,
    (State.RELOADING, Event.RELOAD): (State.RELOAD_QUEUED, ()),
    (State.RELOADING, Event.RELOADED): (State.RUNNING, (Action.SAY_READY,)),
    (State.RELOADING, Event.DRAIN): DRAIN,
    (State.RELOAD_QUEUED, Event.RELOADED): (State.RELOADING, (Action.SAY_READY, *RELOAD)),
    (State.RELOAD_QUEUED, Event.DRAIN): DRAIN,
    (State.DRAINING, Event.IDLE): (State.STOPPED, (Action.RELEASE,)),
    (State.DRAINING, Event.EXPIRED): (State.STOPPED, (Action.ABANDON,)),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_cell(state: State, event: Event) -> None:
    """Each state and event has one outcome; where the table says nothing, nothing changes."""
    assert step(state, event) == EXPECTED.get((state, event), (state, ()))


def test_no_row_is_left_out() -> None:
    """The table has no row that is not expected."""
    assert set(TRANSITIONS) == set(EXPECTED)


def test_the_table_is_fixed() -> None:
    """Nobody can change it at run time."""
    with pytest.raises(TypeError):
        TRANSITIONS[State.STOPPED, Event.READY] = (State.RUNNING, ())  # type: ignore[index]


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPED])
def test_never_ready_after_draining(state: State) -> None:
    """Nothing that can follow a drain says READY or RELOADING, and nothing leads back."""
    for event in Event:
        after, actions = step(state, event)
        assert after in (State.DRAINING, State.STOPPED)
        assert not {Action.SAY_READY, Action.SAY_RELOADING, Action.SAY_STOPPING} & set(actions)


@pytest.mark.parametrize("state", [state for state in State if state not in (State.DRAINING, State.STOPPED)])
def test_every_state_can_drain(state: State) -> None:
    """A drain can begin at any time before one has."""
    assert step(state, Event.DRAIN) == DRAIN
