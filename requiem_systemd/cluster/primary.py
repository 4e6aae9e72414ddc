"""The primary: starts workers, hears them, and is heard by nobody but its manager; the last to leave."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final, TypeVar, overload

from requiem_systemd import channel, exits
from requiem_systemd.cluster import command
from requiem_systemd.cluster.passed import Passed, find_listener
from requiem_systemd.cluster.policy import summary
from requiem_systemd.cluster.worker import Watcher, Worker
from requiem_systemd.engine import Engine
from requiem_systemd.errors import WorkerError
from requiem_systemd.gate import in_main_thread
from requiem_systemd.hooks import Hooks
from requiem_systemd.latch import Latch
from requiem_systemd.loop import Loop
from requiem_systemd.service import Service
from requiem_systemd.standing import WorkerInfo
from requiem_systemd.wayout import EX_TEMPFAIL

F = TypeVar("F", bound=Callable[..., Any])

# With how many arguments: the worker; and how it ended, as exit status and as signal, one of which says nothing.
EVENTS: Final = MappingProxyType({"fork": 1, "online": 1, "listening": 1, "disconnect": 1, "exit": 3})
# Deaths by these are an end like any other (systemd.service(5), SuccessExitStatus=).
CLEAN: Final = frozenset(("SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE"))
# How long abandoned workers have to name what they abandon.
ABANDON_WITHIN: Final = 5.0


class Primary:
    """The workers of one service, in its engine's loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.workers: dict[int, Worker] = {}
        self.watcher: Watcher | None = None
        self.wanted: int = 0  # by a Cluster; 0 where the user forks by hand
        self.note: str = ""  # for operators, behind the sum
        self._shown = ""
        self.hooks: Hooks = Hooks(service.ledger, EVENTS)
        self._lock = threading.Lock()
        self._count = 0
        self._engine: Engine | None = None
        self._gone = Latch()
        self._hooked = False

    # -- what users say ------------------------------------------------------------------------------------------------

    def is_primary(self) -> bool:
        """Say whether this process is no worker of a cluster: it may be the primary of one."""
        return self.service.place is None

    @overload
    def on(self, event: str, fn: F) -> F: ...
    @overload
    def on(self, event: str, fn: None = None) -> Callable[[F], F]: ...
    def on(self, event: str, fn: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Have a function called at an event of a worker, which is its first argument; a decorator, or a call with `fn`.

        Events: `fork(worker)`; `online(worker)`, its program has armed its service; `listening(worker)`, it has said `ready()`;
        `disconnect(worker)`, its channel is closed; `exit(worker, status, signal)`, its process has ended, by an exit status or by a
        signal's name. A handler that takes fewer arguments is called with fewer. Handlers run in a thread of their own, one after
        another; while one runs it holds the stop. Raises ValueError for an unknown event.
        """
        if fn is None:
            self.hooks.check(event)
            return lambda function: self.on(event, function)
        self.hooks.add(event, fn, armed=self._engine is not None)
        return fn

    def fork(self) -> Worker:
        """Start a worker: this very command, run again in a fresh interpreter; there `is_primary()` is false.

        It gets this process's listeners, and a channel in place of the manager's socket. As long as it lives it holds the stop; the drain
        begins in it as it begins here. Arms the service where it is not. Raises WorkerError where the command cannot be run again, in a
        worker, and where systems other than Linux are; DrainingError once the drain has begun.
        """
        if not self.is_primary():
            msg = "a worker cannot fork: ask cluster.is_primary() first"
            raise WorkerError(msg)
        if sys.platform != "linux":
            msg = "workers need pidfd_open(2) and SEQPACKET sockets, which only Linux has"
            raise WorkerError(msg)
        self.service.refuse_while_draining("a new worker")
        self._attach()
        with self._lock:
            self._count += 1
            worker = Worker(self, self._count)
        self.service.ledger.enter(worker.record)
        try:
            worker.watchdog = self.service.environment.watchdog
            worker.start(command.again(sys.executable, sys.orig_argv), self.service.variables(), self.service.listening.to_pass())
        except OSError as error:
            self.service.ledger.leave(worker.record)
            msg = f"worker {worker.id} cannot be started: {error}"
            raise WorkerError(msg) from error
        except BaseException:
            self.service.ledger.leave(worker.record)
            raise
        self.loop.call(lambda: self._adopt(worker))
        return worker

    # -- what workers need of it: worker.Owner -------------------------------------------------------------------------

    @property
    def loop(self) -> Loop:
        """The engine's."""
        return self.service.engine.loop

    def told(self, worker: Worker, event: str, *arguments: object) -> None:
        """Have users hear of an event, and of an end that they have asked for."""
        if event:
            self.hooks.emit(event, (worker, *arguments), _ignore)
        if event not in ("online", "listening", "fork") and not worker.is_connected():
            callbacks, worker.callbacks = worker.callbacks, []
            for callback in callbacks:
                self.hooks.run_once(callback, f"callback of {worker.record.name}", (worker,))

    def changed(self, worker: Worker, packet: channel.Packet) -> None:
        """Take what a worker has said."""
        if "X_REQUIEM_LISTENER" in packet.values:
            channel.answer_listener(packet, functools.partial(find_listener, self.service))
            return
        channel.close_all(packet.fds)
        if self.watcher is not None:
            if packet.values.get("X_REQUIEM_TIRED") == "1":
                self.watcher.tired(worker)
            self.watcher.changed(worker)
        self.show()

    def dismiss(self, worker: Worker, reason: str) -> None:
        """Have a worker drain."""
        if worker.dismiss(reason):
            worker.exited_after_disconnect = True
            if self.watcher is not None:
                self.watcher.changed(worker)
            self.show()

    def ended(self, worker: Worker) -> None:
        """Hold the stop for it no longer."""
        self.workers.pop(worker.id, None)
        self._name_abandoned(worker)
        if self._engine is not None:
            self._engine.sweep()
            if worker.left_at is not None:
                self._engine.tally.drained(self.loop.clock.now() - worker.left_at)
        if self.watcher is not None:
            self.watcher.ended(worker)
        self.show()
        if not self.workers:
            self._gone.set()
        self.service.ledger.leave(worker.record)

    def show(self) -> None:
        """Sum the workers up in the manager's STATUS."""
        engine = self._engine
        if engine is not None and (self.wanted or engine.begun):
            text = summary((worker.seen for worker in self.workers.values()), 0 if engine.begun else self.wanted)
            text += f"; {self.note}" if self.note else ""
            if text != self._shown:
                self._shown = text
                engine.set_status(text)

    def crew(self) -> list[WorkerInfo]:
        """Tell of the workers, the oldest first; in the loop."""
        shown = ((worker, worker.seen) for worker in self.workers.values())
        return [WorkerInfo(worker.id, worker.pid, worker.phase.value, seen.status, seen.jobs, seen.requests, seen.oldest) for worker, seen in shown]

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Follow the service's engine; arm it where nobody has."""
        implicit = not self.service.armed
        if implicit:
            self.service.arm(signals=in_main_thread())
        engine = self.service.engine
        if engine is self._engine:
            return
        self._engine = engine
        engine.crew = self.crew
        engine.begun.then(self._begun)
        engine.stopped.then(self._stopped)
        self.service.on("dead", self._see_out)
        self.hooks.submit(_nothing)  # once the main thread has ended, no thread can be started (CPython 3.12)
        self.service.doors.add(Passed(self.service.listening, self.service.doors))
        if not self._hooked:
            self._hooked = True
            os.register_at_fork(after_in_child=self._forked)
            if implicit:  # as in Node, where a primary lives as long as its workers
                exits.at_main_threads_end(self._outlive)

    def _adopt(self, worker: Worker) -> None:
        if self._gone:
            self._gone = Latch()
        self.workers[worker.id] = worker
        worker.watch()
        self.told(worker, "fork")
        if self._engine is not None and self._engine.begun:
            self.dismiss(worker, "the primary drains")
        self.show()

    def _begun(self) -> None:
        if self.watcher is not None:
            self.watcher.drain()
        for worker in list(self.workers.values()):
            self.dismiss(worker, "the primary drains")

    def _see_out(self) -> None:
        """Have workers that were abandoned name what they abandon, before this process goes, and their manager kills them."""
        for name, patience in (("SIGQUIT", ABANDON_WITHIN), ("SIGKILL", ABANDON_WITHIN)):
            gone = self._gone
            if not self.workers or gone:
                return
            self.loop.call(lambda name=name: self._kill_all(name))  # type: ignore[misc] # mypy cannot infer a lambda's default
            gone.wait(patience)

    def _kill_all(self, name: str) -> None:
        for worker in self.workers.values():
            worker.kill(name)

    def _stopped(self) -> None:
        self._engine = None
        self.hooks.end()
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()
        self._gone.set()

    def _outlive(self) -> None:
        """Keep the interpreter as long as there are workers; main thread."""
        while self.workers:
            self._gone.wait()
        done = Latch()
        self.hooks.submit(done.set)
        done.wait()

    def _forked(self) -> None:
        """In a fork's child: the workers are the parent's."""
        for worker in self.workers.values():
            worker.close()
        self._lock = threading.Lock()
        self.workers.clear()
        self.watcher = None
        self.wanted = 0
        self._engine = None
        self.hooks = Hooks(self.service.ledger, EVENTS)

    def _name_abandoned(self, worker: Worker) -> None:
        """Take over that a worker has abandoned jobs, or was killed with them, while the service stops."""
        engine = self._engine
        killed = bool(worker.exit_signal) and worker.exit_signal not in CLEAN
        closed = self.service.ledger.closed  # all have been named
        if engine is not None and engine.begun and not closed and (worker.exit_status == EX_TEMPFAIL or killed):
            limits = engine.drain.limits
            limits.abandoned += (limits.info(worker.record),)


def _nothing() -> None:
    """Be called."""


def _ignore(errors: list[BaseException]) -> None:
    """Do nothing: they have been logged."""
    del errors
