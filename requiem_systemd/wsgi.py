"""WSGI: every request holds the stop until the last byte of its answer was handed to the server (PEP 3333)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from requiem_systemd.adapters import wsgiservers
from requiem_systemd.errors import DrainingError, NotMainThreadError
from requiem_systemd.ledger import REQUEST, More
from requiem_systemd.report import first_segment, health_path
from requiem_systemd.service import Service, process
from requiem_systemd.tracker import Hold

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]


class RequestName:
    """A request's label: method and first path segment; never its arguments."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ

    def __str__(self) -> str:
        return f"{self._environ.get('REQUEST_METHOD', '?')} {first_segment(self._environ.get('PATH_INFO', ''))}"


class TrackRequests:
    """Wrap a WSGI application: `app = TrackRequests(app)`.

    Every request holds the stop, for at most `request_timeout`. The service is armed at once, in the main thread with its signals.
    READY=1 and the listener are the server's business: say `ready()` when it listens, and see `track_socket`. `health`: a path that
    answers 200, and 503 from the first moment of the drain; itself never tracked. `label`: a function of the environ that names a request.
    """

    def __init__(
        self,
        app: Application,
        *,
        health: str | None = None,
        label: Callable[[Environ], str] | None = None,
        service: Service = process,
    ) -> None:
        self.app = app
        self._health = health_path(health)
        self._label = label
        self._service = service
        self._pid = 0  # whose first request has come
        try:
            service.arm()
        except NotMainThreadError:
            service.arm(signals=False)
        wsgiservers.attach(service)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            wsgiservers.first_request(self._service, environ)
        if environ.get("PATH_INFO") == self._health and self._health is not None:
            draining = self._service.draining()
            return _answer(start_response, "503 Service Unavailable" if draining else "200 OK", b"draining\n" if draining else b"ok\n")
        hold = self._service.open(self._label(environ) if self._label else RequestName(environ), More(REQUEST))
        try:
            hold.__enter__()
        except DrainingError:
            return _answer(start_response, "503 Service Unavailable", b"stopped\n")
        try:
            return _Body(self.app(environ, start_response), hold)
        except BaseException:
            hold.__exit__(None, None, None)
            raise


class _Body:
    """An answer's body, whose `close` ends the request; the server calls it in any case (PEP 3333)."""

    def __init__(self, body: Iterable[bytes], hold: Hold) -> None:
        self._body = body
        self._hold = hold

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._hold.__exit__(None, None, None)


def _answer(start_response: Any, status: str, body: bytes) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
    return [body]
