"""`requiem-systemd new`: what it writes is clean, what it refuses, and what it says."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from requiem_systemd import cli
from requiem_systemd.cli import templates
from requiem_systemd.cli.doctor import sources
from requiem_systemd.cli.doctor.finding import NOTES
from requiem_systemd.cli.doctor.rules import findings
from requiem_systemd.unitfile import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVE: Final = ["--serve", "shop.web:app"]
EXEC: Final = ["--exec", f"{sys.executable} -m shop"]


def combinations() -> Iterator[list[str]]:
    """Yield every sensible set of options."""
    for user in ([], ["--user"]):
        for rolling in ([], ["--rolling"]):
            for socket in ([], ["--socket", "8080"], ["--socket", "/run/shop.sock"]):
                yield [*SERVE, *socket, *rolling, *user]
                yield [*SERVE, *socket, *rolling, *user, "--workers", "4"]
                yield [*EXEC, *socket, *rolling, *user]
                yield [*EXEC, *socket, *rolling, *user, "--type", "exec"]
        yield [*EXEC, "--rolling", "--workers", "3", *user]


def new(folder: Path, *options: str, name: str = "shop") -> dict[str, Unit]:
    """Write units, and return them by name."""
    assert cli.main(["new", name, *options, "--directory", str(folder)]) == 0
    return {path.name: Unit((path.read_text(),)) for path in sorted(folder.iterdir())}


def found(folder: Path, *, user: bool = False) -> list[tuple[str, str]]:
    """Return what doctor finds in the units of a folder: each unit, and what; without notes."""
    named = ((path.name, findings(sources.from_file(str(path), user=user))) for path in sorted(folder.iterdir()))
    return [(name, one.id) for name, ones in named for one in ones if one.severity != NOTES]


@pytest.mark.parametrize("options", list(combinations()), ids=" ".join)
def test_doctor_finds_nothing(tmp_path: Path, options: list[str]) -> None:
    """In what is written nothing kills, drops or warns."""
    new(tmp_path, *options)
    assert found(tmp_path, user="--user" in options) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("options", list(combinations()), ids=" ".join)
def test_systemd_accepts(tmp_path: Path, options: list[str]) -> None:
    """`systemd-analyze verify` has nothing to say."""
    new(tmp_path, *options)
    files = [str(path).replace("@.service", "@1.service") for path in tmp_path.iterdir()]
    words = ["systemd-analyze", *(["--user"] if "--user" in options else []), "verify", "--man=no", *files]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    assert [line for line in done.stderr.splitlines() if "shop" in line] == []


def test_cluster_outlives_its_primary(tmp_path: Path) -> None:
    """Where --workers makes a cluster, its unit waits for workers whose primary was killed, and hears them; with one process it need not."""
    many = new(tmp_path / "many", *SERVE, "--workers", "4")["shop.service"].section("Service")
    assert (many["ExitType"], many["NotifyAccess"], many["OOMPolicy"]) == ("cgroup", "all", "continue")
    one = new(tmp_path / "one", *SERVE)["shop.service"].section("Service")
    assert (one.get("ExitType"), one["NotifyAccess"]) == (None, "main")


def test_serve(tmp_path: Path) -> None:
    """--serve runs `python -m requiem_systemd serve`, behind a socket where nothing is said of one."""
    made = new(tmp_path, *SERVE)
    assert (
        made["shop.service"].last("Service", "ExecStart")
        == f"{sys.executable} -m requiem_systemd serve shop.web:app"
    )
    assert made["shop.socket"].all("Socket", "ListenStream") == ["127.0.0.1:8000"]
    assert made["shop.socket"].last("Socket", "Service") == "shop.service"


def test_serve_workers(tmp_path: Path) -> None:
    """Of a plain unit the workers are serve's, and the kernel's choice among them is no stop."""
    service = new(tmp_path, *SERVE, "--workers", "4")["shop.service"]
    assert service.last("Service", "ExecStart").endswith(" serve --workers 4 shop.web:app")
    assert service.last("Service", "OOMPolicy") == "continue"


def test_serve_workers_by_cpus(tmp_path: Path) -> None:
    """As many as there are CPUs is left to serve."""
    service = new(tmp_path, *SERVE, "--workers", "auto")["shop.service"]
    assert service.last("Service", "ExecStart").endswith(" serve --workers auto shop.web:app")


def test_rolling_workers(tmp_path: Path) -> None:
    """Of a rolled service the workers are instances: the roll is told."""
    made = new(tmp_path, *SERVE, "--workers", "4", "--rolling")
    assert set(made) == {"shop.service", "shop@.service", "shop.socket"}
    assert made["shop.service"].last("Service", "ExecReload").endswith(" roll %N --workers 4")
    assert made["shop@.service"].last("Service", "ExecStart").endswith(" serve shop.web:app")


def test_rolling_without_socket(tmp_path: Path) -> None:
    """A worker of a queue has no socket, nor a line that names one, nor a comment on such a line."""
    made = new(tmp_path, *EXEC, "--rolling")
    assert set(made) == {"shop.service", "shop@.service"}
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "%N.socket" not in text
    assert "Sockets=" not in text
    assert "O_NONBLOCK" not in text
    assert made["shop@.service"].last("Unit", "After") == "network.target"


def test_rolling_for_a_user(tmp_path: Path) -> None:
    """In a user's manager roll and drain ask that one, nothing needs root, and default.target starts it."""
    made = new(tmp_path, *SERVE, "--rolling", "--user")
    assert made["shop.service"].last("Service", "ExecStart").endswith(" roll %N --user")
    assert made["shop.service"].last("Service", "ExecStopPost").endswith(" drain %N --user")
    assert made["shop.service"].last("Install", "WantedBy") == "default.target"
    assert made["shop@.service"].last("Service", "DynamicUser") == ""
    assert made["shop@.service"].last("Service", "KillMode") == "mixed"


def test_what_cannot_say_ready(tmp_path: Path) -> None:
    """--type exec: nothing waits for READY=1 or WATCHDOG=1, and the roll has a probation instead."""
    made = new(tmp_path, *EXEC, "--rolling", "--type", "exec")
    service = made["shop@.service"].section("Service")
    assert service["Type"] == "exec"
    assert not {"WatchdogSec", "NotifyAccess", "ExecReload"} & set(service)
    assert made["shop.service"].last("Service", "ExecStart").endswith("roll %N --probation 5s")


def test_known_servers(tmp_path: Path) -> None:
    """Of the servers that are known gunicorn pings no watchdog and reloads by itself; Celery does not reload."""
    (tmp_path / "bin").mkdir()
    for name in ("gunicorn", "celery"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    gunicorn = new(tmp_path / "a", "--exec", f"{tmp_path}/bin/gunicorn app:app", "--socket", "80")[
        "shop.service"
    ].section("Service")
    assert (gunicorn["ExecReload"], gunicorn["OOMPolicy"], "WatchdogSec" in gunicorn) == (
        "/bin/kill -HUP $MAINPID",
        "continue",
        False,
    )
    celery = new(tmp_path / "b", "--exec", f"{tmp_path}/bin/celery -A a worker")["shop.service"].section(
        "Service"
    )
    assert ("ExecReload" in celery, celery["WatchdogSec"], celery["KillMode"]) == (False, "30s", "mixed")


@pytest.mark.parametrize(
    ("command", "reload"),
    [("uvicorn --fd 3 --workers 2 app:app", ""), ("hypercorn --bind fd://3 app:app", "/bin/kill -HUP $MAINPID")],
)
def test_servers_whose_parent_is_mute(tmp_path: Path, command: str, reload: str) -> None:
    """Where only a server's workers run our code, they are heard, no watchdog waits for the parent, and nothing asks it for a control socket."""
    program, _, rest = command.partition(" ")
    (tmp_path / program).write_text("#!/bin/sh\n")
    (tmp_path / program).chmod(0o755)
    made = new(tmp_path / "out", "--exec", f"{tmp_path}/{program} {rest}", "--socket", "8080")["shop.service"].section("Service")
    assert (made["NotifyAccess"], made.get("WatchdogSec"), made.get("ExecReload", "")) == ("all", None, reload)
    assert found(tmp_path / "out") == []


@pytest.mark.parametrize(("version", "grow"), [(None, False), (252, False), (254, True), (262, True)])
def test_pauses_grow_where_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int | None, *, grow: bool) -> None:
    """A generation that crashes again and again is started after growing pauses, where the manager knows the settings; the others hear of none."""
    monkeypatch.setattr(sources, "version", lambda **_: version)
    made = new(tmp_path, *SERVE, "--rolling")
    service = made["shop@.service"].section("Service")
    assert (service.get("RestartSteps"), service.get("RestartMaxDelaySec")) == (("6", "30s") if grow else (None, None))
    assert (service["RestartSec"], made["shop@.service"].last("Unit", "StartLimitIntervalSec")) == ("1s", "0")
    assert "RestartSteps" not in made["shop.service"].section("Service")
    assert "drop-ins/" not in (tmp_path / "shop@.service").read_text() or not grow
    assert found(tmp_path) == []


def test_command_is_quoted(tmp_path: Path) -> None:
    """What systemd would expand or split reaches the program as it was typed, and its path is absolute."""
    made = new(tmp_path, "--exec", "env 'a b' 100% '$HOME' 'x\"y' '' ';'", "--working-directory", "/srv/50%")
    assert (
        made["shop.service"].last("Service", "ExecStart")
        == f'{shutil.which("env")} "a b" 100%% $$HOME "x\\"y" "" ";"'
    )
    assert made["shop.service"].last("Service", "WorkingDirectory") == "/srv/50%%"


def test_relative_program(tmp_path: Path) -> None:
    """A program below the working directory is given its absolute path; a link on the way stays one."""
    (tmp_path / "releases" / "1").mkdir(parents=True)
    (tmp_path / "releases" / "1" / "run").write_text("#!/bin/sh\n")
    (tmp_path / "releases" / "1" / "run").chmod(0o755)
    (tmp_path / "current").symlink_to("releases/1")
    made = new(tmp_path / "out", "--exec", "./run", "--working-directory", str(tmp_path / "current"))
    assert made["shop.service"].last("Service", "ExecStart") == str(tmp_path / "current" / "run")


def test_below_a_home(tmp_path: Path) -> None:
    """What lies below a home is not hidden from the service that is to run it."""
    made = new(tmp_path, *EXEC, "--working-directory", "/home/ann/shop")
    assert made["shop.service"].last("Service", "ProtectHome") == "read-only"
    made = new(tmp_path / "x", *EXEC, "--working-directory", "/srv/shop")
    assert made["shop.service"].last("Service", "ProtectHome") == (
        "read-only" if templates.below_home(sys.executable) else "yes"
    )


def test_comments_stay(tmp_path: Path) -> None:
    """What the template says of its lines stands above them; its advice to copy it does not."""
    new(tmp_path, *SERVE, "--rolling")
    text = (tmp_path / "shop@.service").read_text()
    assert "# SIGTERM to the main process only." in text
    assert "Copy to" not in text
    assert "/srv/%p" not in text


# -- where, and what is there


def test_writes_nothing_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit that is there stays as it is, and nothing beside it is written; --force overwrites."""
    (tmp_path / "shop.socket").write_text("mine")
    assert cli.main(["new", "shop", *SERVE, "--directory", str(tmp_path)]) == 1
    assert "shop.socket: there already, and nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["shop.socket"]
    assert cli.main(["new", "shop", *SERVE, "--directory", str(tmp_path), "--force"]) == 0
    assert "[Socket]" in (tmp_path / "shop.socket").read_text()
    assert stat.S_IMODE((tmp_path / "shop.service").stat().st_mode) == 0o644


def test_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a user's manager it goes to that one's folder, and the next commands are said."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cli.main(["new", "shop", *SERVE, "--user"]) == 0
    out = capsys.readouterr().out
    assert f"wrote {tmp_path}/systemd/user/shop.service\n" in out
    assert "\nsystemctl --user daemon-reload\nsystemctl --user enable --now shop\n" in out
    assert (tmp_path / "systemd" / "user" / "shop.socket").exists()


def test_elsewhere_is_linked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units in a folder where systemd does not look are linked first."""
    new(tmp_path, *EXEC)
    assert f"systemctl link {tmp_path}/shop.service\n" in capsys.readouterr().out


def test_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--print shows all units, each under its path, and writes none."""
    assert cli.main(["new", "shop", *SERVE, "--directory", str(tmp_path), "--print"]) == 0
    out = capsys.readouterr().out
    assert f"# {tmp_path}/shop.service\n" in out
    assert f"# {tmp_path}/shop.socket\n" in out
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json says what was written, what to type, and what doctor finds."""
    assert cli.main(["new", "shop", *SERVE, "--directory", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"files", "next", "findings"}
    assert {path: Path(path).read_text() for path in said["files"]} == said["files"]


def test_doctor_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is asked for and not clean is written, and what doctor finds is said."""
    (tmp_path / "uvicorn").write_text("#!/bin/sh\n")
    (tmp_path / "uvicorn").chmod(0o755)
    assert (
        cli.main(
            [
                "new",
                "shop",
                "--exec",
                f"{tmp_path}/uvicorn app:app --port 80",
                "--directory",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert "socket-missing" in capsys.readouterr().err


def test_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be written to is 1, and said."""
    (tmp_path / "file").write_text("")
    assert cli.main(["new", "shop", *SERVE, "--directory", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


# -- usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.b", *EXEC], "'.' cannot be in the name"),
        (["a@b", *EXEC], "--rolling"),
        (["../a", *EXEC], "cannot be in the name"),
        (["a/b", *EXEC], "--directory"),
        (["a b", *EXEC], "letters, digits"),
        (["", *EXEC], "no name"),
        (["shop.service", *EXEC], "without its suffix: shop"),
        (["a" * 32, *EXEC, "--rolling"], "31 letters at most"),
        (["1a", *EXEC, "--rolling"], "begins with a letter"),
        (["a" * 201, *EXEC], "no name"),
        (["shop"], "required"),
        (["shop", *EXEC, *SERVE], "not allowed with"),
        (["shop", "--exec", ""], "give the command"),
        (["shop", "--exec", "'"], "No closing quotation"),
        (["shop", "--exec", "no-such-program x"], "absolute path"),
        (["shop", "--exec", "./no-such-program"], "absolute path"),
        (["shop", "--serve", "a b"], "MODULE:APP"),
        (["shop", *EXEC, "--workers", "2"], "--rolling"),
        (["shop", *SERVE, "--workers", "0"], "1 or more"),
        (["shop", *SERVE, "--rolling", "--workers", "auto"], "give their number"),
        (["shop", *SERVE, "--socket", "soon"], "give PORT"),
        (["shop", *SERVE, "--socket", "99999"], "give PORT"),
        (["shop", *SERVE, "--socket", "1.2.3.4:80 "], "give PORT"),
        (["shop", *SERVE, "--socket", "host:80"], "give PORT"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be is 2, with a sentence on what to do, and nothing is written."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["new", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_long_names_are_fine_elsewhere(tmp_path: Path) -> None:
    """The limit is a user's name's: a plain unit, and one of a user's manager, may have more."""
    new(tmp_path / "a", *EXEC, name="a" * 40)
    new(tmp_path / "b", *EXEC, "--rolling", "--user", name="a" * 40)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", "8080"),
        (":80", "80"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/run/a", "/run/a"),
        ("/run/a", "/run/a"),
    ],
)
def test_addresses(tmp_path: Path, text: str, address: str) -> None:
    """An address is written as ListenStream= takes it."""
    assert new(tmp_path, *SERVE, "--socket", text)["shop.socket"].all("Socket", "ListenStream") == [address]


def test_templates_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An install without templates is said to be one."""
    monkeypatch.setattr(templates, "FOLDERS", ("/nowhere", "/nothing"))
    assert cli.main(["new", "shop", *SERVE, "--print"]) == 1
    assert "install requiem-systemd anew" in capsys.readouterr().err
