"""`track` as a decorator: each call of the function, each run of the generator, is a tracker of its own."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Final

from requiem_systemd.stacks import running_task

# code.co_flags (inspect, "Code Objects Bit Flags"); inspect itself takes 10 ms to import
_GENERATOR: Final = 0x20
_COROUTINE: Final = 0x80 | 0x100
_ASYNC_GENERATOR: Final = 0x200


def decorate(fresh: Callable[[], Any], function: Any) -> Any:
    """Enter what `fresh` makes around each call of a function, coroutine function, generator function or async generator."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(decorate(fresh, function.__func__))
    plain: Any = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    flags = getattr(getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None), "co_flags", 0)
    if flags & _ASYNC_GENERATOR:
        wrapper = _async_generator(fresh, function)
    elif flags & _COROUTINE:
        wrapper = _coroutine(fresh, function)
    elif flags & _GENERATOR:
        wrapper = _generator(fresh, function)
    else:
        wrapper = _function(fresh, function)
    return functools.wraps(function)(wrapper)


def _function(fresh: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with fresh():
            return function(*args, **kwargs)

    return wrapper


def _coroutine(fresh: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        hold = fresh()
        async with hold:
            hold.owner = running_task() or hold.owner
            return await function(*args, **kwargs)

    return wrapper


def _generator(fresh: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with fresh():
            return (yield from function(*args, **kwargs))

    return wrapper


def _async_generator(fresh: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with fresh():
            inner = function(*args, **kwargs)
            step = inner.__anext__()
            while True:  # PEP 525 has no `yield from`: what is sent and thrown in is passed on by hand
                try:
                    value = await step
                except StopAsyncIteration:
                    return
                try:
                    sent = yield value
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever is thrown in belongs to the inner one
                    step = inner.athrow(error)
                else:
                    step = inner.asend(sent)

    return wrapper
