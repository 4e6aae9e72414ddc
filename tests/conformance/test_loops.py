"""Servers in event loops that stop by themselves: the jobs are held all the same, and the framework's own end comes once, after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import get, refused
from tests.conformance.conftest import TIMEOUT_STOP, Server
from tests.conformance.subjects import Subject
from tests.conformance.test_http import ALARMS
from tests.patience import PatientManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUBJECTS: Final = (
    Subject("aiohttp", ("{python}", "aiohttp_exits.py", "{port}")),
    Subject("aiohttp without signals", ("{python}", "aiohttp_exits.py", "{port}"), env={"OWN_SIGNALS": "1"}),
    Subject("Twisted", ("{python}", "twisted_stops.py", "{port}")),
)


AUTOBAHN: Final = Subject("Twisted", ("{python}", "twisted_autobahn.py", "{port}"), env={"REQUIEM_REQUEST_TIMEOUT": "1000s"})


@pytest.fixture(params=SUBJECTS, ids=str)
def running(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator[Server]:
    """Return a subject that runs; it ends with the test."""
    with PatientManager(timeout_stop=TIMEOUT_STOP) as manager:
        server = Server(request.param, manager, tmp_path, free_port)
        try:
            yield server.start()
        finally:
            server.kill()


@pytest.mark.parametrize("running", [AUTOBAHN], indirect=True, ids=str)
def test_websocket_ends_with_its_connection(running: Server) -> None:
    """A WebSocket ends with its connection, before the drain and in it; also one that was taken from the site's protocol, which does not hear of that."""
    pytest.importorskip("autobahn")
    from websockets.sync.client import connect  # noqa: PLC0415 - not in what Debian's build has

    url = f"ws://127.0.0.1:{running.port}/"
    with connect(url, proxy=None) as stays:
        stays.recv()
        with connect(url, proxy=None) as goes:
            goes.recv()
        running.wait_recorded("closed")
        running.stop()
    assert running.ended() == ["closed", "closed"]


@pytest.mark.parametrize("way", ["exit", "begin"])
def test_stop_from_inside_is_held(running: Server, way: str) -> None:
    """Who raises GracefulExit or stops the reactor begins the drain, as begin() does; port closed, then job, then cleanup, then the rest."""
    get(running.port, f"/{way}")
    running.wait_for(lambda: refused(running.port), poll=True)
    assert "ended job" not in running.recorded
    assert running.ended() == ["begun job", "ended job", "cleaned", "behind run_app"]
    assert not [word for word in ALARMS if word in running.output], running.output


def test_several_signals_are_one_stop(running: Server) -> None:
    """Of any number of signals the framework's end comes once, and nothing cuts its cleanup short."""
    get(running.port, "/begin")
    running.manager.wait_message("EXTEND_TIMEOUT_USEC")
    for signal in ("SIGTERM", "SIGINT", "SIGTERM"):
        running.manager.kill(signal)
    assert running.ended() == ["begun job", "ended job", "cleaned", "behind run_app"]
    assert not [word for word in ALARMS if word in running.output], running.output
