"""Text that comes from anywhere."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from requiem_systemd.errors import ProtocolError
from requiem_systemd.protocol import (
    DATAGRAM_MAX,
    clean,
    decode,
    duration,
    encode,
    read,
    timespan,
)
from requiem_systemd.testing.unit import Settings, Unit, parse

KEYS = st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True)
NAMES = st.sampled_from(
    [
        "NOTIFY_SOCKET",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "SYSTEMD_EXEC_PID",
        "JOURNAL_STREAM",
        "RUNTIME_DIRECTORY",
        "MANAGERPID",
        "XDG_RUNTIME_DIR",
        "REQUIEM_DRAIN_TIMEOUT",
        "REQUIEM_REQUEST_TIMEOUT",
        "REQUIEM_LAME_DUCK",
        "REQUIEM_EXIT_TIMEOUT",
        "container",
        "INVOCATION_ID",
    ]
)
ANYTHING = (
    st.text(st.characters(codec=None, exclude_categories=()))
    | st.integers().map(str)
    | st.just("42")
    | st.just("jobs")
)


@given(st.dictionaries(KEYS, st.text(st.characters(exclude_categories=("C", "Z")), max_size=50), max_size=8))
def test_round_trip(assignments: dict[str, str]) -> None:
    """What is written is read as it was."""
    assert dict(decode(encode(assignments).encode())) == assignments


@given(st.dictionaries(st.text(max_size=5) | KEYS, ANYTHING | st.text(min_size=2000, max_size=3000)))
def test_what_is_written_can_be_sent(assignments: dict[str, str]) -> None:
    """Whatever comes is a ProtocolError, or a message that the manager takes, with just these names."""
    try:
        datagram = encode(assignments).encode()
    except ProtocolError:
        return
    assert len(datagram) <= DATAGRAM_MAX
    assert [key for key, _ in decode(datagram)] == list(assignments)
    assert [key for key, _ in parse(datagram)] == list(assignments)


@given(st.binary(max_size=5000) | st.text(alphabet="AZ=1\n", max_size=50).map(str.encode))
def test_garbage(datagram: bytes) -> None:
    """Garbage raises nothing but ProtocolError."""
    try:
        pairs = decode(datagram)
    except ProtocolError:
        return
    assert dict(decode(encode(dict(pairs)).encode())).keys() == dict(pairs).keys()


@given(ANYTHING, st.integers(0, 200))
def test_clean(text: str, limit: int) -> None:
    """A cleaned text is one printable line within its limit, and stays as it is when it is cleaned again."""
    line = clean(text, limit)
    assert len(line.encode()) <= limit
    assert "\n" not in line
    assert "\0" not in line
    assert clean(line, limit) == line


@given(ANYTHING | st.from_regex(r"([0-9.]{0,4} ?[a-zA-Zµ]{0,4} ?){0,4}", fullmatch=True))
def test_timespan_garbage(text: str) -> None:
    """A time span is a number of seconds, 0 or more, or a ProtocolError."""
    try:
        seconds = timespan(text)
    except ProtocolError:
        return
    assert seconds >= 0


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.booleans())
def test_timespan(days: int, hours: int, minutes: int, seconds: int, blanks: bool) -> None:  # noqa: FBT001 - drawn
    """Its parts add up, with or without blanks."""
    text = (" " if blanks else "").join((f"{days}d", f"{hours}h", f"{minutes}min", f"{seconds}s"))
    assert math.isclose(timespan(text), ((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@given(st.floats(allow_nan=False, allow_infinity=False, max_value=1e12))
def test_duration(seconds: float) -> None:
    """A length for people is short."""
    assert len(duration(seconds)) < 20


@given(st.dictionaries(NAMES, ANYTHING))
def test_the_environment(environ: dict[str, str]) -> None:
    """Reading never raises, and every problem is one text that names a variable."""
    environment = read(environ, 42)
    assert all(any(name in problem for name in environ) for problem in environment.problems)
    assert environment.watchdog is None or environment.watchdog > 0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(-5, 10**8)), max_size=20))
def test_extensions_only_ever_lengthen(extensions: list[tuple[float, int]]) -> None:
    """The fake manager's deadline never comes nearer, and is never later than the last that was asked for."""
    unit = Unit(Settings(timeout_start=20.0), print)
    unit.start(0.0)
    now, latest = 0.0, 20.0
    for wait, usec in extensions:
        now += wait
        before = unit.deadline
        unit.message((("EXTEND_TIMEOUT_USEC", str(usec)),), now)
        latest = max(latest, now + max(usec, 0) / 1e6)
        assert before <= unit.deadline <= latest
