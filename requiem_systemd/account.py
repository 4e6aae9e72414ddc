"""What a service tells of itself through the control socket: where it stands, and what holds its stop.

Where it stands is a few numbers, told by the engine. What holds the stop takes time to see (stacks, tasks, processes, labels that are user
code), so a thread looks, one at a time and for a bounded time; where none can be started any more (CPython 3.12, once the main thread has
ended) the engine looks, but briefly. The answer is bounded too: what there is no room for is counted.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from requiem_systemd import unitfile, varlink
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.ledger import Entry, More
from requiem_systemd.lifecycle import State
from requiem_systemd.limits import kind_of
from requiem_systemd.processes import beside
from requiem_systemd.protocol import clean
from requiem_systemd.setting import Setting
from requiem_systemd.stacks import TaskIndex, describe, frames, line, place
from requiem_systemd.standing import Standing

# How long the thread looks; then it tells what it has seen. In the engine, which has other things to do, much shorter.
WITHIN: Final = 1.0
WITHIN_ENGINE: Final = 0.02
# Whoever wants the interpreter (the engine, which has a stop to extend; the jobs) waits 5 ms for a thread that does not give it away
# (sys.setswitchinterval), each time it wants it. So it is given away after so long, for as long as it takes to be taken.
YIELD_AFTER: Final = 0.001
YIELD_FOR: Final = 0.00005
# So many are counted at a time.
CHUNK: Final = 2000
# How long it may hang in a label's str() or in `redact` before those who wait are told so.
HANGS_AFTER: Final = 5.0
# Bytes of an answer (all of one fit varlink.MESSAGE_MAX): of holders without and with stacks, of processes, of threads.
HOLDERS: Final = 48000
PROCESSES: Final = 6000
THREADS: Final = 9000
# Of the frames of one stack, the innermost.
FRAMES: Final = 40
_PLAIN: Final = More()


class Answer(Protocol):
    """The way back to whoever asked."""

    @property
    def is_wanted(self) -> bool:
        """Whether whoever asked is still there."""

    def __call__(self, message: bytes, /) -> object:
        """Answer, once."""


class Account:
    """Answers for one service; made, asked and closed in the loop's thread."""

    def __init__(self, setting: Setting, standing: Callable[[], Standing]) -> None:
        self._setting = setting
        self._standing = standing
        self._waiting: deque[tuple[bool, Answer]] = deque()
        self._thread: threading.Thread | None = None
        self._hangs = False
        self.methods: Mapping[str, Callable[[Mapping[str, Any], Answer], object]] = {
            f"{varlink.SERVICE}.Describe": lambda _, answer: answer(varlink.write_reply(self.describe())),
            f"{varlink.SERVICE}.InFlight": self._in_flight,
        }

    def close(self) -> None:
        """Wait for the thread, unless it hangs in user code."""
        if self._thread is not None and not self._hangs:
            self._thread.join(WITHIN)

    # -- where it stands -----------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, object]:
        """Say where the service stands."""
        setting, standing = self._setting, self._standing()
        options = setting.options
        told = standing._asdict()
        seconds = {
            name: _rounded(told[name])
            for name in ("since", "drain_age", "drain_left", "exit_left", "extension")
        }
        return {
            "unit": unitfile.own_service(),
            "pid": os.getpid(),
            "role": setting.role(),
            "release": varlink.VERSION,
            "state": standing.state.value,
            "reason": standing.reason,
            "status": standing.status,
            "in_flight": len(setting.ledger.live),
            "abandoned": standing.abandoned,
            "manager": bool(setting.notifier),
            **seconds,
            "limits": {
                "drain_timeout": options.drain_timeout,
                "request_timeout": options.request_timeout,
                "exit_timeout": options.exit_timeout,
                "lame_duck": str(options.lame_duck),
            },
            "signals": [{"signal": name, "effect": effect} for name, effect in standing.signals.items()],
            "workers": within([worker._asdict() for worker in standing.workers], HOLDERS),
        }

    # -- what holds its stop -------------------------------------------------------------------------------------------

    def _in_flight(self, parameters: Mapping[str, Any], answer: Answer) -> None:
        stacks = parameters.get("stacks")
        if stacks is not None and not isinstance(stacks, bool):
            answer(varlink.write_reply({"parameter": "stacks"}, f"{varlink.STANDARD}.InvalidParameter"))
        elif self._hangs:
            answer(_hanging())
        else:
            self._waiting.append((bool(stacks), answer))
            self._look()

    def _look(self) -> None:
        if self._thread is not None:
            return
        while self._waiting and not self._waiting[0][1].is_wanted:  # clients that come and go leave nobody waiting behind them
            self._waiting.popleft()
        if not self._waiting:
            return
        stacks, _ = self._waiting[0]
        standing = self._standing()
        if standing.state is State.STOPPED:  # the interpreter may finalize at any time; what then holds is threads, no user code
            self._looked(self._message(WITHIN_ENGINE, stacks=stacks, exiting=standing.since))
            return
        self._thread = threading.Thread(
            target=self._run, args=(stacks,), name="requiem-account", daemon=True
        )
        self._setting.loop.alarm(self._overdue, self._setting.now() + HANGS_AFTER)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter finalizes
            self._looked(self._message(WITHIN_ENGINE, stacks=stacks))

    def _run(self, stacks: bool) -> None:  # noqa: FBT001 - a thread's argument
        message = self._message(WITHIN, stacks=stacks)
        self._setting.loop.post(lambda: self._looked(message))

    def _message(self, seconds: float, *, stacks: bool, exiting: float | None = None) -> bytes:
        try:
            return varlink.write_reply(in_flight(self._setting, seconds, stacks=stacks, exiting=exiting))
        except Exception as error:  # noqa: BLE001 - whoever asked must hear something, and the service goes on
            return varlink.write_reply(
                {"reason": f"{type(error).__name__}: {clean(error)}"}, varlink.UNAVAILABLE
            )

    def _looked(self, message: bytes) -> None:
        self._setting.loop.cancel(self._overdue)
        self._thread = None
        if self._hangs:
            self._hangs = False
            return  # those who waited have been told
        _, answer = self._waiting.popleft()
        answer(message)
        # In a turn of its own: where the engine looks itself, it has other things to do in between.
        self._setting.loop.alarm(self._look, self._setting.now())

    def _overdue(self) -> None:
        self._hangs = True
        waiting, self._waiting = self._waiting, deque()
        for _, answer in waiting:
            answer(_hanging())


def _hanging() -> bytes:
    reason = (
        f"looking has taken more than {HANGS_AFTER:.0f} s: a label's str() or the function of redact= hangs"
    )
    return varlink.write_reply({"reason": reason}, varlink.UNAVAILABLE)


def in_flight(setting: Setting, seconds: float, *, stacks: bool, exiting: float | None) -> dict[str, object]:
    """Say what holds the stop: as much as can be seen in so many seconds, and as there is room for.

    `exiting`: how long the ledger has been closed; then it is threads that hold.
    """
    late = _Patience(seconds)
    # There is no room for more than so many, whatever they are called.
    some = setting.ledger.oldest(HOLDERS // 100)
    counts = _counts(list(setting.ledger.live), late)
    if exiting is None:
        shown = within(_holders(setting, some, stacks=stacks, late=late), HOLDERS)
        omitted = max(0, counts.total() - len(shown))
    else:
        shown, omitted = within(_keepers(exiting, stacks=stacks), HOLDERS), 0
    processes = (
        process._replace(age=round(process.age, 3))._asdict()
        for process in beside(os.getpid(), late, orphans=setting.is_main() and not setting.is_worker())
    )
    return {
        "holders": shown,
        "omitted": omitted,
        "counts": dict(counts),
        "processes": within(processes, PROCESSES),
        "threads": within(_threads(), THREADS) if stacks else [],
    }


def within(values: Iterable[dict[str, object]], room: int) -> list[dict[str, object]]:
    """Return as many as take no more than so many bytes as JSON."""
    found = []
    for value in values:
        room -= len(json.dumps(value)) + 2
        if room < 0:
            break
        found.append(value)
    return found


class _Patience:
    """Says when to look no further; each time that it has been long enough, it lets other threads have the interpreter."""

    def __init__(self, seconds: float) -> None:
        now = time.monotonic()
        self._end = now + seconds
        self._yield_at = now + YIELD_AFTER

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self._yield_at:
            time.sleep(YIELD_FOR)
            self._yield_at = time.monotonic() + YIELD_AFTER
        return now >= self._end


def _counts(entries: list[Entry], late: Callable[[], bool]) -> Counter[str]:
    """Count all, by kind."""
    counts: Counter[str] = Counter()
    for position in range(0, len(entries), CHUNK):
        counts.update(map(kind_of, entries[position : position + CHUNK]))
        late()
    return counts


def _holders(
    setting: Setting, some: list[tuple[Entry, float]], *, stacks: bool, late: Callable[[], bool]
) -> Iterator[dict[str, object]]:
    now, began = setting.ledger.clock(), setting.ledger.began
    index = TaskIndex((entry for entry, _ in some), late)
    for entry, start in some:
        if late():
            return
        more = entry.extra() or _PLAIN
        info = describe(entry, now - start, setting.options.redact, index.task_of)
        limit = more.limit(setting.options.request_timeout)
        yield {
            **info._asdict(),
            "age": round(info.age, 3),
            "left": None if began is None or limit is None else round(max(began, start) + limit - now, 3),
            "stalled": more.stalled,
            "stack": _stack(index.task_of(entry)) if stacks else None,
        }


def _keepers(since: float, *, stacks: bool) -> Iterator[dict[str, object]]:
    """Yield what the exit waits for: the main thread, and those that it joins."""
    for thread in threading.enumerate():
        if not thread.daemon or thread is threading.main_thread():
            name = "main thread" if thread is threading.main_thread() else f"thread {clean(thread.name, 200)}"
            info = JobInfo(name, round(since, 3), name, "", place(thread.ident), "thread")
            yield {
                **info._asdict(),
                "left": None,
                "stalled": False,
                "stack": _stack(thread.ident) if stacks else None,
            }


def _threads() -> Iterator[dict[str, object]]:
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            yield {"name": clean(thread.name, 200), "daemon": thread.daemon, "stack": _stack(thread.ident)}


def _stack(owner: object) -> list[str]:
    found = frames(owner)
    lines = [clean(line(frame), 400) for frame in itertools.islice(found, FRAMES)]
    return lines if len(found) <= FRAMES else [*lines, f"{len(found) - FRAMES} more"]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
