"""The engine: acts by the table, and extends the manager's timeout while the ledger is not empty.

Everything here runs in the loop's thread, apart from the few calls that say otherwise. Each action of `lifecycle` is one method,
looked up in `_actions`. Times are the clock's; the manager's timeout is extended by 30 s every 10 s.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from requiem_systemd import journal, report
from requiem_systemd.errors import ReloadError
from requiem_systemd.gate import Gate, name_of
from requiem_systemd.guard import Guard, folder_of
from requiem_systemd.hooks import Hooks
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.latch import Latch
from requiem_systemd.ledger import HOOK, JOB, LISTENER, Entry, Ledger, More, Record
from requiem_systemd.lifecycle import Action, Event, State, step
from requiem_systemd.doors import Doors
from requiem_systemd.loop import Clock, Loop
from requiem_systemd.notify import Notifier
from requiem_systemd.options import Options
from requiem_systemd.protocol import Environment, clean, duration, usec
from requiem_systemd.stacks import describe, place, stack, task_of

LOG: Final = logging.getLogger("requiem_systemd")
EXTENSION: Final = 30.0
EXTEND_EVERY: Final = 10.0
SHOW_EVERY: Final = 1.0
READY_WITHIN: Final = 10.0
# A second Ctrl-C within this is the same Ctrl-C: a terminal sends it to the whole group, and a parent may pass it on.
SAME_INTERRUPT: Final = 1.0
# How long a framework's own handler, called when the ledger was empty, has to end the main thread by itself.
CHAINED_GRACE: Final = 1.0
LONG_DRAIN: Final = (60.0, 300.0, 900.0)
EX_TEMPFAIL: Final = 75
# Of a drain that abandons thousands, so many get a record of their own: the journal limits a service's rate.
RECORDS_MAX: Final = 20

_CHANGING: Final = frozenset((State.STARTING, State.START_RELOAD_QUEUED, State.RELOADING, State.RELOAD_QUEUED, State.DRAINING))


class Engine:
    """One service's life, from being armed to the exit.

    `main_is_free` says whether the main thread may be made to leave: it is not waiting, leaving or holding a tracker.
    """

    def __init__(self, ledger: Ledger, hooks: Hooks, doors: Doors, clock: Clock) -> None:
        self.ledger = ledger
        self.hooks = hooks
        self.doors = doors
        self.options = Options()
        self.environment = Environment()
        self.notifier = Notifier(None)
        self.state = State.RUNNING
        self.reason = ""
        self.status_code = 0
        self.abandoned: tuple[JobInfo, ...] = ()
        self.abandoned_owners: set[object] = set()
        self.forced = False
        self.begun = Latch()
        self.stopped = Latch()
        self.gate: Gate | None = None
        self.main_is_free: Callable[..., bool] = lambda *, forced: forced
        self.loop = Loop(clock, self._on_byte, self._each_turn)
        self._guard: Guard | None = None
        self._control: Any = None  # a control.Control, loaded where the unit has a place for its socket
        self._clock = clock
        self._starting: list[str] = []
        self._status = ""
        self._shown = ""
        self._began = 0.0
        self._stopped_at = 0.0
        self._interrupted: float | None = None
        self._deferred: list[int] = []
        self._lame: list[Entry] = []
        self._lame_hold: Record | None = None
        self._reload_waiters: list[Callable[[str], object]] = []
        self._reloading: list[Callable[[str], object]] = []
        self._reload_error = ""
        self._health_running = False
        self._expelling = False
        self._limits_at = float("inf")
        self._actions: dict[Action, Callable[[], object]] = {
            Action.SAY_READY: self._say_ready,
            Action.SAY_RELOADING: self._say_reloading,
            Action.RUN_RELOAD: self._run_reload,
            Action.SAY_STOPPING: self._say_stopping,
            Action.RUN_DRAIN: self._run_drain,
            Action.RELEASE: self._release,
            Action.ABANDON: self._abandon,
        }
        self._signals: dict[str, Callable[[str], object]] = {
            "SIGTERM": self.drain,
            "SIGINT": self._interrupt,
            "SIGHUP": self._hangup,
            "SIGQUIT": self._quit,
        }

    # -- beginning and ending ------------------------------------------------------------------------------------------

    def arm(self, options: Options, environment: Environment) -> None:
        """Take over what the manager said; before or after the start, any thread."""
        self.options = options
        self.environment = environment
        self.notifier = Notifier(environment.notify_socket)
        if self.notifier and self.state is State.RUNNING:
            self.state = State.STARTING
        self._name_mistakes()
        self.loop.post(self._armed)

    def start(self) -> None:
        """Begin to turn; any thread."""
        self.ledger.wake = self.loop.wake
        self.loop.start()

    def _armed(self) -> None:
        self._open_guard()
        if self.environment.runtime_directory is not None:
            from requiem_systemd import control  # noqa: PLC0415 - it brings json, which the bare import need not pay for

            self._control = control.open_for(self.environment, self.loop, self.reload)
        if self.notifier and self.state is State.STARTING:
            self._watch()
            self.loop.alarm(self._missing_ready, self._clock.now() + READY_WITHIN)
        if self.environment.watchdog is not None and self.notifier:
            self._feed()

    def _name_mistakes(self) -> None:
        for problem in self.environment.problems:
            self.mistake(problem)
        main = self.environment.exec_pid
        if self.notifier and main is not None and main != os.getpid():
            self.mistake(
                f"process {main} is the service's main process, this is {os.getpid()}: under NotifyAccess=main the manager drops what "
                "it is told from here; start Python itself in ExecStart=, or put exec before it in the wrapper"
            )
        if self.notifier and self.environment.container and not self._is_systemd():
            self.mistake(
                "a container runtime's notify socket forwards READY and WATCHDOG only: no stop is extended by it; raise the runtime's "
                "own stop timeout (podman --stop-timeout, docker --stop-timeout, terminationGracePeriodSeconds) above the longest drain"
            )

    def close(self) -> None:
        """End the loop and give back what it took; any thread but the loop's."""
        self.loop.stop()
        self.begun.close()
        self.notifier.close()
        if self._control is not None:
            self._control.close()
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def close_child(self) -> None:
        """In a fork's child: no loop runs here, only its descriptors are left."""
        self.loop.close()
        self.begun.close()
        self.notifier.close()
        if self._control is not None:
            self._control.close_child()
        if self._guard is not None:
            self._guard.close()

    def event(self, event: Event) -> None:
        """Take one step of the table."""
        before = self.state
        self.state, actions = step(before, event)
        if self.state is not before:
            LOG.info(
                "%s -> %s: %s, %d in flight",
                before.value,
                self.state.value,
                self.reason or event.value,
                len(self.ledger.live),
                extra=journal.record("state", state=self.state.name, previous=before.name, in_flight=len(self.ledger.live)),
            )
        for action in actions:
            self._actions[action]()

    def mistake(self, text: str) -> None:
        """Name a mistake, once, so that somebody mends it before it costs a job."""
        LOG.warning("%s", text, extra=journal.record("mistake"))

    # -- signals -------------------------------------------------------------------------------------------------------

    def _on_byte(self, number: int) -> None:
        act = self._signals.get(name_of(number))
        if act is not None and self.gate is not None and self.gate.holds(number):
            if not self.gate.at_once:
                self._deferred.append(number)
            else:
                self.gate.forward(number)
            act(name_of(number))
        elif self.gate is not None:
            self.gate.forward(number)

    def drain(self, reason: str) -> None:
        """Begin the drain. Again: nothing."""
        if self.ledger.began is None:
            self.reason = clean(reason, 200)
        self.event(Event.DRAIN)

    def _interrupt(self, reason: str) -> None:
        now = self._clock.now()
        if self._interrupted is None:
            self._interrupted = now
            self.drain(reason)
        elif now - self._interrupted >= SAME_INTERRUPT:
            self._quit(f"a second {reason}")

    def _hangup(self, reason: str) -> None:
        if self.notifier or self.hooks.has("reload"):
            self.event(Event.RELOAD)
        else:  # nobody to reload for: it means what it says, the terminal is gone
            self.drain(reason)

    def _quit(self, reason: str) -> None:
        LOG.warning("%s: abandoning what is in flight: %s", reason, report.listing(self.jobs()) or "nothing")
        self.forced = True
        if self.state is State.STOPPED:
            self._expel()
            return
        self.drain(reason)
        self.event(Event.EXPIRED)

    # -- ready and reload ----------------------------------------------------------------------------------------------

    def ready(self, status: str) -> None:
        """The service is up."""
        self._status = status or self._status
        self.loop.cancel(self._missing_ready)
        if self.state is State.RUNNING and status:
            self.notifier.tell(STATUS=status)
        self.event(Event.READY)

    def set_status(self, text: str) -> None:
        """Show a text; while draining behind the drain's own line."""
        self._status = text
        if self.state is State.DRAINING:
            self._show()
        elif self.state is not State.STOPPED and self.notifier:
            self.notifier.tell(STATUS=text)

    def starting(self, label: str) -> None:
        """A slow part of the start begins: extend for it."""
        self._starting.append(label)
        if self.state in (State.STARTING, State.START_RELOAD_QUEUED):
            self.notifier.tell(EXTEND_TIMEOUT_USEC=usec(EXTENSION), STATUS=f"Starting: {clean(label)}")
            self.loop.alarm(self._extend, self._clock.now() + EXTEND_EVERY)

    def started(self, label: str) -> None:
        """A slow part of the start has ended."""
        self._starting.remove(label)

    def reload(self, waiter: Callable[[str], object] | None = None) -> None:
        """Reload; `waiter` is told how it ended: "" for well, else the reason."""
        if waiter is not None:
            if self.state in (State.DRAINING, State.STOPPED):
                waiter(report.NO_RELOAD)
                return
            self._reload_waiters.append(waiter)
        self.event(Event.RELOAD)

    def _say_ready(self) -> None:
        self._settle()
        if self._reload_error:
            self.notifier.tell(READY=1, STATUS=f"Reload failed: {self._reload_error}")
        else:
            self.notifier.tell(READY=1, **({"STATUS": self._status} if self._status or self._shown else {}))
        self._shown = ""

    def _say_reloading(self) -> None:
        self._shown = "reloading"
        self._reload_error = ""
        # sd_notify(3): v253 and later match a reload by MONOTONIC_USEC, in the same datagram
        self.notifier.tell(
            RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, EXTEND_TIMEOUT_USEC=usec(EXTENSION), STATUS="Reloading"
        )
        self._watch()
        self.loop.alarm(self._extend, self._clock.now() + EXTEND_EVERY)

    def _run_reload(self) -> None:
        self._reloading, self._reload_waiters = self._reload_waiters, []

        def ended(errors: list[BaseException]) -> None:
            reason = clean("; ".join(map(_reason, errors)), 300)
            self.loop.post(lambda: self._reloaded(reason))

        self.hooks.emit("reload", (), ended)

    def _reloaded(self, reason: str) -> None:
        if reason:
            LOG.error("the reload failed, the old state is kept: %s", reason, extra=journal.record("reload-failed", reason=reason))
        waiters, self._reloading = self._reloading, []  # before the event, which may begin the next reload
        self._reload_error = reason
        self.event(Event.RELOADED)
        for waiter in waiters:
            waiter(reason)

    def _refuse_reloads(self) -> None:
        """The drain has cut in: nobody who waits for a reload, in work or queued, waits on."""
        waiters, self._reloading, self._reload_waiters = self._reloading + self._reload_waiters, [], []
        for waiter in waiters:
            waiter(report.NO_RELOAD)

    def _missing_ready(self) -> None:
        if self.state is State.STARTING and not self._starting:
            self.mistake(
                f"no ready() within {READY_WITHIN:.0f} s: under Type=notify the manager waits for it and ends the service at "
                "TimeoutStartSec=; call requiem_systemd.ready() when the service is up, or wrap a slow start in starting(label)"
            )

    # -- watchdog and guard --------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Feed the watchdog: at half its interval, by the health check while running, in any case while draining.

        A ping after the stop has begun arms the manager's watchdog again (252 to 262), so once begun it never ends.
        """
        interval = self.environment.watchdog or 0.0
        self.loop.alarm(self._feed, self._clock.now() + interval / 2)
        if self.options.health is None or self.state in (State.DRAINING, State.STOPPED):
            self.notifier.tell(WATCHDOG=1)
        elif not self._health_running:  # one that hangs feeds nothing: that is what the watchdog is for
            self._health_running = True
            threading.Thread(target=self._check_health, name="requiem-health", daemon=True).start()

    def _check_health(self) -> None:
        healthy, detail = False, "it returned something false"
        try:
            healthy = bool(self.options.health()) if self.options.health else True
        except Exception as error:  # noqa: BLE001 - user code: whatever it raises means "not healthy"
            detail = f"{type(error).__name__}: {error}"
        self.loop.post(lambda: self._checked(healthy, detail))

    def _checked(self, healthy: bool, detail: str) -> None:  # noqa: FBT001 - a result, told once
        self._health_running = False
        if healthy:
            self.notifier.tell(WATCHDOG=1)
        else:
            LOG.warning("the health check failed, the watchdog is not fed: %s", clean(detail))

    def _open_guard(self) -> None:
        folder = folder_of(self.environment.notify_socket)
        if folder is None:
            return
        try:
            self._guard = Guard(folder)
        except OSError as error:
            LOG.info("a daemon-reload in mid-drain cannot be seen: %s", error)
            return
        self.loop.reader(self._guard.fd, self._guarded)

    def _watch(self) -> None:
        if self._guard is None:
            return
        try:
            self._guard.watch()
        except OSError as error:
            LOG.info("a daemon-reload in mid-drain cannot be seen, TimeoutStopSec= must cover the longest drain: %s", error)
            self.loop.unreader(self._guard.fd)
            self._guard.close()
            self._guard = None

    def _guarded(self) -> None:
        if self._guard is not None and self._guard.reloading() and self.state is not State.RUNNING:
            self._extend()

    def _settle(self) -> None:
        """The state lasts: nothing is extended and nothing is watched."""
        self.loop.cancel(self._extend)
        if self._guard is not None:
            self._guard.unwatch()

    def _extend(self) -> None:
        starting = self.state in (State.STARTING, State.START_RELOAD_QUEUED)
        if self.state is State.RUNNING or (starting and not self._starting):
            return
        if self.state is State.STOPPED and self._clock.now() >= self._stopped_at + self.options.exit_timeout:
            return
        self.notifier.tell(EXTEND_TIMEOUT_USEC=usec(EXTENSION))
        self.loop.alarm(self._extend, self._clock.now() + EXTEND_EVERY)

    # -- the drain -----------------------------------------------------------------------------------------------------

    def jobs(self) -> tuple[JobInfo, ...]:
        """Show what is in flight, oldest first; any thread."""
        now = self.ledger.clock()
        return tuple(describe(entry, now - start, self.options.redact) for entry, start in self.ledger.entries())

    def _say_stopping(self) -> None:
        self.ledger.begin()
        self._began = self._clock.now()
        # One datagram: STOPPING=1 arms TimeoutStopSec, the extension in the same one is counted after it (systemd 252 to 262)
        self.notifier.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=usec(EXTENSION), STATUS=self._drain_line())
        self.begun.set()

    def _run_drain(self) -> None:
        self._refuse_reloads()
        now = self._clock.now()
        self.loop.alarm(self._extend, now + EXTEND_EVERY)
        self.loop.alarm(self._show, now + SHOW_EVERY)
        self.loop.alarm(self._warn, now + LONG_DRAIN[0])
        if self.options.drain_timeout is not None:
            self.loop.alarm(self._expire, now + self.options.drain_timeout)
        self._begin_lame_duck(now)
        opening = self._hold("begin", HOOK)
        self.hooks.emit("begin", (self.reason,), lambda _: self.loop.post(lambda: self._begin_handled(opening)))
        # A hung handler does not keep the doors open for ever; it holds the stop all the same.
        self.loop.alarm(lambda: self._begin_handled(opening), now + self.options.request_timeout)
        self._watch()
        self._check_limits()

    def _hold(self, name: str, kind: str) -> Record:
        record = Record(name, None)
        record.more = More(kind)
        self.ledger.enter(record)
        return record

    def _begin_handled(self, opening: Record) -> None:
        if self._lame_hold is None:
            self._close_doors()
        self.ledger.leave(opening)

    def _begin_lame_duck(self, now: float) -> None:
        duck = self.options.lame_duck
        on_terminal = not self.notifier and sys.stderr is not None and sys.stderr.isatty()
        if not duck or on_terminal:
            return
        if duck == "jobs":
            jobs = [entry for entry, _ in self.ledger.entries() if (entry.extra() or _PLAIN).kind == JOB]
            self._lame = jobs[::-1]
        else:
            self.loop.alarm(self._end_lame_duck, now + float(duck))
        self._lame_hold = self._hold("lame duck", HOOK)

    def _end_lame_duck(self) -> None:
        hold, self._lame_hold = self._lame_hold, None
        if hold is not None:
            self._close_doors()
            self.ledger.leave(hold)

    def _close_doors(self) -> None:
        for door in self.doors.close():
            record = self._hold(f"listener {door.label}", LISTENER)
            try:
                door.shut(lambda record=record: self.ledger.leave(record))
            except Exception:
                LOG.exception("%s could not be closed", record.name)
                self.ledger.leave(record)

    def _each_turn(self) -> None:
        if self.state is State.DRAINING:
            self._look()
        elif self._expelling:
            self._expel()

    def _look(self) -> None:
        """See what has ended: the drain, or a lame duck that waited for its jobs, or limits of late comers."""
        if self._lame_hold is not None and self.options.lame_duck == "jobs":
            while self._lame and self._lame[-1] not in self.ledger.live:
                self._lame.pop()
            if not self._lame:
                self._end_lame_duck()
        if self.ledger.limits_changed:
            self._check_limits()
        if not self.ledger.live and self.ledger.close():
            self.event(Event.IDLE)

    def _check_limits(self) -> None:
        self.ledger.limits_changed = False
        due = self.ledger.due(self.ledger.clock(), self.options.request_timeout)
        for entry in due.stalled:
            self._stalled(entry)
        for entry in due.released:
            self._let_go_of(entry)
        if due.abandoned:
            self._name_abandoned([self._info(entry) for entry in due.abandoned], [task_of(entry) for entry in due.abandoned])
            for entry in due.abandoned:
                self.ledger.give_up(entry)
                self.ledger.leave(entry)
        if due.deadline < float("inf"):
            self.loop.alarm(self._check_limits, due.deadline)

    def _info(self, entry: Entry) -> JobInfo:
        start = self.ledger.live.get(entry, self.ledger.clock())
        return describe(entry, self.ledger.clock() - start, self.options.redact)

    def _let_go_of(self, entry: Entry) -> None:
        info = self._info(entry)
        LOG.warning(
            "%s has held the drain for %s and is let go: %s",
            info.kind,
            duration(self.options.request_timeout),
            report.listing([info]),
            extra=journal.record("let-go", label=info.label, age_usec=usec(info.age), owner=info.owner, where=info.where),
        )
        self.ledger.give_up(entry)
        self.ledger.leave(entry)

    def _stalled(self, entry: Entry) -> None:
        info = self._info(entry)
        (entry.extra() or _PLAIN).stalled = True
        LOG.warning(
            "stalled, no heartbeat: %s, %s, at\n%s",
            report.listing([info]),
            info.owner,
            stack(task_of(entry)),
            extra=journal.record("stalled", label=info.label, age_usec=usec(info.age), owner=info.owner, where=info.where),
        )
        self.hooks.emit("stalled", (info,), lambda _: self.loop.wake())

    def _drain_line(self) -> str:
        now = self.ledger.clock()
        entries = self.ledger.entries()
        kinds = Counter((entry.extra() or _PLAIN).kind for entry, _ in entries)
        oldest = next((describe(entry, now - start, self.options.redact) for entry, start in entries if _is_job(entry)), None)
        if self.environment.container and not self._is_systemd():
            # podman and docker forward READY and WATCHDOG only: nothing extends their stop timeout
            return report.draining(self._clock.now() - self._began, kinds, oldest, 0, "the container runtime's stop timeout goes on")
        return report.draining(self._clock.now() - self._began, kinds, oldest, self.doors.waiting(), self._status)

    def _is_systemd(self) -> bool:
        return bool(self.environment.notify_socket and self.environment.notify_socket.endswith("/systemd/notify"))

    def _show(self) -> None:
        if self.state is not State.DRAINING:
            return
        self.loop.alarm(self._show, self._clock.now() + SHOW_EVERY)
        if self.notifier:
            line = self._drain_line()
            if line != self._shown:
                self._shown = line
                self.notifier.tell(STATUS=line)

    def _warn(self) -> None:
        if self.state is not State.DRAINING:
            return
        elapsed = self._clock.now() - self._began
        following = next((at for at in LONG_DRAIN if at > elapsed + 1), elapsed + LONG_DRAIN[-1])
        self.loop.alarm(self._warn, self._began + following)
        LOG.warning(
            "draining for %s: %s. To hurry it up: systemctl kill -s QUIT --kill-whom=main UNIT",
            duration(elapsed),
            report.listing(self.jobs()),
            extra=journal.record("draining-long", in_flight=len(self.ledger.live), elapsed_usec=usec(elapsed)),
        )

    def _expire(self) -> None:
        LOG.warning("drain_timeout=%s has passed", duration(self.options.drain_timeout or 0.0))
        self.event(Event.EXPIRED)

    def _name_abandoned(self, infos: list[JobInfo], owners: list[object]) -> None:
        self.abandoned += tuple(infos)
        self.abandoned_owners.update(owners)
        for number, (info, owner) in enumerate(zip(infos, owners, strict=True)):
            if number == RECORDS_MAX:
                LOG.warning("abandoned %d more", len(infos) - number, extra=journal.record("abandoned", count=len(infos) - number))
                return
            LOG.warning(
                "abandoned %s, %s, at\n%s",
                report.listing([info]),
                info.owner,
                stack(owner),
                extra=journal.record("abandoned", label=info.label, age_usec=usec(info.age), owner=info.owner, where=info.where),
            )

    # -- the way out ---------------------------------------------------------------------------------------------------

    def _abandon(self) -> None:
        held = [entry for entry, _ in self.ledger.entries() if _is_job(entry)]
        self._name_abandoned([self._info(entry) for entry in held], [task_of(entry) for entry in held])
        self.ledger.close(force=True)
        self._close_doors()
        self._release()

    def _release(self) -> None:
        self.status_code = EX_TEMPFAIL if self.abandoned else 0
        self._stopped_at = self._clock.now()
        for alarm in (self._show, self._warn, self._expire, self._check_limits):
            self.loop.cancel(alarm)
        self.loop.alarm(self._exit_tick, self._stopped_at + SHOW_EVERY)
        self.hooks.emit("dead", (self.status_code,), lambda _: self.loop.post(self._let_out))

    def _let_out(self) -> None:
        self.stopped.set()
        if self.gate is not None:
            for number in self._deferred:
                self.gate.forward(number)
            if self.gate.has_chained():
                self.gate.call_chained()
                self.loop.alarm(self._expel, self._clock.now() + CHAINED_GRACE)
                return
        self._expel()

    def _expel(self) -> None:
        """Make the main thread leave, when nothing speaks against it."""
        self._expelling = False
        if not self.options.exit or self.gate is None:
            return
        if self.main_is_free(forced=self.forced):
            if not self.gate.expel(self.status_code):
                self.mistake("the exit signal's handlers were replaced: the main thread is not told to leave")
        else:
            self._expelling = True

    def _exit_tick(self) -> None:
        elapsed = self._clock.now() - self._stopped_at
        if not self.options.exit:
            return
        if elapsed >= self.options.exit_timeout:
            self._exit_stuck(elapsed)
        self.loop.alarm(self._exit_tick, self._clock.now() + SHOW_EVERY)
        holder = _who_keeps_the_exit()
        name = "main thread" if holder is threading.main_thread() else f"thread {holder.name}"
        self.notifier.tell(STATUS=report.exiting(elapsed, name, place(holder.ident)))

    def _exit_stuck(self, elapsed: float) -> None:
        stacks = "\n".join(f"thread {thread.name}:\n{stack(thread.ident)}" for thread in threading.enumerate())
        LOG.error("the exit has taken %s: the process is ended\n%s", duration(elapsed), stacks, extra=journal.record("exit-stuck"))
        _flush()
        os._exit(EX_TEMPFAIL)


_PLAIN: Final = More()


def _reason(error: BaseException) -> str:
    """Say why a reload failed; a handler that raises ReloadError has said it all. The text is user code: `clean` survives it."""
    return clean(error) if isinstance(error, ReloadError) else f"{type(error).__name__}: {clean(error)}"


def _is_job(entry: Entry) -> bool:
    return (entry.extra() or _PLAIN).kind == JOB


def _who_keeps_the_exit() -> threading.Thread:
    """Return the thread that the exit waits for: the main thread, or the one it is joining."""
    main = threading.main_thread()
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not main]
    frame = sys._current_frames().get(main.ident or 0)  # noqa: SLF001 - the documented way to see other threads' frames
    joining = frame is not None and any(step.f_code.co_name in ("_shutdown", "join") for step, _ in traceback.walk_stack(frame))
    return others[0] if joining and others else main


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or none at all
            continue
