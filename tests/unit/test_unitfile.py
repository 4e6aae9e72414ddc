"""What a unit's files say, read from inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from requiem_systemd import unitfile

UNIT = "[Unit]\nKillMode=none\n[Service]\n# KillMode=process\nKillMode=mixed\nExecStart=/bin/true \\\n  KillMode=x\n"


def write(folder: Path, name: str, text: str) -> None:
    """Write one file of a load path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def settings(name: str, *folders: Path) -> object:
    """Read, as if these were the load path."""
    return unitfile.settings(name, [str(folder) for folder in folders])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0::/system.slice/app.service\n", "app.service"),
        ("1:name=systemd:/system.slice/app@3.service\n0::/\n", "app@3.service"),
        ("0::/user.slice/user@1000.service/app.slice/app.service/sub\n", "app.service"),
        ("0::/user.slice/session-3.scope\n", None),
        ("", None),
    ],
)
def test_own_service(text: str, name: str | None) -> None:
    """The innermost service of the process's control groups, of either hierarchy."""
    assert unitfile.service_of(text) == name


def test_only_service_section(tmp_path: Path) -> None:
    """Other sections, comments and continued lines are not taken for settings."""
    write(tmp_path, "app.service", UNIT)
    assert settings("app.service", tmp_path) == {"KillMode": "mixed", "ExecStart": "/bin/true    KillMode=x"}


@pytest.mark.parametrize(
    ("socket", "first"),
    [
        ("/run/systemd/notify", "/etc/systemd/system.control"),
        ("/run/user/1000/systemd/notify", "/home/somebody/.config/systemd/user.control"),
        ("/run/user/x/systemd/notify", None),
        ("@abstract", None),
        (None, None),
    ],
)
def test_folders_of_a_manager(monkeypatch: pytest.MonkeyPatch, socket: str | None, first: str | None) -> None:
    """The system's manager and a user's each have their own load path; what else listens has none."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert next(iter(unitfile.folders_of(socket)), None) == first
    assert [folder for folder in unitfile.folders_of(socket) if not folder.startswith("/") or "{" in folder] == []


def test_first_folder_wins(tmp_path: Path) -> None:
    """A unit in /etc replaces that of the package."""
    write(tmp_path, "lib/app.service", UNIT)
    write(tmp_path, "etc/app.service", "[Service]\nKillMode=process\n")
    assert settings("app.service", tmp_path / "etc", tmp_path / "lib") == {"KillMode": "process"}


def test_drop_ins_by_name(tmp_path: Path) -> None:
    """Drop-ins are applied in the order of their names, whichever folder they are in; of the same name the first counts."""
    write(tmp_path, "lib/app.service", UNIT)
    write(tmp_path, "etc/app.service.d/10.conf", "[Service]\nNotifyAccess=exec\n")
    write(tmp_path, "lib/app.service.d/20.conf", "[Service]\nNotifyAccess=all\n")
    write(tmp_path, "lib/app.service.d/10.conf", "[Service]\nNotifyAccess=none\nKillMode=none\n")
    found = settings("app.service", tmp_path / "etc", tmp_path / "lib")
    assert isinstance(found, dict)
    assert (found["NotifyAccess"], found["KillMode"]) == ("all", "mixed")


def test_template_prefix_and_type(tmp_path: Path) -> None:
    """An instance is read from its template, with the drop-ins of the template, of each prefix, and of all services."""
    write(tmp_path, "a-b@.service", UNIT)
    write(tmp_path, "a-b@.service.d/1.conf", "[Service]\nA=1\n")
    write(tmp_path, "a-.service.d/2.conf", "[Service]\nB=2\n")
    write(tmp_path, "service.d/3.conf", "[Service]\nC=3\n")
    found = settings("a-b@x.service", tmp_path)
    assert isinstance(found, dict)
    assert [found[key] for key in ("KillMode", "A", "B", "C")] == ["mixed", "1", "2", "3"]


def test_unknown(tmp_path: Path) -> None:
    """A unit whose file is not there, or cannot be read, is unknown: None."""
    assert settings("app.service", tmp_path) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[S]\nA=1\\\n# between\n  2\n", [("S", "A", "1   2")]),
        ("[S]\nA=1 \\\n   \\\n3\n", [("S", "A", "1      3")]),
        ("[S]\n# B=1 \\\nA=2\n", [("S", "A", "2")]),
        ("[S]\nA=b\\\\\nB=1\n", [("S", "A", "b\\\\"), ("S", "B", "1")]),
        ("[S]\n  ; c\n  A = 'x = y'  \n", [("S", "A", "'x = y'")]),
        ("[S]\nA=1\\", [("S", "A", "1")]),
        ("A=1\n[S]\nnonsense\n[T]\nB=", [("", "A", "1"), ("T", "B", "")]),
    ],
)
def test_syntax(text: str, expected: list[tuple[str, str, str]]) -> None:
    """Lines are continued, comments left out, sections told apart as systemd does."""
    assert list(unitfile.assignments(text)) == expected


def test_empty_resets_lists() -> None:
    """An empty assignment forgets the lines of a list before it; a word's or a dependency's it leaves, as systemd does."""
    unit = unitfile.Unit(
        (
            "[Unit]\nAfter=a\n[Service]\nExecStart=/bin/a\nKillMode=mixed\nRestart=always\n",
            "[Unit]\nAfter=\n[Service]\nExecStart=\nExecStart=/bin/b\nKillMode=\nRestart=\n",
        )
    )
    assert unit.all("Service", "ExecStart") == ["/bin/b"]
    assert (unit.last("Service", "KillMode"), unit.last("Service", "Restart")) == ("", "always")
    assert unit.all("Unit", "After") == ["a"]
    assert unit.last("Service", "Type") == ""


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ("TimeoutStopSec=2min 30s", 150.0),
        ("TimeoutStopSec=2\nTimeoutStopSec=", 2.0),
        ("TimeoutSec=7", 7.0),
        ("TimeoutSec=7\nTimeoutStopSec=8", 8.0),
        ("", 90.0),
        ("TimeoutStopSec=infinity", float("inf")),
        ("TimeoutStopSec=0", float("inf")),
        ("TimeoutStopSec=soon", None),
    ],
)
def test_stop_timeout(tmp_path: Path, lines: str, seconds: float | None) -> None:
    """TimeoutStopSec=, else TimeoutSec=, else systemd's default; what cannot be read is unknown."""
    write(tmp_path, "app.service", f"[Service]\n{lines}\n")
    assert seconds == unitfile.stop_timeout("app.service", [str(tmp_path)])
    assert unitfile.stop_timeout("other.service", [str(tmp_path)]) is None
