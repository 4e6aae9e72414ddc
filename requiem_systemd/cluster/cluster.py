"""`Cluster(target, workers=N).run()`: a service in several processes of one unit."""

from __future__ import annotations

import functools
import os
import queue
import random
import sys
from collections.abc import Callable
from typing import Any, Literal

from requiem_systemd.cluster import command
from requiem_systemd.cluster.policy import Plan, spread
from requiem_systemd.cluster.primary import Primary
from requiem_systemd.cluster.staff import Staff
from requiem_systemd.errors import AbandonedError, ReloadError, WorkerError
from requiem_systemd.ledger import REQUEST, More
from requiem_systemd.protocol import length
from requiem_systemd.service import Service
from requiem_systemd.tracker import Hold
from requiem_systemd.wayout import EX_TEMPFAIL


class Cluster:
    """Runs `target(service)` in `workers` processes ("auto": as many as there are CPUs for us), and keeps it running there.

    `target` is what also runs alone: it serves until the drain ends it, and says `service.ready()` when it is up. Listeners that it
    asks for (`listener(name, fallback=...)`) are bound once, for all.

    - A worker that dies is replaced, at once the first time, then after growing pauses. If each place has failed `max_crashes` times
      in a row and no worker lasts, the service ends, with a reason and a status other than 0.
    - Where the unit has WatchdogSec=, a worker that is silent for as long, or whose `health` check says no, is killed by SIGABRT (`python
      -X faulthandler` then says where it stood), and replaced.
    - A reload (SIGHUP, `requiem-systemd reload`) rolls them: new workers are started, and when each is ready the old ones drain, in
      the background. If one does not come up within `start_timeout`, the old ones stay, and the reload fails with the reason.
    - After `max_requests` requests or `max_age` seconds, less a random part of at most `jitter`, a worker is recycled: one at a time,
      the replacement first.

    Further options are those of `initialize`. Raises ValueError for numbers that make no sense.
    """

    def __init__(  # noqa: PLR0913 - each is one thing an operator may want
        self,
        target: Callable[[Service], object],
        *,
        workers: int | Literal["auto"] = "auto",
        max_requests: int | None = None,
        max_age: float | None = None,
        jitter: float = 0.1,
        start_timeout: float = 90.0,
        max_crashes: int = 8,
        primary: Primary | None = None,
        **options: Any,
    ) -> None:
        given: object = target  # callers without a type checker may give anything
        if not callable(given):
            msg = f"Cluster({type(target).__name__}): give a function that takes the service"
            raise TypeError(msg)
        if not 0.0 <= jitter <= 1.0:
            msg = f"jitter={jitter!r}: give a part from 0 to 1"
            raise ValueError(msg)
        self.target: Callable[[Service], object] = target
        self.max_requests: int | None = None if max_requests is None else _count("max_requests", max_requests)
        self.plan: Plan = Plan(
            _cpus() if workers == "auto" else _count("workers", workers),
            length("start_timeout", start_timeout),
            None if max_age is None else length("max_age", max_age),
            jitter,
            _count("max_crashes", max_crashes),
        )
        self.options: dict[str, Any] = options
        self._primary = primary
        self._failure = ""

    def run(self) -> None:
        """Run: in the primary, supervise until all is done; in a worker, run the target.

        In the primary it returns when the service has drained, raises SystemExit(75) if jobs were abandoned, and WorkerError in a crash
        loop, or where this program cannot be run again.
        """
        from requiem_systemd import cluster  # noqa: PLC0415 - its object for the process is made by then

        primary = self._primary or cluster.process
        service = primary.service
        service.arm(**self.options)
        if not primary.is_primary():
            if self.max_requests is not None:
                _count_requests(service, max(1, round(spread(self.max_requests, self.plan.jitter, random.random()))))  # noqa: S311 - no secret
            self.target(service)
            return
        self._supervise(primary)

    def _supervise(self, primary: Primary) -> None:
        command.again(sys.executable, sys.orig_argv)  # now, and not as a crash loop
        service = primary.service
        setting = service.engine.setting
        if setting.options.drain_timeout is not None:  # the workers' own; this process lasts until they have ended
            setting.options = setting.options._replace(drain_timeout=setting.options.drain_timeout + setting.options.exit_timeout)
        setting.options = setting.options._replace(health=None)  # it is asked where the work is, in each worker
        staff = Staff(primary, self.plan, functools.partial(self._give_up, service))

        def roll() -> None:
            _roll(service, staff)

        service.on("reload", roll)
        service.engine.loop.call(staff.begin)
        try:
            service.wait()
        except AbandonedError as error:
            if self._failure:
                raise WorkerError(self._failure) from error
            raise SystemExit(EX_TEMPFAIL) from error
        if self._failure:
            raise WorkerError(self._failure)

    def _give_up(self, service: Service, reason: str) -> None:
        self._failure = reason
        service.on("dead", lambda: service.engine.notifier.send({"STATUS": f"Failed: {reason}"}))
        service.begin(reason)


def _roll(service: Service, staff: Staff) -> None:
    """Roll, as a handler of `reload`."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    service.engine.loop.call(lambda: staff.reload(answers.put))
    reason = answers.get()
    if reason:
        raise ReloadError(reason)


def _count_requests(service: Service, most: int) -> None:
    """Have the primary hear when this worker has begun so many requests."""
    plain, count = service.open, 0

    def counting(name: object, more: More | None = None) -> Hold:
        nonlocal count
        if more is not None and more.kind == REQUEST:
            count += 1
            if count == most:
                service.engine.loop.post(lambda: service.engine.notifier.tell(X_REQUIEM_TIRED=1))
        return plain(name, more)

    service.open = counting  # type: ignore[method-assign] # only where it is counted does it cost anything


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name}={value!r}: give a whole number"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name}={value!r}: give 1 or more"
        raise ValueError(msg)
    return value


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
