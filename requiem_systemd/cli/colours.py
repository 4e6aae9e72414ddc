"""Whether and how text for a terminal is coloured."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

#: Colours a text by the code of its colour.
Paint = Callable[[str, str], str]


def plain(text: str, colour: str) -> str:
    """Leave a text as it is."""
    del colour
    return text


def coloured(text: str, colour: str) -> str:
    """Colour a text for a terminal."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text else text


def paint(stream: TextIO) -> Paint:
    """Return how to colour: on a terminal that can, unless NO_COLOR asks for none (https://no-color.org)."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return coloured if wanted else plain
