"""What users hold: one service, as an object or through the module's functions."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from requiem_systemd import exits, slot
from requiem_systemd.accepting import Acceptor, Address, connections
from requiem_systemd.arming import Arming
from requiem_systemd.binding import Fallback
from requiem_systemd.errors import AbandonedError
from requiem_systemd.gate import in_main_thread
from requiem_systemd.hooks import running_loop
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.ledger import holding
from requiem_systemd.options import Options
from requiem_systemd.protocol import length
from requiem_systemd.wayout import EX_TEMPFAIL

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


class Service(Arming):
    """One service: tracks, drains, tells the manager.

    It works unarmed; `arm()`, or entering it as a context manager, takes signals and the manager's environment. The end of
    its `with` block begins the drain, waits until all is done, and gives everything back. The options are those of `initialize`;
    `environ` and `clock` stand in for the process's own in tests.
    """

    def __enter__(self) -> Self:
        self.arm()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        engine = self.engine
        self._main = "leaving" if in_main_thread() else self._main
        self.begin("the end of the with block" if kind is None else f"{kind.__name__} in the with block")
        engine.stopped.wait()
        limits = engine.drain.limits
        leave = limits.abandoned and engine.setting.options.exit and in_main_thread()
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

        It needs no `initialize`, and arms nothing. Raises ProtocolError for what cannot be a message.
        """
        return self._send(assignments)

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
        self._heed()
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

    def wait_begin(self, timeout: float | None = None) -> bool:
        """Wait until the drain begins. False: `timeout`, in seconds, ran out."""
        seconds = None if timeout is None else length("timeout", timeout)
        self.retake()
        before = self._heeds
        self._heed()
        begun = self.engine.begun.wait(seconds)
        if not begun and in_main_thread():
            self._heeds = before
        return begun

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

process: Service = Service()
slot.fill(process)


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
    - `health`: asked before each watchdog ping while running; of a Cluster in each worker, and not in the primary.
    - `redact`: sees each label and status before it leaves the process.

    REQUIEM_DRAIN_TIMEOUT, REQUIEM_REQUEST_TIMEOUT, REQUIEM_LAME_DUCK and REQUIEM_EXIT_TIMEOUT, set by the unit as systemd.time(7)
    spans, win over these. Again, with no or the same options: the same service. Raises RequiemError with others,
    NotMainThreadError outside the main thread of the main interpreter, ValueError for lengths that make no sense.
    """
    options = {name: value for name, value in locals().items() if value != getattr(Options(), name)}
    return process.arm(**options)
