"""Connections of servers in event loops: what of them holds a drain."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd.adapters.connections import Connections, RequestName
from requiem_systemd.errors import DrainingError
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10.0


class Turns:
    """A loop that turns when it is told to."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], Any]] = []
        self.alarms: list[tuple[float, Callable[[], Any]]] = []

    def later(self, seconds: float, call: Callable[[], Any]) -> None:
        """Keep an alarm."""
        self.alarms.append((seconds, call))

    def turn(self) -> None:
        """Make the calls that were posted."""
        while self.posted:
            self.posted.pop(0)()

    def ring(self) -> None:
        """Make the calls whose time is to come, whenever that is."""
        alarms, self.alarms = self.alarms, []
        for _, call in alarms:
            call()


@contextlib.contextmanager
def drained(grace: float) -> Iterator[tuple[Service, Connections, Turns]]:
    """Yield the connections of a service that will drain."""
    service, turns = Service(environ={}), Turns()
    try:
        yield service, Connections(service, "test", grace, turns.posted.append, turns.later), turns
    finally:
        service.close()


def test_no_connection_holds_nothing() -> None:
    """Where there is none the drain is over as soon as the loop has looked."""
    with drained(grace=0.0) as (service, _, turns):
        service.begin()
        assert [info.kind for info in service.in_flight()] == ["connection"]
        turns.turn()
        assert service.engine.stopped.wait(PATIENCE)


def test_idle_connection_holds_until_it_has_ended() -> None:
    """It is closed after the grace, and holds until its last byte is out."""
    with drained(grace=0.0) as (service, connections, turns):
        closed = []
        connections.opened("key", None, lambda: closed.append("key"))
        service.begin()
        turns.turn()
        assert closed == ["key"]
        assert not service.engine.stopped
        connections.closed("key")
        assert service.engine.stopped.wait(PATIENCE)


def test_connection_within_its_grace_is_left_open() -> None:
    """It may send one more request; the next look is when the grace is over."""
    with drained(grace=60.0) as (service, connections, turns):
        closed = []
        connections.opened("key", None, lambda: closed.append("key"))
        service.begin()
        turns.turn()
        assert closed == []
        assert [0 < seconds <= 60 for seconds, _ in turns.alarms] == [True]
        turns.ring()
        assert len(turns.alarms) == 1


def test_busy_connection_holds_by_its_request_alone() -> None:
    """It is not closed, and is let go once, as a request; when that is over it holds by itself until it has ended."""
    with drained(grace=0.0) as (service, connections, turns):
        closed = []
        connections.opened("key", None, lambda: closed.append("key"))
        request = connections.request("key", RequestName("GET", "/a/b"), cut=list)
        service.begin()
        turns.turn()
        assert [(info.kind, info.label) for info in service.in_flight()] == [("request", "GET /a/…")]
        assert closed == []
        connections.leave(request)
        assert [info.kind for info in service.in_flight()] == ["connection"]
        assert closed == ["key"]
        connections.closed("key")
        assert service.engine.stopped.wait(PATIENCE)


def test_lost_connection_ends_its_requests() -> None:
    """Whoever took it over tells nobody of its end."""
    with drained(grace=0.0) as (service, connections, turns):
        connections.opened("key", None, list)
        connections.request("key", "websocket", cut=list)
        service.begin()
        turns.turn()
        connections.lost("key")
        assert service.engine.stopped.wait(PATIENCE)


def test_no_request_begins_when_stopped() -> None:
    """The exit would cut it off."""
    with drained(grace=0.0) as (service, connections, turns):
        service.begin()
        turns.turn()
        assert service.engine.stopped.wait(PATIENCE)
        with pytest.raises(DrainingError):
            connections.request("key", "late", cut=list)


def test_closed_loop_holds_nothing() -> None:
    """Its connections are closed with it."""

    def post(_: object) -> None:
        raise RuntimeError

    service = Service(environ={})
    try:
        Connections(service, "test", 0.0, post, Turns().later)
        service.begin()
        assert service.engine.stopped.wait(PATIENCE)
    finally:
        service.close()
