"""`requiem-systemd reload`: have a service reload, wait, and make the exit status the verdict."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

from requiem_systemd import varlink
from requiem_systemd.cli import client
from requiem_systemd.errors import ProtocolError
from requiem_systemd.protocol import clean, length, timespan

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

FAILED: Final = 1
UNREACHABLE: Final = 3
# When a stop cuts in, systemd sends SIGTERM to the service first; its answer may be here before our own SIGTERM.
STOP_WITHIN: Final = 1.0
_NAME: Final = "requiem"  # control.NAME, whose module belongs to the service's side
_MISSING: Final = """\
The control socket needs a place, and the service to be the main process. Add to the unit's [Service] section:

    RuntimeDirectory=%N

then systemctl daemon-reload, and restart the service. No SIGHUP is sent instead: nobody could tell how that ends."""
_DESCRIPTION: Final = """\
Have a service reload, and wait until it has. The exit status is the verdict:

  0  the reload went well; stderr says so if the service has no handler for it, so that there was nothing to reload
  1  it failed, or there was no verdict; the reason is on stderr, and the service keeps its old state
  2  wrong usage
  3  the service cannot be reached; stderr says what to add to its unit"""
_EPILOG: Final = """\
In a unit, so that systemctl reload waits, and fails when the reload does:

    [Service]
    Type=notify
    RuntimeDirectory=%N
    ExecReload=requiem-systemd reload --pid $MAINPID"""


class UnreachableError(Exception):
    """Raised where there is no service to talk to; the message says why, and what to do."""


def run(argv: Sequence[str]) -> int:
    """Run the verb and return the exit status."""
    options = _parser().parse_args(argv)
    by_systemd = options.pid and os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
    if not by_systemd:
        return _run(options, in_stop=lambda: None)
    signal.signal(signal.SIGTERM, _bow_out)
    status = _run(options, in_stop=lambda: time.sleep(STOP_WITHIN))
    sys.stderr.flush()
    os._exit(status)  # at once: while the interpreter finalizes, SIGTERM would kill it again


def _run(options: argparse.Namespace, in_stop: Callable[[], object]) -> int:
    """Reload; `in_stop` is called where the service answered that it drains."""
    try:
        with (
            _connect_pid(options.pid)
            if options.pid
            else _connect_unit(options.unit, user=options.user) as sock
        ):
            return _reload(sock, options.timeout, in_stop)
    except UnreachableError as error:
        print(f"requiem-systemd reload: {error}", file=sys.stderr)  # noqa: T201 - what a command line is for
        return UNREACHABLE


def _bow_out(*_: object) -> None:
    """As ExecReload=, end well at SIGTERM: a stop has cut in.

    systemd has cancelled the reload by then, and would count the signal, or a status other than 0, against the service: a stop in the
    middle of a reload would leave the unit failed (tried with 252).
    """
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "requiem-systemd reload", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("unit", nargs="?", metavar="UNIT", help="the service, as systemctl names it")
    which.add_argument(
        "--pid", type=_pid, metavar="PID", help="the service's main process; in ExecReload=: $MAINPID"
    )
    parser.add_argument("--user", action="store_true", help="UNIT is the calling user's manager's")
    parser.add_argument(
        "--timeout",
        type=_timeout,
        metavar="SPAN",
        help='how long to wait, such as "90" or "5min" (default: no limit)',
    )
    return parser


def _pid(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        msg = f"{text!r} is no process number"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _timeout(text: str) -> float | None:
    try:
        seconds = length("--timeout", timespan(text), infinite=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return None if seconds == float("inf") else seconds


def _reload(sock: socket.socket, timeout: float | None, in_stop: Callable[[], object]) -> int:
    try:
        error, parameters = client.call(sock, f"{varlink.SERVICE}.Reload", timeout)
    except TimeoutError:
        return _say("no verdict within --timeout=; the reload goes on")
    except (OSError, ProtocolError) as problem:
        return _say(f"no verdict: {problem}")
    if not error:
        if note := parameters.get("note"):
            _say(note)
        return 0
    if error == varlink.RELOAD_FAILED:
        if parameters.get("draining"):
            in_stop()
        return _say(parameters.get("reason", "no reason was given"))
    return _say(f"the service answers {error}: it runs a release that cannot be reloaded this way")


def _say(reason: object) -> int:
    print(f"requiem-systemd reload: {clean(reason, 2000)}", file=sys.stderr)  # noqa: T201 - what a command line is for
    return FAILED


def _connect_pid(pid: int) -> socket.socket:
    """Connect to the service of a main process.

    ExecReload= runs in the unit's own environment. But whoever asks from another unit has that one's, so the process that listens is
    looked at before it is told anything.
    """
    problem = f"process {pid} has no control socket, or cannot be seen from here.\n{_MISSING}"
    for folder in _folders(pid):
        try:
            sock = client.connect(os.path.join(folder, _NAME))
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = _why(os.path.join(folder, _NAME), error)
            continue
        if client.peer(sock) in (pid, 0):
            return sock
        sock.close()
    raise UnreachableError(problem)


def _folders(pid: int) -> Iterator[str]:
    """Yield the first RuntimeDirectory= of our own environment, then that of the process."""
    if own := os.environ.get("RUNTIME_DIRECTORY"):
        yield own.split(":")[0]
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except (
        OSError
    ):  # there is none, or it is another user's, or hidden from us: ProtectProc=invisible with PrivateUsers=
        return
    for entry in entries:
        if entry.startswith(b"RUNTIME_DIRECTORY="):
            yield os.fsdecode(entry.partition(b"=")[2]).split(":")[0]


def _connect_unit(unit: str, *, user: bool) -> socket.socket:
    values = _show(unit, user=user)
    if values.get("LoadState") != "loaded":
        msg = f"{unit}: systemctl says {values.get('LoadState') or 'nothing about it'}"
        raise UnreachableError(msg)
    if values.get("MainPID", "0") == "0":
        msg = f"{unit} is {values.get('ActiveState')}: there is no process to reload"
        raise UnreachableError(msg)
    directories = values.get("RuntimeDirectory", "").split()
    base = os.environ.get("XDG_RUNTIME_DIR", "") if user else "/run"
    path = os.path.join(base, *directories[:1], _NAME)
    try:
        if directories:
            return client.connect(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnreachableError(_why(path, error)) from error
    msg = f"{unit} has no control socket.\n{_MISSING}"
    raise UnreachableError(msg)


def _why(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: permission denied; run this as root or as the service's user"
    return f"{path}: {error.strerror or error}"


def _show(unit: str, *, user: bool) -> dict[str, str]:
    import subprocess  # noqa: PLC0415 - ExecReload= gives a PID, and need not pay for this

    wanted = "--property=LoadState,ActiveState,MainPID,RuntimeDirectory"
    command = ["systemctl", *(["--user"] if user else []), "show", wanted, "--", unit]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - a list, no shell
    except OSError as error:
        msg = f"systemctl cannot be run: {error}"
        raise UnreachableError(msg) from error
    if done.returncode:
        raise UnreachableError(
            clean(done.stderr, 1000) or f"systemctl show {unit} failed with status {done.returncode}"
        )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
