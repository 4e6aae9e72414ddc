"""RQ: `rq worker --worker-class requiem_systemd.adapters.rq.Worker`, or `hold(worker).work()`: the stop waits for the job.

Discussion of strategies.

RQ's own handlers of SIGTERM and SIGINT raise an exception wherever the main thread is: in an instant where it has taken a job off its
queue and not yet begun it, that job is lost (or, from a single queue, failed a minute later by another worker's maintenance). And a second
signal kills the job. So they are not installed. The worker leaves its loop where it is safe: before a fetch, or when one has come back
empty, to which Redis itself is asked to bring it (CLIENT UNBLOCK): either the fetch ends without a job, or the job has been fetched, and runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Any, Final, NoReturn

import redis.exceptions
import rq
import rq.worker

from requiem_systemd import journal
from requiem_systemd.errors import DrainingError, NotMainThreadError, RequiemError
from requiem_systemd.slot import own
from requiem_systemd.tracker import Hold

try:
    from rq.exceptions import StopRequested
    from rq.utils import now
except ImportError as _old:  # RQ says of that, when --worker-class cannot be imported, nothing but that its name is invalid
    _message = f"RQ {rq.VERSION} cannot be held: it is older than RQ 3; install a newer one, or take a --worker-class of its own"
    raise RequiemError(_message) from _old

LOG: Final = logging.getLogger("requiem_systemd")
# A worker may be just about to fetch when it is asked to come back: it is asked again, doubled each time up to a second.
AGAIN: Final = 0.02
# It is none of Redis's doing then: the worker waits for a connection, or another thread has used the one that it was to fetch over.
PATIENCE: Final = 5.0


class Held(rq.worker.BaseWorker):  # type: ignore[misc] # its types are not followed, see pyproject.toml
    """What the classes below add to RQ's: the stop is held from before a job is fetched until RQ is done with it."""

    _service: Any = own()
    _job_hold: Hold | None = None
    _registered = False
    _client: int | None = None
    _fetching = False
    _fetched = False

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Work until the drain begins, or as long as RQ would; see rq.worker.BaseWorker.work."""
        try:
            self._service.arm()
        except NotMainThreadError:
            self._service.arm(signals=False)
        if not self._registered:
            self._registered = True
            self._left = threading.Event()
            self._service.on("begin", self._begin)
            self._service.engine.stopped.then(self._stopped)
        with self._service.keeping_main():  # the loop's end is the main thread's
            try:
                return bool(super().work(*args, **kwargs))
            finally:
                self._release()

    # -- what RQ calls -------------------------------------------------------------------------------------------------

    def _install_signal_handlers(self) -> None:
        """Say that the worker listens, in the place of RQ's handlers: see the top."""
        try:
            self.connection.client_unblock(0)
        except redis.exceptions.ResponseError as error:
            LOG.warning(
                "Redis does not let a fetch be ended (CLIENT UNBLOCK: %s): a stop interrupts it as RQ does, which can lose a job that "
                "is fetched in that instant; allow it (ACL: +client|id +client|unblock)",
                error,
                extra=journal.record("mistake"),
            )
        self._service.ready(f"listening on {', '.join(self.queue_names())}")

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        """Hold from before the fetch: a job that was taken off its queue just before the begin is not lost."""
        self._release()
        hold = self._service.open("fetching the next job")
        try:
            hold.__enter__()
        except DrainingError:
            raise StopRequested from None
        self._job_hold = hold
        self._fetched, self._fetching = False, True  # first this, then a look at the drain: see _begin
        self._left.clear()
        try:
            if self._service.draining():
                raise StopRequested
            return super().dequeue_job_and_maintain_ttl(*args, **kwargs)
        finally:
            self._fetching = False
            self._left.set()
            if not self._fetched:
                self._release()

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Before each fetch RQ comes by here: leave, or note which of Redis's clients it is that will wait."""
        if self._fetching and not self._fetched and self._service.draining():
            raise StopRequested
        super().heartbeat(*args, **kwargs)
        if self._fetching and not self._fetched:
            with contextlib.suppress(redis.exceptions.ResponseError):
                self._client = self.connection.client_id()

    def reorder_queues(self, *args: Any, **kwargs: Any) -> None:
        """After each fetch that has brought a job RQ comes by here: from now on the worker must not leave without having run it."""
        self._fetched = True
        super().reorder_queues(*args, **kwargs)

    def execute_job(self, job: Any, queue: Any) -> None:
        """Hold until the job has ended, whichever way."""
        if self._job_hold is not None:
            self._job_hold.name = label(job)
        try:
            super().execute_job(job, queue)
        finally:
            self._release()

    def monitor_work_horse(self, *args: Any, **kwargs: Any) -> None:
        """Show the process that the job runs in."""
        if self._job_hold is not None:
            self._job_hold.owner = f"process {self.horse_pid}"
        super().monitor_work_horse(*args, **kwargs)

    def teardown(self) -> None:
        """Sign off; where Redis cannot be reached, RQ forgets the worker by itself after worker_ttl, and a stop is no failure."""
        try:
            super().teardown()
        except redis.exceptions.ConnectionError as error:
            if not self._service.draining():
                raise
            LOG.warning("the worker could not sign off: %s", error)

    def _release(self) -> None:
        hold, self._job_hold = self._job_hold, None
        if hold is not None:
            hold.__exit__(None, None, None)

    # -- the drain -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Do what RQ does at a warm shutdown, but for the exception; and see that the fetch comes back. In a thread of its own."""
        self._shutdown_requested_date = now()
        self._stop_requested = True
        self.handle_warm_shutdown_request()
        self._end_fetch()
        if self.scheduler:
            self.stop_scheduler()
        if self._job_hold is not None:
            with contextlib.suppress(redis.exceptions.RedisError):  # for dashboards only
                self.set_shutdown_requested_date()

    def _end_fetch(self) -> None:
        pause, waited, gate = AGAIN, 0.0, self._service.gate
        while self._fetching and not self._fetched:
            asked = False
            try:
                asked = self._client is not None and self.connection.client_unblock(self._client)
            except redis.exceptions.RedisError:
                waited = PATIENCE
            if gate is not None and not asked and waited >= PATIENCE:
                gate.call("SIGTERM", self._interrupt)
            self._left.wait(pause)
            waited, pause = waited + pause, min(2 * pause, 1.0)

    def _interrupt(self, *_: object) -> None:
        """Leave a fetch that Redis cannot, or may not, be asked to end; it may be that there is no Redis."""
        if self._fetching and not self._fetched:
            raise StopRequested

    def _stopped(self) -> None:
        """End what is abandoned; the engine's thread calls this."""
        if not self._service.engine.drain.limits.abandoned:
            return
        if self.horse_pid:
            self.kill_horse()  # RQ sees it end, and fails or retries the job
        elif self._service.gate is not None:
            self._service.gate.call("SIGTERM", _leave)


def label(job: Any) -> str:
    """Name a job by its function and its id; never by its description, which has the arguments in it."""
    try:
        return f"{job.func_name} {job.id}"
    except Exception:  # noqa: BLE001 - its data cannot be read, which RQ finds out for itself
        return str(job.id)


def _leave(*_: object) -> NoReturn:
    raise SystemExit(os.EX_TEMPFAIL)


class Worker(Held, rq.Worker):  # type: ignore[misc] # as Held
    """RQ's worker, which forks a process for each job."""


class SpawnWorker(Held, rq.worker.SpawnWorker):  # type: ignore[misc] # as Held
    """RQ's worker that starts a fresh process for each job."""


class SimpleWorker(Held, rq.SimpleWorker):  # type: ignore[misc] # as Held
    """RQ's worker that runs jobs in its own process."""


def hold(worker: Any) -> Any:
    """Return a class of workers that holds the stop, made from one that does not; of a worker: make it one of such a class."""
    if isinstance(worker, type):
        return worker if issubclass(worker, Held) else type(worker.__name__, (Held, worker), {"__module__": worker.__module__, "__doc__": worker.__doc__})
    known = {rq.Worker: Worker, rq.worker.SpawnWorker: SpawnWorker, rq.SimpleWorker: SimpleWorker}
    kind = type(worker)
    worker.__class__ = known.get(kind) or hold(kind)
    return worker
