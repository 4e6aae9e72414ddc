"""What stands between systemd and a program: shells, and what runs others as its children. No I/O."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.cli.doctor import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHELLS: Final = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh", "fish"))
_COMMAND: Final = re.compile(r"-[a-z]*c|--command")
#: These run the program as their child, and what else they do to it.
_STAYING: Final = MappingProxyType(
    {
        **dict.fromkeys(
            ("npm", "yarn", "pnpm", "npx", "conda", "screen", "tmux", "script", "xvfb-run", "time"), ""
        ),
        **dict.fromkeys(("su", "runuser"), ", and kills it 2 s after a SIGTERM"),
        **dict.fromkeys(("foreman", "honcho"), ", and kills it 5 s after a SIGTERM"),
    }
)
#: These pass SIGTERM on, and wait.
_PASSING_ON: Final = frozenset(("sudo", "uv", "timeout"))


class Wrapper(NamedTuple):
    """What stands between systemd and the program."""

    text: str  # what it is, in a sentence
    sure: bool  # it is the main process, and not only until it execs
    passes: bool = False  # it passes SIGTERM on, and waits for the program


def find(command: Sequence[str], process: str) -> Wrapper | None:
    """Return the wrapper that a command line begins with; the name of the running main process, where there is one, settles it."""
    running = process.partition(" ")[0]  # npm calls itself "npm run start"
    script = running.endswith((".sh", ".bash"))
    if running and not script and running not in (*_SHELLS, *_STAYING, *_PASSING_ON):
        return None
    words = list(command)
    while len(words) > 1 and (
        words[0].rpartition("/")[2] in ("env", "nice", "ionice", "exec", "nohup") or "=" in words[0]
    ):
        words = words[1:]
    name = words[0].rpartition("/")[2] if words else ""
    if name in _SHELLS:
        return _shell(name, words, running=running in _SHELLS)
    if name in _PASSING_ON:
        text = f"{name} stays between systemd and the program: it passes SIGTERM on, but what the program says comes from a stranger"
        return Wrapper(text, sure=True, passes=True)
    if name in _STAYING:
        return Wrapper(f"{name} stays between systemd and the program{_STAYING[name]}", sure=True)
    return _script(name, running=script) if name.endswith((".sh", ".bash")) else None


def _script(name: str, *, running: bool) -> Wrapper:
    said = f"{name} is a shell script, which stays between systemd and the program"
    return Wrapper(said if running else f"{said} unless it ends in exec", sure=running)


def behind_shell(words: list[str]) -> list[str]:
    """Return the last command of `sh -c "..."`; the words themselves where there is no shell."""
    if words[0].rpartition("/")[2] not in (*_SHELLS, "su", "runuser"):
        return words
    position = next((place for place, word in enumerate(words) if _COMMAND.fullmatch(word)), None)
    if position is None or position + 1 >= len(words):
        return words
    parts = [part for part in re.split(r"&&|\|\||[;&|\n]", words[position + 1]) if part.strip()]
    return parse.words(parts[-1]) if parts else words


def _shell(name: str, words: list[str], *, running: bool) -> Wrapper | None:
    """Say whether a shell stays. Tried: dash 0.5.12 always does; bash 5.2 executes the last command of its -c in its own place."""
    position = next((place for place, word in enumerate(words) if _COMMAND.fullmatch(word)), None)
    if position is None or position + 1 >= len(words):
        return _script(words[-1].rpartition("/")[2], running=running)
    last = re.split(r"&&|\|\||[;\n]", words[position + 1].rstrip("; \n"))[-1].strip()
    simple = "|" not in last and not last.endswith("&")
    if simple and last.startswith("exec ") and not running:
        return None
    if simple and name in ("bash", "zsh") and not running:
        return Wrapper(f"{name} may stay between systemd and the program (bash before 5.1 does)", sure=False)
    said = "it is the main process, dies of the first SIGTERM, and passes none on"
    return Wrapper(f"{name} stays between systemd and the program: {said}", sure=True)
