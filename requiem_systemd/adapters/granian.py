"""granian: its Rust threads accept and answer, so its listeners are taken from under them.

Read from granian 2.8: server/common.py, server/mp.py, _signals.py, and in Rust serve.rs, workers.rs, runtime.rs. The main process runs
no line of ours. At SIGTERM it sends one to each worker, waits for all of them (without a limit, unless `--workers-kill-timeout` is
set), and ends after them. The workers tell the manager (NotifyAccess=all): READY=1 each, EXTEND_TIMEOUT_USEC= while they drain.

A worker that is told to stop accepts what waits, closes its listener and its idle connections, answers what is in flight, without a
limit, and then shuts the lifespan down; but WebSockets it cuts at once. So it is told after the grace where there are none, else at
the very end; and the listener is closed before, by us.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from requiem_systemd import journal
from requiem_systemd.gate import SIGNALS
from requiem_systemd.ledger import CONNECTION
from requiem_systemd.limits import kind_of
from requiem_systemd.wake import readable

LOG: Final = logging.getLogger("requiem_systemd")
# A listener is closed when nobody has waited at it twice, so far apart; one that never runs dry, after so many looks.
LOOK_EVERY: Final = 0.005
LOOKS: Final = 100
# How long after everything that is tracked has ended a connection may take to be read out: granian would wait for it for ever.
READ_OUT: Final = 3.0


def attach(service: Any, loop: Any) -> Callable[[], object] | None:
    """See to the granian worker whose loop this is; returns what tells it to stop."""
    worker = _local("shutdown_event", "worker_id", "sock")
    if worker is None:  # it is imported, but serves nothing here; or in a thread, where signals are no worker's
        return None
    if worker["worker_id"] == 1:
        _tell_of_parent()
    _take_signals(service, loop)
    if os.path.isdir("/proc/self/fd"):
        service.doors.add(Listeners(service, worker["sock"]))
    tell = worker["shutdown_event"].set  # once: its channel holds one, and a third call would block for ever

    def tell_late() -> None:
        if any(kind_of(entry) == CONNECTION for entry, _ in service.ledger.entries()):
            service.engine.stopped.then(tell)
        else:
            tell()

    return tell_late


def _local(*names: str) -> dict[str, Any] | None:
    """Return the local variables of the nearest caller that has all of these: granian runs the loop in its worker's function."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to see one's callers
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("granian.") and all(name in frame.f_locals for name in names):
            return frame.f_locals
        frame = frame.f_back
    return None


def _take_signals(service: Any, loop: Any) -> None:
    """Take the stop signals out of the loop, which would tell granian at once: a loop written in C does, past who owns the wakeup fd."""
    if service.gate is None:
        return
    mask = service.gate.hold()
    for number in SIGNALS:
        loop.remove_signal_handler(number)
    service.retake()
    service.gate.unhold(mask)


def _tell_of_parent() -> None:
    """Say, in the first worker, what the main process makes impossible."""
    _mistake(
        "granian's main process passes no second SIGINT and no SIGQUIT on, ends with status 0 where jobs were abandoned, and takes no "
        "listener of a .socket unit; to hurry a drain up: systemctl kill -s QUIT UNIT"
    )
    limit = _kill_timeout()
    if limit:
        _mistake(f"granian's --workers-kill-timeout={limit} kills workers whose jobs take longer: leave it out, and set REQUIEM_DRAIN_TIMEOUT=")


def _kill_timeout() -> object:
    """Return the main process's setting: from the frames that a fork has left below us, else from its command line."""
    serving = _local("self", "spawn_target")
    if serving is not None:
        return serving["self"].workers_kill_timeout
    with contextlib.suppress(OSError), open(f"/proc/{os.getppid()}/cmdline", encoding="utf-8", errors="replace") as file:
        words = file.read().split("\0")
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, _, value = word.partition("=")
            if name == "--workers-kill-timeout":
                return value or following
    return None


class Listeners:
    """A door: the listeners of this worker, on which Rust accepts.

    It closes none before it is told to stop. So another socket is put under their descriptors: one at which nobody ever waits, so
    that an accept() that is under way finds nothing, as it may at any time. With its last descriptor the kernel closes a listener and
    forgets it in epoll. (It is this worker's alone: each binds its own, with SO_REUSEPORT; the main process's never listens. That of an
    AF_UNIX path is shared, and closed by all.)
    """

    def __init__(self, service: Any, sock: tuple[Any, Any]) -> None:
        self.label: str = "of granian"
        self._turns = turns = service.engine.loop
        spec, holder = sock
        self._port = spec.__getstate__()[1] if spec is not None else None
        self._fd = holder.get_fd() if holder is not None else None
        service.engine.stopped.then(lambda: turns.post(lambda: turns.alarm(self._cut, turns.clock.now() + READ_OUT)))

    def shut(self, done: Callable[[], object]) -> None:
        """Close them when they have run dry: see doors.Door."""
        self._run_dry(done, dict(self._find(listens=True)), LOOKS, quiet=2)

    def _cut(self) -> None:
        for _, connection in self._find(listens=False):
            with contextlib.suppress(OSError), connection:
                connection.shutdown(socket.SHUT_RDWR)

    def _find(self, *, listens: bool) -> Iterator[tuple[int, socket.socket]]:
        """Yield what listens at granian's address, or is connected to it, by descriptor."""
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # closed meanwhile
                if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                    continue
                sock = socket.socket(fileno=os.dup(fd))
                if self._is_ours(fd, sock, listens=listens):
                    yield fd, sock
                else:
                    sock.close()

    def _is_ours(self, fd: int, sock: socket.socket, *, listens: bool) -> bool:
        if sock.type != socket.SOCK_STREAM or bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) is not listens:
            return False
        return fd == self._fd or (sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == self._port)

    def _run_dry(self, done: Callable[[], object], found: dict[int, socket.socket], looks: int, quiet: int) -> None:
        if found and looks and quiet:
            quiet = 2 if readable(*found.values(), timeout=0) else quiet - 1
            self._turns.alarm(lambda: self._run_dry(done, found, looks - 1, quiet), self._turns.clock.now() + LOOK_EVERY)
            return
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.setblocking(False)
            nobody.bind("")  # unix(7), autobind: an abstract name that nobody knows
            nobody.listen(1)
            for fd, sock in found.items():
                os.dup2(nobody.fileno(), fd)
                sock.close()
        done()


def _mistake(text: str) -> None:
    LOG.warning("%s", text, extra=journal.record("mistake"))
