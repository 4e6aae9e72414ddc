"""grpc and grpc.aio: RPCs in flight are answered, no new one is let in, and what never ends is cancelled."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from requiem_systemd import Service
from requiem_systemd.adapters.grpc import TrackCalls
from tests.conformance.client import refused
from tests.conformance.working import Program, program
from tests.patience import PATIENCE

grpc: Any = pytest.importorskip("grpc")
PROGRAMS: Final = {"grpc": "grpc_server.py", "grpc.aio": "grpc_aio_server.py"}


@pytest.fixture(params=PROGRAMS)
def server(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator[Program]:
    """Return a server, not started."""
    command = ("{python}", PROGRAMS[request.param], "{port}")
    with program(tmp_path, *command, port=free_port) as made:
        yield made


@pytest.fixture
def channel(free_port: int) -> Iterator[Any]:
    """Return a client's channel to it."""
    with grpc.insecure_channel(f"127.0.0.1:{free_port}") as made:
        yield made


def call(channel: Any, method: str, request: bytes = b"") -> bytes:
    """Make one unary call and wait for its answer, and for the server if it is not up yet."""
    answer: bytes = channel.unary_unary(f"/test/{method}")(request, timeout=PATIENCE, wait_for_ready=True)
    return answer


def test_stops_accepting(server: Program, channel: Any) -> None:
    """From the begin of the drain the port refuses, and a client that is connected hears of it, while a job runs on."""
    server.launch()
    call(channel, "Job", b"4")
    server.wait_recorded("begun job")
    server.stop()
    server.wait_for(lambda: refused(server.port), poll=True)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test/Slow")(b"0", timeout=PATIENCE)
    # What leaves before grpc's own notice (GOAWAY) has come is cancelled by its core.
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert "ended job" not in server.recorded
    server.ended()


def test_call_in_flight(server: Program, channel: Any) -> None:
    """A call that takes longer than TimeoutStopSec= is answered."""
    server.launch()
    call(channel, "Slow", b"0")
    answer = channel.unary_unary("/test/Slow").future(b"4")
    call(channel, "Slow", b"0")  # on the same connection, behind it: the other has come
    server.stop()
    server.manager.wait_for(lambda: "/test/Slow" in server.manager.status or "1 request" in server.manager.status)
    assert answer.result(PATIENCE) == b"slow"
    server.ended()
    server.is_clean()


@pytest.mark.parametrize("method", ["Count", "Other"])
def test_stream(server: Program, channel: Any, method: str) -> None:
    """An answer that comes in pieces comes to its end, whichever way the handler gives them."""
    if method == "Other":
        method = "Write" if "aio" in server.subject.command[1] else "Iterate"
    server.launch()
    pieces = channel.unary_stream(f"/test/{method}")(b"10", wait_for_ready=True)
    assert next(pieces) == b"0"
    server.stop()
    assert list(pieces) == [b"%d" % number for number in range(1, 10)]
    server.ended()
    server.is_clean()


def test_iterator_holds_to_its_end() -> None:
    """A handler that returns an iterator is not over when it returns, but when that has run dry; also where the client has gone."""
    service = Service()
    details = SimpleNamespace(method="/test/Count")
    handler = grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request, request]))
    pieces = TrackCalls(service=service).intercept_service(lambda _: handler, details).unary_stream(b"1", None)
    assert next(pieces) == b"1"
    assert [(job.label, job.kind) for job in service.in_flight()] == [("/test/Count", "connection")]
    assert list(pieces) == [b"1"]
    assert service.in_flight() == ()
    service.close()


def test_both_ways(server: Program, channel: Any) -> None:
    """A stream in both directions goes on in the drain until its client has ended it."""
    server.launch()
    sent: queue.Queue[bytes | None] = queue.Queue()
    answers = channel.stream_stream("/test/Echo")(iter(sent.get, None), wait_for_ready=True)
    sent.put(b"before")
    assert next(answers) == b"before"
    server.stop()
    sent.put(b"after")
    assert next(answers) == b"after"
    sent.put(None)
    assert list(answers) == []
    server.ended()
    server.is_clean()


def test_client_stream(server: Program, channel: Any) -> None:
    """What a client sends in pieces is taken to its end."""
    server.launch()
    call(channel, "Slow", b"0")
    sent: queue.Queue[bytes | None] = queue.Queue()
    sent.put(b"1")
    answer = channel.stream_unary("/test/Sum").future(iter(sent.get, None))
    call(channel, "Slow", b"0")
    server.stop()
    sent.put(b"2")
    sent.put(None)
    assert answer.result(PATIENCE) == b"3"
    server.ended()


def test_background_job(server: Program, channel: Any) -> None:
    """A job that no call stands for is held past TimeoutStopSec=; the program's own shutdown comes once, after it."""
    server.launch()
    call(channel, "Job", b"5")
    server.wait_recorded("begun job")
    server.stop()
    assert server.ended() == ["begun job", "ended job", "shutdown"]
    server.is_clean()


def test_job_begun_in_the_drain(server: Program, channel: Any) -> None:
    """A job that a job begins during the drain is held as well."""
    server.launch()
    call(channel, "Chain", b"3")
    server.wait_recorded("begun first")
    server.stop()
    assert server.ended().count("ended second") == 1


def test_hung_call(server: Program, channel: Any) -> None:
    """A call that never ends is let go after request_timeout, under its name, and its client hears of it."""
    server.launch(REQUIEM_REQUEST_TIMEOUT="3s")
    call(channel, "Slow", b"0")
    answer = channel.unary_unary("/test/Hang").future(b"")
    call(channel, "Slow", b"0")
    server.stop()
    with pytest.raises(grpc.RpcError):
        answer.result(PATIENCE)
    assert answer.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    server.ended()
    assert 'let go after 3 s of draining: "/test/Hang"' in server.output, server.output


def test_failing_handler(server: Program, channel: Any) -> None:
    """A handler that raises holds nothing afterwards."""
    server.launch()
    with pytest.raises(grpc.RpcError):
        call(channel, "Fail")
    server.stop()
    server.ended()
    assert "let go" not in server.output


def test_no_such_method(server: Program, channel: Any) -> None:
    """A method that nobody serves is answered as ever."""
    server.launch()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "Nothing")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    server.stop()
    server.ended()
    server.is_clean()


def test_double_sigterm(server: Program, channel: Any) -> None:
    """A second SIGTERM changes nothing."""
    server.launch()
    call(channel, "Job", b"4")
    server.wait_recorded("begun job")
    server.stop()
    server.manager.kill("SIGTERM")
    assert "ended job" in server.ended()


def test_sigint_twice(server: Program, channel: Any) -> None:
    """SIGINT drains; a second one, later than a second, abandons, and names what it abandons."""
    server.launch()
    call(channel, "Job", b"30")
    server.wait_recorded("begun job")
    server.sigint_again()
    server.ended(status=75)
    assert "abandoned" in server.output
    assert '"job"' in server.output


def test_idle_stop(server: Program, channel: Any) -> None:
    """With nothing in flight it ends at once, with status 0."""
    server.launch()
    call(channel, "Slow", b"0")
    server.manager.stop()
    server.ended()
    assert server.manager.result == "success"


def test_passed_listener(server: Program) -> None:
    """A listener that systemd passes cannot be served: one line at the start says so, and what to change."""
    server.manager.listen("rpc")
    server.launch()
    server.stop()
    server.ended()
    assert server.output.count("cannot take a listener that systemd has passed ('rpc')") == 1
