"""The control socket: who is answered, with what, and that nobody holds the engine up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import control, varlink
from requiem_systemd.errors import ReloadError
from requiem_systemd.service import Service
from tests.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator

RELOAD = f"{varlink.SERVICE}.Reload"
INFO = f"{varlink.STANDARD}.GetInfo"


class Reloads:
    """A reload handler that waits to be let on, and may fail."""

    def __init__(self) -> None:
        """Begin without a reload."""
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.error: BaseException | None = None

    def __call__(self) -> None:
        """Reload."""
        self.begun.release()
        assert self.go_on.acquire(timeout=10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def reloads() -> Reloads:
    """Return a handler."""
    return Reloads()


@pytest.fixture
def service(tmp_path: Path, reloads: Reloads) -> Iterator[Service]:
    """Return an armed service with a place for its socket."""
    service = Service(signals=False, environ={"RUNTIME_DIRECTORY": f"{tmp_path}:/nowhere"}, exit=False)
    service.on("reload", reloads)
    service.arm()
    service.ready()  # the engine has made its first turn
    yield service
    for _ in range(100):
        reloads.go_on.release()
    service.close()


@pytest.fixture
def path(service: Service, tmp_path: Path) -> Path:
    """Return the socket of the service."""
    return tmp_path / control.NAME


@pytest.fixture
def caller(path: Path) -> Iterator[Caller]:
    """Return a client."""
    caller = Caller(path)
    yield caller
    caller.sock.close()


def test_mode(path: Path) -> None:
    """Nobody else can connect."""
    assert path.stat().st_mode == 0o140600


def test_gone_with_the_service(service: Service, path: Path) -> None:
    """The socket is unlinked at the end."""
    service.close()
    assert not path.exists()


def test_info(caller: Caller) -> None:
    """GetInfo names version and interfaces."""
    parameters = caller.ask(INFO)["parameters"]
    assert parameters["version"] == varlink.VERSION
    assert parameters["interfaces"] == [varlink.STANDARD, varlink.SERVICE]


def test_version_is_the_package_s() -> None:
    """What GetInfo says is what is released."""
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert declared["project"]["version"] == varlink.VERSION


@pytest.mark.parametrize("interface", [varlink.STANDARD, varlink.SERVICE])
def test_description(caller: Caller, interface: str) -> None:
    """An interface can be introspected, under a name that Varlink allows."""
    answer = caller.ask(f"{varlink.STANDARD}.GetInterfaceDescription", parameters={"interface": interface})
    assert f"interface {interface}\n" in answer["parameters"]["description"]
    assert re.fullmatch(r"[A-Za-z](-*[A-Za-z0-9])*(\.[A-Za-z0-9](-*[A-Za-z0-9])*)+", interface)


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("org.example.Nothing", {}, "InterfaceNotFound"),
        ("nothing", {}, "InterfaceNotFound"),
        (f"{varlink.SERVICE}.Begin", {}, "MethodNotFound"),
        (f"{varlink.STANDARD}.GetInterfaceDescription", {}, "InvalidParameter"),
        (
            f"{varlink.STANDARD}.GetInterfaceDescription",
            {"interface": "org.example.Nothing"},
            "InterfaceNotFound",
        ),
    ],
)
def test_unknown(caller: Caller, method: str, parameters: dict[str, str], error: str) -> None:
    """What there is not is an error, and the connection goes on."""
    assert f"{varlink.STANDARD}.{error}" == caller.ask(method, parameters=parameters)["error"]
    assert "parameters" in caller.ask(INFO)


def test_reload_waits(caller: Caller, reloads: Reloads) -> None:
    """Reload answers when the handlers have ended, and not before."""
    caller.say(RELOAD)
    assert reloads.begun.acquire(timeout=10)
    caller.sock.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        caller.sock.recv(1)
    caller.sock.settimeout(10)
    reloads.go_on.release()
    assert caller.hear() == {"parameters": {}}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ReloadError("line 3: no colon"), "line 3: no colon"),
        (OSError(2, "gone"), "FileNotFoundError: [Errno 2] gone"),
    ],
)
def test_reload_fails(caller: Caller, reloads: Reloads, error: BaseException, reason: str) -> None:
    """A handler that raises is an error with its reason."""
    reloads.error = error
    reloads.go_on.release()
    expected = {"error": varlink.RELOAD_FAILED, "parameters": {"reason": reason, "draining": False}}
    assert expected == caller.ask(RELOAD)


def test_reload_fails_without_words(caller: Caller, reloads: Reloads) -> None:
    """A handler whose error cannot even be shown ends the reload all the same, and the next is run."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    reloads.error = MuteError()
    reloads.go_on.release()
    assert "MuteError" in caller.ask(RELOAD)["parameters"]["reason"]
    reloads.error = None
    reloads.go_on.release()
    assert caller.ask(RELOAD) == {"parameters": {}}


def test_queued_reload_is_a_reload_of_its_own(path: Path, caller: Caller, reloads: Reloads) -> None:
    """Who asks while a reload runs gets the verdict of the next: what changed meanwhile is seen."""
    second = Caller(path)
    caller.say(RELOAD)
    assert reloads.begun.acquire(timeout=10)
    second.say(RELOAD)
    caller.say(INFO)
    third = Caller(path)
    third.ask(INFO)  # the loop has seen them all
    reloads.go_on.release()
    assert caller.hear() == {"parameters": {}}
    assert reloads.begun.acquire(timeout=10)
    reloads.error = ReloadError("second")
    reloads.go_on.release()
    assert second.hear()["parameters"]["reason"] == "second"
    second.sock.close()
    third.sock.close()


def test_answers_in_order(caller: Caller, reloads: Reloads) -> None:
    """Requests sent at once are answered one after another."""
    caller.say(RELOAD)
    caller.say(INFO)
    caller.say(RELOAD, oneway=True)
    caller.say(INFO)
    reloads.go_on.release(2)
    assert caller.hear()["parameters"] == {}
    assert "version" in caller.hear()["parameters"]
    assert "version" in caller.hear()["parameters"]


def test_drain_answers_who_waits(path: Path, service: Service, caller: Caller, reloads: Reloads) -> None:
    """A drain that cuts in answers the reload that runs and the one that is queued, at once."""
    queued = Caller(path)
    caller.say(RELOAD)
    assert reloads.begun.acquire(timeout=10)
    queued.say(RELOAD)
    third = Caller(path)
    third.ask(INFO)
    service.begin("test")
    assert caller.hear()["parameters"]["draining"]
    assert queued.hear()["parameters"]["draining"]
    queued.sock.close()
    third.sock.close()


def test_drain_refuses(service: Service, caller: Caller) -> None:
    """In mid-drain GetInfo answers, and Reload says why not; a row of them too."""
    with service.track("job"):
        service.begin("test")
        assert "version" in caller.ask(INFO)["parameters"]
        for _ in range(150):
            caller.say(RELOAD)
        for _ in range(150):
            assert caller.hear()["error"] == varlink.RELOAD_FAILED


@pytest.mark.parametrize(
    "data",
    [
        b"no json\0",
        b"[]\0",
        b"{}\0",
        b'{"method": 3}\0',
        b'{"method": "a.b", "parameters": [1]}\0',
        b"[" * 60000 + b"\0",
        b"\xff\0",
        b"9" * 60000 + b"\0",
    ],
)
def test_nonsense_hangs_up(path: Path, caller: Caller, data: bytes) -> None:
    """Who sends no request is hung up on; others are served."""
    caller.sock.sendall(data)
    assert caller.hear() == {}
    other = Caller(path)
    assert "parameters" in other.ask(INFO)
    other.sock.close()


def test_endless_request_hangs_up(path: Path, caller: Caller) -> None:
    """A request without end is cut off at 64 KiB."""
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        caller.sock.sendall(b" " * 10_000_000)
    other = Caller(path)
    assert "parameters" in other.ask(INFO)
    other.sock.close()


def test_who_does_not_read(path: Path, caller: Caller) -> None:
    """Who asks and does not read is not read on; the others are served, and no answer is lost."""
    wanted = {"interface": varlink.STANDARD}
    caller.sock.settimeout(0.0)
    asked = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            caller.say(f"{varlink.STANDARD}.GetInterfaceDescription", parameters=wanted)
            asked += 1
    other = Caller(path)
    assert "parameters" in other.ask(INFO)
    other.sock.close()
    caller.sock.settimeout(10)
    assert all("description" in caller.hear()["parameters"] for _ in range(asked))


def test_many_idle_clients(path: Path, caller: Caller) -> None:
    """Of more clients than there is room for, the idle one that came first makes room."""
    others = [Caller(path) for _ in range(control.CLIENTS_MAX)]
    assert "parameters" in others[-1].ask(INFO)
    assert caller.hear() == {}
    for other in others:
        other.sock.close()


def has_read_all(service: Service) -> None:
    """Wait until the service has read what was said to it."""
    for _ in range(2):  # one turn may be on its way; the next has seen it all
        service.engine.loop.call(lambda: None)


def test_waiting_clients_keep_their_place(service: Service, path: Path, reloads: Reloads) -> None:
    """Who waits for a reload is not dropped for a newcomer, who is."""
    waiting = [Caller(path) for _ in range(control.CLIENTS_MAX)]
    for each in waiting:
        each.ask(INFO)
        each.say(RELOAD)
    has_read_all(service)
    newcomer = Caller(path)
    assert newcomer.hear() == {}
    reloads.go_on.release(10)
    assert [{"parameters": {}}] * len(waiting) == [each.hear() for each in waiting]
    for each in (*waiting, newcomer):
        each.sock.close()


def test_who_asks_on_makes_room(service: Service, path: Path, reloads: Reloads) -> None:
    """Where all wait, one that has asked on before it was answered is dropped for a newcomer, who is served."""
    waiting = [Caller(path) for _ in range(control.CLIENTS_MAX)]
    for each in waiting:
        each.ask(INFO)
        each.say(RELOAD)
    greedy = waiting[3]
    greedy.say(INFO)
    has_read_all(service)
    newcomer = Caller(path)
    assert "parameters" in newcomer.ask(INFO)
    assert greedy.hear() == {}
    reloads.go_on.release(100)
    waiting.remove(greedy)
    assert [{"parameters": {}}] * len(waiting) == [each.hear() for each in waiting]
    for each in (*waiting, greedy, newcomer):
        each.sock.close()


def test_half_closed(caller: Caller, reloads: Reloads) -> None:
    """Who has said all, and only listens, is answered, then hung up on."""
    caller.say(RELOAD)
    caller.sock.shutdown(socket.SHUT_WR)
    reloads.go_on.release()
    assert caller.hear() == {"parameters": {}}
    assert caller.hear() == {}


def test_gone_before_the_verdict(path: Path, caller: Caller, reloads: Reloads) -> None:
    """A caller that does not wait for its answer harms nobody."""
    caller.say(RELOAD)
    assert reloads.begun.acquire(timeout=10)
    caller.sock.close()
    reloads.go_on.release()
    other = Caller(path)
    assert "parameters" in other.ask(INFO)
    other.sock.close()


def arm(folder: Path, **environ: str) -> Service:
    """Return a service that was armed with a folder for its socket."""
    service = Service(signals=False, environ={"RUNTIME_DIRECTORY": str(folder), **environ}, exit=False).arm()
    service.ready()
    return service


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed process left, and nobody answers at, gives way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / control.NAME))
    service = arm(tmp_path)
    caller = Caller(tmp_path / control.NAME)
    assert "parameters" in caller.ask(INFO)
    caller.sock.close()
    service.close()


def test_living_socket_is_kept(service: Service, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A socket that somebody serves stays theirs; the newcomer goes on without one, and says so once."""
    arm(path.parent).close()
    assert len([record for record in caplog.records if "no control socket" in record.message]) == 1
    caller = Caller(path)
    assert "parameters" in caller.ask(INFO)
    caller.sock.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_foreign_socket_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A socket of another user is not unlinked, stale or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(tmp_path / control.NAME))
    os.chown(tmp_path / control.NAME, 12345, 12345)
    arm(tmp_path).close()
    assert (tmp_path / control.NAME).stat().st_uid == 12345
    assert "no control socket" in caplog.text


def test_file_is_kept(tmp_path: Path) -> None:
    """A file that is no socket is not unlinked."""
    (tmp_path / control.NAME).write_text("mine")
    arm(tmp_path).close()
    assert (tmp_path / control.NAME).read_text() == "mine"


def test_successor_s_socket_is_kept(tmp_path: Path) -> None:
    """What has been bound at the path meanwhile is not unlinked at our end."""
    service = arm(tmp_path)
    (tmp_path / control.NAME).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:
        successor.bind(str(tmp_path / control.NAME))
        service.close()
    assert (tmp_path / control.NAME).exists()


def test_missing_folder_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service that cannot bind works without."""
    arm(tmp_path / "nowhere").close()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_workers_have_their_own(tmp_path: Path) -> None:
    """A process that is not the unit's main one tells of itself, and reloads nothing: that would be no verdict."""
    service = arm(tmp_path, SYSTEMD_EXEC_PID="1")
    (path,) = tmp_path.iterdir()
    assert path.name == f"{control.NAME}.{os.getpid()}"
    with contextlib.closing(Caller(path)) as caller:
        assert caller.ask(f"{varlink.SERVICE}.Describe")["parameters"]["role"] == "process"
        assert caller.ask(RELOAD)["error"] == f"{varlink.STANDARD}.MethodNotImplemented"
    service.close()
    assert list(tmp_path.iterdir()) == []


def test_killed_workers_leave_nothing(tmp_path: Path) -> None:
    """What workers that were killed left is swept when the next process comes; a living one's stays, and files that are no sockets."""
    gone = subprocess.run((sys.executable, "-c", "import os; print(os.getpid())"), check=True, capture_output=True, text=True)
    names = (f"{control.NAME}.{gone.stdout.strip()}", f"{control.NAME}.{os.getppid()}", f"{control.NAME}.d")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(tmp_path / name))
    (tmp_path / f"{control.NAME}.4000000000").write_text("no socket")
    arm(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], f"{control.NAME}.4000000000"}


def test_fork_leaves_the_socket(service: Service, path: Path, caller: Caller) -> None:
    """A fork's child, which begins to close what it inherited, neither unlinks nor answers."""
    child = os.fork()
    if not child:
        os._exit(0 if path.exists() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "parameters" in caller.ask(INFO)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_users_are_hung_up_on(tmp_path: Path) -> None:
    """Who is neither root nor the service's user is not answered, whatever the mode of the socket."""
    service = arm(tmp_path)
    path = tmp_path / control.NAME
    path.chmod(0o666)
    tmp_path.chmod(0o711)
    script = f"""
import os, socket
os.setresuid(12345, 12345, 12345)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect({control.NAME!r})
    try:
        sock.sendall({json.dumps({"method": INFO}).encode()!r} + bytes(1))
        answer = sock.recv(1000)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""
raise SystemExit(bool(answer))
"""
    done = subprocess.run((sys.executable, "-c", script), check=False, cwd=tmp_path)
    assert done.returncode == 0
    service.close()
