"""What a Celery worker has taken from its broker: reserved, sent to its pool, running there. Celery has no signals for all of that."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from celery import signals
from celery.exceptions import TaskRevokedError
from celery.worker import state
from kombu.transport import virtual

from requiem_systemd import journal
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import Record
from requiem_systemd.protocol import clean, duration

LOG: Final = logging.getLogger("requiem_systemd")


class Intake:
    """Tracks the tasks that run; hands back those that are only reserved.

    `settled` is called, in any thread, whenever all that was sent to the pool is known to run, or to have ended.
    """

    def __init__(self, service: Any, settled: Callable[[], object]) -> None:
        self.service = service
        self.settled = settled
        self.received: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self.waiting: dict[Any, Task] = {}
        signals.task_received.connect(self._received, weak=False)

    def _received(self, request: Any, **_: Any) -> None:
        self.received[request] = self.service.ledger.clock()

    def watch(self, pool: Any) -> None:
        """See what goes into a pool that has been started."""
        apply = pool.apply_async

        @functools.wraps(apply)
        def apply_async(target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            request = getattr(options.get("accept_callback"), "__self__", None)
            if request is None:
                return apply(target, args, kwargs, **options)
            if request.acknowledged:  # handed back; its time, or its turn, comes all the same, and then it is to Celery as if revoked
                raise TaskRevokedError(request.id)
            self.waiting[request] = task = Task(self, request)
            try:
                task.result = apply(target, args, kwargs, **{**options, **task.callbacks(options)})
            except BaseException:
                task.over()
                raise
            return task.result

        pool.apply_async = apply_async

    def hand_back(self) -> int:
        """Put what has not been begun back into its queue, as it was before; return how many that were. In Celery's main thread."""
        reserved = [request for request in self.received if self._is_reserved(request)]
        for request in reversed(reserved):
            self.waiting.pop(request, None)
            _requeue(request)
        return len(reserved)

    def _is_reserved(self, request: Any) -> bool:
        if request.acknowledged or request.time_start is not None:
            return False
        task = self.waiting.get(request)
        return task is None or task.cancel()

    def forget(self) -> None:
        """The connection was lost: what came over it and has not been begun is forgotten by Celery, and given to somebody by the broker."""
        self.received.clear()
        self.waiting.clear()

    def settle(self, request: Any) -> None:
        """A task that was sent to the pool runs, or has ended."""
        self.waiting.pop(request, None)
        if not self.waiting:
            self.settled()


class Task:
    """One task in the pool; it holds the stop from when it has been accepted until Celery is done with it."""

    def __init__(self, intake: Intake, request: Any) -> None:
        self.result: Any = None
        self._intake = intake
        self._request = request
        self._record = Record(request.humaninfo(), None)  # name and id, no arguments
        self._alarmed = False

    def callbacks(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return callbacks in the place of Celery's, which they call."""
        accept, timeout = options["accept_callback"], options["timeout_callback"]

        def accepted(pid: int, at: float) -> None:
            self._begin(pid)
            try:
                accept(pid, at)
            finally:
                self._set_alarm()
                self._intake.settle(self._request)

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

    def _begin(self, pid: int) -> None:
        self._record.owner = threading.get_ident() if pid == os.getpid() else f"process {pid}"
        with contextlib.suppress(DrainingError):  # abandoned while it began
            self._intake.service.ledger.enter(self._record)

    def _last(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def last(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            finally:
                self.over()

        return last

    def over(self) -> None:
        """Hold no longer."""
        if self._alarmed:
            loop = self._intake.service.engine.loop
            loop.post(lambda: loop.cancel(self._warn))
        self._intake.service.ledger.leave(self._record)
        self._intake.settle(self._request)

    def cancel(self) -> bool:
        """Take it back from a pool of threads, if none has begun it; of a child process that was sent it, it cannot be had back."""
        future = getattr(self.result, "f", None)
        return future is not None and bool(future.cancel())

    def _set_alarm(self) -> None:
        """Warn when the broker gives the task to somebody else. It does so only with what is not acknowledged yet (acks_late)."""
        visible = getattr(self._request.message.channel, "visibility_timeout", None)
        since = self._intake.received.get(self._request)
        if self._request.acknowledged or not visible or since is None:
            return
        self._alarmed = True
        loop = self._intake.service.engine.loop
        loop.post(lambda: loop.alarm(self._warn, since + float(visible)))

    def _warn(self) -> None:
        visible = duration(float(self._request.message.channel.visibility_timeout))
        label = self._intake.service.engine.setting.shown(clean(self._record.name))
        LOG.warning(
            "%s was fetched more than %s ago, the broker's visibility_timeout, and is not acknowledged before its end (acks_late): the "
            'broker gives it to another worker too, and it runs twice. Set broker_transport_options["visibility_timeout"] to more than '
            "the longest task takes",
            label,
            visible,
            extra=journal.record("mistake", label=label),
        )


def _requeue(request: Any) -> None:
    """Put a message back to where it is the next to be taken."""
    channel, tag = request.message.channel, request.message.delivery_tag
    restore = getattr(channel.qos, "restore_by_tag", None) if isinstance(channel, virtual.Channel) else None
    if restore is None:
        request.reject(requeue=True)
    else:  # Redis: a message that is rejected goes behind all others; this is what happens to one when its connection ends
        restore(tag)
        virtual.QoS.ack(channel.qos, tag)  # type: ignore[no-untyped-call] # kombu carries few types
        request.acknowledged = True
    state.task_ready(request)
