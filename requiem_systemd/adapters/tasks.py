"""asyncio tasks that requests start: each holds the stop as a job, without a word in the application.

What is under way is a context variable: asyncio copies the context into every task and callback, so a task that is created in a
request, however deep, is known as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from asyncio import Task
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd.errors import DrainingError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from requiem_systemd.latch import Latch


class Inside:
    """Stands in the context for a request that is under way.

    Where it `begins`, the next task is not one of its jobs but the request itself, which holds the stop by other means.
    """

    __slots__ = ()

    begins: bool = False
    task: Any = None


INSIDE: Final = Inside()
# Servers that do their own work in what an application sends (hypercorn's next request and idle timeout begin in the task of the last
# one), or in the context of a connection, where that is marked; and those whose connections are kept alive by tasks.
_SERVERS: Final = ("hypercorn.", "uvicorn.", "websockets.")
# The code of coroutines, by id (its hash takes long), and whether it is such a server's: to ask for a frame makes an object of that.
_known: Final[dict[int, tuple[Any, bool]]] = {}
in_request: Final[contextvars.ContextVar[Inside | None]] = contextvars.ContextVar("requiem_in_request", default=None)


class Unseen:
    """A loop, for a server that makes the tasks of its requests with it: they are no jobs, and its task factory is not asked.

    In the context of a request that is marked already (see INSIDE), what such a task begins is a job all the same, at no cost to the request:
    a variable that each sets in its context, and a function of ours for each task, cost a percent of what a server can do, either of them.
    """

    __slots__ = ("_loop", "call_at", "call_later", "create_future", "create_task", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.call_at: Any = loop.call_at
        self.call_later: Any = loop.call_later
        self.create_future: Any = loop.create_future
        self.time: Any = loop.time
        self.create_task: Any = functools.partial(Task, loop=loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def is_plain(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether nobody else's factory makes the tasks of this loop."""
    factory = loop.get_task_factory()
    return factory is None or getattr(factory, "is_plain", False)


def track_tasks(loop: asyncio.AbstractEventLoop, service: Any) -> None:
    """Have every task that is created inside a request hold the stop; again for the same loop: nothing."""
    factory: Any = loop.get_task_factory()
    if getattr(factory, "tracks_for", None) is service:
        return

    # With `context` by name: uvloop always gives it, and a dict for it would cost each request.
    def create(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Any = None, **kwargs: Any) -> Any:
        inside: Any = in_request.get()
        if inside is not None and not inside.begins:
            return create_job(loop, coro, context, kwargs)
        if inside is not None:
            inside.begins = False  # before there is a task: an eager one has begun others by then
        if factory is None and not kwargs:  # perhaps one for each request
            task: Any = Task(coro, loop=loop, context=context)
        else:
            task = _make(factory, loop, coro, context, kwargs)
        if inside is not None:
            inside.task = task
        return task

    def create_job(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Any, kwargs: dict[str, Any]) -> Any:
        if _is_a_servers(coro):  # no job, nor is what that begins
            outside = contextvars.copy_context()
            outside.run(in_request.set, None)
            return outside.run(create, loop, coro, context, **kwargs)
        task = _make(factory, loop, coro, context, kwargs)
        if isinstance(task, asyncio.Future):
            with contextlib.suppress(DrainingError):  # the loop is on its way out already
                service.track(task, label=_label(task))
        return task

    create.tracks_for = service  # type: ignore[attr-defined] # a function has attributes
    create.is_plain = factory is None  # type: ignore[attr-defined]
    loop.set_task_factory(create)  # type: ignore[arg-type] # whatever keywords this Python's loop gives are passed on


def _make(factory: Any, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Any, kwargs: dict[str, Any]) -> Any:
    if context is not None:  # somebody else's factory may not know what that is
        kwargs["context"] = context
    return Task(coro, loop=loop, **kwargs) if factory is None else factory(loop, coro, **kwargs)


def _is_a_servers(coroutine: Any) -> bool:
    code: Any = getattr(coroutine, "cr_code", None)
    known = _known.get(id(code))
    if known is not None:
        return known[1]
    frame = getattr(coroutine, "cr_frame", None)
    found = frame is not None and frame.f_globals.get("__name__", "").startswith(_SERVERS)
    if code is not None:
        _known[id(code)] = code, found
    return found


def _label(task: Any) -> str:
    """Name a task that nobody named by what it runs."""
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", None) or task.get_name())


async def latched(latch: Latch) -> None:
    """Wait for a latch without a thread."""
    loop = asyncio.get_running_loop()
    happened = loop.create_future()

    def wake() -> None:
        if not happened.done():
            happened.set_result(None)

    def call() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(wake)

    latch.then(call)
    await happened
