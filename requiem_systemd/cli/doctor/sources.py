"""Where units come from: files, or systemd. The edge of `doctor`."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse
from requiem_systemd.cli.doctor.facts import Facts, Source
from requiem_systemd.protocol import clean, timespan
from requiem_systemd.unitfile import Unit, listed, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIXES: Final = (".service", ".container", ".socket")
_SHOWN: Final = (
    *(
        "LoadState",
        "ActiveState",
        "Result",
        "MainPID",
        "FragmentPath",
        "DropInPaths",
        "NeedDaemonReload",
        "TimeoutStopUSec",
    ),
    *("TriggeredBy", "NFileDescriptorStore"),
)
_USER_FOLDERS: Final = (
    "/etc/systemd/user/",
    "/usr/lib/systemd/user/",
    "/.config/systemd/user/",
    "/.config/containers/systemd/",
)
# Ubuntu's since 23.10, Debian's, everybody's
_FORBIDDING: Final = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ("kernel.unprivileged_userns_clone", "0"),
    ("user.max_user_namespaces", "0"),
)
_MOST: Final = 1_000_000  # characters of a program that are looked at


class UnreadableError(Exception):
    """Raised where a unit cannot be read; the message says why, and what to do."""


def read(what: str, *, user: bool) -> Source:
    """Read a unit, or a file: what has a slash, or is there, is a file."""
    if "/" in what or os.path.isfile(what):
        return from_file(what, user=user)
    return from_systemd(what if what.endswith(SUFFIXES) else f"{what}.service", user=user)


# -- files ----------------------------------------------------------------------------------------------------------------


def from_file(path: str, *, user: bool = False) -> Source:
    """Read FILE, FILE.d/*.conf, and the units beside it."""
    name = os.path.basename(path)
    if not name.endswith(SUFFIXES):
        msg = f"{path}: neither a service nor a container nor a socket, by its name"
        raise UnreadableError(msg)
    unit = _from_files([path, *listed(f"{path}.d")])
    folder = os.path.dirname(path) or "."
    beside = {
        other: Unit(
            [
                text_of(os.path.join(folder, other)) or "",
                *map(_text, listed(os.path.join(folder, f"{other}.d"))),
            ]
        )
        for other in _related(name, unit)
        if os.path.isfile(os.path.join(folder, other))
    }
    mine = user or any(one in os.path.abspath(path) for one in _USER_FOLDERS) or _wanted_by_user(unit)
    return Source(name, unit, beside, user=mine, script=_script(name, unit), config=_config(name, unit))


def _wanted_by_user(unit: Unit) -> bool:
    """Say whether a unit is installed as a user's are: that manager has no multi-user.target."""
    return [word for line in unit.all("Install", "WantedBy") for word in line.split()] == ["default.target"]


def _from_files(paths: Iterable[str]) -> Unit:
    try:
        texts = []
        for path in paths:
            with open(path, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
    except OSError as error:
        msg = f"{error.filename}: {error.strerror}"
        raise UnreadableError(msg) from error
    return Unit(texts)


def _text(path: str) -> str:
    return text_of(path) or ""


def _related(name: str, unit: Unit) -> list[str]:
    """Name the sockets that a unit may have, and the anchor that may roll it."""
    known = parse.specifiers(name)
    wanted = [
        unit.all("Service", "Sockets"),
        *(unit.all("Unit", key) for key in ("Requires", "Wants", "BindsTo", "After")),
    ]
    named = [
        word
        for lines in wanted
        for line in lines
        for word in parse.expand(line, known).split()
        if word.endswith(".socket")
    ]
    own = [f"{known['N']}.socket", f"{known['p']}.socket"]
    return list(dict.fromkeys([*own, *named, *([f"{known['p']}.service"] if "@" in name else [])]))


def _script(name: str, unit: Unit) -> str:
    """Return the text of the Python program that ExecStart= names, where it can be read here: it tells what it needs of its unit."""
    known = parse.specifiers(name)
    folder = parse.expand(unit.last("Service", "WorkingDirectory"), known).lstrip("-")
    for command in parse.commands(unit.all("Service", "ExecStart"), known):
        for place, word in enumerate(command.words):
            if word.endswith(".py"):
                return _head(os.path.join(folder, word))
            if word == "-m" and len(command.words) > place + 1:
                stem = os.path.join(folder, command.words[place + 1].replace(".", "/"))
                return _head(f"{stem}.py") or _head(f"{stem}/__main__.py")
    return ""


def _config(name: str, unit: Unit) -> str:
    """Return the text of the known server's configuration file, where it can be read here."""
    facts = Facts(Source(name, unit))
    if facts.program is None or facts.container:
        return ""
    named = parse.option(facts.arguments, *facts.program.configs) or facts.program.config
    if facts.program.settings:
        named = next((f"{word.rpartition('.')[0].replace('.', '/')}.py" for word in facts.arguments if not word.startswith("-")), "")
    folder = facts.get("WorkingDirectory").lstrip("-")
    return _head(os.path.join(folder, named.removeprefix("file:"))) if named else ""


def _head(path: str) -> str:
    return (text_of(path) or "")[:_MOST] if path.startswith("/") else ""


# -- systemd --------------------------------------------------------------------------------------------------------------


def from_systemd(name: str, *, user: bool = False) -> Source:
    """Read a unit that systemd knows, with its drop-ins, its sockets, and its process."""
    shown = _show(name, user=user)
    if shown.get("LoadState") != "loaded":
        where = "" if user else "; --user asks your own manager, and a file is given by its path"
        msg = f"{name}: systemd says {shown.get('LoadState') or 'nothing about it'}{where}"
        raise UnreadableError(msg)
    unit = _loaded(shown)
    others = {}
    for other in dict.fromkeys([*_related(name, unit), *shown.get("TriggeredBy", "").split()]):
        told = _show(other, user=user)
        if told.get("LoadState") == "loaded":
            others[other] = _loaded(told)
    return Source(
        name, unit, others, shown, user=user, version=version(user=user), script=_script(name, unit), config=_config(name, unit), limits=_limits(user=user),
        lingers=_lingers() if user else None, process=_process(shown.get("MainPID", "0")),
        forbids=forbidding() if user and os.getuid() else "", needrestart=not user and needrestart(name),
    )  # fmt: skip  # one line a thought


def _loaded(shown: dict[str, str]) -> Unit:
    paths = [
        path for path in (shown.get("FragmentPath", ""), *parse.words(shown.get("DropInPaths", ""))) if path
    ]
    return _from_files(paths)


def _show(*names: str, user: bool, properties: Iterable[str] = _SHOWN) -> dict[str, str]:
    words = [
        "systemctl",
        *(["--user"] if user else []),
        "show",
        f"--property={','.join(properties)}",
        "--",
        *names,
    ]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, errors="replace")  # noqa: S603 - a list, no shell
    except OSError as error:
        msg = f"systemctl cannot be run: {error.strerror}; without systemd, give the path of the unit's file"
        raise UnreadableError(msg) from error
    if done.returncode:
        says = (
            clean(done.stderr, 1000)
            or f"systemctl show {' '.join(names)} failed with status {done.returncode}"
        )
        msg = f"{says}\nWithout systemd, give the path of the unit's file"
        raise UnreadableError(msg)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def version(*, user: bool) -> int | None:
    """Return the manager's version, as 257 of "257.13-1~deb13u1"; UnreadableError where none can be asked."""
    match = re.match(r"[0-9]+", _show(user=user, properties=["Version"]).get("Version", ""))
    return int(match[0]) if match else None


def _limits(*, user: bool) -> dict[str, float]:
    """Return what ends all drains, in seconds: a shutdown, and the end of the user's manager."""
    asked = {"reboot": ("reboot.target", "JobTimeoutUSec")}
    if user:
        asked["user@"] = (f"user@{os.getuid()}.service", "TimeoutStopUSec")
    found = {}
    for name, (unit, key) in asked.items():
        text = _show(unit, user=False, properties=[key]).get(key, "") if _system_answers() else ""
        try:
            found[name] = timespan(text)
        except ValueError:
            continue
    return found


def _system_answers() -> bool:
    return os.path.isdir("/run/systemd/system")


def _lingers() -> bool:
    return any(os.path.basename(path) == _login() for path in glob.glob("/var/lib/systemd/linger/*"))


def forbidding(folder: str = "/proc/sys") -> str:
    """Return the setting of the kernel, as sysctl(8) shows it, by which a user without rights may make no user namespace; empty for none."""
    for name, value in _FORBIDDING:
        if (text_of(os.path.join(folder, name.replace(".", "/"))) or "").strip() == value:
            return f"{name}={value}"
    return ""


def needrestart(name: str, folder: str = "/etc/needrestart") -> bool:
    """Say whether needrestart is there, and would restart instances by their own names: its configuration names neither us nor them."""
    stem = re.escape(name.partition("@")[0])
    texts = [text_of(path) or "" for path in (f"{folder}/needrestart.conf", *listed(f"{folder}/conf.d"))]
    return bool(texts[0]) and not any(re.search(rf"^[^#]*(?:requiem-systemd|\b{stem}@)", text, re.MULTILINE) for text in texts)


def _login() -> str:
    import pwd  # noqa: PLC0415 - there is none on Windows, where the rest can be read

    return pwd.getpwuid(os.getuid()).pw_name


def _process(pid: str) -> str:
    """Return the name of a running process; empty if there is none, or it is hidden."""
    return (text_of(f"/proc/{pid}/comm") or "").strip() if pid not in ("", "0") else ""
