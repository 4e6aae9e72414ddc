"""What the unit's own files say, as far as they can be read from inside: mistakes are named before they cost a job.

The manager tells a service neither its KillMode= nor its NotifyAccess=, but its files are open to all. What cannot be read (a user's
manager, a RootDirectory=) is unknown, and nothing is said about it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
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
# systemd-system.conf(5), DefaultTimeoutStopSec= where nobody has changed it
STOP_TIMEOUT: Final = "90s"
SYSTEM_SOCKET: Final = "/run/systemd/notify"
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


def settings(name: str, folders: Sequence[str] = FOLDERS) -> Mapping[str, str] | None:
    """Return the last assignment of each setting in [Service], drop-ins included; None where the unit's file cannot be read."""
    fragment = next(filter(None, (_text(f"{folder}/{file}") for file in _files(name) for folder in folders)), None)
    if fragment is None:
        return None
    found: dict[str, str] = {}
    for text in (fragment, *_drop_ins(name, folders)):
        found.update(_assignments(text))
    return found


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
            for path in _listed(f"{folder}/{owner}.d"):
                chosen.setdefault(os.path.basename(path), path)
    for _, path in sorted(chosen.items()):
        yield _text(path) or ""


def _owners(name: str) -> Iterator[str]:
    """Yield whose drop-ins apply, the most special first: a-b@c.service, a-b@.service, a-.service, service."""
    yield from _files(name)
    stem = name.removesuffix(".service")
    for position in range(len(stem) - 1, -1, -1):
        if stem[position] == "-":
            yield f"{stem[: position + 1]}.service"
    yield "service"


def _listed(folder: str) -> list[str]:
    try:
        return sorted(f"{folder}/{file}" for file in os.listdir(folder) if file.endswith(".conf"))
    except OSError:
        return []


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the assignments of [Service]; systemd.syntax(7): continued lines, comments, sections."""
    section = ""
    for raw in re.sub(r"\\\n(?:[#;].*\n)*", " ", text).splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == "Service" and "=" in line and line[0] not in "#;":
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()
