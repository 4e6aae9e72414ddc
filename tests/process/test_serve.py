"""`python -m requiem_systemd serve`: applications that know nothing of the library, in one process and in several."""

from __future__ import annotations

import http.client
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.patience import PATIENCE
from tests.process.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from requiem_systemd.testing import FakeManager

ASGI = """
import asyncio, os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        begun()
        await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text()))]})
    await send({"type": "http.response.body", "body": text()})
"""
WSGI = """
import os, time
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        begun()
        time.sleep(1)
    start_response("200 OK", [("Content-Length", str(len(text())))])
    return [text()]
"""
TEXT = """
def begun():
    open(os.environ["BEGUN"], "wb").close()

def text():
    return b"VERSION %d" % os.getpid()
"""


class Served:
    """One application under `serve`."""

    def __init__(self, manager: FakeManager, folder: Path, code: str) -> None:
        """Store."""
        self.manager = manager
        self._folder = folder
        self._code = code
        self.port = 0
        self.write("old")

    def write(self, version: str) -> None:
        """Write the application's code."""
        (self._folder / "app.py").write_text((self._code + TEXT).replace("VERSION", version))

    def start(self, *options: str) -> None:
        """Run it on a listener that is passed, and wait until it is up."""
        self.port = self.manager.listen("http").getsockname()[1]
        command = [sys.executable, "-B", "-m", "requiem_systemd", "serve", "app", "--app-dir", str(self._folder), *options]
        self.manager.spawn(command, env={"PYTHONPATH": ROOT, "BEGUN": str(self._folder / "begun")})
        self.manager.wait_for("running")

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask_slowly(self) -> http.client.HTTPConnection:
        """Send a request that takes a second, and come back when the application has it."""
        os.mkfifo(self._folder / "begun")
        connection = self.connect()
        connection.request("GET", "/slow")
        (self._folder / "begun").read_bytes()  # it opens when the other side does
        return connection

    def ask(self, path: str = "/") -> tuple[str, int]:
        """Ask; return the version and the process that answered."""
        connection = self.connect()
        connection.request("GET", path)
        version, pid = connection.getresponse().read().split()
        connection.close()
        return version.decode(), int(pid)


@pytest.fixture(params=[ASGI, WSGI], ids=["asgi", "wsgi"])
def served(manager: FakeManager, tmp_path: Path, request: pytest.FixtureRequest) -> Served:
    """Return an application of each kind."""
    pytest.importorskip("uvicorn" if request.param is ASGI else "waitress")
    return Served(manager, tmp_path, request.param)


def test_alone(served: Served) -> None:
    """A request in flight is answered in the stop, and so is one on a connection that is kept; the unit ends well."""
    served.start()
    kept = served.connect()
    kept.request("GET", "/")
    assert kept.getresponse().read().startswith(b"old ")
    busy = served.ask_slowly()
    served.manager.stop()
    served.manager.wait_message("STOPPING")
    kept.request("GET", "/")
    last = kept.getresponse()
    assert last.read().startswith(b"old ")
    assert last.getheader("connection") == "close"
    answer = busy.getresponse()
    assert answer.read().startswith(b"old ")
    kept.close()
    busy.close()
    served.manager.wait_for("dead")
    assert served.manager.result == "success"


def test_names_no_server(served: Served) -> None:
    """An answer does not say what has made it."""
    served.start()
    connection = served.connect()
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.read().startswith(b"old ")
    assert answer.getheader("date")
    assert answer.getheader("server") is None
    connection.close()


def test_workers_are_rolled(served: Served) -> None:
    """A reload brings the code as it is then; the request in flight is answered by the old."""
    served.start("--workers", "2")
    old = {served.ask() for _ in range(20)}
    assert {version for version, _ in old} == {"old"}
    busy = served.ask_slowly()
    served.write("new")
    served.manager.reload()
    served.manager.wait_for(lambda: served.manager.sent.count("READY") == 2)
    assert {served.ask()[0] for _ in range(20)} == {"new"}
    assert busy.getresponse().read().startswith(b"old ")
    busy.close()
    served.manager.stop()
    served.manager.wait_for("dead")
    assert served.manager.result == "success"
