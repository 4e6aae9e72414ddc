"""Waits for what ends by itself: futures, tasks, threads and processes. No polling.

- A future tells us by its callback.
- A process by its pidfd, in the engine's loop; where there is none, as a thread that waits for it.
- A thread cannot be waited for on a descriptor. One helper joins all that are tracked, one after the other: after each join
  it lets go of every other that has ended meanwhile. The stop ends when the last has; `in_flight` looks for itself.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from requiem_systemd import journal
from requiem_systemd.ledger import Entry, Ledger, More, Record
from requiem_systemd.protocol import clean

LOG: Final = logging.getLogger("requiem_systemd")


def qualified(thing: object) -> str:
    """Name a callable for operators."""
    plain = getattr(thing, "__func__", thing)
    return str(getattr(plain, "__qualname__", None) or getattr(plain, "__name__", None) or type(thing).__name__)


class Joiner:
    """One helper thread for all threads that are waited for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._threads: dict[Entry, threading.Thread] = {}
        self._lock = threading.Lock()
        self._running = False

    def add(self, entry: Entry, thread: threading.Thread) -> None:
        """Hold the stop by `entry` until `thread` has ended."""
        with self._lock:
            self._threads[entry] = thread
            start, self._running = not self._running, True
        if start:
            # A daemon: it must never keep the interpreter from ending once the stop is no longer held.
            threading.Thread(target=self._run, name="requiem-joiner", daemon=True).start()

    def sweep(self) -> None:
        """Let go of every thread that has ended."""
        with self._lock:
            ended = [entry for entry, thread in self._threads.items() if not thread.is_alive()]
            for entry in ended:
                del self._threads[entry]
        for entry in ended:
            self._ledger.leave(entry)

    def _run(self) -> None:
        while True:
            with self._lock:
                thread = next(iter(self._threads.values()), None)
                if thread is None:
                    self._running = False
                    return
            thread.join()
            self.sweep()


class Joins:
    """What holds the stop because a thing of another library has not ended."""

    def __init__(
        self, ledger: Ledger, watch: Callable[[int, Callable[[], object]], None], shown: Callable[[str], str] = str
    ) -> None:
        self._ledger = ledger
        self._watch = watch
        self._shown = shown
        self.joiner: Joiner = Joiner(ledger)
        self._hinted = False

    def hold(self, thing: Any, label: object, more: More | None) -> bool:
        """Hold the stop until `thing` has ended; False if it is of no kind that is known."""
        for module, name, begin in _KINDS:
            kind = getattr(sys.modules.get(module), name, None)
            if kind is not None and isinstance(thing, kind):
                begin(self, thing, label, more)
                return True
        return False

    def _enter(self, name: object, owner: object, more: More | None) -> Record:
        record = Record(name, owner)
        if more is not None:
            record.more = more
        self._ledger.enter(record)
        return record

    def _future(self, future: Any, label: object, more: More | None) -> None:
        if future.done():
            return
        record = self._enter(label or qualified(future), None, more)
        future.add_done_callback(lambda _: self._ledger.leave(record))

    def _asyncio(self, future: Any, label: object, more: More | None) -> None:
        if future.done():
            return
        name = label or (future.get_name() if hasattr(future, "get_name") else qualified(future))
        record = self._enter(name, future if hasattr(future, "get_coro") else None, more)

        def leave(_: object) -> None:
            if future.cancelled() and _loop_is_torn_down():
                self._name_cut_off(record)
            record.owner = None
            self._ledger.leave(record)

        asyncio = sys.modules["asyncio"]
        loop = future.get_loop()
        if asyncio._get_running_loop() is loop:  # noqa: SLF001 - documented, raises nothing
            future.add_done_callback(leave)
        else:  # a future is not thread-safe: its own loop adds the callback
            loop.call_soon_threadsafe(future.add_done_callback, leave)

    def _name_cut_off(self, record: Record) -> None:
        """Say whose job was cut off by the end of somebody else's loop, and, the first time, the line to write instead."""
        hint = "" if self._hinted else "; write requiem_systemd.aio.run(main()) in place of asyncio.run(main()), which waits for it"
        self._hinted = True
        label = self._shown(clean(record.name))
        LOG.warning('"%s" was cancelled: its event loop was torn down before it had ended%s', label, hint, extra=journal.record("mistake", label=label))

    def _thread(self, thread: threading.Thread, label: object, more: More | None) -> None:
        def begin() -> Record:
            return self._enter(label or thread.name, thread.ident or f"thread {thread.name}", more)

        if thread.ident is None:
            start = thread.start

            def started() -> None:
                del thread.start  # the class's own again
                record = begin()
                try:
                    start()
                except BaseException:
                    self._ledger.leave(record)
                    raise
                record.owner = thread.ident
                self.joiner.add(record, thread)

            thread.start = started  # type: ignore[method-assign] # it holds from its start, which only it knows
        elif thread.is_alive():
            self.joiner.add(begin(), thread)

    def _process(self, process: Any, label: object, more: More | None) -> None:
        name = label or process.name
        if process._popen is None:  # noqa: SLF001 - the one way to see "not started"
            start = process.start

            def started() -> None:
                del process.start  # before the start: `spawn` pickles the process
                record = self._enter(name, "process", more)
                try:
                    start()
                except BaseException:
                    self._ledger.leave(record)
                    raise
                record.owner = f"process {process.pid}"
                self._follow(record, process.pid, process.join)

            process.start = started
        elif process.is_alive():
            self._follow(self._enter(name, f"process {process.pid}", more), process.pid, process.join)

    def _popen(self, process: Any, label: object, more: More | None) -> None:
        if process.poll() is not None:
            return
        args = process.args
        name = label or os.path.basename(os.fspath(args if isinstance(args, (str, bytes, os.PathLike)) else args[0]))
        self._follow(self._enter(name, f"process {process.pid}", more), process.pid, process.wait)

    def _follow(self, record: Record, pid: int, wait: Callable[[], object]) -> None:
        """Let go when the process has ended; it is never reaped here, its owner does that."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:  # ended and reaped already
            self._ledger.leave(record)
        except (AttributeError, OSError):  # no pidfd on this system
            waiter = threading.Thread(target=wait, name=f"requiem-wait-{pid}", daemon=True)  # a daemon: see Joiner.add
            waiter.start()
            self.joiner.add(record, waiter)
        else:
            self._watch(fd, lambda: self._ledger.leave(record))


# Looked up in sys.modules: an instance can only come from a module that is loaded, and none is loaded for the sake of asking.
_KINDS: Final = (
    ("concurrent.futures", "Future", Joins._future),  # noqa: SLF001 - the table belongs to the class
    ("asyncio", "Future", Joins._asyncio),  # noqa: SLF001
    ("threading", "Thread", Joins._thread),  # noqa: SLF001
    ("multiprocessing.process", "BaseProcess", Joins._process),  # noqa: SLF001
    ("subprocess", "Popen", Joins._popen),  # noqa: SLF001
)


def _loop_is_torn_down() -> bool:
    """Say whether asyncio is cancelling what is left at the end of its `run`."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the documented way to see one's own callers
    while frame is not None and frame.f_code.co_name != "_cancel_all_tasks":
        frame = frame.f_back
    return frame is not None


def refuse(thing: object) -> TypeError:
    """Say why a thing cannot be tracked, and what to write instead."""
    kind = type(thing).__name__
    if kind in ("coroutine", "generator", "async_generator"):
        return TypeError(
            f"track({kind}): it has not begun; write track(asyncio.create_task(…)), aio.spawn(coro, label), or @track on the function"
        )
    if isinstance(thing, type):
        return TypeError(f"track({thing.__name__}): a class has no end; write @track on its methods, or track an instance's thread or future")
    return TypeError(
        f"track({kind}): give a label (str), a function, or a concurrent.futures.Future, asyncio.Future or Task, "
        "threading.Thread, multiprocessing.Process or subprocess.Popen"
    )


def is_function(thing: object) -> bool:
    """Say whether a thing can be decorated."""
    return callable(thing) and not isinstance(thing, type)
