"""The ledger against a plain list."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from requiem_systemd import DrainingError, Service
from requiem_systemd.ledger import Ledger, Record
from requiem_systemd.tracker import Hold, Tracker


class Holds(RuleBasedStateMachine):
    """Enters and leaves a few trackers, each any number of times, last in first out."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service()
        self.holds = [self.service.track(f"job {number}") for number in range(3)]
        self.entered: list[int] = []
        self.handles: list[Tracker] = []
        self.closed = False

    @precondition(lambda self: not self.closed)
    @rule(number=st.integers(0, 2))
    def enter(self, number: int) -> None:
        """Enter one, perhaps again."""
        tracker = self.holds[number].__enter__()
        assert tracker.label == f"job {number}"
        self.entered.append(number)

    @precondition(lambda self: self.entered)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Leave any that is entered."""
        number = self.entered.pop(data.draw(st.integers(0, len(self.entered) - 1)))
        self.holds[number].__exit__(None, None, None)

    @precondition(lambda self: not self.closed)
    @rule()
    def create(self) -> None:
        """Make a handle."""
        self.handles.append(self.service.create_tracker("handle"))

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), times=st.integers(1, 2))
    def done(self, data: st.DataObject, times: int) -> None:
        """End any handle, perhaps twice."""
        handle = self.handles.pop(data.draw(st.integers(0, len(self.handles) - 1)))
        for _ in range(times):
            handle.done()

    @rule()
    def begin(self) -> None:
        """Begin the drain."""
        self.service.ledger.begin()

    @rule()
    def close(self) -> None:
        """Close it: exactly when it is empty."""
        empty = not self.entered and not self.handles
        assert self.service.ledger.close() == empty
        self.closed = self.closed or empty

    @precondition(lambda self: self.closed)
    @rule(number=st.integers(0, 2))
    def come_late(self, number: int) -> None:
        """Nobody gets in any more."""
        with pytest.raises(DrainingError):
            self.holds[number].__enter__()

    @invariant()
    def as_many_as_entered(self) -> None:
        """What is in the ledger is what was entered and not left."""
        names = sorted(str(entry.name) for entry, _ in self.service.ledger.entries())
        assert names == sorted([f"job {number}" for number in self.entered] + ["handle"] * len(self.handles))

    def teardown(self) -> None:
        """Leave nothing to the collector."""
        for handle in self.handles:
            handle.done()


TestHolds = Holds.TestCase


@settings(max_examples=20, deadline=None)
@given(plans=st.lists(st.lists(st.integers(0, 2), max_size=20), min_size=2, max_size=4))
def test_threads_that_share(plans: list[list[int]]) -> None:
    """Threads that enter the same trackers, nested at will: in the end it is empty and closes once."""
    service = Service()
    holds = [service.track(f"job {number}") for number in range(3)]

    def work(plan: list[int]) -> None:
        open_: list[Hold] = []
        for number in plan:
            holds[number].__enter__()
            open_.append(holds[number])
            if len(open_) > 2:
                open_.pop().__exit__(None, None, None)
        while open_:
            open_.pop().__exit__(None, None, None)

    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.ledger.entries() == []
    assert service.ledger.close()


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_closing_is_atomic(counts: list[int]) -> None:
    """A closer among those who enter: each either got in before, or was turned away."""
    ledger = Ledger()
    late: list[bool] = []

    def work(count: int) -> None:
        for _ in range(count):
            record = Record("job", 1)
            try:
                ledger.enter(record)
            except DrainingError:
                late.append(ledger.closed)
                continue
            assert not ledger.closed
            ledger.leave(record)

    threads = [threading.Thread(target=work, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    while not ledger.close():
        pass
    for thread in threads:
        thread.join()
    assert all(late)
    assert ledger.entries() == []
