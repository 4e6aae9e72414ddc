"""asyncio: jobs that are tasks hold the stop, and the loop lives until the last of them has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from requiem_systemd.adapters.tasks import latched
from requiem_systemd.errors import AbandonedError, DrainingError
from requiem_systemd.gate import in_main_thread
from requiem_systemd.service import Service, process
from requiem_systemd.wayout import CHAINED_GRACE

T = TypeVar("T")
J = TypeVar("J")


def run(main: Coroutine[Any, Any, T], *, service: Service = process, debug: bool | None = None, **options: Any) -> T:
    """Run `main` in a new event loop, as `asyncio.run` does, and hold the loop until the ledger is empty.

    Arms the service (`options` are those of `initialize`). When the drain begins, `main` goes on; when everything that is
    tracked has ended, and only then, it is cancelled, and the process leaves. When `main` returns or raises, the drain begins, and
    the loop is held before its remaining tasks would be cancelled. Returns what `main` returned; raises what it raised, else
    AbandonedError if jobs were abandoned, else SystemExit(0) where the drain ended `main` and `exit` is on.
    """
    if not _is_coroutine(main):
        msg = f"aio.run({type(main).__name__}): give a coroutine, as to asyncio.run: aio.run(main())"
        raise TypeError(msg)
    try:
        service.arm(**options)
    except BaseException:
        main.close()
        raise
    with asyncio.Runner(debug=debug) as runner:
        loop = runner.get_loop()
        service.hooks.loop = loop
        with service.keeping_main(), _forwarding(service, loop):
            return runner.run(_hold(main, service))


@contextlib.contextmanager
def _forwarding(service: Service, loop: asyncio.AbstractEventLoop) -> Any:
    """Take the wakeup fd back whenever the loop takes it for `add_signal_handler`; its bytes are passed on.

    A loop written in C (uvloop) has no attribute to put this in: there `ready()` and `wait()` take it back, and until then the
    drain begins when the interpreter next runs Python code in the main thread.
    """
    add = loop.add_signal_handler

    def add_signal_handler(sig: int, callback: Callable[..., object], *args: object) -> None:
        add(sig, callback, *args)
        service.retake()

    try:
        loop.add_signal_handler = add_signal_handler  # type: ignore[method-assign]
    except AttributeError:
        yield
        return
    try:
        yield
    finally:
        del loop.add_signal_handler


async def _hold(main: Coroutine[Any, Any, T], service: Service) -> T:
    """Run `main` until it ends or all is done, and the loop until all is done."""
    task = asyncio.get_running_loop().create_task(main, name="main")
    service.retake()
    stopped = asyncio.ensure_future(latched(service.engine.stopped))
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            service.begin("main returned" if task.cancelled() or task.exception() is None else "main failed")
            await stopped
    finally:
        stopped.cancel()
    if task in service.keepers:  # it has waited for this very moment, and goes on
        await asyncio.wait({task})
    elif not task.done() and (service.keepers or service.engine.wayout.others):  # its tasks, or its signal handlers, have just been told
        await asyncio.wait({task}, timeout=CHAINED_GRACE)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    abandoned = service.engine.drain.limits.abandoned
    if task.cancelled():
        if abandoned:
            raise AbandonedError(abandoned)
        if service.engine.setting.options.exit:
            raise SystemExit(0)
        raise asyncio.CancelledError
    result = task.result()
    if abandoned:
        raise AbandonedError(abandoned)
    return result


async def wait(*, service: Service = process) -> None:
    """Wait until the service has drained and all is done. Raises AbandonedError if jobs were abandoned.

    The task that waits goes on afterwards: neither is it cancelled, nor is the main thread made to leave, before it has ended.
    """
    service.retake()
    task: Any = asyncio.current_task()  # there is one: what awaits runs in it
    loop = asyncio.get_running_loop()
    service.keepers[task] = in_main_thread()
    try:
        await latched(service.engine.stopped)
    except BaseException:
        service.release(task)
        raise
    # Later than its end: where that is the end of the loop too, the main thread leaves by itself.
    task.add_done_callback(lambda _: loop.call_later(CHAINED_GRACE, service.release, task))
    if service.engine.drain.limits.abandoned:
        raise AbandonedError(service.engine.drain.limits.abandoned)


async def wait_begin(*, service: Service = process) -> None:
    """Wait until the drain begins."""
    service.retake()
    await latched(service.engine.begun)


def _is_coroutine(thing: object) -> bool:
    return asyncio.iscoroutine(thing)


def spawn(coro: Coroutine[Any, Any, T], label: str, *, service: Service = process) -> asyncio.Task[T]:
    """Run a coroutine as a task that is tracked and kept alive by the ledger: the loop has only weak references to tasks.

    Raises RuntimeError where no loop runs, TypeError for what is no coroutine, DrainingError once the service has stopped.
    """
    if not _is_coroutine(coro):
        msg = f"spawn({type(coro).__name__}): give a coroutine"
        raise TypeError(msg)
    try:
        task = asyncio.get_running_loop().create_task(coro, name=label)
    except RuntimeError:
        coro.close()
        raise
    try:
        service.track(task, label=label)
    except DrainingError:
        task.cancel()
        raise
    return task


async def jobs(
    fetch: Callable[[], Awaitable[J | None]], *, label: Callable[[J], str] = str, service: Service = process
) -> AsyncIterator[J]:
    """Yield a worker's jobs until the drain begins, each held from before it was fetched until its body has run.

    The async twin of `requiem_systemd.jobs`; `fetch` returns None for "nothing yet", within a timeout of its own.
    """
    while not service.should_stop():
        hold = service.open("fetching the next job")
        try:
            await hold.__aenter__()
        except DrainingError:  # stopped between the question and the entry: nothing was fetched
            return
        try:
            job = await fetch()
            if job is not None:
                hold.name = label(job)
                yield job
        finally:
            hold.__exit__(None, None, None)
