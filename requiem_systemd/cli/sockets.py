"""Where control sockets are: those of all services, or those of a unit, its generations and its workers."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.cli.generations import blocks, natural
from requiem_systemd.cli.systemctl import Anchor, UnavailableError
from requiem_systemd.protocol import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# control.NAME, and what a worker process adds to it.
_SOCKET: Final = re.compile(r"requiem(?:\.[0-9]{1,10})?")
_PROPERTIES: Final = (
    *("Id", "LoadState", "ActiveState", "SubState", "MainPID", "RuntimeDirectory", "StatusText"),
    *("StateChangeTimestampMonotonic", "TimeoutStopUSec"),
)
_ENDED: Final = ("inactive", "failed")


class Found(NamedTuple):
    """A service, its sockets (the main process's first), and what systemd says of its unit, where it was asked."""

    name: str
    paths: tuple[str, ...]
    shown: Mapping[str, str]


def everywhere(*, user: bool) -> list[Found]:
    """Return all services with a control socket. Raises UnavailableError where there is no folder to look into."""
    root = _root(user=user)
    folders: dict[str, list[str]] = {}
    for folder in _folders(root, skipped=() if user else ("user",)):
        paths = _sockets(folder)
        if paths:
            # DynamicUser= makes /run/NAME a link to /run/private/NAME: one service.
            folders.setdefault(os.path.realpath(folder), paths)
    found = [Found(_named(paths[0]), tuple(paths), {}) for paths in folders.values()]
    return sorted(found, key=lambda one: natural(one.name))


def of(unit: str, *, user: bool) -> list[Found]:
    """Return what runs of a unit: itself, or the generations of an anchor. Raises UnavailableError where nothing does.

    A full path is that of a main process's control socket: so it goes where systemd cannot be asked.
    """
    if unit.startswith("/"):
        paths = _sockets(os.path.dirname(unit)) if _is_socket(unit) else []
        if unit not in paths:
            msg = f"{unit} is no control socket: it is `requiem` in the first RuntimeDirectory= of a service that runs"
            raise UnavailableError(msg)
        return [Found(_named(unit), tuple(paths), {})]
    root = _root(user=user)
    name = unit.removesuffix(".service")
    words = [f"{name}.service", *([] if "@" in name else [re.sub(r"\\", r"\\\\", name) + "@*.service"])]
    done = Anchor(name, user=user).systemctl("show", f"--property={','.join(_PROPERTIES)}", "--", *words)
    shown = blocks(done.stdout)
    loaded = [block for block in shown if block.get("LoadState") == "loaded"]
    if not loaded:
        says = clean(done.stderr, 1000) or next(
            (block["LoadState"] for block in shown if "LoadState" in block), "nothing about it"
        )
        where = "" if user else "; --user asks your own manager"
        msg = f"{name}.service: systemctl says {says}{where}"
        raise UnavailableError(msg)
    running = [
        block
        for block in loaded
        if block.get("ActiveState") not in _ENDED and block.get("MainPID", "0") != "0"
    ]
    if not running:
        state = clean(loaded[0].get("ActiveState", "not running"))
        msg = f"{name}.service is {state}, and nothing of it runs"
        raise UnavailableError(msg)
    return sorted((of_block(root, block) for block in running), key=lambda one: natural(one.name))


def of_block(root: str, block: Mapping[str, str]) -> Found:
    """Return a unit with its sockets, by what systemd shows of it; `root` is where its RuntimeDirectory= is."""
    directories = block.get("RuntimeDirectory", "").split()
    return Found(
        block.get("Id", ""), tuple(_sockets(os.path.join(root, directories[0]))) if directories else (), block
    )


def _root(*, user: bool) -> str:
    root = os.environ.get("XDG_RUNTIME_DIR", "") if user else "/run"
    if not root:
        msg = "--user looks into $XDG_RUNTIME_DIR, which is not set: log in as that user, or set it to /run/user/UID"
        raise UnavailableError(msg)
    return root


def _folders(root: str, *, skipped: tuple[str, ...]) -> Iterator[str]:
    """Yield the folders in a folder, and those in them: RuntimeDirectory=NAME, and RuntimeDirectory=TEAM/NAME."""
    for outer in _listed(root):
        if outer not in skipped:
            path = os.path.join(root, outer)
            yield path
            for inner in _listed(path):
                yield os.path.join(path, inner)


def _sockets(folder: str) -> list[str]:
    found = [os.path.join(folder, file) for file in _listed(folder) if _SOCKET.fullmatch(file)]
    return sorted(filter(_is_socket, found), key=lambda path: (len(path), path))


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # no folder, or not for us
        return []


def _named(path: str) -> str:
    """Name a service after its folder, until it tells its unit."""
    return clean(os.path.basename(os.path.dirname(path)), 200)
