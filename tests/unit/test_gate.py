"""Signals as bytes: the handlers of others."""

from __future__ import annotations

import signal
import socket

from requiem_systemd.gate import Gate


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
        gate.dismiss(lambda handler: handler is not theirs)
        assert gate.chained() == [theirs]
        signal.raise_signal(signal.SIGTERM)
        assert gate.has_chained()
        gate.dismiss(lambda handler: handler is theirs)
        assert gate.chained() == []
        assert not gate.has_chained()  # nor is it called for the signal that came before
        gate.disarm()
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        gate.disarm()
        signal.signal(signal.SIGTERM, before)
        ours.close()
        wakeup.close()
