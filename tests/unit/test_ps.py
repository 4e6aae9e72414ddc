"""`requiem-systemd ps` and `why`: what is asked of whom, and how it is shown."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import cli, control, varlink
from requiem_systemd.cli import colours, explain, look, ps, show, sockets
from requiem_systemd.cli.look import Told
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

NOT_FOUND = f"{varlink.STANDARD}.MethodNotFound"
#: What a service said of itself before it could tell what is in flight.
OLD_DESCRIPTION = f"interface {varlink.SERVICE}\n\nmethod Reload() -> ()\n\nerror ReloadFailed (reason: string, draining: bool)\n"
DESCRIBED: dict[str, Any] = {
    "unit": "shop@2.service",
    "pid": 812,
    "role": "main",
    "release": "0.1.0",
    "state": "draining",
    "since": 245.0,
    "reason": "SIGTERM",
    "status": "busy",
    "in_flight": 2,
    "abandoned": 0,
    "manager": True,
    "drain_age": 245.0,
    "drain_left": 55.0,
    "exit_left": None,
    "extension": 24.0,
    "limits": {"drain_timeout": 300.0, "request_timeout": 30.0, "exit_timeout": 90.0, "lame_duck": "0.0"},
    "signals": [{"signal": "SIGTERM", "effect": "changes nothing"}, {"signal": "SIGQUIT", "effect": "abandons"}],
    "workers": [],
}
IN_FLIGHT: dict[str, Any] = {
    "holders": [
        {
            "kind": "job",
            "label": "export 42",
            "age": 840.0,
            "owner": "thread Thread-3",
            "status": "uploading",
            "where": "/srv/app.py:42:upload",
            "left": 100.0,
            "stalled": False,
            "stack": ["/srv/app.py:42:upload", "/lib/threading.py:975:run"],
        },
        {
            "kind": "request",
            "label": "GET /report",
            "age": 9.0,
            "owner": "task Task-812",
            "status": "",
            "where": "/srv/app.py:7:report",
            "left": 21.0,
            "stalled": True,
            "stack": None,
        },
    ],
    "omitted": 3,
    "counts": {"job": 4, "request": 1},
    "processes": [
        {"pid": 901, "parent": 812, "name": "ffmpeg", "state": "S", "age": 800.0, "relation": "child"},
        {"pid": 902, "parent": 901, "name": "sh", "state": "S", "age": 7.0, "relation": "descendant"},
        {"pid": 950, "parent": 1, "name": "left", "state": "Z", "age": 9.0, "relation": "orphan"},
    ],
    "threads": [],
}
SHOWN = {"Id": "shop@2.service", "ActiveState": "deactivating", "TimeoutStopUSec": "1min 30s", "StateChangeTimestampMonotonic": "100000000"}


def told(**more: Any) -> Told:
    """Return what a service in mid-drain told, with something else in it."""
    values = {"unit": "shop@2.service", "path": "/run/shop@2/requiem", "described": DESCRIBED, "in_flight": IN_FLIGHT, "problem": "", "shown": SHOWN}
    return Told(**{**values, **more})


# -- lines


def test_table() -> None:
    """A row each, what it holds below it, columns under each other."""
    serving = {**DESCRIBED, "unit": "shop@3.service", "pid": 9000, "state": "running", "since": 240.0}
    idle = told(unit="shop@3.service", described=serving, in_flight={"holders": [], "omitted": 0, "counts": {}, "processes": []})
    assert show.table([told(), idle]) == [
        "UNIT            PROCESS  STATE     FOR    IN FLIGHT",
        "shop@2.service  812      draining  4 min  4 jobs, 1 request",
        '    job      "export 42"    14 min  thread Thread-3  uploading',
        '    request  "GET /report"  9 s     task Task-812    (stalled)',
        "    and 3 more",
        "shop@3.service  9000     running   4 min  nothing",
    ]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "nothing"),
        ({"job": 0}, "nothing"),
        ({"job": 2, "hook": 1, "request": 1, "connection": 3}, "3 jobs, 1 request, 3 connections"),
        ({"listener": 1}, "1 listener"),
        ({"worker": 2, "listener": 2}, "2 workers, 2 listeners"),
    ],
)
def test_held(counts: dict[str, int], expected: str) -> None:
    """What is in flight is summed up by kind."""
    assert expected == show.held(told(in_flight={"counts": counts}))


def test_table_cuts_many() -> None:
    """Of many, the oldest twenty are shown, and how many more there are."""
    holders = [{**IN_FLIGHT["holders"][0], "label": f"job {number}"} for number in range(50)]
    lines = show.table([told(in_flight={**IN_FLIGHT, "holders": holders, "omitted": 99_950})])
    assert len(lines) == 2 + show.MOST + 1
    assert lines[-1] == "    and 99980 more"


def test_row_of_who_tells_nothing() -> None:
    """Who does not answer has a row with what systemd knows, and below it why."""
    silent = told(described={}, in_flight={}, problem="does not answer", shown={**SHOWN, "MainPID": "812", "StatusText": "Draining 3 s"})
    assert show.table([silent])[1:] == ["shop@2.service  812      deactivating  ?    Draining 3 s", "    does not answer"]


def test_primary_and_worker() -> None:
    """In a cluster it is said who is who."""
    workers = [{"id": 1, "pid": 900, "phase": "leaving", "status": "", "jobs": 2, "requests": 1, "oldest": '"export" 3 s'}]
    primary = told(described={**DESCRIBED, "workers": workers})
    assert show.process(primary) == "812 primary"
    assert show.process(told(described={**DESCRIBED, "role": "worker 1"})) == "812 worker 1"
    assert '    worker 1, process 900: leaving, 2 jobs, 1 request, oldest "export" 3 s' in explain.account(primary)


def test_why() -> None:
    """What holds with its stack, the processes, how long until each limit, what each signal does."""
    assert explain.account(told(), now=250.0) == [
        "shop@2.service, process 812",
        "  draining, for 4 min, begun by SIGTERM; it says: busy",
        "  its stop is held by 4 jobs, 1 request:",
        '    job "export 42", 14 min, thread Thread-3 (uploading), abandoned in 100 s',
        "        /srv/app.py:42:upload",
        "        /lib/threading.py:975:run",
        '    request "GET /report", 9 s, task Task-812, stalled: no heartbeat, let go in 21 s',
        "        /srv/app.py:7:report",
        "    and 3 more",
        "  its processes:",
        "    child 901 ffmpeg, 13 min",
        "    descendant 902 sh, 7 s, of process 901",
        "    orphan 950 left, 9 s: its parent has ended; under KillMode=mixed it is killed when the main process has ended (has ended, and nobody has waited for it)",
        "  limits:",
        "    drain_timeout: abandons what is in flight after 5 min, in 55 s",
        "    request_timeout: lets a request or connection go after 30 s",
        "    exit_timeout: ends the process on its way out after 90 s",
        "    TimeoutStopSec=1min 30s has passed, 60 s ago; extended for 24 s more, and again before that has passed",
        "  the next signal:",
        "    SIGTERM changes nothing",
        "    SIGQUIT abandons",
        "             systemctl kill -s QUIT --kill-whom=main shop@2.service",
    ]


@pytest.mark.parametrize(
    ("shown", "extension", "expected"),
    [
        ({}, None, None),
        ({}, 10.0, "TimeoutStopSec=: extended for 10 s more, and again before that has passed"),
        ({"TimeoutStopUSec": "infinity"}, 10.0, "TimeoutStopSec=infinity"),
        ({"TimeoutStopUSec": "nonsense"}, 10.0, None),
        ({"TimeoutStopUSec": "2s", "ActiveState": "active"}, None, "TimeoutStopSec=2s: it is not being stopped by systemd"),
        ({**SHOWN, "TimeoutStopUSec": "5min"}, None, "TimeoutStopSec=5min passes in 2 min; it is not extended"),
    ],
)
def test_stop_timeout(shown: Mapping[str, str], extension: float | None, expected: str | None) -> None:
    """When systemd would kill, as far as it is known."""
    lines = explain.account(told(shown=shown, described={**DESCRIBED, "extension": extension}), now=250.0)
    found = [line.strip() for line in lines if "TimeoutStopSec" in line]
    assert found == ([] if expected is None else [expected])


def test_why_not() -> None:
    """Of a service that nothing stops it is said what would hold; of one on its way out, what it waits for."""
    running = explain.account(told(described={**DESCRIBED, "state": "running", "reason": ""}))
    assert "  running: nothing stops it, for 4 min; it says: busy" in running
    assert "  its stop would be held by 4 jobs, 1 request:" in running
    idle = explain.account(told(described={**DESCRIBED, "state": "running"}, in_flight={"holders": [], "omitted": 0}))
    assert "  its stop would be held by nothing" in idle
    thread = {"kind": "thread", "label": "main thread", "age": 3, "owner": "main thread", "where": "/srv/app.py:9:flush"}
    leaving = explain.account(told(described={**DESCRIBED, "state": "stopped", "exit_left": 80.0}, in_flight={"holders": [thread]}))
    assert "  all jobs have ended; on its way out, for 4 min, begun by SIGTERM; it says: busy" in leaving
    assert leaving[2:5] == ["  its exit is held by:", '    thread "main thread", 3 s', "        /srv/app.py:9:flush"]
    assert "    exit_timeout: ends the process on its way out after 90 s, in 80 s" in leaving


def test_unknown_fields_are_left_alone() -> None:
    """What a newer service adds changes nothing of what is shown."""
    newer = {**DESCRIBED, "mood": "good", "limits": {**DESCRIBED["limits"], "patience": 3}}
    more = {**IN_FLIGHT, "later": [1], "holders": [{**one, "colour": "red"} for one in IN_FLIGHT["holders"]]}
    assert explain.account(told(), now=1.0) == explain.account(told(described=newer, in_flight=more), now=1.0)
    assert show.table([told()]) == show.table([told(described=newer, in_flight=more)])


def test_colours() -> None:
    """Colours change nothing but colours, and what is cut ends them."""
    lines = show.table([told()], colours.coloured)
    assert any("\x1b[" in line for line in lines)
    assert show.table([told()]) == [line.rstrip() for line in map(_without_colours, lines)]
    cut = ps.fitting(lines, 10, 100)
    assert [len(_without_colours(line)) for line in cut] == [10] * 4 + [10]
    assert all(line.endswith("\x1b[0m") for line in cut if "\x1b" in line)


def _without_colours(line: str) -> str:
    return "".join(part.partition("m")[2] if number else part for number, part in enumerate(line.split("\x1b[")))


def test_fitting() -> None:
    """More lines than a terminal has are counted."""
    assert ps.fitting(["a", "b", "c"], 80, 4) == ["a", "b", "c"]
    assert ps.fitting([str(number) for number in range(9)], 80, 5) == ["0", "1", "2", "and 6 lines more"]


# -- asking


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that --user looks into."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def service(folder: Path, **environ: str) -> Iterator[Service]:
    """Run a service with a control socket in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Service(signals=False, environ={"RUNTIME_DIRECTORY": str(folder), **environ}, exit=False)) as made:
        made.arm()
        made.ready()
        yield made


@pytest.fixture
def answering(root: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that plays a service: each method is answered with given bytes."""
    with contextlib.ExitStack() as stack:

        def answering(answers: Mapping[str, bytes], name: str = "played") -> Path:
            (root / name).mkdir()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(root / name / control.NAME))
            listener.listen()
            thread = threading.Thread(target=_play, args=(listener, answers))
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return root / name / control.NAME

        yield answering


def _play(listener: socket.socket, answers: Mapping[str, bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                while request := connection.recv(65536):
                    method = json.loads(request[:-1])["method"].rpartition(".")[2]
                    if method not in answers:
                        break
                    connection.sendall(answers[method])


def test_all_services(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a unit: all with a socket, a folder deeper too, each once where one is a link to the other; nothing else is touched."""
    (root / "private").mkdir()
    (root / "nothing").mkdir()
    (root / "file").mkdir()
    (root / "file" / control.NAME).write_text("")
    with service(root / "private" / "b@10"), service(root / "b@9") as second, second.track("export"):
        (root / "b@10").symlink_to(root / "private" / "b@10")
        assert cli.main(["ps", "--user"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["UNIT", "b@9", "job", "b@10"]
    assert '"export"' in lines[2]


def test_no_service(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is none it is said, and is no error."""
    assert cli.main(["ps", "--user"]) == 0
    assert "no service has a control socket under $XDG_RUNTIME_DIR" in capsys.readouterr().err


def test_no_runtime_dir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--user without a session is 3, and says what is missing."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert cli.main(["ps", "--user"]) == 3
    assert "$XDG_RUNTIME_DIR, which is not set" in capsys.readouterr().err


def test_workers_come_behind(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker's socket is asked too; one whose worker was killed is passed over."""
    with service(root / "web"), service(root / "web", SYSTEMD_EXEC_PID="1") as worker, worker.track("GET /"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(root / "web" / f"{control.NAME}.1"))
        assert cli.main(["ps", "--user"]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["web", str(os.getpid()), "running"], ["web", str(os.getpid()), "process"], ["job", '"GET', '/"']]


def test_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json, the answers as they came."""
    with service(root / "web") as made, made.track("export"):
        assert cli.main(["ps", "--user", "--json"]) == 0
        (plain,) = json.loads(capsys.readouterr().out)["services"]
        assert cli.main(["why", str(root / "web" / control.NAME), "--json"]) == 0
        (stacks,) = json.loads(capsys.readouterr().out)["services"]
    assert (plain["problem"], plain["socket"]) == (None, str(root / "web" / control.NAME))
    assert plain["described"]["state"] == "running"
    assert plain["in_flight"]["holders"][0]["label"] == "export"
    assert stacks["in_flight"]["holders"][0]["stack"]


def test_why_by_path(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`why` shows the stack of what holds, in mid-drain."""
    with service(root / "web") as made, made.track("export"):
        made.begin("the test")
        assert cli.main(["why", str(root / "web" / control.NAME)]) == 0
    text = capsys.readouterr().out
    assert "draining, for 0 s, begun by the test" in text
    assert 'job "export", 0 s, thread MainThread' in text
    assert ":test_why_by_path\n" in text


def test_older_service(answering: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A service of an older release is said to be one, and what it knows."""
    old = varlink.write_reply({"method": "x"}, NOT_FOUND)
    description = varlink.write_reply({"description": OLD_DESCRIPTION})
    answering({"Describe": old, "InFlight": old, "GetInterfaceDescription": description})
    assert cli.main(["ps", "--user"]) == 1
    assert "the service runs an older release: only Reload is known" in capsys.readouterr().out


def test_half_older_service(answering: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What one method tells is shown where the other is not known."""
    path = answering({"Describe": varlink.write_reply(DESCRIBED), "InFlight": varlink.write_reply({"method": "InFlight"}, NOT_FOUND)})
    assert cli.main(["why", str(path)]) == 1
    text = capsys.readouterr().out
    assert "draining, for 4 min" in text
    assert "an older release: only nothing is known" in text


def test_newer_caller_of_reload(root: Path, monkeypatch: pytest.MonkeyPatch, answering: Callable[..., Path]) -> None:
    """An older caller, which knows nothing of what an answer has more, takes it for what it is."""
    path = answering({"Reload": b'{"parameters": {"took": 3}, "continues": false, "mood": "good"}\0'})
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(path.parent))
    assert cli.main(["reload", "--pid", str(os.getpid())]) == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"nonsense\0", "gives no answer: varlink: no JSON"),
        (b"[]\0", "gives no answer"),
        (b'{"error": "x.y.Busy", "parameters": {"reason": "so\\u001b[31m busy"}}\0', "answers Busy: so [31m busy"),
        (b" " * 70000, "gives no answer: an answer of more than 65536 bytes"),
        (b'{"parameters"', "does not answer within"),
    ],
)
def test_who_answers_nonsense(
    answering: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    """Who answers nonsense, too much or not at all is 1, is named, and keeps nobody from seeing the others; its text cannot draw."""
    monkeypatch.setattr(look, "WITHIN", 0.3)
    path = answering({"Describe": answer})
    with service(path.parents[1] / "other"):
        assert cli.main(["ps", "--user"]) == 1
    text = capsys.readouterr().out
    assert said in text
    assert "\x1b" not in text
    assert "running" in text


def test_who_hangs_up(answering: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Who hangs up at once is named."""
    answering({})
    assert cli.main(["ps", "--user"]) == 1
    assert "gives no answer: the service hung up" in capsys.readouterr().out


def test_who_does_not_listen(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket that nobody listens at any more is no service; but of a unit that runs it is named."""
    (root / "web").mkdir()
    path = root / "web" / control.NAME
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert cli.main(["ps", "--user"]) == 0
    assert cli.main(["why", str(path)]) == 3
    assert f"{path}: nothing of it runs any more" in capsys.readouterr().err
    systemctl(root, monkeypatch, block("web.service"))
    assert cli.main(["ps", "--user", "web"]) == 1
    assert "does not listen at" in capsys.readouterr().out


def test_who_ends_meanwhile(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that ends while it is asked is left out."""
    (root / "web").mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(root / "web" / control.NAME))
        listener.listen()

        def end() -> None:
            connection, _ = listener.accept()
            listener.close()
            connection.close()

        thread = threading.Thread(target=end)
        thread.start()
        assert cli.main(["ps", "--user"]) == 0
        thread.join()
    assert capsys.readouterr().out == ""


# -- by unit


def systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    """Put a systemctl first that shows something."""
    path = folder / "bin" / "systemctl"
    path.parent.mkdir()
    (folder / "shown").write_text(shown)
    path.write_text(f'#!/bin/sh\necho "$@" >>{folder}/asked\ncat {folder}/shown\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def block(unit: str, **values: object) -> str:
    """Return what `systemctl show` shows of a unit."""
    usual = {"LoadState": "loaded", "ActiveState": "active", "MainPID": 42, "RuntimeDirectory": unit.removesuffix(".service"), "TimeoutStopUSec": "2s"}
    return "".join(f"{key}={value}\n" for key, value in {"Id": unit, **usual, **values}.items())


def test_generations_of_an_anchor(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An anchor stands for its generations, in their order; the anchor itself, and those that have ended, have no row."""
    blocks = [
        block("shop.service", MainPID=0, RuntimeDirectory=""),
        block("shop@10.service"),
        block("shop@9.service", ActiveState="deactivating", StateChangeTimestampMonotonic=int(time.monotonic() * 1e6)),
        block("shop@8.service", ActiveState="inactive", MainPID=0),
        block("shop@7.service", RuntimeDirectory="", StatusText="no\x1b socket"),
    ]
    systemctl(root, monkeypatch, "\n".join(blocks))
    with service(root / "shop@9") as old, service(root / "shop@10"), old.track("export"):
        old.begin("test")
        assert cli.main(["ps", "--user", "shop"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert cli.main(["why", "--user", "shop"]) == 1
        text = capsys.readouterr().out
    assert [line.split()[0] for line in lines] == ["UNIT", "shop@7.service", "has", "shop@9.service", "job", "shop@10.service"]
    assert "no  socket" in lines[1]
    assert "RuntimeDirectory=%N in its unit gives it one" in lines[2]
    assert "TimeoutStopSec=2s passes in " in text
    assert "shop.service shop@*.service" in (root / "asked").read_text()


def test_an_instance(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance stands for itself."""
    systemctl(root, monkeypatch, block("shop@9.service"))
    with service(root / "shop@9"):
        (found,) = sockets.of("shop@9", user=True)
    assert found.name == "shop@9.service"
    assert "shop@9.service\n" in (root / "asked").read_text()
    assert "*" not in (root / "asked").read_text()


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (block("shop.service", LoadState="not-found"), "shop.service: systemctl says not-found"),
        (block("shop.service", ActiveState="inactive", MainPID=0), "shop.service is inactive, and nothing of it runs"),
        ("", "systemctl says nothing about it"),
    ],
)
def test_nothing_runs(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: str, said: str) -> None:
    """Of a unit that is not there, or does not run, 3 and what systemd says."""
    systemctl(root, monkeypatch, shown)
    for verb in ("ps", "why"):
        assert cli.main([verb, "--user", "shop"]) == 3
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ps", "why"])
def test_no_such_socket(root: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """A path that is no control socket is 3."""
    assert cli.main([verb, str(root / "nothing")]) == 3
    assert "is no control socket" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["ps", ""],
        ["ps", "a/b"],
        ["ps", "web.socket"],
        ["ps", "a\x1bb"],
        ["ps", "--watch", "--json"],
        ["ps", "--watch"],  # stdout is no terminal here
        ["why"],
        ["why", "-x"],
    ],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is 2, and says what would be right."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ps", "why"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help shows an example and the exit statuses."""
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"# requiem-systemd {verb}" in text
    assert all(f"\n  {status}  " in text for status in range(4))


@pytest.mark.parametrize(
    ("terminal", "environ", "expected"),
    [
        (True, {}, colours.coloured),
        (True, {"NO_COLOR": "1"}, colours.plain),
        (True, {"NO_COLOR": ""}, colours.coloured),
        (True, {"TERM": "dumb"}, colours.plain),
        (False, {}, colours.plain),
    ],
)
def test_when_to_colour(monkeypatch: pytest.MonkeyPatch, terminal: bool, environ: dict[str, str], expected: object) -> None:  # noqa: FBT001 - pytest's
    """Colours are for terminals that take them, unless NO_COLOR is set and not empty."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert expected is colours.paint(sys.stdout)


def test_example_in_help_is_true() -> None:
    """What `ps --help` shows is what it draws."""
    job = {**IN_FLIGHT["holders"][0]}
    request = {**IN_FLIGHT["holders"][1], "stalled": False}
    first = told(in_flight={"holders": [job, request], "omitted": 0, "counts": {"job": 1, "request": 1}})
    second = told(unit="shop@3.service", described={**DESCRIBED, "pid": 900, "state": "running"}, in_flight={"holders": [], "counts": {}})
    lines = "\n".join(f"    {line}" for line in show.table([first, second]))
    assert lines in ps._EPILOG
