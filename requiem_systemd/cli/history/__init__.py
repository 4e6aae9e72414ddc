"""`requiem-systemd history`: past drains, reloads and rolls of a unit, from the journal."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import ps
from requiem_systemd.cli.colours import paint
from requiem_systemd.cli.history import events, records, show, svg
from requiem_systemd.cli.systemctl import UnavailableError
from requiem_systemd.cli.systemctl import run as run_command
from requiem_systemd.errors import ProtocolError
from requiem_systemd.protocol import clean, timespan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requiem_systemd.cli.history.events import Happening

NOTHING: Final = 1
WRONG: Final = 2
LIMIT: Final = 20
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_DESCRIPTION: Final = """\
Show what the journal tells of a unit's past: its drains, with who held them and how long, its reloads and its rolls, the newest first; and
below them the newest drain as a timeline. OUTLIVED is how many jobs were in flight when TimeoutStopSec= alone would have had them killed;
WAITING is how many clients waited at its listeners when it ended. Reading takes root, or the group systemd-journal. The exit status:

  0  shown
  1  the journal tells of nothing of UNIT, there is no such NUMBER, or FILE cannot be written; stderr says which
  2  wrong usage
  3  the journal cannot be read; stderr says what to do"""
_EPILOG: Final = """\
Example:

    # requiem-systemd history shop --since 2d
    #  WHEN                 UNIT            WHAT   TOOK   HELD BY            OUTLIVED  WAITING  END
    1  2026-11-22 21:00:03  shop@2.service  drain  104 s  2 jobs, 1 request  1         0        all ended
    2  2026-11-22 21:00:02  shop.service    roll   0.4 s                                        ok: shop@3 for shop@2

    1 drain with 2 jobs; 1 outlived TimeoutStopSec=, and would have been killed

    drain of shop@2.service, process 812, 2026-11-22 21:00:03, begun by SIGTERM, 104 s: all ended
      job export 42        ==========================================#======  104 s
      job mail 7           ======                                    |        12 s
      request GET /report  ==                                        |        3.1 s
      extended 11 times    ^   ^    ^    ^   ^    ^    ^   ^    ^    ^    ^
                           0 s                           TimeoutStopSec=90 s

    # requiem-systemd history shop 1 --svg drain.svg"""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return ps.guarded("history", lambda: _history(options))
    except records.TimeError as error:
        parser.error(f"--since: {error}")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("requiem-systemd history", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    parser.add_argument(
        "unit", type=unit_type, metavar="UNIT", help="a service, an instance of one, or the anchor of rolling units, which stands for all its generations"
    )
    parser.add_argument("number", nargs="?", type=_count, metavar="NUMBER", help="of the drain to show, as the table counts them; without it: the newest")
    parser.add_argument("--since", type=_since, default="", metavar="TIME", help='how far back: a span such as "2d", or a time as journalctl takes it')
    parser.add_argument("--limit", type=_count, default=LIMIT, metavar="N", help=f"so many at the most, the newest (default: {LIMIT})")
    parser.add_argument("--svg", metavar="FILE", help='draw the drain as a picture too; "-": on stdout, instead of all else')
    parser.add_argument("--user", action="store_true", help="of the calling user's manager")
    parser.add_argument("--json", action="store_true", help="all of it as one JSON object")
    return parser


def unit_type(text: str) -> str:
    """Return a service's name, for argparse."""
    if not _UNIT.fullmatch(text) or text.startswith("-") or text.endswith((".socket", ".target", ".timer")):
        msg = f"{text[:80]!r} is no service: give NAME.service, NAME@3.service, or the NAME of an anchor"
        raise argparse.ArgumentTypeError(msg)
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text[:9]) <= 10_000 or len(text) > 9:
        msg = f"{text[:80]!r}: give a number, 1 to 10000"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _since(text: str) -> str:
    """Return what journalctl takes; it has no plain spans, only "2d ago"."""
    try:
        seconds = timespan(text)
    except ProtocolError:
        return clean(text, 100)
    if not 0 < seconds < 1e10:
        msg = f"{text[:80]!r}: give a span such as 2d, or a time as journalctl takes it"
        raise argparse.ArgumentTypeError(msg)
    return f"-{seconds:.0f}s"


def _history(options: argparse.Namespace) -> int:
    found = records.read(options.unit, user=options.user, since=options.since)
    for note in found.notes:
        _say(f"journalctl: {note}")
    told = [_as_it_stands(one, user=options.user) for one in events.happenings(found.records)[: options.limit]]
    if not told:
        since = " in that time; give an earlier --since" if options.since else ""
        _say(
            f"the journal tells of no drain, reload or roll of {options.unit}{since}"
            + ("" if since else ": is it spelt so, does its stderr go to the journal, has it been stopped since it uses requiem_systemd?")
        )
        return NOTHING
    if found.cut:
        _say(f"only the newest {records.RECORDS} records were looked at")
    chosen = _chosen(told, options.number)
    if options.number is not None and chosen is None:
        _say(f"{options.number} is no drain: the table, which `requiem-systemd history {options.unit}` shows, says what is")
        return NOTHING
    if options.svg and not _draw(chosen, options.svg):
        return NOTHING
    if options.svg != "-":
        _show(options, told, chosen)
    return 0


def _chosen(told: Sequence[Happening], number: int | None) -> Happening | None:
    if number is not None:
        return next((one for one in told[number - 1 : number] if one.course is not None), None)
    drains = [one for one in told if one.course is not None]
    return next((one for one in drains if one.course is not None and one.course.bars), drains[0] if drains else None)


def _show(options: argparse.Namespace, told: Sequence[Happening], chosen: Happening | None) -> None:
    if options.json:
        print(json.dumps(show.as_json(options.unit, told), indent=2))  # noqa: T201 - what a command line is for
        return
    colours = paint(sys.stdout)
    lines = [] if options.number is not None else [*show.table(told, colours), ""]
    if chosen is not None:
        width = shutil.get_terminal_size((show.WIDTH, 24)).columns
        drawn = show.glyphs(sys.stdout.encoding)
        lines += show.timeline(chosen, colours, width=width, drawn=drawn, now=_lasts(chosen))
    text = "\n".join(lines).rstrip("\n")
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding))  # noqa: T201 - as above


def _draw(chosen: Happening | None, path: str) -> bool:
    if chosen is None:
        _say("there is no drain to draw")
        return False
    picture = svg.picture(chosen, _lasts(chosen))
    try:
        if path == "-":
            sys.stdout.buffer.write(picture.encode())
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(picture)
    except BrokenPipeError:
        raise
    except OSError as error:
        _say(f"{path}: {error.strerror}")
        return False
    return True


def _as_it_stands(one: Happening, *, user: bool) -> Happening:
    """See whether a drain without an end goes on."""
    if one.course is None or one.outcome != events.UNKNOWN or one.run.boot != _boot():
        return one
    try:
        words = (*(("--user",) if user else ()), "show", "--property=ActiveState,InvocationID", "--", one.run.unit)
        shown = dict(line.partition("=")[::2] for line in run_command("systemctl", *words).stdout.splitlines())
    except UnavailableError:
        return one
    lives = shown.get("InvocationID") == one.run.invocation and shown.get("ActiveState") not in ("inactive", "failed", None)
    return one._replace(outcome=events.NOW) if lives else one


def _lasts(one: Happening) -> float | None:
    return max(0.0, time.monotonic() - one.at) if one.outcome == events.NOW else None


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip().replace("-", "")
    except OSError:
        return ""


def _say(text: str) -> None:
    print(f"requiem-systemd history: {text}", file=sys.stderr)  # noqa: T201 - what a command line is for
