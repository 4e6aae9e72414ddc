"""The one loop: descriptors, calls from other threads, and alarms. What it does about them is the engine's business."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

LOG: Final = logging.getLogger("requiem_systemd")


class Clock:
    """The system's monotonic clock; `testing.FakeClock` is the other one."""

    #: Returns seconds on a clock that never goes back. The built-in itself: each tracker calls it, and a method costs as much as the rest.
    now: Callable[[], float] = staticmethod(time.monotonic)

    def select(self, selector: selectors.BaseSelector, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for descriptors; at most `timeout` seconds."""
        return selector.select(timeout)


class Loop:
    """Runs in a thread of its own; everything that it calls runs there.

    `on_byte` gets each byte other than NUL that was written to `wakeup_fd`; `each_turn` is called when a turn's work is done.
    """

    def __init__(self, clock: Clock, on_byte: Callable[[int], object], each_turn: Callable[[], object]) -> None:
        self.clock = clock
        self._on_byte = on_byte
        self._each_turn = each_turn
        self._inbox: deque[Callable[[], object]] = deque()
        self._alarms: dict[Callable[[], object], float] = {}
        self._woken = False
        self._running = False
        self._over = False
        # A socket pair, not a pipe: Windows can wait on nothing else, and set_wakeup_fd takes it there too.
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._drain)
        # A daemon: it outlives the main thread, to extend while the interpreter shuts down, and must not be joined then.
        self.thread: threading.Thread = threading.Thread(target=self._run, name="requiem-engine", daemon=True)

    @property
    def wakeup_fd(self) -> int:
        """The descriptor whose bytes wake the loop."""
        return self._waker.fileno()

    def start(self) -> None:
        """Begin to turn."""
        self._running = True
        self.thread.start()

    def wake(self) -> None:
        """Have the loop take a turn; any thread, no lock, cheap when it is on its way already."""
        if not self._woken:
            self._woken = True
            try:
                self._waker.send(b"\0")
            except OSError:  # full: it wakes anyway; closed: it has ended
                return

    def post(self, call: Callable[[], object]) -> None:
        """Have the loop's thread make a call; any thread."""
        self._inbox.append(call)
        self.wake()

    def call(self, call: Callable[[], object]) -> None:
        """Have the loop's thread make a call, and wait until it has; in the loop's thread: just make it."""
        if threading.current_thread() is self.thread or not self._running:
            call()
            return
        made = threading.Lock()  # not an Event: SystemExit, raised by a signal in the middle of its wait, could leave it half locked
        made.acquire()

        def make() -> None:
            try:
                call()
            finally:
                made.release()

        self.post(make)
        if self._over:  # it may have looked into its inbox for the last time just before
            self._empty_inbox()
        made.acquire()

    def alarm(self, call: Callable[[], object], when: float) -> None:
        """Make a call at a time of the clock; a call has one alarm, the last that was set."""
        self._alarms[call] = when

    def cancel(self, call: Callable[[], object]) -> None:
        """Take an alarm back."""
        self._alarms.pop(call, None)

    def reader(self, fd: int, call: Callable[[], object], events: int = selectors.EVENT_READ) -> None:
        """Make a call whenever a descriptor is ready."""
        self._selector.register(fd, events, call)

    def unreader(self, fd: int) -> None:
        """Look at a descriptor no longer; before it is closed."""
        self._selector.unregister(fd)

    def stop(self) -> None:
        """End the loop; wait for it unless in its own thread."""
        self.call(self._stop)
        if threading.current_thread() is not self.thread and self.thread.ident is not None:
            self.thread.join()
        self.close()

    def close(self) -> None:
        """Give the descriptors back; also in a fork's child, where no loop runs."""
        self._selector.close()
        self._wakeup.close()
        self._waker.close()

    def _stop(self) -> None:
        self._running = False

    def _drain(self) -> None:
        self._read()
        # After the bytes are read, before the work is done: a wake in between sends none, and its work is done in this turn.
        # The other way round a byte could be sent and read at once, with the mark left behind: nothing would wake any more.
        self._woken = False

    def _read(self) -> None:
        while True:
            try:
                data = self._wakeup.recv(65536)
            except BlockingIOError:
                return
            for number in data:
                if number:
                    self._on_byte(number)
            if len(data) < 65536:
                return

    def _timeout(self) -> float | None:
        if self._inbox:
            return 0.0
        if not self._alarms:
            return None
        return max(0.0, min(self._alarms.values()) - self.clock.now())

    def _run(self) -> None:
        try:
            while self._running:
                self._turn()
        finally:
            self._over = True
            self._empty_inbox()

    def _turn(self) -> None:
        for key, _ in self.clock.select(self._selector, self._timeout()):
            self._safely(key.data)
        self._empty_inbox()
        now = self.clock.now()
        for call, when in list(self._alarms.items()):
            if when <= now and self._alarms.get(call) == when:
                del self._alarms[call]
                self._safely(call)
        self._safely(self._each_turn)

    def _empty_inbox(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._safely(self._inbox.popleft())

    def _safely(self, call: Callable[[], object]) -> None:
        """Whatever goes wrong in one call, the stop is still extended."""
        try:
            call()
        except Exception:
            LOG.exception("the engine failed in %s; it goes on", getattr(call, "__qualname__", call))
