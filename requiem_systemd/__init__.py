"""Graceful stops, restarts and reloads of Python services under systemd: no job dies, no connection drops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.errors import (
    AbandonedError,
    DrainingError,
    ListenerError,
    NotMainThreadError,
    ProtocolError,
    ReloadError,
    RequiemError,
    WorkerError,
)
from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.service import Service, initialize, process
from requiem_systemd.tracker import Tracker

if TYPE_CHECKING:
    from requiem_systemd.cluster import Cluster as Cluster  # for type checkers: it is loaded when asked for

__all__ = [
    "AbandonedError",
    "DrainingError",
    "JobInfo",
    "ListenerError",
    "NotMainThreadError",
    "ProtocolError",
    "ReloadError",
    "RequiemError",
    "Service",
    "Tracker",
    "WorkerError",
    "accept",
    "admit",
    "begin",
    "create_tracker",
    "draining",
    "in_flight",
    "initialize",
    "jobs",
    "listener",
    "listeners",
    "notify",
    "on",
    "ready",
    "should_stop",
    "starting",
    "status",
    "track",
    "track_socket",
    "wait",
    "wait_begin",
]

# The module's functions are those of the process's one service.
track: Final = process.track
create_tracker: Final = process.create_tracker
admit: Final = process.admit
jobs: Final = process.jobs
on: Final = process.on
ready: Final = process.ready
status: Final = process.status
starting: Final = process.starting
notify: Final = process.notify
begin: Final = process.begin
draining: Final = process.draining
should_stop: Final = process.should_stop
wait_begin: Final = process.wait_begin
wait: Final = process.wait
in_flight: Final = process.in_flight
listener: Final = process.listener
listeners: Final = process.listeners
accept: Final = process.accept
track_socket: Final = process.track_socket


def __getattr__(name: str) -> Any:
    if name in ("adapters", "aio", "asgi", "cluster", "metrics", "testing", "wsgi"):
        import importlib  # noqa: PLC0415 - loaded when asked for: the core stands alone

        return importlib.import_module(f"{__name__}.{name}")
    if name == "Cluster":
        from requiem_systemd import cluster  # noqa: PLC0415 - as above

        return cluster.Cluster
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
