"""WSGI: every request holds the stop until the last byte of its answer was handed to the server (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from threading import get_ident
from typing import Any, cast

from requiem_systemd.adapters import wsgiservers
from requiem_systemd.errors import DrainingError, NotMainThreadError
from requiem_systemd.ledger import REQUEST, Ledger, Whole
from requiem_systemd.report import first_segment, health_path
from requiem_systemd.service import Service, process

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]


class Answer(Whole):
    """One request: what the ledger has and shows of it, and its answer's body, whose `close` ends it; servers call that in any case (PEP 3333).

    Its label is method and first path segment; never its arguments. One object for all of this, and no `__init__`: see asgi.Exchange.
    """

    __slots__ = ("body", "environ", "of")

    environ: Environ
    body: Iterable[bytes]
    of: TrackRequests
    kind = REQUEST

    def __str__(self) -> str:
        if self.of.label is not None:
            return self.of.label(self.environ)
        return f"{self.environ.get('REQUEST_METHOD', '?')} {first_segment(self.environ.get('PATH_INFO', ''))}"

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)

    def __len__(self) -> int:
        return len(cast("Sized", self.body))  # of a single piece servers make the Content-Length

    def __bool__(self) -> bool:
        return True  # an empty answer is to be closed too

    def close(self) -> None:
        """Close the body, and hold the stop no longer."""
        try:
            close = getattr(self.body, "close", None)
            if close is not None:
                close()
        finally:
            self.end()

    def end(self) -> None:
        """Hold the stop no longer."""
        ledger = self.of.ledger
        was_in = ledger.live.pop(self, None) is not None
        if ledger.alert:
            ledger.left(self, was_in=was_in)


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
        self.label = label
        self._service = service
        self._hooks: object = None  # of the service at its first request: a fork's child has others
        self.ledger: Ledger = service.ledger
        try:
            service.arm()
        except NotMainThreadError:
            service.arm(signals=False)
        wsgiservers.attach(service)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        if self._service.hooks is not self._hooks:
            wsgiservers.first_request(self._service, environ)
            self._hooks = self._service.hooks
        if self._health is not None and environ.get("PATH_INFO") == self._health:
            draining = self._service.draining()
            return _answer(start_response, "503 Service Unavailable" if draining else "200 OK", b"draining\n" if draining else b"ok\n")
        answer = Answer()
        answer.environ, answer.of, answer.owner = environ, self, get_ident()
        try:
            self.ledger.enter(answer)
        except DrainingError:
            return _answer(start_response, "503 Service Unavailable", b"stopped\n")
        try:
            answer.body = body = self.app(environ, start_response)
        except BaseException:
            answer.end()
            raise
        if type(body) is list:
            return answer
        return _followed(answer, body, environ.get("wsgi.file_wrapper"))


class _Stream:
    """A body that has no length: servers look whether there is a `__len__`."""

    def __init__(self, answer: Answer) -> None:
        self.close = answer.close
        self._body = answer.body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)


class _Closing:
    """What is left to close of a body that the server has itself."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close


def _followed(answer: Answer, body: Iterable[bytes], wrapper: object) -> Iterable[bytes]:
    """Return what has the request end when the server closes it: of its own kind, which it may send by sendfile(2), the body itself."""
    if isinstance(wrapper, type) and isinstance(body, wrapper):
        theirs: Any = body  # an instance attribute: a file wrapper has a close of its own, its file's, or none
        answer.body = cast("Iterable[bytes]", _Closing(getattr(theirs, "close", None) or _nothing))
        theirs.close = answer.close
        return cast("Iterable[bytes]", theirs)
    return answer if hasattr(body, "__len__") else _Stream(answer)


def _nothing() -> None:
    """Do nothing: there is nothing to close."""


def _answer(start_response: Any, status: str, body: bytes) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
    return [body]
