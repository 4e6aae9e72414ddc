"""Signals become bytes on a pipe.

Discussion of signal handling strategies.

- `signal.sigwait` or a signalfd need the signals blocked, and the mask is inherited by every child process: no.
- A Python handler alone runs only when the main thread comes back to the interpreter: not while it sits in a C call.
- `signal.set_wakeup_fd` writes the byte in the C handler, at once and from any thread. It has one owner in a process: asyncio's
  `add_signal_handler`, uvloop and trio take it too. So: the wakeup fd where we have it, and a Python handler that asks who owns it
  (`set_wakeup_fd` twice, nothing else tells) and writes the byte itself where it is not ours. One byte for each signal, either way.

A handler that somebody else installed, before us or after us, is kept: `chained` says when it is called, once a signal. Nothing tells that
one was installed, so `signal.signal` is ours while we are armed, as the signals are: what comes through it is taken back at once. Who has
it from before, or sets handlers in C (uvloop), is seen at the next `retake`.
Only this module touches `signal`.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeGuard

from requiem_systemd.errors import NotMainThreadError

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_Handler = Callable[[int, FrameType | None], Any]


def in_main_thread() -> bool:
    """Say whether this is the main thread."""
    return threading.current_thread() is threading.main_thread()


def name_of(number: int) -> str:
    """Name a signal for people."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_foreign(handler: object) -> TypeGuard[_Handler]:
    """Say whether a handler is somebody's own: neither a default, nor ignored, nor Python's KeyboardInterrupt (or asyncio.run's)."""
    if getattr(getattr(handler, "func", None), "__qualname__", "") == "Runner._on_sigint":
        return False
    return callable(handler) and handler not in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)


class Gate:
    """Holds the process's stop signals; each becomes its number as one byte on `fd`. Chained handlers run when `call_chained` says so."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.armed: bool = False
        self.exit_status: int | None = None
        self._knocked = False
        self._asking = False
        self._forward: tuple[int, object] = (-1, None)
        self._previous: dict[int, Any] = {}
        self._chained: dict[int, _Handler] = {}
        self._pending: list[tuple[int, _Handler]] = []
        self._bound = self._handle  # one bound method: its identity is how we know our handler again
        self.install: Callable[..., Any] = signal.signal  # the real one
        self._found: Callable[..., Any] = signal.signal  # what was there before us: the same, or another gate's
        self._watching = self._watch  # known again as well

    def arm(self) -> None:
        """Take the signals; NotMainThreadError outside the main thread of the main interpreter.

        A signal that is ignored stays ignored (nohup).
        """
        if not in_main_thread():
            msg = "signals can be armed in the main thread only; call initialize() there, or initialize(signals=False) here"
            raise NotMainThreadError(msg)
        try:
            previous_fd = signal.set_wakeup_fd(self.fd, warn_on_full_buffer=False)
        except ValueError as error:
            msg = f"signals can be armed in the main thread of the main interpreter only ({error}); use initialize(signals=False)"
            raise NotMainThreadError(msg) from error
        self._forward_to(previous_fd)
        self._found = signal.signal
        outer = getattr(self._found, "__self__", None)
        self.install = outer.install if isinstance(outer, Gate) else self._found
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.SIG_IGN or handler is None:
                continue
            self._previous[number] = handler
            self.install(number, self._bound)
            if _is_foreign(handler):
                self._chained[number] = handler
        setattr(signal, "signal", self._watching)  # noqa: B010 - type checkers refuse the plain form
        self.armed = True

    def _watch(self, signalnum: int, handler: Any) -> Any:
        """Stand in for `signal.signal`: chain a handler of somebody else's where ours stands; return theirs of before."""
        known = callable(handler) or handler == signal.SIG_DFL
        if not self.holds(signalnum) or not self.is_ours(signalnum) or not known or not in_main_thread():
            previous = self.install(signalnum, handler)  # which may raise, or ignore the signal: as it was asked
        else:
            found = self._previous[signalnum]
            previous = self._chained.pop(signalnum, found)
            theirs = found if handler is self._bound else handler  # who puts ours back wants what there was before
            if _is_foreign(theirs):
                self._chained[signalnum] = theirs
        self.retake()  # asyncio and trio have taken the wakeup fd just before
        return previous

    def retake(self) -> None:
        """Take back what somebody took since: their handlers are chained, their wakeup fd is forwarded to.

        Outside the main thread nothing can be taken, and nothing is.
        """
        if not self.armed or not in_main_thread():
            return
        for number in self._previous:
            handler = signal.getsignal(number)
            if handler is not self._bound and handler is not signal.SIG_IGN:
                self.install(number, self._bound)
                if _is_foreign(handler):
                    self._chained[number] = handler
        owner = signal.set_wakeup_fd(self.fd, warn_on_full_buffer=False)
        if owner != self.fd:
            self._forward_to(owner)

    def holds(self, number: int) -> bool:
        """Say whether this signal is one that was taken."""
        return number in self._previous

    def holds_name(self, name: str) -> bool:
        """Say the same of a signal's name."""
        return any(name_of(number) == name for number in self._previous)

    def is_ours(self, number: int) -> bool:
        """Say whether our handler stands at this signal."""
        return signal.getsignal(number) is self._bound

    def _forward_to(self, fd: int) -> None:
        self._forward = (fd, _identity(fd)) if fd >= 0 else (-1, None)

    def forward(self, number: int) -> bool:
        """Pass a byte on to whoever owned the wakeup fd before us, if that is still the same open file; say whether."""
        fd, identity = self._forward
        if fd < 0 or _identity(fd) != identity:
            return False
        with contextlib.suppress(OSError):  # full: their loop has bytes enough to wake up
            os.write(fd, bytes((number,)))
        return True

    def chained(self) -> list[_Handler]:
        """Return the handlers of others."""
        return list(self._chained.values())

    def is_chained(self, number: int) -> bool:
        """Say whether somebody else handles this signal: uvloop owns the wakeup fd even where nobody has asked it for any."""
        return number in self._chained

    def has_chained(self) -> bool:
        """Say whether handlers of others wait to be called."""
        return bool(self._pending)

    def expel(self, status: int) -> bool:
        """Make the main thread leave with SystemExit(status), calling chained handlers first; False: no signal of ours is left."""
        self.exit_status = status
        return self._knock()

    def pend(self) -> int | None:
        """Have a stop handler of others wait to be called as if its signal had come; return that signal, None if there is no handler."""
        for number, handler in self._chained.items():
            self._pending = [(number, handler)]
            return number
        return None

    def unchain(self, wanted: Callable[[_Handler], bool]) -> dict[str, _Handler]:
        """Give handlers of others, by signal, to the caller, who knows better when to call them: we do not any more."""
        given = {number: handler for number, handler in self._chained.items() if wanted(handler)}
        for number in given:
            del self._chained[number]
        self._pending = [(number, handler) for number, handler in self._pending if handler not in given.values()]
        return {name_of(number): handler for number, handler in given.items()}

    def call(self, name: str, handler: _Handler) -> bool:
        """Have the main thread call a handler as if its signal had come; False: no signal of ours is left to do it by."""
        self._pending.append((int(signal.Signals[name]), handler))
        return self._knock()

    def call_chained(self) -> bool:
        """Have the main thread call the handlers of others that wait."""
        return self._knock()

    def knock_again(self) -> bool:
        """Knock once more if the main thread has not heard the last one; say whether."""
        return self._knocked and self._knock()

    def _knock(self) -> bool:
        if _in_greenlet():
            return False
        for number in self._previous:
            if self.is_ours(number):
                self._knocked = True
                if hasattr(signal, "pthread_kill"):
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                else:  # Windows: no signal can be sent to a thread
                    _thread.interrupt_main(signal.Signals(number))
                return True
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        chained = self._chained.get(number)
        if self._knocked:
            self._knocked = False
            pending, self._pending = self._pending, []
            for signum, handler in pending:
                handler(signum, frame)
            status, self.exit_status = self.exit_status, None
            if status is not None:
                raise SystemExit(status)
            return
        if not self.armed:  # somebody has kept our handler and put it back: the descriptor is another's by now
            return
        # Who owns the wakeup fd can only be asked by setting it: to ours, never to none, for a signal that came in between (another
        # thread may hold the interpreter for long here) would make no byte. One that comes while theirs is put back writes its own.
        asking, self._asking = self._asking, True
        owner = signal.set_wakeup_fd(self.fd, warn_on_full_buffer=False)
        if owner != self.fd:
            signal.set_wakeup_fd(owner, warn_on_full_buffer=False)
        self._asking = asking
        if owner != self.fd or asking:
            with contextlib.suppress(OSError):  # full: the engine has bytes enough to wake up
                os.write(self.fd, bytes((number,)))
        if chained is not None and (number, chained) not in self._pending:
            self._pending.append((number, chained))

    def disarm(self) -> None:
        """Give everything back, in reverse; what somebody else has put in our place since stays theirs."""
        if not self.armed:
            return
        self.armed = False
        if signal.signal is self._watching:
            setattr(signal, "signal", self._found)  # noqa: B010 - type checkers refuse the plain form
        for number, handler in reversed(self._previous.items()):
            if self.is_ours(number):
                self.install(number, handler)
        owner = signal.set_wakeup_fd(-1)
        fd, identity = self._forward
        if owner != self.fd:
            fd, identity = owner, _identity(owner)
        if fd >= 0 and _identity(fd) == identity:
            signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._previous.clear()
        self._chained.clear()

    def hold(self) -> set[Any]:
        """Block our signals in this thread, so that none is lost around a fork; the mask to give to `unhold`."""
        if not self.armed or not hasattr(signal, "pthread_sigmask"):
            return set()
        return signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def unhold(self, mask: set[Any]) -> None:
        """Undo `hold`."""
        if hasattr(signal, "pthread_sigmask") and self.armed:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def disarm_child(self, mask: set[Any]) -> None:
        """In a fork's child: handlers back to what they were, then the signals let in."""
        if not self.armed:
            return
        if in_main_thread():
            self.disarm()
        else:  # os.fork in a thread: it is the child's main thread now, which `threading` will know in a moment
            self.armed = False
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def tell_process(pidfd: int, name: str) -> None:
    """Send another process a signal, by a descriptor that names it for good; nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.Signals[name])


def _in_greenlet() -> bool:
    """Say whether threads are greenlets (gevent's monkey.patch_all): they run in the main thread, and their idents are no threads'.

    pthread_kill(3) with such an ident is undefined, and a handler would raise in the engine instead of in the main greenlet.
    """
    main = threading.main_thread()
    # In a fork's child Python (3.11) still names the parent's native id; Linux gives a process's main thread the process's own.
    return threading.current_thread() is not main and threading.get_native_id() in (main.native_id, os.getpid())


def _identity(fd: int) -> object:
    """Return what tells one open file from another that got its number later; None where it is closed."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino)
