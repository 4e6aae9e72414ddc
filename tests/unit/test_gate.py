"""Handlers of others that an adapter takes over from the gate."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from requiem_systemd.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals cannot be sent to a thread here")


@pytest.fixture
def called() -> list[str]:
    """Return where the handlers note that they were called."""
    return []


@pytest.fixture
def gate(called: list[str]) -> Iterator[Gate]:
    """Return an armed gate that found a handler of somebody else's at SIGHUP, and one at SIGTERM."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003 - the standard library's
    gate = Gate(theirs.fileno())
    signal.signal(signal.SIGHUP, lambda *_: called.append("hangup"))
    signal.signal(signal.SIGTERM, lambda *_: called.append("terminate"))
    try:
        gate.arm()
        yield gate
    finally:
        gate.disarm()
        for number, handler in previous.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


def test_unchained_is_not_called(gate: Gate, called: list[str]) -> None:
    """A handler that was given to somebody is called by nobody else, though its signal has come; others are."""
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    hangup = next(handler for handler in gate.chained() if "hangup" in str(handler.__code__.co_consts))
    assert {"SIGHUP": hangup} == gate.unchain(lambda handler: handler is hangup)
    assert gate.call_chained()
    assert called == ["terminate"]
    assert hangup not in gate.chained()


def test_called_in_the_main_thread(gate: Gate, called: list[str]) -> None:
    """A handler is called with the signal that it stands for."""
    assert gate.call("SIGQUIT", lambda number, _: called.append(signal.Signals(number).name))
    assert called == ["SIGQUIT"]


def test_nothing_left_to_call_by(gate: Gate, called: list[str]) -> None:
    """Where every handler of ours was replaced, nobody can be called."""
    gate.disarm()
    assert not gate.call("SIGQUIT", lambda *_: called.append("called"))
    assert called == []


def test_later_handler(gate: Gate, called: list[str]) -> None:
    """A handler that is installed while we are armed is chained in the place of the one before, which the caller is given."""
    found = signal.signal(signal.SIGTERM, lambda *_: called.append("later"))
    assert found is not None
    assert gate.is_ours(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert called == []
    assert gate.call_chained()
    assert called == ["later"]
    signal.signal(signal.SIGTERM, found)
    assert found in gate.chained()


def test_default_again(gate: Gate) -> None:
    """Who asks for the default action is chained no more, and the process does not end by the signal: it drains."""
    found = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert found not in gate.chained()
    assert gate.is_ours(signal.SIGTERM)


def test_ignored_on_purpose(gate: Gate) -> None:
    """A signal that the program wants to be ignored is."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    gate.disarm()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_ours_put_back(gate: Gate) -> None:
    """Who puts back the handler that it found, which is ours, gets back what was there before us."""
    ours = signal.getsignal(signal.SIGTERM)
    before = [handler for handler in gate.chained() if "terminate" in str(handler.__code__.co_consts)]
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGTERM, ours)
    assert before == [handler for handler in gate.chained() if "terminate" in str(handler.__code__.co_consts)]


def test_no_handler(gate: Gate) -> None:
    """What is no handler is refused as ever."""
    with pytest.raises(TypeError):
        signal.signal(signal.SIGTERM, "nonsense")  # type: ignore[arg-type]
    assert gate.is_ours(signal.SIGTERM)


def test_gate_within_a_gate(gate: Gate) -> None:
    """The one that was armed last has the signals, and gives them back to the one before."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003 - the standard library's
    inner = Gate(theirs.fileno())
    inner.arm()
    try:
        assert inner.is_ours(signal.SIGTERM)
    finally:
        inner.disarm()
        ours.close()
        theirs.close()
    assert gate.is_ours(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _later)
    assert _later in gate.chained()


def _later(*_: object) -> None:
    raise AssertionError


def test_signal_is_given_back(gate: Gate) -> None:
    """Disarmed, `signal.signal` is Python's own; another's stand-in for it is left alone."""
    ours = signal.signal
    gate.disarm()
    assert signal.signal is not ours
    assert signal.signal.__module__ == "signal"


def test_dismissed_handler_is_not_called_but_given_back() -> None:
    """Whoever is told of the stop by other means is not told twice; disarming gives the handler back all the same."""

    def theirs(*_: object) -> None:
        raise AssertionError

    ours, wakeup = socket.socketpair()
    wakeup.settimeout(0.0)
    before = signal.signal(signal.SIGTERM, theirs)
    gate = Gate(wakeup.fileno())
    try:
        gate.arm()
        assert gate.chained() == [theirs]
        gate.unchain(lambda handler: handler is not theirs)
        assert gate.chained() == [theirs]
        signal.raise_signal(signal.SIGTERM)
        assert gate.has_chained()
        gate.unchain(lambda handler: handler is theirs)
        assert gate.chained() == []
        assert not gate.has_chained()  # nor is it called for the signal that came before
        gate.disarm()
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        gate.disarm()
        signal.signal(signal.SIGTERM, before)
        ours.close()
        wakeup.close()
