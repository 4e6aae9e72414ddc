"""The engine: what happens to a service, and what is done about it, by the table of `lifecycle`.

Everything here runs in the loop's thread, apart from the calls that say otherwise. Each action of the table is one method,
looked up in `_actions`; each signal in `_signals`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from requiem_systemd import journal, report, unitfile
from requiem_systemd.chronicle import Chronicle
from requiem_systemd.doors import Doors
from requiem_systemd.drain import Drain
from requiem_systemd.errors import ReloadError
from requiem_systemd.extender import AGAIN, FIRST, Extender
from requiem_systemd.gate import Gate, name_of
from requiem_systemd.hooks import Hooks
from requiem_systemd.latch import Latch
from requiem_systemd.ledger import JOB, Ledger
from requiem_systemd.lifecycle import Action, Event, State, step
from requiem_systemd.limits import kind_of
from requiem_systemd.loop import Clock, Loop
from requiem_systemd.notify import Notifier
from requiem_systemd.options import Options
from requiem_systemd.protocol import Environment, clean
from requiem_systemd.setting import Setting
from requiem_systemd.standing import Standing, WorkerInfo, effects
from requiem_systemd.tally import Tally, verdict
from requiem_systemd.watchdog import Watchdog
from requiem_systemd.wayout import WayOut

LOG: Final = logging.getLogger("requiem_systemd")
READY_WITHIN: Final = 10.0
# How often a state that the manager could not be told is tried again: for a minute or so, then nobody is there.
TELL_TRIES: Final = 60
# A second Ctrl-C within this is the same Ctrl-C: a terminal sends it to the whole group, and a parent may pass it on.
SAME_INTERRUPT: Final = 1.0
# What only the main process may say: a worker that is replaced does not stop the service.
_MAIN_ONLY: Final = frozenset(("STOPPING", "RELOADING", "MONOTONIC_USEC"))
# What is wrong with a KillMode= other than mixed (systemd.kill(5)).
_KILLMODES: Final = {
    "control-group": "at a stop systemd itself signals the child processes, and the jobs that run in them",
    "process": "at the end of the main process its children are left behind, in no service's care",
    "none": "no process is ever told to stop",
}
_STARTING: Final = frozenset((State.STARTING, State.START_RELOAD_QUEUED))


class Engine:
    """One service's life, from its first breath to the exit."""

    def __init__(self, ledger: Ledger, hooks: Hooks, doors: Doors, clock: Clock) -> None:
        self.state: State = State.RUNNING
        self.loop: Loop = Loop(clock, self._on_byte, self._each_turn)
        self.setting: Setting = Setting(ledger, hooks, doors, self.loop)
        chronicle = Chronicle(self.setting, self.jobs)
        self.extender: Extender = Extender(self.setting, chronicle.extended)
        self.drain: Drain = Drain(self.setting, lambda: self.event(Event.IDLE), lambda: self.event(Event.EXPIRED), chronicle)
        self.wayout: WayOut = WayOut(self.setting, self.extender)
        self._watchdog = Watchdog(self.setting)
        self._reason = ""
        self._change: Callable[..., object] = dict  # logs the last change of state
        self._status = ""
        self._since = clock.now()
        self._starting: list[str] = []
        self._interrupted: float | None = None
        self._tries = TELL_TRIES
        self._modules: dict[str, Any] = {}
        self._control: Any = None  # a control.Control, loaded where the unit has a place for its socket
        self._account: Any = None  # an account.Account, likewise
        self.tally: Tally = Tally()
        self.crew: Callable[[], list[WorkerInfo]] = list  # a primary's workers
        self._channel: Any = None  # a channel.Upward, in a worker of a cluster
        self._reload_waiters: list[Callable[[str], object]] = []
        self._reloading: list[Callable[[str], object]] = []
        self._reload_error = ""
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
            "SIGTERM": self.begin,
            "SIGINT": self._interrupt,
            "SIGHUP": self._hangup,
            "SIGQUIT": self._quit,
        }

    @property
    def begun(self) -> Latch:
        """Set when the drain begins."""
        return self.drain.begun

    @property
    def stopped(self) -> Latch:
        """Set when all is done, `dead` handlers included."""
        return self.wayout.stopped

    @property
    def notifier(self) -> Notifier:
        """What speaks to the manager."""
        return self.setting.notifier

    # -- beginning and ending ------------------------------------------------------------------------------------------

    def arm(self, options: Options, environment: Environment, gate: Gate | None) -> None:
        """Take over what the manager said; before or after the start, any thread."""
        self.setting.options = options
        self.setting.environment = environment
        self.setting.notifier = Notifier(environment.notify_socket, "" if self.setting.is_main() else f"worker {os.getpid()}")
        self.wayout.gate = gate
        self._load(environment)
        if self.notifier and self.state is State.RUNNING:
            self.state = State.STARTING
        self._name_mistakes()
        self.loop.post(self._armed)

    def _load(self, environment: Environment) -> None:
        """Load what only some services need, and the bare import need not pay for (json).

        Not in the engine's thread: a fork in the middle of an import leaves its child with half a module (gunicorn forks right after).
        """
        if environment.runtime_directory is not None:
            from requiem_systemd import account, control  # noqa: PLC0415 - see above

            self._modules.update(account=account, control=control)
        if environment.worker is not None:
            from requiem_systemd import channel  # noqa: PLC0415 - see above

            self._modules.update(channel=channel)

    def start(self) -> None:
        """Begin to turn; any thread."""
        self.setting.ledger.wake = self.loop.wake
        self.loop.start()

    def close(self) -> None:
        """End the loop and give back what it took; any thread but the loop's."""
        self.loop.stop()
        if self._control is not None:
            self._control.close()
        if self._account is not None:
            self._account.close()
        self._give_back()

    def close_child(self) -> None:
        """Give the descriptors back in a fork's child, where no loop runs."""
        self.loop.close()
        if self._control is not None:
            self._control.close_child()
        self._give_back()

    def _give_back(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self.drain.close()
        self.stopped.close()
        self.notifier.close()
        self.extender.close()

    def _armed(self) -> None:
        self.extender.open()
        if self.setting.environment.runtime_directory is not None:
            self._account = self._modules["account"].Account(self.setting, self.standing)
            self._control = self._modules["control"].open_for(self.setting.environment, self.loop, self.reload, self._reload_note, self._account.methods)
        if self.setting.environment.worker is not None:
            self._channel = self._modules["channel"].Upward(self.setting.environment.worker.channel, self.loop, self._told_to_drain, self._left_alone)
            self.notifier.tell(X_REQUIEM_ONLINE=1)
            self.drain.closed.then(lambda: self.notifier.tell(X_REQUIEM_CLOSED=1))
        if self.state is State.STARTING and not self.setting.is_worker():
            self.loop.alarm(self._missing_ready, self.setting.now() + READY_WITHIN)
        self._watchdog.begin()
        if self.notifier:
            self._name_unit_mistakes()

    def _name_mistakes(self) -> None:
        environment = self.setting.environment
        for problem in environment.problems:
            _mistake(problem)
        if self.setting.in_container():
            _mistake(
                "a container runtime's notify socket forwards no extension, so that no stop is held by it; raise the runtime's own stop timeout "
                "(podman --stop-timeout, docker --stop-timeout) and the unit's TimeoutStopSec= above the longest drain, and set "
                "REQUIEM_DRAIN_TIMEOUT= below them, so that jobs that last longer are named before they are killed"
            )

    def _name_unit_mistakes(self) -> None:
        """What only the unit's files tell: which signals systemd sends to whom, and whom it listens to."""
        environment = self.setting.environment
        unit = self._unit(environment.notify_socket)
        if not self.setting.is_main() and (unit is None or unit.get("NotifyAccess") != "all"):
            _mistake(
                f"process {environment.exec_pid} is the service's main process, this is {os.getpid()}: but under NotifyAccess=all the manager "
                "drops what it is told from here. Write NotifyAccess=all where a server has worker processes; else start Python itself in "
                "ExecStart=, or put exec before it in the wrapper"
            )
        if environment.fed_by is not None:
            _mistake(
                f"WatchdogSec= is for process {environment.fed_by}, this is {os.getpid()}: the manager kills the service each time it has not said "
                "WATCHDOG=1 for so long, and a server's parent process never does (uvicorn, hypercorn, granian, and gunicorn without "
                "gunicorn.hold()); leave WatchdogSec= out, or serve by requiem-systemd serve --workers, which feeds it and watches each worker"
            )
        mode = None if unit is None else unit.get("KillMode") or "control-group"
        if mode not in (None, "mixed"):
            _mistake(f"KillMode={mode} in {unitfile.own_service()}: {_KILLMODES.get(mode or '', 'is not known')}; write KillMode=mixed")

    @staticmethod
    def _unit(manager: str | None) -> Mapping[str, str] | None:
        """Return what the service's unit says, if that can be known."""
        folders = unitfile.folders_of(manager)
        name = unitfile.own_service() if folders else None
        return unitfile.settings(name, folders) if name else None

    def _missing_ready(self) -> None:
        if self.state is State.STARTING and not self._starting:
            _mistake(
                f"no ready() within {READY_WITHIN:.0f} s: under Type=notify the manager waits for it and ends the service at "
                "TimeoutStartSec=; call requiem_systemd.ready() when the service is up, or wrap a slow start in starting(label)"
            )

    # -- what happens --------------------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Take one step of the table."""
        before = self.state
        self.state, actions = step(before, event)
        if self.state is not before:
            self._since = self.setting.now()
            ended = "reload failed" if event is Event.RELOADED and self._reload_error else event.value
            self._change = functools.partial(self._log_change, before, self.state, self._reason or ended, len(self.setting.ledger.live))
            if self.state is not State.DRAINING:  # a drain's begin is told when the manager has heard of it, with who holds it
                self._change()
        for action in actions:
            try:
                self._actions[action]()
            except Exception:  # the next one is done all the same: a drain that was begun must close its doors and end
                LOG.exception("the engine failed to %s; it goes on", action.value)

    @staticmethod
    def _log_change(before: State, after: State, cause: str, count: int, **more: object) -> None:
        fields = journal.record("state", state=after.name, previous=before.name, in_flight=count, **more)
        LOG.info("%s -> %s: %s, %d in flight", before.value, after.value, cause, count, extra=fields)

    def _each_turn(self) -> None:
        if self.state is State.DRAINING:
            self.drain.look()
        elif self.state is State.STOPPED:
            self.wayout.look()

    def _on_byte(self, number: int) -> None:
        gate = self.wayout.gate
        if gate is None:
            return
        if not gate.holds(number):
            gate.forward(number)
            return
        self.wayout.deferred.append(number)  # whoever owned the wakeup fd hears of a stop when the ledger is empty
        self._signals[name_of(number)](name_of(number))

    def heard(self, name: str) -> None:
        """Act on a stop signal that a server keeps for itself, and passes on."""
        self._signals[name](name)

    def begin(self, reason: str) -> None:
        """Begin the drain. Again: nothing."""
        if self.setting.ledger.began is None:
            self._reason = clean(reason, 200)
        self.event(Event.DRAIN)

    def _told_to_drain(self, reason: str) -> None:
        """Begin as at SIGTERM: whoever else has a handler for it hears of the stop in the end."""
        self.wayout.unasked = True
        self.begin(reason)

    def _left_alone(self) -> None:
        """Drain and go when the primary has gone: told to its manager, where that listens to us, or else to nobody."""
        late = self.setting.ledger.began is not None
        if not late:
            LOG.warning("the primary has gone: the worker drains by itself")
        self.notifier.close()
        environment = self.setting.environment
        unit = self._unit(environment.above)
        above = environment.above if unit is not None and unit.get("NotifyAccess") == "all" else None
        self.setting.notifier = Notifier(above, f"worker {environment.worker.id}, left alone" if environment.worker else "")
        if above is not None:
            # STOPPING=1 from us too: in a unit with ExitType=cgroup the manager has the service for running yet. A watchdog that
            # nobody feeds would end it, and so would a stop: to KillMode=mixed what has no main process has nothing to wait for.
            self.setting.environment = environment._replace(notify_socket=above)
            self.extender.open()
            if late:
                self._tell(STOPPING=1, **FIRST)
                self.extender.begin()
        self._told_to_drain("the primary has gone")

    def _interrupt(self, reason: str) -> None:
        now = self.setting.now()
        if self._interrupted is None:
            self._interrupted = now
            self.begin(reason)
        elif now - self._interrupted >= SAME_INTERRUPT:
            self._quit(f"a second {reason}")

    def _hangup(self, reason: str) -> None:
        if self.notifier or self.setting.hooks.has("reload"):
            self.event(Event.RELOAD)
        else:  # nobody to reload for: it means what it says, the terminal is gone
            self.begin(reason)

    def _quit(self, reason: str) -> None:
        LOG.warning("%s: abandoning what is in flight: %s", reason, self.drain.listing() or "nothing")
        self.wayout.forced = True
        if self.state is State.STOPPED:
            self.wayout.expel()
            return
        self.begin(reason)
        self.event(Event.EXPIRED)

    def standing(self) -> Standing:
        """Say where the service stands, for whoever asks through the control socket."""
        now, options, gate = self.setting.now(), self.setting.options, self.wayout.gate
        draining = self.state is State.DRAINING
        began = self.setting.ledger.began
        return Standing(
            state=self.state,
            since=now - self._since,
            reason=self._reason,
            status=self.setting.shown(self._status),
            drain_age=None if began is None else self.setting.ledger.clock() - began,
            drain_left=None if not draining or options.drain_timeout is None else options.drain_timeout - (now - self._since),
            exit_left=options.exit_timeout - (now - self._since) if self.state is State.STOPPED else None,
            extension=None if self.extender.until is None else self.extender.until - now,
            abandoned=len(self.drain.limits.abandoned),
            signals=effects(
                self.state,
                taken=(lambda _: False) if gate is None else gate.holds_name,
                interrupted=self._interrupted is not None,
                reloads=bool(self.notifier) or self.setting.hooks.has("reload"),
            ),
            workers=self.crew(),
        )

    def sweep(self) -> None:
        """Unlink the control sockets that workers have left, as one that has ended does; in the loop."""
        folder = self.setting.environment.runtime_directory
        if self._control is not None and folder is not None:
            with contextlib.suppress(OSError):  # the manager takes the folder away with the service
                self._modules["control"].sweep(folder)

    def jobs(self) -> int:
        """Count the jobs in flight, those of a primary's workers too."""
        own = sum(kind_of(entry) == JOB for entry, _ in self.setting.ledger.entries())
        return own + sum(worker.jobs for worker in self.crew())

    # -- start and reload ----------------------------------------------------------------------------------------------

    def ready(self, status: str) -> None:
        """Take it that the service is up."""
        self._status = status or self._status
        self.loop.cancel(self._missing_ready)
        if self.state is State.RUNNING and status:
            self.notifier.tell(STATUS=self.setting.shown(status))
        self.event(Event.READY)

    def set_status(self, text: str) -> None:
        """Show a text; while draining behind the drain's own line."""
        self._status = text
        self.drain.set_status(text)
        if self.setting.ledger.began is None:
            self.notifier.tell(STATUS=self.setting.shown(text))

    def starting(self, label: str) -> None:
        """Extend for a slow part of the start, which begins."""
        self._starting.append(label)
        if self.state in _STARTING:
            self.notifier.tell(**FIRST, STATUS=f"Starting: {self.setting.shown(clean(label))}")
            self.extender.begin()

    def started(self, label: str) -> None:
        """Extend no longer for a slow part of the start, which has ended."""
        self._starting.remove(label)
        if not self._starting and self.state in _STARTING:
            self.extender.end()

    def reload(self, waiter: Callable[[str], object]) -> None:
        """Reload; `waiter` is told how it ended: "" for well, else the reason."""
        if self.setting.ledger.began is not None:
            self.tally.reloads[verdict(report.NO_RELOAD)] += 1
            waiter(report.NO_RELOAD)
            return
        self._reload_waiters.append(waiter)
        self.event(Event.RELOAD)

    def _reload_note(self) -> str:
        return "" if self.setting.hooks.has("reload") else report.NO_HANDLER

    def _say_ready(self) -> None:
        self.extender.end()
        status = f"Reload failed: {self._reload_error}" if self._reload_error else self.setting.shown(self._status)
        self._tell(READY=1, STATUS=status)

    def _tell(self, **assignments: object) -> None:
        """Tell the manager, if need be later: its queue may be full, as when many services start at once, and a start then times out."""
        if not self.setting.is_main():  # a server's worker: the service neither stops nor reloads with it
            assignments = {key: value for key, value in assignments.items() if key not in _MAIN_ONLY}
        if not self.notifier.tell(**assignments) and self.notifier and self._tries:
            self._tries -= 1
            self.loop.alarm(self._tell_owed, self.setting.now() + AGAIN)

    def _tell_owed(self) -> None:
        self._tell()

    def _say_reloading(self) -> None:
        self._reload_error = ""
        # sd_notify(3): v253 and later match a reload by MONOTONIC_USEC, in the same datagram
        self._tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, **FIRST, STATUS="Reloading")
        self.extender.begin()

    def _run_reload(self) -> None:
        self._reloading, self._reload_waiters = self._reload_waiters, []
        if not self._reloading and self._reload_note():  # whoever sent a signal has no answer to read it in
            LOG.info("%s", self._reload_note())

        def ended(errors: list[BaseException]) -> None:
            reason = clean("; ".join(map(_reason, errors)), 300)
            self.loop.post(lambda: self._reloaded(reason))

        self.setting.hooks.emit("reload", (), ended)

    def _reloaded(self, reason: str) -> None:
        if reason:
            LOG.error("the reload failed, the old state is kept: %s", reason, extra=journal.record("reload-failed", reason=reason))
        self.tally.reloads[verdict(reason)] += 1
        waiters, self._reloading = self._reloading, []  # before the event, which may begin the next reload
        self._reload_error = reason
        self.event(Event.RELOADED)
        for waiter in waiters:
            waiter(reason)

    def _refuse_reloads(self) -> None:
        """Answer, when the drain has cut in, everybody who waits for a reload, in work or queued."""
        self.tally.reloads[verdict(report.NO_RELOAD)] += len(self._reload_waiters)  # the one in work is counted when it ends
        waiters, self._reloading, self._reload_waiters = self._reloading + self._reload_waiters, [], []
        for waiter in waiters:
            waiter(report.NO_RELOAD)

    # -- the drain and the way out -------------------------------------------------------------------------------------

    def _say_stopping(self) -> None:
        # One datagram: STOPPING=1 arms TimeoutStopSec, the extension in the same one is counted after it (252 to 262)
        self.drain.set_status(self._status)
        line = self.drain.begin()
        self._tell(STOPPING=1, **FIRST, STATUS=line, **self.drain.sums())
        self.extender.begin()

    def _run_drain(self) -> None:
        self.loop.cancel(self._missing_ready)
        self._refuse_reloads()
        self.drain.run(self._reason, self._change)

    def _release(self) -> None:
        self.tally.stopped = self.setting.ledger.clock()
        self.drain.end()
        self.wayout.begin(abandoned=bool(self.drain.limits.abandoned))

    def _abandon(self) -> None:
        self.drain.abandon()
        self._release()


def _reason(error: BaseException) -> str:
    """Say why a reload failed; a handler that raises ReloadError has said it all. The text is user code: `clean` survives it."""
    return clean(error) if isinstance(error, ReloadError) else f"{type(error).__name__}: {clean(error)}"


def _mistake(text: str) -> None:
    """Name a mistake, so that somebody mends it before it costs a job."""
    LOG.warning("%s", text, extra=journal.record("mistake"))
