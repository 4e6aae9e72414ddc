"""Structured records of what happens to a service, and one way for each record to the journal.

Every module logs to the logger "requiem_systemd", with `extra=journal.record(...)` where it is something to look for. Where the
process's stderr is the journal (`$JOURNAL_STREAM`), `install` puts one handler on that logger: with fields, by systemd-python where that
is installed, else by the same protocol written here; as lines with their level in front (`<4>`, sd-daemon(3)) where the journal's socket
is not to be had. It then does not propagate, since a root handler would write to the same journal again. Anywhere else logging stays what
it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from requiem_systemd.protocol import Environment

LOG: Final = logging.getLogger("requiem_systemd")

# Stable for ever: what operators and tools look for with `journalctl MESSAGE_ID=…`.
MESSAGE_IDS: Final = MappingProxyType(
    {
        "state": "0d8bc1b0b0a44f4cb1a87c2b7fdbf6c1",
        "draining-long": "5f0f6cbb3c7c4a0f8f5e6b3f0d1f7a52",
        "abandoned": "b0e3c9d6a7514d7c9a7d6d4b8c1f2e93",
        "let-go": "3c5b8f0e9d2a4e61a6f4b7c8d9e0f1a4",
        "stalled": "7e1d2c3b4a5f4968b7a6958473625145",
        "reload-failed": "9a8b7c6d5e4f43a2b1c0d9e8f7a6b5c6",
        "mistake": "1f2e3d4c5b6a4978a6b5c4d3e2f1a0b7",
        "exit-stuck": "c4d5e6f7a8b94c0dae1f2a3b4c5d6e78",
        "held": "feb14d2cc32d45bda051be5f0537e10a",
        "drained": "8982232a3eac43c1bfc23e6d5c08f7ca",
        "rolled": "ad64680a455240e680087c19b4eeae2f",
    }
)

Send = Callable[..., object]
# Not there under RootDirectory=, or a /run of its own.
_SOCKET: Final = "/run/systemd/journal/socket"
# syslog(3): the least severe level of logging's that counts as each priority
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def record(kind: str, **fields: object) -> dict[str, object]:
    """Make a log call's `extra`: the MESSAGE_ID of `kind` and REQUIEM_* fields."""
    named = {f"REQUIEM_{name.upper()}": value for name, value in fields.items()}
    return {"requiem": {"MESSAGE_ID": MESSAGE_IDS[kind], **named}}


class JournalHandler(logging.Handler):
    """Writes each record once: by `send`, else on stderr. Nothing that goes wrong here reaches who logged.

    `send` takes one "FIELD=value" an argument; None: there is none. That of systemd-python, sendv, blocks, and holds the GIL, while the
    journal's queue is full (journald hangs, or is flooded). So `probe`, a socket connected to the same queue, is asked first; stderr
    blocks too then, but its own thread only, and after some hundred kilobytes.
    """

    def __init__(self, send: Send | None, probe: socket.socket | None = None) -> None:
        super().__init__()
        self.send = send
        self._probe = probe
        self._taken: tuple[logging.Logger, bool, int, int] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            text = self.format(record)
            if not self._sent(record, text):
                _write(2, prefixed(record.levelno, text))
        except Exception:  # noqa: BLE001 - a log call's arguments are anything, and the engine must not fail by its log
            self.handleError(record)

    def _sent(self, record: logging.LogRecord, text: str) -> bool:
        if self.send is None or not self._has_room():
            return False
        try:
            self.send(*fields(record, text))
        except Exception:  # noqa: BLE001 - OSError as a rule; whatever it is, the record is to be seen
            return False
        return True

    def _has_room(self) -> bool:
        if self._probe is None:
            return True
        poller = (
            select.poll()
        )  # unix(7): a connected datagram socket is writable while its peer's queue has room
        poller.register(self._probe, select.POLLOUT)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Give the descriptor back."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        super().close()

    def take(self, logger: logging.Logger) -> None:
        """Become the one way out of a logger, INFO included unless its user chose a level for it."""
        level = logger.level
        if level == logging.NOTSET and logger.getEffectiveLevel() > logging.INFO:
            level = logging.INFO
        self._taken = (logger, logger.propagate, logger.level, level)
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(self)

    def give_back(self) -> None:
        """Leave the logger as it was, but for what its user has changed meanwhile."""
        if self._taken is None:
            return
        (logger, propagated, before, ours), self._taken = self._taken, None
        logger.removeHandler(self)
        logger.propagate = logger.propagate or propagated
        if logger.level == ours:
            logger.setLevel(before)


def priority(level: int) -> int:
    """Return the syslog priority of one of logging's levels."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def fields(record: logging.LogRecord, text: str) -> list[bytes]:
    """Write a record as the journal's fields, "NAME=value" each; many lines in MESSAGE stay one record."""
    named = {
        "MESSAGE": text,
        "PRIORITY": priority(record.levelno),
        "LOGGER": record.name,
        "THREAD_NAME": record.threadName,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
        **getattr(record, "requiem", {}),
    }
    return [
        f"{name}={value}".encode("utf-8", "backslashreplace")
        for name, value in named.items()
        if value is not None
    ]


def prefixed(level: int, text: str) -> bytes:
    """Write a text for a stderr that the manager reads: sd-daemon(3) wants the priority before each line."""
    lines = (f"<{priority(level)}>{line}\n" for line in text.splitlines())
    return "".join(lines).encode("utf-8", "backslashreplace")


def install(environment: Environment, fd: int = 2) -> None:
    """Send the library's log records to the journal where that is where they end: where `fd` is its stream."""
    uninstall()
    if is_journal(environment, fd):
        sock = connected(_SOCKET)
        JournalHandler(_sender(sock), sock).take(LOG)


def uninstall() -> None:
    """Undo `install`."""
    for handler in list(LOG.handlers):
        if isinstance(handler, JournalHandler):
            handler.give_back()
            handler.close()


def is_journal(environment: Environment, fd: int = 2) -> bool:
    """Say whether a descriptor is the stream that the manager connected to the journal: systemd.exec(5), $JOURNAL_STREAM."""
    if environment.journal_stream is None:
        return False
    try:
        found = os.fstat(fd)
    except OSError:  # stderr was closed
        return False
    return (found.st_dev, found.st_ino) == environment.journal_stream


def tell(kind: str, text: str, **named: object) -> None:
    """Write one record by itself, where the journal is: for a command, whose own output is for people."""
    sock = connected(_SOCKET)
    send = _sender(sock)
    if send is not None and sock is not None:
        with sock, contextlib.suppress(Exception):  # whatever it is, the command has done its work
            send(*fields(logging.makeLogRecord({"name": LOG.name, "levelno": logging.INFO, **record(kind, **named)}), text))


def _sender(sock: socket.socket | None) -> Send | None:
    """Return what sends to the journal: systemd-python's sendv, else our own on `sock`; None where there is no socket.

    Loaded now: in a drain the release it came with may have been deleted.
    """
    if sock is None:  # libsystemd would say that all is well, and the record would be gone
        return None
    try:
        from systemd.journal import sendv  # noqa: PLC0415 - 10 ms and more, of use under a manager only
    except (ImportError, OSError):
        return lambda *named: sock.send(datagram(named), socket.MSG_DONTWAIT)
    send: Send = sendv
    return send


def datagram(named: Iterable[bytes]) -> bytes:
    """Write fields, "NAME=value" each, as one record: https://systemd.io/JOURNAL_NATIVE_PROTOCOL; a value of many lines has its length in front."""
    return b"".join(map(_field, named))


def _field(field: bytes) -> bytes:
    if b"\n" not in field:
        return field + b"\n"
    name, _, value = field.partition(b"=")
    return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def connected(path: str) -> socket.socket | None:
    """Return a socket that sends to a datagram socket's queue; None where there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def _write(fd: int, data: bytes) -> None:
    """Write past sys.stderr, whose lock a thread that is stuck may hold; what cannot be written is lost."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
