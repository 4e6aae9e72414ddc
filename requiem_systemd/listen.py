"""Listeners by name: passed by the manager, kept in its fd store, or bound here.

A passed listener is the same open file description that the manager holds: `shutdown()` on it kills the socket unit, and a
second `listen()` cuts the backlog for everybody. Servers do both by habit, so what is handed out here is a `Listener`, which
does neither. Sources: sd_listen_fds(3), systemd.socket(5), sd_notify(3) for FDSTORE=.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import socket
import stat
import sys
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd import journal
from requiem_systemd.binding import Fallback, replace_stale, resolve, shown
from requiem_systemd.errors import ListenerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from requiem_systemd.protocol import Environment

LOG: Final = logging.getLogger("requiem_systemd")
# The kernel lowers it to net.core.somaxconn; systemd asks for as much as there is.
BACKLOG: Final = 4096
FDNAME_MAX: Final = 255


class Origin(enum.Enum):
    """Where a listener comes from, which decides who serves its backlog when it is closed."""

    UNIT = "socket unit"
    KEPT = "fd store"
    BOUND = "bound here"

    @property
    def letter(self) -> str:
        """How a primary tells its workers."""
        return self.value[0]


_BY_LETTER: Final = {origin.letter: origin for origin in Origin}


class Listener(socket.socket):
    """A socket that listens once and is never shut down: both would reach everybody who holds the same listener."""

    __slots__ = ()

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Listen; again: nothing, it would cut the backlog (asyncio's 100, socketserver's 5) and drop a burst."""
        if not listens(self):
            super().listen(backlog)

    def shutdown(self, how: int, /) -> None:
        """Shut down; a socket that listens: nothing, for it would be dead for the next process too."""
        if not listens(self):
            super().shutdown(how)
            return
        LOG.warning(
            "shutdown() of listener %s is not done: the next process would inherit a dead one; close() it",
            describe(self),
            extra=journal.record("mistake"),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Let multiprocessing pass it on, as it does with every socket."""
        reduction: Any = sys.modules["multiprocessing.reduction"]
        return _rebuilt, (reduction.DupFd(self.fileno()),)


class _Kept:
    """What is known of one listener: by inode, since servers wrap and detach sockets (ssl does)."""

    def __init__(
        self, sock: Listener, origin: Origin, path: str | None = None, *, passed: bool = False
    ) -> None:
        self.sock = sock
        self.origin = origin
        self.passed = passed
        self.inode = _inode(sock)
        self.path = path
        self.path_inode = _path_inode(path)


class Listeners:
    """All listeners of one service.

    `environment` says what the manager passed, `send` tells it what to keep, with descriptors; both are called when they are needed.
    Works before the service is armed: what has been handed out stays the same.
    """

    def __init__(
        self,
        environment: Callable[[], Environment],
        send: Callable[[Mapping[str, object], Sequence[int]], bool],
    ) -> None:
        """Store."""
        self._environment = environment
        self._send = send
        self._lock = threading.Lock()
        self._passed: Mapping[str, tuple[Listener, ...]] | None = None
        self._unusable: dict[str, str] = {}
        self._named: dict[str, Listener] = {}
        self._known: list[_Kept] = []

    # -- what users ask for --------------------------------------------------------------------------------------------

    def listener(self, name: Any, *, fallback: Fallback | None = None, keep: bool = False) -> socket.socket:
        """Return the one listener of a name; see `Service.listener`."""
        if not isinstance(name, str):
            msg = f"listener({name!r}): give the FileDescriptorName= of the socket unit (str)"
            raise TypeError(msg)
        if keep:
            _check_name(name)
        with self._lock:
            known = self._named.get(name)
            if known is None:
                known = self._named[name] = self._find(name, fallback, keep=keep)
            return known

    def listeners(self) -> Mapping[str, tuple[socket.socket, ...]]:
        """Return all that were passed, by name, in the order of the unit's lines."""
        with self._lock:
            return self._all_passed()

    # -- what the rest of the package asks for -------------------------------------------------------------------------

    def seal(self) -> None:
        """Keep passed descriptors from children, as sd_listen_fds(3) does, also those that nobody asks for."""
        environment = self._environment()
        fds = [fd for fd, _ in environment.listeners] + ([environment.worker.channel] if environment.worker else [])
        for fd in fds if _passes_descriptors() else ():
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, False)

    @property
    def adopted(self) -> bool:
        """Whether passed descriptors were made sockets of, which are closed with this."""
        return bool(self._passed)

    def origin(self, sock: Any) -> Origin:
        """Say where a listener comes from; one of somebody else counts as bound here."""
        known = self._find_known(sock)
        return known.origin if known is not None else Origin.BOUND

    def serves_backlog(self, sock: Any) -> bool:
        """Say whether connections that wait at the begin are this process's to serve, not the next one's."""
        return self.origin(sock) is not Origin.UNIT

    def to_pass(self) -> list[tuple[str, socket.socket, str]]:
        """Return what a worker is to have: open listeners with their names, and where they come from, as a letter."""
        with self._lock:
            found = [(name, sock) for name, socks in self._all_passed().items() for sock in socks]
            found += [(name, sock) for name, sock in self._named.items() if sock not in (other for _, other in found)]
        usable = [(name, sock) for name, sock in found if sock.fileno() >= 0 and name and name.isascii() and ":" not in name]
        return [(name, sock, self.origin(sock).letter) for name, sock in usable]

    def was_passed(self, sock: Any) -> bool:
        """Say whether the manager holds it as well: clients may wait at it when it is closed here."""
        known = self._find_known(sock)
        return known is not None and known.passed

    def unlink(self, sock: Any = None) -> None:
        """Remove the path of an AF_UNIX listener that was bound here and is not kept; None: of each of them.

        Done when it is closed. A path that another process has bound meanwhile is left alone.
        """
        wanted = None if sock is None else _inode(sock)
        with self._lock:
            known = [each for each in self._known if each.path is not None and wanted in (None, each.inode)]
        for each in known:
            if (
                each.origin is Origin.BOUND
                and each.path is not None
                and _path_inode(each.path) == each.path_inode
            ):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each.path)
            each.path = None

    def close_original(self, sock: Any) -> None:
        """Close what was handed out here of a listener that a server has a copy of (Twisted): the port would stay open."""
        known = self._find_known(sock)
        if known is not None and known.sock is not sock:
            known.sock.close()

    def inherit(self, parents: Listeners) -> None:
        """In a fork's child: know what the parent knew. Nothing is this process's to unlink."""
        self._passed, self._named, self._known = parents._passed, parents._named, parents._known
        for each in self._known:
            each.path = None

    def close(self) -> None:
        """Close what was handed out, and forget it."""
        self.unlink()
        with self._lock:
            known, self._known = self._known, []
            self._named.clear()
        for each in known:
            each.sock.close()

    # -- finding -------------------------------------------------------------------------------------------------------

    def _find_known(self, sock: Any) -> _Kept | None:
        inode = _inode(sock)
        with self._lock:
            return next((each for each in self._known if inode is not None and each.inode == inode), None)

    def _passed_as(self, name: str) -> tuple[Listener, ...]:
        return self._all_passed().get(name, ())

    def _find(self, name: str, fallback: Fallback | None, *, keep: bool) -> Listener:
        passed = self._passed_as(name)
        if len(passed) > 1:
            msg = (
                f"{len(passed)} listeners were passed as {name!r}: {', '.join(map(describe, passed))}; "
                f"take them by listeners()[{name!r}], or give each .socket unit a FileDescriptorName= of its own"
            )
            raise ListenerError(msg)
        if passed:
            if keep:  # in the store already, or a socket unit's: sent again it would be passed twice at the next start
                next(each for each in self._known if each.sock is passed[0]).origin = Origin.KEPT
            return passed[0]
        if fallback is None:
            raise ListenerError(self._not_passed(name))
        if (worker := self._environment().worker) is not None:
            return self._ask_primary(worker.channel, name, fallback, keep=keep)
        return self._bind(name, fallback, keep=keep)

    def _not_passed(self, name: str) -> str:
        if name in self._unusable:
            return f"listener {name!r} was passed, but {self._unusable[name]}"
        if not _passes_descriptors():
            return f"listener {name!r}: descriptors are passed by systemd, which runs on Linux only; give fallback=(host, port)"
        passed = ", ".join(
            f"{key!r} ({', '.join(map(describe, socks))})" for key, socks in self._all_passed().items()
        )
        return (
            f"listener {name!r} was not passed; passed were: {passed or 'none'}. Add FileDescriptorName={name} to the [Socket] section "
            "of its .socket unit, or give fallback="
        )

    def _all_passed(self) -> Mapping[str, tuple[Listener, ...]]:
        if self._passed is None:
            found: dict[str, list[Listener]] = {}
            environment = self._environment()
            origins = environment.worker.origins if environment.worker is not None else ""
            passed = environment.listeners if _passes_descriptors() else ()
            for (fd, name), letter in zip(passed, origins.ljust(len(passed), Origin.UNIT.letter), strict=False):
                sock = self._adopt(fd, name, _BY_LETTER.get(letter, Origin.UNIT))
                if sock is not None:
                    found.setdefault(name, []).append(sock)
            self._passed = MappingProxyType({name: tuple(socks) for name, socks in found.items()})
        return self._passed

    def _adopt(self, fd: int, name: str, origin: Origin) -> Listener | None:
        """Make a socket of a passed descriptor; None, and the descriptor left alone, where it is none."""
        try:
            os.set_inheritable(fd, False)
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                # No mistake by itself: the store and OpenFile= pass files too. Who asks for it as a listener is told.
                self._unusable[name] = f"descriptor {fd} is no socket; listener() takes sockets only"
                return None
            sock = Listener(fileno=fd)
        except OSError as error:
            self._unusable[name] = (
                f"descriptor {fd} cannot be used: {error.strerror}; was it closed by somebody else?"
            )
            LOG.warning(
                "listener %r is left out: %s", name, self._unusable[name], extra=journal.record("mistake")
            )
            return None
        # What NonBlocking= says is what Python shall think of it; the flag itself is shared with other processes.
        if not os.get_blocking(fd):
            sock.settimeout(0.0)
        elif sock.gettimeout() is not None:  # not in any case: a sibling's event loop may just have made it non-blocking
            sock.settimeout(None)
        # What a primary has bound, it lets go as its workers do: nobody waits there for a next process.
        self._known.append(_Kept(sock, origin, passed=origin is not Origin.BOUND))
        return sock

    # -- binding -------------------------------------------------------------------------------------------------------

    def _bind(self, name: str, fallback: Fallback, *, keep: bool) -> Listener:
        family, address = resolve(name, fallback)
        path = address if isinstance(address, str) and not address.startswith("\0") else None
        sock = Listener(family, socket.SOCK_STREAM)
        try:
            if path is not None:
                replace_stale(name, path)
            elif os.name == "posix":  # elsewhere it would let two servers share the port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            msg = f"listener {name!r} was not passed and cannot be bound at {shown(address)}: {error.strerror or error}"
            raise ListenerError(msg) from error
        except BaseException:
            sock.close()
            raise
        self._known.append(
            _Kept(sock, Origin.KEPT if keep and self._store(name, sock) else Origin.BOUND, path)
        )
        return sock

    def _ask_primary(self, channel: int, name: str, fallback: Fallback, *, keep: bool) -> Listener:
        """Have the primary bind it, once for all its workers."""
        from requiem_systemd import channel as channels  # noqa: PLC0415 - only workers of a cluster have one

        fd, letter = channels.ask_listener(channel, name, fallback, keep=keep)
        sock = Listener(fileno=fd)
        self._known.append(_Kept(sock, _BY_LETTER.get(letter, Origin.BOUND)))
        return sock

    def _store(self, name: str, sock: socket.socket) -> bool:
        try:
            return self._send({"FDSTORE": 1, "FDNAME": name}, [sock.fileno()])
        except OSError as error:
            LOG.warning(
                "listener %r cannot be kept in the manager's fd store: %s",
                name,
                error,
                extra=journal.record("mistake"),
            )
            return False


def listens(sock: socket.socket) -> bool:
    """Say whether a socket is a listening one."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (OSError, AttributeError):  # closed, or a system that does not tell
        return False


def describe(sock: socket.socket) -> str:
    """Name a socket for people: its address."""
    try:
        return shown(sock.getsockname())
    except OSError:
        return "closed"


def _rebuilt(duplicate: Any) -> Listener:
    return Listener(fileno=duplicate.detach())


def _passes_descriptors() -> bool:
    return sys.platform == "linux"


def _inode(sock: Any) -> int | None:
    try:
        return os.fstat(sock.fileno()).st_ino
    except (OSError, ValueError):
        return None


def _path_inode(path: str | None) -> tuple[int, int] | None:
    try:
        found = os.lstat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _check_name(name: str) -> None:
    # sd_notify(3), FDNAME=: an invalid name is ignored by the manager, which would pass the descriptor on as "stored"
    if not name or len(name) > FDNAME_MAX or not name.isascii() or not name.isprintable() or ":" in name:
        msg = f"keep=True: {name[:80]!r} cannot be a name in the fd store; use 1 to {FDNAME_MAX} printable ASCII characters without ':'"
        raise ValueError(msg)
