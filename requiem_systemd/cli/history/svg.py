"""A drain's timeline as a picture: SVG, without scripts, links or fonts of its own. No I/O."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.history import events, show

if TYPE_CHECKING:
    from requiem_systemd.cli.history.events import Bar, Happening
    from requiem_systemd.cli.history.show import Scale

WIDTH: Final = 960
LEFT, RIGHT, TOP, ROW = 260, 150, 56, 22
ROOM: Final = WIDTH - LEFT - RIGHT
_COLOURS: Final = {"before": "#2a7f62", "after": "#d9822b", "lost": "#c0392b", "line": "#444444", "text": "#222222", "faint": "#777777"}
# XML 1.0, section 2.2: what may not stand in a document, not even escaped.
_INVALID: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def picture(one: Happening, now: float | None = None) -> str:
    """Draw a drain; `now`: how long it has lasted, where it goes on."""
    to = show.scale(one, now)
    bars = one.course.bars if one.course is not None else ()
    notes = show.notes(one)
    height = TOP + ROW * (len(bars) + 2) + 18 * len(notes) + 24
    size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}"}
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size, "font-family": "sans-serif", "font-size": "12"})
    _child(root, "title", show.heading(one))
    _child(root, "rect", width=WIDTH, height=height, fill="#ffffff")
    _child(root, "text", show.cut(show.heading(one), 125), x=12, y=24, fill=_COLOURS["text"], font_size=14)
    bottom = TOP + ROW * len(bars)
    for number, bar in enumerate(bars):
        _row(root, bar, one, to, TOP + ROW * number)
    _marks(root, one, to, bottom)
    _axis(root, to, bottom + ROW)
    _deadline(root, one, to, bottom + ROW)
    for number, note in enumerate(notes):
        _child(root, "text", note, x=LEFT, y=bottom + 2 * ROW + 24 + 18 * number, fill=_COLOURS["text"])
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _row(root: ET.Element, bar: Bar, one: Happening, to: Scale, y: int) -> None:
    end = bar.end if bar.end is not None else one.seconds if one.seconds is not None else to.end
    label, tail = f"{bar.kind} {show.printable(bar.label)}", show.tail(bar, one)
    group = _child(root, "g", transform=f"translate(0 {y})")
    _child(group, "title", f"{label}: {tail}")
    _child(group, "text", show.cut(label, 36), x=LEFT - 10, y=15, text_anchor="end", fill=_COLOURS["text"])
    first, last = max(0.0, bar.begin), max(0.0, end)
    split = last if to.deadline is None else min(max(to.deadline, first), last)
    lost = bar.fate not in (events.ENDED, events.OPEN) or (bar.fate == events.OPEN and one.outcome != events.NOW)
    _bar(group, (first, split), to, _COLOURS["before"])
    if last > split:
        _bar(group, (split, last), to, _COLOURS["after"])
    if lost:
        x = _x(last, to)
        _child(group, "path", d=f"M{x - 4:.1f} 6l8 8m0 -8l-8 8", stroke=_COLOURS["lost"], stroke_width=2)
    _child(group, "text", tail, x=f"{_x(last, to) + 8:.1f}", y=15, fill=_COLOURS["lost"] if lost else _COLOURS["faint"])


def _bar(group: ET.Element, span: tuple[float, float], to: Scale, colour: str) -> None:
    x, end = _x(span[0], to), _x(span[1], to)
    _child(group, "rect", x=f"{x:.1f}", y=4, width=f"{max(1.0, end - x):.1f}", height=ROW - 9, fill=colour)


def _marks(root: ET.Element, one: Happening, to: Scale, y: int) -> None:
    course = one.course
    if course is None or not course.extended:
        return
    _child(root, "text", show.extended(course), x=LEFT - 10, y=y + 15, text_anchor="end", fill=_COLOURS["faint"])
    for at in course.extensions:
        _child(root, "path", d=f"M{_x(at, to):.1f} {y + 5}l4 10h-8z", fill=_COLOURS["faint"])


def _axis(root: ET.Element, to: Scale, y: int) -> None:
    _child(root, "path", d=f"M{LEFT} {y}h{ROOM}", stroke=_COLOURS["line"])
    _child(root, "text", "0 s", x=LEFT, y=y + 16, fill=_COLOURS["faint"])
    _child(root, "text", show.took(to.end), x=LEFT + ROOM, y=y + 16, text_anchor="end", fill=_COLOURS["faint"])


def _deadline(root: ET.Element, one: Happening, to: Scale, y: int) -> None:
    if to.deadline is None or one.course is None:
        return
    x = _x(to.deadline, to)
    _child(root, "path", d=f"M{x:.1f} {TOP - 6}V{y}", stroke=_COLOURS["line"], stroke_dasharray="4 3")
    name = f"TimeoutStopSec={show.took(one.course.stop_timeout or 0.0)}"
    _child(root, "text", name, x=f"{x:.1f}", y=TOP - 12, text_anchor="middle", fill=_COLOURS["line"])


def _x(at: float, to: Scale) -> float:
    return LEFT + ROOM * min(1.0, max(0.0, at / to.end))


def _child(parent: ET.Element, tag: str, text: str = "", **attributes: object) -> ET.Element:
    child = ET.SubElement(parent, tag, {name.replace("_", "-"): str(value) for name, value in attributes.items()})
    if text:
        child.text = _INVALID.sub("\ufffd", text)
    return child
