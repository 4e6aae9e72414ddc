"""Text and values of sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3) and systemd.time(7)."""

from __future__ import annotations

import math

import pytest

from requiem_systemd.errors import ProtocolError
from requiem_systemd.protocol import (
    DATAGRAM_MAX,
    TAKEN,
    Environment,
    clean,
    decode,
    duration,
    encode,
    length,
    read,
    take,
    timespan,
    usec,
)


def test_encode_writes_a_line_each() -> None:
    """Each assignment is a line, in the order given."""
    assert encode({"READY": 1, "STATUS": "up"}) == "READY=1\nSTATUS=up\n"


def test_encode_keeps_a_message_in_one_datagram() -> None:
    """A long STATUS gives way to the lines beside it, cut at a code point."""
    text = encode({"STATUS": "ä" * 5000, "READY": 1})
    assert len(text.encode()) <= DATAGRAM_MAX
    assert text.endswith("…\nREADY=1\n")


def test_encode_refuses_what_cannot_fit() -> None:
    """What is no STATUS is not cut: the caller is told which one is too long."""
    with pytest.raises(ProtocolError, match="shorten LONG"):
        encode({"A": "x", "LONG": "x" * 3000, "LONGER": "x" * 2000})


def test_encode_of_many_lines_with_a_status() -> None:
    """Lines that fill a datagram by themselves are refused, also beside a STATUS."""
    with pytest.raises(ProtocolError, match="shorten LONG"):
        encode({"LONG": "x" * 3000, "LONGER": "x" * 2000, "STATUS": "up"})


@pytest.mark.parametrize("key", ["", "ready", "READY=1\nSTATUS", "A B", "1A", "A\n", "Ä"])
def test_encode_refuses_what_is_no_name(key: str) -> None:
    """A key that could smuggle in another line is refused."""
    with pytest.raises(ProtocolError, match="variable name"):
        encode({key: 1})


def test_encode_keeps_values_in_their_line() -> None:
    """A value with newlines makes no new assignment."""
    assert encode({"STATUS": "a\nREADY=1\r\nb"}) == "STATUS=a READY=1 b\n"


def test_decode_reads_what_encode_writes() -> None:
    """One is the inverse of the other."""
    assert decode(encode({"READY": 1, "STATUS": "oben =1"}).encode()) == (
        ("READY", "1"),
        ("STATUS", "oben =1"),
    )


@pytest.mark.parametrize(
    "datagram", [b"READY", b"=1", b"ready=1", b"\xff=1", b"A=1\n\nB", b"A=" + b"x" * DATAGRAM_MAX]
)
def test_decode_refuses_garbage(datagram: bytes) -> None:
    """What is no sequence of assignments is a ProtocolError."""
    with pytest.raises(ProtocolError):
        decode(datagram)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("1.5", 1.5),
        ("30s", 30.0),
        ("5min", 300.0),
        ("1h 30min", 5400.0),
        ("1h30min", 5400.0),
        ("2 d", 172800.0),
        ("1w", 604800.0),
        ("1M", 2629800.0),
        ("1m", 60.0),
        ("1y", 31557600.0),
        ("250ms", 0.25),
        (" 1min 1s ", 61.0),
        ("infinity", math.inf),
    ],
)
def test_timespan(text: str, seconds: float) -> None:
    """Time spans are read as systemd.time(7) writes them."""
    assert timespan(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "1x", "h", "1 h 2 q", "NaN", "1e3", "inf", "1,5", "\u0661s", "5 min!"]
)
def test_timespan_refuses(text: str) -> None:
    """Nonsense is a ProtocolError that shows how to write it."""
    with pytest.raises(ProtocolError, match=r"systemd\.time"):
        timespan(text)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf])
def test_length_refuses_numbers(value: float) -> None:
    """A length is a finite number, not below zero; the message names it."""
    with pytest.raises(ValueError, match="drain_timeout"):
        length("drain_timeout", value)


@pytest.mark.parametrize("value", ["5", None, True, b"1", [1]])
def test_length_refuses_other_types(value: object) -> None:
    """What is no number is a TypeError."""
    with pytest.raises(TypeError, match="drain_timeout"):
        length("drain_timeout", value)  # type: ignore[arg-type]


def test_length_may_be_infinite() -> None:
    """Where none at all makes sense, infinity is one."""
    assert math.isinf(length("x", math.inf, infinite=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """Lengths are written for people."""
    assert duration(seconds) == text


def test_usec() -> None:
    """Seconds become whole microseconds."""
    assert usec(0.1 + 0.2) == 300_000


def test_clean_makes_one_line() -> None:
    """Control characters and line separators become a blank each run."""
    assert clean("a\n\r\tb\x00c\u2028d\x9fe\x7f") == "a b c d e "


def test_clean_escapes_surrogates() -> None:
    """A lone surrogate, as in an undecodable file name, is written as its escape."""
    assert clean("a\udcffb") == "a\\udcffb"


def test_clean_cuts_at_a_code_point() -> None:
    """What is too long ends in an ellipsis and is valid UTF-8 of at most that many bytes."""
    cut = clean("€" * 100, 50)
    assert len(cut.encode()) <= 50
    assert cut.endswith("€…")


@pytest.mark.parametrize("limit", range(5))
def test_clean_to_almost_nothing(limit: int) -> None:
    """However little room there is, it is kept to."""
    assert len(clean("x" * 100, limit).encode()) <= limit


def test_clean_of_something_that_cannot_be_shown() -> None:
    """A label whose __str__ fails is still named."""

    class Bad:
        def __str__(self) -> str:
            msg = "no"
            raise OSError(msg)

    assert clean(Bad()) == "<Bad: OSError in str()>"


def test_read_of_nothing() -> None:
    """Outside a manager everything is absent."""
    assert read({}, 1) == Environment()


def test_read_of_everything() -> None:
    """What the manager says is read into values."""
    environment = read(
        {
            "NOTIFY_SOCKET": "/run/user/7/systemd/notify",
            "LISTEN_PID": "42",
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "http:",
            "WATCHDOG_PID": "42",
            "WATCHDOG_USEC": "30000000",
            "SYSTEMD_EXEC_PID": "42",
            "JOURNAL_STREAM": "8:1234",
            "RUNTIME_DIRECTORY": "/run/a:/run/b",
            "MANAGERPID": "7",
            "XDG_RUNTIME_DIR": "/run/user/7",
            "REQUIEM_DRAIN_TIMEOUT": "1h",
            "REQUIEM_LAME_DUCK": "jobs",
        },
        42,
    )
    assert environment.listeners == ((3, "http"), (4, "unknown"))
    assert environment.watchdog == 30.0
    assert environment.exec_pid == 42
    assert environment.journal_stream == (8, 1234)
    assert environment.runtime_directory == "/run/a"
    assert environment.user_manager
    assert dict(environment.limits) == {"drain_timeout": 3600.0, "lame_duck": "jobs"}
    assert environment.problems == ()


@pytest.mark.parametrize(
    ("pid", "usec", "other"),
    [("42", "30000000", None), ("7", "30000000", 7), ("7", "0", None), ("7", "soon", None), ("me", "30000000", None), ("", "30000000", None)],
)
def test_whose_watchdog_it_is(pid: str, usec: str, other: int | None) -> None:
    """A watchdog that waits for another process is known as that one's; nonsense is nobody's."""
    environment = read({"WATCHDOG_PID": pid, "WATCHDOG_USEC": usec}, 42)
    assert environment.fed_by == other
    assert (environment.watchdog is not None) == (pid == "42")


def test_take_removes_what_children_must_not_have() -> None:
    """Everything by which a child could speak for us goes, and nothing else."""
    environ = dict.fromkeys(TAKEN, "1") | {"PATH": "/bin"}
    take(environ)
    assert environ == {"PATH": "/bin"}
