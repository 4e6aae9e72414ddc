"""`requiem-systemd ps`: show what is in flight in services."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import look, show, sockets
from requiem_systemd.cli.colours import paint
from requiem_systemd.cli.systemctl import UnavailableError
from requiem_systemd.protocol import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requiem_systemd.cli.look import Told

PARTLY: Final = 1
UNREACHABLE: Final = 3
# As of a program that SIGINT has ended, for a shell.
INTERRUPTED: Final = 130
INTERVAL: Final = 1.0
_CLEAR: Final = "\x1b[H\x1b[2J"
_DESCRIPTION: Final = """\
Show what is in flight in services: a row for each process (a generation, a worker), and below it what holds its stop, the oldest first.
Without UNIT: all services with a control socket. Seeing them takes root, or the service's own user. The exit status:

  0  shown
  1  a process did not answer, or runs an older release; its row says so
  2  wrong usage
  3  nothing of UNIT runs, or systemd cannot be asked; stderr says what to do"""
_EPILOG: Final = """\
Example, of a service that is being rolled:

    # requiem-systemd ps shop
    UNIT            PROCESS  STATE     FOR    IN FLIGHT
    shop@2.service  812      draining  4 min  1 job, 1 request
        job      "export 42"    14 min  thread Thread-3  uploading
        request  "GET /report"  9 s     task Task-812
    shop@3.service  900      running   4 min  nothing"""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.watch and options.json:
        parser.error("--watch is for people, --json is not: give one of them")
    if options.watch and not sys.stdout.isatty():
        parser.error("--watch redraws a terminal, and stdout is none")
    return guarded("ps", lambda: _watch(options) if options.watch else _once(options))


def guarded(verb: str, work: Callable[[], int]) -> int:
    """Do a verb's work; what cannot be shown is said, and a reader that has gone is no error to speak of."""
    try:
        status = work()
        sys.stdout.flush()
    except UnavailableError as error:
        print(f"requiem-systemd {verb}: {error}", file=sys.stderr)  # noqa: T201 - what a command line is for
        return UNREACHABLE
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # at once: the interpreter would wait for the thread that asks one that hangs
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return PARTLY
    return status


def ask(options: argparse.Namespace, *, stacks: bool) -> list[Told]:
    """Ask the services that are meant. Raises UnavailableError where one is named and does not run."""
    found = sockets.of(options.unit, user=options.user) if options.unit else sockets.everywhere(user=options.user)
    told = look.ask_all(found, stacks=stacks)
    if options.unit and not told:
        msg = f"{options.unit}: nothing of it runs any more"
        raise UnavailableError(msg)
    return told


def as_json(told: Sequence[Told]) -> str:
    """Write what was told as it came, one object."""
    services = [
        {
            "unit": one.unit,
            "socket": one.path or None,
            "problem": one.problem or None,
            "systemd": dict(one.shown) or None,
            "described": dict(one.described) or None,
            "in_flight": dict(one.in_flight) or None,
        }
        for one in told
    ]
    return json.dumps({"services": services}, indent=2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ps` and `why` have in common."""
    parser.add_argument("--user", action="store_true", help="of the calling user's manager")
    parser.add_argument("--json", action="store_true", help="what the services told, as one JSON object")


def unit_type(text: str) -> str:
    """Return the name of a service unit, for argparse."""
    if (
        not text
        or text.startswith("-")
        or ("/" in text and not text.startswith("/"))
        or text.endswith((".socket", ".target", ".timer"))
        or clean(text) != text
    ):
        msg = f"{text!r} is no service: give NAME.service, NAME@3.service, the NAME of an anchor, or a control socket's full path"
        raise argparse.ArgumentTypeError(msg)
    return text


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd ps", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument(
        "unit",
        nargs="?",
        type=unit_type,
        metavar="UNIT",
        help="a service, an instance of one, the anchor of rolling units, which stands for all its generations, or a control socket's full path",
    )
    add_options(parser)
    parser.add_argument("--watch", action="store_true", help="draw it anew each second, until Ctrl-C")
    return parser


def _once(options: argparse.Namespace) -> int:
    told = ask(options, stacks=False)
    if options.json:
        _write(as_json(told))
    elif told:
        _write("\n".join(show.table(told, paint(sys.stdout))))
    else:
        _say_nothing(user=options.user)
    return PARTLY if any(one.problem for one in told) else 0


def _say_nothing(*, user: bool) -> None:
    where = "$XDG_RUNTIME_DIR" if user else "/run"
    text = f"requiem-systemd ps: no service has a control socket under {where}; RuntimeDirectory=%N in a unit gives it one"
    print(text, file=sys.stderr)  # noqa: T201 - what a command line is for


def _watch(options: argparse.Namespace) -> int:
    try:
        while True:
            try:
                lines = show.table(ask(options, stacks=False), paint(sys.stdout))
            except UnavailableError as error:  # it may be started yet
                lines = [str(error)]
            _write(_CLEAR + "\n".join(fitting(lines, *shutil.get_terminal_size())), end="")
            sys.stdout.flush()
            time.sleep(INTERVAL)
    except KeyboardInterrupt:
        _write("")
        sys.stdout.flush()
        os._exit(0)  # as in `guarded`


def fitting(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """Cut lines to a terminal's size; colours take no room, and end with their line."""
    cut = [_cut(line, columns) for line in lines]
    return cut if len(cut) < rows else [*cut[: max(0, rows - 2)], f"and {len(cut) - rows + 2} lines more"]


def _cut(line: str, columns: int) -> str:
    room, kept, position = columns, [], 0
    while position < len(line) and room > 0:
        if line[position] == "\x1b":
            end = line.index("m", position) + 1
            kept.append(line[position:end])
            position = end
            continue
        kept.append(line[position])
        position += 1
        room -= 1
    return "".join(kept) + ("\x1b[0m" if "\x1b" in line and position < len(line) else "")


def _write(text: str, end: str = "\n") -> None:
    print(text, end=end)  # noqa: T201 - what a command line is for
