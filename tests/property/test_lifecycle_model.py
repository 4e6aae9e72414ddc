"""Whatever happens to a service in whatever order, what it says to the manager makes sense."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from requiem_systemd.lifecycle import Action, Event, State, step


class Lifecycle(RuleBasedStateMachine):
    """Feeds events, and keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.STARTING
        self.said: list[Action] = []

    @rule(event=st.sampled_from(Event))
    def happen(self, event: Event) -> None:
        """Take a step; an event without a row changes nothing."""
        before = self.state
        self.state, actions = step(before, event)
        self.said += actions
        if self.state is before:
            assert not actions

    @invariant()
    def stopping_at_most_once(self) -> None:
        """STOPPING is said at most once, and nothing said READY or RELOADING after it."""
        if Action.SAY_STOPPING in self.said:
            after = self.said[self.said.index(Action.SAY_STOPPING) + 1 :]
            assert not {Action.SAY_STOPPING, Action.SAY_READY, Action.SAY_RELOADING, Action.RUN_RELOAD} & set(
                after
            )

    @invariant()
    def released_at_most_once(self) -> None:
        """It is released or abandoned once, and only after STOPPING; exactly then it has stopped."""
        ends = [action for action in self.said if action in (Action.RELEASE, Action.ABANDON)]
        assert len(ends) == (self.state is State.STOPPED)
        assert not ends or Action.SAY_STOPPING in self.said

    @invariant()
    def reloads_are_answered(self) -> None:
        """Between two RELOADING there is a READY: each is answered, unless a drain cut in."""
        open_reload = False
        for action in self.said:
            if action is Action.SAY_RELOADING:
                assert not open_reload
                open_reload = True
            elif action is Action.SAY_READY:
                open_reload = False
        if self.state not in (State.DRAINING, State.STOPPED):
            assert open_reload == (self.state in (State.RELOADING, State.RELOAD_QUEUED))


TestLifecycle = Lifecycle.TestCase


@given(st.lists(st.sampled_from(Event)))
def test_a_drain_always_ends(events: list[Event]) -> None:
    """From wherever it has come, DRAIN and IDLE stop it."""
    state = State.STARTING
    for event in [*events, Event.DRAIN, Event.IDLE]:
        state, _ = step(state, event)
    assert state is State.STOPPED
