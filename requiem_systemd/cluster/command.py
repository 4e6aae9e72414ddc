"""A worker is the same command run again: what that command is, and how it gets its descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from requiem_systemd.errors import WorkerError
from requiem_systemd.gate import name_of
from requiem_systemd.protocol import LISTEN_FDS_START

# Options of python(1) with an argument behind them, as letters or as words.
_LETTERS: Final = "WX"
_WORDS: Final = ("--check-hash-based-pycs",)

# What systemd does between fork and exec: descriptors from 3 on, the process's own number filled in. An interpreter of its own (10 ms),
# not a preexec_fn, which is not safe in a process with threads, and not sh, which drops variables whose names it does not like.
_SHIM: Final = """
import fcntl, os, sys
passed = [int(fd) for fd in sys.argv[1].split(",")]
moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + 2 * len(passed)) for fd in passed]
for fd in passed:
    os.close(fd)
for number, fd in enumerate(moved, 3):
    os.dup2(fd, number)
os.environ["LISTEN_PID"] = os.environ["REQUIEM_WORKER_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program(NamedTuple):
    """What an interpreter was told to run: "script", "module", "code" or "nothing" (it reads standard input)."""

    kind: str
    name: str = ""


def program(words: Sequence[str]) -> Program:
    """Read an interpreter's arguments, without its own name, as python(1) does."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-" or not word.startswith("-"):
            return Program("nothing") if word == "-" else Program("script", word)
        if word.startswith("--"):
            del rest[: word in _WORDS]
            continue
        for position, letter in enumerate(word[1:], 2):
            if letter in "cm":
                found = word[position:] or (rest[0] if rest else "")
                return Program("code" if letter == "c" else "module", found)
            if letter in _LETTERS:
                del rest[: not word[position:]]
                break
    return Program("nothing")


def again(executable: str | None, orig_argv: Sequence[str], exists: Callable[[str], bool] = os.path.exists) -> list[str]:
    """Return the command that runs this program again; WorkerError says why there is none."""
    if not executable:
        msg = "this interpreter does not know its own path (sys.executable is empty): it cannot be run again as a worker"
        raise WorkerError(msg)
    found = program(orig_argv[1:])
    if found.kind == "nothing":
        msg = "this program came by standard input, which has been read: it cannot be run again as a worker; put it into a file"
        raise WorkerError(msg)
    if found.kind == "script" and found.name.startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        msg = f"this program came by a pipe ({found.name}), which has been read: it cannot be run again as a worker; put it into a file"
        raise WorkerError(msg)
    if found.kind == "script" and not exists(found.name):
        msg = f"{found.name} is not there (any more, or seen from {os.getcwd()}): start the program by its full path, or do not change the directory"
        raise WorkerError(msg)
    return [executable, *orig_argv[1:]]


def variables(base: Mapping[str, str], number: int, listeners: Sequence[tuple[str, str]], watchdog: float | None = None) -> dict[str, str]:
    """Return a worker's environment: its number, the names and origins of the listeners it gets, and how often it is to be heard of."""
    origins = "".join(origin for _, origin in listeners)
    return {
        **base,
        "LISTEN_FDS": str(len(listeners)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in listeners),
        "REQUIEM_WORKER": f"{number}:{LISTEN_FDS_START + len(listeners)}:{origins}",
        **({"WATCHDOG_USEC": str(round(watchdog * 1e6))} if watchdog is not None else {}),
    }


def spawn(command: Sequence[str], environ: Mapping[str, str], fds: Sequence[int]) -> tuple[int, int]:
    """Start a worker with `fds` from 3 on; return its process number and a descriptor that names it for good.

    Raises OSError. It is reaped by that descriptor, whoever calls it.
    """
    shim = [sys.executable, "-I", "-S", "-c", _SHIM, ",".join(map(str, fds)), *command]
    process = subprocess.Popen(shim, env=dict(environ), pass_fds=tuple(fds))  # noqa: S603 - our own command
    process.returncode = 0  # its end is none of subprocess's business: see `reap`
    return process.pid, os.pidfd_open(process.pid)


def reap(pidfd: int) -> tuple[int | None, str]:
    """Return the exit status, or the signal, of a worker that has ended; (None, "") where somebody else has reaped it."""
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None, ""
    if ended is None:
        msg = "it runs"
        raise BlockingIOError(msg)
    if ended.si_code == os.CLD_EXITED:
        return ended.si_status, ""
    return None, name_of(ended.si_status)
