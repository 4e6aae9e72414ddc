"""What operators read: the STATUS lines and the warnings, as text. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.ledger import HOOK, JOB, WORKER
from requiem_systemd.protocol import clean, duration
from requiem_systemd.stacks import brief

# So many jobs are listed in one line.
LISTED: Final = 20
# How a reload ends that a drain cuts into.
NO_RELOAD: Final = "the service is draining: nothing is reloaded any more"
# What a reload has done that went well and of which nobody was to hear.
NO_HANDLER: Final = 'nothing was reloaded: the service has no handler for it (requiem_systemd.on("reload")); what has changed needs a restart'

# What is shown of each kind, one and many; a hook holds like a job and is counted as one.
_NOUNS: Final = (
    ("job", "jobs", frozenset((JOB, HOOK))),
    ("worker", "workers", frozenset((WORKER,))),
    ("request", "requests", frozenset(("request",))),
    ("connection", "connections", frozenset(("connection",))),
)


def counts(kinds: Mapping[str, int]) -> str:
    """Write how many of each kind are in flight: "3 jobs, 1 request"."""
    parts = []
    for one, many, names in _NOUNS:
        number = sum(kinds.get(name, 0) for name in names)
        if number:
            parts.append(f"{number} {one if number == 1 else many}")
    return ", ".join(parts) or "0 jobs"


def draining(elapsed: float, kinds: Mapping[str, int], oldest: JobInfo | None, clients: int, status: str) -> str:
    """Write the drain's line: Draining 12 s: 3 jobs, oldest "export 42" 4 min (uploading); 37 clients waiting."""
    line = f"Draining {duration(elapsed)}: {counts(kinds)}"
    if oldest is not None:
        line += f", oldest {brief(oldest)}"
    if clients:
        line += f"; {clients} client{'' if clients == 1 else 's'} waiting"
    return f"{line}; {clean(status, 400)}" if status else line


def exiting(elapsed: float, thread: str, place: str) -> str:
    """Write the exit's line: Exiting 7 s: main thread in flush."""
    function = place.rpartition(":")[2]
    return f"Exiting {duration(elapsed)}: {thread}" + (f" in {function}" if function else "")


def listing(jobs: Sequence[JobInfo], count: int = 0) -> str:
    """List jobs in one line, the oldest first; `count`: how many there are in all, if these are not all."""
    shown = ", ".join(brief(job) for job in jobs[:LISTED])
    more = max(count, len(jobs)) - min(len(jobs), LISTED)
    return shown + (f" and {more} more" if more > 0 else "")


def health_path(path: str | None) -> str | None:
    """Return what TrackRequests was given as `health` if it can be one; ValueError if not."""
    if path is not None and not path.startswith("/"):
        msg = f"TrackRequests(health={path!r}): give a path that begins with a slash"
        raise ValueError(msg)
    return path


def first_segment(path: str) -> str:
    """Shorten a path to what tells an operator enough and nobody too much: /users/7/mail becomes /users."""
    head, slash, rest = path.removeprefix("/").partition("/")
    return f"/{head}" + ("/…" if slash and rest else "")
