"""`requiem-systemd renew`: have units take up files that were replaced under them, without waiting for a drain. needrestart calls it.

Discussion of strategies:

*needrestart* finds processes that still run what an upgrade has replaced, and restarts their units, by name and all in one
`systemctl restart`: apt waits for the longest drain. The units that it finds are the generations, not the anchor, which has no process;
a generation that is restarted by its own name drains while nobody serves, and one that drains already would be started anew. Where there
is a script named after a unit in restart.d, it runs that instead: `scripts` lays them out, each a link to our command.

*Every step of an upgrade* calls needrestart again (unattended-upgrades takes small ones), and it finds again what still drains. So
whatever is on its way already is left alone.

*A plain unit* cannot be renewed without a drain. It is reloaded where it can be: that exchanges the workers of a cluster, and of
others takes up what their handlers read; what runs on as it was is named, since that is what needrestart had meant.
"""

from __future__ import annotations

import argparse
import enum
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd import processes
from requiem_systemd.cli import generations, scripts
from requiem_systemd.cli.ps import unit_type
from requiem_systemd.cli.systemctl import Anchor, UnavailableError
from requiem_systemd.protocol import clean, length, timespan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from requiem_systemd.processes import Stat

FAILED: Final = 1
UNAVAILABLE: Final = 3
#: How long the outcome of a roll or a reload is waited for, a unit: none of it is a drain.
WAIT: Final = 5.0
#: So many processes are named.
MOST: Final = 10
_DEAD: Final = ("Z", "X")  # proc(5): ended, and not yet waited for by their parent
_PROPERTIES: Final = ("Id", "LoadState", "ActiveState", "CanReload", "ExecStart", "MainPID", "StatusText")
_DESCRIPTION: Final = """\
Have units take up files that were replaced under them (libraries, Python itself), without waiting for a drain:

  a generation of rolled units    its anchor rolls; the old ones drain in the background
  a unit that can be reloaded     is reloaded, and what runs on as it was is named
  any other                       restarts in the background, when its jobs have ended
  one that drains, starts, or     is left alone
  has a job at systemd already

needrestart calls this instead of `systemctl restart`: under the name of a unit, such as a link /etc/needrestart/restart.d/NAME.service to
requiem-systemd, this command is `renew NAME.service`. The exit status:

  0  done, begun, or nothing to do
  1  a roll or a reload failed: what was there runs on; stderr says where the reason is
  2  wrong usage
  3  no such unit, or systemd cannot be asked; stderr says what to do"""


class Action(enum.Enum):
    """What is done with a unit."""

    ROLL = enum.auto()
    RELOAD = enum.auto()
    RESTART = enum.auto()
    LEAVE = enum.auto()


class Facts(NamedTuple):
    """What decides that."""

    active: str  # ActiveState=
    job: str  # the type of systemd's job for it; "" for none
    can_reload: bool
    anchor: str = ""  # the unit that rolls it; "" for none
    anchor_active: str = ""
    anchor_job: str = ""


def decide(facts: Facts, *, restart: bool = False) -> tuple[Action, str]:
    """Return what to do, and why nothing is done where it is nothing; `restart`: also with what can be reloaded."""
    if why := _under_way(facts):
        return Action.LEAVE, why
    if facts.anchor:
        return Action.ROLL, ""
    return (Action.RELOAD if facts.can_reload and not restart else Action.RESTART), ""


def _under_way(facts: Facts) -> str:
    """Say why a unit is to be left alone; "" if it is not."""
    if facts.active in ("inactive", "failed"):
        return f"it is {facts.active}"
    if facts.active == "deactivating":  # a restart would start again what is being stopped
        return "it drains already"
    if facts.anchor_job:
        return f"{facts.anchor} is at it already ({facts.anchor_job})"
    if facts.anchor and facts.anchor_active != "active":  # a generation that was started by hand, or whose anchor has failed
        return f"{facts.anchor}, which would roll it, is {facts.anchor_active}"
    if facts.job:
        return f"systemd is at it already ({facts.job})"
    # Starting, reloading; or a oneshot at its work, which a restart would begin anew.
    return "" if facts.active == "active" else f"it is {facts.active}"


# -- asking


class Found(NamedTuple):
    """A unit, and what decides about it."""

    unit: Anchor  # what the operator would type, anchor or not
    facts: Facts
    pid: int
    text: str  # STATUS=


def find(name: str) -> Found:
    """Look at a unit, and at the anchor that its name hints at. Raises UnavailableError where there is no such unit."""
    stem, at, _ = name.partition("@")
    unit = Anchor(name, user=False)
    names = [unit.unit, *([f"{stem}.service"] if at else [])]
    done = unit.systemctl("show", f"--property={','.join(_PROPERTIES)}", "--", *names)
    shown = generations.blocks(done.stdout)
    first, last = shown[0], shown[-1]
    if first.get("LoadState") != "loaded":
        msg = f"{unit.unit}: systemctl says {clean(done.stderr, 1000) or first.get('LoadState') or 'nothing about it'}"
        raise UnavailableError(msg)
    text, pid = clean(first.get("StatusText", "")), first.get("MainPID", "")
    facts = Facts(first.get("ActiveState", ""), unit.job(), first.get("CanReload") == "yes")
    if scripts.is_anchor(last):
        anchor = Anchor(stem, user=False)
        facts = facts._replace(anchor=anchor.unit, anchor_active=last.get("ActiveState", ""), anchor_job=anchor.job())
    return Found(unit, facts, int(pid) if pid.isdecimal() else 0, text)


# -- acting


def renew(name: str, *, wait: float, restart: bool) -> int:
    """Do with one unit what is to be done; return the exit status. Raises UnavailableError."""
    found = find(name)
    action, why = decide(found.facts, restart=restart)
    match action:
        case Action.ROLL:
            return _roll(found, wait)
        case Action.RELOAD:
            return _reload(found, wait)
        case Action.RESTART:
            return _restart(found)
        case Action.LEAVE:
            return _say(f"{found.unit.unit}: left alone: {why}{_told(found.text)}")


def _roll(found: Found, wait: float) -> int:
    anchor = Anchor(found.facts.anchor.removesuffix(".service"), user=False)
    ended = _outcome(anchor, wait)
    if ended is None:
        return _say(f"{anchor.unit}: rolls; after {wait:g} s the new generation is not up yet, and is not waited for")
    if ended:
        return _fail(f"{anchor.unit}: the roll failed, and the old serve on as they were: journalctl -u {anchor.unit} says why")
    return _say(f"{anchor.unit}: rolled; there are\n{generations.listing(anchor.instances(), time.monotonic())}")


def _reload(found: Found, wait: float) -> int:
    unit, before = found.unit.unit, _processes(found.pid)
    ended = _outcome(found.unit, wait)
    if ended is None:
        return _say(f"{unit}: reloads; that has not ended after {wait:g} s, and is not waited for")
    if ended:
        return _fail(f"{unit}: the reload failed, and all runs on as it was: journalctl -u {unit} says why")
    left = _left(before, _processes(found.pid))
    if not left:
        return _say(f"{unit}: reloaded; nothing of before runs on")
    return _say(f"{unit}: reloaded; left running as before: {_named(left)}; requiem-systemd renew --restart {unit} renews that too")


def _restart(found: Found) -> int:
    unit, before = found.unit.unit, _processes(found.pid)
    done = found.unit.systemctl("restart", "--no-block", "--", unit)
    if done.returncode:
        return _fail(f"{unit}: {clean(done.stderr, 1000) or 'systemctl restart failed'}")
    if not before:
        return _say(f"{unit}: restarts in the background")
    return _say(f"{unit}: restarts in the background, when its jobs have ended; left running until then: {_named(before.values())}")


def _outcome(unit: Anchor, wait: float) -> int | None:
    """Reload, and return how systemctl ended; None if it has not within `wait` seconds: the reload goes on."""
    try:
        return unit.systemctl("reload", "--", unit.unit, timeout=wait).returncode
    except subprocess.TimeoutExpired:
        return None


def _processes(pid: int) -> Mapping[int, Stat]:
    found = processes.members(pid, lambda: False) if pid else {}
    return {other: stat for other, stat in found.items() if stat.state not in _DEAD}


def _left(before: Mapping[int, Stat], after: Mapping[int, Stat]) -> list[Stat]:
    """Return which processes are still the same: their number, and when they began."""
    return [stat for pid, stat in before.items() if pid in after and after[pid].started == stat.started]


def _named(stats: Iterable[Stat]) -> str:
    named = [f"{stat.pid} ({stat.name})" for stat in sorted(stats)]
    return ", ".join(named[:MOST]) + (f" and {len(named) - MOST} more" if len(named) > MOST else "")


def _told(text: str) -> str:
    return f": {text}" if text else ""


# -- the command line


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if bool(options.units) == bool(options.scripts):
        parser.error("give UNIT ..., or --scripts FOLDER")
    try:
        if options.scripts:
            scripts.lay_out(options.scripts, options.beside, os.path.abspath(sys.argv[0]))
            return 0
    except (OSError, UnavailableError) as error:
        return _fail(str(error), UNAVAILABLE)
    return max(_one(unit.removesuffix(".service"), options) for unit in options.units)


def _one(name: str, options: argparse.Namespace) -> int:
    try:
        return renew(name, wait=options.wait, restart=options.restart)
    except UnavailableError as error:
        return _fail(str(error), UNAVAILABLE)


def _say(text: str) -> int:
    print(text, flush=True)  # noqa: T201 - what a command line is for
    return 0


def _fail(text: str, status: int = FAILED) -> int:
    print(f"requiem-systemd renew: {text}", file=sys.stderr, flush=True)  # noqa: T201 - same
    return status


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("requiem-systemd renew", description=_DESCRIPTION, formatter_class=raw)
    parser.add_argument("units", nargs="*", type=unit_type, metavar="UNIT", help="a service, an instance of one, or an anchor of rolled units")
    parser.add_argument("--restart", action="store_true", help="restart also what can be reloaded, in the background")
    parser.add_argument(
        "--wait",
        type=_wait,
        default=WAIT,
        metavar="SPAN",
        help='how long to wait for the outcome of a roll or a reload, such as "20s" (default: 5s); never for a drain',
    )
    parser.add_argument(
        "--scripts",
        metavar="FOLDER",
        help="lay out in FOLDER, for needrestart's restart_d, a script for each service of this library that runs; nothing else is done",
    )
    parser.add_argument("--beside", default="", metavar="FOLDER", help="with --scripts: take in what is in FOLDER, which has precedence")
    return parser


def _wait(text: str) -> float:
    try:
        return length("--wait", timespan(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
