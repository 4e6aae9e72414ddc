"""The processes of a service beside the one that is asked: its children, what they started, and what they left behind.

Read from /proc and the control group's files; what cannot be read is left out. Names only, never arguments.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from requiem_systemd.protocol import clean

CHILD: Final = "child"
DESCENDANT: Final = "descendant"
ORPHAN: Final = "orphan"
# Of a service with more, the rest is not looked at.
MOST: Final = 4096
# The unified hierarchy, where it is: alone, beside the old ones ("hybrid"), or systemd's own old one.
_ROOTS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


class Stat(NamedTuple):
    """What /proc/PID/stat says (proc(5)); `started` in clock ticks since the machine's start."""

    pid: int
    name: str
    state: str
    parent: int
    started: int


class Process(NamedTuple):
    """One process; `age` in seconds. `relation`: a child, a descendant of one, or an orphan, whose parent has ended."""

    pid: int
    parent: int
    name: str
    state: str
    age: float
    relation: str


def members(pid: int, late: Callable[[], bool]) -> dict[int, Stat]:
    """Return the processes of the service that `pid` belongs to, itself too; `late` says when to look at no more of them."""
    found: dict[int, Stat] = {}
    for other in _members(pid):
        if late() or len(found) >= MOST:
            break
        stat = _stat(other)
        if stat is not None:
            found[other] = stat
    return found


def beside(pid: int, late: Callable[[], bool], *, orphans: bool) -> list[Process]:
    """Return the processes below `pid`, and with `orphans` those of its service that are below nobody.

    `late` says when to look at no more of them.
    """
    found = members(pid, late)
    relations = related(pid, {stat.pid: stat.parent for stat in found.values()})
    now, tick = time.clock_gettime(time.CLOCK_BOOTTIME), os.sysconf("SC_CLK_TCK")
    return [
        Process(stat.pid, stat.parent, stat.name, stat.state, max(0.0, now - stat.started / tick), relation)
        for stat in sorted(found.values(), key=lambda stat: stat.started)
        if (relation := relations.get(stat.pid)) is not None
        and (relation != ORPHAN or (orphans and not _is_systemd_s(stat.pid)))
    ]


def related(pid: int, parents: Mapping[int, int]) -> dict[int, str]:
    """Say of each process how it is related to `pid`; that one and those above it are left out."""
    above = _line(pid, parents)
    return {other: _relation(pid, other, parents) for other in parents if other not in above}


def _relation(pid: int, other: int, parents: Mapping[int, int]) -> str:
    if parents[other] == pid:
        return CHILD
    return DESCENDANT if pid in _line(other, parents) else ORPHAN


def _line(pid: int, parents: Mapping[int, int]) -> set[int]:
    """Return a process and those above it, as far as they are known; /proc changes while it is read, so that a circle is possible."""
    found = {pid}
    while (parent := parents.get(pid)) is not None and parent not in found:
        found.add(parent)
        pid = parent
    return found


def group_of(cgroups: str) -> str | None:
    """Return the path of the innermost service in the text of /proc/PID/cgroup; None where it names none, as in a cgroup namespace."""
    for line in cgroups.splitlines():
        path = line.split(":", 2)[-1]
        parts = path.split("/")
        ends = [index for index, part in enumerate(parts) if part.endswith(".service")]
        if ends and (line.startswith("0::") or ":name=systemd:" in line):
            return "/".join(parts[: ends[-1] + 1])
    return None


def _members(pid: int) -> Iterator[int]:
    """Yield the service's processes; where its control group cannot be seen, the children."""
    group = group_of(_text(f"/proc/{pid}/cgroup"))
    root = (
        None
        if group is None
        else next(
            (f"{base}{group}" for base in _ROOTS if os.path.exists(f"{base}{group}/cgroup.procs")), None
        )
    )
    if root is None:
        for thread in _listed(f"/proc/{pid}/task"):
            yield from _numbers(f"/proc/{pid}/task/{thread}/children")
        yield pid
        return
    for folder, _, _ in os.walk(root):
        yield from _numbers(f"{folder}/cgroup.procs")


def _numbers(path: str) -> Iterator[int]:
    return (int(word) for word in _text(path).split() if word.isdecimal())


def _stat(pid: int) -> Stat | None:
    return parse_stat(_text(f"/proc/{pid}/stat"))


def parse_stat(text: str) -> Stat | None:
    """Read /proc/PID/stat; None for what is none. The name may hold blanks and parentheses."""
    head, _, rest = text.rpartition(")")
    pid, _, name = head.partition("(")
    fields = rest.split()
    if len(fields) < 20 or not pid.strip().isdecimal():
        return None
    return Stat(int(pid), clean(name, 64), fields[0], int(fields[1]), int(fields[19]))


def _is_systemd_s(pid: int) -> bool:
    """Say whether systemd itself has started a process, such as ExecReload=: its parent has not ended, it is outside of the service."""
    return f"SYSTEMD_EXEC_PID={pid}" in _text(f"/proc/{pid}/environ").split("\0")


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
