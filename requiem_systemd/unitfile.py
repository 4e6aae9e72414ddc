"""What a unit's files say: read from inside, so that mistakes are named before they cost a job, and by `requiem-systemd doctor`.

From inside: the manager tells a service neither its KillMode= nor its NotifyAccess=, but its files are open to all. What cannot be read (under
a RootDirectory=, or ProtectHome= in a user's manager) is unknown, and nothing is said about it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from requiem_systemd.errors import ProtocolError
from requiem_systemd.protocol import timespan

# systemd.unit(5), "Unit File Load Path": the first that has the file wins
FOLDERS: Final = (
    *("/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient", "/run/systemd/generator.early"),
    *("/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system", "/run/systemd/system.attached"),
    *("/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"),
    "/run/systemd/generator.late",
)
# Of a user's manager: {0} its $XDG_RUNTIME_DIR, {1} the user's home.
_USER_FOLDERS: Final = (
    *("{1}/.config/systemd/user.control", "{0}/systemd/user.control", "{0}/systemd/transient", "{0}/systemd/generator.early"),
    *("{1}/.config/systemd/user", "/etc/xdg/systemd/user", "/etc/systemd/user", "{0}/systemd/user", "/run/systemd/user", "{0}/systemd/generator"),
    *("{1}/.local/share/systemd/user", "/usr/local/share/systemd/user", "/usr/share/systemd/user", "/usr/local/lib/systemd/user"),
    *("/usr/lib/systemd/user", "{0}/systemd/generator.late"),
)
# What an empty assignment leaves as it was; all else it resets. systemd.unit(5): dependencies cannot be reset. Words, numbers and times do
# not parse when empty, so that systemd ignores the line; but for KillMode=. Tried, one by one: 252, 257, 262.
KEPT: Final = frozenset(
    (
        *("After", "Before", "BindsTo", "Conflicts", "PartOf", "Requires", "Requisite", "Sockets", "Upholds", "WantedBy", "Wants"),
        *("BusName", "Delegate", "ExitType", "KillSignal", "NotifyAccess", "OOMPolicy", "Restart", "RestartKillSignal", "Type"),
        *("DynamicUser", "IgnoreOnIsolate", "NonBlocking", "RemainAfterExit", "RuntimeDirectoryPreserve", "SendSIGHUP", "SendSIGKILL"),
        *("FileDescriptorStoreMax", "FileDescriptorStorePreserve", "StartLimitBurst", "StartLimitIntervalSec"),
        *("RestartSec", "RuntimeMaxSec", "TimeoutSec", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec"),
        *("Accept", "FlushPending", "Service"),
    )
)
# systemd-system.conf(5), DefaultTimeoutStopSec= where nobody has changed it
STOP_TIMEOUT: Final = "90s"
SYSTEM_SOCKET: Final = "/run/systemd/notify"
_USER_SOCKET: Final = re.compile(r"(/run/user/[0-9]+)/systemd/notify")
_SERVICE: Final = re.compile(r"/([^/\n]+\.service)(?=/|$)", re.MULTILINE)


def own_service() -> str | None:
    """Return the name of the service that this process is in; None where the kernel's control groups do not tell."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            return service_of(file.read())
    except OSError:
        return None


def service_of(cgroups: str) -> str | None:
    """Return the innermost service in the text of /proc/PID/cgroup."""
    names = _SERVICE.findall(cgroups)
    return names[-1] if names else None


def folders_of(manager: str | None) -> Sequence[str]:
    """Return where the manager that listens at a socket looks for units; nothing where it is none of systemd's."""
    if manager == SYSTEM_SOCKET:
        return FOLDERS
    found = _USER_SOCKET.fullmatch(manager or "")
    return [folder.format(found[1], os.path.expanduser("~")) for folder in _USER_FOLDERS] if found else ()


def settings(name: str, folders: Sequence[str] = FOLDERS) -> Mapping[str, str] | None:
    """Return the last assignment of each setting in [Service], drop-ins included; None where the unit's file cannot be read."""
    fragment = next(filter(None, (text_of(f"{folder}/{file}") for file in _files(name) for folder in folders)), None)
    if fragment is None:
        return None
    return Unit((fragment, *_drop_ins(name, folders))).section("Service")


class Unit:
    """The assignments of a unit's files together, applied in their order."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._values: dict[tuple[str, str], list[str]] = {}
        for text in texts:
            for section, key, value in assignments(text):
                values = self._values.setdefault((section, key), [])
                if value:
                    values.append(value)
                elif key not in KEPT:
                    values.clear()

    def all(self, section: str, key: str) -> list[str]:
        """Return what is assigned, in order: of a list, each line."""
        return list(self._values.get((section, key), ()))

    def last(self, section: str, key: str) -> str:
        """Return the assignment that counts where only one can; empty if there is none."""
        return (self.all(section, key) or [""])[-1]

    def section(self, section: str) -> dict[str, str]:
        """Return the last assignment of each setting in a section."""
        return {key: values[-1] for (where, key), values in self._values.items() if where == section and values}


def assignments(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield section, setting and value of each assignment in a file."""
    section = ""
    for line in _joined(text):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif "=" in line:
            key, _, value = line.partition("=")
            yield section, key.rstrip(), value.lstrip()


def _joined(text: str) -> Iterator[str]:
    """Yield lines; systemd.syntax(7): a comment never continues, nor does it end a line that is continued around it."""
    held = ""
    for line in text.split("\n"):
        if line.lstrip().startswith(("#", ";")):
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            held += f"{line[:-1]} "
            continue
        yield (held + line).strip()
        held = ""
    yield held.strip()


def stop_timeout(name: str, folders: Sequence[str] = FOLDERS) -> float | None:
    """Return the TimeoutStopSec= of a unit in seconds, infinite for none; None where the unit's file cannot be read, or says nonsense."""
    unit = settings(name, folders)
    if unit is None:
        return None
    try:
        seconds = timespan(unit.get("TimeoutStopSec") or unit.get("TimeoutSec") or STOP_TIMEOUT)
    except ProtocolError:
        return None
    return seconds or math.inf  # systemd.service(5): 0 is the same as infinity, for historical reasons


def _files(name: str) -> Iterator[str]:
    """Yield the unit's file names: its own, then its template's."""
    yield name
    prefix, at, _ = name.partition("@")
    if at:
        yield f"{prefix}@.service"


def _drop_ins(name: str, folders: Sequence[str]) -> Iterator[str]:
    """Yield the texts of the drop-ins, in the order in which they are applied: by file name, whatever the folder."""
    chosen: dict[str, str] = {}
    for owner in _owners(name):
        for folder in folders:
            for path in listed(f"{folder}/{owner}.d"):
                chosen.setdefault(os.path.basename(path), path)
    for _, path in sorted(chosen.items()):
        yield text_of(path) or ""


def _owners(name: str) -> Iterator[str]:
    """Yield whose drop-ins apply, the most special first: a-b@c.service, a-b@.service, a-.service, service."""
    yield from _files(name)
    stem = name.removesuffix(".service")
    for position in range(len(stem) - 1, -1, -1):
        if stem[position] == "-":
            yield f"{stem[: position + 1]}.service"
    yield "service"


def listed(folder: str) -> list[str]:
    """Return the paths of the drop-ins in a folder, by name."""
    try:
        return sorted(f"{folder}/{file}" for file in os.listdir(folder) if file.endswith(".conf"))
    except OSError:
        return []


def text_of(path: str) -> str | None:
    """Return a file's text; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None
