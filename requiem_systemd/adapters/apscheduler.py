"""APScheduler 3: from the begin nothing is scheduled any more, and every run, queued ones too, holds the stop.

What comes due meanwhile stays in its job store: a run is taken out of it, and its next time written, by `_process_jobs`, which we enter
as a worker's loop enters a fetch: held from before, and not at all once the drain has begun. A run ends where its executor says so, in
`_run_job_success` or `_run_job_error`, behind the scheduler's listeners. There are events for both, but that of a submission comes
after it, when the run may be over.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from requiem_systemd import journal
from requiem_systemd.errors import DrainingError
from requiem_systemd.slot import own
from requiem_systemd.tracker import Tracker

LOG: Final = logging.getLogger("requiem_systemd")
S = TypeVar("S")


def track_scheduler(scheduler: S, *, service: Any = None) -> S:
    """Have the drain pause a scheduler of any kind, and every run hold the stop; returns it. Call it before `start()`.

    It is paused, not shut down: `scheduler.shutdown()` stays yours to call, and cancels coroutines that run (AsyncIOScheduler), so wait
    first (`aio.wait()`, `wait()`). Raises TypeError for what is no scheduler of APScheduler 3, RuntimeError for one that runs.
    """
    if not hasattr(scheduler, "_process_jobs") or not hasattr(scheduler, "add_executor"):
        msg = f"track_scheduler({type(scheduler).__name__}): give a scheduler of APScheduler 3"
        raise TypeError(msg)
    if getattr(scheduler, "running", False):
        msg = "track_scheduler: the scheduler runs already, and so may its jobs; call it before start()"
        raise RuntimeError(msg)
    _Tracked(scheduler, own(service)).attach()
    return scheduler


class _Tracked:
    """One scheduler."""

    def __init__(self, scheduler: Any, service: Any) -> None:
        self._scheduler = scheduler
        self._service = service
        self._process = scheduler._process_jobs  # noqa: SLF001 - the one place where runs leave a job store

    def attach(self) -> None:
        from apscheduler import events  # noqa: PLC0415 - loaded when asked for

        self._scheduler._process_jobs = self._process_jobs  # noqa: SLF001 - see the top
        for executor in self._scheduler._executors.values():  # noqa: SLF001 - no other way to see them
            self._runs(executor)
        self._scheduler.add_listener(self._added, events.EVENT_EXECUTOR_ADDED)
        self._scheduler.add_listener(self._started, events.EVENT_SCHEDULER_STARTED)
        self._service.on("begin", self._pause)

    def _process_jobs(self) -> Any:
        if self._service.draining():
            return None
        try:
            with self._service.open("scheduling"):
                return self._process()
        except DrainingError:  # stopped between the question and the entry
            return None

    def _pause(self) -> None:
        if self._scheduler.running:
            self._scheduler.pause()

    def _added(self, event: Any) -> None:
        self._runs(self._scheduler._executors[event.alias])  # noqa: SLF001 - see attach

    def _runs(self, executor: Any) -> None:
        _Runs(executor, self._service).attach()

    def _started(self, _: object) -> None:
        if self._service.draining():
            self._scheduler.pause()
        grace = getattr(self._scheduler, "_job_defaults", {}).get("misfire_grace_time")
        stores = getattr(self._scheduler, "_jobstores", {}).values()
        if grace == 1 and any(type(store).__name__ != "MemoryJobStore" for store in stores):
            LOG.warning(
                "APScheduler drops a run that comes due while the service drains or restarts: misfire_grace_time is 1 s unless the job says "
                "otherwise; set job_defaults={'misfire_grace_time': None}, or as many seconds as a restart may take",
                extra=journal.record("mistake"),
            )


class _Runs:
    """The runs of one executor."""

    def __init__(self, executor: Any, service: Any) -> None:
        self._executor = executor
        self._service = service
        self._submit = executor.submit_job
        self._running: dict[str, list[Tracker]] = {}

    def attach(self) -> None:
        pool = getattr(self._executor, "_pool", None)
        if hasattr(pool, "_mp_context"):
            from requiem_systemd.adapters import pools  # noqa: PLC0415 - it brings multiprocessing

            pools.shield(pool, self._service)
        self._executor.submit_job = self._begin
        for name in ("_run_job_success", "_run_job_error"):
            setattr(self._executor, name, functools.partial(self._end, getattr(self._executor, name)))

    def _begin(self, job: Any, run_times: Any) -> None:
        tracker = self._service.create_tracker(job.name if job.name == job.id else f"{job.name} {job.id}")
        tracker._entry().owner = None  # noqa: SLF001 - it runs anywhere but in the scheduler's thread
        self._running.setdefault(job.id, []).append(tracker)
        try:
            self._submit(job, run_times)
        except BaseException:
            self._running[job.id].remove(tracker)
            tracker.done()
            raise

    def _end(self, ended: Callable[..., object], job_id: str, *args: Any) -> None:
        try:
            ended(job_id, *args)
        finally:
            self._running[job_id].pop(0).done()
