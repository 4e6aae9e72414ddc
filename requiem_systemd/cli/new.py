"""`requiem-systemd new`: write the units of a service, from the templates, and say what to type next."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import templates
from requiem_systemd.cli.colours import paint
from requiem_systemd.cli.doctor import programs, show, sources
from requiem_systemd.cli.doctor.rules import findings
from requiem_systemd.cli.serve import workers
from requiem_systemd.cli.templates import Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

    from requiem_systemd.cli.doctor.finding import Finding

FAILED: Final = 1
SYSTEM: Final = "/etc/systemd/system"
#: Where `--serve` listens if nothing else is said: where `requiem-systemd serve` does.
LISTENS: Final = "127.0.0.1:8000"
#: systemd.service(5): RestartSteps= and RestartMaxDelaySec= are v254's.
PAUSES_SINCE: Final = 254
_DESCRIPTION: Final = """\
Write the units of a service, made from the templates that come with requiem_systemd, and say what to type next:

  NAME.service                 and, with --socket, NAME.socket
  NAME.service, NAME@.service  with --rolling: the anchor, and what a generation is

They go to /etc/systemd/system (--user: ~/.config/systemd/user). Nothing is started, nothing that is there is overwritten without --force.
The exit status:

  0  written, or shown by --print
  1  not written: a unit of that name is there, or the folder cannot be written to
  2  wrong usage"""
_EPILOG: Final = """\
Such as

    requiem-systemd new shop --serve shop.web:app --socket 8080 --rolling
    requiem-systemd new shop-worker --exec 'venv/bin/python -m shop.worker'
    requiem-systemd new shop-api --exec 'node server.js' --type exec --socket 3000 --print"""


class UsageError(Exception):
    """Raised where what is asked for cannot be; the message says why, and what to do."""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        made = templates.units(_wanted(options))
    except UsageError as error:
        parser.error(str(error))
    except templates.MissingError as error:
        return _fail(str(error))
    folder = options.directory or _folder(user=options.user)
    files = {os.path.join(folder, name): text for name, text in made.items()}
    if not options.print and (problem := _write(files, force=options.force)):
        return _fail(problem)
    found = _look(made, user=options.user)
    _say(_told(options, files, _steps(options, folder, files), found), sys.stdout)
    if found and not options.json:
        _say(show.as_text([(options.name, found)], paint(sys.stderr)), sys.stderr)
    return 0


def _told(
    options: argparse.Namespace, files: Mapping[str, str], steps: Sequence[str], found: Sequence[Finding]
) -> str:
    """Return what standard output gets."""
    if options.json:
        return json.dumps(
            {"files": files, "next": steps, "findings": [one._asdict() for one in found]}, indent=2
        )
    if options.print:
        return templates.as_text(files).rstrip("\n")
    return "\n".join([*(f"wrote {path}" for path in files), "", *steps])


# -- what is wanted -------------------------------------------------------------------------------------------------------


def _wanted(options: argparse.Namespace) -> Wanted:
    _check_name(options.name, as_user=options.rolling and not options.user)
    folder = os.path.abspath(options.working_directory or ".")
    words = _serve_words(options) if options.serve else _exec_words(options.exec, folder)
    program, arguments = programs.find(words)
    if options.workers and not (options.serve or options.rolling):
        msg = "--workers: of a program of yours only --rolling can start several; --serve can by itself"
        raise UsageError(msg)
    if options.workers == "auto" and options.rolling:
        msg = "--workers auto: of a rolled service give their number"
        raise UsageError(msg)
    listens = options.socket or (LISTENS if options.serve else "")
    several = program is not None and programs.has_children(program, arguments)
    own = (
        program is not None and program.notifies and not program.pings
    )  # a server with a way of its own, and no pinger
    mute = program is not None and not program.notifies and programs.is_mute(program, arguments)
    return Wanted(
        options.name,
        command=templates.quoted(words),
        reload=_reload(options, program, arguments),
        tool=templates.quoted([sys.executable, "-m", "requiem_systemd"]),
        folder=folder.replace("%", "%%"),
        listens=listens,
        rolling=options.rolling,
        workers=int(options.workers) if options.rolling and options.workers else None,
        several=several,
        cluster=several and program is not None and program.name == "requiem-systemd serve",
        notifies=options.type == "notify",
        pings=not own and not mute,
        mute=mute,
        pauses=options.rolling and (_version(user=options.user) or 0) >= PAUSES_SINCE,
        user=options.user,
        home=templates.below_home(folder, words[0]),
    )


def _version(*, user: bool) -> int | None:
    """Return the version of the manager that the units are for; None where none answers, as in an image that is built."""
    try:
        return sources.version(user=user)
    except sources.UnreadableError:
        return None


def _check_name(name: str, *, as_user: bool) -> None:
    """Raise UsageError for what cannot be a service's name, or (`as_user`) the name of its user."""
    if name.endswith((".service", ".socket")):
        msg = f"{name!r}: without its suffix: {name.rpartition('.')[0]}"
        raise UsageError(msg)
    if bad := re.search(r"[^A-Za-z0-9_-]", name):
        why = {
            "@": "instances are made by --rolling",
            "/": "--directory says where to write",
            ".": "a user's name has none",
        }.get(bad[0], "")
        msg = f"{name!r}: {bad[0]!r} cannot be in the name{f' ({why})' if why else ''}; use letters, digits, _ and -"
        raise UsageError(msg)
    if not name or name.startswith("-") or len(name) > 200:
        msg = f"{name!r} is no name for a service"
        raise UsageError(msg)
    if as_user and (len(name) > 31 or not re.match(r"[A-Za-z_]", name)):
        msg = f"{name!r}: all generations run as a user of this name (DynamicUser=, User=%p), which begins with a letter and has 31 letters at most"
        raise UsageError(msg)


def _serve_words(options: argparse.Namespace) -> list[str]:
    if not re.fullmatch(r"[\w.]+(:[\w.]+)?", options.serve):
        msg = f"--serve {options.serve!r}: give MODULE:APP"
        raise UsageError(msg)
    many = ["--workers", str(options.workers)] if options.workers and not options.rolling else []
    return [sys.executable, "-m", "requiem_systemd", "serve", *many, options.serve]


def _exec_words(text: str, folder: str) -> list[str]:
    """Split the command, and find its program: ExecStart= wants an absolute path."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        msg = f"--exec {text!r}: {error}"
        raise UsageError(msg) from error
    if not words:
        msg = "--exec: give the command, in one word: --exec 'python -m app'"
        raise UsageError(msg)
    first = words[0]
    there = os.path.join(folder, first) if "/" in first else shutil.which(first)
    if there is None or not os.access(there, os.X_OK):
        msg = f"--exec: {first} is no program that can be run from here; ExecStart= needs its absolute path"
        raise UsageError(msg)
    return [os.path.normpath(there), *words[1:]]


def _reload(
    options: argparse.Namespace, program: programs.Program | None, arguments: Sequence[str]
) -> str:
    """Return what ExecReload= is to be."""
    if options.type != "notify" or (program is not None and program.kind == programs.QUEUE):
        return ""
    own_way = program is not None and (
        (program.notifies and not program.pings) or programs.is_mute(program, arguments)
    )
    if program is not None and own_way:  # no line of ours runs in its main process, which ExecReload= would ask
        return "/bin/kill -HUP $MAINPID" if program.hup == programs.RELOAD else ""
    return f"{templates.quoted([sys.executable, '-m', 'requiem_systemd'])} reload --pid $MAINPID"


# -- writing --------------------------------------------------------------------------------------------------------------


def _folder(*, user: bool) -> str:
    if not user:
        return SYSTEM
    return os.path.join(
        os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "systemd", "user"
    )


def _write(files: Mapping[str, str], *, force: bool) -> str:
    """Write all, or nothing; return what is in the way."""
    there = [path for path in files if os.path.lexists(path)]
    if there and not force:
        return (
            f"{', '.join(there)}: there already, and nothing was written; --force overwrites, --print shows"
        )
    try:
        for path, text in files.items():
            _write_one(path, text)
    except OSError as error:
        hint = (
            "; run this as root, or with --user or --directory" if isinstance(error, PermissionError) else ""
        )
        return f"{error.filename}: {error.strerror}{hint}"
    return ""


def _write_one(path: str, text: str) -> None:
    """Write a file whole or not at all: systemd may read it at any time."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    number, temporary = tempfile.mkstemp(prefix=".requiem-", dir=folder)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _look(made: Mapping[str, str], *, user: bool) -> list[Finding]:
    """Return what doctor finds in units that may not be written yet; notes are left to it."""
    with tempfile.TemporaryDirectory(prefix="requiem-") as folder:
        for name, text in made.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        found = [
            one
            for name in made
            for one in findings(sources.from_file(os.path.join(folder, name), user=user))
            if one.severity != "notes"
        ]
    return list(dict.fromkeys(found))


def _steps(options: argparse.Namespace, folder: str, files: Mapping[str, str]) -> list[str]:
    """Return what to type next."""
    user = " --user" if options.user else ""
    steps = (
        []
        if folder == _folder(user=options.user)
        else [f"systemctl{user} link {' '.join(map(shlex.quote, map(os.path.abspath, files)))}"]
    )
    steps += [f"systemctl{user} daemon-reload", f"systemctl{user} enable --now {options.name}"]
    steps += ["loginctl enable-linger    # else your last logout stops it"] if options.user else []
    return [*steps, f"requiem-systemd doctor{user} {options.name}"]


# -- the command line -----------------------------------------------------------------------------------------------------


def _fail(text: str) -> int:
    _say(f"requiem-systemd new: {text}", sys.stderr)
    return FAILED


def _say(text: str, stream: TextIO) -> None:
    print(text, file=stream)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd new", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument("name", metavar="NAME", help="of NAME.service: letters, digits, _ and -")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--exec", metavar="COMMAND", help="what to run, in one word; its program is looked for in PATH"
    )
    what.add_argument(
        "--serve", metavar="MODULE:APP", help="run an ASGI or WSGI application by requiem-systemd serve"
    )
    parser.add_argument(
        "--socket",
        type=_address,
        metavar="ADDRESS",
        help=f"a .socket that listens: PORT, HOST:PORT or /PATH (--serve: {LISTENS})",
    )
    parser.add_argument(
        "--rolling",
        action="store_true",
        help="reload and restart start a new generation, and the old drain in the background",
    )
    parser.add_argument(
        "--workers",
        type=workers,
        metavar="N",
        help="with --serve: so many processes; with --rolling: instances a generation",
    )
    parser.add_argument(
        "--type",
        choices=("notify", "exec"),
        default="notify",
        help="exec: the program does not say READY=1 (default: notify)",
    )
    parser.add_argument("--working-directory", metavar="DIR", help="where it runs (default: here)")
    parser.add_argument(
        "--directory", metavar="DIR", help=f"where to write (default: {SYSTEM}, or ~/.config/systemd/user)"
    )
    parser.add_argument("--user", action="store_true", help="for the calling user's manager")
    parser.add_argument("--force", action="store_true", help="overwrite")
    parser.add_argument("--print", action="store_true", help="show, and write nothing")
    parser.add_argument(
        "--json",
        action="store_true",
        help="say as JSON what was written, what to type next, and what doctor finds",
    )
    return parser


def _address(text: str) -> str:
    """Read an address as ListenStream= takes it; systemd.socket(5)."""
    path = text.removeprefix("unix:")
    if path.startswith(("/", "@")) and len(path) > 1 and not re.search(r"[\s%]", path):
        return path
    host, _, port = text.rpartition(":")
    if port.isdecimal() and 0 < int(port) <= 65535 and re.fullmatch(r"|[0-9.]+|\[[0-9A-Fa-f:.]+\]", host):
        return text if host else port
    msg = f"{text!r}: give PORT, an address and a port such as 127.0.0.1:8080 or [::1]:8080, or a path"
    raise argparse.ArgumentTypeError(msg)
