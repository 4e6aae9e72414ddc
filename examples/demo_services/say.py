"""Tells what goes on."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def coloured(text: str, colour: str) -> str:
    """Colour a text where the terminal can. By ourselves: nothing that the library needs is installed yet."""
    can = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{colour}m{text}\x1b[0m" if can and colour else text


def say(text: str = "", colour: str = "") -> None:
    """Write a line."""
    print(f"  {coloured(text, colour)}".rstrip(), flush=True)


def title(text: str) -> None:
    """Begin a part."""
    print(f"\n{coloured(text, '1')}", flush=True)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Say every second how long something has lasted already; nothing of what is quicker."""
    ended = threading.Event()
    begin = time.monotonic()
    live = sys.stdout.isatty()

    def tick() -> None:
        while not ended.wait(1.0):
            seconds = time.monotonic() - begin
            print(
                f"\r  {text} ... {seconds:.0f} s" if live else f"  {text} ... {seconds:.0f} s",
                end="" if live else "\n",
                flush=True,
            )

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if live and time.monotonic() - begin >= 1.0:
            print(flush=True)
