"""`requiem-systemd why`: what holds a service's stop, where it stands, and what can be done about it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import explain, ps
from requiem_systemd.cli.colours import paint

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION: Final = """\
Show what holds a service's stop (or would, where nothing stops it): the jobs with the stacks of their threads and tasks, the processes
beside them, the limits and how long until each, and what the next signal does. A stack has files, lines and functions, never values.
The exit status:

  0  shown
  1  a process did not answer, or runs an older release; it is said which
  2  wrong usage
  3  nothing of UNIT runs, or systemd cannot be asked; stderr says what to do"""
_EPILOG: Final = """\
Example, while `systemctl stop shop` hangs:

    # requiem-systemd why shop
    shop@2.service, process 812
      draining, for 4 min, begun by SIGTERM
      its stop is held by 1 job:
        job "export 42", 14 min, thread Thread-3 (uploading)
            /srv/shop/app.py:42:upload
            /usr/lib/python3.11/threading.py:975:run
      limits:
        drain_timeout: none
        request_timeout: lets a request or connection go after 30 s
        exit_timeout: ends the process on its way out after 90 s
        TimeoutStopSec=1min 30s has passed, 150 s ago; extended for 24 s more, and again before that has passed
      the next signal:
        SIGTERM changes nothing: the drain has begun
        SIGINT  is the first: changes nothing, but another, a second later, abandons what is in flight
        SIGHUP  does nothing any more: nothing is reloaded once the drain has begun
        SIGQUIT abandons what is in flight, and ends the process
                 systemctl kill -s QUIT --kill-whom=main shop@2.service"""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd why", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument("unit", type=ps.unit_type, metavar="UNIT", help="as for ps")
    ps.add_options(parser)
    options = parser.parse_args(argv)
    return ps.guarded("why", lambda: _why(options))


def _why(options: argparse.Namespace) -> int:
    told = ps.ask(options, stacks=True)
    if options.json:
        print(ps.as_json(told))  # noqa: T201 - what a command line is for
    else:
        blocks = ("\n".join(explain.account(one, paint=paint(sys.stdout))) for one in told)
        print("\n\n".join(blocks))  # noqa: T201 - same
    return ps.PARTLY if any(one.problem for one in told) else 0
