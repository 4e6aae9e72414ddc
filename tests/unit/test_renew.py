"""`requiem-systemd renew`: what it does with which unit, and the scripts that it lays out for needrestart."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from requiem_systemd import cli
from requiem_systemd.cli import scripts
from requiem_systemd.cli.renew import Action, Facts, decide
from requiem_systemd.cli.systemctl import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN: Final = Facts("active", "", can_reload=False)
ROLLED: Final = PLAIN._replace(anchor="shop.service", anchor_active="active")
ROLL: Final = "{ path=/usr/bin/requiem-systemd ; argv[]=/usr/bin/requiem-systemd roll shop ; ignore_errors=no }"


def block(unit: str, **values: Any) -> str:
    """Return what `systemctl show` shows of a unit."""
    usual = {"Id": unit, "LoadState": "loaded", "ActiveState": "active", "CanReload": "no", "MainPID": 0}
    return "".join(f"{key}={value}\n" for key, value in {**usual, **values}.items())


# -- what is done


@pytest.mark.parametrize(
    ("facts", "action", "why"),
    [
        (ROLLED, Action.ROLL, ""),
        (ROLLED._replace(can_reload=True), Action.ROLL, ""),
        (ROLLED._replace(active="deactivating"), Action.LEAVE, "drains already"),
        (ROLLED._replace(anchor_job="reload"), Action.LEAVE, "shop.service is at it already (reload)"),
        (ROLLED._replace(anchor_job="stop", anchor_active="deactivating"), Action.LEAVE, "already (stop)"),
        (ROLLED._replace(anchor_active="failed"), Action.LEAVE, "shop.service, which would roll it, is failed"),
        (PLAIN, Action.RESTART, ""),
        (PLAIN._replace(can_reload=True), Action.RELOAD, ""),
        (PLAIN._replace(active="inactive"), Action.LEAVE, "it is inactive"),
        (PLAIN._replace(active="failed"), Action.LEAVE, "it is failed"),
        (PLAIN._replace(active="deactivating"), Action.LEAVE, "drains already"),
        (PLAIN._replace(active="deactivating", job="restart"), Action.LEAVE, "drains already"),
        (PLAIN._replace(job="restart"), Action.LEAVE, "systemd is at it already (restart)"),
        (PLAIN._replace(active="activating"), Action.LEAVE, "it is activating"),
        (PLAIN._replace(active="reloading", can_reload=True), Action.LEAVE, "it is reloading"),
    ],
)
def test_decide(facts: Facts, action: Action, why: str) -> None:
    """A generation is rolled, what can be reloaded is, the rest restarts; what is on its way already is left alone."""
    decided, said = decide(facts)
    assert decided is action
    assert bool(said) == bool(why)
    assert why in said


def test_decide_restart() -> None:
    """With --restart a reload is not enough; a roll is, and what drains is left alone as ever."""
    assert decide(PLAIN._replace(can_reload=True), restart=True)[0] is Action.RESTART
    assert decide(ROLLED, restart=True)[0] is Action.ROLL
    assert decide(PLAIN._replace(active="deactivating"), restart=True)[0] is Action.LEAVE


# -- the edge


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that puts a systemctl first, which shows something and does nothing; it returns what it was asked, in a file."""

    def systemctl(shown: str, *, jobs: str = "", then: str = "exit 0") -> Path:
        path, asked = tmp_path / "bin" / "systemctl", tmp_path / "asked"
        path.parent.mkdir()
        (tmp_path / "shown").write_text(shown)
        show = f"*' show '*) cat {tmp_path}/shown;; *list-jobs*) echo '{jobs}';;"
        path.write_text(f'#!/bin/sh\ncase " $* " in {show} *) echo "$@" >>{asked}; {then};; esac\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        asked.touch()
        return asked

    return systemctl


@pytest.fixture
def process() -> Iterator[int]:
    """Return a process that runs on."""
    with subprocess.Popen(("sleep", "60")) as process:
        yield process.pid
        process.kill()


def test_restart(systemctl: Callable[..., Path], process: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be reloaded restarts without being waited for, and the processes that go on until then are named."""
    asked = systemctl(block("mail.service", MainPID=process))
    assert cli.main(["renew", "mail"]) == 0
    assert asked.read_text() == "--no-ask-password restart --no-block -- mail.service\n"
    said = capsys.readouterr().out
    assert said.startswith("mail.service: restarts in the background, when its jobs have ended; left running until then: ")
    assert f"{process} (sleep)" in said


def test_reload(systemctl: Callable[..., Path], process: int, capsys: pytest.CaptureFixture[str]) -> None:
    """After a reload the processes that are still the same are named."""
    asked = systemctl(block("mail.service", MainPID=process, CanReload="yes"))
    assert cli.main(["renew", "mail.service"]) == 0
    assert asked.read_text() == "--no-ask-password reload -- mail.service\n"
    said = capsys.readouterr().out
    assert "mail.service: reloaded; left running as before: " in said
    assert f"{process} (sleep)" in said


def test_reload_of_all(systemctl: Callable[..., Path], process: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a reload leaves nothing of before, that is said."""
    systemctl(block("mail.service", MainPID=process, CanReload="yes"), then=f"kill -KILL {process}; while kill -0 {process} && ! grep -q Z /proc/{process}/stat; do :; done")
    assert cli.main(["renew", "mail.service"]) == 0
    assert capsys.readouterr().out == "mail.service: reloaded; nothing of before runs on\n"


@pytest.mark.parametrize(("unit", "said"), [("mail", "mail.service: reloads; "), ("shop@3", "shop.service: rolls; ")])
def test_slow(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str], unit: str, said: str) -> None:
    """An outcome that does not come soon is not waited for."""
    anchor = "\n" + block("shop.service", ExecStart=ROLL) if "@" in unit else ""
    systemctl(block(f"{unit}.service", CanReload="yes") + anchor, then="exec sleep 60")
    assert cli.main(["renew", "--wait", "0.1s", unit]) == 0
    out = capsys.readouterr().out
    assert out.startswith(said)
    assert "not waited for" in out


@pytest.mark.parametrize(("unit", "said"), [("mail", "mail.service: the reload failed"), ("shop@3", "shop.service: the roll failed, and the old serve on")])
def test_failure(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str], unit: str, said: str) -> None:
    """A reload or a roll that fails is 1, and it is said where the reason is."""
    anchor = "\n" + block("shop.service", ExecStart=ROLL) if "@" in unit else ""
    systemctl(block(f"{unit}.service", CanReload="yes") + anchor, then="exit 1")
    assert cli.main(["renew", unit]) == 1
    assert said in capsys.readouterr().err


def test_roll(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A generation is rolled by its anchor, and what there is then is shown."""
    asked = systemctl(block("shop@3.service", StatusText="2 jobs") + "\n" + block("shop.service", ExecStart=ROLL))
    assert cli.main(["renew", "shop@3.service"]) == 0
    assert asked.read_text() == "--no-ask-password reload -- shop.service\n"
    out = capsys.readouterr().out
    assert out.startswith("shop.service: rolled; there are\n    shop@3  serving for ")
    assert out.endswith(": 2 jobs\n")


def test_anchor(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A person may name the anchor itself."""
    systemctl(block("shop.service", ExecStart=ROLL, CanReload="yes"))
    assert cli.main(["renew", "shop"]) == 0
    assert capsys.readouterr().out.startswith("shop.service: rolled")


def test_instance_of_no_anchor(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """An instance that nobody rolls is a plain unit."""
    asked = systemctl(block("mail@eu.service") + "\n" + block("mail.service", LoadState="not-found"))
    assert cli.main(["renew", "mail@eu"]) == 0
    assert "restart --no-block -- mail@eu.service" in asked.read_text()


def test_job(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What systemd is at already is left alone, and what it says of itself is told."""
    asked = systemctl(block("mail.service", StatusText="Draining 3 s"), jobs="7 mail.service restart waiting")
    assert cli.main(["renew", "mail"]) == 0
    assert capsys.readouterr().out == "mail.service: left alone: systemd is at it already (restart): Draining 3 s\n"
    assert asked.read_text() == ""


def test_several(systemctl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Of several units one that is not there keeps nobody from the others."""
    systemctl("Id=gone.service\nLoadState=not-found\n")
    assert cli.main(["renew", "gone", "lost"]) == 3
    assert capsys.readouterr().err.count("systemctl says not-found") == 2


def test_no_systemctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without systemctl: 3, and said."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["renew", "mail"]) == 3
    assert "systemctl cannot be run" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["renew"], ["renew", "web", "--scripts", "/run/x"], ["renew", "web.socket"], ["renew", "web", "--wait", "soon"]])
def test_usage(words: list[str]) -> None:
    """Wrong usage is 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_under_a_unit_s_name(systemctl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Called by the name of a unit, as needrestart does, the command renews it."""
    asked = systemctl(block("shop@3.service") + "\n" + block("shop.service", ExecStart=ROLL))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "shop@3.service")])
    assert cli.main() == 0
    assert "reload -- shop.service" in asked.read_text()


# -- needrestart's scripts


def test_ours(tmp_path: Path) -> None:
    """Ours are generations that an anchor rolls, of whatever program, and services with a control socket; that run."""
    (tmp_path / "mail").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mail" / "requiem"))
        blocks = [
            block("shop.service", ExecStart=ROLL),
            block("shop@3.service"),
            block("shop@2.service", ActiveState="deactivating"),
            block("shop@1.service", ActiveState="failed"),
            block("mail.service", RuntimeDirectory="mail"),
            block("other.service", RuntimeDirectory="other"),
            block("other@1.service", ExecStart="{ path=/bin/sleep ; argv[]=/bin/sleep 60 }"),
        ]
        assert scripts.ours("\n".join(blocks), str(tmp_path)) == ["mail.service", "shop@2.service", "shop@3.service"]


def test_scripts(systemctl: Callable[..., Path], tmp_path: Path) -> None:
    """Each unit of ours has a link to the command, the operator's scripts are there too and win, and what was there before is gone."""
    units = [block("shop.service", ExecStart=ROLL), block("shop@3.service"), block("shop@4.service")]
    systemctl("\n".join(units))
    folder, beside, command = tmp_path / "folder", tmp_path / "restart.d", tmp_path / "requiem-systemd"
    for path in (folder, beside):
        path.mkdir()
    for path in (folder / "shop@2.service", beside / "dbus.service", beside / "shop@4.service", command):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    for _ in range(2):
        scripts.lay_out(str(folder), str(beside), str(command))
    assert {path.name: path.readlink() for path in folder.iterdir()} == {
        "shop@3.service": command,
        "shop@4.service": beside / "shop@4.service",
        "dbus.service": beside / "dbus.service",
    }


def test_scripts_by_module(tmp_path: Path) -> None:
    """What cannot be run under another name is refused: python -m requiem_systemd."""
    with pytest.raises(UnavailableError, match="by its full path"):
        scripts.lay_out(str(tmp_path), "", str(Path(cli.__file__).parents[1] / "__main__.py"))


def test_snippet_is_for_the_package_s_path() -> None:
    """The file for needrestart's conf.d names the command where Debian's package has it, and nothing of it runs without root."""
    snippet = Path(__file__).resolve().parents[2] / "units" / "needrestart" / "requiem-systemd.conf"
    if not snippet.is_file():
        pytest.skip("needs the tree")
    text = snippet.read_text()
    assert "if (!$< && -x '/usr/bin/requiem-systemd')" in text
    assert "/etc/needrestart/conf.d/requiem-systemd.conf" in text
