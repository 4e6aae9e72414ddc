"""What is decided about workers: tables and pure functions. No I/O, no clock."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

# A worker that has served so long was no failed start.
STABLE: Final = 10.0
# The pause before the second round of replacements in a row, doubled each time, up to the longest.
PAUSE: Final = 0.1
PAUSE_MAX: Final = 30.0
# After a replacement that did not come up, the worker that is to be recycled serves on for so long.
RECYCLE_AGAIN: Final = 60.0


class Plan(NamedTuple):
    """What a Cluster was told; lengths in seconds."""

    workers: int
    start_timeout: float = 90.0
    max_age: float | None = None
    jitter: float = 0.1
    max_crashes: int = 8


# -- one worker's life


class Phase(enum.Enum):
    """Where in its life a worker is."""

    FORKED = "forked"
    ONLINE = "online"
    LISTENING = "listening"
    LEAVING = "leaving"
    DEAD = "dead"


class Said(enum.Enum):
    """What a worker says or does, and what is done to it."""

    ARMED = "armed"
    READY = "ready"
    STOPPING = "stopping"
    DISMISSED = "dismissed"
    ENDED = "ended"


# And the event that users hear, "" for none.
LIFE: Final = MappingProxyType(
    {
        (Phase.FORKED, Said.ARMED): (Phase.ONLINE, "online"),
        (Phase.ONLINE, Said.READY): (Phase.LISTENING, "listening"),
        (Phase.FORKED, Said.DISMISSED): (Phase.LEAVING, ""),
        (Phase.ONLINE, Said.DISMISSED): (Phase.LEAVING, ""),
        (Phase.LISTENING, Said.DISMISSED): (Phase.LEAVING, ""),
        (Phase.ONLINE, Said.STOPPING): (Phase.LEAVING, ""),
        (Phase.LISTENING, Said.STOPPING): (Phase.LEAVING, ""),
        (Phase.FORKED, Said.ENDED): (Phase.DEAD, "exit"),
        (Phase.ONLINE, Said.ENDED): (Phase.DEAD, "exit"),
        (Phase.LISTENING, Said.ENDED): (Phase.DEAD, "exit"),
        (Phase.LEAVING, Said.ENDED): (Phase.DEAD, "exit"),
    }
)


# -- all workers anew, or one


class Roll(enum.Enum):
    """Where the exchange of workers is."""

    RESTING = "resting"
    TRYING = "trying"  # one new worker, to see whether it comes up at all
    FILLING = "filling"  # the others
    RENEWING = "renewing"  # one that is to be recycled
    OVER = "over"


class Turn(enum.Enum):
    """What happens to it; `UP` says that all who were started for it are ready."""

    ROLL = "roll"
    RECYCLE = "recycle"
    UP = "up"
    FAILED = "failed"
    DRAIN = "drain"


class Step(enum.Enum):
    """What has to be done, in the order given."""

    START_ONE = "start one"
    START_OTHERS = "start the others"
    EXCHANGE_ALL = "exchange all"
    EXCHANGE_ONE = "exchange one"
    DISMISS_NEW = "dismiss the new"
    ANSWER = "answer"
    POSTPONE = "postpone"


# New before old, and no old one goes before every new one is ready: a roll that fails has changed nothing.
ROLLS: Final = MappingProxyType(
    {
        (Roll.RESTING, Turn.ROLL): (Roll.TRYING, (Step.START_ONE,)),
        (Roll.TRYING, Turn.UP): (Roll.FILLING, (Step.START_OTHERS,)),
        (Roll.FILLING, Turn.UP): (Roll.RESTING, (Step.EXCHANGE_ALL, Step.ANSWER)),
        (Roll.TRYING, Turn.FAILED): (Roll.RESTING, (Step.DISMISS_NEW, Step.ANSWER)),
        (Roll.FILLING, Turn.FAILED): (Roll.RESTING, (Step.DISMISS_NEW, Step.ANSWER)),
        (Roll.RESTING, Turn.RECYCLE): (Roll.RENEWING, (Step.START_ONE,)),
        (Roll.RENEWING, Turn.UP): (Roll.RESTING, (Step.EXCHANGE_ONE,)),
        (Roll.RENEWING, Turn.FAILED): (Roll.RESTING, (Step.DISMISS_NEW, Step.POSTPONE)),
        (Roll.RENEWING, Turn.ROLL): (Roll.TRYING, (Step.DISMISS_NEW, Step.START_ONE)),
        (Roll.RESTING, Turn.DRAIN): (Roll.OVER, ()),
        (Roll.TRYING, Turn.DRAIN): (Roll.OVER, (Step.ANSWER,)),
        (Roll.FILLING, Turn.DRAIN): (Roll.OVER, (Step.ANSWER,)),
        (Roll.RENEWING, Turn.DRAIN): (Roll.OVER, ()),
        (Roll.OVER, Turn.ROLL): (Roll.OVER, (Step.ANSWER,)),
    }
)


# -- deaths


def streak(before: int, served: float | None) -> int:
    """Count failed starts in a row; `served`: how long the worker that died was ready, None if it never was."""
    return 0 if served is not None and served >= STABLE else before + 1


def pause(failed: int, workers: int) -> float:
    """Say how long to wait before the next replacement: not at all in the first round of failures, then longer each round."""
    rounds = (failed - 1) // workers if failed else 0
    return 0.0 if rounds == 0 else min(PAUSE_MAX, PAUSE * 2.0 ** min(rounds - 1, 30))


def is_loop(failed: int, workers: int, most: int, served: Iterable[float]) -> bool:
    """Say whether to give up: each place has failed `most` times, and nobody (by the times that others have served) is stable."""
    return failed >= most * workers and all(time < STABLE for time in served)


def spread(limit: float, jitter: float, chance: float) -> float:
    """Shorten a limit by chance (0 to 1), at most by `jitter` of it: workers of one age are not recycled in one go."""
    return limit * (1.0 - jitter * chance)


# -- what operators read


class Seen(NamedTuple):
    """One worker as it counts for the status."""

    phase: Phase
    status: str = ""
    jobs: int = 0
    requests: int = 0
    oldest: str = ""


def seen(phase: Phase, values: Mapping[str, str], before: Seen) -> Seen:
    """Take over what a worker has said of itself."""
    return Seen(
        phase,
        values.get("STATUS", before.status),
        _number(values.get("X_REQUIEM_JOBS"), before.jobs),
        _number(values.get("X_REQUIEM_REQUESTS"), before.requests),
        values.get("X_REQUIEM_OLDEST", "" if "X_REQUIEM_JOBS" in values else before.oldest),
    )


def _number(text: str | None, before: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else before


def summary(workers: Iterable[Seen], wanted: int = 0) -> str:
    """Sum workers up in one line: 2 of 2 workers: serving; 1 leaving: 3 jobs, oldest "export 42" 4 min."""
    found = list(workers)
    ready = [one for one in found if one.phase is Phase.LISTENING]
    leaving = [one for one in found if one.phase is Phase.LEAVING]
    parts = []
    if wanted:
        texts = Counter(one.status for one in ready if one.status)
        text = f": {next(iter(texts))}" if len(texts) == 1 else ""
        parts.append(f"{len(ready)} of {wanted} worker{'' if wanted == 1 else 's'}{text}")
    if leaving:
        held = _held(sum(one.jobs for one in leaving), sum(one.requests for one in leaving))
        oldest = next((one.oldest for one in leaving if one.oldest), "")
        head = f"{len(leaving)} leaving: " if wanted else "in them "
        parts.append(f"{head}{held}" + (f", oldest {oldest}" if oldest else ""))
    return "; ".join(parts)


def _held(jobs: int, requests: int) -> str:
    parts = [f"{jobs} job{'' if jobs == 1 else 's'}"] if jobs or not requests else []
    if requests:
        parts.append(f"{requests} request{'' if requests == 1 else 's'}")
    return ", ".join(parts)
