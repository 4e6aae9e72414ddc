"""What users hold: one service, as an object or through the module's functions."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from requiem_systemd import exits, journal
from requiem_systemd.accepting import Acceptor, Address, connections
from requiem_systemd.binding import Fallback
from requiem_systemd.doors import Doors
from requiem_systemd.engine import Engine
from requiem_systemd.errors import AbandonedError, RequiemError
from requiem_systemd.gate import Gate
from requiem_systemd.hooks import Hook, Hooks, running_loop
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.ledger import Record, holding
from requiem_systemd.listen import Listeners
from requiem_systemd.loop import Clock
from requiem_systemd.notify import Notifier
from requiem_systemd.options import Options
from requiem_systemd.protocol import Environment, length, read, take
from requiem_systemd.tracking import Tracking
from requiem_systemd.wayout import EX_TEMPFAIL

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


class Service(Tracking):
    """One service: tracks, drains, tells the manager.

    It works unarmed; `arm()`, or entering it as a context manager, takes signals and the manager's environment. The end of
    its `with` block begins the drain, waits until all is done, and gives everything back. The options are those of `initialize`;
    `environ` and `clock` stand in for the process's own in tests.
    """

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
        self._fork_masks: dict[int, set[Any]] = {}  # by thread: several may fork at once
        self._hooked = False
        self._fresh()

    def _fresh(self) -> None:
        """Begin as unarmed."""
        self.environment: Environment = Environment()
        self._peeked: Environment | None = None
        self.doors: Doors = Doors()
        self.listening: Listeners = Listeners(self._told, self._send)
        self._acceptors: dict[int, Acceptor] = {}
        self.hooks: Hooks = Hooks(self.ledger)
        self._engine: Engine | None = None
        self._pending: list[Callable[[Engine], object]] = []

    # -- arming --------------------------------------------------------------------------------------------------------

    def arm(self, **options: Any) -> Service:
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

    def arm_with(self, *, environ: MutableMapping[str, str], clock: Clock, **options: Any) -> Service:
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
        self.environment = read(self._environ, os.getpid(), _own_pidfdid(self._environ))
        if options.take_environment:
            self.listening.seal()
            take(self._environ)
        journal.install(self.environment)
        self.use_clock(self._clock.now)
        self.hooks.loop = running_loop() or self.hooks.loop
        exit_on = options.exit if options.exit is not None else not _belongs_to_somebody_else()
        engine.wayout.main_is_free = self._main_is_free
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
            self.listening.close()
            journal.uninstall()
            self._armed = None
            self._main = ""
            self.ledger.reset()
            self._fresh()
            self._stand_down()

    def __enter__(self) -> Self:
        self.arm()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        engine = self.engine
        self._main = "leaving" if _in_main_thread() else self._main
        self.begin("the end of the with block" if kind is None else f"{kind.__name__} in the with block")
        engine.stopped.wait()
        limits = engine.drain.limits
        leave = limits.abandoned and engine.setting.options.exit and _in_main_thread()
        self.close()
        if leave:
            exits.leave(EX_TEMPFAIL, limits.owners)
        if limits.abandoned and kind is None:
            raise AbandonedError(limits.abandoned)

    # -- what users say ------------------------------------------------------------------------------------------------

    def ready(self, status: str = "") -> None:
        """Say READY=1: the service is up. With `status`, a STATUS line too. Once draining: nothing."""
        self.retake()
        engine = self.engine
        engine.loop.call(lambda: engine.ready(status))

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`; in the drain behind the drain's own."""
        engine = self.engine
        engine.loop.call(lambda: engine.set_status(text))

    @contextmanager
    def starting(self, label: str) -> Iterator[None]:
        """Extend the manager's start timeout while the block runs (TimeoutStartSec=)."""
        engine = self.engine
        engine.loop.call(lambda: engine.starting(label))
        try:
            yield
        finally:
            engine.loop.call(lambda: engine.started(label))

    def notify(self, **assignments: object) -> bool:
        """Send one sd_notify(3) datagram. False: there is no manager. True: sent. OSError: it could not be sent.

        Raises ProtocolError for what cannot be a message.
        """
        return self.engine.notifier.send(assignments)

    @overload
    def on(self, event: str, fn: F) -> F: ...
    @overload
    def on(self, event: str, fn: None = None) -> Callable[[F], F]: ...
    def on(self, event: str, fn: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Have a function called at an event; a decorator, or a call with `fn`.

        Events: `begin(reason)`, the drain begins, listeners are not closed yet; `reload()`; `stalled(JobInfo)`; `dead(status)`,
        the last thing before the exit, plain functions only. A handler that takes no argument is called with none. Plain
        functions run in a thread of their own, one after another; coroutine functions in the loop that was running when `on`,
        `initialize` or `aio.run` was called. Raises ValueError for an unknown event, RuntimeError where there is no loop.
        """
        if fn is None:
            self.hooks.check(event)
            return lambda function: self.on(event, function)
        self.hooks.add(event, fn, armed=self._armed is not None)
        return fn

    # -- the ways in ---------------------------------------------------------------------------------------------------

    def listener(self, name: str, *, fallback: Fallback | None = None, keep: bool = False) -> socket.socket:
        """Return the listener of a name: the socket unit's with that FileDescriptorName=, else the one in the manager's fd store,
        else one bound at `fallback`, which is `(host, port)`, or a path for AF_UNIX.

        `keep`: put a bound one into the fd store (FileDescriptorStoreMax= must be set), so that the port stays open over a
        restart; under no manager it does nothing. The same name again: the same object. Raises ListenerError where several were
        passed under the name (take `listeners()`), where none was and there is no fallback, and where it cannot be bound.
        """  # noqa: D205 - the sentence is the list
        return self.listening.listener(name, fallback=fallback, keep=keep)

    def listeners(self) -> Mapping[str, tuple[socket.socket, ...]]:
        """Return all sockets that the manager passed, by name."""
        return self.listening.listeners()

    def accept(self, sock: socket.socket) -> Iterator[tuple[socket.socket, Address]]:
        """Iterate over `(connection, address)` until the drain closes the listener (after a lame duck); then close it.

        Connections block and are not tracked. Several threads may accept on one listener. No thread is left blocked in it. What
        waits at the begin is still accepted and served, but of a socket unit's listener left for the next process.
        """
        return connections(self.acceptor(sock))

    def acceptor(self, sock: socket.socket) -> Acceptor:
        """Return what accepts on a listener: one, whoever asks."""
        with self._lock:
            acceptor = self._acceptors.get(id(sock))
            if acceptor is None or acceptor.sock is not sock:
                for gone in [key for key, other in self._acceptors.items() if other.sock.fileno() < 0]:
                    self.doors.remove(self._acceptors.pop(gone))
                acceptor = self._acceptors[id(sock)] = Acceptor(self, sock)
        return acceptor

    def track_socket(self, server: S, *, keepalive_grace: float = 0.5) -> S:
        """Have the drain close a server, and hold the stop while it answers; returns it.

        Call it before the server serves (later is a RuntimeError for socketserver). At the begin the thread that accepts stops,
        then the listener is unregistered and closed, and `serve_forever()` returns. What holds the stop, by kind: of `http.server`
        a request, first byte to last byte of its answer; of other `socketserver`s a handler's call, and one that is blocked in a
        read gets EOF after `keepalive_grace` seconds of silence; of `asyncio.Server` and a bare `socket` the listener only. A
        connection that was taken over (101, text/event-stream) holds nothing unless tracked.

        From the begin every HTTP answer carries Connection: close; an idle keep-alive connection may send one more request, and is
        closed after `keepalive_grace` seconds of silence. Raises TypeError for a server of no known kind;
        `requiem_systemd.adapters.register` adds one.
        """
        from requiem_systemd import adapters  # noqa: PLC0415 - loaded when asked for: the core stands alone

        adapters.attach(self, server, length("keepalive_grace", keepalive_grace))
        return server

    # -- the drain -----------------------------------------------------------------------------------------------------

    def begin(self, reason: str = "") -> None:
        """Begin the drain; any thread, any number of times."""
        engine = self.engine
        engine.loop.call(lambda: engine.begin(reason or "begin()"))

    def wait_begin(self, timeout: float | None = None) -> bool:
        """Wait until the drain begins. False: `timeout`, in seconds, ran out."""
        self.retake()
        return self.engine.begun.wait(None if timeout is None else length("timeout", timeout))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the service has drained and all is done. False: `timeout`, in seconds, ran out.

        Raises AbandonedError if jobs were abandoned; RuntimeError in a thread with a running event loop (use `aio.wait`) and inside
        a tracker of the same thread, where it could never return.
        """
        seconds = None if timeout is None else length("timeout", timeout)
        if running_loop() is not None:
            msg = "wait() would block the running event loop; write: await requiem_systemd.aio.wait()"
            raise RuntimeError(msg)
        mine = [entry for entry in holding(self.ledger, threading.get_ident()) if entry.extra() is None or not entry.more.abandoned]
        if mine:
            msg = f'wait() inside the tracker "{mine[0].name}" of the same thread could never return; call it outside'
            raise RuntimeError(msg)
        self.retake()
        engine = self.engine
        with self.keeping_main():
            done = engine.stopped.wait(seconds)
        if done and engine.drain.limits.abandoned:
            raise AbandonedError(engine.drain.limits.abandoned)
        return done

    def in_flight(self) -> tuple[JobInfo, ...]:
        """Show what holds the stop now, oldest first."""
        self._joins.joiner.sweep()
        return self.engine.drain.jobs()

    # -- the process ---------------------------------------------------------------------------------------------------

    def _told(self) -> Environment:
        """Return what the manager told; before the service is armed it is read, not taken."""
        if self._armed is not None or self.environment != Environment():
            return self.environment
        if self._peeked is None:
            self._peeked = read(self._environ, os.getpid(), _own_pidfdid(self._environ))
        return self._peeked

    def _send(self, assignments: Mapping[str, object], fds: Sequence[int]) -> bool:
        """Tell the manager, also before the service is armed."""
        if self._engine is not None and self._engine.notifier:
            return self._engine.notifier.send(assignments, fds)
        notifier = Notifier(self._told().notify_socket)
        try:
            return notifier.send(assignments, fds)
        finally:
            notifier.close()

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

    @contextmanager
    def keeping_main(self) -> Iterator[None]:
        """Leave the main thread alone: whoever is in the block sees to its end when all is done."""
        if not _in_main_thread():
            yield
            return
        before, self._main = self._main, "waiting"
        try:
            yield
        finally:
            self._main = "leaving" if self.engine.stopped else before

    def _main_is_free(self, *, forced: bool) -> bool:
        """Say whether the main thread may be made to leave; `forced`: even out of an abandoned job."""
        if self._main:
            return False
        return forced or not any(holding(self.ledger, threading.main_thread().ident or 0))

    def _main_ended(self) -> None:
        """The main thread has ended, by whatever way: begin, and keep the interpreter until the ledger is empty."""
        engine = self._engine
        if engine is None or self._armed is None:
            return
        self._main = "leaving"
        self.begin("the main thread ended")
        engine.stopped.wait()
        if engine.drain.limits.abandoned and engine.setting.options.exit:
            exits.leave(EX_TEMPFAIL, engine.drain.limits.owners)

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
        self.ledger.reset()
        if engine is not None:
            if engine.wayout.gate is not None:
                engine.wayout.gate.disarm_child(self._fork_masks.pop(threading.get_ident(), set()))
            engine.close_child()
        journal.uninstall()
        listening = self.listening
        self._fresh()
        self.listening.inherit(listening)
        self._joins = type(self._joins)(self.ledger, self._watch)


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


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


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


process: Service = Service()


def initialize(  # noqa: PLR0913 - the contract
    *,
    drain_timeout: float | None = None,
    request_timeout: float = 30.0,
    lame_duck: float | Literal["jobs"] = 0.0,
    exit: bool | None = None,  # noqa: A002 - the contract's name
    exit_timeout: float = 90.0,
    health: Callable[[], object] | None = None,
    signals: bool = True,
    take_environment: bool = True,
    redact: Callable[[str], str] | None = None,
) -> Service:
    """Arm the process's service; lengths in seconds.

    Takes NOTIFY_SOCKET, LISTEN_*, WATCHDOG_* (and removes them from `os.environ`, so that children cannot speak for us;
    `take_environment=False` where a framework notifies by itself), arms SIGTERM, SIGINT, SIGHUP and SIGQUIT, starts the engine.

    - `drain_timeout`: how long a drain may last in all; None: as long as the jobs.
    - `request_timeout`: how long a request or connection may hold it.
    - `lame_duck`: how long listeners stay open after the begin; "jobs": until the jobs that were in flight have ended.
    - `exit`: whether the process leaves when all is done; None: yes, but not where the main thread is a test runner's or a shell's.
    - `exit_timeout`: how long the way out may take before it is cut short, with status 75.
    - `health`: asked before each watchdog ping while running.
    - `redact`: sees each label and status before it leaves the process.

    REQUIEM_DRAIN_TIMEOUT, REQUIEM_REQUEST_TIMEOUT, REQUIEM_LAME_DUCK and REQUIEM_EXIT_TIMEOUT, set by the unit as systemd.time(7)
    spans, win over these. Again, with no or the same options: the same service. Raises RequiemError with others,
    NotMainThreadError outside the main thread of the main interpreter, ValueError for lengths that make no sense.
    """
    options = {name: value for name, value in locals().items() if value != getattr(Options(), name)}
    return process.arm(**options)
