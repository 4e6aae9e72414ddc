"""Pools of threads and processes: what is given to them holds the stop, and their processes outlive a signal to the whole group."""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import logging
import multiprocessing.pool
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, TypeVar

from requiem_systemd import journal
from requiem_systemd.adapters.shield import Shielded, context
from requiem_systemd.joins import qualified
from requiem_systemd.slot import own
from requiem_systemd.tracker import Tracker

__all__ = ["context", "shield", "track_pool"]

LOG: Final = logging.getLogger("requiem_systemd")
P = TypeVar("P")
# multiprocessing's pools with jobs that ended in the drain. One that its owner has dropped would be ended by its own helper thread, when its last
# job has ended, while the interpreter ends, which stops that thread halfway: "leaked semaphore objects". So it is dropped in the main thread.
_KEPT: Final[set[Any]] = set()
atexit.register(_KEPT.clear)


def track_pool(pool: P, *, drain_timeout: float | None = None, service: Any = None) -> P:
    """Have everything that is given to a pool hold the stop until it has run, from now on; returns the pool.

    For `concurrent.futures` executors of threads and processes, and for `multiprocessing` pools. Call it before the first job: the
    processes of an executor are then shielded from signals to the whole group; those of a `multiprocessing.Pool` run already, so make
    it by `context().Pool(…)`. During the drain jobs may give jobs to the pool, and the end of a `with` block around a `multiprocessing`
    pool waits for its jobs instead of killing them. Raises TypeError for what is no pool.
    """
    host = own(service)

    def tracking(label: str) -> Tracker:
        tracker: Tracker = host.create_tracker(label, drain_timeout=drain_timeout)
        tracker._entry().owner = None  # noqa: SLF001 - it runs anywhere but in the thread that gave it to the pool
        return tracker

    if isinstance(pool, concurrent.futures.Executor):
        if isinstance(pool, concurrent.futures.ProcessPoolExecutor):
            shield(pool, host)
        _track_executor(pool, tracking)
    elif isinstance(pool, multiprocessing.pool.Pool):
        _name_unshielded(pool)
        pool.__class__ = type(type(pool).__name__, (_Held, type(pool)), {"tracking": staticmethod(tracking), "service": host})
    else:
        msg = f"track_pool({type(pool).__name__}): give a concurrent.futures.Executor or a multiprocessing.Pool"
        raise TypeError(msg)
    return pool


# -- concurrent.futures ------------------------------------------------------------------------------------------------


def _track_executor(pool: Any, tracking: Callable[[str], Tracker]) -> None:
    submit = pool.submit

    def tracked(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        tracker = tracking(_label(function))  # before it can begin: once stopped nothing does
        try:
            future: concurrent.futures.Future[Any] = submit(function, *args, **kwargs)
        except BaseException:
            tracker.done()
            raise
        _done_behind_callbacks(future, tracker)
        return future

    pool.submit = tracked


def _done_behind_callbacks(future: Any, tracker: Tracker) -> None:
    """Release a job when its callbacks have run: one of them may give the pool the next job, which could begin no more once we have stopped."""
    invoke = future._invoke_callbacks  # noqa: SLF001 - a callback of our own would come before all that are added later

    def last() -> None:
        try:
            invoke()
        finally:
            tracker.done()

    future._invoke_callbacks = last  # noqa: SLF001
    if future.done():  # perhaps before that
        tracker.done()


def _label(function: Any) -> str:
    """Name a job by its function, also where a pool has wrapped it for a chunk of a `map`."""
    while isinstance(function, functools.partial):
        chunk = getattr(function.func, "__name__", "") == "_process_chunk" and function.args
        function = function.args[0] if chunk else function.func
    return qualified(function)


def shield(pool: Any, service: Any) -> None:
    """Have an executor of processes, which has none before its first job, make shielded ones, and hold the interpreter's end before it."""
    service.outlast()
    service.on("dead", _end_abandoned(pool))
    inner: Any = getattr(pool, "_mp_context", None)
    made: Any = getattr(inner, "Process", None)
    if isinstance(made, type) and issubclass(made, Shielded):
        return
    if inner is None or getattr(pool, "_processes", None):
        LOG.warning(
            "track_pool: this executor has begun to work: a Ctrl-C, or a SIGTERM to its whole group, ends its processes; track it before its "
            "first job, or make it with mp_context=requiem_systemd.adapters.pools.context()",
            extra=journal.record("mistake"),
        )
        return
    pool._mp_context = context(inner.get_start_method())  # noqa: SLF001 - an argument of its constructor, which is over


def _end_abandoned(pool: Any) -> Callable[[int], None]:
    """Make what ends an executor's processes when their jobs were abandoned: the interpreter's end would wait for them."""
    weak = weakref.ref(pool)

    def end(status: int) -> None:
        processes: Any = getattr(weak(), "_processes", None)
        for worker in list(processes.values()) if status and processes else ():
            worker.kill()

    return end


# -- multiprocessing ---------------------------------------------------------------------------------------------------


def _name_unshielded(pool: Any) -> None:
    workers = getattr(pool, "_pool", ())
    if any(not isinstance(worker, Shielded) and hasattr(worker, "terminate") for worker in workers):
        LOG.warning(
            "track_pool: a Ctrl-C, or a SIGTERM to the whole group, ends the processes of this multiprocessing.Pool; make it with "
            "requiem_systemd.adapters.pools.context().Pool(…)",
            extra=journal.record("mistake"),
        )


class _Held(multiprocessing.pool.Pool):
    """A pool, of processes or threads, whose jobs are trackers. A job's end is seen by its callbacks, the one way there is."""

    tracking: Callable[[str], Tracker]
    service: Any

    def apply_async(
        self, func: Any, args: Any = (), kwds: Any = None, callback: Any = None, error_callback: Any = None
    ) -> Any:
        """Run one job."""
        return self._begun(super().apply_async, func, callback, error_callback, args, kwds or {})

    def map_async(
        self, func: Any, iterable: Any, chunksize: int | None = None, callback: Any = None, error_callback: Any = None
    ) -> Any:
        """Run a job for each item."""
        return self._begun(super().map_async, func, callback, error_callback, iterable, chunksize)

    def starmap_async(
        self, func: Any, iterable: Any, chunksize: int | None = None, callback: Any = None, error_callback: Any = None
    ) -> Any:
        """Run a job for each tuple of arguments."""
        return self._begun(super().starmap_async, func, callback, error_callback, iterable, chunksize)

    def map(self, func: Any, iterable: Any, chunksize: int | None = None) -> list[Any]:
        """Run a job for each item, and wait."""
        results: list[Any] = self.map_async(func, iterable, chunksize).get()
        return results

    def starmap(self, func: Any, iterable: Any, chunksize: int | None = None) -> list[Any]:
        """Run a job for each tuple of arguments, and wait."""
        results: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return results

    def imap(self, func: Any, iterable: Iterable[Any], chunksize: int | None = 1) -> Any:
        """Run a job for each item, and give the results one by one; they hold the stop until the last was taken, or the rest dropped."""
        return _Results(super().imap(func, iterable, chunksize), self.tracking(_label(func)))

    def imap_unordered(self, func: Any, iterable: Iterable[Any], chunksize: int | None = 1) -> Any:
        """Do the same in the order in which they come."""
        return _Results(super().imap_unordered(func, iterable, chunksize), self.tracking(_label(func)))

    def _begun(self, begin: Callable[..., Any], func: Any, callback: Any, error_callback: Any, *args: Any) -> Any:
        tracker = self.tracking(_label(func))
        running: Any = vars(self).setdefault("_requiem_running", {})
        running[id(tracker)] = tracker
        weak, draining = weakref.ref(self), self.service.draining

        def ended(then: Any) -> Callable[[Any], None]:
            def callback(value: Any) -> None:
                try:
                    if then is not None:
                        then(value)
                finally:
                    if draining():
                        _KEPT.add(weak())
                    running.pop(id(tracker), None)
                    tracker.done()

            return callback

        try:
            result = begin(func, *args, callback=ended(callback), error_callback=ended(error_callback))
        except BaseException:
            ended(None)(None)
            raise
        if result.ready():  # of nothing: no callback is called
            ended(None)(None)
        return result

    def terminate(self) -> None:
        """Kill what runs, as ever; it then holds nothing."""
        super().terminate()
        running: Any = vars(self).get("_requiem_running", {})
        for tracker in list(running.values()):
            tracker.done()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.service.draining() and kind is None:  # a loop that has ended because of the drain
            self.close()
            self.join()
        super().__exit__(kind, error, trace)


class _Results:
    """The results of an `imap`."""

    def __init__(self, results: Any, tracker: Tracker) -> None:
        self._results = results
        self._tracker = tracker

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        try:
            return next(self._results) if timeout is None else self._results.next(timeout)
        except StopIteration:
            self._tracker.done()
            raise

    def __del__(self) -> None:
        self._tracker.done()
