"""The ledger: who holds the stop, and from when to when."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import DrainingError, Service
from requiem_systemd.ledger import Ledger, Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from requiem_systemd.testing import FakeManager


def labels(service: Service) -> list[str]:
    """Return what is in flight."""
    return [str(entry.name) for entry, _ in service.ledger.entries()]


@pytest.fixture
def bare() -> Iterator[Service]:
    """Return a service that nobody has armed."""
    service = Service()
    yield service
    service.close()


# -- the ladder --------------------------------------------------------------------------------------------------------


def test_idle_at_once() -> None:
    """With nothing in it a ledger closes at once."""
    assert Ledger().close()


def test_not_idle_while_held() -> None:
    """With something in it a ledger does not close."""
    ledger = Ledger()
    ledger.enter(Record("job", 1))
    assert not ledger.close()


def test_idle_on_last_done() -> None:
    """It closes when the last has left, and the leaver wakes whoever waits."""
    ledger, woken = Ledger(), []
    ledger.wake = lambda: woken.append(len(ledger.live))
    first, last = Record("first", 1), Record("last", 1)
    ledger.enter(first)
    ledger.enter(last)
    ledger.begin()
    ledger.leave(first)
    assert not ledger.close()
    ledger.leave(last)
    assert ledger.close()
    assert woken[-1] == 0


def test_nobody_is_woken_before_the_drain() -> None:
    """In normal service leaving costs no wake-up."""
    ledger, woken = Ledger(), []
    ledger.wake = lambda: woken.append(1)
    record = Record("job", 1)
    ledger.enter(record)
    ledger.leave(record)
    assert woken == []


def test_closed_lets_nobody_in() -> None:
    """What comes after the close is turned away, and not in the ledger."""
    ledger = Ledger()
    ledger.close()
    with pytest.raises(DrainingError, match="late"):
        ledger.enter(Record("late", 1))
    assert ledger.entries() == []


def test_closed_by_force_gives_up_what_is_in_it() -> None:
    """Closed by force, what is still in is abandoned."""
    ledger = Ledger()
    record = Record("job", 1)
    ledger.enter(record)
    assert ledger.close(force=True)
    assert record.more.abandoned


def test_leaving_twice() -> None:
    """Leaving again is nothing."""
    ledger = Ledger()
    record = Record("job", 1)
    ledger.enter(record)
    ledger.leave(record)
    ledger.leave(record)
    assert ledger.close()


def test_closing_while_others_enter() -> None:
    """Many threads enter and leave while one closes: nobody is inside once it is closed."""
    ledger = Ledger()
    inside: list[bool] = []

    def work() -> None:
        for _ in range(2000):
            record = Record("job", 1)
            try:
                ledger.enter(record)
            except DrainingError:
                return
            inside.append(ledger.closed)
            ledger.leave(record)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not ledger.close():
        pass
    for thread in threads:
        thread.join()
    assert not any(inside)
    assert ledger.entries() == []


# -- with and async with -----------------------------------------------------------------------------------------------


def test_never_entered_holds_nothing(bare: Service) -> None:
    """A tracker that nobody enters is not in flight."""
    bare.track("job")
    assert labels(bare) == []


def test_entered_holds_until_its_end(bare: Service) -> None:
    """It is in flight inside its block."""
    with bare.track("job"):
        assert labels(bare) == ["job"]
    assert labels(bare) == []


def test_a_failed_job_is_done(bare: Service) -> None:
    """A block that raises is over too, and its exception goes on."""
    with pytest.raises(KeyError), bare.track("job"):
        raise KeyError
    assert labels(bare) == []


def test_nested(bare: Service) -> None:
    """Trackers within trackers are held one by one."""
    with bare.track("outer"), bare.track("inner"):
        assert labels(bare) == ["outer", "inner"]
    assert labels(bare) == []


def test_entered_again_one_after_the_other(bare: Service) -> None:
    """One object can be entered again when it is over."""
    hold = bare.track("job")
    for _ in range(2):
        with hold:
            assert labels(bare) == ["job"]
        assert labels(bare) == []


def test_entered_again_inside_itself(bare: Service) -> None:
    """Entered within itself it is a tracker of its own each time."""
    hold = bare.track("job")
    with hold:
        with hold:
            assert labels(bare) == ["job", "job"]
        assert labels(bare) == ["job"]
    assert labels(bare) == []


def test_shared_by_threads(bare: Service) -> None:
    """Entered by several threads it holds until the last of them has left."""
    hold = bare.track("job")
    entered, leave = threading.Barrier(5, timeout=10), threading.Event()

    def work() -> None:
        with hold:
            entered.wait()
            leave.wait(10)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.wait()
    assert labels(bare) == ["job"] * 4
    leave.set()
    for thread in threads:
        thread.join()
    assert labels(bare) == []


def test_shared_by_threads_while_draining(manager: FakeManager, service: Service) -> None:
    """A shared tracker that is left by one thread while draining still holds for the other."""
    hold = service.track("job")
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with hold:
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    with hold:
        thread.start()
        assert entered.wait(10)
        manager.stop()
    manager.advance(30)
    assert manager.state == "stop-sigterm"
    leave.set()
    thread.join()
    manager.wait_for("dead")


def test_a_stress_of_one_shared_tracker(bare: Service) -> None:
    """Whatever the order in which threads enter and leave one object, in the end nothing is held."""
    hold = bare.track("job")

    def work() -> None:
        for _ in range(300):
            with hold, hold:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert labels(bare) == []


def test_async_with(bare: Service) -> None:
    """A tracker holds in `async with` too."""

    async def main() -> None:
        async with bare.track("job") as tracker:
            await asyncio.sleep(0)
            assert tracker.label == "job"
            assert labels(bare) == ["job"]

    asyncio.run(main())
    assert labels(bare) == []


def test_async_with_shared_by_tasks(bare: Service) -> None:
    """Tasks that enter one object hold one tracker each."""

    async def main() -> None:
        hold = bare.track("job")

        async def work() -> None:
            async with hold:
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.sleep(0)
        assert labels(bare) == ["job"] * 3
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert labels(bare) == []


def test_tracker_attributes(manager: FakeManager, service: Service) -> None:
    """Label, age and status are those of the tracker; age is 0 before and after."""
    hold = service.track("job")
    assert hold.age == 0.0
    with hold as tracker:
        manager.advance(7)
        tracker.status("half")
        assert (tracker.label, tracker.age) == ("job", 7.0)
        assert service.in_flight()[0].status == "half"
    assert tracker.age == 0.0


def test_done_inside_the_block(bare: Service) -> None:
    """`done()` inside the block releases at once, and the block's end is nothing more."""
    with bare.track("job") as tracker:
        tracker.done()
        assert labels(bare) == []
    assert labels(bare) == []


def test_done_in_a_nested_entry(bare: Service) -> None:
    """`done()` of the inner entry releases the inner one only."""
    hold = bare.track("job")
    with hold:
        with hold as inner:
            inner.done()
            assert labels(bare) == ["job"]
        assert labels(bare) == ["job"]
    assert labels(bare) == []


# -- create_tracker ----------------------------------------------------------------------------------------------------


def test_created_holds_at_once(bare: Service) -> None:
    """What `create_tracker` makes is in flight from then on, until `done`, which may come twice."""
    tracker = bare.create_tracker("job")
    assert labels(bare) == ["job"]
    tracker.done()
    tracker.done()
    assert labels(bare) == []


def test_done_by_another_thread(bare: Service) -> None:
    """Any thread may say that it is done."""
    tracker = bare.create_tracker("job")
    thread = threading.Thread(target=tracker.done)
    thread.start()
    thread.join()
    assert labels(bare) == []


def test_a_dropped_handle_is_released(bare: Service) -> None:
    """A handle that nobody has any more holds nothing, and a ResourceWarning names it."""
    tracker = bare.create_tracker("forgotten")
    with pytest.warns(ResourceWarning, match="forgotten"):  # noqa: PT031 - two steps, one event
        del tracker
        gc.collect()
    assert labels(bare) == []


def test_a_handle_that_is_done_is_dropped_in_silence(bare: Service) -> None:
    """No warning where there is nothing to warn of."""
    tracker = bare.create_tracker("job")
    tracker.done()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del tracker
        gc.collect()


def test_a_handle_dropped_in_the_drain_ends_it(manager: FakeManager, service: Service) -> None:
    """The collector releases like `done` does."""
    tracker = service.create_tracker("forgotten")
    manager.stop()
    assert manager.state == "stop-sigterm"
    with pytest.warns(ResourceWarning, match="forgotten"):  # noqa: PT031 - two steps, one event
        del tracker
        gc.collect()
    manager.wait_for("dead")


@pytest.mark.parametrize("label", [None, 42, b"job"])
def test_a_label_is_text(bare: Service, label: Any) -> None:
    """`create_tracker` and `admit` want a str."""
    with pytest.raises(TypeError, match="label"):
        bare.create_tracker(label)
    with pytest.raises(TypeError, match="label"):
        bare.admit(label)


# -- after the stop ----------------------------------------------------------------------------------------------------


def test_let_in_while_draining(manager: FakeManager, service: Service) -> None:
    """A job in flight may need another to finish: it is let in, and waited for."""
    with service.track("first"):
        manager.stop()
        second = service.create_tracker("second")
    manager.advance(30)
    assert manager.state == "stop-sigterm"
    second.done()
    manager.wait_for("dead")


def test_nobody_is_let_in_when_stopped(manager: FakeManager, service: Service) -> None:
    """Once it has stopped nothing begins: DrainingError, which names the job."""
    manager.stop()
    manager.wait_for("dead")
    with pytest.raises(DrainingError, match="late"), service.track("late"):
        pass
    with pytest.raises(DrainingError, match="late"):
        service.create_tracker("late")

    async def main() -> None:
        async with service.track("late"):
            pass

    with pytest.raises(DrainingError, match="late"):
        asyncio.run(main())
    assert labels(service) == []


def test_a_decorated_function_is_not_called_when_stopped(manager: FakeManager, service: Service) -> None:
    """What the exit would kill is not begun."""
    called = []

    @service.track("late")
    def late() -> None:
        called.append(1)

    manager.stop()
    manager.wait_for("dead")
    with pytest.raises(DrainingError):
        late()
    assert called == []


# -- decorators --------------------------------------------------------------------------------------------------------


def test_function(bare: Service) -> None:
    """A decorated function is held while it runs, each call by itself; it keeps its name and its value."""

    @bare.track("job")
    def job(depth: int) -> list[str]:
        """Doc."""
        return job(depth - 1) if depth else labels(bare)

    assert job(2) == ["job"] * 3
    assert labels(bare) == []
    assert (job.__name__, job.__doc__) == ("job", "Doc.")


def test_bare_decorator(bare: Service) -> None:
    """Without a label the qualified name is one."""

    @bare.track
    def job() -> list[str]:
        return labels(bare)

    assert job() == ["test_bare_decorator.<locals>.job"]


def test_decorator_with_limits_only(bare: Service) -> None:
    """`@track(drain_timeout=5)` takes the name too, and each call has the limit."""

    @bare.track(drain_timeout=5)
    def job() -> list[object]:
        return [entry.extra().drain_timeout for entry, _ in bare.ledger.entries()]  # type: ignore[union-attr]

    assert job() == [5.0]


def test_function_that_fails(bare: Service) -> None:
    """One that raises is over."""

    @bare.track
    def job() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        job()
    assert labels(bare) == []


def test_coroutine_function(bare: Service) -> None:
    """A coroutine function is held from its first step to its end, by its task."""

    @bare.track("job")
    async def job() -> list[str]:
        await asyncio.sleep(0)
        return [info.owner for info in bare.in_flight()]

    async def main() -> list[str]:
        waiting = job()
        assert labels(bare) == []
        return await asyncio.create_task(waiting, name="mine")

    assert inspect.iscoroutinefunction(job)
    assert asyncio.run(main()) == ["task mine"]
    assert labels(bare) == []


def test_coroutine_that_is_cancelled(bare: Service) -> None:
    """A cancelled task is over."""

    @bare.track
    async def job() -> None:
        await asyncio.sleep(100)

    async def main() -> None:
        task = asyncio.create_task(job())
        await asyncio.sleep(0)
        assert len(labels(bare)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert labels(bare) == []


def test_generator(bare: Service) -> None:
    """A generator is held from its first value to its end; send, throw and the return value pass through."""

    @bare.track("job")
    def job() -> Generator[object, object, str]:
        got = yield "first"
        try:
            yield got
        except KeyError:
            yield labels(bare)
        return "value"

    run = job()
    assert labels(bare) == []
    assert next(run) == "first"
    assert labels(bare) == ["job"]
    assert run.send("sent") == "sent"
    assert run.throw(KeyError()) == ["job"]
    with pytest.raises(StopIteration) as end:
        next(run)
    assert end.value.value == "value"
    assert labels(bare) == []


def test_generator_that_is_closed(bare: Service) -> None:
    """A generator that is closed before its end is over."""

    @bare.track
    def job() -> Iterator[int]:
        yield 1
        yield 2

    run = job()
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert labels(bare) == []


def test_async_generator(bare: Service) -> None:
    """An async generator is held likewise; asend and athrow pass through."""

    @bare.track("job")
    async def job() -> AsyncGenerator[object, object]:
        got = yield "first"
        try:
            yield got
        except KeyError:
            yield labels(bare)

    async def main() -> None:
        run = job()
        assert labels(bare) == []
        assert await anext(run) == "first"
        assert labels(bare) == ["job"]
        assert await run.asend("sent") == "sent"
        assert await run.athrow(KeyError()) == ["job"]
        with pytest.raises(StopAsyncIteration):
            await anext(run)
        assert labels(bare) == []

    asyncio.run(main())


def test_async_generator_that_is_closed(bare: Service) -> None:
    """`aclose` closes the inner one, whose clean-up runs, and releases."""
    cleaned = []

    @bare.track
    async def job() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            cleaned.append(labels(bare) != [])

    async def main() -> None:
        run = job()
        await anext(run)
        await run.aclose()

    asyncio.run(main())
    assert cleaned == [True]
    assert labels(bare) == []


def test_async_generator_that_fails(bare: Service) -> None:
    """What it raises, and what is thrown in and not caught, goes on, and it is over."""

    @bare.track
    async def job() -> AsyncGenerator[int, None]:
        yield 1
        raise KeyError

    async def main() -> None:
        run = job()
        await anext(run)
        with pytest.raises(KeyError):
            await anext(run)
        run = job()
        await anext(run)
        with pytest.raises(IndexError):
            await run.athrow(IndexError())

    asyncio.run(main())
    assert labels(bare) == []


def test_methods(bare: Service) -> None:
    """Methods, static and class methods are decorated in either order."""

    class Worker:
        @bare.track
        def method(self) -> list[str]:
            return labels(bare)

        @bare.track
        @staticmethod
        def static() -> list[str]:
            return labels(bare)

        @staticmethod
        @bare.track
        def inner_static() -> list[str]:
            return labels(bare)

        @bare.track
        @classmethod
        def of_class(cls) -> tuple[str, list[str]]:
            return cls.__name__, labels(bare)

    prefix = "test_methods.<locals>.Worker."
    assert Worker().method() == [f"{prefix}method"]
    assert Worker.static() == Worker().static() == [f"{prefix}static"]
    assert Worker.inner_static() == [f"{prefix}inner_static"]
    assert Worker.of_class() == ("Worker", [f"{prefix}of_class"])


def test_partial(bare: Service) -> None:
    """A partial is held like its function, also of a coroutine function."""

    def job(number: int) -> tuple[int, list[str]]:
        return number, labels(bare)

    async def coroutine(number: int) -> tuple[int, list[str]]:
        await asyncio.sleep(0)
        return number, labels(bare)

    assert bare.track("job")(functools.partial(job, 1))() == (1, ["job"])
    assert asyncio.run(bare.track("job")(functools.partial(coroutine, 2))()) == (2, ["job"])


def test_callable_object(bare: Service) -> None:
    """An object with __call__ can be decorated; its class is its label."""

    class Job:
        def __call__(self) -> list[str]:
            return labels(bare)

    assert bare.track(Job())() == ["Job"]
    assert bare.track("job")(Job())() == ["job"]


def test_builtin(bare: Service) -> None:
    """A builtin function can be decorated."""
    assert bare.track("length")(len)([1, 2]) == 2


def test_oldest() -> None:
    """The oldest few are seen without a look at the rest."""
    ledger = Ledger()
    records = [Record(str(number), None) for number in range(5)]
    for record in records:
        ledger.enter(record)
    ledger.leave(records[0])
    assert [entry.name for entry, _ in ledger.oldest(2)] == ["1", "2"]
    assert ledger.oldest(100) == ledger.entries()


def test_oldest_while_others_come_and_go() -> None:
    """It is seen also where threads enter and leave all the time."""
    ledger, over = Ledger(), threading.Event()
    first = Record("first", None)
    ledger.enter(first)

    def come_and_go() -> None:
        while not over.is_set():
            record = Record("other", None)
            ledger.enter(record)
            ledger.leave(record)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert all(ledger.oldest(3)[0][0] is first for _ in range(2000))
    finally:
        over.set()
        for thread in threads:
            thread.join()
