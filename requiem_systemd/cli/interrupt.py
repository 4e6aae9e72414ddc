"""Signals that ask a verb to end: it undoes what it has begun, in peace."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
    """Raised by a signal that asks us to end; not an Exception, so that nothing takes it for a failure of its own."""


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Have signals interrupt the block, once; what was ignored (nohup) stays ignored."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        for number in _ENDING:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shield() -> None:
    """Have the same signals do nothing, until the block ends. Not SIG_IGN: children would inherit that."""
    for number in _ENDING:
        signal.signal(number, lambda *_: None)


def _interrupt(*_: object) -> None:
    shield()
    raise Interrupted
