"""A manager that plays systemd for one service: in this process by a virtual clock, or for a child process in real time."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from requiem_systemd import service as services
from requiem_systemd.loop import Clock, Loop
from requiem_systemd.protocol import TAKEN
from requiem_systemd.testing.child import Child
from requiem_systemd.testing.clock import FakeClock
from requiem_systemd.testing.inside import Inside
from requiem_systemd.testing.mailbox import Letter, Mailbox, close_all
from requiem_systemd.testing.store import FdStore
from requiem_systemd.testing.unit import INFINITY, Settings, Unit, environment, parse

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence

    from requiem_systemd.service import Service

# A real manager deletes its generators' folders so long before it counts its timers again (systemd 252 to 262).
RELOAD_TAKES: Final = 0.1


class Message(NamedTuple):
    """One datagram: seconds since the start, the sender, its assignments."""

    at: float
    pid: int
    values: Mapping[str, str]


class Kill(NamedTuple):
    """One signal from the manager: seconds since the start, its name, the unit's state then."""

    at: float
    signal: str
    state: str


class FakeManager:
    """Plays systemd: its unit's states, its timers, its signals; the version's rules where versions differ.

    In this process, by a virtual clock::

        with FakeManager(timeout_stop=10) as manager:
            service = manager.arm(Service())
            service.ready()
            with service.track("export"):
                manager.stop()
                manager.advance(600)
                assert manager.state == "stop-sigterm"
                assert "export" in manager.status
            manager.wait_for("dead")
            assert manager.result == "success"

    Or for a program, in real time: `manager.spawn([sys.executable, "app.py"])`.

    The keywords are the unit's: `type`, `timeout_start`, `timeout_stop`, `watchdog` (seconds), `notify_access`, `fd_store_max`, and
    systemd's `version`. `folder`: where its runtime folder `systemd` is made; None: a temporary one. `abstract`: a socket in the
    abstract namespace.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        clock: FakeClock | None = None,
        abstract: bool = False,
        **settings: Any,
    ) -> None:
        self.settings: Settings = Settings(**settings)
        self.clock: FakeClock = clock or FakeClock()
        self.unit: Unit = Unit(self.settings, self._kill)
        self.mailbox: Mailbox = Mailbox(folder, abstract=abstract)
        self.store: FdStore = FdStore(self.settings.fd_store_max)
        self._messages: list[Message] = []
        self._rejected: list[Message] = []
        self._kills: list[Kill] = []
        self._changed = threading.Condition(threading.RLock())
        self._sockets: list[tuple[str, socket.socket]] = []
        self._inside: Inside | None = None
        self._child: Child | None = None
        self._loop: Loop | None = None
        self._started = 0.0
        self._reloading = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what is seen --------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """NOTIFY_SOCKET."""
        return self.mailbox.address

    @property
    def state(self) -> str:
        """The unit's state: start, running, reload, reload-signal, reload-notify, stop-sigterm, stop-watchdog, stop-sigkill, dead, failed."""
        self._look()
        return self.unit.state

    @property
    def result(self) -> str:
        """What `systemctl show -P Result` says: success, timeout, watchdog, exit-code, signal, protocol."""
        self._look()
        return self.unit.result

    @property
    def status(self) -> str:
        """The line in `systemctl status`."""
        self._look()
        return self.unit.status

    @property
    def messages(self) -> list[Message]:
        """What it was told, and listened to."""
        self._look()
        return self._messages

    @property
    def rejected(self) -> list[Message]:
        """What it was told and did not listen to: by the wrong process, after the end, or no message."""
        self._look()
        return self._rejected

    @property
    def kills(self) -> list[Kill]:
        """The signals that it sent."""
        self._look()
        return self._kills

    @property
    def sent(self) -> list[str]:
        """The names of all assignments that came, in order, but those that only say how long and what."""
        quiet = ("STATUS", "EXTEND_TIMEOUT_USEC", "MONOTONIC_USEC")
        return [key for message in self.messages for key in message.values if key not in quiet]

    @property
    def remaining(self) -> float:
        """Seconds until the running timeout ends; infinity where none runs."""
        self._look()
        return self.unit.deadline - self._now()

    # -- in this process -----------------------------------------------------------------------------------------------

    def arm(
        self,
        service: Service | None = None,
        *,
        environ: Mapping[str, str] = MappingProxyType({}),
        **options: Any,
    ) -> Service:
        """Be the manager of a service in this process; None: of the process's own, which the module's functions act on.

        `options` are those of `initialize`, `environ` is what the unit sets beside (REQUIEM_*). No signal is taken, nothing exits.
        """
        service = services.process if service is None else service
        variables = environment(self.settings, self.address, pid=os.getpid())
        self._begin(self.clock.now())
        self._inside = Inside(service, self.clock, {**variables, **environ}, options)
        self._inside.connect(self.mailbox)
        self._inside.sync()
        self.clock.attach(self)
        self.clock.settle()
        return service

    def advance(self, seconds: float) -> None:
        """Let virtual seconds pass, and what is due happen."""
        self._inside_only("advance")
        self.clock.advance(seconds)

    def quiesce(self) -> bool:
        """See `clock.Participant`."""
        return self._inside is not None and self._inside.quiesce()

    def turn(self) -> bool:
        """See `clock.Participant`."""
        with self._changed:
            for letter in [] if self._reloading else self.mailbox.take():
                self._receive(letter)
            self._see_end()
            fired = not self._reloading and self.unit.expire(self._now())
            self._changed.notify_all()
        return fired

    def due(self) -> float:
        """See `clock.Participant`."""
        return INFINITY if self._reloading else self.unit.due()

    # -- a program -----------------------------------------------------------------------------------------------------

    def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program as the unit's main process, in real time.

        It gets NOTIFY_SOCKET, the watchdog, the listeners of `listen()` and what the fd store keeps from descriptor 3 on. `env` is put
        on top of this process's environment; `options` go to `subprocess.Popen`.
        """
        self._end_child()
        stored = self.store.kept()
        passed = [(name, sock.fileno()) for name, sock in self._sockets] + stored
        own = {name: value for name, value in os.environ.items() if name not in TAKEN}
        variables = environment(self.settings, self.address, tuple(name for name, _ in passed))
        self._begin(time.monotonic())
        child = Child(argv, {**own, **(env or {}), **variables}, [fd for _, fd in passed], options)
        self._child = child
        loop = self._loop = Loop(Clock(), int, self._each_turn)
        if self.mailbox.socket is not None:
            loop.reader(self.mailbox.socket.fileno(), _nothing)
        child.watch(loop.reader, lambda: self._unwatch(child, loop))
        loop.start()
        return child.process

    def listen(self, name: str, address: Any = ("127.0.0.1", 0)) -> socket.socket:
        """Listen as a socket unit of that FileDescriptorName= does; passed to what is spawned from then on."""
        family = (
            socket.AF_UNIX
            if isinstance(address, (str, bytes))
            else socket.AF_INET6
            if len(address) > 2
            else socket.AF_INET
        )
        listener = socket.socket(family, socket.SOCK_STREAM)
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
        self._sockets.append((name, listener))
        return listener

    # -- what operators do ---------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """`systemctl stop --no-block`."""
        self._act(lambda: self.unit.stop(self._now()))

    def reload(self) -> None:
        """`systemctl reload --no-block`: SIGHUP, under Type=notify-reload with an answer that is waited for."""
        self._act(lambda: self.unit.reload(self._now(), time.monotonic_ns() // 1000))

    def kill(self, name: str) -> None:
        """`systemctl kill -s NAME --kill-whom=main`."""
        self._act(lambda: self._kill(name))

    def daemon_reload(self) -> None:
        """`systemctl daemon-reload`: the generators' folders are made anew, then every extension is forgotten."""
        if self._child is not None and self._loop is not None:
            self._loop.call(self._reload_for_real)
            return
        self.clock.settle()
        self.mailbox.dance()
        self.clock.rest()
        self.unit.daemon_reload()
        self.clock.settle()

    def wait_for(self, what: str | Callable[[], object], timeout: float = 10.0) -> None:
        """Wait, at most `timeout` real seconds, for a state of the unit or until a question about this manager is answered with yes.

        In this process no virtual time passes meanwhile. Raises TimeoutError.
        """
        asked = (lambda: self.unit.state == what) if isinstance(what, str) else what
        deadline = time.monotonic() + timeout
        while True:
            self._look()
            with self._changed:
                if asked():
                    return
                left = deadline - time.monotonic()
                if left > 0 and self._child is not None:
                    self._changed.wait(left)
                    continue
            if left <= 0:
                msg = f"waited {timeout} s for {what}: {self!r}"
                raise TimeoutError(msg)
            self._wait_inside(left)

    def wait_message(self, key: str, value: str | None = None, timeout: float = 10.0) -> Message:
        """Wait for a message with an assignment, and return the first."""
        self.wait_for(lambda: self._find(key, value), timeout)
        found = self._find(key, value)
        assert found is not None  # noqa: S101 - for mypy: it was waited for
        return found

    def close(self) -> None:
        """End what runs, and give everything back."""
        self._end_child()
        inside, self._inside = self._inside, None
        if inside is not None:
            self.clock.detach(self)
            inside.close()
        self.store.clear()
        for _, listener in self._sockets:
            listener.close()
        self._sockets.clear()
        self.mailbox.close()

    def __repr__(self) -> str:
        last = self._messages[-1] if self._messages else None
        return f"<FakeManager {self.unit.state}, result {self.unit.result}, status {self.unit.status!r}, kills {self._kills}, last {last}>"

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() if self._child is not None else self.clock.now()

    def _begin(self, now: float) -> None:
        self._started = now
        self._messages, self._rejected, self._kills = [], [], []
        self.unit.start(now)

    def _inside_only(self, call: str) -> None:
        if self._inside is None:
            msg = f"{call}() moves a virtual clock: arm() a service in this process first; a spawned program runs in real time"
            raise RuntimeError(msg)

    def _act(self, action: Callable[[], object]) -> None:
        self._look()
        with self._changed:
            action()
        if self._inside is not None:
            self.clock.settle()
        elif self._loop is not None:
            self._loop.wake()

    def _look(self) -> None:
        """See what has come meanwhile; virtual time stands still."""
        if self._inside is not None:
            self.clock.settle()

    def _find(self, key: str, value: str | None) -> Message | None:
        found = (
            message
            for message in self._messages
            if key in message.values and value in (None, message.values[key])
        )
        return next(found, None)

    def _kill(self, name: str) -> None:
        main = self._inside or self._child
        self._kills.append(Kill(self._now() - self._started, name, self.unit.state))
        if main is not None and main.kill(name):
            self.unit.exited(self._now(), signal=name)

    def _receive(self, letter: Letter) -> None:
        """Take one datagram, if its sender may speak."""
        pairs, now = parse(letter.data), self._now()
        message = Message(now - self._started, letter.pid, MappingProxyType(dict(pairs)))
        if (
            "BARRIER" in message.values
        ):  # closing its descriptor is the answer; nothing else in that datagram counts
            close_all(letter.fds)
            return
        main = self._inside or self._child
        allowed = self.settings.notify_access == "all" or (
            self.settings.notify_access == "main" and main is not None and letter.pid == main.pid
        )
        if not pairs or not allowed or self.unit.state in ("dead", "failed"):
            self._rejected.append(message)
            close_all(letter.fds)
            return
        self._messages.append(message)
        self.store.message(message.values, letter.fds)
        self.unit.message(pairs, now)

    def _see_end(self) -> None:
        if self.unit.state in ("dead", "failed"):
            return
        if self._inside is not None and (status := self._inside.ended()) is not None:
            self.unit.exited(self._now(), code=status)
        elif self._child is not None and (end := self._child.ended()) is not None:
            self.unit.exited(self._now(), code=end[0], signal=end[1])

    def _wait_inside(self, timeout: float) -> None:
        with selectors.DefaultSelector() as selector:
            if self.mailbox.socket is not None:
                selector.register(self.mailbox.socket, selectors.EVENT_READ)
            stopped = self._inside.stopped() if self._inside is not None else None
            if stopped is not None:
                selector.register(stopped, selectors.EVENT_READ)
            selector.select(timeout)

    # -- a program, in the loop's thread -------------------------------------------------------------------------------

    def _each_turn(self) -> None:
        loop = self._loop
        if loop is None:
            return
        while self.turn():
            continue
        due = self.due()
        if due < INFINITY:
            loop.alarm(_nothing, due)
        else:
            loop.cancel(_nothing)

    def _unwatch(self, child: Child, loop: Loop) -> None:
        child.unwatch(loop.unreader)

    def _reload_for_real(self) -> None:
        loop = self._loop
        if loop is None or self.mailbox.socket is None:
            return
        self._reloading = True
        loop.unreader(self.mailbox.socket.fileno())
        self.mailbox.dance()
        loop.alarm(self._reloaded, time.monotonic() + RELOAD_TAKES)

    def _reloaded(self) -> None:
        if self._loop is not None and self.mailbox.socket is not None:
            self._loop.reader(self.mailbox.socket.fileno(), _nothing)
        self._reloading = False
        self.unit.daemon_reload()

    def _end_child(self) -> None:
        child, loop = self._child, self._loop
        if child is None or loop is None:
            return
        child.close()
        loop.stop()
        child.unwatch(int)
        self._child = self._loop = None
        self._reloading = False


def _nothing() -> None:
    """Wake, and look at the rest."""
