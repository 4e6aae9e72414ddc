"""`requiem-systemd serve`: what it makes of its command line."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import asgi, wsgi
from requiem_systemd.cli import serve
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from pathlib import Path


async def coroutine(scope: Any, receive: Any, send: Any) -> None:
    """Be an ASGI application."""


def plain(environ: Any, start_response: Any) -> Any:
    """Be a WSGI application."""


class Instance:
    """An ASGI application as frameworks make it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be one."""


def three(scope: Any, receive: Any, send: Any) -> Any:
    """Return what can be awaited."""


@pytest.mark.parametrize("app", [coroutine, Instance(), three, functools.partial(coroutine), asgi.TrackRequests(coroutine)])
def test_asgi_is_seen(app: Any) -> None:
    """A coroutine function, an object that is one, a function of three arguments."""
    assert serve.interface(app) == "asgi"


def test_wsgi_is_seen() -> None:
    """A function of two arguments, and an object that is called so."""
    with Service(signals=False, exit=False, environ={}) as service:
        assert serve.interface(plain) == serve.interface(wsgi.TrackRequests(plain, service=service)) == "wsgi"


def test_what_cannot_be_called_is_neither() -> None:
    """It is told from both."""
    assert serve.interface("app") == ""


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        (":80", ("", 80)),
        ("[::1]:80", ("[::1]", 80)),
        ("unix:/run/x", "/run/x"),
    ],
)
def test_addresses(text: str, where: object) -> None:
    """They are what listener() takes as a fallback."""
    assert where == serve.address(text)


@pytest.mark.parametrize("text", ["", "80", "host:", "host:x", "host:65536", "unix:"])
def test_bad_addresses(text: str) -> None:
    """They are refused at once."""
    with pytest.raises(argparse.ArgumentTypeError):
        serve.address(text)


@pytest.mark.parametrize("text", ["0", "-1", "x", ""])
def test_bad_numbers_of_workers(text: str) -> None:
    """They are refused at once."""
    with pytest.raises(argparse.ArgumentTypeError):
        serve.workers(text)


def test_application_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By module and attribute, as a factory too; what is missing is named."""
    (tmp_path / "served_app.py").write_text("import json as inner\napp = 1\ndef make(): return 2\n")
    (tmp_path / "served_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert serve.load("served_app") == serve.load("served_app:app") == 1
    assert serve.load("served_app:make", factory=True) == 2
    assert serve.load("served_app:inner.dumps") is __import__("json").dumps
    with pytest.raises(serve.ServeError, match="has no 'nothing'"):
        serve.load("served_app:nothing")
    with pytest.raises(serve.ServeError, match="--app-dir"):
        serve.load("no_such_module_here:app")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        serve.load("served_broken:app")
