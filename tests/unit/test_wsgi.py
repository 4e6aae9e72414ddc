"""`wsgi`: what a server sees of an answer."""

from __future__ import annotations

import io
import wsgiref.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from requiem_systemd.service import Service
from requiem_systemd.wsgi import TrackRequests

ENVIRON: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/reports/7", "wsgi.file_wrapper": wsgiref.util.FileWrapper}


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service, unarmed."""
    made = Service(environ={}, signals=False)
    yield made
    made.close()


def answer(service: Service, body: Iterable[bytes]) -> Any:
    """Return what the server gets of an application's answer."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        return body

    return TrackRequests(app, service=service)(dict(ENVIRON), lambda *_: None)


def labels(service: Service) -> list[str]:
    """Return what is in flight."""
    return [job.label for job in service.in_flight()]


def test_held_until_closed(service: Service) -> None:
    """It holds, as a request with its label, until the server closes it; again: nothing."""
    got = answer(service, [b"one"])
    (job,) = service.in_flight()
    assert (job.label, job.kind, job.owner) == ("GET /reports/…", "request", "thread MainThread")
    assert list(got) == [b"one"]
    assert labels(service) == ["GET /reports/…"]
    got.close()
    got.close()
    assert labels(service) == []


@pytest.mark.parametrize("body", [[b"one"], (b"one", b"two"), []], ids=["list", "tuple", "empty"])
def test_length_is_seen(service: Service, body: Any) -> None:
    """A body with a length has it still: of a single piece servers make the Content-Length. It is true in any case."""
    got = answer(service, body)
    assert len(got) == len(body)
    assert bool(got)
    got.close()


def test_no_length_is_made_up(service: Service) -> None:
    """A generator has no length, nor has what the server gets: waitress asks by hasattr. It is closed."""
    closed = []

    def stream() -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(1)

    got = answer(service, stream())
    assert not hasattr(got, "__len__")
    assert next(iter(got)) == b"one"
    got.close()
    assert (closed, labels(service)) == ([1], [])


def test_servers_own_file(service: Service) -> None:
    """A file in the server's own wrapper stays one, which it may send by sendfile(2); its end is the request's, and the file is closed."""
    file = io.BytesIO(b"content")
    got = answer(service, wsgiref.util.FileWrapper(file))
    assert isinstance(got, wsgiref.util.FileWrapper)
    assert labels(service) == ["GET /reports/…"]
    got.close()
    assert file.closed
    assert labels(service) == []


def test_file_without_close(service: Service) -> None:
    """A wrapper around what cannot be closed gets a close."""

    class Reads:
        def read(self, size: int = -1) -> bytes:
            return b""

    got = answer(service, wsgiref.util.FileWrapper(Reads()))  # type: ignore[arg-type] # the least that a file has
    got.close()
    assert labels(service) == []


def test_failing_close_releases(service: Service) -> None:
    """A body whose close fails holds nothing afterwards."""

    class Body(list[bytes]):
        def close(self) -> None:
            raise ZeroDivisionError

    got = answer(service, Body([b"one"]))
    with pytest.raises(ZeroDivisionError):
        got.close()
    assert labels(service) == []


def test_failing_application_releases(service: Service) -> None:
    """An application that raises holds nothing afterwards."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TrackRequests(app, service=service)(dict(ENVIRON), lambda *_: None)
    assert labels(service) == []


def test_label(service: Service) -> None:
    """A function of the environ names a request."""
    wrapped = TrackRequests(lambda *_: [], label=lambda environ: f"at {environ['PATH_INFO']}", service=service)
    wrapped(dict(ENVIRON), lambda *_: None)
    assert labels(service) == ["at /reports/7"]
