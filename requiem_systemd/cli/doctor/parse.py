"""What the values of settings mean: command lines, specifiers, lists. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# systemd.syntax(7), section Quoting
_WORD: Final = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\]|["'\\])+""", re.DOTALL)
_PIECE: Final = re.compile(
    r""""((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|((?:\\.|[^"'\\])+|["'\\])""", re.DOTALL
)
_ESCAPE: Final = re.compile(r"\\(x[0-9A-Fa-f]{2}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_OURS: Final = re.compile(r"(?:^|[\s/])requiem-systemd(?:\s|$)|(?:^|[\s='\"])requiem_systemd(?:[.:\s]|$)")
_YES: Final = frozenset(("1", "yes", "y", "true", "t", "on"))
_SIGNAL: Final = re.compile(r"-(?:SIG)?([A-Z][A-Z0-9+]*|[0-9]+)$")
_NUMBERS: Final = {
    "1": "HUP",
    "2": "INT",
    "3": "QUIT",
    "6": "ABRT",
    "9": "KILL",
    "10": "USR1",
    "12": "USR2",
    "15": "TERM",
}


class Command(NamedTuple):
    """One command of an Exec line."""

    words: tuple[str, ...]
    prefix: str = ""  # of "@-:+!|", systemd.service(5), "Special executable prefixes"

    @property
    def name(self) -> str:
        """The program, without its folder."""
        return self.words[0].rpartition("/")[2] if self.words else ""

    def __str__(self) -> str:
        """Show it as it may be typed."""
        return " ".join(self.words)


def words(text: str) -> list[str]:
    """Split as systemd does: quotes removed, escapes resolved."""
    return ["".join(_piece(*found) for found in _PIECE.findall(word)) for word in _WORD.findall(text)]


def _piece(double: str, single: str, bare: str) -> str:
    return _ESCAPE.sub(_unescape, double or single or bare)


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] == "x" and len(code) == 3:
        return chr(int(code[1:], 16))
    return chr(int(code, 8) & 0xFF) if code.isdecimal() and len(code) == 3 else _ESCAPES.get(code, code)


def commands(lines: Iterable[str], specifiers: Mapping[str, str]) -> list[Command]:
    """Return the commands of an Exec setting; systemd.service(5), "Command lines": several may stand in a line, between semicolons."""
    return [command for line in lines for command in _commands(line, specifiers)]


def _commands(line: str, specifiers: Mapping[str, str]) -> Iterator[Command]:
    run: list[str] = []
    for word in (*_WORD.findall(line), ";"):
        if word == ";":
            if run:
                yield _command(run)
            run = []
        else:
            run.append(expand("".join(words(word)), specifiers))


def _command(run: list[str]) -> Command:
    bare = run[0].lstrip("@-:+!|")
    prefix = run[0][: len(run[0]) - len(bare)]
    rest = run[2:] if "@" in prefix else run[1:]  # the word behind the path is then the process's name
    return Command((bare, *rest), prefix)


def specifiers(name: str) -> dict[str, str]:
    """Return what the specifiers of a unit's name stand for; systemd.unit(5), "Specifiers"."""
    bare = name.rpartition(".")[0] or name
    prefix, _, instance = bare.partition("@")
    last = prefix.rpartition("-")[2]
    return {
        "n": name,
        "N": bare,
        "p": prefix,
        "P": prefix,
        "i": instance,
        "I": instance,
        "j": last,
        "J": last,
        "%": "%",
    }


def expand(text: str, known: Mapping[str, str]) -> str:
    """Resolve the specifiers that the unit's name tells; others stay as they are."""
    return re.sub(r"%(.)", lambda match: known.get(match[1], match[0]), text)


def is_true(text: str, *, default: bool = False) -> bool:
    """Read a boolean."""
    return text.lower() in _YES if text else default


def families(lines: Iterable[str]) -> tuple[bool, frozenset[str]] | None:
    """Read RestrictAddressFamilies=: whether its list allows, and the list; None where nothing is restricted.

    systemd.exec(5): the first line says which it is; later ones with the other sign take away.
    """
    allows: bool | None = None
    listed: set[str] = set()
    for line in lines:
        add = not line.startswith("~")
        names = set(line.lstrip("~").split())
        if allows is None:
            allows = add
        if names == {"none"}:
            allows, listed = True, set()
        elif add == allows:
            listed |= names
        else:
            listed -= names
    return None if allows is None else (allows, frozenset(listed))


def option(argv: Iterable[str], *names: str) -> str | None:
    """Return the value of a command line's option: `--name value`, `--name=value`, `-n value`, `-nvalue`; the last counts."""
    found = None
    take = False
    for word in argv:
        if take:
            found, take = word, False
            continue
        key, equals, value = word.partition("=")
        if word in names:
            take = True
        elif equals and key in names:
            found = value
        elif len(word) > 2 and word[1] != "-" and word[:2] in names:
            found = word[2:]
    return found


def is_ours(line: str) -> bool:
    """Say whether a command line runs, or loads, something of this library; a folder of its name is nothing."""
    return _OURS.search(line) is not None


def kill(command: Command) -> tuple[str, str] | None:
    """Return the signal, and the rest of the words, of a command that does nothing but send one; None for others."""
    if command.name not in ("kill", "pkill", "killall", "skill"):
        return None
    signal, rest = "TERM", list(command.words[1:])
    for number, word in enumerate(rest):
        if word in ("-s", "--signal", "-n") and number + 1 < len(rest):
            signal = rest[number + 1]
        elif (
            word.startswith(("-s", "--signal="))
            and len(word) > 2
            and word[2:3].isupper() | word.startswith("--signal=")
        ):
            signal = word.partition("=")[2] or word[2:]
        elif match := _SIGNAL.match(word):
            signal = match[1]
        else:
            continue
        break
    signal = signal.upper().removeprefix("SIG")
    return _NUMBERS.get(signal, signal), " ".join(rest)
