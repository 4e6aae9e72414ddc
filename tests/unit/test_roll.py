"""`requiem-systemd roll` and `drain`: which instance is next, which are old, what a failed one says, and what is refused."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import cli
from requiem_systemd.cli import generations, proof
from requiem_systemd.cli.drain import starts_again
from requiem_systemd.cli.roll import pause
from requiem_systemd.cli.systemctl import Anchor, UnavailableError, anchor_name

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = """\
MainPID=42
NRestarts={restarts}
ExecMainStatus={status}
Id={unit}
LoadState={load}
ActiveState={active}
SubState=running
Result={result}
StateChangeTimestampMonotonic=1000000
StatusText={text}
"""


def instance(unit: str = "web@1.service", **values: Any) -> generations.Instance:
    """Return an instance, as read from what systemctl shows."""
    usual = {"restarts": 0, "status": 0, "load": "loaded", "active": "active", "result": "success", "text": ""}
    (one,) = generations.read(BLOCK.format(unit=unit, **{**usual, **values}))
    return one


# -- reading


def test_read() -> None:
    """Blocks of `systemctl show` become instances, in the order of their numbers."""
    shown = "\n".join(BLOCK.format(unit=f"web@{n}.service", restarts=0, status=0, load="loaded", active="active", result="success", text="a=b") for n in (10, 9))
    nine, ten = generations.read(shown)
    assert [nine.name, ten.instance] == ["web@9", "10"]
    assert (nine.pid, nine.since, nine.text) == (42, 1.0, "a=b")


@pytest.mark.parametrize("shown", ["", "\n", "Id=web.service\n", "nonsense", "Id=web@1.service\nMainPID=[not set]\n"])
def test_read_strange(shown: str) -> None:
    """What is no instance is none, and what is not set is nothing."""
    assert [one.pid for one in generations.read(shown)] in ([], [0])


@pytest.mark.parametrize(
    ("name", "generation"),
    [("3", "3"), ("3-2", "3"), ("v2", "v2"), ("2026-11-22", "2026-11-22"), ("3-", "3-"), ("3-2-1", "3-2-1")],
)
def test_generation(name: str, generation: str) -> None:
    """Workers share a generation; a release is one."""
    assert instance(f"web@{name}.service").generation == generation


@pytest.mark.parametrize(
    ("active", "live", "ended"),
    [
        ("active", True, False),
        ("activating", True, False),
        ("reloading", True, False),
        ("refreshing", True, False),
        ("deactivating", False, False),
        ("inactive", False, True),
        ("failed", False, True),
    ],
)
def test_states(active: str, live: bool, ended: bool) -> None:  # noqa: FBT001 - a table
    """Live is what serves or tries to, ended what does neither and has no process."""
    one = instance(active=active)
    assert (one.live, one.ended) == (live, ended)


def test_came_up() -> None:
    """Up is what has run since it was started; not what systemd had to start again."""
    assert instance().came_up
    assert not instance(restarts=1).came_up
    assert not instance(active="activating").came_up
    assert not instance(active="deactivating").came_up


# -- which


def test_following() -> None:
    """The next has the number behind the highest known, ended and failed ones too; names do not count."""
    assert generations.following("web", []) == ["web@1.service"]
    known = [instance("web@9.service"), instance("web@10-2.service", active="failed"), instance("web@v99.service")]
    assert generations.following("web", known) == ["web@11.service"]
    assert generations.following("web", known, 2) == ["web@11-1.service", "web@11-2.service"]


def test_others() -> None:
    """Old is all that has not ended and is not new: also what drains, or comes back after a crash."""
    names = {"1": "inactive", "2": "failed", "3": "deactivating", "4": "activating", "5": "active", "6": "active"}
    known = [instance(f"web@{name}.service", active=active) for name, active in names.items()]
    assert [one.instance for one in generations.others(known, ["web@6.service"])] == ["3", "4", "5"]


def test_generations_are_counted_once() -> None:
    """Workers are one generation, and what has ended is none."""
    known = [instance(f"web@{name}.service") for name in ("1-1", "1-2", "v2")]
    assert generations.generations([*known, instance("web@9.service", active="failed")]) == ["1", "v2"]


@pytest.mark.parametrize("release", ["", ".", "..", "a/b", "a b", "a\n", "ä", "%i", "a@b"])
def test_bad_release(release: str) -> None:
    """What cannot be the name of an instance and of a folder is refused."""
    with pytest.raises(ValueError, match="instance's name"):
        generations.release_unit("web", release)


def test_release() -> None:
    """A release is the name of its instance."""
    assert generations.release_unit("web", "2026-11-22.1_rc") == "web@2026-11-22.1_rc.service"


@pytest.mark.parametrize("text", ["", "web@1", "web@", "a b", "web.socket", "../web", "*"])
def test_bad_anchor(text: str) -> None:
    """An instance is no anchor, nor is a pattern."""
    with pytest.raises(ValueError, match="is no anchor"):
        anchor_name(text)


def test_anchor() -> None:
    """The suffix may be there or not."""
    assert {anchor_name("web"), anchor_name("web.service")} == {"web"}


# -- what to say


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"result": "exit-code", "status": 1}, "exited with status 1"),
        ({"result": "exit-code", "status": 203}, "ExecStart= names cannot be executed"),
        ({"result": "exit-code", "status": 200}, "WorkingDirectory="),
        ({"result": "signal", "status": 11}, "signal 11"),
        ({"result": "timeout"}, "READY=1 within TimeoutStartSec="),
        ({"result": "protocol"}, "without saying READY=1"),
        ({"result": "start-limit-hit"}, "systemctl reset-failed web@1.service"),
        ({"result": "success", "active": "inactive"}, "cancelled"),
        ({"result": "new-in-300", "active": "failed"}, "new-in-300"),
        ({"load": "not-found"}, "not-found"),
    ],
)
def test_why(values: dict[str, Any], said: str) -> None:
    """Each result of systemd's says what it means here."""
    assert said in generations.why(instance(**values))


def test_why_started() -> None:
    """What came up and then ended well has ended by itself."""
    assert "ended by itself" in generations.why(instance(active="inactive"), started=True)


def test_listing() -> None:
    """What runs is shown with its state, its age and its STATUS; what has ended is not."""
    known = [
        instance("web@1.service", active="deactivating", text="Draining 4 min: 1 job"),
        instance("web@2.service"),
        instance("web@3.service", active="failed"),
    ]
    assert generations.listing(known, 301.0).splitlines() == [
        "    web@1  draining for 5 min: Draining 4 min: 1 job",
        "    web@2  serving for 5 min",
    ]


def test_pause() -> None:
    """The pauses grow, up to a minute."""
    assert [pause(times) for times in (1, 2, 3, 7, 1000)] == [1, 2, 4, 60, 60]


@pytest.mark.parametrize(("job", "again"), [("stop", False), ("", False), ("restart", True), ("start", True)])
def test_starts_again(job: str, again: bool) -> None:  # noqa: FBT001 - a table
    """Only a stop drains; where no job tells, it is one."""
    assert starts_again(job) == again


# -- the edge


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in the place of the user's runtime folder."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def script(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a systemctl of our own first."""
    path = folder / "systemctl"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("jobs", "state", "stopping"),
    [
        ("7 web.service stop running", "active", True),
        ("7 web.service restart running", "deactivating", False),
        ("7 web.service start waiting", "inactive", False),
        ("7 web@1.service stop running", "active", False),
        ("", "active", False),
        ("", "inactive", True),
        ("", "deactivating", True),
        ("No jobs running.", "reloading", False),
    ],
)
def test_is_stopping(folder: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, state: str, stopping: bool) -> None:  # noqa: FBT001 - a table
    """A stop is a stop's job, or no job and nothing there; the stop half of a restart is none."""
    script(folder, f'case "$*" in *list-jobs*) echo "{jobs}";; *) echo LoadState=loaded; echo ActiveState={state};; esac', monkeypatch)
    assert Anchor("web", user=True).is_stopping() == stopping


def test_lock(folder: Path) -> None:
    """A second roll waits for the first, and says so."""
    anchor, said = Anchor("web", user=True), list[str]()
    code = (
        "import sys; from requiem_systemd.cli.systemctl import Anchor\n"
        "with Anchor('web', user=True).locked(lambda: print('waits', flush=True)): print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "has it\n"
        release = other.stdin

        def waiting() -> None:
            said.append("waits")
            release.close()

        with anchor.locked(waiting):
            assert said == ["waits"]
            assert other.wait(5) == 0


def test_lock_cannot_be_had(folder: Path) -> None:
    """Who may not write there is told what to do."""
    (folder / "requiem-systemd").write_text("")
    with pytest.raises(UnavailableError, match="run this as root"), Anchor("web", user=True).locked(lambda: None):
        pass


def test_watched() -> None:
    """The end of a process is seen at once; one that is gone already is said to be."""
    with subprocess.Popen(("sleep", "60")) as process, proof._watched([process.pid]) as ends:
        assert ends is not None
        assert ends.poll(0) == []
        process.kill()
        begin = time.monotonic()
        assert ends.poll(5000)
        assert time.monotonic() - begin < 4
    with proof._watched([process.pid]) as ends:
        assert ends is None


@pytest.mark.parametrize("verb", ["roll", "drain"])
def test_no_systemctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """Without systemctl: 3, and said; the signal handlers are back where they were."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("INVOCATION_ID", "x")
    assert cli.main([verb, "web"]) == 3
    assert "systemctl cannot be run" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("verb", ["roll", "drain"])
def test_no_anchor(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """A service that systemd does not know: 3, with what it said."""
    script(folder, "echo LoadState=not-found", monkeypatch)
    assert cli.main([verb, "web", "--user"]) == 3
    assert "web.service: systemctl says not-found" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["roll"],
        ["roll", "web@1"],
        ["roll", "web", "--workers", "0"],
        ["roll", "web", "--workers", "x"],
        ["roll", "web", "--max-generations", "-1"],
        ["roll", "web", "--release", "a b"],
        ["roll", "web", "--release", "v1", "--workers", "2"],
        ["roll", "web", "--probation", "soon"],
        ["roll", "web", "--probation", "infinity"],
        ["drain"],
        ["drain", "web@1"],
    ],
)
def test_usage(words: list[str]) -> None:
    """What cannot be understood is 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
