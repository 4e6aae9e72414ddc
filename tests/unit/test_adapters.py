"""Adapters, as far as they can be tested without their frameworks."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import adapters
from requiem_systemd.adapters import twistedports
from requiem_systemd.adapters.tasks import INSIDE, Inside, in_request, track_tasks
from requiem_systemd.errors import RequiemError
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service that is not armed."""
    made = Service(environ={})
    yield made
    made.close()


def test_what_twisted_was_passed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twisted takes LISTEN_FDS out of the environment when it is imported; two of one name are two."""
    fds = SimpleNamespace(_descriptors=[3, 4], _names=("http", "http"))
    endpoints = SimpleNamespace(_SystemdParser=SimpleNamespace(_sddaemon=fds))
    monkeypatch.setitem(sys.modules, "twisted.internet.endpoints", endpoints)
    assert twistedports.passed() == ((3, "http"), (4, "http"))


def test_another_twisted_passes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps its notes elsewhere is none the worse."""
    monkeypatch.setitem(sys.modules, "twisted.internet.endpoints", SimpleNamespace())
    assert twistedports.passed() == ()


def test_every_kind_has_an_adapter() -> None:
    """What the table names can be loaded without its framework."""
    assert all(callable(adapters.loaded(factory)) for factory in adapters._KINDS.values())


def test_tasks_of_a_request_are_jobs(service: Service) -> None:
    """However deep; those of nobody are not, nor is the one that is the request itself. Asked twice, they are tracked once."""

    async def work() -> None:
        await asyncio.sleep(0)

    async def deeper() -> None:
        await asyncio.create_task(work())

    class Itself(Inside):
        begins = True

    async def main() -> tuple[list[str], list[str], list[str]]:
        loop = asyncio.get_running_loop()
        track_tasks(loop, service)
        track_tasks(loop, service)
        nobodys = asyncio.create_task(work())
        first = [info.label for info in service.in_flight()]
        in_request.set(INSIDE)
        theirs = asyncio.create_task(deeper())
        await asyncio.sleep(0)
        second = [info.label.rpartition(".")[2] for info in service.in_flight()]
        await asyncio.gather(nobodys, theirs)
        request = Itself()
        in_request.set(request)
        itself, job = asyncio.create_task(work()), asyncio.create_task(deeper())
        assert request.task is itself
        third = [info.label.rpartition(".")[2] for info in service.in_flight()]
        await asyncio.gather(itself, job)
        return first, second, third

    assert asyncio.run(main()) == ([], ["deeper", "work"], ["deeper"])


@pytest.mark.parametrize("module", ["hypercorn.asyncio.tcp_server", "uvicorn.protocols.http.h11_impl"])
def test_tasks_of_a_server_are_none(service: Service, module: str) -> None:
    """What a server begins in the task of a request, because the application sends there, is no job of the request."""
    server: dict[str, Any] = {"__name__": module}
    exec("import asyncio\nasync def idle(): await asyncio.create_task(asyncio.sleep(0))", server)

    async def main() -> tuple[object, ...]:
        track_tasks(asyncio.get_running_loop(), service)
        in_request.set(INSIDE)
        idle = asyncio.create_task(server["idle"]())
        await asyncio.sleep(0)  # it has begun another
        found = service.in_flight()
        await idle
        return found

    assert asyncio.run(main()) == ()


def plain(loop: asyncio.AbstractEventLoop, coro: Any) -> asyncio.Task[Any]:
    """Make a task, as the factories of Python 3.10 did: without a word of contexts."""
    return asyncio.Task(coro, loop=loop)


@pytest.mark.parametrize("factory", [None, plain])
def test_tasks_of_a_server_have_the_context(service: Service, factory: Any) -> None:
    """What a server begins in the task of a request sees what it would see without us."""
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen")
    server: dict[str, Any] = {"__name__": "hypercorn.asyncio.tcp_server", "seen": seen, "in_request": in_request}
    exec("async def idle(): return seen.get(), in_request.get()", server)

    async def main() -> tuple[object, ...]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        track_tasks(loop, service)
        seen.set("the request's")
        in_request.set(INSIDE)
        found = await asyncio.create_task(server["idle"]())
        return (*found, in_request.get())

    assert asyncio.run(main()) == ("the request's", None, INSIDE)


def test_gunicorn_that_cannot_be_held() -> None:
    """An arbiter that the adapter would break in the middle of a stop is refused at its start, and it is said what to install."""
    settings: dict[str, Any] = {}
    pytest.importorskip("requiem_systemd.adapters.gunicorn").hold(settings)
    with pytest.raises(RequiemError, match="gunicorn 25"):
        settings["on_starting"](object())


def test_rq_that_cannot_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RQ of before the inside that the adapter knows is refused by name: RQ itself says of an ImportError only that the class's name is invalid."""
    pytest.importorskip("rq")
    monkeypatch.delattr("rq.exceptions.StopRequested")
    monkeypatch.delitem(sys.modules, "requiem_systemd.adapters.rq", raising=False)
    with pytest.raises(RequiemError, match="older than RQ 3"):
        importlib.import_module("requiem_systemd.adapters.rq")
