"""One worker, as its primary sees it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from requiem_systemd import channel, gate
from requiem_systemd.cluster import command
from requiem_systemd.cluster.policy import LIFE, Phase, Said, Seen, seen
from requiem_systemd.ledger import WORKER, More, Record
from requiem_systemd.loop import Loop

LOG: Final = logging.getLogger("requiem_systemd")
# What SIGABRT does not end, stopped or deaf to it, SIGKILL ends.
ABORT_WITHIN: Final = 5.0


class Owner(Protocol):
    """What a worker needs of its primary; everything is called in the loop."""

    @property
    def loop(self) -> Loop:
        """The engine's."""

    def told(self, worker: Worker, event: str, *arguments: object) -> None:
        """Hear what users hear."""

    def changed(self, worker: Worker, packet: channel.Packet) -> None:
        """Hear what a worker has said."""

    def dismiss(self, worker: Worker, reason: str) -> None:
        """Have it drain."""

    def ended(self, worker: Worker) -> None:
        """Hear that its process has ended; nothing comes from it any more."""


class Watcher(Protocol):
    """Who hears of every worker; in the loop."""

    def changed(self, worker: Worker) -> None:
        """Hear that it is another than before: ready, leaving, of another status."""

    def tired(self, worker: Worker) -> None:
        """Hear that it has served enough."""

    def ended(self, worker: Worker) -> None:
        """Hear that it has ended."""

    def drain(self) -> None:
        """Hear that the drain has begun."""


class Worker:
    """A worker process of this primary: `cluster.fork()` makes one."""

    def __init__(self, owner: Owner, number: int) -> None:
        self.id: Final[int] = number
        self.pid: int = 0
        self.exited_after_disconnect: bool = False
        self.closed: bool = False  # it accepts no more connections, as it has said
        self.exit_status: int | None = None
        self.exit_signal: str = ""
        self.phase: Phase = Phase.FORKED
        self.seen: Seen = Seen(Phase.FORKED)
        self.record: Record = Record(f"worker {number}", None)
        self.record.more = More(WORKER)
        self.left_at: float | None = None  # when its drain began, if it was ready before
        self.callbacks: list[Callable[..., Any]] = []
        self.watchdog: float | None = None  # how often it is to be heard of, in seconds
        self._hung = ""
        self._owner = owner
        self._channel: socket.socket | None = None
        self._pidfd = -1
        self._due = 0.0

    def __repr__(self) -> str:
        return f"<Worker {self.id}, process {self.pid}, {self.phase.value}>"

    # -- what users say ------------------------------------------------------------------------------------------------

    def disconnect(self, callback: Callable[..., Any] | None = None) -> Worker:
        """Have it drain: it takes no more work, ends what it has, and goes. Returns at once; any thread, any number of times.

        `callback(worker)` is called when it has gone.
        """
        self._owner.loop.call(lambda: self._disconnect(callback))
        return self

    def is_connected(self) -> bool:
        """Say whether its channel is open."""
        return self._channel is not None

    def is_dead(self) -> bool:
        """Say whether its process has ended."""
        return self.phase is Phase.DEAD

    def _disconnect(self, callback: Callable[..., Any] | None) -> None:
        if callback is not None:
            self.callbacks.append(callback)
        if self.phase is Phase.DEAD:
            self._owner.told(self, "")
            return
        self.exited_after_disconnect = True  # also one that drains by itself already
        self._owner.dismiss(self, "disconnect")

    # -- what its primary does; in the loop, but `start` ---------------------------------------------------------------

    def start(self, argv: list[str], environ: Mapping[str, str], listeners: list[tuple[str, socket.socket, str]]) -> None:
        """Run the process; any thread. Raises OSError."""
        ours, theirs = channel.pair()
        variables = command.variables(environ, self.id, [(name, origin) for name, _, origin in listeners], self.watchdog)
        fds = [sock.fileno() for _, sock, _ in listeners]
        try:
            with theirs:
                self.pid, self._pidfd = command.spawn(argv, variables, [*fds, theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        self._channel = ours
        self.record.owner = f"process {self.pid}"

    def watch(self) -> None:
        """Hear of it from now on."""
        if self._channel is not None:
            self._owner.loop.reader(self._channel.fileno(), self._readable)
        self._owner.loop.reader(self._pidfd, self._ended)

    def dismiss(self, reason: str) -> bool:
        """Tell it to drain; False if it has been, or does by itself."""
        unarmed = self.phase is Phase.FORKED
        if not self.step(Said.DISMISSED):
            return False
        if self._channel is not None:
            channel.drain(self._channel, reason)
        if unarmed:  # it may never come to reading its channel
            self.kill("SIGTERM")
        return True

    def kill(self, name: str) -> None:
        """Send it a signal."""
        if self._pidfd >= 0:
            gate.tell_process(self._pidfd, name)

    def step(self, said: Said) -> bool:
        """Take one step of its life; say whether there was one."""
        found = LIFE.get((self.phase, said))
        if found is None:
            return False
        served = self.phase is Phase.LISTENING
        self.phase, event = found
        self.seen = self.seen._replace(phase=self.phase)
        if served and self.phase is Phase.LEAVING:
            self.left_at = self._owner.loop.clock.now()
        if event:
            self._owner.told(self, event, *((self.exit_status, self.exit_signal) if event == "exit" else ()))
        return True

    def close(self) -> None:
        """Give the descriptors back; also in a fork's child."""
        sock, self._channel = self._channel, None
        if sock is not None:
            sock.close()
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)

    def _readable(self) -> None:
        for _ in range(channel.BATCH):
            if self._channel is None:
                return
            try:
                packet = channel.receive(self._channel)
            except BlockingIOError:
                return
            if packet is None:
                self._hang_up()
                return
            self._take(packet)

    def _take(self, packet: channel.Packet) -> None:
        values = packet.values
        for said, key in ((Said.ARMED, "X_REQUIEM_ONLINE"), (Said.READY, "READY"), (Said.STOPPING, "STOPPING")):
            if values.get(key) == "1":
                self.step(said)
        self.closed = self.closed or values.get("X_REQUIEM_CLOSED") == "1"
        self.seen = seen(self.phase, values, self.seen)
        if "1" in (values.get("READY"), values.get("WATCHDOG")):
            self._feed()
        self._owner.changed(self, packet)

    # As systemd does (SERVICE_STATE_WITH_WATCHDOG): not before it is ready, for a start has a limit of its own; then to its end.
    def _feed(self) -> None:
        if self.watchdog is not None and self.phase in (Phase.LISTENING, Phase.LEAVING):
            self._due = self._owner.loop.clock.now() + self.watchdog
            self._owner.loop.alarm(self._bite, self._due)

    def _bite(self) -> None:
        due, late = self._due, self._owner.loop.clock.now() - self._due
        self._readable()
        if self._due > due or self._pidfd < 0 or self.watchdog is None:  # it had said something, or it has gone
            return
        if late > self.watchdog / 2:  # we ourselves did not run: nor, it may be, did it (SIGSTOP to all, the freezer)
            self._feed()
            return
        self._hung = f"hung: its watchdog was not fed for {self.watchdog:g} s"
        LOG.error("worker %d, process %d, %s; it is killed", self.id, self.pid, self._hung)
        self.kill("SIGABRT")
        self._owner.loop.alarm(self._kill, self._owner.loop.clock.now() + ABORT_WITHIN)

    def _kill(self) -> None:
        self.kill("SIGKILL")

    def _hang_up(self) -> None:
        sock, self._channel = self._channel, None
        if sock is not None:
            self._owner.loop.unreader(sock.fileno())
            sock.close()
            self._owner.told(self, "disconnect")

    def _ended(self) -> None:
        try:
            self.exit_status, self.exit_signal = command.reap(self._pidfd)
        except BlockingIOError:
            return
        self._readable()  # what it said last
        self._hang_up()  # its children may have the channel too
        self._owner.loop.unreader(self._pidfd)
        self._owner.loop.cancel(self._bite)
        self._owner.loop.cancel(self._kill)
        self.close()
        self.step(Said.ENDED)
        self._owner.ended(self)

    def how(self) -> str:
        """Say how it ended."""
        if self.exit_signal:
            return f"{self._hung}{', and ' if self._hung else ''}died of {self.exit_signal}"
        return "ended" if self.exit_status is None else f"ended with status {self.exit_status}"
