"""The trackers that users hold.

Discussion of the hot path. `with track("x")` is written around every request and every job, so it may cost about as much as
`with nullcontext()`. A lock and a dict cost three to four times that on one thread and twenty to thirty times on eight, and a
`__del__` that takes the lock deadlocks when the collector runs while it is held. So: single operations on the ledger's dict, and
`kit` makes one class a ledger, of functions that have what they need among their globals: the ledger as an attribute of each tracker
costs 15 % of the whole, closure cells cost 7 %. What few trackers have (limits, a status, a second entry) stands in `more`, a slot
that others never fill. A clock's `now()` must return a new float each time: by its identity a tracker sees who entered it first.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from threading import get_ident
from types import FunctionType
from typing import Any, Final, NamedTuple, Protocol, TypeVar, overload

from requiem_systemd.decorate import decorate
from requiem_systemd.ledger import Entry, Ledger, More, Record, Terms

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
NOTHING: Final[Any] = object()


class Tracker:
    """Holds the stop until `done()`.

    Made by `create_tracker`, or by `with track(…) as tracker`. Its methods may be called from any thread.
    """

    __slots__ = ()

    _ledger: Ledger

    def _entry(self) -> Entry:
        raise NotImplementedError

    def _more(self) -> Terms:
        entry = self._entry()
        more = entry.extra()
        if more is None:
            more = entry.more = More()
        return more

    @property
    def label(self) -> str:
        """The name under which operators see it."""
        return str(self._entry().name)

    @property
    def age(self) -> float:
        """Seconds since it began; 0.0 before that and when it is over."""
        ledger = self._ledger
        start = ledger.live.get(self._entry())
        return 0.0 if start is None else ledger.clock() - start

    def done(self) -> None:
        """Release the stop. Again: nothing."""
        self._ledger.leave(self._entry())

    def status(self, text: str) -> None:
        """Say how far it is; operators see it behind the label."""
        self._more().status = text

    def heartbeat(self) -> None:
        """Say that it is alive; counts against `heartbeat_timeout` while draining."""
        more = self._more()
        more.heartbeat = self._ledger.clock()
        if more.stalled:  # its silence counts anew
            more.stalled = False
            self._ledger.limits_changed = True
            self._ledger.wake()

    def should_stop(self) -> bool:
        """Say whether the drain has begun, this tracker's limit has passed, or it was abandoned."""
        if self._ledger.began is not None:
            return True
        more = self._entry().extra()
        return more is not None and more.abandoned


class Handle(Tracker):
    """A tracker that holds from its making until `done()`; released with a ResourceWarning when it is dropped."""

    __slots__ = ("_ledger", "_record")

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self._ledger = ledger
        self._record = record
        ledger.enter(record)

    def _entry(self) -> Entry:
        return self._record

    def __del__(self) -> None:
        try:
            ledger, record = self._ledger, self._record
        except AttributeError:  # __init__ was never reached
            return
        if record in ledger.live:
            try:  # the last to leave may have the main thread end: not before it has been said who it was
                warnings.warn(f'tracker "{record.name}" was dropped without done()', ResourceWarning, stacklevel=2, source=self)
            finally:
                ledger.leave(record)

    def __repr__(self) -> str:
        return f"<Tracker {self.label!r}>"


class Hold(Entry, Tracker):
    """A tracker that holds from `with` / `async with` to its end; also a decorator. Each entry is a tracker of its own."""

    __slots__ = ()

    def _entry(self) -> Entry:
        return self

    def __enter__(self) -> Tracker:
        raise NotImplementedError

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Tracker:
        raise NotImplementedError

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        raise NotImplementedError

    def __call__(self, function: F) -> F:
        """Decorate: each call of `function`, each run of a generator, is a tracker of its own."""
        decorated: F = decorate(self.fresh, function)
        return decorated

    def fresh(self) -> Hold:
        """Make one of the same label and limits, for one call of a decorated function."""
        twin = type(self)()
        twin.name = self.name
        more = self.extra()
        if more is not None:
            twin.more = More(more.kind, more.drain_timeout, more.heartbeat_timeout)
            twin.more.admitted = more.admitted
        return twin

    def __repr__(self) -> str:
        return f"<track {self.name!r}>"


class Twin(Tracker):
    """The second and later entries of one `Hold`, as `with … as` gives them."""

    __slots__ = ("_ledger", "_record")

    def __init__(self, ledger: Ledger, record: Entry) -> None:
        self._ledger = ledger
        self._record = record

    def _entry(self) -> Entry:
        return self._record


class Track(Protocol):
    """The type of `track`."""

    @overload
    def __call__(self, thing: str, /, *, drain_timeout: float | None = ..., heartbeat_timeout: float | None = ...) -> Hold: ...
    @overload
    def __call__(
        self, /, *, label: str, drain_timeout: float | None = ..., heartbeat_timeout: float | None = ...
    ) -> Hold: ...
    @overload
    def __call__(self, /, *, drain_timeout: float | None = ..., heartbeat_timeout: float | None = ...) -> Callable[[F], F]: ...
    @overload
    def __call__(
        self, thing: T, /, *, label: str | None = ..., drain_timeout: float | None = ..., heartbeat_timeout: float | None = ...
    ) -> T: ...


class Kit(NamedTuple):
    """What is made for one ledger: its trackers' class, its `track`, and what sets their clock."""

    hold: type[Hold]
    track: Track
    set_clock: Callable[[Callable[[], float]], None]


# What the five functions below find among their globals, once `kit` has bound them to one ledger.
_ledger: Ledger
_register: Callable[[Entry, float], float]
_live: dict[Entry, float]
_clock: Callable[[], float]
_alert: bool
_make: type[Hold]
_slow: Callable[..., Any]


def _enter(self: Hold) -> Tracker:
    start = _clock()
    if _register(self, start) is not start:
        return _again(_ledger, self)
    self.owner = get_ident()  # which task it is, if it is one, is found when somebody asks: see stacks.task_of
    if not _alert:
        return self
    _ledger.check(self)
    return self


def _exit(self: Hold, kind: object, error: object, trace: object) -> None:  # noqa: ARG001 - the protocol's
    try:
        del _live[self]
    except KeyError:  # a second entry's end, a fork's child, or abandoned
        return _ledger.left(self, was_in=False)
    if not _alert:
        return None
    return _ledger.left(self, was_in=True)


async def _aenter(self: Hold) -> Tracker:
    start = _clock()
    if _register(self, start) is not start:
        return _again(_ledger, self)
    self.owner = get_ident()
    if not _alert:
        return self
    _ledger.check(self)
    return self


async def _aexit(self: Hold, kind: object, error: object, trace: object) -> None:  # noqa: ARG001 - the protocol's
    try:
        del _live[self]
    except KeyError:
        return _ledger.left(self, was_in=False)
    if not _alert:
        return None
    return _ledger.left(self, was_in=True)


# Keyword-only for type checkers (see Track), not for the interpreter: CPython 3.11 calls a function with keyword-only defaults by a
# path that costs a tenth of all of `with track("x")`.
def _track(
    thing: Any = NOTHING,
    /,
    label: str | None = None,
    drain_timeout: float | None = None,
    heartbeat_timeout: float | None = None,
) -> Any:
    if type(thing) is str and drain_timeout is None and heartbeat_timeout is None:
        hold = _make()
        hold.name = thing
        return hold
    return _slow(thing, label, drain_timeout, heartbeat_timeout)


def kit(ledger: Ledger, slow: Callable[..., Any]) -> Kit:
    """Make one ledger's trackers; see the top for why so. `slow` is `track` for all but plain labels."""
    scope: dict[str, Any] = {
        **globals(),
        "_ledger": ledger,
        "_register": ledger.live.setdefault,
        "_live": ledger.live,
        "_clock": ledger.clock,
        "_alert": ledger.alert,
        "_slow": slow,
    }

    def bound(function: Any, name: str) -> Any:
        made = FunctionType(function.__code__, scope, name, function.__defaults__)
        made.__qualname__, made.__doc__ = name, function.__doc__
        return made

    methods = {"__enter__": _enter, "__exit__": _exit, "__aenter__": _aenter, "__aexit__": _aexit}
    body = {name: bound(function, name) for name, function in methods.items()}
    hold: type[Hold] = type("BoundHold", (Hold,), {"__slots__": (), "__module__": __name__, "_ledger": ledger, **body})
    scope["_make"] = hold
    track = bound(_track, "track")
    track.__doc__ = slow.__doc__
    ledger.alerted = functools.partial(scope.__setitem__, "_alert")
    return Kit(hold, track, functools.partial(scope.__setitem__, "_clock"))


def _again(ledger: Ledger, hold: Hold) -> Tracker:
    """Enter a `Hold` that is entered already."""
    more = hold.extra()
    if more is None:
        more = hold.more = More()
    return Twin(ledger, ledger.again(hold, more))
