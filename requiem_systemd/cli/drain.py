"""`requiem-systemd drain`: stop all generations of a service, and wait until the last has ended.

As the anchor's ExecStopPost= it looks first why it was called: a restart stops the anchor too, and there the next roll does the work.
Discussion of strategies for a stop that comes in between, when we have looked and before the next roll runs:

*systemd then stops an anchor without processes*, and runs nothing of ours: the generations would serve on, and no later stop would reach
them. However late we look, there is an instant more. *StopPropagatedFrom=* in the generations carries a failed restart's stop too.
*A second look*, when the anchor's job is over, sees either what was to start again, or an anchor that is stopped. systemd itself has it
wait: a unit that is started waits for the jobs of those that it is ordered behind.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import generations
from requiem_systemd.cli.roll import FAILED, UNAVAILABLE, anchor_type, say
from requiem_systemd.cli.systemctl import Anchor, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION: Final = """\
Stop all generations of a service, and wait until the last of their jobs has ended: what `systemctl stop NAME` does, and does by this.
As ExecStopPost= of NAME.service it does nothing if the job is a restart, so that a restart is a roll. The exit status:

  0  all have ended, or nothing was to be done
  1  a generation did not end well (killed, or it abandoned jobs); stderr names it
  2  wrong usage
  3  there is nothing to drain, or systemd cannot be asked; stderr says what to do"""
_EPILOG: Final = """\
In NAME.service:

    ExecStopPost=requiem-systemd drain %N

and not ExecStop=, which systemd skips when a stop cuts in on a start or a reload."""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd drain", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument("name", type=anchor_type, metavar="NAME", help="of NAME.service, whose instances NAME@... are")
    parser.add_argument("--user", action="store_true", help="NAME is the calling user's manager's")
    parser.add_argument("--second-look", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    anchor = Anchor(options.name, user=options.user)
    try:
        if options.second_look:
            return _look_again(anchor)
        if anchor.is_us():
            if starts_again(anchor.job()):
                again = [sys.executable, *sys.orig_argv[1:], "--second-look"]
                if problem := anchor.afterwards(again, f"Look whether {anchor.name} was stopped in the middle of a restart"):
                    say(f"a stop in this very moment would not be seen: systemd-run: {problem}")
                return 0
        else:
            anchor.stop([anchor.unit], block=True)
        return _drain(anchor)
    except UnavailableError as error:
        print(f"requiem-systemd drain: {error}", file=sys.stderr)  # noqa: T201 - what a command line is for
        return UNAVAILABLE


def starts_again(job: str) -> bool:
    """Say whether a job leaves the anchor started, or tries to: then the generations stay, whatever stops it now."""
    return job not in ("stop", "")


def _look_again(anchor: Anchor) -> int:
    """Have the generations drain if the anchor, which was to start again, has been stopped instead; without waiting."""
    with anchor.locked(lambda: None):  # of a roll that a start begins meanwhile: it starts nothing before we are done
        if anchor.job() or anchor.show("ActiveState")["ActiveState"] != "inactive" or anchor.job():
            return 0
        if missing := anchor.missing():
            say(f"{anchor.name} was not started again, for want of {', '.join(missing)}; what serves is left as it is")
            return 0
        _stop_sockets(anchor)
        running = [one for one in anchor.instances() if not one.ended]
        anchor.stop([one.unit for one in running])
        if running:
            say(f"{anchor.name} was stopped in the middle of a restart; draining:\n{generations.listing(running, time.monotonic())}")
    return 0


def _stop_sockets(anchor: Anchor) -> None:
    # Never waited for: the socket's stop is ordered behind the anchor's, which may be us.
    anchor.stop([unit for unit in anchor.show("TriggeredBy")["TriggeredBy"].split() if unit.endswith(".socket")])


def _drain(anchor: Anchor) -> int:
    _stop_sockets(anchor)
    running = [one for one in anchor.instances() if not one.ended]
    anchor.stop([one.unit for one in running])
    if running:
        say(f"waiting for:\n{generations.listing(running, time.monotonic())}")
    # A roll that a person began may be about to start another; it ends when it sees the stop, and one that comes later begins nothing.
    with anchor.locked(lambda: None):
        pass
    last = anchor.instances()
    anchor.stop([one.unit for one in last if not one.ended], block=True)
    begun = {one.unit for one in (*running, *last) if not one.ended}
    bad = [one for one in anchor.instances() if one.unit in begun and one.active == "failed"]
    for one in bad:
        reason = generations.why(one, started=True)
        print(f"requiem-systemd drain: {one.name} did not end well: {reason}", file=sys.stderr)  # noqa: T201 - same
    return FAILED if bad else 0
