"""`requiem-systemd reload`: its exit status is the verdict, and stderr says what to do."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import cli, control
from requiem_systemd.errors import ReloadError
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ME = ["--pid", str(os.getpid())]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the RuntimeDirectory= of the unit that the test plays."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return tmp_path


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    """Return a service with a control socket, in this process."""
    with Service(signals=False, environ={"RUNTIME_DIRECTORY": str(folder)}, exit=False) as service:
        service.ready()
        yield service


@pytest.fixture
def answering(folder: Path) -> Iterator[Callable[[bytes], None]]:
    """Return a function that has one connection answered by given bytes, then closed."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(folder / control.NAME))
        listener.listen()

        def serve(answer: bytes) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(answer)

        def answering(answer: bytes) -> None:
            thread = threading.Thread(target=serve, args=(answer,))
            thread.start()
            stack.callback(thread.join)

        yield answering


def test_success(service: Service) -> None:
    """A reload that went well is 0, when it has ended."""
    done = []
    service.on("reload", lambda: done.append(1))
    assert cli.main(["reload", *ME]) == 0
    assert done == [1]


def test_nothing_to_reload(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A service without a handler has nothing that could fail: 0, and stderr says that nothing has changed."""
    assert cli.main(["reload", *ME]) == 0
    assert capsys.readouterr().err.startswith("requiem-systemd reload: nothing was reloaded: the service has no handler for it")
    service.on("reload", list)
    assert cli.main(["reload", *ME]) == 0
    assert capsys.readouterr().err == ""


def test_failure(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A reload that failed is 1, and the reason is on stderr."""

    @service.on("reload")
    def fail() -> None:
        msg = "line 3: no colon"
        raise ReloadError(msg)

    assert cli.main(["reload", *ME]) == 1
    assert capsys.readouterr().err == "requiem-systemd reload: line 3: no colon\n"


def test_draining(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A service that drains cannot be reloaded: 1."""
    service.begin("test")
    assert cli.main(["reload", *ME]) == 1
    assert "draining" in capsys.readouterr().err


def test_timeout(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """No verdict in time is 1, and says that the reload goes on."""
    go_on = threading.Event()
    service.on("reload", lambda: go_on.wait(10))
    assert cli.main(["reload", *ME, "--timeout", "10ms"]) == 1
    assert "goes on" in capsys.readouterr().err
    go_on.set()


def test_no_socket(capsys: pytest.CaptureFixture[str]) -> None:
    """A service without a control socket is 3, and the line to add is shown."""
    assert cli.main(["reload", *ME]) == 3
    assert "    RuntimeDirectory=%N\n" in capsys.readouterr().err


def test_no_such_process(capsys: pytest.CaptureFixture[str]) -> None:
    """A process that is not there is 3."""
    assert cli.main(["reload", "--pid", str(2**31 - 1)]) == 3
    assert "cannot be seen" in capsys.readouterr().err


def test_nobody_listens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket that a killed service left is 3."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(folder / control.NAME))
    assert cli.main(["reload", *ME]) == 3
    assert "refused" in capsys.readouterr().err


def test_other_process(service: Service) -> None:
    """The socket of another process than the one that was named is told nothing."""
    done = []
    service.on("reload", lambda: done.append(1))
    assert cli.main(["reload", "--pid", str(os.getppid())]) == 3
    assert done == []


def test_environment_of_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From outside of the unit the socket is found by the process's own environment."""
    script = "import requiem_systemd as r, sys; r.initialize(); r.ready(); print('up', flush=True); r.wait()"
    with subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        monkeypatch.delenv("RUNTIME_DIRECTORY")
        assert cli.main(["reload", "--pid", str(process.pid)]) == 0
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "hung up"),
        (b"nonsense\0", "no JSON"),
        (b"[]\0", "an object"),
        (b" " * 100_000, "an answer of more than"),
        (b'{"error": "org.varlink.service.MethodNotFound"}\0', "MethodNotFound"),
        (
            b'{"error": "io.requiem-systemd.Service.ReloadFailed", "parameters": {"reason": "\\u001b[31m"}}\0',
            " [31m",
        ),
    ],
)
def test_strange_answers(
    answering: Callable[[bytes], None], capsys: pytest.CaptureFixture[str], answer: bytes, said: str
) -> None:
    """A service that dies, or says what nobody understands, is no success; what it says cannot reach the terminal raw."""
    answering(answer)
    assert cli.main(["reload", *ME]) == 1
    text = capsys.readouterr().err
    assert said in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["reload"],
        ["nothing"],
        ["reload", "a", *ME],
        ["reload", "--pid", "x"],
        ["reload", "a", "--timeout", "soon"],
    ],
)
def test_usage(words: list[str]) -> None:
    """What cannot be understood is 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


def test_no_systemctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit's name needs systemctl: without it 3, and said."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["reload", "web"]) == 3
    assert "systemctl cannot be run" in capsys.readouterr().err


def test_help_has_an_example() -> None:
    """`--help` shows the lines for a unit, run as a module too."""
    done = subprocess.run(
        (sys.executable, "-m", "requiem_systemd", "reload", "--help"),
        check=True,
        capture_output=True,
        text=True,
    )
    assert "ExecReload=requiem-systemd reload --pid $MAINPID" in done.stdout
