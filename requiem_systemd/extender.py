"""Keeps the manager's timeout ahead of us while something lasts: 30 s every 10 s, and at once when the manager reloads itself."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Final

from requiem_systemd.guard import Guard, folder_of
from requiem_systemd.protocol import usec
from requiem_systemd.setting import Setting

LOG: Final = logging.getLogger("requiem_systemd")
EXTENSION: Final = 30.0
EVERY: Final = 10.0
# A server's worker drains also when it is replaced. Of a stop that begins then it does not hear (its parent waits for it), and what
# it has sent before counts for nothing; the stop's timeout may be a short one.
EVERY_OF_WORKER: Final = 1.0
# After one that could not be sent: the manager's timeout may be a short one.
AGAIN: Final = 0.5
# What goes into the datagram that begins a stop or a reload: race-free, it is counted after the state change (252 to 262).
FIRST: Final = {"EXTEND_TIMEOUT_USEC": usec(EXTENSION)}


class Extender:
    """Extends from `begin` to `end`; idle, it sets no alarm and watches nothing. `extended` is told when."""

    def __init__(self, setting: Setting, extended: Callable[[float], object]) -> None:
        self._setting = setting
        self._extended = extended
        self._guard: Guard | None = None
        self._extending = False
        self.until: float | None = None  # what the manager was asked for runs out, if it was told

    def open(self) -> None:
        """Prepare to see the manager reload itself: what a drain needs is loaded before the release can have been deleted."""
        folder = folder_of(self._setting.environment.notify_socket)
        if folder is None or self._guard is not None:
            return
        try:
            self._guard = Guard(folder)
        except OSError as error:
            LOG.info("a daemon-reload in mid-drain cannot be seen: %s", error)

    def begin(self) -> None:
        """Extend from the next tick on; the first extension goes with the datagram that began it."""
        self._extending = True
        self._asked()
        self._setting.loop.alarm(self._tick, self._setting.now() + self._every())
        self._watch()

    def end(self) -> None:
        """The state lasts: extend no longer."""
        self._extending = False
        self.until = None
        self._setting.loop.cancel(self._tick)
        fd = self._guard.unwatch() if self._guard is not None else None
        if fd is not None:
            self._setting.loop.unreader(fd)
            os.close(fd)

    def close(self) -> None:
        """Give the descriptor back, when the loop has ended."""
        guard, self._guard = self._guard, None
        fd = guard.unwatch() if guard is not None else None
        if fd is not None:
            os.close(fd)

    def _tick(self) -> None:
        if self._extending:
            told = self._setting.notifier.tell(**FIRST) or not self._setting.notifier
            if told:
                self._asked()
            self._setting.loop.alarm(self._tick, self._setting.now() + (self._every() if told else AGAIN))

    def _asked(self) -> None:
        now = self._setting.now()
        self.until = now + EXTENSION if self._setting.notifier else None
        if self._setting.notifier:
            self._extended(now)

    def _every(self) -> float:
        return EVERY if self._setting.is_main() else EVERY_OF_WORKER

    def _watch(self) -> None:
        if self._guard is None:
            return
        try:
            fd = self._guard.watch()
        except OSError as error:
            text = "a daemon-reload in mid-drain cannot be seen, TimeoutStopSec= must cover the longest drain: %s"
            # Where the folder is not there (RootDirectory=, a /run of its own), that is how the unit is written.
            LOG.log(logging.INFO if error.errno == errno.ENOENT else logging.WARNING, text, error)
            self._guard = None
        else:
            if fd is not None:
                self._setting.loop.reader(fd, self._look)

    def _look(self) -> None:
        if self._guard is not None and self._guard.reloading():
            self._tick()
