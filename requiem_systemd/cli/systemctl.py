"""The manager of units, asked through systemctl: the edge of the verbs that start and stop units."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import generations
from requiem_systemd.protocol import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from requiem_systemd.cli.generations import Instance

#: So many of a failed generation's lines are shown.
LINES: Final = 10
_FOLDER: Final = "requiem-systemd"


class UnavailableError(Exception):
    """Raised where nothing can be asked, or what is asked for is not there; the message says what to do."""


class Anchor:
    """NAME.service and its instances, under the system's manager or the calling user's."""

    def __init__(self, name: str, *, user: bool) -> None:
        """Store."""
        self.name: str = name
        self.unit: str = f"{name}.service"
        self._user = user

    # -- asking

    def instances(self, *more: str) -> list[Instance]:
        """Return the instances that the manager has loaded, and units by name."""
        pattern = re.sub(r"\\", r"\\\\", self.name) + "@*.service"
        shown = self.systemctl("show", f"--property={','.join(generations.PROPERTIES)}", "--", pattern, *more)
        found = generations.read(shown.stdout)
        return list({one.unit: one for one in found if one.unit.startswith(f"{self.name}@")}.values())

    def show(self, *properties: str) -> dict[str, str]:
        """Return properties of the anchor; UnavailableError where there is none."""
        shown = self.systemctl("show", f"--property=LoadState,{','.join(properties)}", "--", self.unit)
        values = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
        if shown.returncode or values.get("LoadState") != "loaded":
            says = clean(shown.stderr, 1000) or values.get("LoadState") or "nothing about it"
            where = "" if self._user else "; --user asks your own manager"
            msg = f"{self.unit}: systemctl says {says}{where}"
            raise UnavailableError(msg)
        return values

    def job(self) -> str:
        """Return the type of the anchor's job ("start", "restart", "reload", "stop"); empty if there is none."""
        done = self.systemctl("list-jobs", "--plain", "--no-legend", "--", self.unit)
        rows = (line.split() for line in done.stdout.splitlines())
        return next((row[2] for row in rows if len(row) > 2 and row[1] == self.unit), "")

    def is_stopping(self) -> bool:
        """Say whether the anchor is being stopped, or is not there any more; not if it is to start again."""
        job = self.job()
        return job == "stop" or (
            not job
            and self.show("ActiveState")["ActiveState"] in ("deactivating", "inactive", "failed")
            and self.job() in ("", "stop")  # a job came in between: the state is not the last word
        )

    def missing(self) -> list[str]:
        """Return what the anchor requires and is not active: without it a start fails, and leaves the anchor inactive."""
        required = self.show("Requires")["Requires"].split()
        shown = self.systemctl("show", "--property=Id,ActiveState", "--", *required).stdout if required else ""
        return [block["Id"] for block in generations.blocks(shown) if block.get("ActiveState", "active") not in ("active", "reloading")]

    def is_us(self) -> bool:
        """Say whether the anchor runs us."""
        own = os.environ.get("INVOCATION_ID")
        return bool(own) and own == self.show("InvocationID")["InvocationID"]

    def journal(self, unit: str, since: float) -> list[str]:
        """Return the last lines that a unit's processes wrote since a time, or else what systemd wrote about it.

        Nothing where the journal cannot be read.
        """
        fields = ("_SYSTEMD_USER_UNIT", "USER_UNIT") if self._user else ("_SYSTEMD_UNIT", "UNIT")
        words = ("--quiet", "--no-pager", "--output=cat", f"--lines={LINES}", f"--since=@{since:.6f}")
        with contextlib.suppress(UnavailableError):
            run("journalctl", "--sync")  # what a process wrote in its last moment may be on its way
            for field in fields:
                text = run("journalctl", *words, f"{field}={unit}").stdout
                if text:
                    return [clean(line, 1000) for line in text.splitlines()][-LINES:]
        return []

    # -- acting

    def systemctl(self, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run systemctl to its end. Raises subprocess.TimeoutExpired after `timeout` seconds; a job that it began goes on."""
        return run("systemctl", *(("--user",) if self._user else ()), "--no-ask-password", *words, timeout=timeout)

    def stop(self, units: Sequence[str], *, block: bool = False) -> None:
        """Stop units, without waiting unless told so; units that are not there are no error."""
        if units:
            self.systemctl("stop", *(() if block else ("--no-block",)), "--", *units)

    def afterwards(self, command: Sequence[str], description: str) -> str:
        """Have the manager run a command when the anchor's job, whatever that turns into, has ended; in a unit of its own.

        Return what went wrong, "" for nothing.
        """
        # systemd.unit(5), After=: what is started waits for any job of the units that it is ordered behind.
        words = ("--quiet", "--no-block", "--collect", f"--property=After={self.unit}", f"--description={description}")
        path = [f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}"] if "PYTHONPATH" in os.environ else []
        done = run("systemd-run", *(("--user",) if self._user else ()), "--no-ask-password", *words, *path, "--", *command)
        return clean(done.stderr, 1000) if done.returncode else ""

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], object]) -> Iterator[None]:
        """Hold other rolls of the same service off; `waiting` is called before it is waited for one."""
        base = os.environ.get("XDG_RUNTIME_DIR", "") if self._user else "/run"
        path = os.path.join(base, _FOLDER, f"{self.name}.lock")
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            msg = f"{path}: {error.strerror}; run this as root, or systemctl reload {self.name} (--user for your own manager)"
            raise UnavailableError(msg) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def run(*command: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of systemd's to its end, in English; UnavailableError where it is not there."""
    environ = {**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "", "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(  # noqa: S603 - a list, no shell
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            timeout=timeout,
        )
    except OSError as error:
        msg = f"{command[0]} cannot be run: {error}"
        raise UnavailableError(msg) from error


def anchor_name(text: str) -> str:
    """Return the bare name of an anchor; ValueError for an instance or what is no unit's name."""
    name = text.removesuffix(".service")
    if not re.fullmatch(r"[A-Za-z0-9:_.\\-]+", name) or name.endswith((".socket", ".target")):
        msg = f"{text!r} is no anchor: give the NAME of NAME.service, whose instances are NAME@1.service and so on"
        raise ValueError(msg)
    return name
