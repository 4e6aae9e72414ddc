"""What users registered for an event: run one after another in a thread of their own, never in the engine."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from requiem_systemd.errors import DrainingError, ReloadError
from requiem_systemd.joins import qualified
from requiem_systemd.ledger import HOOK, Ledger, More, Record

LOG: Final = logging.getLogger("requiem_systemd")
# And how many arguments each has.
EVENTS: Final = MappingProxyType({"begin": 1, "reload": 0, "stalled": 1, "dead": 1})


class Hook(NamedTuple):
    """One handler: how many of the event's arguments it takes, and the loop it runs in if it is a coroutine function."""

    function: Callable[..., Any]
    takes: int
    coroutine: bool
    loop: Any


class Hooks:
    """Handlers by event. While one runs it is a tracker; one that raises is logged, the rest still run."""

    def __init__(self, ledger: Ledger, events: Mapping[str, int] = EVENTS) -> None:
        self._ledger = ledger
        self._events = events
        self._hooks: dict[str, list[Hook]] = {event: [] for event in events}
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.loop: Any = None

    def add(self, event: str, function: Any, *, armed: bool) -> None:
        """Register; ValueError for an unknown event, RuntimeError for a coroutine function that has no loop."""
        self.check(event)
        if not callable(function):
            msg = f"on({event!r}): {type(function).__name__} cannot be called; give a function"
            raise TypeError(msg)
        coroutine = _is_coroutine(function)
        if coroutine and event == "dead":
            msg = "on('dead'): the loop may be gone by then; give a plain function"
            raise TypeError(msg)
        loop = running_loop()
        if coroutine and armed and loop is None and self.loop is None:
            msg = f"on({event!r}): no event loop runs; call on(), initialize() or aio.run() where one does, or give a plain function"
            raise RuntimeError(msg)
        self._hooks[event].append(Hook(function, _takes(function, self._events[event]), coroutine, loop))
        if armed:
            self.open()

    def check(self, event: str) -> None:
        """Raise ValueError for an unknown event."""
        if event not in self._hooks:
            msg = f"on({event!r}): there is no such event; there are {', '.join(self._events)}"
            raise ValueError(msg)

    def has(self, event: str) -> bool:
        """Say whether anybody listens."""
        return bool(self._hooks[event])

    def registered(self) -> dict[str, tuple[Hook, ...]]:
        """Return who is registered for what."""
        return {event: tuple(hooks) for event, hooks in self._hooks.items()}

    def restore(self, registered: Mapping[str, Sequence[Hook]]) -> None:
        """Have only these registered."""
        self._hooks = {event: list(registered.get(event, ())) for event in self._events}

    @property
    def running(self) -> bool:
        """Whether there is a thread that runs handlers."""
        return self._thread is not None

    def emit(self, event: str, arguments: Sequence[object], then: Callable[[list[BaseException]], object]) -> None:
        """Run an event's handlers in the hooks' thread, then tell what they raised; at once where there is none."""
        self._run_all([(hook, f"{event} handler {qualified(hook.function)}") for hook in self._hooks[event]], arguments, then)

    def run_once(self, function: Callable[..., Any], name: str, arguments: Sequence[object]) -> None:
        """Run a plain function once, as if it were a handler."""
        self._run_all([(Hook(function, _takes(function, len(arguments)), False, None), name)], arguments, list)

    def _run_all(
        self, hooks: Sequence[tuple[Hook, str]], arguments: Sequence[object], then: Callable[[list[BaseException]], object]
    ) -> None:
        if not hooks:
            then([])
            return
        records = []
        for _, name in hooks:
            record = Record(name, None)
            record.more = More(HOOK)
            with contextlib.suppress(DrainingError):  # the ledger is closed: the way out holds
                self._ledger.enter(record)
            records.append(record)

        def run() -> None:
            errors = []
            for (hook, _), record in zip(hooks, records, strict=True):
                record.owner = threading.get_ident()
                try:
                    self._call(hook, arguments)
                except BaseException as error:
                    errors.append(error)
                    if not isinstance(error, ReloadError):  # that has said it all, and the engine passes it on
                        LOG.exception("%s failed", record.name)
                finally:
                    self._ledger.leave(record)
            then(errors)

        self.submit(run)

    def submit(self, call: Callable[[], object]) -> None:
        """Have the hooks' thread make a call, after those that are waiting."""
        self._start()
        self._queue.put(call)

    def open(self) -> None:
        """Have the thread ready for what is registered: once the main thread has ended none can be started (CPython 3.12)."""
        if any(self._hooks.values()):
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                # A daemon: a handler that hangs must not keep the interpreter when its time has run out.
                thread = threading.Thread(target=self._run, name="requiem-hooks", daemon=True)
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """End the thread when it has done what waits."""
        thread = self.end()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def end(self) -> threading.Thread | None:
        """Have the thread end when it has done what waits; return it without waiting for it."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
        return thread

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            call()

    def _call(self, hook: Hook, arguments: Sequence[object]) -> None:
        given = arguments[: hook.takes]
        if not hook.coroutine:
            hook.function(*given)
            return
        loop = hook.loop if hook.loop is not None and not hook.loop.is_closed() else self.loop
        if loop is None or not loop.is_running():
            msg = f"{qualified(hook.function)} is a coroutine function and no event loop runs for it"
            raise RuntimeError(msg)
        sys.modules["asyncio"].run_coroutine_threadsafe(hook.function(*given), loop).result()


def running_loop() -> Any:
    """Return the event loop that runs in this thread, None where there is none."""
    asyncio = sys.modules.get("asyncio")
    return asyncio._get_running_loop() if asyncio is not None else None  # noqa: SLF001 - documented, raises nothing


def _is_coroutine(function: Callable[..., Any]) -> bool:
    import inspect  # noqa: PLC0415 - 10 ms, which services without handlers need not pay

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _takes(function: Callable[..., Any], most: int) -> int:
    """Say how many of `most` arguments a function takes."""
    import inspect  # noqa: PLC0415 - see _is_coroutine

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature, such as a file's close
        return 0
    for count in range(most, 0, -1):
        try:
            signature.bind(*[object()] * count)
        except TypeError:
            continue
        return count
    return 0
