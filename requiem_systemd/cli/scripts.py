"""The scripts that needrestart runs instead of `systemctl restart UNIT`: a folder of links, each with the name of a unit.

needrestart knows them by the whole name, and generations have a new one at each roll, so they are laid out anew whenever it runs
(units/needrestart/). Links, because /run, where they lie, is mounted noexec on many machines.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import generations, sockets
from requiem_systemd.cli.doctor import parse
from requiem_systemd.cli.systemctl import UnavailableError, run

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROPERTIES: Final = ("Id", "LoadState", "ActiveState", "RuntimeDirectory", "ExecStart")
_ENDED: Final = ("inactive", "failed")


def lay_out(folder: str, beside: str, command: str) -> None:
    """Fill a folder with a link to `command` for each unit that is ours and runs, and to all that is in the folder `beside`.

    Those have precedence, and what else is in `folder` goes. Raises OSError, and UnavailableError where systemd cannot be asked.
    """
    if not os.access(command, os.X_OK):
        msg = f"{command} cannot be executed under another name: call the command requiem-systemd itself, by its full path"
        raise UnavailableError(msg)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    wanted = dict.fromkeys(ours(_shown()), command)
    if beside and not os.path.samefile(beside, folder):
        wanted |= {name: os.path.abspath(os.path.join(beside, name)) for name in os.listdir(beside)}
    for name in set(os.listdir(folder)) - set(wanted):
        if not name.startswith("."):  # what another needrestart is just putting in place
            _unlink(os.path.join(folder, name))
    for name, target in wanted.items():
        _link(os.path.join(folder, name), target)


def _link(path: str, target: str) -> None:
    """Put a link in place at once: another needrestart may be looking for it."""
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid()}.{os.path.basename(path)}")
    _unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _shown() -> str:
    done = run("systemctl", "show", f"--property={','.join(_PROPERTIES)}", "--", "*.service")
    if done.returncode:
        msg = f"systemctl show: {done.stderr.strip() or 'failed'}"
        raise UnavailableError(msg)
    return done.stdout


def ours(shown: str, root: str = "/run") -> list[str]:
    """Return the units that run and are the library's business: generations that an anchor rolls, and services with a control socket."""
    units = {block.get("Id", ""): block for block in generations.blocks(shown)}
    return sorted(name for name, block in units.items() if _is_ours(block, units, root))


def _is_ours(block: Mapping[str, str], units: Mapping[str, Mapping[str, str]], root: str) -> bool:
    stem, at, _ = block.get("Id", "").partition("@")
    if block.get("LoadState") != "loaded" or block.get("ActiveState") in _ENDED:
        return False
    return bool(at and is_anchor(units.get(f"{stem}.service", {}))) or bool(sockets.of_block(root, block).paths)


def is_anchor(block: Mapping[str, str]) -> bool:
    """Say whether a unit's only work is to roll, by what systemd shows of its ExecStart=."""
    command = block.get("ExecStart", "")
    return parse.is_ours(command) and " roll " in command
