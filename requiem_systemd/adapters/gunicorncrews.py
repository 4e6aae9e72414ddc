"""The workers of a gunicorn arbiter: each a tracker in its ledger, also when it has left the arbiter's own list.

Discussion of what cuts. gunicorn kills a worker that has not ended `graceful_timeout` seconds after a stop, and one whose heartbeat
stands still for `timeout`. A worker that drains is taken off the arbiter's list (`WORKERS`): neither looks at it any more, and
another is started in its place, whether the arbiter told it to go (SIGHUP, TTOU) or it goes by itself (max_requests). So a job in it
may take hours. What has not come up yet holds no job: it is still killed after `graceful_timeout`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd import protocol
from requiem_systemd.ledger import JOB, More, Record
from requiem_systemd.wake import Wake
from requiem_systemd.wayout import EX_TEMPFAIL

if TYPE_CHECKING:
    from collections.abc import Callable

# How long a stop waits for the workers to have heard of it, before it says so to the manager: then a health check answers 503.
HEARD_WITHIN: Final = 0.5
# How long a worker has to name what it abandons, before it is killed; gunicorn's own figure.
QUIT_WITHIN: Final = 2.0
_LINE_MAX: Final = 512  # a write of so much to a pipe is whole (PIPE_BUF, pipe(7))


class Crew:
    """The workers of one arbiter, at their posts and leaving. Runs in the arbiter's main thread, but where it says otherwise."""

    def __init__(self, service: Any, arbiter: Any) -> None:
        """Store; `take` acts."""
        self.service = service
        self.arbiter = arbiter
        self.stopping: Wake = Wake()
        self._theirs: dict[str, Callable[..., Any]] = {}
        self._records: dict[int, Record] = {}
        self._leaving: dict[int, tuple[Any, float]] = {}
        self._up: set[int] = set()
        self._begun: set[int] = set()
        self._notes: deque[tuple[str, int]] = deque()
        self._noted = threading.Event()
        self._pipe: tuple[int, int] = (-1, -1)
        self._signal = "SIGTERM"
        self._stopped = False
        self._abandoned = False
        self._quit_by: float | None = None

    def take(self) -> None:
        """Override what has to be."""
        self.service.reclaim_listeners()
        self._pipe = os.pipe()
        names = ("spawn_worker", "manage_workers", "reap_workers", "kill_worker", "kill_workers", "stop", "halt", "handle_int", "handle_quit")
        for name in names:
            self._theirs[name] = getattr(self.arbiter, name)
            setattr(self.arbiter, name, getattr(self, f"_{name}"))
        loop = self.service.engine.loop
        loop.post(lambda: loop.reader(self._pipe[0], self._hear))

    # -- what workers say ----------------------------------------------------------------------------------------------

    def tell(self, what: str, text: str = "") -> None:
        """Say something to the arbiter; in a worker, any thread."""
        with contextlib.suppress(OSError):  # the arbiter has died
            os.write(self._pipe[1], f"{what} {os.getpid()} {protocol.clean(text, _LINE_MAX - 40)}\n".encode())

    def _hear(self) -> None:
        """Take what workers have said; in the engine's thread. gunicorn itself would say READY=1 before any worker had loaded anything."""
        for line in os.read(self._pipe[0], 65536).decode(errors="replace").splitlines():
            what, pid, text = line.split(" ", 2)
            record = self._records.get(int(pid))
            if what == "status" and record is not None:
                record.more.status = text
            elif what != "status":
                if what == "up":
                    self.service.engine.ready("")
                self._notes.append((what, int(pid)))
        self._noted.set()
        self.arbiter.wakeup()

    def _heed(self) -> None:
        """Act on what workers have said."""
        while self._notes:
            what, pid = self._notes.popleft()
            if what == "up":
                self._up.add(pid)
                if pid in self._leaving:  # told to go before it had handlers: that signal is lost
                    self._theirs["kill_worker"](pid, signal.SIGTERM)
            else:
                self._begun.add(pid)
                self._let_leave(pid)

    def _let_leave(self, pid: int) -> None:
        worker = self.arbiter.WORKERS.pop(pid, None)
        if worker is not None:
            self._leaving[pid] = (worker, time.monotonic())

    # -- in place of the arbiter's own -----------------------------------------------------------------------------------

    def _spawn_worker(self) -> int:
        pid: int = self._theirs["spawn_worker"]()  # comes back in the arbiter only
        record = self._records[pid] = Record(f"worker {pid}", f"process {pid}")
        record.more = More(JOB)
        self.service.ledger.enter(record)
        self.service.follow(record, pid)
        return pid

    def _manage_workers(self) -> None:
        self._heed()
        self._theirs["manage_workers"]()
        self._kill_those_that_hang()

    def _kill_worker(self, pid: int, sig: int) -> None:
        self._theirs["kill_worker"](pid, sig)
        if sig == signal.SIGTERM:
            self._let_leave(pid)

    def _kill_workers(self, sig: int) -> None:
        for pid in (*self.arbiter.WORKERS, *self._leaving):
            self._kill_worker(pid, sig)

    def _reap_workers(self) -> None:
        workers = self.arbiter.WORKERS
        workers.update((pid, worker) for pid, (worker, _) in self._leaving.items())
        self._see_abandoned(workers)
        try:
            self._theirs["reap_workers"]()
        except importlib.import_module("gunicorn.errors").HaltServer:
            if not self._stopped:  # one that was booting when the stop came is no reason not to wait for the others
                raise
        finally:
            for pid in list(self._leaving):
                if workers.pop(pid, None) is None:
                    del self._leaving[pid]
            for pid in set(self._records) - set(workers) - set(self._leaving):
                del self._records[pid]
                self._up.discard(pid)
                self._begun.discard(pid)

    def _see_abandoned(self, pids: Any) -> None:
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                self._abandoned |= ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, EX_TEMPFAIL)

    def _handle_int(self) -> None:
        self._signal = "SIGINT"
        raise StopIteration

    def _handle_quit(self) -> None:
        self._signal = "SIGQUIT"
        raise StopIteration

    def _halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        self._stop()
        abandoned = self._abandoned or self.service.engine.drain.limits.abandoned
        self._theirs["halt"](reason, exit_status or (EX_TEMPFAIL if abandoned else 0))

    # -- the stop ------------------------------------------------------------------------------------------------------

    def _stop(self, graceful: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - gunicorn's
        if self._stopped:
            return
        self._stopped = True
        engine, arbiter = self.service.engine, self.arbiter
        self._close_listeners()  # before the workers do: who closes last takes what waits with him, and they serve it first
        self.stopping.set()
        if arbiter.dirty_arbiter_pid:
            self._follow_dirty()
        arbiter.kill_workers(signal.SIGTERM)
        self._wait_until_heard()
        engine.loop.call(lambda: engine.heard(self._signal))
        engine.stopped.then(arbiter.wakeup)
        while self._has_workers() or not engine.stopped:
            for number in arbiter.wait_for_signals(timeout=1.0):
                if number in (signal.SIGINT, signal.SIGQUIT):
                    engine.loop.call(functools.partial(engine.heard, signal.Signals(number).name))
            self._heed()
            self._kill_those_that_hang()

    def _close_listeners(self) -> None:
        arbiter = self.arbiter
        listeners, arbiter.LISTENERS = arbiter.LISTENERS, []
        ours = arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd and not arbiter.cfg.reuse_port
        names = [listener.getsockname() for listener in listeners]
        for listener in listeners:
            if arbiter.systemd:
                self.service.doors.watch(listener.sock)
            listener.close()

        def unlink() -> None:
            for path in names if ours else ():
                if isinstance(path, str) and path.startswith("/"):
                    with contextlib.suppress(OSError):
                        os.unlink(path)

        self.service.engine.drain.closing.then(unlink)

    def _follow_dirty(self) -> None:
        arbiter = self.arbiter
        arbiter.kill_dirty_arbiter(signal.SIGTERM)
        record = Record("dirty workers", f"process {arbiter.dirty_arbiter_pid}")
        self.service.ledger.enter(record)
        self.service.follow(record, arbiter.dirty_arbiter_pid)

    def _wait_until_heard(self) -> None:
        deadline = time.monotonic() + HEARD_WITHIN
        self.service.engine.loop.call(_nothing)  # a turn of it: what they have said before is taken
        self._heed()
        while self._up.intersection(self._leaving) - self._begun and time.monotonic() < deadline:
            self._noted.wait(deadline - time.monotonic())
            self._noted.clear()
            self._heed()

    def _has_workers(self) -> bool:
        self.arbiter.reap_workers()
        self.arbiter.reap_dirty_arbiter()
        return bool(self._leaving or self.arbiter.dirty_arbiter_pid)

    def _kill_those_that_hang(self) -> None:
        """Kill what has not come up in time, and holds no job; and what the drain has abandoned, when it has had time to say what."""
        now = time.monotonic()
        if self.service.engine.stopped and self._quit_by is None and self._has_workers():
            self._quit_by = now + QUIT_WITHIN
            self._kill_workers(signal.SIGQUIT)
            self.arbiter.kill_dirty_arbiter(signal.SIGQUIT)
        if self._quit_by is not None and now >= self._quit_by:
            self._kill_workers(signal.SIGKILL)
            self.arbiter.kill_dirty_arbiter(signal.SIGKILL)
        for pid, (_, since) in list(self._leaving.items()):
            if pid not in self._up and now >= since + self.arbiter.cfg.graceful_timeout:
                self._theirs["kill_worker"](pid, signal.SIGKILL)


def _nothing() -> None:
    """Do nothing."""
