"""A clock that stands still until somebody moves it, for services under test."""

from __future__ import annotations

import math
import selectors
import socket
import threading
from typing import Final, Protocol

from requiem_systemd.loop import Clock
from requiem_systemd.protocol import length

# Real seconds in which an engine comes to rest; only one that hangs takes longer.
PATIENCE: Final = 10.0


class Participant(Protocol):
    """Somebody who does things at times of the clock, beside the engines: a `FakeManager`."""

    def quiesce(self) -> bool:
        """Wait for threads that work for an engine; say whether there may have been any."""

    def turn(self) -> bool:
        """Do what is due now; say whether anything was done that an engine may have to answer."""

    def due(self) -> float:
        """Return the next time at which there is something to do, infinity for never."""


class _Sleeper:
    """One engine that waits for descriptors or for a time."""

    def __init__(self, deadline: float, waker: socket.socket) -> None:
        self.deadline = deadline
        self._waker = waker
        self._poked = False

    def poke(self) -> None:
        if not self._poked:
            self._poked = True
            self._waker.send(b"\0")


class FakeClock(Clock):
    """Virtual seconds: they pass when `advance` says so, and only then.

    Descriptors are waited for in real time; timeouts count by this clock. `advance` goes from deadline to deadline, and at each
    wakes who is due and waits until all are at rest again: a drain of an hour takes a second, and the same way every time. Threads
    and sleeps of the code under test know nothing of it.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._changed = threading.Condition()
        self._sleepers: dict[selectors.BaseSelector, _Sleeper] = {}
        self._awake: dict[selectors.BaseSelector, threading.Thread] = {}
        self._participants: list[Participant] = []

    def now(self) -> float:
        """Return virtual seconds."""
        return self._now + 0.0  # a new object each time: by that a tracker sees who has entered it first

    def select(
        self, selector: selectors.BaseSelector, timeout: float | None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for descriptors in real time, at most `timeout` virtual seconds."""
        with self._changed:
            self._awake.setdefault(selector, threading.current_thread())
        ready = selector.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        ours, theirs = socket.socketpair()  # for this one sleep, so that nothing is left to be closed
        selector.register(ours, selectors.EVENT_READ)
        try:
            self._fall_asleep(selector, _Sleeper(self._deadline(timeout), theirs))
            ready = selector.select(None)
        finally:
            with self._changed:
                self._sleepers.pop(selector, None)
                self._awake[selector] = threading.current_thread()
                selector.unregister(ours)
                ours.close()
                theirs.close()
        return [(key, events) for key, events in ready if key.fileobj is not ours]

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, doing on the way whatever falls due."""
        target = self._now + length("seconds", seconds)
        self.settle()
        while (deadline := self._next()) <= target:
            self._now = max(self._now, deadline)
            self.settle()
        self._now = target
        self.settle()

    def settle(self) -> None:
        """Wait until every engine has done what there is to do by now, and the participants too."""
        while True:
            self.rest()
            if any(participant.quiesce() for participant in self._participants):
                self.rest()
            if not any(participant.turn() for participant in self._participants):
                return

    def attach(self, participant: Participant) -> None:
        """Take somebody along."""
        self._participants.append(participant)

    def detach(self, participant: Participant) -> None:
        """Leave somebody behind."""
        self._participants.remove(participant)

    def _deadline(self, timeout: float | None) -> float:
        """Round up to microseconds: who wakes a rounding error early would sleep for ever after nothing."""
        if timeout is None or math.isinf(timeout):
            return math.inf
        return max(math.ceil(round((self._now + timeout) * 1e6, 3)) / 1e6, self._now + 1e-6)

    def _fall_asleep(self, selector: selectors.BaseSelector, sleeper: _Sleeper) -> None:
        with self._changed:
            self._sleepers[selector] = sleeper
            self._awake.pop(selector, None)
            self._changed.notify_all()

    def _next(self) -> float:
        with self._changed:
            deadlines = [sleeper.deadline for sleeper in self._sleepers.values()]
        return min(deadlines + [participant.due() for participant in self._participants], default=math.inf)

    def rest(self) -> None:
        """Wake every engine once, and wait until each sleeps again: what was ready before has been seen to then."""
        with self._changed:
            for _ in range(max(1, len(self._sleepers))):  # each may have given the others something to do
                poked = set(self._sleepers.values())
                for sleeper in poked:
                    sleeper.poke()
                self._wait_for_rest(poked)

    def _wait_for_rest(self, poked: set[_Sleeper]) -> None:
        left = PATIENCE
        while not poked.isdisjoint(self._sleepers.values()) or self._busy():
            if left <= 0:
                msg = f"an engine has not come to rest within {PATIENCE:.0f} s: {', '.join(t.name for t in self._busy())}"
                raise RuntimeError(msg)
            # The end of a thread notifies nobody: look again now and then.
            if not self._changed.wait(0.05):
                left -= 0.05

    def _busy(self) -> list[threading.Thread]:
        for selector in [selector for selector, thread in self._awake.items() if not thread.is_alive()]:
            del self._awake[selector]
        return list(self._awake.values())
