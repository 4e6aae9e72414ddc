"""The control socket: what `requiem-systemd reload`, `ps` and `why`, and varlinkctl(1) talk to.

It is `requiem` in the unit's first RuntimeDirectory= (of a worker process `requiem.PID`), of mode 0600, and answers root and the
service's own user only. What takes time is told from elsewhere, by `account`. Everything here runs in the engine's loop and never waits: a client has one request in work, of one bounded message; the next is not even read before
its answer is gone. Who does not go on costs a slot, and the slots are few: the idle client that came first makes room, and where none is
idle, one that has asked on before it was answered.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import selectors
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd import report, varlink
from requiem_systemd.errors import ProtocolError

if TYPE_CHECKING:
    from requiem_systemd.loop import Loop
    from requiem_systemd.protocol import Environment

LOG: Final = logging.getLogger("requiem_systemd")
NAME: Final = "requiem"
CLIENTS_MAX: Final = 16
# Read in one turn of the loop: so many requests at most stand between a signal and its answer.
CHUNK: Final = 4096
# With no descriptor left, the listener is not looked at for so long: it would be readable in every turn.
PAUSE: Final = 1.0
_NO_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_WORKERS: Final = re.compile(rf"{NAME}\.([0-9]{{1,10}})")

Reload = Callable[[Callable[[str], object]], object]
# Called in the loop with the parameters.
Method = Callable[[Mapping[str, Any], "Answer"], object]


def open_for(environment: Environment, loop: Loop, reload: Reload, note: Callable[[], str], methods: Mapping[str, Method]) -> Control | None:
    """Open the control socket where the unit has a RuntimeDirectory=; a failure is one line in the log.

    `note`: what there is to say of a reload that went well.

    A worker process inherits $RUNTIME_DIRECTORY. It tells of itself at a socket of its own, `requiem.PID`, and reloads nothing: a reload
    of one of many would be no verdict.
    """
    folder = environment.runtime_directory
    if folder is None or not hasattr(socket, "SO_PEERCRED"):
        return None
    is_main = environment.worker is None and environment.exec_pid in (None, os.getpid())
    path = os.path.join(folder, NAME if is_main else f"{NAME}.{os.getpid()}")
    if is_main:
        methods = {**methods, f"{varlink.SERVICE}.Reload": lambda _, answer: reload(lambda reason: answer(_verdict(reason, note())))}
    try:
        sweep(folder)
        return Control(bind(path), path, loop, methods)
    except OSError as error:
        # A worker may run as another user, to whom the folder does not belong: that is how the unit is written.
        level = logging.WARNING if is_main else logging.INFO
        LOG.log(level, "no control socket at %s, `requiem-systemd` will not reach this process: %s", path, error)
        return None


def sweep(folder: str) -> None:
    """Unlink the sockets of workers that have ended: of our own user, and of no process that lives."""
    for file in os.listdir(folder):
        found = _WORKERS.fullmatch(file)
        if found is None or os.path.exists(f"/proc/{found[1]}"):
            continue
        with contextlib.suppress(OSError):
            if _is_stale(os.path.join(folder, file)):
                os.unlink(os.path.join(folder, file))


def bind(path: str) -> socket.socket:
    """Bind and listen; what a process of ours has left there, and nobody answers at, is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.settimeout(0.0)
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o600)  # nobody can connect before listen(), so the mode comes in time
        listener.listen(CLIENTS_MAX)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_stale(path: str) -> bool:
    """Say whether a path is a socket of our own user that refuses connections."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.0)
        return probe.connect_ex(path) == errno.ECONNREFUSED


class Control:
    """Serves one bound listener in a loop; made, closed and called in the loop's thread."""

    def __init__(self, listener: socket.socket, path: str, loop: Loop, methods: Mapping[str, Method]) -> None:
        self.path = path
        self.loop = loop
        self.methods = methods
        self.clients: list[Client] = []
        self._listener = listener
        self._inode = os.lstat(path).st_ino
        self._resume()

    def close(self) -> None:
        """Hang up on everybody, and unlink the socket if it is still ours; when the loop has ended."""
        self.close_child()
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    def close_child(self) -> None:
        """In a fork's child: the socket is the parent's, only descriptors are given back."""
        self.loop.cancel(self._resume)
        self._listener.close()
        for client in self.clients:
            client.sock.close()
        self.clients.clear()

    def _resume(self) -> None:
        self.loop.reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self.loop.unreader(self._listener.fileno())
                self.loop.alarm(self._resume, self.loop.clock.now() + PAUSE)
            return
        if _uid(sock) not in (0, os.geteuid()) or not self._has_room():
            sock.close()
            return
        sock.settimeout(0.0)
        self.clients.append(Client(self, sock))

    def _has_room(self) -> bool:
        if len(self.clients) < CLIENTS_MAX:
            return True
        idle = (client for client in self.clients if client.ended or not client.waiting)
        # As long as it finds room for its answers, one that never reads them is never idle.
        ahead = (client for client in self.clients if client.is_ahead)
        spare = next(itertools.chain(idle, ahead), None)
        if spare is not None:
            spare.close()
        return spare is not None


class Client:
    """One connection: what has been read of the next request, what is left to send of the last answer."""

    def __init__(self, control: Control, sock: socket.socket) -> None:
        self.sock = sock
        self.waiting: bool = False  # a request is in work, and its answer will come
        self.ended: bool = False  # it will ask for nothing more
        self._control = control
        self._read = b""
        self._unsent = b""
        self._events = 0
        self._closed = False
        self._watch()

    @property
    def is_there(self) -> bool:
        """Whether it still waits for what it has asked for."""
        return not self._closed

    @property
    def is_ahead(self) -> bool:
        """Whether it asks on while a request of its is in work."""
        return bool(self._read)

    def close(self) -> None:
        """Hang up."""
        if not self._closed:
            self._closed = True
            self._look_for(0)
            self._control.clients.remove(self)
            self.sock.close()

    def _watch(self) -> None:
        """Look for what there is room for; hang up when nothing can come any more."""
        if self.ended and not self.waiting and not self._unsent:
            self.close()
            return
        reading = not self.ended and not self._unsent and not (self.waiting and len(self._read) >= CHUNK)
        self._look_for(
            (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if self._unsent else 0)
        )

    def _look_for(self, events: int) -> None:
        if events != self._events:
            if self._events:
                self._control.loop.unreader(self.sock.fileno())
            self._events = events
            if events:
                self._control.loop.reader(self.sock.fileno(), self._ready, events)

    def _ready(self) -> None:
        if self._closed:  # by what another descriptor said in the same turn
            return
        try:
            if self._unsent:
                self._send()
            else:
                data = self.sock.recv(CHUNK)
                self.ended = not data
                self._read += data
            self._work()
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            LOG.debug("a client of the control socket is dropped: %s", error)
            self.close()

    def _work(self) -> None:
        """Take up requests as long as the one before is answered."""
        while not self.waiting and not self._unsent and b"\0" in self._read:
            data, _, self._read = self._read.partition(b"\0")
            self._begin(varlink.read_call(data))
        if len(self._read) >= varlink.MESSAGE_MAX:
            msg = f"a request of more than {varlink.MESSAGE_MAX} bytes"
            raise ProtocolError(msg)
        self._watch()

    def _begin(self, call: varlink.Call) -> None:
        method = self._control.methods.get(call.method)
        if method is None:
            self._answer(call, varlink.introspect(call))
            return
        self.waiting = True
        method(call.parameters, Answer(self, call))

    def answer(self, call: varlink.Call, message: bytes) -> None:
        """Answer a request; any thread, once."""
        # Posted: the answer may come at once, and a row of requests must not nest
        self._control.loop.post(lambda: self._answered(call, message))

    def _answered(self, call: varlink.Call, message: bytes) -> None:
        if self._closed:
            return
        self.waiting = False
        try:
            self._answer(call, message)
            self._work()
        except (OSError, ProtocolError) as error:
            LOG.debug("a client of the control socket is dropped: %s", error)
            self.close()

    def _answer(self, call: varlink.Call, message: bytes) -> None:
        if not call.oneway:
            self._unsent = message
            self._send()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self.sock.send(self._unsent) :]


class Answer:
    """What a method is to answer by: called from any thread, once, with a message."""

    def __init__(self, client: Client, call: varlink.Call) -> None:
        self._client = client
        self._call = call

    def __call__(self, message: bytes) -> None:
        """Answer."""
        self._client.answer(self._call, message)

    @property
    def is_wanted(self) -> bool:
        """Whether whoever asked is still there."""
        return self._client.is_there


def _verdict(reason: str, note: str) -> bytes:
    if not reason:
        return varlink.write_reply({"note": note} if note else {})
    return varlink.write_reply(
        {"reason": reason, "draining": reason == report.NO_RELOAD}, varlink.RELOAD_FAILED
    )


def _uid(sock: socket.socket) -> int:
    """Return the user that the kernel saw connect: unix(7), SO_PEERCRED."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])
