"""arq: `WorkerSettings = hold(WorkerSettings)`, and `arq app.WorkerSettings` as ever. Jobs run to their end, once.

At SIGTERM arq cancels its jobs, which then run again from their beginning; `job_completion_wait` puts that off by so many seconds. Here
arq takes no signals (`handle_signals`): at the begin it picks no more jobs, and when the ledger is empty its main task is cancelled,
which is its own way to end: `on_shutdown` runs, once, and the connections are closed. Cron jobs that come due meanwhile are enqueued as
ever, for the next process.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from requiem_systemd.adapters.tasks import latched
from requiem_systemd.errors import DrainingError
from requiem_systemd.slot import own

S = TypeVar("S")
Hook = Callable[[dict[Any, Any]], Awaitable[None]]


def hold(settings: S, *, service: Any = None) -> S:
    """Have the jobs of an arq worker hold the stop; `settings`: its class or dict, which is changed and returned. Also a decorator.

    The service is armed, and READY=1 said, when the worker has started, not when the module is imported. Under `arq --watch`, which is
    for development, nothing is held. Raises TypeError for what are no settings.
    """
    held: Any = settings
    if isinstance(settings, dict):
        get, put = held.get, held.__setitem__
    elif isinstance(settings, type):
        get, put = vars(settings).get, lambda name, value: setattr(settings, name, value)
    else:
        msg = f"hold({type(settings).__name__}): give arq's WorkerSettings, a class or a dict"
        raise TypeError(msg)
    held = _Held(own(service), _plain(get("on_startup")), _plain(get("on_shutdown")))
    put("on_startup", _static(settings, held.startup))
    put("on_shutdown", _static(settings, held.shutdown))
    put("handle_signals", False)
    return settings


def _plain(hook: Any) -> Any:
    return hook.__func__ if isinstance(hook, staticmethod) else hook


def _static(settings: object, hook: Any) -> Any:
    return staticmethod(hook) if isinstance(settings, type) else hook


class _Held:
    """A worker's start and end, around the user's own."""

    def __init__(self, service: Any, startup: Hook | None, shutdown: Hook | None) -> None:
        self._service = service
        self._startup = startup
        self._shutdown = shutdown
        self._end: asyncio.Task[None] | None = None

    async def startup(self, ctx: dict[Any, Any]) -> None:
        """Arm, take the worker in hand, and say that it is ready."""
        worker = _running_worker()
        if worker.on_stop is None:  # else it is `arq --watch`
            self._service.arm()
            self._service.keepers[self] = True  # the main thread ends by itself, when arq has closed everything
            self._end = asyncio.create_task(self._end_with_the_drain(worker), name="requiem: the worker's end")
            _Jobs(worker, self._service).attach()
        if self._startup is not None:
            await self._startup(ctx)
        if self._end is not None:
            self._service.ready()

    async def shutdown(self, ctx: dict[Any, Any]) -> None:
        """Wait for what else is in flight, then let the user's own shutdown run."""
        if self._end is not None:
            self._service.begin("the worker ends")
            await latched(self._service.engine.stopped)
        if self._shutdown is not None:
            await self._shutdown(ctx)

    async def _end_with_the_drain(self, worker: Any) -> None:
        await latched(self._service.engine.begun)
        worker.allow_pick_jobs = False
        await latched(self._service.engine.stopped)
        worker.main_task.cancel()


def _running_worker() -> Any:
    """Return the worker whose `main` runs here: its hooks are given nothing that leads to it."""
    task: Any = asyncio.current_task()
    worker = inspect.getcoroutinelocals(task.get_coro()).get("self")
    if not hasattr(worker, "start_jobs") or not hasattr(worker, "run_job"):
        msg = "hold(WorkerSettings): on_startup was not called by arq's Worker.main; nothing can be held"
        raise RuntimeError(msg)
    return worker


class _Jobs:
    """The jobs of one worker."""

    def __init__(self, worker: Any, service: Any) -> None:
        self._worker = worker
        self._service = service
        self._start = worker.start_jobs
        self._run = worker.run_job

    def attach(self) -> None:
        self._worker.start_jobs = self._start_jobs
        self._worker.run_job = self._run_job

    async def _start_jobs(self, job_ids: list[bytes]) -> None:
        """Take jobs one by one, each as a worker's loop takes them: held from before, and not once the drain has begun."""
        for job_id in job_ids:
            if self._service.draining() or self._worker.job_counter >= self._worker.max_jobs:
                return
            try:
                async with self._service.open("taking the next job"):
                    await self._start([job_id])
            except DrainingError:  # stopped between the question and the entry
                return

    def _run_job(self, job_id: str, score: int) -> Coroutine[Any, Any, None]:
        """Hold from now, not from the first step of the task that is made of it."""
        entered = self._service.open(_Name(self._worker, job_id))
        entered.__enter__()

        async def run() -> None:
            try:
                await self._run(job_id, score)
            finally:
                entered.__exit__(None, None, None)

        return run()


class _Name:
    """A job's label: its function's name, once that is known, and its id."""

    def __init__(self, worker: Any, job_id: str) -> None:
        self._worker = worker
        self._job_id = job_id

    def __str__(self) -> str:
        task = self._worker.job_tasks.get(self._job_id)
        return self._job_id if task is None else f"{task.get_coro().__qualname__} {self._job_id}"
