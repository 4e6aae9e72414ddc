"""From unarmed to armed and back: one service's engine, what it takes from the process, and what a fork does to it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from requiem_systemd import exits, journal
from requiem_systemd.accepting import Acceptor
from requiem_systemd.doors import Doors
from requiem_systemd.engine import Engine
from requiem_systemd.errors import RequiemError
from requiem_systemd.gate import Gate, in_main_thread
from requiem_systemd.hooks import Hook, Hooks, running_loop
from requiem_systemd.ledger import Record, holding
from requiem_systemd.listen import Listeners
from requiem_systemd.loop import Clock
from requiem_systemd.notify import Notifier
from requiem_systemd.options import Options
from requiem_systemd.protocol import TAKEN, Environment, Place, give_back, read, take
from requiem_systemd.tracking import Tracking


class Arming(Tracking):
    """A service that can be armed: it takes signals and the manager's environment, and gives them back."""

    def __init__(
        self, *, environ: MutableMapping[str, str] | None = None, clock: Clock | None = None, **options: Any
    ) -> None:
        super().__init__()
        self._options = Options(**options).checked()
        self._environ = os.environ if environ is None else environ
        self._clock = clock or Clock()
        self._lock = threading.RLock()
        self._armed: Options | None = None
        self._stand_in: _StandIn | None = None
        self._main = ""
        self._heeds = False
        self.keepers: dict[object, bool] = {}  # tasks that wait for the end, and whether in the main thread
        self._fork_masks: dict[int, set[Any]] = {}  # by thread: several may fork at once
        self._hooked = False
        self._fresh()

    def _fresh(self) -> None:
        """Begin as unarmed."""
        self.environment: Environment = Environment()
        self._taken: dict[str, str] = {}
        self._peeked: Environment | None = None
        self.doors: Doors = Doors()
        self.listening: Listeners = Listeners(self._told, self._send)
        self._acceptors: dict[int, Acceptor] = {}
        self.hooks: Hooks = Hooks(self.ledger)
        self._engine: Engine | None = None

    # -- arming --------------------------------------------------------------------------------------------------------

    def arm(self, **options: Any) -> Self:
        """Take signals and environment and start the engine; see `initialize`."""
        wanted = Options(**options).checked() if options else self._options
        with self._lock:
            if self._armed is not None:
                if options and self._stand_in is not None and not self._stand_in.adopted:
                    self._adopt(wanted, self._stand_in)
                elif options and wanted != self._armed:
                    msg = f"initialize was called before, with other options: {_difference(self._armed, wanted)}; call it once, at the start"
                    raise RequiemError(msg)
                return self
            engine = self._engine or self._make_engine()
            gate = Gate(engine.loop.wakeup_fd)
            if wanted.signals:
                gate.arm()
            self._armed = wanted
            self._take(engine, wanted, gate)
        return self

    def arm_with(self, *, environ: MutableMapping[str, str], clock: Clock, **options: Any) -> Self:
        """Arm by another environment and clock than the process's own, for `testing`; `close` gives both back.

        The options of the first `initialize` that comes then are taken over, but its signals and its exit. Handlers that were
        registered before outlive `close`: those of module level are registered once.
        """
        with self._lock:
            if self._armed is not None or self.draining():
                msg = "the service is armed already, or draining: close() it first"
                raise RequiemError(msg)
            engine, self._engine = self._engine, None
            if engine is not None:  # somebody has asked before: it counts by the other clock
                engine.close()
            self._stand_in = _StandIn(self._environ, self._clock, self.hooks.registered())
            self._environ, self._clock = environ, clock
            try:
                return self.arm(**options)
            except BaseException:
                self._stand_down()
                raise

    def _adopt(self, wanted: Options, stand_in: _StandIn) -> None:
        """Take over the options of an `initialize` that comes when a test has armed the service already."""
        stand_in.adopted = True
        exit_on = self.engine.setting.options.exit
        self._armed = wanted
        self.engine.setting.options = wanted._replace(exit=exit_on).overridden(self.environment.limits)

    def _stand_down(self) -> None:
        """Give the process's own environment and clock back."""
        stand_in, self._stand_in = self._stand_in, None
        if stand_in is not None:
            self._environ, self._clock = stand_in.environ, stand_in.clock
            self.hooks.restore(stand_in.handlers)
            self.use_clock(self._clock.now)

    def _take(self, engine: Engine, options: Options, gate: Gate) -> None:
        self.environment = self._read()
        if options.take_environment:
            self.listening.seal()
            self._taken = take(self._environ)
        journal.install(self.environment)
        self.use_clock(self._clock.now)
        self.hooks.loop = running_loop() or self.hooks.loop
        self.hooks.open()
        exit_on = options.exit if options.exit is not None else not _belongs_to_somebody_else()
        engine.wayout.main_is_free = self._main_is_free
        engine.wayout.main_heeds = lambda: self._heeds
        wanted = options._replace(exit=exit_on).overridden(self.environment.limits)
        engine.arm(wanted, self.environment, gate if options.signals else None)
        self._run(engine)
        if not self._hooked:
            self._hooked = True
            exits.at_main_threads_end(self._main_ended)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._forked)

    def _make_engine(self) -> Engine:
        self._engine = Engine(self.ledger, self.hooks, self.doors, self._clock)
        self._engine.stopped.then(self.listening.unlink)
        return self._engine

    def _run(self, engine: Engine) -> None:
        if not engine.loop.thread.ident:
            engine.start()

    @property
    def engine(self) -> Engine:
        """The engine, started where it is not: a drain can begin, and a process be waited for, in an unarmed service too."""
        with self._lock:
            engine = self._engine or self._make_engine()
            self._run(engine)
            return engine

    @property
    def running_engine(self) -> Engine | None:
        """The engine where there is one: whoever only looks starts none."""
        return self._engine

    def close(self) -> None:
        """Give everything back; the service is unarmed again."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is None:
                self.listening.close()
                return
            if engine.wayout.gate is not None:
                engine.wayout.gate.disarm()
            engine.close()
            self.hooks.close()
            self.doors.reset()
            give_back(self._environ, self._taken, listeners=not self.listening.adopted)
            self.listening.close()
            journal.uninstall()
            self._armed = None
            self._main = ""
            self._heeds = False
            self.keepers.clear()
            self.ledger.reset()
            self._fresh()
            self._stand_down()

    def outlast(self) -> None:
        """Hold the main thread's end before what has registered for it since we were armed, such as a pool that then takes no more jobs."""
        if self._hooked:
            exits.at_main_threads_end(self._main_ended)  # hooks run last registered first; ours, again, has nothing left to do

    def begin(self, reason: str = "") -> None:
        """Begin the drain; any thread, any number of times."""
        engine = self.engine
        engine.loop.call(lambda: engine.begin(reason or "begin()"))

    # -- the manager, the main thread and the children -----------------------------------------------------------------

    def _told(self) -> Environment:
        """Return what the manager told; before the service is armed it is read, not taken."""
        if self._armed is not None or self.environment != Environment():
            return self.environment
        if self._peeked is None:
            self._peeked = self._read()
        return self._peeked

    def _read(self) -> Environment:
        environment = read(self._environ, os.getpid(), _own_pidfdid(self._environ))
        if self._environ is os.environ and not environment.listeners and "twisted.internet.endpoints" in sys.modules:
            from requiem_systemd.adapters import twistedports  # noqa: PLC0415 - where Twisted is loaded

            environment = environment._replace(listeners=twistedports.passed())
        return environment

    def _send(self, assignments: Mapping[str, object], fds: Sequence[int] = ()) -> bool:
        """Tell the manager, also before the service is armed."""
        if self._engine is not None and self._engine.notifier:
            return self._engine.notifier.send(assignments, fds)
        notifier = Notifier(self._told().notify_socket)
        try:
            return notifier.send(assignments, fds)
        finally:
            notifier.close()

    @property
    def place(self) -> Place | None:
        """What a primary told this process, where it is a worker of a cluster."""
        return self._told().worker

    def variables(self) -> dict[str, str]:
        """Return the environment that a worker of ours gets: without what is for this process alone."""
        above = self.environment.notify_socket
        found = {name: value for name, value in self._environ.items() if name not in TAKEN}
        return found if above is None else {**found, "REQUIEM_MANAGER": above}

    @property
    def armed(self) -> bool:
        """Whether the service is armed."""
        return self._armed is not None

    def follow(self, record: Record, pid: int) -> None:
        """Hold the stop by a record that is entered until a child process has ended; it is not reaped here."""
        self._joins._follow(record, pid, lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT))  # noqa: SLF001

    def _watch(self, fd: int, ended: Callable[[], object]) -> None:
        """Call `ended` once, when `fd` is readable, and close it."""
        loop = self.engine.loop

        def readable() -> None:
            loop.unreader(fd)
            os.close(fd)
            ended()

        loop.post(lambda: loop.reader(fd, readable))

    @property
    def gate(self) -> Gate | None:
        """What holds the signals, where the service is armed with them."""
        return None if self._engine is None else self._engine.wayout.gate

    def retake(self) -> None:
        """Take back, in the main thread, signals that somebody took since; their handlers are called when the ledger is empty."""
        if self.gate is not None:
            self.gate.retake()

    def release_signals(self) -> None:
        """Leave the signals to a server that keeps them for itself: it calls `engine.heard`."""
        if self.gate is not None:
            self.gate.disarm()
            self.engine.wayout.gate = None

    def lend_listeners(self) -> None:
        """Put LISTEN_* back into the environment, for a server that looks at it later than we did; it takes the descriptors."""
        give_back(self._environ, {name: value for name, value in self._taken.items() if name.startswith("LISTEN_")}, listeners=True)

    def reclaim_listeners(self) -> None:
        """Take out of the environment what such a server has left of LISTEN_*."""
        take(self._environ)

    def _shown(self, text: str) -> str:
        return text if self._engine is None else self._engine.setting.shown(text)

    def _heed(self) -> None:
        # Under an event loop it is some task that asks, not the program.
        if not self._heeds and in_main_thread() and running_loop() is None:
            self._heeds = True

    @contextmanager
    def keeping_main(self) -> Iterator[None]:
        """Leave the main thread alone: whoever is in the block sees to its end when all is done."""
        if not in_main_thread():
            yield
            return
        before, self._main = self._main, "waiting"
        try:
            yield
        finally:
            self._main = "leaving" if self.engine.stopped else before

    def release(self, keeper: object) -> None:
        """Let the main thread be made to leave as far as this keeper is concerned."""
        self.keepers.pop(keeper, None)
        if self._engine is not None:
            self._engine.loop.wake()

    def _main_is_free(self, *, forced: bool) -> bool:
        """Say whether the main thread may be made to leave, out of an abandoned job too; `forced`: out of any."""
        if self._main or any(self.keepers.values()):
            return False
        entries = holding(self.ledger, threading.main_thread().ident or 0)
        return forced or not any(entry.extra() is None or not entry.more.abandoned for entry in entries)

    def _main_ended(self) -> None:
        """The main thread has ended, by whatever way: begin, and keep the interpreter until the ledger is empty."""
        engine = self._engine
        if engine is None or self._armed is None:
            return
        self._main = "leaving"
        self.begin("the main thread ended")
        engine.stopped.wait()
        if engine.drain.limits.owners and engine.setting.options.exit:
            exits.leave(engine.wayout.status, engine.drain.limits.owners)

    def _before_fork(self) -> None:
        if self.gate is not None:
            self._fork_masks[threading.get_ident()] = self.gate.hold()

    def _after_fork(self) -> None:
        if self.gate is not None:
            self.gate.unhold(self._fork_masks.pop(threading.get_ident(), set()))

    def _forked(self) -> None:
        """In a fork's child: nothing of the parent's is in flight here, and nobody hears of us."""
        engine = self._engine
        self._lock = threading.RLock()
        self._armed = None
        self._main = ""
        self._heeds = False
        self.keepers.clear()
        self.ledger.reset()
        if engine is not None:
            if engine.wayout.gate is not None:
                engine.wayout.gate.disarm_child(self._fork_masks.pop(threading.get_ident(), set()))
            engine.close_child()
        journal.uninstall()
        listening = self.listening
        self._fresh()
        self.listening.inherit(listening)
        self._joins = type(self._joins)(self.ledger, self._watch, self._shown)


class _StandIn:
    """What `arm_with` has put others in place of."""

    def __init__(self, environ: MutableMapping[str, str], clock: Clock, handlers: Mapping[str, Sequence[Hook]]) -> None:
        self.environ = environ
        self.clock = clock
        self.handlers = handlers
        self.adopted = False


def _difference(armed: Options, wanted: Options) -> str:
    return ", ".join(
        f"{name}={theirs!r} instead of {ours!r}"
        for name, ours, theirs in zip(armed._fields, armed, wanted, strict=True)
        if ours != theirs
    )


def _belongs_to_somebody_else() -> bool:
    """Say whether the main thread is a test runner's or a shell's, which must not be made to leave."""
    if sys.flags.interactive or hasattr(sys, "ps1") or "_pytest" in sys.modules:
        return True
    shell: Any = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


def _own_pidfdid(environ: Mapping[str, str]) -> int | None:
    """Return the inode of our own pidfd where the manager names one (systemd 259) and the kernel tells (pidfs, 6.9)."""
    if "LISTEN_PIDFDID" not in environ or not hasattr(os, "pidfd_open"):
        return None
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError:
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
