"""`track(thing)`: what ends by itself holds the stop until it has."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import Service
from requiem_systemd.joins import Joins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requiem_systemd.testing import FakeManager

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("spawn")


def labels(service: Service) -> list[str]:
    """Return what is in flight."""
    return [info.label for info in service.in_flight()]


def test_future(manager: FakeManager, service: Service) -> None:
    """A concurrent.futures.Future holds until it has a result, and is returned."""
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    assert service.track(future, label="job") is future
    manager.stop()
    manager.advance(30)
    assert manager.state == "stop-sigterm"
    future.set_result(1)
    manager.wait_for("dead")


@pytest.mark.parametrize("how", ["exception", "cancel"])
def test_future_that_fails(service: Service, how: str) -> None:
    """A failed or cancelled future is over."""
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    service.track(future)
    assert labels(service) == ["Future"]
    if how == "cancel":
        future.cancel()
    else:
        future.set_exception(KeyError())
    assert labels(service) == []


def test_future_of_a_pool(manager: FakeManager, service: Service) -> None:
    """What was submitted to a pool holds, also while it waits for its turn."""
    go = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in range(3):
            service.track(pool.submit(go.wait, 10), label=f"job {number}")
        manager.stop()
        manager.advance(15)
        assert labels(service) == ["job 0", "job 1", "job 2"]
        go.set()
        manager.wait_for("dead")


def test_asyncio_future_and_task(service: Service) -> None:
    """An asyncio.Future and a Task hold until they are done; a task is named by its name."""

    async def main() -> None:
        go: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def job() -> None:
            await go

        task = service.track(asyncio.create_task(job(), name="export 42"))
        service.track(go, label="go")
        assert sorted(labels(service)) == ["export 42", "go"]
        assert {info.owner for info in service.in_flight()} == {"task export 42", ""}
        go.set_result(None)
        await task
        await asyncio.sleep(0)
        assert labels(service) == []

    asyncio.run(main())


def test_asyncio_future_from_another_thread(service: Service) -> None:
    """A future of a loop that runs elsewhere is tracked too."""

    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.to_thread(service.track, future, label="job")
        assert labels(service) == ["job"]
        await asyncio.sleep(0)
        future.set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert labels(service) == []

    asyncio.run(main())


def test_thread(manager: FakeManager, service: Service) -> None:
    """A thread that runs holds until it has ended."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(10,), name="worker 1")
    thread.start()
    assert service.track(thread) is thread
    manager.stop()
    manager.advance(30)
    assert [(info.label, info.owner) for info in service.in_flight()] == [("worker 1", "thread worker 1")]
    go.set()
    manager.wait_for("dead")
    thread.join()


def test_unstarted_thread(manager: FakeManager, service: Service) -> None:
    """A thread that has not started holds from its start."""
    go = threading.Event()
    thread = service.track(threading.Thread(target=go.wait, args=(10,), name="worker 1"))
    assert labels(service) == []
    thread.start()
    assert labels(service) == ["worker 1"]
    manager.stop()
    go.set()
    manager.wait_for("dead")
    thread.join()


def test_unstarted_thread_that_cannot_start(service: Service) -> None:
    """A start that fails holds nothing."""
    thread = service.track(threading.Thread(target=print))
    thread._started.set()  # type: ignore[attr-defined] # "threads can only be started once"
    with pytest.raises(RuntimeError):
        thread.start()
    assert labels(service) == []


def test_many_threads(manager: FakeManager, service: Service) -> None:
    """However many threads are tracked and in whatever order they end, one helper waits for all."""
    go = [threading.Event() for _ in range(20)]
    threads = [service.track(threading.Thread(target=event.wait, args=(10,))) for event in go]
    for thread in threads:
        thread.start()
    assert sum(thread.name == "requiem-joiner" for thread in threading.enumerate()) == 1
    manager.stop()
    for event in reversed(go):
        event.set()
    manager.wait_for("dead")
    for thread in threads:
        thread.join()


def test_a_timer(service: Service) -> None:
    """A subclass of Thread is one."""
    timer = threading.Timer(100, print)
    timer.start()
    service.track(timer, label="timer")
    assert labels(service) == ["timer"]
    timer.cancel()
    timer.join()
    assert labels(service) == []


def test_popen(manager: FakeManager, service: Service) -> None:
    """A subprocess.Popen holds until it has ended, and is left for its owner to reap."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert service.track(process) is process
        assert labels(service) == [sys.executable.rpartition("/")[2]]
        assert service.in_flight()[0].owner == f"process {process.pid}"
        manager.stop()
        manager.advance(30)
        assert manager.state == "stop-sigterm"
        assert process.stdin is not None
        process.stdin.close()
        manager.wait_for("dead")
        assert process.wait() == 1


@pytest.mark.parametrize("context", [FORK, SPAWN], ids=["fork", "spawn"])
@pytest.mark.parametrize("started", [False, True])
def test_process(manager: FakeManager, service: Service, context: Any, started: bool) -> None:  # noqa: FBT001 - a parameter
    """A multiprocessing.Process holds from its start, or from now, until its end."""
    ours, theirs = context.Pipe()
    process = context.Process(target=theirs.recv, name="worker 1")
    if started:
        process.start()
    assert service.track(process) is process
    assert labels(service) == (["worker 1"] if started else [])
    if not started:
        process.start()
    assert [(info.label, info.owner) for info in service.in_flight()] == [
        ("worker 1", f"process {process.pid}")
    ]
    manager.stop()
    manager.advance(15)
    assert manager.state == "stop-sigterm"
    ours.send("go")
    manager.wait_for("dead")
    process.join()
    ours.close()
    theirs.close()
    process.close()


def test_popen_without_pidfd(manager: FakeManager, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no pidfd a thread waits."""
    monkeypatch.delattr("os.pidfd_open")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        service.track(process, label="job")
        manager.stop()
        assert labels(service) == ["job"]
        assert process.stdin is not None
        process.stdin.close()
        manager.wait_for("dead")


def _ended() -> Iterator[Any]:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.set_result(None)
    yield future
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    yield thread
    popen = subprocess.Popen([sys.executable, "-c", ""])
    popen.wait()
    yield popen
    process = FORK.Process(target=int)
    process.start()
    process.join()
    yield process


def test_ended_ones_hold_nothing(service: Service) -> None:
    """What has ended already is returned and holds nothing."""
    for thing in _ended():
        assert service.track(thing) is thing
        assert labels(service) == []


def test_ended_asyncio_future(service: Service) -> None:
    """The same for asyncio."""

    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        assert service.track(task) is task

    asyncio.run(main())
    assert labels(service) == []


async def coroutine() -> None:
    """Do nothing."""


@pytest.mark.parametrize("thing", [42, None, 1.5, [], {}, b"label", object()])
def test_what_has_no_end(service: Service, thing: object) -> None:
    """Anything else is a TypeError that lists what can be tracked."""
    with pytest.raises(TypeError, match=r"label \(str\).*Popen"):
        service.track(thing)


def test_a_class(service: Service) -> None:
    """A class is a TypeError that says what to write."""
    with pytest.raises(TypeError, match=r"a class has no end.*@track on its methods"):
        service.track(Joins)


def test_a_coroutine_object(service: Service) -> None:
    """A coroutine object is a TypeError that says what to write."""
    waiting = coroutine()
    with pytest.raises(TypeError, match=r"create_task.*spawn"):
        service.track(waiting)  # type: ignore[unused-coroutine] # it is refused
    waiting.close()


def test_a_generator_object(service: Service) -> None:
    """A generator object likewise."""
    with pytest.raises(TypeError, match="@track on the function"):
        service.track(number for number in range(3))


@pytest.mark.parametrize("length", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["drain_timeout", "heartbeat_timeout"])
def test_bad_lengths(service: Service, name: str, length: float) -> None:
    """Lengths that make no sense are a ValueError at the call, whatever is tracked."""
    for call in (service.track, service.create_tracker, service.admit):
        with pytest.raises(ValueError, match=name):
            call("job", **{name: length})
    with pytest.raises(ValueError, match=name):
        service.track(threading.Thread(), **{name: length})  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=name):
        service.track(**{name: length})


def test_tasks_that_a_loops_end_cuts_off_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Under plain asyncio.run a tracked task cannot be kept: it is named, and the first time what to write instead."""

    async def main() -> None:
        for name in ("export 1", "export 2"):
            service.track(asyncio.ensure_future(asyncio.sleep(100)), label=name)
        await asyncio.sleep(0)

    service = Service()
    asyncio.run(main())
    said = sorted(record.getMessage() for record in caplog.records)
    assert [line.split('"')[1] for line in said] == ["export 1", "export 2"]
    assert sum("requiem_systemd.aio.run(main())" in line for line in said) == 1


def test_a_cancelled_task_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """A task that its own program cancels is over, and nothing is said."""

    async def main() -> None:
        task = service.track(asyncio.ensure_future(asyncio.sleep(100)))
        task.cancel()
        await asyncio.wait({task})

    service = Service()
    asyncio.run(main())
    assert caplog.records == []
    assert service.ledger.live == {}


def test_a_job_that_is_cut_off_is_named_as_redact_says(caplog: pytest.LogCaptureFixture) -> None:
    """A label that `redact` hides stays hidden."""

    async def main() -> None:
        service.track(asyncio.ensure_future(asyncio.sleep(100)), label="secret")
        await asyncio.sleep(0)

    with Service(signals=False, exit=False, redact=lambda _: "hidden") as service:
        asyncio.run(main())
    assert '"hidden" was cancelled' in caplog.text
    assert "secret" not in caplog.text
