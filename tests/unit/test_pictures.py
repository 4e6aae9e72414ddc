"""The README's pictures: what a terminal shows is drawn as it is, and the pictures that are there are whole and small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PICTURES: Final = ROOT / "docs" / "pictures"
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT: Final = "{http://www.w3.org/2000/svg}text"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")


def draw(folder: Path, written: str, *options: str) -> list[ET.Element]:
    """Have a program write in a terminal, and return the lines that are drawn, but for the command's own."""
    program = folder / "say.py"
    program.write_text(f"import sys\nsys.stdout.write({written!r})\n")
    out = folder / "out.svg"
    words = (sys.executable, str(PICTURES / "terminal.py"), *options, str(out), sys.executable, str(program))
    subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=15)
    return [one for one in ET.parse(out).iter(TEXT) if str(program) not in "".join(one.itertext())]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("  a & b < c\n", ["  a & b < c"]),
        ("working ... 1 s\rworking ... 2 s\n", ["working ... 2 s"]),
        ("longer\rshort\n", ["shortr"]),
        ("longer\rshort\x1b[K\n", ["short"]),
        ("\x1b[?25l\x1b]0;title\x07text\x1b[?25h\n", ["text"]),
        ("one\n\n\n", ["one"]),
        ("a\tb\n", ["a       b"]),
        ("„ä“ …\n", ["„ä“ …"]),
    ],
)
def test_text(tmp_path: Path, written: str, shown: list[str]) -> None:
    """The lines are those that a terminal shows in the end."""
    assert shown == ["".join(one.itertext()) for one in draw(tmp_path, written, "--columns", "200")]


def test_long_lines_go_on_below(tmp_path: Path) -> None:
    """A line that is longer than the terminal is wide goes on in the next one."""
    (line, rest) = draw(tmp_path, "x" * 250 + "\n", "--columns", "200")
    assert (line.text, rest.text) == ("x" * 200, "x" * 50)


def test_colours(tmp_path: Path) -> None:
    """Colours and bold type are drawn, until they are reset."""
    (line,) = draw(tmp_path, "\x1b[1;31mbad\x1b[0m, \x1b[92mgood\x1b[m.\n", "--columns", "200")
    spans = {span.text: (span.get("fill"), span.get("font-weight")) for span in line}
    assert spans == {"bad": ("#f07178", "bold"), "good": ("#a8cc8c", None)}
    assert "".join(line.itertext()) == "bad, good."


def test_failure_draws_nothing(tmp_path: Path) -> None:
    """Of a command that fails no picture is made."""
    words = (sys.executable, str(PICTURES / "terminal.py"), str(tmp_path / "out.svg"), sys.executable, "-c", "raise SystemExit(3)")
    assert subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=15).returncode == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("picture", sorted(PICTURES.glob("*.svg")), ids=lambda path: str(path.name))
def test_pictures(picture: Path) -> None:
    """Each picture is made by a line of docs/pictures/make, shown in the README, well-formed, below 100 kB, and asks for nothing from outside."""
    text = picture.read_text(encoding="utf-8")
    assert f"docs/pictures/{picture.name}" in (PICTURES / "make").read_text()
    assert f"](docs/pictures/{picture.name})" in README
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(text.encode()) < 100_000
    assert not re.search(r"href|<script|<image|url\(", text)


def test_every_line_has_its_picture() -> None:
    """What docs/pictures/make makes is there."""
    made = re.findall(r"docs/pictures/(\S+\.svg)", (PICTURES / "make").read_text())
    assert sorted(made) == sorted(path.name for path in PICTURES.glob("*.svg"))
