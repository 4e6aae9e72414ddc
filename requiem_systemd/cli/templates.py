"""Units for one service, made from the templates of units/ by lines: what a template says of a line stays beside it.

A template is a part of the package where that is installed (`requiem_systemd/units`), and beside it in the tree.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS: Final = (os.path.join(_PACKAGE, "units"), os.path.join(os.path.dirname(_PACKAGE), "units"))
_HOMES: Final = ("/home/", "/root/", "/run/user/")
#: What a program that says nothing to systemd does without.
_SAID: Final = ("NotifyAccess", "WatchdogSec", "ExecReload", "RuntimeDirectory")


class MissingError(Exception):
    """Raised where the templates are not installed; the message says where they were looked for."""


class Wanted(NamedTuple):
    """What is to be written."""

    name: str
    command: str  # as it stands behind ExecStart=
    reload: str  # as it stands behind ExecReload=; empty for none
    tool: str  # how requiem-systemd is run
    folder: str  # WorkingDirectory=
    listens: str = ""  # ListenStream=; empty for no socket
    rolling: bool = False
    workers: int | None = None  # instances of a generation, if it is rolled
    several: bool = False  # processes in one unit
    cluster: bool = False  # those are a primary and its workers, of this library's making
    notifies: bool = True  # says READY=1
    pings: bool = True  # says WATCHDOG=1
    mute: bool = False  # its main process says nothing, its workers do
    pauses: bool = False  # systemd knows growing pauses between restarts
    user: bool = False
    home: bool = False  # something of it is below a home


def units(wanted: Wanted) -> dict[str, str]:
    """Return the units' texts by their names."""
    made = _rolling(wanted) if wanted.rolling else _plain(wanted)
    return {name: _headed(wanted, text) for name, text in made.items()}


def _plain(wanted: Wanted) -> dict[str, str]:
    name = wanted.name
    text = Text(template("socket-activated.service" if wanted.listens else "plain.service"))
    text.replace(r"plain\.socket", f"{name}.socket")
    text.drop("Sockets")  # NAME.service gets NAME.socket by itself
    _service(text, wanted)
    made = {f"{name}.service": text.lines()}
    if wanted.listens:
        made[f"{name}.socket"] = _socket("plain.socket", wanted).lines()
    return made


def _rolling(wanted: Wanted) -> dict[str, str]:
    name = wanted.name
    anchor, one = Text(template("rolling.service")), Text(template("rolling@.service"))
    anchor.set("Description", f"{name}, rolled")
    options = (
        (" --user" if wanted.user else "")
        + (f" --workers {wanted.workers}" if wanted.workers else "")
        + ("" if wanted.notifies else " --probation 5s")
    )
    for key in ("ExecStart", "ExecReload"):
        anchor.set(key, f"{wanted.tool} roll %N{options}")
    anchor.set("ExecStopPost", f"{wanted.tool} drain %N{' --user' if wanted.user else ''}")
    one.drop_comment(r"With --release in NAME\.service")
    one.replace("(Description=.*)$", f"Description={name}, generation %i")
    _service(one, wanted)
    if wanted.pauses:
        _grow(one)
    if wanted.user:
        anchor.set("WantedBy", "default.target")
    made = {f"{name}.service": anchor, f"{name}@.service": one}
    if wanted.listens:
        made[f"{name}.socket"] = _socket("rolling.socket", wanted)
    else:
        for text in (anchor, one):
            text.drop("Requires", "After=%N.socket", "Also", "Sockets", "NonBlocking")
    return {unit: text.lines() for unit, text in made.items()}


def _service(text: Text, wanted: Wanted) -> None:
    """Fill in what the process is."""
    if not wanted.rolling:
        text.set("Description", wanted.name)
    text.replace(r"/run/(plain|socket-activated|NAME)\b", f"/run/{wanted.name}")
    if "python" not in wanted.command:
        text.replace("# Python itself, no shell", "# The program itself, no shell")
    text.set("ExecStart", wanted.command)
    text.before("ExecStart", f"WorkingDirectory={wanted.folder}")
    if wanted.reload:
        text.set("ExecReload", wanted.reload)
        if "requiem" not in wanted.reload:
            text.comment("ExecReload", "The server's own reload.")
    else:
        text.drop("ExecReload")
    _speaking(text, wanted)
    if wanted.several:
        _several(text, cluster=wanted.cluster)
    if wanted.home:
        text.set("ProtectHome", "read-only")
        text.comment("ProtectHome", "Below a home: the service's user must be able to read it.")
    if wanted.user:
        text.cut("# -- hardening")
        text.drop("After=network.target")
        text.set("WantedBy", "default.target")


def _speaking(text: Text, wanted: Wanted) -> None:
    """Have systemd wait for what is said, and hear those who say it."""
    if not wanted.notifies:
        text.set("Type", "exec")
        text.comment("Type", "Started as soon as the program runs: it does not say READY=1.")
        text.drop(*_SAID)
    if not wanted.pings:
        text.drop("WatchdogSec")
    if wanted.mute:
        text.set("NotifyAccess", "all")
        text.comment("NotifyAccess", "The workers say READY=1 and extend; the main process, their parent, says nothing.")


def _several(text: Text, *, cluster: bool) -> None:
    """Have processes outlive each other; a cluster's workers also a primary that is killed, as units/cluster.service does."""
    text.behind(
        "Restart",
        "OOMPolicy=continue",
        "The kernel kills the worker that took too much memory, not all of them; another takes its place.",
    )
    if not cluster:
        return
    text.set("NotifyAccess", "all")
    text.comment("NotifyAccess", "The primary speaks for the service; its workers too, where it has been killed, see ExitType=.")
    text.behind(
        "KillMode",
        "ExitType=cgroup",
        "Where the primary is killed its workers end their jobs, and go; only then is the unit over, and Restart= has a clean start.",
    )


def _grow(text: Text) -> None:
    """Have the pauses between restarts grow, as the drop-in for units that are there already does."""
    lines = template("drop-ins/restart-pauses.conf").splitlines()
    text.comment("Restart", "A crash is mended.")
    text.insert("RestartSec", lines[lines.index("RestartSec=1s") + 1 :])


def _socket(name: str, wanted: Wanted) -> Text:
    text = Text(template(name))
    text.set("Description", f"Listener of {wanted.name}")
    text.set("ListenStream", wanted.listens)
    text.replace(r"socket-activated\.service", f"{wanted.name}.service")
    return text


def _headed(wanted: Wanted, text: str) -> str:
    """Put a line of ours in the place of the template's first comment, which is for those who copy it by hand."""
    rest = text[text.index("\n[") + 1 :]
    return f"# {wanted.name}, written by requiem-systemd new. What each line is for stands above it; `requiem-systemd doctor` looks after changes.\n\n{rest}"


def template(name: str) -> str:
    """Return a template's text; MissingError where the templates are not installed."""
    for folder in FOLDERS:
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            continue
    msg = f"the template {name} is neither in {FOLDERS[0]} nor in {FOLDERS[1]}: install requiem-systemd anew"
    raise MissingError(msg)


def below_home(*paths: str) -> bool:
    """Say whether one of the paths is where ProtectHome=yes hides it."""
    return any(path.startswith(_HOMES) or f"{path}/" in _HOMES for path in paths)


def quoted(words: Sequence[str]) -> str:
    """Write a command line as systemd reads it; systemd.service(5), "Command lines"."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    plain = re.fullmatch(r"[^\s\"'\\;#]+", word)
    return escaped if plain else f'"{escaped}"'


class Text:
    """A unit's lines, changed by the settings' names; a comment above a setting is its own."""

    def __init__(self, text: str) -> None:
        """Store."""
        self._lines: list[str] = text.splitlines()

    def lines(self) -> str:
        """Return the text; where settings are gone, no more than one empty line."""
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).rstrip("\n") + "\n"

    def set(self, key: str, value: str) -> None:
        """Give a setting another value; one that is not there stays away."""
        self._lines = [f"{key}={value}" if self._is(line, key) else line for line in self._lines]

    def drop(self, *keys: str) -> None:
        """Take settings away, with the comments above them that are theirs alone; "Key=value" takes away just that."""
        kept: list[str] = []
        for number, line in enumerate(self._lines):
            if not any(self._is(line, key) for key in keys):
                kept.append(line)
                continue
            last = (
                number + 1 >= len(self._lines)
                or "=" not in self._lines[number + 1]
                or self._lines[number + 1].startswith("#")
            )
            if last:
                self._strip_comment(kept)
        self._lines = kept

    @staticmethod
    def _strip_comment(kept: list[str]) -> None:
        while kept and kept[-1].startswith("#") and not kept[-1].startswith("# --"):
            kept.pop()

    def comment(self, key: str, text: str) -> None:
        """Put another comment above a setting."""
        made: list[str] = []
        for line in self._lines:
            if self._is(line, key):
                self._strip_comment(made)
                made.append(f"# {text}")
            made.append(line)
        self._lines = made

    def drop_comment(self, start: str) -> None:
        """Take away a comment from a line that begins so to its end."""
        made: list[str] = []
        within = False
        for line in self._lines:
            within = line.startswith("#") and (within or re.match(f"# {start}", line) is not None)
            if not within:
                made.append(line)
        self._lines = made

    def before(self, key: str, line: str) -> None:
        """Put a line before a setting and its comment."""
        place = next(number for number, one in enumerate(self._lines) if self._is(one, key))
        while self._lines[place - 1].startswith("#"):
            place -= 1
        self._lines.insert(place, line)

    def behind(self, key: str, line: str, comment: str) -> None:
        """Put a line with its comment behind a setting."""
        self.insert(key, [f"# {comment}", line])

    def insert(self, key: str, lines: Sequence[str]) -> None:
        """Put lines behind a setting."""
        place = next(number for number, one in enumerate(self._lines) if self._is(one, key))
        self._lines[place + 1 : place + 1] = lines

    def cut(self, start: str) -> None:
        """Take away everything from a line that begins so to the next section."""
        made: list[str] = []
        within = False
        for line in self._lines:
            within = not line.startswith("[") and (within or line.startswith(start))
            if not within:
                made.append(line)
        self._lines = made

    def replace(self, pattern: str, with_: str) -> None:
        """Replace by a regular expression, in each line."""
        self._lines = [re.sub(pattern, lambda _: with_, line) for line in self._lines]

    @staticmethod
    def _is(line: str, key: str) -> bool:
        return line == key if "=" in key else line.startswith(f"{key}=")


def as_text(files: Mapping[str, str]) -> str:
    """Return units one behind the other, each under its path, as `systemctl cat` shows them."""
    return "\n".join(f"# {path}\n{text}" for path, text in files.items())
