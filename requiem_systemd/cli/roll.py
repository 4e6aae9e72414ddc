"""`requiem-systemd roll`: start the next generation of a service, and when it serves have the old ones drain.

Discussion of strategies:

*The old are told without waiting*, for hours of draining if need be; each is a unit of its own, and systemd's business from then on.

*A stop in the middle.* systemd ends us with SIGTERM where we are the anchor's process, skips its ExecStop=, and runs ExecStopPost=, which
therefore is where `drain` belongs. Where a person started us, `drain` stops what we have begun to start, and waits for the lock; we look
whether the anchor is being stopped before the old ones are told. So either sees the other.

*A restart that fails* leaves the anchor failed, whatever it returns: that is how `systemctl restart` fails. But a stop of a failed unit does
nothing, and its socket would have it started for each connection. So its Restart= has it started again at once, and we see that by
NRestarts= and leave it at that. (StopPropagatedFrom= in the generations would carry a stop too; but also this failure, tried with 252.)
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd import journal, tally
from requiem_systemd.cli import generations, interrupt, proof
from requiem_systemd.cli.systemctl import Anchor, UnavailableError, anchor_name
from requiem_systemd.protocol import clean, duration, length, timespan, usec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requiem_systemd.cli.generations import Instance

FAILED: Final = 1
UNAVAILABLE: Final = 3
REFUSED: Final = 4
PROBATION: Final = 0.5
_DESCRIPTION: Final = """\
Start the next generation of a service: the instance NAME@2 after NAME@1, and so on. When it has said READY=1, and has lived through its
probation, the old ones are told to stop; they drain in the background, each for as long as its jobs run. If it does not come up, the old
serve on. The exit status says which:

  0  the new generation serves
  1  it did not come up, or the service was stopped meanwhile; the reason is on stderr, and nothing old was touched
  2  wrong usage
  3  there is nothing to roll, or systemd cannot be asked; stderr says what to do
  4  refused, by --max-generations or since the release still drains; nothing was changed"""
_EPILOG: Final = """\
In NAME.service, whose only work this is (units/rolling.service is the whole of it):

    [Service]
    Type=oneshot
    RemainAfterExit=yes
    ExecStart=requiem-systemd roll %N
    ExecReload=requiem-systemd roll %N
    ExecStopPost=requiem-systemd drain %N"""


class RefusedError(Exception):
    """Raised where a roll would be possible, but must not be; the message says why, and what to do."""


class Plan(NamedTuple):
    """What a roll is going to do."""

    new: list[str]
    old: list[Instance]
    failed: list[str]  # units that have ended badly, before this roll
    known: Instance | None  # the release that is asked for, if it serves already
    again: list[str]  # of the new, what has run before and ended badly: a release


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    options = _parser().parse_args(argv)
    anchor = Anchor(options.name, user=options.user)
    ours = False
    try:
        with interrupt.heeded():
            ours = anchor.is_us()
            with anchor.locked(lambda: say(f"another roll of {anchor.name} is under way: waiting for it")):
                return _roll(anchor, options, ours=ours)
    except UnavailableError as error:
        return fail(str(error), UNAVAILABLE)
    except RefusedError as error:
        _tell(anchor, None, 0.0, tally.REFUSED, str(error))
        return fail(str(error), REFUSED)
    except interrupt.Interrupted:
        _tell(anchor, None, 0.0, tally.FAILED, "interrupted")
        # As the anchor's process end well if a stop has cut in: systemd would count any other status against the unit.
        stopped = ours and anchor.job() == "stop"
        return fail(f"interrupted: {anchor.name} was not rolled", 0 if stopped else FAILED)


def _roll(anchor: Anchor, options: argparse.Namespace, *, ours: bool) -> int:
    if anchor.is_stopping():
        if ours:
            return fail(f"{anchor.name} is being stopped: nothing is started")
        state = anchor.show("ActiveState")["ActiveState"]
        msg = f"{anchor.unit} is {state}: systemctl start {anchor.name} starts the first generation"
        raise UnavailableError(msg)
    if ours and _again(anchor):
        return 0
    plan, began = _plan(anchor, options), time.monotonic()
    if plan.known is None:
        if plan.again:  # systemd forgets it then, and reads its files as they are now, as it does those of all that are new
            anchor.systemctl("reset-failed", "--", *plan.again)
        say(f"{generations.named(plan.new)}: starting")
        if problem := proof.begin(anchor, plan.new, options.probation):
            _tell(anchor, plan, time.monotonic() - began, tally.FAILED, problem)
            return fail(problem)
        say(f"{generations.named(plan.new)}: up after {time.monotonic() - began:.1f} s")
    else:
        say(f"{plan.known.name}: serves already; systemctl restart {plan.known.name} starts it anew, when its jobs have ended")
    status = _retire(anchor, plan)
    _tell(anchor, plan, time.monotonic() - began, tally.OK)
    return status


def _tell(anchor: Anchor, plan: Plan | None, elapsed: float, verdict: str, reason: str = "") -> None:
    """Leave a record for `requiem-systemd history`: what is printed goes to the journal only where the anchor runs us."""
    new = [] if plan is None else [plan.known.name] if plan.known else plan.new
    old = [] if plan is None or verdict != tally.OK else [one for one in plan.old if one.live]  # others drain already
    text = f"roll of {anchor.name}: {verdict}, {generations.named(new) or 'nothing'} after {duration(elapsed)}"
    named = {"new": generations.named(new), "old": generations.named(old), "elapsed_usec": usec(elapsed), "reason": clean(reason, 300) or None}
    journal.tell("rolled", text, unit=anchor.unit, verdict=verdict, **named)


def _again(anchor: Anchor) -> bool:
    """Where systemd restarts the anchor because we failed: say whether a generation serves, or is tried; else pause, each time longer."""
    values = anchor.show("ActiveState", "NRestarts")
    times = int(values["NRestarts"] or 0)
    if values["ActiveState"] != "activating" or not times:
        return False
    if live := [one for one in anchor.instances() if one.live]:
        say(f"{generations.named(live)}: left as it is, since the roll before this one failed")
        return True
    time.sleep(pause(times))
    return False


def pause(times: int) -> float:
    """Return how long to wait before the anchor's start is tried anew, after so many times: 1 s, 2 s, 4 s ... 1 min."""
    return min(2.0 ** min(times - 1, 10), 60.0)


def _plan(anchor: Anchor, options: argparse.Namespace) -> Plan:
    """Decide what to start; RefusedError if it must not be."""
    instances = anchor.instances()
    known = None
    if options.release is None:
        new = generations.following(anchor.name, instances, options.workers)
    else:
        new = [generations.release_unit(anchor.name, options.release)]
        known = next((one for one in instances if one.unit == new[0] and one.came_up), None)
        if any(one.unit == new[0] and one.active == "deactivating" for one in instances):
            msg = f"release {options.release} still drains, and there can be but one of that name:\n{_listing(instances)}"
            raise RefusedError(msg)
    running = generations.generations(instances)
    if known is None and options.max_generations is not None and len(running) >= options.max_generations:
        msg = (
            f"{len(running)} generations of {anchor.name} run, and --max-generations={options.max_generations} allows no more. Nothing "
            f"was changed; roll again when one has ended:\n{_listing(instances)}"
        )
        raise RefusedError(msg)
    failed = [one.unit for one in instances if one.active == "failed"]
    again = [unit for unit in failed if unit in new]
    return Plan(new, generations.others(instances, new), [unit for unit in failed if unit not in new], known, again)


def _listing(instances: Sequence[Instance]) -> str:
    return generations.listing(instances, time.monotonic())


def _retire(anchor: Anchor, plan: Plan) -> int:
    """Tell the old generations to stop; from here on the roll is done, and no signal undoes it."""
    interrupt.shield()
    anchor.stop([one.unit for one in plan.old])
    if plan.failed:  # has been seen by now, or never will be; its journal stays
        anchor.systemctl("reset-failed", "--", *plan.failed)
    new = plan.known.name if plan.known else generations.named(plan.new)
    say(f"{new}: serving" + (f"; {generations.named(plan.old)}: draining in the background" if plan.old else ""))
    return 0


# -- the command line -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell how it goes: a person at a terminal, else the anchor's journal."""
    print(text, flush=True)  # noqa: T201 - what a command line is for


def fail(text: str, status: int = FAILED) -> int:
    """Say what went wrong, and return the exit status."""
    print(f"requiem-systemd roll: {text}", file=sys.stderr, flush=True)  # noqa: T201 - same
    return status


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd roll", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument("name", type=anchor_type, metavar="NAME", help="of NAME.service, whose instances NAME@... are")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--workers", type=_count, metavar="N", help="instances a generation: NAME@3-1 to NAME@3-N")
    how.add_argument(
        "--release",
        type=_release,
        metavar="ID",
        help="start NAME@ID, so that %%i is the release; a path is a link to its folder",
    )
    parser.add_argument("--max-generations", type=_count, metavar="N", help="refuse if so many run, draining ones too")
    parser.add_argument(
        "--probation",
        type=_probation,
        default=PROBATION,
        metavar="SPAN",
        help='how long the new must live before the old are stopped, such as "5s" (default: 500ms)',
    )
    parser.add_argument("--user", action="store_true", help="NAME is the calling user's manager's")
    return parser


def anchor_type(text: str) -> str:
    """Read NAME for argparse."""
    try:
        return anchor_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        msg = f"{text!r}: give a number, 1 or more"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _release(text: str) -> str:
    name = os.path.basename(os.path.realpath(text)) if "/" in text else text
    try:
        generations.release_unit("x", name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _probation(text: str) -> float:
    try:
        return length("--probation", timespan(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
