"""The manager's protocols as values: sd_notify text, and what the environment says.

Only this module reads the environment, once. Nothing here does I/O or looks at a clock.
Sources: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.time(7), systemd.exec(5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Final, NamedTuple

from requiem_systemd.errors import ProtocolError

# sd_notify(3): a datagram of more than PIPE_BUF bytes is dropped by the manager, though the send succeeds.
DATAGRAM_MAX: Final = 4096
LISTEN_FDS_START: Final = 3
# One label or status text never takes the room of the lines beside it.
TEXT_MAX: Final = 1024

# What is taken out of the environment, so that no child process can speak for this one.
TAKEN: Final = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID", "WATCHDOG_USEC", "REQUIEM_WORKER", "REQUIEM_WORKER_PID", "REQUIEM_MANAGER")

# What a primary's manager told it, and a worker inherits.
_PRIMARYS: Final = frozenset(("NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "container", "MANAGERPID"))

_KEY: Final = re.compile(r"[A-Z][A-Z0-9_]*\Z")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_PLACE: Final = re.compile(r"([0-9]{1,9}):([0-9]{1,9}):([a-z]*)")
_SPAN: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Zµμ]*)")
# the units of systemd.time(7), section "Parsing Time Spans"
_UNITS: Final = MappingProxyType(
    {
        unit: seconds
        for names, seconds in (
            (("us", "usec", "µs", "μs"), 1e-6),
            (("ms", "msec"), 1e-3),
            (("", "s", "sec", "second", "seconds"), 1.0),
            (("m", "min", "minute", "minutes"), 60.0),
            (("h", "hr", "hour", "hours"), 3600.0),
            (("d", "day", "days"), 86400.0),
            (("w", "week", "weeks"), 604800.0),
            (("M", "month", "months"), 2629800.0),
            (("y", "year", "years"), 31557600.0),
        )
        for unit in names
    }
)


class Place(NamedTuple):
    """What a primary told its worker: its number, the descriptor of their channel, and where each passed listener comes from."""

    id: int
    channel: int
    origins: str


class Environment(NamedTuple):
    """What the manager told this process; lengths in seconds."""

    notify_socket: str | None = None
    listeners: tuple[tuple[int, str], ...] = ()
    watchdog: float | None = None
    fed_by: int | None = None  # the process that is to feed the watchdog, where that is another
    exec_pid: int | None = None
    journal_stream: tuple[int, int] | None = None
    runtime_directory: str | None = None
    container: str | None = None
    invocation_id: str | None = None
    user_manager: bool = False
    worker: Place | None = None
    above: str | None = None  # in a worker, the socket of its primary's manager
    limits: Mapping[str, float | str] = MappingProxyType({})
    problems: tuple[str, ...] = ()


def clean(text: object, limit: int = TEXT_MAX) -> str:
    """Make one printable line of at most `limit` UTF-8 bytes; never fails.

    Control characters become blanks, lone surrogates their escapes; what is too long is cut at a code point.
    """
    try:
        line = str(text)
    except Exception as error:  # noqa: BLE001 - a label's __str__ is user code, and a report must not fail on it
        line = f"<{type(text).__name__}: {type(error).__name__} in str()>"
    line = _UNPRINTABLE.sub(" ", line[: limit * 2])
    raw = line.encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return raw.decode("utf-8")
    ellipsis = "…" if limit >= 3 else ""  # three bytes
    return raw[: limit - len(ellipsis.encode())].decode("utf-8", "ignore") + ellipsis


def encode(assignments: Mapping[str, object]) -> str:
    """Write assignments as one datagram's text, STATUS shortened until it fits.

    Raises ProtocolError for a key that is no variable name and for a message that cannot fit.
    """
    lines = {}
    for key, value in assignments.items():
        if not _KEY.match(key):
            msg = f"sd_notify: {key!r} is no variable name; use upper-case letters, digits and underscores"
            raise ProtocolError(msg)
        lines[key] = clean(value, DATAGRAM_MAX)
    others = {key: len(f"{key}={value}\n".encode()) for key, value in lines.items() if key != "STATUS"}
    room = DATAGRAM_MAX - sum(others.values()) - ("STATUS" in lines and len("STATUS=\n"))
    if room < 0:
        msg = f"sd_notify: {DATAGRAM_MAX - room} bytes do not fit a datagram of {DATAGRAM_MAX}; shorten {max(others, key=lambda key: others[key])}"
        raise ProtocolError(msg)
    if "STATUS" in lines:
        lines["STATUS"] = clean(lines["STATUS"], room)
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def decode(datagram: bytes) -> tuple[tuple[str, str], ...]:
    """Read one datagram's assignments, in order; the inverse of `encode`.

    Raises ProtocolError for what is no sequence of assignments in UTF-8.
    """
    if len(datagram) > DATAGRAM_MAX:
        msg = f"sd_notify: {len(datagram)} bytes are more than a datagram of {DATAGRAM_MAX}"
        raise ProtocolError(msg)
    try:
        lines = datagram.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        msg = f"sd_notify: not UTF-8: {error}"
        raise ProtocolError(msg) from error
    pairs = []
    for line in filter(None, lines):
        key, equals, value = line.partition("=")
        if not equals or not _KEY.match(key):
            msg = f"sd_notify: {line[:80]!r} is no assignment"
            raise ProtocolError(msg)
        pairs.append((key, value))
    return tuple(pairs)


def usec(seconds: float) -> int:
    """Turn seconds into the protocol's whole microseconds."""
    return round(seconds * 1_000_000)


def timespan(text: str) -> float:
    """Read a time span as systemd.time(7) writes it ("1h 30min", "90", "infinity"), in seconds.

    Raises ProtocolError for anything else.
    """
    if text.strip() == "infinity":
        return math.inf
    position, total, found = 0, 0.0, False
    stripped = text.rstrip()
    while position < len(stripped):
        part = _SPAN.match(stripped, position)
        if part is None or part[2] not in _UNITS:
            break
        total += float(part[1]) * _UNITS[part[2]]
        position, found = part.end(), True
    if not found or position < len(stripped):
        msg = f"{text[:80]!r} is no time span; write it like 30s, 5min or 1h 30min (systemd.time(7))"
        raise ProtocolError(msg)
    return total


def length(name: str, value: float, *, infinite: bool = False) -> float:
    """Check a length in seconds that a caller gave; ValueError says which and why."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name}={value!r}: give a number of seconds"
        raise TypeError(msg)
    number = float(value)
    if math.isnan(number) or number < 0 or (math.isinf(number) and not infinite):
        msg = f"{name}={value!r}: give a length in seconds, 0 or more" + ("" if infinite else " and finite")
        raise ValueError(msg)
    return number


def duration(seconds: float) -> str:
    """Write a length for people: the two leading units are enough ("12 s", "4 min", "2 h 5 min")."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def take(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Remove what only this process may use, so that its children cannot speak for it; return it."""
    return {name: environ.pop(name) for name in TAKEN if name in environ}


def give_back(environ: MutableMapping[str, str], taken: Mapping[str, str], *, listeners: bool) -> None:
    """Put back what was taken, unless somebody has set it anew; `listeners`: the passed descriptors are still open."""
    for name, value in taken.items():
        if listeners or not name.startswith("LISTEN_"):
            environ.setdefault(name, value)


def _whole(text: str, most: int) -> int | None:
    """Read a decimal number as strictly as systemd does: ASCII digits only, in range."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most else None


def _listeners(environ: Mapping[str, str], pid: int, pidfdid: int | None, problem: Callable[[str], None]) -> tuple[tuple[int, str], ...]:
    """sd_listen_fds_with_names(3): the descriptors passed to this very process, and their names."""
    count_text, owner = environ.get("LISTEN_FDS"), environ.get("LISTEN_PID")
    if count_text is None or owner is None:
        return ()
    listen_pid, count = _whole(owner, 2**31 - 1), _whole(count_text, 65536)
    if listen_pid is None or count is None:
        problem(f"LISTEN_PID={owner[:40]!r} LISTEN_FDS={count_text[:40]!r} are no numbers in range: no listener is taken over")
        return ()
    if listen_pid != pid:
        return ()
    foreign = environ.get("LISTEN_PIDFDID")  # v259: the inode of our own pidfd, where it can be known
    if foreign is not None and pidfdid is not None and foreign != str(pidfdid):
        return ()
    names = [name or "unknown" for name in environ.get("LISTEN_FDNAMES", "").split(":")] if environ.get("LISTEN_FDNAMES") else []
    if names and len(names) != count:
        problem(f"LISTEN_FDNAMES has {len(names)} names for {count} descriptors: the names are ignored")
        names = []
    names = names or ["unknown"] * count
    return tuple((LISTEN_FDS_START + index, names[index]) for index in range(count))


def _watchdog(environ: Mapping[str, str], pid: int, problem: Callable[[str], None]) -> float | None:
    """sd_watchdog_enabled(3): the interval in which the manager wants to hear from this very process."""
    text = environ.get("WATCHDOG_USEC")
    if text is None or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    interval = _whole(text, 2**63)
    if not interval:
        problem(f"WATCHDOG_USEC={text[:40]!r} is no number of microseconds: the watchdog is not fed")
        return None
    return interval / 1_000_000


def _fed_by(environ: Mapping[str, str], pid: int) -> int | None:
    """sd_watchdog_enabled(3): what was left to us by a parent that did not take it."""
    other = _whole(environ.get("WATCHDOG_PID", ""), 2**31 - 1)
    return other if other not in (None, pid) and _whole(environ.get("WATCHDOG_USEC", ""), 2**63) else None


def _limits(environ: Mapping[str, str], problem: Callable[[str], None]) -> Mapping[str, float | str]:
    """REQUIEM_*: limits that the unit sets; they win over the code's."""
    limits: dict[str, float | str] = {}
    for option in ("drain_timeout", "request_timeout", "lame_duck", "exit_timeout"):
        name = f"REQUIEM_{option.upper()}"
        text = environ.get(name)
        if text is None:
            continue
        if option == "lame_duck" and text.strip() == "jobs":
            limits[option] = "jobs"
            continue
        try:
            limits[option] = length(name, timespan(text), infinite=option == "drain_timeout")
        except ValueError as error:
            problem(f"{name} is ignored: {error}")
    return MappingProxyType(limits)


def _worker(environ: Mapping[str, str], pid: int) -> Place | None:
    """REQUIEM_WORKER: this very process is the worker of a primary (`requiem_systemd.cluster`)."""
    if environ.get("REQUIEM_WORKER_PID") != str(pid):
        return None
    found = _PLACE.fullmatch(environ.get("REQUIEM_WORKER", ""))
    return None if found is None else Place(int(found[1]), int(found[2]), found[3])


def _pair(text: str | None) -> tuple[int, int] | None:
    device, _, inode = (text or "").partition(":")
    return (int(device), int(inode)) if device.isdecimal() and inode.isdecimal() else None


def read(environ: Mapping[str, str], pid: int, pidfdid: int | None = None) -> Environment:
    """Read what the manager told the process `pid`; nonsense is listed in `problems`, never raised.

    `pidfdid` is the inode of the process's own pidfd where it is known (systemd 259 and later pass LISTEN_PIDFDID).
    """
    problems: list[str] = []
    worker = _worker(environ, pid)
    if worker is not None:  # its manager is the primary: what else the environment says was said to that one
        environ = {name: value for name, value in environ.items() if name not in _PRIMARYS}
    notify_socket = environ.get("NOTIFY_SOCKET") or None
    if notify_socket is not None and not notify_socket.startswith(("/", "@", "vsock")):
        problems.append(f"NOTIFY_SOCKET={notify_socket[:80]!r} is no address that sd_notify(3) describes: the manager is not told anything")
        notify_socket = None
    return Environment(
        notify_socket=notify_socket if worker is None else f"fd:{worker.channel}",
        listeners=_listeners(environ, pid, pidfdid, problems.append),
        watchdog=_watchdog(environ, pid, problems.append),
        fed_by=_fed_by(environ, pid),
        exec_pid=_whole(environ.get("SYSTEMD_EXEC_PID", ""), 2**31 - 1),
        journal_stream=_pair(environ.get("JOURNAL_STREAM")),
        runtime_directory=(environ.get("RUNTIME_DIRECTORY") or "").split(":")[0] or None,
        container=environ.get("container") or None,
        invocation_id=environ.get("INVOCATION_ID") or None,
        worker=worker,
        above=None if worker is None else environ.get("REQUIEM_MANAGER") or None,
        user_manager="MANAGERPID" in environ and (environ.get("XDG_RUNTIME_DIR") or "\0") in (notify_socket or ""),
        limits=_limits(environ, problems.append),
        problems=tuple(problems),
    )
