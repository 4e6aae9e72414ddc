"""Run a command in a terminal, and draw what that terminal shows in the end. Standard library only.

    terminal.py [--columns N] OUT.svg COMMAND...

What is drawn is what the command wrote: nothing is typed in, nothing left out. Understood is what our programs write: text, newlines, carriage
returns, tabs, colours; other control sequences are dropped.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import sys
import termios
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

#: One sequence of a terminal's language, ECMA-48: CSI, or OSC to its end, or one character behind ESC.
_SEQUENCE: Final = re.compile(r"\x1b\[([0-9;?]*)([ -/]*[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.")
_SIZE: Final = 13  # pixels of a letter's height; a letter of a monospaced font is 0.6 of that wide
_LINE: Final = 18
_FONTS: Final = "ui-monospace,SFMono-Regular,Menlo,Consolas,&quot;DejaVu Sans Mono&quot;,monospace"
_MARGIN: Final = 16
_BACKGROUND: Final = "#1b1f27"
_COLOUR: Final = "#d5dae3"
#: SGR 30 to 37, and 90 to 97.
_COLOURS: Final = ("#5b6270", "#f07178", "#a8cc8c", "#e5c07b", "#7aa8f0", "#c792ea", "#7fd5d5", "#f2f4f8")


class Style(NamedTuple):
    """How a letter looks."""

    colour: str = ""
    bold: bool = False
    faint: bool = False

    def after(self, codes: str) -> Style:
        """Return what a sequence of SGR makes of it; what it does not know it leaves."""
        style = self
        for code in (int(word or 0) for word in codes.split(";")):
            if code == 0:
                style = Style()
            elif code in (1, 2):
                style = style._replace(bold=style.bold or code == 1, faint=style.faint or code == 2)
            elif code == 22:
                style = style._replace(bold=False, faint=False)
            elif 30 <= code <= 37 or 90 <= code <= 97:
                style = style._replace(colour=_COLOURS[code % 10])
            elif code == 39:
                style = style._replace(colour="")
        return style

    @property
    def attributes(self) -> str:
        """What an SVG says of it; empty for ordinary text."""
        named = (("fill", self.colour), ("font-weight", "bold" * self.bold), ("opacity", ".65" * self.faint))
        return "".join(f' {name}="{value}"' for name, value in named if value)


Cell = tuple[str, Style]


class Screen:
    """What a terminal shows, without an end below."""

    def __init__(self, columns: int) -> None:
        """Store."""
        self.rows: list[list[Cell]] = [[]]
        self._columns = columns
        self._column = 0
        self._style = Style()

    def write(self, text: str) -> None:
        """Show what a program has written."""
        place = 0
        for found in _SEQUENCE.finditer(text):
            self._print(text[place : found.start()])
            place = found.end()
            if found[2] == "m":
                self._style = self._style.after(found[1])
            elif found[2] == "K":
                del self.rows[-1][self._column :]
        self._print(text[place:])

    def _print(self, text: str) -> None:
        for letter in text:
            if letter == "\n":
                self.rows.append([])
                self._column = 0
            elif letter == "\r":
                self._column = 0
            elif letter == "\t":
                self._print(" " * (8 - self._column % 8))
            elif letter.isprintable():
                self._put(letter)

    def _put(self, letter: str) -> None:
        if self._column == self._columns:
            self._print("\n")
        row = self.rows[-1]
        row += [(" ", Style())] * (self._column + 1 - len(row))
        row[self._column] = (letter, self._style)
        self._column += 1

    def svg(self, title: str) -> str:
        """Draw it."""
        rows = [_row(row) for row in self.rows]
        while rows and not rows[-1]:
            rows.pop()
        width = round(self._columns * _SIZE * 0.6) + 2 * _MARGIN
        height = len(rows) * _LINE + 2 * _MARGIN
        texts = (
            f'<text x="{_MARGIN}" y="{_MARGIN + _LINE * number + _SIZE}">{row}</text>'
            for number, row in enumerate(rows)
            if row
        )
        lines = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{_BACKGROUND}"/>',
            f'<g fill="{_COLOUR}" font-size="{_SIZE}" xml:space="preserve" style="white-space:pre;font-family:{_FONTS}">',
            *texts,
            "</g>",
            "</svg>",
        )
        return "\n".join(lines) + "\n"


def _row(row: list[Cell]) -> str:
    """Draw a row: neighbours that look alike together."""
    cells = list(row)
    while cells and cells[-1][0] == " ":
        cells.pop()
    drawn = ""
    while cells:
        style = cells[0][1]
        end = next((number for number, cell in enumerate(cells) if cell[1] != style), len(cells))
        text = escape("".join(letter for letter, _ in cells[:end]))
        drawn += f"<tspan{style.attributes}>{text}</tspan>" if style.attributes else text
        del cells[:end]
    return drawn


def run(command: list[str], columns: int) -> tuple[str, int]:
    """Run a command in a terminal of so many columns; return what it wrote, and its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 50, columns, 0, 0))
        os.execvpe(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)})  # noqa: S606 - no shell is wanted
    written = b""
    try:
        while data := os.read(terminal, 65536):
            written += data
            os.write(1, data)
    except OSError:  # EIO, Linux' way of saying that nobody is on the other side any more
        pass
    finally:
        os.close(terminal)
    return written.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    """Read the command line; the command's own failure is ours, and nothing is drawn."""
    parser = argparse.ArgumentParser(description="Draw what a command shows in a terminal.")
    parser.add_argument("--columns", type=int, default=118, metavar="N")
    parser.add_argument("out", type=Path, metavar="OUT.svg")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args()
    text, status = run(options.command, options.columns)
    if status:
        return status
    called = shlex.join(options.command)
    screen = Screen(options.columns)
    screen.write(f"\x1b[2m#\x1b[0m {called}\n{text}")
    options.out.write_text(screen.svg(f"What {called} shows"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
