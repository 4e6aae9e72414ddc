"""Keeps a number of workers: replaces the dead, exchanges all at a reload, recycles the tired. In the engine's loop."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from typing import Final

from requiem_systemd import report
from requiem_systemd.cluster import policy
from requiem_systemd.cluster.policy import ROLLS, Phase, Plan, Roll, Step, Turn
from requiem_systemd.cluster.primary import Primary
from requiem_systemd.cluster.worker import Worker
from requiem_systemd.errors import RequiemError
from requiem_systemd.protocol import duration
from requiem_systemd.tally import verdict

LOG: Final = logging.getLogger("requiem_systemd")
STARTING: Final = frozenset((Phase.FORKED, Phase.ONLINE))
# A roll is over when the old accept no more connections. That takes milliseconds; handlers of their `begin`, and lame ducks, take longer.
CLOSED_WITHIN: Final = 1.0


class Staff:
    """The workers of a Cluster. `failed` is called, once, with the reason to give up for."""

    def __init__(self, primary: Primary, plan: Plan, failed: Callable[[str], object]) -> None:
        self.plan = plan
        self.serving: list[Worker] = []  # those that count, ready or on their way
        self.new: list[Worker] = []  # to take their places
        self.roll: Roll = Roll.RESTING
        self._primary = primary
        self._failed = failed
        self._since: dict[Worker, float] = {}  # started; from READY on: ready
        self._retire: dict[Worker, float] = {}
        self._renewed: Worker | None = None
        self._failures = 0
        self._respawn_at = 0.0
        self._recycle_at = 0.0
        self._up = False
        self._reason = ""
        self._waiters: list[Callable[[str], object]] = []
        self._closing: list[Worker] = []  # the old that accept yet, after a roll
        self._rolled: list[Callable[[str], object]] = []  # waiters that hear of its success then
        self._steps: dict[Step, Callable[[], object]] = {
            Step.START_ONE: lambda: self._start_new(1),
            Step.START_OTHERS: lambda: self._start_new(self.plan.workers),
            Step.EXCHANGE_ALL: self._exchange_all,
            Step.EXCHANGE_ONE: self._exchange_one,
            Step.DISMISS_NEW: self._dismiss_new,
            Step.ANSWER: self._answer,
            Step.POSTPONE: self._postpone,
        }

    # -- its course ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start them all."""
        self._primary.wanted = self.plan.workers
        self._primary.watcher = self
        self._primary.service.engine.starting(f"{self.plan.workers} workers")
        self.look()

    def reload(self, waiter: Callable[[str], object]) -> None:
        """Exchange all; `waiter` is told how it ended: "" for well, else the reason."""
        self._waiters.append(waiter)
        self._reason = report.NO_RELOAD if self.roll is Roll.OVER else ""
        self._turn(Turn.ROLL)
        self.look()

    def look(self) -> None:
        """Do what is due, and set the alarm for what is next."""
        if self.roll is Roll.OVER:
            return
        now = self._primary.loop.clock.now()
        for worker in [*self.serving, *self.new]:
            if self._is_coming(worker) and now >= self._since[worker] + self.plan.start_timeout:
                self._too_late(worker)
        if now >= self._respawn_at and len(self.serving) < self.plan.workers:
            self._respawn(now)
        if self.roll is Roll.RESTING and self._up and now >= self._recycle_at:
            self._renewed = next((worker for worker in self.serving if self._is_due(worker, now)), None)
            if self._renewed is not None:
                self._turn(Turn.RECYCLE)
        self._set_alarm(now)

    # -- what workers do: primary.Watcher ------------------------------------------------------------------------------

    def changed(self, worker: Worker) -> None:
        """See whether it is ready, or leaves unasked: what was in service is replaced before it has ended."""
        if worker.phase is Phase.LISTENING and worker not in self._retire:
            self._ready(worker)
        elif worker.phase is Phase.LEAVING and not worker.exited_after_disconnect and worker in self._retire:
            self._lost(worker, "drains unasked")
        self._look_at_old()

    def tired(self, worker: Worker) -> None:
        """Have it recycled, in its turn."""
        self._retire[worker] = -math.inf
        self.look()

    def ended(self, worker: Worker) -> None:
        """See who was lost."""
        self._look_at_old()
        self._lost(worker, worker.how())
        self._since.pop(worker, None)
        self._retire.pop(worker, None)

    def drain(self) -> None:
        """Do nothing more: the primary tells them all to drain."""
        self._tell_rolled()
        self._reason = report.NO_RELOAD
        self._turn(Turn.DRAIN)
        self._primary.loop.cancel(self.look)

    def _ready(self, worker: Worker) -> None:
        now = self._primary.loop.clock.now()
        self._since[worker] = now
        age = self.plan.max_age
        self._retire[worker] = math.inf if age is None else now + policy.spread(age, self.plan.jitter, random.random())  # noqa: S311 - no secret
        if not self._up and sum(one.phase is Phase.LISTENING for one in self.serving) == self.plan.workers:
            self._up = True
            engine = self._primary.service.engine
            engine.started(f"{self.plan.workers} workers")
            self._primary.show()
            engine.ready("")
        if worker in self.new and all(one.phase is Phase.LISTENING for one in self.new):
            self._turn(Turn.UP)
        self.look()

    def _lost(self, worker: Worker, how: str) -> None:
        if self.roll is Roll.OVER:
            return
        if worker in self.new:
            self.new.remove(worker)
            early = "" if worker in self._retire or worker.phase is not Phase.DEAD else " before it was ready"
            self._fail(f"worker {worker.id} {how}{early}")
        elif worker in self.serving:
            self._replace(worker, how)
        self.look()

    def _replace(self, worker: Worker, how: str) -> None:
        """Take it off the staff, and see when another may be started."""
        now = self._primary.loop.clock.now()
        self.serving.remove(worker)
        served = now - self._since.get(worker, now) if worker in self._retire else None
        self._failures = policy.streak(self._failures, served)
        others = [now - self._since[one] for one in self.serving if one in self._retire]
        if policy.is_loop(self._failures, self.plan.workers, self.plan.max_crashes, others):
            self._give_up(f"crash loop: {self._failures} workers in a row did not last, the last one {how}")
            return
        pause = policy.pause(self._failures, self.plan.workers)
        self._respawn_at = now + pause
        LOG.warning("worker %d %s: another is started%s", worker.id, how, f" in {pause:.1f} s" if pause else "")

    def _too_late(self, worker: Worker) -> None:
        how = f"was not ready within {duration(self.plan.start_timeout)}"
        self._primary.dismiss(worker, how)
        self._lost(worker, how)

    # -- one worker for another ----------------------------------------------------------------------------------------

    def _turn(self, turn: Turn) -> None:
        self.roll, steps = ROLLS.get((self.roll, turn), (self.roll, ()))
        for step in steps:
            self._steps[step]()

    def _fail(self, reason: str) -> None:
        self._reason = reason
        self._turn(Turn.FAILED)

    def _start_new(self, count: int) -> None:
        while len(self.new) < count:
            worker = self._fork()
            if worker is None:
                self._fail(self._reason)
                return
            self.new.append(worker)
        if all(worker.phase is Phase.LISTENING for worker in self.new):  # there were no others
            self._turn(Turn.UP)

    def _exchange_all(self) -> None:
        old, self.serving, self.new = self.serving, self.new, []
        self._failures = 0
        self._closing += old
        for worker in old:
            self._primary.dismiss(worker, "rolled")

    def _exchange_one(self) -> None:
        old, self._renewed = self._renewed, None
        new, self.new = self.new, []
        if old not in self.serving:  # it has died meanwhile: the new one is its replacement, or one too many
            spare = len(self.serving) + len(new) - self.plan.workers
            old = next((one for one in self.serving if one.phase in STARTING), None) if spare > 0 else None
        self.serving += new
        if old is not None:
            self.serving.remove(old)
            self._primary.dismiss(old, "recycled")

    def _dismiss_new(self) -> None:
        new, self.new = self.new, []
        for worker in new:
            self._primary.dismiss(worker, "the roll failed")

    def _answer(self) -> None:
        waiters, self._waiters = self._waiters, []
        self._primary.service.engine.tally.rolls[verdict(self._reason)] += 1
        self._primary.note = f"reload failed: {self._reason}" if self._reason and self.roll is not Roll.OVER else ""
        if self._reason:
            for waiter in waiters:
                waiter(self._reason)
            return
        self._rolled += waiters
        loop = self._primary.loop
        loop.alarm(self._tell_rolled, loop.clock.now() + CLOSED_WITHIN)
        self._look_at_old()

    def _look_at_old(self) -> None:
        """See whether the old accept no more."""
        self._closing = [worker for worker in self._closing if not worker.closed and worker.phase is not Phase.DEAD]
        if not self._closing:
            self._tell_rolled()

    def _tell_rolled(self) -> None:
        self._primary.loop.cancel(self._tell_rolled)
        self._closing = []
        waiters, self._rolled = self._rolled, []
        for waiter in waiters:
            waiter("")

    def _postpone(self) -> None:
        LOG.warning("a worker cannot be recycled, it serves on: %s", self._reason)
        self._recycle_at = self._primary.loop.clock.now() + policy.RECYCLE_AGAIN

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _fork(self) -> Worker | None:
        try:
            worker = self._primary.fork()
        except RequiemError as error:
            self._reason = str(error)
            return None
        self._since[worker] = self._primary.loop.clock.now()
        return worker

    def _respawn(self, now: float) -> None:
        while len(self.serving) < self.plan.workers:
            worker = self._fork()
            if worker is None:
                LOG.error("%s", self._reason)
                self._failures += self.plan.workers
                if policy.is_loop(self._failures, self.plan.workers, self.plan.max_crashes, ()):
                    self._give_up(self._reason)
                    return
                self._respawn_at = now + max(policy.PAUSE, policy.pause(self._failures, self.plan.workers))
                return
            self.serving.append(worker)

    def _is_coming(self, worker: Worker) -> bool:
        """Say whether it was not ready yet; one that fails goes by a drain, and its exit status says more than that."""
        return worker not in self._retire

    def _is_due(self, worker: Worker, now: float) -> bool:
        return worker.phase is Phase.LISTENING and now >= self._retire.get(worker, math.inf)

    def _give_up(self, reason: str) -> None:
        LOG.error("%s: the service ends", reason)
        self._failed(reason)

    def _set_alarm(self, now: float) -> None:
        times = [self._since[worker] + self.plan.start_timeout for worker in [*self.serving, *self.new] if self._is_coming(worker)]
        if len(self.serving) < self.plan.workers:
            times.append(max(now, self._respawn_at))
        if self.roll is Roll.RESTING:
            times += [max(time, self._recycle_at) for worker, time in self._retire.items() if worker in self.serving]
        when = min(times, default=math.inf)
        if self.roll is not Roll.OVER and when < math.inf:
            self._primary.loop.alarm(self.look, when)
        else:
            self._primary.loop.cancel(self.look)
