"""Celery: with `hold(app)` in the app's module a worker holds the stop while its tasks run. Tested with the pools prefork and threads.

Discussion of strategies.

Celery's own warm shutdown leaves its event loop at once, then joins the pool. Until the last task has ended nothing reads the broker any
more: what was only reserved, and the one message that was being fetched, wait with it; late acknowledgements of tasks in threads do too
(past visibility_timeout they are redelivered); `inspect` hears nothing; and a task that was sent to a child process but is not yet known
to be accepted is forgotten, so that it runs and is redelivered. So the loop is left running: when the drain begins, consuming is cancelled,
what is not in the pool goes back to the broker, and Celery's warm shutdown comes when the last task has ended, with nothing left to wait
for. An abandoned drain is Celery's cold shutdown, which gives what is not acknowledged back to the broker.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from billiard.common import REMAP_SIGTERM
from celery import bootsteps, signals
from celery.worker import state

from requiem_systemd import journal
from requiem_systemd.adapters.celeryintake import Intake
from requiem_systemd.errors import NotMainThreadError, ReloadError
from requiem_systemd.ledger import HOOK, More, Record
from requiem_systemd.slot import own

LOG: Final = logging.getLogger("requiem_systemd")
process: Any = own()


def hold(app: Any) -> None:
    """Have the workers of a Celery app hold the stop; write it below `app = Celery(…)`. Elsewhere than in a worker it does nothing."""
    app.steps["worker"].add(_Holding)
    app.steps["consumer"].add(_Consuming)


class _Consuming(bootsteps.StartStopStep):  # type: ignore[misc] # Celery carries no types
    """The consumer's bootstep: it has connected, or connected again."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """See _Holding.connected."""
        consumer.controller.requiem.connected(consumer)


class _Holding(bootsteps.StartStopStep):  # type: ignore[misc] # Celery carries no types
    """The worker's bootstep, made before the pool is started, started after it and before the broker is asked for anything."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Arm: the children that the pool forks must find NOTIFY_SOCKET gone."""
        super().__init__(worker, **kwargs)
        self._worker = worker
        worker.requiem = self
        self._intake = Intake(process, self._settle)
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._stack = contextlib.ExitStack()
        self._closing = False
        self._handed_back = False
        self._hold = Record("handing back what was reserved", None)
        self._hold.more = More(HOOK)
        try:
            process.arm()
        except NotMainThreadError:  # a worker in a thread, as tests have them: its own shutdown begins the drain
            process.arm(signals=False)
        signals.worker_ready.connect(self._ready, weak=False)

    # -- what Celery calls ---------------------------------------------------------------------------------------------

    def start(self, worker: Any) -> None:
        """Take Celery's signal handlers over, which have just been installed, and look into its pool."""
        process.retake()
        if process.gate is not None:
            self._handlers = process.gate.unchain(_is_celerys)
        self._stack.enter_context(process.keeping_main())  # Celery makes it leave, after its own shutdown
        self._intake.watch(worker.pool)
        _name_limits(worker)
        process.engine.begun.then(self._begin)
        process.engine.stopped.then(self._stopped)

    def close(self, worker: Any) -> None:  # noqa: ARG002 - Celery's
        """Celery stops, whoever has told it to."""
        self._closing = True
        if not process.draining():  # its remote control has, or it has failed
            process.begin("Celery shuts down")
            self._hand_back()

    def stop(self, worker: Any) -> None:
        """Leave with our status, if Celery's own does not tell of worse."""
        worker.exitcode = worker.exitcode or process.engine.wayout.status

    terminate = stop

    def connected(self, consumer: Any) -> None:
        """Do not consume again in a drain."""
        self._intake.forget()
        if process.draining():
            consumer.call_soon(self._cancel)
            self._settle()

    def _ready(self, sender: Any, **_: Any) -> None:
        if not process.hooks.has("reload"):
            process.on("reload", _refuse_reload)
        process.ready(f"{sender.hostname} ready")

    # -- the drain -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Stop consuming, in Celery's thread; the engine's thread calls this."""
        if self._closing:
            return
        consumer = getattr(self._worker, "consumer", None)
        if consumer is None or consumer.connection is None:  # nothing was reserved, or the broker has it again; see connected
            return
        process.ledger.enter(self._hold)
        consumer.call_soon(self._hand_back)

    def _hand_back(self) -> None:
        signals.worker_shutting_down.send(sender=self._worker.hostname, sig="SIGTERM", how="Warm", exitcode=os.EX_OK)
        try:
            self._cancel()
            if count := self._intake.hand_back():
                LOG.info("%d reserved %s handed back to the broker", count, "task" if count == 1 else "tasks")
        finally:
            self._handed_back = True
            self._settle()

    def _cancel(self) -> None:
        consumer = self._worker.consumer.task_consumer
        if consumer is not None:
            consumer.cancel()

    def _settle(self) -> None:
        """Hold for what was reserved no longer, once it is handed back, and all that is in the pool is known to run."""
        if self._handed_back and not self._intake.waiting:
            process.ledger.leave(self._hold)

    def _stopped(self) -> None:
        """All is done, or abandoned: have Celery shut down; the engine's thread calls this."""
        if not process.engine.drain.limits.abandoned:
            state.should_stop = os.EX_OK
        elif process.gate is None or not process.gate.call("SIGQUIT", self._abandon):
            state.should_terminate = os.EX_TEMPFAIL
        consumer = getattr(self._worker, "consumer", None)
        if consumer is not None:
            consumer.call_soon(bool)  # whatever it is called with, its loop then looks whether to stop

    def _abandon(self, number: int, frame: object) -> None:
        """Shut down cold, in the main thread: children are ended, and what they did not acknowledge goes back to the broker."""
        state.should_terminate = os.EX_TEMPFAIL
        if "SIGQUIT" in self._handlers:
            with contextlib.suppress(NotImplementedError):  # a pool of threads, which end with the process
                self._handlers["SIGQUIT"](number, frame)


def _is_celerys(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")) == "celery.apps.worker"


def _refuse_reload() -> None:
    msg = "a Celery worker does not reload; `systemctl restart` takes up new code, and waits for the tasks"
    raise ReloadError(msg)


def _name_limits(worker: Any) -> None:
    """Say what is impossible, or has no effect any more."""
    pool = type(worker.pool).__module__.rpartition(".")[2]
    soft = worker.app.conf.get("worker_soft_shutdown_timeout") or 0.0  # from Celery 5.5 on
    limit = process.engine.setting.options.exit_timeout
    if pool == "solo":
        _mistake("Celery's pool solo runs a task in the thread that would hand reserved ones back: they wait for it; use -P prefork or threads")
    if REMAP_SIGTERM:
        _mistake("REMAP_SIGTERM= has no effect any more: SIGTERM waits for the tasks, SIGQUIT shuts Celery down cold")
    if soft >= limit:
        _mistake(
            f"worker_soft_shutdown_timeout={soft:g} is not less than exit_timeout={limit:g}, which cuts an abandoned drain short before it: "
            "set Environment=REQUIEM_EXIT_TIMEOUT= to more"
        )


def _mistake(text: str) -> None:
    LOG.warning("%s", text, extra=journal.record("mistake"))
