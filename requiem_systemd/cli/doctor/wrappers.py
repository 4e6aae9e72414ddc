"""What stands between systemd and a program: shells, and what runs others as its children. No I/O."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.cli.doctor import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHELLS: Final = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh", "fish"))
_STAYING: Final = MappingProxyType(
    {
        "npm": "npm stays", "yarn": "yarn stays", "pnpm": "pnpm stays", "npx": "npx stays",
        "uv": "uv run stays", "conda": "conda run stays", "sudo": "sudo stays",
        "su": "su stays, and kills its command 2 s after a SIGTERM", "runuser": "runuser stays, and kills its command 2 s after a SIGTERM",
        "screen": "screen stays", "tmux": "tmux stays", "script": "script stays", "xvfb-run": "xvfb-run stays",
        "foreman": "foreman stays", "honcho": "honcho stays", "dotenv": "dotenv run stays", "direnv": "direnv stays", "time": "time stays",
        "timeout": "timeout stays", "strace": "strace stays",
    }
)  # fmt: skip  # as above


class Wrapper(NamedTuple):
    """What stands between systemd and the program."""

    text: str  # what it is, in a sentence
    sure: bool  # it is the main process, and not only until it execs


def find(command: Sequence[str], process: str) -> Wrapper | None:
    """Return the wrapper that a command line begins with; the name of the running main process, where there is one, settles it."""
    running = process.partition(" ")[0]  # npm calls itself "npm run start"
    script = running.endswith((".sh", ".bash"))
    if running and not script and running not in (*_SHELLS, *_STAYING):
        return None
    words = list(command)
    while len(words) > 1 and (
        words[0].rpartition("/")[2] in ("env", "nice", "ionice", "exec", "nohup") or "=" in words[0]
    ):
        words = words[1:]
    name = words[0].rpartition("/")[2] if words else ""
    if name in _SHELLS:
        return _shell(name, words, running=running in _SHELLS)
    if name in _STAYING and not (name == "uv" and "run" not in words):
        return Wrapper(f"{_STAYING[name]} between systemd and the program", sure=True)
    if name.endswith((".sh", ".bash")):
        text = f"{name} is a shell script, which stays between systemd and the program" + (
            "" if script else " unless it ends in exec"
        )
        return Wrapper(text, sure=script)
    return None


def behind_shell(words: list[str]) -> list[str]:
    """Return the last command of `sh -c "..."`; the words themselves where there is no shell."""
    if words[0].rpartition("/")[2] not in (*_SHELLS, "su", "runuser"):
        return words
    position = next(
        (place for place, word in enumerate(words) if re.fullmatch(r"-[a-z]*c|--command", word)), None
    )
    if position is None or position + 1 >= len(words):
        return words
    parts = [part for part in re.split(r"&&|\|\||[;&|\n]", words[position + 1]) if part.strip()]
    return parse.words(parts[-1]) if parts else words


def _shell(name: str, words: list[str], *, running: bool) -> Wrapper | None:
    """Say whether a shell stays. Tried: dash always does; bash 5.1 and later executes the last command of its -c in its place."""
    position = next(
        (place for place, word in enumerate(words) if re.fullmatch(r"-[a-z]*c|--command", word)), None
    )
    text = words[position + 1].strip() if position is not None and position + 1 < len(words) else ""
    last = re.split(r"&&|\|\||[;\n]", text.rstrip("; \n"))[-1].strip()
    if last.startswith("exec ") and "|" not in last and not last.endswith("&") and not running:
        return None
    said = f"{name} stays between systemd and the program: it is the main process, dies of the first SIGTERM, and passes none on"
    sure = running or not (name in ("bash", "zsh") and text and "|" not in last and not last.endswith("&"))
    return Wrapper(
        said if sure else f"{name} may stay between systemd and the program (bash before 5.1 does)", sure=sure
    )
