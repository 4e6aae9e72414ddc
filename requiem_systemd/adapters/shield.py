"""A multiprocessing context whose processes outlive a signal to the whole group.

A worker process has the default signal handlers: a terminal's Ctrl-C, or systemd's SIGTERM under KillMode=control-group, ends it in the
middle of its job. So a shielded process ignores them. What ends it is its owner: `Process.terminate()`, by which pools end their workers,
then has to be SIGKILL, which does what SIGTERM's default does. That is a property of the process, so it comes with a context; an
initializer would come too late for a signal that arrives while the worker starts, and would leave `Pool.terminate()` waiting for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing.context
import multiprocessing.process
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

# What comes to a whole group: a terminal's Ctrl-C and hang-up, and what systemd sends under KillMode=control-group.
SHIELDED: Final = frozenset(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Shielded(multiprocessing.process.BaseProcess):
    """Ignores the signals that come to a whole group; `terminate()`, thus, is `kill()`."""

    def start(self) -> None:
        """Start it."""
        with _blocked():  # which the child inherits: not even its first instruction can be hit
            super().start()

    def run(self) -> None:
        """Run, deaf to them."""
        for number in SHIELDED:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)
        super().run()

    def terminate(self) -> None:
        """End it: nothing less would."""
        self.kill()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SpawnProcess(Shielded, multiprocessing.context.SpawnProcess):
    pass


class _SpawnContext(multiprocessing.context.SpawnContext):
    Process = _SpawnProcess


_CONTEXTS: Final[dict[str, Any]] = {"spawn": _SpawnContext()}

if sys.platform != "win32":

    class _ForkProcess(Shielded, multiprocessing.context.ForkProcess):
        pass

    class _ForkContext(multiprocessing.context.ForkContext):
        Process = _ForkProcess

    class _ForkServerProcess(Shielded, multiprocessing.context.ForkServerProcess):
        pass

    class _ForkServerContext(multiprocessing.context.ForkServerContext):
        Process = _ForkServerProcess

    _CONTEXTS.update(fork=_ForkContext(), forkserver=_ForkServerContext())


def context(method: str | None = None) -> multiprocessing.context.BaseContext:
    """Return a multiprocessing context whose processes ignore SIGINT, SIGTERM and SIGHUP; `method`: as of `multiprocessing.get_context`."""
    made: multiprocessing.context.BaseContext = _CONTEXTS[method or multiprocessing.get_start_method()]
    return made
