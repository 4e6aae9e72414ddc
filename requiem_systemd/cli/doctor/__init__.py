"""`requiem-systemd doctor`: says what of a unit will kill a drain or drop a connection, and the line to write."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.colours import paint
from requiem_systemd.cli.doctor import show, sources
from requiem_systemd.cli.doctor.finding import DROPS, KILLS
from requiem_systemd.cli.doctor.rules import findings

if TYPE_CHECKING:
    from collections.abc import Sequence

UNREADABLE: Final = 3
_DESCRIPTION: Final = """\
Read a unit with its drop-ins, from systemd or from a file, and say what of it will kill a drain or drop a connection, why, the line to
write, and where that is written. The service need not use requiem_systemd: what gunicorn, uvicorn, Celery, RQ and others do at a stop is
known, and Quadlet's .container files are understood. Nothing is changed. The exit status:

  0  nothing kills a job or drops a connection (what warns and notes is shown)
  1  something does
  2  wrong usage
  3  a unit cannot be read; stderr says why"""
_EPILOG: Final = """\
Such as

    requiem-systemd doctor gunicorn.service          a unit that systemd has loaded, and its process
    requiem-systemd doctor deploy/*.service          files, with FILE.d/*.conf and NAME.socket beside them"""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    options = _parser().parse_args(argv)
    status, told = 0, []
    for what in options.unit:
        try:
            found = findings(sources.read(what, user=options.user))
        except sources.UnreadableError as error:
            print(f"requiem-systemd doctor: {error}", file=sys.stderr)  # noqa: T201 - what a command line is for
            status = UNREADABLE
            continue
        if any(one.severity in (KILLS, DROPS) for one in found):
            status = status or 1
        told.append((what, found))
    text = (
        json.dumps(show.as_json(told), indent=2)
        if options.json
        else show.as_text(told, paint(sys.stdout))
    )
    if text:
        print(text)  # noqa: T201 - as above
    return status


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd doctor", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument(
        "unit", nargs="+", metavar="UNIT|FILE", help="a unit as systemctl names it, or the path of a file"
    )
    parser.add_argument(
        "--user", action="store_true", help="a UNIT is the calling user's manager's, a FILE is for one"
    )
    parser.add_argument("--json", action="store_true", help="a list of units, each with its findings")
    return parser
