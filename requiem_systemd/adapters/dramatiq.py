"""Dramatiq: `broker.add_middleware(Hold())`. Messages in work hold the stop; what was only fetched goes back at once.

`dramatiq app` is a parent, which never loads the app, and worker processes, which do. The parent passes SIGTERM on to them (SIGINT as
SIGTERM too), as often as it comes, and waits for them without a limit. So it is the workers that speak to the manager, which needs
NotifyAccess=all, and it is they that must bear a second SIGTERM: dramatiq's own handler would end the process at it.

In a worker dramatiq would finish what runs, at most 600 s, fetch on meanwhile, and give back what it has fetched at the end of that.
Here its handler is called once, at the begin; its `Worker.stop()` goes on when the ledger is empty.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

from requiem_systemd.errors import DrainingError
from requiem_systemd.slot import own

LOG: Final = logging.getLogger("requiem_systemd")
# What dramatiq's threads are given to end when their messages have been abandoned, in its milliseconds.
ABANDONED_STOP: Final = 1000
_HOOKS: Final = ("before_", "after_")


class Hold:
    """Dramatiq's middleware: every message that is processed holds the stop, from before its actor is called until it is acknowledged.

    In a worker process it arms the service, and says READY=1 when the worker has booted; elsewhere (where messages are only sent) it
    does nothing. At the begin the worker takes no more messages, and hands back those it has fetched. SIGHUP, by which dramatiq starts
    its processes anew, drains too. With RabbitMQ what was fetched goes back when the worker disconnects, at the end of the drain.
    """

    def __init__(self, *, service: Any = None) -> None:
        self.actor_options: set[str] = set()
        self.forks: list[Any] = []
        self._service = own(service)
        self._worker: Any = None
        self._handler: Any = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith(_HOOKS):  # dramatiq calls some twenty hooks; not inherited, so that this module needs no dramatiq
            return _nothing
        raise AttributeError(name)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def after_process_boot(self, broker: Any) -> None:
        """Arm, in a worker process that dramatiq's command has started."""
        del broker
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # left to the parent by dramatiq; by it a second one could not abandon
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._service.arm()
        self._service.keepers[self] = True  # its loop looks once a second whether it is to end
        gate = self._service.gate
        if gate is not None:
            self._handler = next(filter(_is_dramatiqs, gate.chained()), None)
            gate.unchain(_is_dramatiqs)

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        """Say that it is ready, and have it stop when all is done."""
        del broker
        self._worker = worker
        self._service.arm(**({} if threading.current_thread() is threading.main_thread() else {"signals": False}))
        worker.stop = functools.partial(self._stop, worker.stop)
        self._service.on("begin", self._begin)
        self._service.on("reload", functools.partial(self._service.begin, "SIGHUP, by which dramatiq starts its processes anew"))
        if self._service.draining():
            self._begin()
        self._service.ready()

    def after_worker_thread_boot(self, broker: Any, thread: Any) -> None:
        """Track what a thread processes."""
        del broker
        thread.process_message = functools.partial(self._process, thread, thread.process_message)

    def after_consumer_thread_boot(self, broker: Any, thread: Any) -> None:
        """Hand back what a thread fetches when it is too late."""
        del broker
        thread.handle_message = functools.partial(self._handle, thread, thread.handle_message)

    # -- messages ------------------------------------------------------------------------------------------------------

    def _process(self, thread: Any, process_message: Callable[[Any], None], message: Any) -> None:
        hold = self._service.open(f"{message.actor_name} {message.message_id}")
        with contextlib.suppress(DrainingError):
            if not self._service.draining():
                with hold:
                    process_message(message)
                return
        self._requeue(thread.consumers, [message])
        thread.work_queue.task_done()

    def _handle(self, thread: Any, handle_message: Callable[[Any], None], message: Any) -> None:
        if self._service.draining() and "eta" not in message.options:
            thread.requeue_messages([message])
        else:
            handle_message(message)

    @staticmethod
    def _requeue(consumers: Any, messages: list[Any]) -> None:
        for message in messages:
            try:
                consumers[message.queue_name].requeue_messages([message])
            except Exception:  # the broker is gone, in a way of its own: it gives the message to somebody else by itself
                LOG.exception("message %s could not be handed back", message.message_id)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Take no more, hand back what nobody works on, and have dramatiq's loop end."""
        for thread in self._worker.workers:
            thread.stop()
        for name, consumer in list(self._worker.consumers.items()):
            # Consumers live on: acknowledgements go by them, and that of delayed messages tells Redis that we are alive.
            if not name.endswith(".DQ") and hasattr(consumer.consumer, "prefetch"):
                consumer.consumer.prefetch = 0
        waiting = []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._worker.work_queue.get_nowait().message)
                self._worker.work_queue.task_done()
        self._requeue(self._worker.consumers, waiting)
        if self._handler is not None:
            handler, self._handler = self._handler, None
            handler(signal.SIGTERM, None)

    def _stop(self, stop: Callable[..., None], timeout: int = 600_000) -> None:
        """Stop the worker when all is done: in the stead of its `stop`."""
        self._service.begin("the worker stops")
        for middleware in self._worker.broker.middleware:
            if type(middleware).__name__ == "ShutdownNotifications":  # actors that want to be interrupted are, now and not afterwards
                middleware.before_worker_shutdown(self._worker.broker, self._worker)
        engine = self._service.engine
        with self._service.keeping_main():
            self._service.release(self)
            engine.stopped.wait()
        stop(timeout=ABANDONED_STOP if engine.drain.limits.abandoned else timeout)


def _is_dramatiqs(handler: Any) -> bool:
    """Say whether a signal's handler is the one of a worker process."""
    return getattr(handler, "__module__", "") == "dramatiq.cli"


def _nothing(*_: object, **__: object) -> None:
    """Do nothing: a hook that is of no interest."""
