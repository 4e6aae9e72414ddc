"""The way out, held like the drain: handlers of `dead`, the main thread's last steps, threads that are joined."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

from requiem_systemd import journal, report
from requiem_systemd.exits import flush
from requiem_systemd.extender import Extender
from requiem_systemd.gate import Gate
from requiem_systemd.latch import Latch
from requiem_systemd.protocol import duration
from requiem_systemd.setting import Setting
from requiem_systemd.stacks import place, stack

LOG: Final = logging.getLogger("requiem_systemd")
# sysexits.h: temporary failure; what systemd then does is Restart='s business
EX_TEMPFAIL: Final = 75
SHOW_EVERY: Final = 1.0
# How long a framework's own handler, called when the ledger was empty, has to end the main thread by itself.
CHAINED_GRACE: Final = 1.0
# How long a main thread that heeds the drain (its loop asks should_stop(), jobs(), accept() or wait_begin()) has for what it does last.
HEEDED_GRACE: Final = 5.0
# How long the main thread has to hear our signal before it is sent again; doubled each time, up to SHOW_EVERY.
HEARD_WITHIN: Final = 0.02


class WayOut:
    """From the last job's end to the process's; past `exit_timeout` the process is ended. Runs in the loop's thread.

    `main_is_free` says whether the main thread may be made to leave: it is not waiting, leaving, or holding a tracker.
    """

    def __init__(self, setting: Setting, extender: Extender) -> None:
        self._setting = setting
        self._extender = extender
        self.stopped: Latch = Latch()
        self.status: int = 0
        self.forced = False
        self.unasked: bool = False  # a primary began it, not a signal
        self.gate: Gate | None = None
        self.main_is_free: Callable[..., bool] = _never
        self.main_heeds: Callable[[], bool] = bool
        self.deferred: list[int] = []
        self.others: bool = False
        self._since = 0.0
        self._expelling = False
        self._heard_within = HEARD_WITHIN

    def begin(self, *, abandoned: bool) -> None:
        """Run the `dead` handlers, then let whoever waits go on."""
        self.status = EX_TEMPFAIL if abandoned else 0
        self._since = self._setting.now()
        self._setting.loop.alarm(self._tick, self._since + min(SHOW_EVERY, self._setting.options.exit_timeout))
        self._setting.hooks.emit("dead", (self.status,), lambda _: self._setting.loop.post(self._let_out))

    def look(self) -> None:
        """See whether the main thread, which could not be made to leave before, can be now."""
        if self._expelling:
            self.expel()

    def expel(self) -> None:
        """Make the main thread leave, unless something speaks against it."""
        self._expelling = False
        if not self._setting.options.exit or self.gate is None:
            return
        if not self.main_is_free(forced=self.forced):
            self._expelling = True
        elif self.gate.expel(self.status):
            self._setting.loop.alarm(self._insist, self._setting.now() + self._heard_within)
        else:
            LOG.warning(
                "the main thread cannot be made to leave (every stop signal's handler was replaced, or it is a greenlet): call wait() at its end",
                extra=journal.record("mistake"),
            )

    def _insist(self) -> None:
        """Knock again: a signal that comes just before a system call blocks interrupts nothing, and the call would last."""
        if self.gate is not None and self.gate.knock_again():
            self._heard_within = min(2 * self._heard_within, SHOW_EVERY)
            self._setting.loop.alarm(self._insist, self._setting.now() + self._heard_within)

    def _let_out(self) -> None:
        if not self._setting.is_main():  # a worker that was replaced: the service's status is not that one drained once
            self._setting.notifier.tell(STATUS="")
        self.tell_others(unasked=self.unasked)
        self.stopped.set()
        grace = CHAINED_GRACE if self.others else 0.0
        if self.main_heeds() and not self.forced:
            grace = HEEDED_GRACE
        if grace:
            self._setting.loop.alarm(self.expel, self._setting.now() + grace)
        else:
            self.expel()

    def tell_others(self, *, unasked: bool = False) -> None:
        """Pass the stop on to whoever had its signals before us, or took them since; `unasked`: also one that no signal began."""
        if self.gate is None:
            return
        if unasked and not self.deferred and (number := self.gate.pend()) is not None:
            self.deferred.append(number)
        numbers, self.deferred = self.deferred, []
        told = [self.gate.forward(number) and self.gate.is_chained(number) for number in numbers]
        if (self.gate.has_chained() and self.gate.call_chained()) or any(told):
            self.others = True

    def _tick(self) -> None:
        elapsed = self._setting.now() - self._since
        if elapsed >= self._setting.options.exit_timeout:
            self._stuck(elapsed)
            return
        end = self._since + self._setting.options.exit_timeout
        self._setting.loop.alarm(self._tick, min(self._setting.now() + SHOW_EVERY, end))
        keeper = _keeper()
        name = "main thread" if keeper is threading.main_thread() else f"thread {keeper.name}"
        self._setting.notifier.tell(STATUS=report.exiting(elapsed, name, place(keeper.ident)))

    def _stuck(self, elapsed: float) -> None:
        self._extender.end()
        if not self._setting.options.exit:
            return  # somebody else's process: no longer held, but not ended
        stacks = "\n".join(f"thread {thread.name}:\n{stack(thread.ident)}" for thread in threading.enumerate())
        LOG.error("the exit has taken %s: the process is ended\n%s", duration(elapsed), stacks, extra=journal.record("exit-stuck"))
        flush()
        os._exit(EX_TEMPFAIL)


def _never(*, forced: bool) -> bool:
    """Leave the main thread alone: nobody has said whose it is."""
    del forced
    return False


def _keeper() -> threading.Thread:
    """Return the thread that the exit waits for: the main thread, or the one that it joins."""
    main = threading.main_thread()
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not main]
    frame = sys._current_frames().get(main.ident or 0)  # noqa: SLF001 - the documented way to see other threads' frames
    joining = frame is not None and any(step.f_code.co_name in ("_shutdown", "join") for step, _ in traceback.walk_stack(frame))
    return others[0] if joining and others else main
