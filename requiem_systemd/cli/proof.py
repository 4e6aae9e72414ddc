"""Starts a generation, and proves that it serves: what does not come up, or does not stay, is stopped again.

`systemctl start` comes back when the new instance has said READY=1, or not at all. A program that dies a moment later has said so
too; hence the probation, in which the old serve on: its process is watched (a pidfd), nothing polls.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import generations
from requiem_systemd.cli.systemctl import Anchor, UnavailableError
from requiem_systemd.protocol import clean

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from requiem_systemd.cli.generations import Instance

#: How long a process that is ending may take to have ended, before it is said what is known.
_LAST: Final = 1.0


def begin(anchor: Anchor, new: Sequence[str], probation: float) -> str:
    """Start the new generation; return the reason if it does not come up, "" if it does."""
    since = time.time()
    try:
        done = anchor.systemctl("start", "--", *new)
        looked = _look(anchor, new)
        came_up = not done.returncode and all(one.came_up for one in looked)
        problem = ""
        if not (came_up and _lives(anchor, new, looked, probation)):
            problem = _problem(anchor, _settled(anchor, new), since, done)
        if anchor.is_stopping():
            anchor.stop(new)
            return f"{anchor.name} was stopped meanwhile: {generations.named(new)}: stopped too"
        return problem + _undo(anchor, new) if problem else ""
    except BaseException:
        anchor.stop(new)
        raise


def _look(anchor: Anchor, new: Sequence[str]) -> list[Instance]:
    return [one for one in anchor.instances(*new) if one.unit in new]


def _settled(anchor: Anchor, new: Sequence[str]) -> list[Instance]:
    """Look, when those that are just ending have ended: then systemd knows how."""
    looked = _look(anchor, new)
    ending = [one.pid for one in looked if one.pid and not one.live]
    with _watched(ending) as ends:
        if ending and ends is not None:
            ends.poll(_LAST * 1000)
    return _look(anchor, new)


def _problem(
    anchor: Anchor, looked: Sequence[Instance], since: float, done: subprocess.CompletedProcess[str]
) -> str:
    """Say which instance failed, why, and what it wrote last."""
    says = clean(done.stderr, 1000)
    bad = next((one for one in looked if not one.came_up), None)
    if bad is None:
        return f"the next generation did not come up: {says}"
    if bad.load != "loaded":
        msg = f"{bad.unit} cannot be started: {says}\n{anchor.name}@.service must be there; systemctl daemon-reload has systemd read it"
        raise UnavailableError(msg)
    started = not done.returncode
    what = "came up, but did not stay" if started else "did not come up"
    lines = [f"{bad.name} {what}: {generations.why(bad, started=started)}"]
    lines += [f"    {line}" for line in anchor.journal(bad.unit, since)]
    return "\n".join(lines)


def _undo(anchor: Anchor, new: Sequence[str]) -> str:
    """Stop the generation that failed, unless nobody else serves or tries to; return what is left, as a line more."""
    left = [one for one in anchor.instances() if one.live and one.unit not in new]
    if not left:
        return f"\nno other generation is there, so systemd goes on trying (Restart=); journalctl -u {new[0]} has all"
    anchor.stop(new)
    serving = [one for one in left if one.came_up]
    state = "still serving" if serving else "being tried again, as before"
    return f"\n{generations.named(serving or left)}: {state}; journalctl -u {new[0]} has all"


def _lives(anchor: Anchor, new: Sequence[str], looked: Sequence[Instance], probation: float) -> bool:
    """Watch the new processes for a while; False as soon as one is gone and its unit has not another in its place."""
    deadline = time.monotonic() + probation
    while True:
        with _watched([one.pid for one in looked if one.pid]) as ends:
            if ends is not None and not ends.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return True
        before = {one.unit: one.pid for one in looked}
        looked = _look(anchor, new)
        # A service may name another main process (MAINPID=). One that has gone is no proof of anything.
        if not all(one.came_up for one in looked) or before == {one.unit: one.pid for one in looked}:
            return False


@contextlib.contextmanager
def _watched(pids: Sequence[int]) -> Iterator[select.poll | None]:
    """Yield what polls for the end of processes; None if one has ended already."""
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        try:
            for pid in pids:
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                poll.register(pidfd, select.POLLIN)
        except ProcessLookupError:
            yield None
        else:
            yield poll
