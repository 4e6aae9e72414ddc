"""The completion of `requiem-systemd` in bash: it knows all verbs and options, and the units that systemd knows."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from requiem_systemd.cli import VERBS

if TYPE_CHECKING:
    from collections.abc import Callable

FILE: Final = Path(__file__).resolve().parents[2] / "completions" / "requiem-systemd"
#: What bash replaces: from the last of its COMP_WORDBREAKS on, of which an @ belongs to it.
REPLACED: Final = re.compile(r"""@?[^\s"'><=;|&(:@]*$""")
UNITS: Final = """\
shop.service loaded active exited The anchor
shop@2.service loaded active running One generation
shop@3.service loaded active running Another
web\\x2dfront.service loaded active running $(touch hit)
gone.service not-found inactive dead gone.service
"""

if shutil.which("bash") is None or not FILE.is_file():
    pytest.skip("needs bash, and the tree", allow_module_level=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    """Return a folder with a systemctl of our own, and files to complete."""
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    (tmp_path / "units").write_text(UNITS)
    systemctl.write_text(f'#!/bin/sh\ncase "$*" in --user*) echo own.service loaded active running Own;; *) cat {tmp_path}/units;; esac\n')
    systemctl.chmod(systemctl.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "a file.service").touch()
    (tmp_path / "deploy").mkdir()
    return tmp_path


@pytest.fixture
def complete(folder: Path) -> Callable[[str], list[str]]:
    """Return what completes a line, by bash with nothing but our file."""

    def complete(line: str) -> list[str]:
        found = REPLACED.search(line)
        assert found is not None
        script = f'source {FILE}; COMP_LINE=$1; COMP_POINT=${{#1}}; _requiem_systemd requiem-systemd "$2"'
        command = ("bash", "--norc", "--noprofile", "-c", f'{script}; printf "%s\\n" "${{COMPREPLY[@]}}"', "bash", line, found[0])
        environ = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environ)
        assert done.stderr == ""
        return sorted(filter(None, done.stdout.split("\n")))

    return complete


def options_of(verb: str) -> set[str]:
    """Return a verb's options, as its --help lists them."""
    done = subprocess.run((sys.executable, "-m", "requiem_systemd", verb, "--help"), check=True, capture_output=True, text=True)
    return set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", done.stdout, re.MULTILINE))


def test_verbs(complete: Callable[[str], list[str]]) -> None:
    """All verbs, and what the command itself takes."""
    assert complete("requiem-systemd ") == sorted([*VERBS, "--help", "--version"])
    assert complete("requiem-systemd r") == ["reload", "renew", "roll"]


@pytest.mark.parametrize("verb", VERBS)
def test_options(complete: Callable[[str], list[str]], verb: str) -> None:
    """All options of each verb, and none that it does not have."""
    assert set(complete(f"requiem-systemd {verb} --")) == options_of(verb)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("why ", ["shop.service", "shop@2.service", "shop@3.service", "web\\x2dfront.service"]),
        ("history sh", ["shop.service", "shop@2.service", "shop@3.service"]),
        ("why shop@", ["@2.service", "@3.service"]),
        ("ps shop@2", ["@2.service"]),
        ("reload --timeout 5 shop.", ["shop.service"]),
        ("roll ", ["shop.service", "web\\x2dfront.service"]),
        ("drain s", ["shop.service"]),
        ("history --user ", ["own.service"]),
        ("history shop ", []),
        ("doctor s", ["shop.service", "shop@2.service", "shop@3.service"]),
        ("doctor a", ["a file.service"]),
        ("history shop --svg a", ["a file.service"]),
        ("history shop --svg=a", ["a file.service"]),
        ("history --since ", ["1d", "1h", "7d", "today", "yesterday"]),
        ("serve --interface=a", ["asgi", "auto"]),
        ("serve --interface=", ["asgi", "auto", "wsgi"]),
        ("new shop --directory d", ["deploy"]),
        ("roll shop --workers ", []),
        ("nothing ", []),
        ("new ", []),
    ],
)
def test_values(complete: Callable[[str], list[str]], line: str, expected: list[str]) -> None:
    """Units where a verb takes one, anchors where it takes one, and what an option's value can be; instances behind their @."""
    assert complete(f"requiem-systemd {line}") == expected


def test_nothing_is_expanded(complete: Callable[[str], list[str]], folder: Path) -> None:
    """Whatever a file is called, it is a name and no command."""
    (folder / "$(touch hit)").touch()
    complete("requiem-systemd doctor ")
    assert complete("requiem-systemd doctor $") == ["$(touch hit)"]
    assert not (folder / "hit").exists()


def test_in_a_terminal(folder: Path) -> None:
    """A person who types Tab has the words completed: the verb, the option, the instance."""
    try:
        reading, writing = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminals here: {error}")
    environ = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(folder), "PS1": "> "}
    with subprocess.Popen(("bash", "--norc", "--noprofile", "-i"), stdin=writing, stdout=writing, stderr=writing, env=environ, start_new_session=True) as shell:
        os.close(writing)
        try:
            os.write(reading, f"requiem-systemd() {{ echo got: \"$@\"; }}; source {FILE}; echo rea''dy\n".encode())
            until(reading, b"\nready")
            os.write(reading, b"requiem-systemd hist\tshop@2\t --us\t\n")
            assert b"history shop@2.service --user" in until(reading, b"\ngot: ", b"\n")
            os.write(reading, b"exit\n")
            shell.wait(10)
        finally:
            shell.kill()
            os.close(reading)


def until(fd: int, *texts: bytes) -> bytes:
    """Read until all texts have come, one after the other."""
    data, deadline = b"", time.monotonic() + 10
    while True:
        rest = data
        for text in texts:
            _, found, rest = rest.partition(text)
            if not found:
                break
        else:
            return data
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], data
        data += os.read(fd, 65536)
