"""What is in flight: the ledger, and the entries in it.

There is no lock on the way in and out, only single operations of one dict, which are atomic under the GIL and on free-threaded
builds too (`tracker` says why).

- Entering: register, *then* look at `alert`. The closer raises `alert`, *then* looks whether the dict is empty. One of the two
  sees the other, whatever the order.
- Leaving: unregister, then look at `alert`. Raised, it means that somebody waits for the last to leave (or that one tracker was
  entered twice), and the slow path sees to it.

The ledger keeps no strong reference to a handle of `create_tracker`: its entry is a `Record` that the handle points to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from requiem_systemd.errors import DrainingError

# How often to try to look at the beginning of a dict that others change.
OLDEST_TRIES: Final = 20
JOB: Final = "job"
REQUEST: Final = "request"
CONNECTION: Final = "connection"
LISTENER: Final = "listener"
HOOK: Final = "hook"
WORKER: Final = "worker"
# Kinds that a hung peer can hold for ever: bounded by request_timeout, and let go without a word of abandonment.
BOUNDED: Final = frozenset((REQUEST, CONNECTION, LISTENER))


class Terms:
    """On what terms something holds the stop: limits, a status, a heartbeat, a kind, a second entry. As here, unless they are set."""

    if not TYPE_CHECKING:
        __slots__ = ()  # the subclasses have room for what they set

    kind: str = JOB
    drain_timeout: float | None = None
    heartbeat_timeout: float | None = None
    status: str = ""
    heartbeat: float | None = None
    stalled: bool = False
    abandoned: bool = False
    admitted: bool = False
    again: tuple[Entry, ...] = ()

    def limit(self, request_timeout: float) -> float | None:
        """Return how long this may hold a drain, in seconds; None: as long as it likes."""
        return request_timeout if self.drain_timeout is None and self.kind in BOUNDED else self.drain_timeout

    def let_go(self, owner: object) -> None:
        """Hear, in the engine's thread, that `request_timeout` has passed; `owner` is the thread's ident or the task inside."""


class More(Terms):
    """Terms that only few trackers have. Without slots: what stands at the class costs nothing in the many that are never looked at."""

    def __init__(self, kind: str = JOB, drain_timeout: float | None = None, heartbeat_timeout: float | None = None) -> None:
        self.kind = kind
        if drain_timeout is not None:
            self.drain_timeout: float | None = drain_timeout
        if heartbeat_timeout is not None:
            self.heartbeat_timeout: float | None = heartbeat_timeout


class Entry:
    """What the ledger's dict has as keys: a `Record`, a `Hold` or a `Whole`.

    `name` is what the label is made of. `owner` is a thread's ident, a task, or a process's pid as "process PID".
    """

    __slots__ = ("more", "name", "owner")

    name: object
    owner: Any
    more: Terms

    def extra(self) -> Terms | None:
        """Return `more` where there is one."""
        return getattr(self, "more", None)


class Record(Entry):
    """The ledger's side of a handle."""

    __slots__ = ()

    def __init__(self, name: object, owner: object) -> None:
        self.name = name
        self.owner = owner


class Loose(Record):
    """The ledger's side of a handle that anybody may end: the thread that made it is not inside of it."""

    __slots__ = ()


class Whole(Terms, Entry):
    """An entry that is its own terms, and whose label is what `str` makes of it: one object where three would cost each request.

    With slots, which subclasses have too: a dict for each costs as much as all else of it.
    """

    __slots__ = ("_abandoned",)

    @property
    def more(self) -> Terms:  # type: ignore[override] # never another one
        """Itself."""
        return self

    @property
    def name(self) -> object:  # type: ignore[override] # never another one
        """Itself."""
        return self

    @property
    def abandoned(self) -> bool:
        """Whether it holds the stop no longer: the one term that is ever set."""
        return getattr(self, "_abandoned", False)

    @abandoned.setter
    def abandoned(self, value: bool) -> None:
        self._abandoned = value

    def extra(self) -> Terms:
        """Return itself."""
        return self


class Due(NamedTuple):
    """What has run out in a drain, and when the next limit is due (infinity: never)."""

    deadline: float
    abandoned: tuple[Entry, ...]
    released: tuple[Entry, ...]
    stalled: tuple[Entry, ...]


class Ledger:
    """Everything that holds the stop, by start time; oldest first.

    `wake` is called, without any lock held, whenever somebody who waits for the ledger should look at it again. `alerted` is told
    of each change of `alert`.
    """

    __slots__ = ("_lock", "alert", "alerted", "began", "clock", "closed", "limits_changed", "live", "wake")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.live: dict[Entry, float] = {}
        self.alert: bool = False
        self.alerted: Callable[[bool], object] = _ignored
        self.began: float | None = None
        self.closed: bool = False
        self.limits_changed: bool = False
        self.clock: Callable[[], float] = clock
        self.wake: Callable[[], object] = _nothing
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Forget everything: in the child of a fork nothing of the parent's is in flight."""
        self.live.clear()
        self._set_alert(alert=False)
        self.began = None
        self.closed = False
        self.wake = _nothing
        self._lock = threading.Lock()

    def begin(self) -> None:
        """From now on whoever leaves wakes the engine."""
        self.began = self.clock()
        self._set_alert(alert=True)

    def _set_alert(self, *, alert: bool) -> None:
        self.alert = alert
        self.alerted(alert)

    def close(self, *, force: bool = False) -> bool:
        """Let nobody in any more, if nobody is in; `force`: even if somebody is, who is then abandoned. Say whether closed."""
        with self._lock:
            self._set_alert(alert=True)
            if self.live and not force:
                return False
            self.closed = True
        if force:
            for entry in list(self.live):
                self.give_up(entry)
        return True

    def enter(self, entry: Entry) -> None:
        """Register; raise DrainingError if the service has stopped."""
        self.live[entry] = self.clock()
        if self.alert:
            self.check(entry)

    def check(self, entry: Entry) -> None:
        """Turn a late comer away if the ledger is closed: the closer's decision is waited for."""
        with self._lock:
            closed = self.closed
        if closed:
            self.live.pop(entry, None)
            msg = f'"{entry.name}" was not begun: the service has stopped, the exit would kill it'
            raise DrainingError(msg)
        more = entry.extra()
        if more is None:
            return
        if more.admitted and self.began is not None:
            self.leave(entry)
            msg = f'"{entry.name}" is not admitted: the service is draining; answer 503, or leave it to the next process'
            raise DrainingError(msg)
        self.limits_changed = True
        self.wake()

    def leave(self, entry: Entry) -> None:
        """Unregister; takes no lock, for `__del__` comes here."""
        self.live.pop(entry, None)
        if self.alert:
            self.wake()

    def again(self, entry: Entry, more: Terms) -> Entry:
        """Open a second tracker for one that is entered already; the last in is the first out."""
        twin = Record(entry.name, threading.get_ident())
        twin.more = More(more.kind, more.drain_timeout, more.heartbeat_timeout)
        self._set_alert(alert=True)
        self.enter(twin)
        with self._lock:
            more.again = (*more.again, twin)
        return twin

    def left(self, entry: Entry, *, was_in: bool) -> None:
        """Finish leaving an entry that is off the dict: the slow path, with `alert` raised."""
        more = entry.extra()
        if more is not None and more.again:
            with self._lock:
                if not was_in and self.live.pop(entry, None) is None and more.again:
                    *rest, twin = more.again
                    more.again = tuple(rest)
                    self.live.pop(twin, None)
                elif was_in and more.again:
                    *rest, twin = more.again  # still registered: the ledger is never empty in between
                    more.again = tuple(rest)
                    self.live[entry] = self.live.get(twin, self.clock())
                    self.live.pop(twin, None)
        if self.began is not None:
            self.wake()

    def give_up(self, entry: Entry) -> None:
        """Hold the stop for this one no longer."""
        more = entry.extra()
        if more is None:
            more = entry.more = More()
        more.abandoned = True

    def due(self, now: float, request_timeout: float) -> Due:
        """Say what has run out by `now`, and when the next limit is due.

        A limit of a tracker counts from the begin of the drain, or from its own begin where that is later; its
        heartbeat from the later of that and the last one.
        """
        began = self.began if self.began is not None else now
        abandoned: list[Entry] = []
        released: list[Entry] = []
        stalled: list[Entry] = []
        deadline = float("inf")
        for entry, start in list(self.live.items()):
            more = entry.extra()
            if more is None:
                continue
            since = max(began, start)
            limit = more.limit(request_timeout)
            if limit is not None and now >= since + limit:
                (released if more.kind in BOUNDED else abandoned).append(entry)
                continue
            if limit is not None:
                deadline = min(deadline, since + limit)
            if more.heartbeat_timeout is not None and not more.stalled:
                silent = max(since, more.heartbeat or since) + more.heartbeat_timeout
                if now >= silent:
                    stalled.append(entry)
                else:
                    deadline = min(deadline, silent)
        return Due(deadline, tuple(abandoned), tuple(released), tuple(stalled))

    def entries(self) -> list[tuple[Entry, float]]:
        """Return what is in flight with its start times, oldest first."""
        return list(self.live.items())

    def oldest(self, most: int) -> list[tuple[Entry, float]]:
        """Return the first so many of `entries`, at the cost of these, however many there are."""
        for _ in range(OLDEST_TRIES):
            try:
                return list(islice(self.live.items(), most))
            except RuntimeError:  # it has changed meanwhile
                continue
        return self.entries()[:most]


def _ignored(alert: bool) -> None:  # noqa: FBT001 - a callback's one argument
    """Do nothing: no tracker type looks at this ledger."""


def _nothing() -> None:
    """Do nothing: nobody waits for this ledger."""


def holding(ledger: Ledger, ident: int) -> Iterator[Entry]:
    """Yield what the thread `ident` is inside of."""
    return (entry for entry, _ in ledger.entries() if getattr(entry, "owner", None) == ident and not isinstance(entry, Loose))
