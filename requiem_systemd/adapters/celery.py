"""Celery: with `hold(app)` in the app's module a worker holds the stop while its tasks run. Tested with the pools prefork and threads.

Discussion of strategies.

Celery's own warm shutdown leaves its event loop at once, then joins the pool. Until the last task has ended nothing reads the broker any
more: what was only reserved, and the one message that was being fetched, wait with it; late acknowledgements of tasks in threads do too
(past visibility_timeout they are redelivered); `inspect` hears nothing; and a task that was written to a child but is not yet known to be
accepted is forgotten, so that it runs and is redelivered. So the loop is left running: when the drain begins, consuming is cancelled, what
is not in the pool goes back to the broker, and Celery's warm shutdown comes when the last task has ended, with nothing left to wait for.
An abandoned drain is Celery's cold shutdown, which gives unacknowledged tasks back to the broker.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from celery import bootsteps, signals
from celery.exceptions import TaskRevokedError
from celery.worker import state
from kombu.transport import virtual

from requiem_systemd import journal
from requiem_systemd.errors import DrainingError, NotMainThreadError, ReloadError
from requiem_systemd.ledger import HOOK, More, Record
from requiem_systemd.protocol import duration
from requiem_systemd.service import process

LOG: Final = logging.getLogger("requiem_systemd")


def hold(app: Any) -> None:
    """Have the workers of a Celery app hold the stop; write it below `app = Celery(…)`. Elsewhere than in a worker it does nothing."""
    app.steps["worker"].add(Holding)
    app.steps["consumer"].add(Consuming)


class Consuming(bootsteps.StartStopStep):  # type: ignore[misc] # Celery carries no types
    """The consumer's bootstep: it has connected, or connected again."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """See Holding.connected."""
        consumer.controller.requiem.connected(consumer)


class Holding(bootsteps.StartStopStep):  # type: ignore[misc] # Celery carries no types
    """The worker's bootstep, made before the pool is started, started after it and before the broker is asked for anything."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """Arm: children that the pool forks must find NOTIFY_SOCKET gone."""
        super().__init__(worker, **kwargs)
        self.worker = worker
        worker.requiem = self
        self.received: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self.waiting: dict[Any, Task] = {}
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._stack = contextlib.ExitStack()
        self._closing = False
        self._hold = Record("handing back what was reserved", None)
        self._hold.more = More(HOOK)
        try:
            process.arm()
        except NotMainThreadError:  # a worker in a thread, as tests have them: its own shutdown begins the drain
            process.arm(signals=False)
        signals.worker_ready.connect(self._ready, weak=False)
        signals.task_received.connect(self._received, weak=False)

    # -- Celery's calls ------------------------------------------------------------------------------------------------

    def start(self, worker: Any) -> None:
        """Take Celery's signal handlers over, which have just been installed, and look into its pool."""
        process.retake()
        if process.gate is not None:
            self._handlers = process.gate.unchain(_is_celerys)
        self._stack.enter_context(process.keeping_main())  # Celery makes it leave, after its own shutdown
        self._watch(worker.pool)
        self._name_limits(worker)
        process.engine.begun.then(self._begin)
        process.engine.stopped.then(self._stopped)

    def close(self, worker: Any) -> None:
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
        """Forget what came over another connection: Celery does, and the broker gives it to somebody again."""
        self.received.clear()
        self.waiting.clear()
        if process.draining():
            consumer.call_soon(self._cancel)
            self.settle()

    def _ready(self, sender: Any, **_: Any) -> None:
        if not process.hooks.has("reload"):
            process.on("reload", _refuse_reload)
        process.ready(f"{sender.hostname} ready")

    def _received(self, request: Any, **_: Any) -> None:
        self.received[request] = process.ledger.clock()

    # -- the pool ------------------------------------------------------------------------------------------------------

    def _watch(self, pool: Any) -> None:
        """Track what goes into the pool. Celery has no signal in the main process for a task's begin and end."""
        apply = pool.apply_async

        @functools.wraps(apply)
        def apply_async(target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            request = getattr(options.get("accept_callback"), "__self__", None)
            if request is None:
                return apply(target, args, kwargs, **options)
            if request.acknowledged:  # handed back: to Celery it is as if revoked
                raise TaskRevokedError(request.id)
            self.waiting[request] = task = Task(self, request)
            try:
                task.result = apply(target, args, kwargs, **{**options, **task.callbacks(options)})
            except BaseException:
                task.over()
                raise
            return task.result

        pool.apply_async = apply_async

    # -- the drain -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Stop consuming, in Celery's thread; the engine's thread calls this."""
        if self._closing:
            return
        consumer = getattr(self.worker, "consumer", None)
        if consumer is None or consumer.connection is None:  # nothing was reserved, or the broker has it again
            self._shut_down()
            return
        process.ledger.enter(self._hold)
        consumer.call_soon(self._hand_back)

    def _hand_back(self) -> None:
        signals.worker_shutting_down.send(sender=self.worker.hostname, sig="SIGTERM", how="Warm", exitcode=0)
        try:
            self._cancel()
            reserved = [request for request in self.received if self._is_reserved(request)]
            for request in reversed(reserved):
                self.waiting.pop(request, None)
                _give_back(request)
            if reserved:
                LOG.info("%d reserved tasks handed back to the broker", len(reserved))
        finally:
            self.settle()

    def _is_reserved(self, request: Any) -> bool:
        """Say whether a request has not been begun, and cannot be any more. What a child process was sent runs in a moment."""
        if request.acknowledged or request.time_start is not None:
            return False
        task = self.waiting.get(request)
        return task is None or task.cancel()

    def _cancel(self) -> None:
        consumer = self.worker.consumer.task_consumer
        if consumer is not None:
            consumer.cancel()

    def settle(self) -> None:
        """Hold no longer for what was reserved, once all that is in the pool is known to run."""
        if process.draining() and not self.waiting:
            process.ledger.leave(self._hold)

    def _stopped(self) -> None:
        """All is done, or abandoned: have Celery shut down; the engine's thread calls this."""
        if not process.engine.drain.limits.abandoned:
            self._shut_down()
        elif process.gate is None or not process.gate.call("SIGQUIT", self._abandon):
            state.should_terminate = os.EX_TEMPFAIL
        self._wake()

    def _shut_down(self) -> None:
        state.should_stop = os.EX_OK
        self._wake()

    def _wake(self) -> None:
        consumer = getattr(self.worker, "consumer", None)
        if consumer is not None:
            consumer.call_soon(bool)  # whatever it is, its loop then looks whether to stop

    def _abandon(self, number: int, frame: object) -> None:
        """Shut down cold, in the main thread: children are ended, and what they did not acknowledge goes back to the broker."""
        state.should_terminate = os.EX_TEMPFAIL
        if "SIGQUIT" in self._handlers:
            with contextlib.suppress(NotImplementedError):  # a pool of threads, which end with the process
                self._handlers["SIGQUIT"](number, frame)

    # -- what is impossible --------------------------------------------------------------------------------------------

    def _name_limits(self, worker: Any) -> None:
        pool = type(worker.pool).__module__.rpartition(".")[2]
        soft, limit = worker.app.conf.worker_soft_shutdown_timeout, process.engine.setting.options.exit_timeout
        if pool not in ("prefork", "thread"):
            _mistake(f"Celery's pool {pool}: its tasks run in the thread that hands reserved ones back, which waits for them; use -P prefork or threads")
        if os.environ.get("REMAP_SIGTERM"):
            _mistake("REMAP_SIGTERM= changes nothing any more: SIGTERM waits for the tasks, SIGQUIT shuts Celery down cold")
        if soft >= limit:
            _mistake(
                f"worker_soft_shutdown_timeout={soft:g} is not less than exit_timeout={limit:g}, which ends an abandoned drain before it: "
                "set Environment=REQUIEM_EXIT_TIMEOUT= to more"
            )


class Task:
    """One task in the pool; it holds the stop from when it has been accepted until Celery is done with it."""

    def __init__(self, holding: Holding, request: Any) -> None:
        self.result: Any = None
        self._holding = holding
        self._request = request
        self._record = Record(request.humaninfo(), None)
        self._alarmed = False

    def callbacks(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return callbacks in the place of Celery's, which they call."""
        accept, timeout = options["accept_callback"], options["timeout_callback"]

        def accepted(pid: int, at: float) -> None:
            self._record.owner = threading.get_ident() if pid == os.getpid() else f"process {pid}"
            with contextlib.suppress(DrainingError):  # abandoned while it began
                process.ledger.enter(self._record)
            try:
                accept(pid, at)
            finally:
                self._set_alarm()
                self._holding.waiting.pop(self._request, None)
                self._holding.settle()

        def timed_out(soft: bool, seconds: float) -> None:  # noqa: FBT001 - billiard's
            try:
                timeout(soft, seconds)
            finally:
                if not soft:
                    self.over()

        return {
            "accept_callback": accepted,
            "timeout_callback": timed_out,
            "callback": self._last(options["callback"]),
            "error_callback": self._last(options["error_callback"]),
        }

    def _last(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def last(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            finally:
                self.over()

        return last

    def over(self) -> None:
        """Hold no longer."""
        self._holding.waiting.pop(self._request, None)
        if self._alarmed:
            loop = process.engine.loop
            loop.post(lambda: loop.cancel(self._redelivered))
        process.ledger.leave(self._record)
        self._holding.settle()

    def cancel(self) -> bool:
        """Take it back from a pool of threads, if none has begun it; a child process that was sent it cannot be asked."""
        future = getattr(self.result, "f", None)
        return future is not None and bool(future.cancel())

    def _set_alarm(self) -> None:
        """Warn when the broker gives the task to somebody else. It does so only with what is not acknowledged yet (acks_late)."""
        visible = getattr(self._request.message.channel, "visibility_timeout", None)
        since = self._holding.received.get(self._request)
        if self._request.acknowledged or not visible or since is None:
            return
        self._alarmed = True
        loop = process.engine.loop
        loop.post(lambda: loop.alarm(self._redelivered, since + float(visible)))

    def _redelivered(self) -> None:
        visible = duration(float(self._request.message.channel.visibility_timeout))
        _mistake(
            f"{self._record.name} was received more than {visible} ago, the broker's visibility_timeout, and is not acknowledged before its "
            "end (acks_late): the broker gives it to another worker as well, and it runs twice. Set "
            'broker_transport_options["visibility_timeout"] to more than the longest task takes'
        )


def _give_back(request: Any) -> None:
    """Put a message back into its queue, where it is the next to be taken."""
    message = request.message
    restore = getattr(message.channel.qos, "restore_by_tag", None) if isinstance(message.channel, virtual.Channel) else None
    if restore is None:
        request.reject(requeue=True)
    else:  # Redis: reject would put it behind all others; this is what the end of the connection does
        restore(message.delivery_tag)
        virtual.QoS.ack(message.channel.qos, message.delivery_tag)
        request.acknowledged = True
    state.task_ready(request)


def _is_celerys(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")) == "celery.apps.worker"


def _refuse_reload() -> None:
    msg = "a Celery worker does not reload; `systemctl restart` takes up new code, and waits for the tasks"
    raise ReloadError(msg)


def _mistake(text: str) -> None:
    LOG.warning("%s", text, extra=journal.record("mistake"))
