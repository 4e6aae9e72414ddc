"""Listeners by name: passed, kept or bound."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from requiem_systemd.errors import ListenerError
from requiem_systemd.listen import Listener, Listeners, Origin, describe
from requiem_systemd.notify import Notifier
from requiem_systemd.protocol import Environment
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ANYWHERE = ("127.0.0.1", 0)


@contextlib.contextmanager
def passing(*names: str, kind: int = socket.SOCK_STREAM) -> Iterator[tuple[Listeners, list[int]]]:
    """Yield listeners to which fresh TCP sockets were passed under these names, and their descriptors."""
    fds = []
    for _ in names:
        sock = socket.socket(socket.AF_INET, kind)
        sock.bind(ANYWHERE)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        sock.set_inheritable(True)
        fds.append(sock.detach())
    listeners = told(*zip(fds, names, strict=True))
    try:
        yield listeners, fds
    finally:
        listeners.close()


def told(*passed: tuple[int, str], manager: str | None = None) -> Listeners:
    """Return listeners of a service that was told this."""

    def send(assignments: Mapping[str, object], fds: Sequence[int]) -> bool:
        notifier = Notifier(manager)
        try:
            return notifier.send(assignments, fds)
        finally:
            notifier.close()

    return Listeners(lambda: Environment(listeners=passed), send)


@pytest.fixture
def nothing() -> Iterator[Listeners]:
    """Return the listeners of a service that was passed nothing."""
    listeners = told()
    yield listeners
    listeners.close()


# -- passed


def test_passed_is_found_by_name() -> None:
    """A passed descriptor is had under its name."""
    with passing("http", "admin") as (listeners, fds):
        assert fds[1] == listeners.listener("admin").fileno()


def test_passed_is_the_same_object_again() -> None:
    """The same name gives the same object, from listener() and from listeners()."""
    with passing("http") as (listeners, _):
        assert listeners.listener("http") is listeners.listener("http")
        assert (listeners.listener("http"),) == listeners.listeners()["http"]


def test_passed_wins_over_fallback() -> None:
    """Nothing is bound where a listener was passed."""
    with passing("http") as (listeners, fds):
        assert fds[0] == listeners.listener("http", fallback=ANYWHERE).fileno()


def test_passed_is_not_inherited_by_children() -> None:
    """A passed descriptor is closed in programs that are started."""
    with passing("http") as (listeners, _):
        assert not listeners.listener("http").get_inheritable()


def test_passed_kind_is_found_out() -> None:
    """Family and type are the descriptor's own."""
    with passing("dns", kind=socket.SOCK_DGRAM) as (listeners, _):
        assert (listeners.listener("dns").family, listeners.listener("dns").type) == (
            socket.AF_INET,
            socket.SOCK_DGRAM,
        )


def test_several_under_one_name_says_listeners() -> None:
    """Several under one name are an error that names the other function, which has them in order."""
    with passing("http", "http") as (listeners, fds):
        with pytest.raises(ListenerError, match=r"listeners\(\)\['http'\]"):
            listeners.listener("http")
        assert fds == [sock.fileno() for sock in listeners.listeners()["http"]]


def test_not_passed_lists_what_was() -> None:
    """The error lists what was passed, and the line to add to the unit."""
    with (
        passing("admin") as (listeners, _),
        pytest.raises(ListenerError, match=r"'admin' \(127\.0\.0\.1:\d+\).*FileDescriptorName=http"),
    ):
        listeners.listener("http")


def test_closed_descriptor_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A passed descriptor that somebody has closed is named in the log, and an error for who asks for it."""
    fd = os.dup(0)
    os.close(fd)
    listeners = told((fd, "http"))
    assert dict(listeners.listeners()) == {}
    assert "was it closed by somebody else?" in caplog.text
    with pytest.raises(ListenerError, match="was passed, but descriptor"):
        listeners.listener("http")


def test_file_is_left_alone() -> None:
    """A passed descriptor that is no socket stays open, and is an error for who asks for it as a listener."""
    with Path(os.devnull).open("rb") as file:
        listeners = told((file.fileno(), "state"))
        with pytest.raises(ListenerError, match="no socket"):
            listeners.listener("state")
        listeners.close()
        assert file.read() == b""


def test_elsewhere_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without systemd the error says so, and what to give instead."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ListenerError, match="runs on Linux only; give fallback"):
        told().listener("http")


def test_passed_stays_the_same_over_initialize() -> None:
    """What was handed out before the service is armed is handed out afterwards, too."""
    with socket.create_server(ANYWHERE) as sock:
        service = Service(environ={}, signals=False, exit=False)
        service._peeked = Environment(listeners=((os.dup(sock.fileno()), "http"),))
        before = service.listener("http")
        with service:
            assert service.listener("http") is before
    assert before.fileno() == -1


# -- what a listener does not do


def test_listens_once() -> None:
    """A second listen() does not cut the backlog: more than it asks for can still connect."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(Listener())
        sock.bind(ANYWHERE)
        sock.listen(50)
        sock.listen(1)
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.settimeout(2)
            client.connect(sock.getsockname())


def test_shutdown_leaves_it_alive(caplog: pytest.LogCaptureFixture) -> None:
    """shutdown() of a listener is refused by a line in the log."""
    with Listener() as sock:
        sock.bind(ANYWHERE)
        sock.listen()
        sock.shutdown(socket.SHUT_RDWR)
        with socket.create_connection(sock.getsockname()):
            assert "shutdown() of listener 127.0.0.1" in caplog.text


# -- bound


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", ""])
def test_fallback_is_bound(nothing: Listeners, host: str) -> None:
    """A fallback is bound and listens; IPv6 literals may have brackets."""
    sock = nothing.listener("http", fallback=(host, 0))
    with socket.create_connection(sock.getsockname()[:2]):
        assert Origin.BOUND is nothing.origin(sock)


def test_fallback_taken_says_where(nothing: Listeners) -> None:
    """An address in use is a ListenerError that names it."""
    with socket.create_server(ANYWHERE) as other, pytest.raises(
        ListenerError, match=rf"127\.0\.0\.1:{other.getsockname()[1]}: Address already in use"
    ):
        nothing.listener("http", fallback=other.getsockname())


@pytest.mark.parametrize(
    "fallback", [("127.0.0.1", "80"), ("127.0.0.1",), 80, ("127.0.0.1", 70000), ("127.0.0.1", True)]
)
def test_fallback_that_is_none(nothing: Listeners, fallback: object) -> None:
    """What is no address is an error at the call."""
    with pytest.raises((TypeError, ValueError), match="fallback="):
        nothing.listener("http", fallback=fallback)  # type: ignore[arg-type] # wrong on purpose


def test_path_is_unlinked_when_done(nothing: Listeners, tmp_path: Path) -> None:
    """An AF_UNIX path that was bound here goes with its listener."""
    path = tmp_path / "sock"
    nothing.listener("http", fallback=path)
    assert path.is_socket()
    nothing.close()
    assert not path.exists()


def test_path_of_another_is_not_unlinked(nothing: Listeners, tmp_path: Path) -> None:
    """A path that was bound anew by another process is left alone."""
    path = tmp_path / "sock"
    nothing.listener("http", fallback=str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        nothing.close()
        assert path.is_socket()


def test_stale_path_is_replaced(nothing: Listeners, tmp_path: Path) -> None:
    """A path that refuses connections and is ours is replaced."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with socket.socket(socket.AF_UNIX) as client:
        nothing.listener("http", fallback=path)
        client.connect(path)


def test_living_path_is_not_replaced(nothing: Listeners, tmp_path: Path) -> None:
    """A path at which somebody listens is an error, and goes on working."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(path)
        other.listen()
        with pytest.raises(ListenerError, match="Address already in use"):
            nothing.listener("http", fallback=path)
        client.connect(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")
def test_stale_path_of_another_user_is_not_replaced(nothing: Listeners, tmp_path: Path) -> None:
    """A stale path of another user is an error that says whose."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    os.chown(path, 65534, 65534)
    with pytest.raises(ListenerError, match="user 65534"):
        nothing.listener("http", fallback=path)
    assert path.is_socket()


def test_file_in_the_way_is_not_replaced(nothing: Listeners, tmp_path: Path) -> None:
    """A file at the path is an error, and stays."""
    path = tmp_path / "sock"
    path.write_text("precious")
    with pytest.raises(ListenerError, match="no socket"):
        nothing.listener("http", fallback=path)
    assert path.read_text() == "precious"


def test_abstract_path(nothing: Listeners) -> None:
    """A path that begins with @ is an abstract one, as in systemd's units."""
    name = f"@requiem-test-{os.getpid()}"
    sock = nothing.listener("http", fallback=name)
    assert name == describe(sock)


# -- kept


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a manager's notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_keep_sends_the_descriptor(manager: socket.socket) -> None:
    """keep=True hands the listener to the manager's fd store, under its name."""
    listeners = told(manager=manager.getsockname())
    sock = listeners.listener("http", fallback=ANYWHERE, keep=True)
    text, fds = received(manager)
    with socket.socket(fileno=fds[0]) as kept:
        assert text == "FDSTORE=1\nFDNAME=http\n"
        assert sock.getsockname() == kept.getsockname()
    assert Origin.KEPT is listeners.origin(sock)
    listeners.close()


def test_keep_does_not_send_what_was_passed(manager: socket.socket) -> None:
    """What was passed is not sent again: it would come twice the next time."""
    with socket.create_server(ANYWHERE) as sock:
        listeners = told((os.dup(sock.fileno()), "http"), manager=manager.getsockname())
        assert Origin.KEPT is listeners.origin(listeners.listener("http", keep=True))
        manager.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        listeners.close()


def test_keep_without_a_manager_does_nothing(nothing: Listeners) -> None:
    """Without a manager keep=True means nothing."""
    assert Origin.BOUND is nothing.origin(nothing.listener("http", fallback=ANYWHERE, keep=True))


def test_kept_path_is_not_unlinked(manager: socket.socket, tmp_path: Path) -> None:
    """The path of a kept listener stays: the next process gets its listener."""
    listeners = told(manager=manager.getsockname())
    listeners.listener("http", fallback=tmp_path / "sock", keep=True)
    os.close(received(manager)[1][0])
    listeners.close()
    assert (tmp_path / "sock").is_socket()


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "x" * 256, "ü"])
def test_keep_wants_a_name_that_the_manager_takes(nothing: Listeners, name: str) -> None:
    """A name that cannot stand in the fd store is an error at the call."""
    with pytest.raises(ValueError, match="cannot be a name in the fd store"):
        nothing.listener(name, fallback=ANYWHERE, keep=True)


def test_keep_that_fails_does_not_stop_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that cannot be reached is named in the log; the listener is there."""
    listeners = told(manager=str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        assert Origin.BOUND is listeners.origin(listeners.listener("http", fallback=ANYWHERE, keep=True))
    assert "cannot be kept" in caplog.text
    listeners.close()


def received(manager: socket.socket) -> tuple[str, list[int]]:
    """Return the text and the descriptors of one notification."""
    data, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(8))
    fds = array.array("i")
    for _, _, body in ancillary:
        fds.frombytes(body)
    return data.decode(), list(fds)


def test_original_is_closed_where_a_server_has_a_copy(nothing: Listeners) -> None:
    """Twisted works on a copy of the descriptor: when it closes that, the port must not stay open here."""
    original = nothing.listener("http", fallback=ANYWHERE)
    other = nothing.listener("other", fallback=ANYWHERE)
    copy = original.dup()
    nothing.close_original(copy)
    assert original.fileno() == -1
    assert other.fileno() >= 0
    nothing.close_original(other)
    assert other.fileno() >= 0
    copy.close()
