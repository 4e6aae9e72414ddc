"""Servers that speak TLS themselves, without a proxy before them."""

from __future__ import annotations

import dataclasses
import ssl
from typing import TYPE_CHECKING, Final

import pytest

from tests.conformance.client import Connection
from tests.conformance.subjects import HTTP, Subject

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.conftest import Server

FILE: Final = "{folder}/both.pem"
#: What each command takes beside its own words.
OPTIONS: Final = {
    "uvicorn": ("--ssl-certfile", FILE),
    "uvicorn --workers": ("--ssl-certfile", FILE),
    "hypercorn": ("--certfile", FILE, "--keyfile", FILE),
    "granian": ("--ssl-certificate", FILE, "--ssl-keyfile", FILE),
    "gunicorn -k uvicorn_worker.UvicornWorker": ("--certfile", FILE),
    "gunicorn gthread": ("--certfile", FILE),
    "gunicorn gevent": ("--certfile", FILE),
    "aiohttp run_app": (FILE,),
    "Tornado": (FILE,),
    "Twisted": (FILE,),
}
ENDPOINT: Final = "ssl:{port}:interface=127.0.0.1:" + f"privateKey={FILE}:certKey={FILE}"
SUBJECTS: Final = (
    *(dataclasses.replace(subject, command=(*subject.command, *OPTIONS[subject.name])) for subject in HTTP if subject.name in OPTIONS),
    Subject("daphne", ("{bin}/daphne", "--endpoint", ENDPOINT, "asgi_app:app")),
)


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_drain(server: Server, certificate: Path) -> None:
    """A request in flight is answered in full, what is idle is closed after its grace, a client that does not close too is not waited for."""
    tls = ssl.create_default_context(cafile=str(certificate))
    server.start()
    with Connection(server.port, tls) as idle, Connection(server.port, tls) as busy, Connection(server.port, tls) as deaf:
        for connection in (idle, deaf):
            assert connection.get("/").status == 200
        busy.send("/slow?s=4")
        server.stop()
        assert idle.ended()
        answer = busy.receive()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"/slow", "close")
        assert busy.ended()
        idle.close()
        busy.close()
        server.ended(patience=20)  # asyncio would wait 30 s for it
    assert "let go" not in server.output
