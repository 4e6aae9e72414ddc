"""Everything that opens a tracker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, TypeVar

from requiem_systemd.errors import DrainingError
from requiem_systemd.joins import Joins, is_function, qualified, refuse
from requiem_systemd.ledger import JOB, Ledger, Loose, More
from requiem_systemd.protocol import length
from requiem_systemd.tracker import NOTHING, Handle, Hold, Track, Tracker, kit

J = TypeVar("J")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Tracking:
    """Opens trackers in one ledger; works whether or not the service is armed."""

    def __init__(self) -> None:
        self.ledger: Ledger = Ledger()
        made = kit(self.ledger, self._track)
        self._hold, self._set_clock = made.hold, made.set_clock
        self.track: Track = made.track
        self._joins = Joins(self.ledger, self._watch, self._shown)

    def _watch(self, fd: int, ended: Callable[[], object]) -> None:
        raise NotImplementedError

    def _shown(self, text: str) -> str:
        """Return what of a label may leave the process."""
        return text

    def use_clock(self, clock: Callable[[], float] = monotonic) -> None:
        """Count by another clock from now on; what is in flight keeps its start times."""
        self.ledger.clock = clock
        self._set_clock(clock)

    def _track(self, thing: Any, label: str | None, drain_timeout: float | None, heartbeat_timeout: float | None) -> Any:
        """Hold the stop while something runs.

        - `track("label")`: a context manager, plain or async, from its entry to its end; also a decorator for functions, coroutine
          functions, generators and async generators. Never entered, it holds nothing; entered again, it is a tracker of its own.
        - `@track` and `@track(drain_timeout=5)`: the same with the function's qualified name as label.
        - `track(thing)`, a `concurrent.futures.Future`, `asyncio.Future` or `Task`, `threading.Thread`,
          `multiprocessing.Process` or `subprocess.Popen`: returns it, and holds the stop until it has ended; a thread or
          process that is not started yet from its start.

        `drain_timeout`: how many seconds after the drain began it may hold the stop (no limit on the job itself).
        `heartbeat_timeout`: how many seconds may pass between heartbeats while draining; past it, it is reported as stalled.

        Raises DrainingError on entry once the service has stopped, ValueError for negative, NaN or infinite lengths, TypeError
        for a coroutine object, a class, or anything else that has no end, with what to write instead.
        """
        more = _more(JOB, drain_timeout, heartbeat_timeout)
        if thing is NOTHING and label is None:
            return lambda function: self._track(function, None, drain_timeout, heartbeat_timeout)
        if thing is NOTHING or isinstance(thing, str):
            return self.open(label if thing is NOTHING else thing, more)
        if self._joins.hold(thing, label, more):
            return thing
        if is_function(thing) or isinstance(thing, (staticmethod, classmethod)):
            return self.open(label or qualified(thing), more)(thing)
        raise refuse(thing)

    def open(self, name: object, more: More | None = None) -> Hold:
        """Make a tracker of any kind, not yet entered; `name` becomes its label when somebody looks."""
        hold = self._hold()
        hold.name = name
        if more is not None:
            hold.more = more
        return hold

    def create_tracker(self, label: str, *, drain_timeout: float | None = None, heartbeat_timeout: float | None = None) -> Tracker:
        """Hold the stop from now until `done()`: for callbacks, and for what begins here and ends there.

        Dropped without `done()`, it is released with a ResourceWarning. Limits and errors as for `track`.
        """
        record = Loose(_text(label, "create_tracker"), threading.get_ident())
        more = _more(JOB, drain_timeout, heartbeat_timeout)
        if more is not None:
            record.more = more
        return Handle(self.ledger, record)

    def admit(self, label: str, *, drain_timeout: float | None = None, heartbeat_timeout: float | None = None) -> Hold:
        """Track at a front door: DrainingError once the drain has begun, at the call and on entry; otherwise as `track`."""
        more = _more(JOB, drain_timeout, heartbeat_timeout)
        hold = self.open(_text(label, "admit"), more or More())
        hold.more.admitted = True
        self.refuse_while_draining(label)
        return hold

    def refuse_while_draining(self, label: object) -> None:
        """Raise DrainingError once the drain has begun."""
        if self.ledger.began is not None:
            msg = f'"{label}" is not admitted: the service is draining; answer 503, or leave it to the next process'
            raise DrainingError(msg)

    def should_stop(self) -> bool:
        """Say whether to take no more work: the drain has begun (or, in a cluster, this worker is being rolled).

        A main thread that asks is given 5 s after the last job for what it does last, before it is made to leave.
        """
        self._heed()
        return self.ledger.began is not None

    def _heed(self) -> None:
        """Take it that this thread leaves its work by itself when the drain begins."""
        raise NotImplementedError

    def draining(self) -> bool:
        """Say whether the drain has begun."""
        return self.ledger.began is not None

    def jobs(self, fetch: Callable[[], J | None], *, label: Callable[[J], str] = str) -> Iterator[J]:
        """Yield a worker's jobs until the drain begins, each held from before it was fetched until its body has run.

        `fetch` returns None for "nothing yet", within a timeout of its own: for so long a drain may wait for it. With `track`
        after the fetch, a job that was popped when the signal came would be lost.
        """
        self._heed()
        while not self.should_stop():
            hold = self.open("fetching the next job")
            try:
                hold.__enter__()
            except DrainingError:  # stopped between the question and the entry: nothing was fetched
                return
            with _Entered(hold):
                job = fetch()
                if job is not None:
                    hold.name = label(job)
                    yield job


class _Entered:
    """The rest of a `with` whose entry is over."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._hold.__exit__(kind, error, trace)


def _more(kind: str, drain_timeout: float | None, heartbeat_timeout: float | None) -> More | None:
    """Check limits; None where there are none."""
    if drain_timeout is None and heartbeat_timeout is None:
        return None
    return More(
        kind,
        None if drain_timeout is None else length("drain_timeout", drain_timeout),
        None if heartbeat_timeout is None else length("heartbeat_timeout", heartbeat_timeout),
    )


def _text(label: object, call: str) -> str:
    if not isinstance(label, str):
        msg = f"{call}({type(label).__name__}): give a label (str)"
        raise TypeError(msg)
    return label
