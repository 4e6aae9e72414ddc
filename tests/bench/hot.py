"""What a tracker costs: ratios against a control in the same run, medians of 21 interleaved pairs, each the minimum of 5."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import prometheus_client

import requiem_systemd as requiem

PAIRS = 21
BEST_OF = 5
Body = Callable[[int], None]


class AsyncNull:
    """An empty asynchronous context manager, made anew like nullcontext()."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def plain(make: Callable[[], Any]) -> Body:
    """Loop over `with make(): pass`."""
    return _compiled("def body(count):\n    for _ in range(count):\n        with {make}: pass", make)


def in_coroutine(make: Callable[[], Any]) -> Body:
    """The same inside a coroutine."""
    body = _compiled("async def body(count):\n    for _ in range(count):\n        with {make}: pass", make)
    return lambda count: asyncio.run(body(count))  # type: ignore[arg-type]


def asynchronous(make: Callable[[], Any]) -> Body:
    """Loop over `async with make(): pass`."""
    body = _compiled("async def body(count):\n    for _ in range(count):\n        async with {make}: pass", make)
    return lambda count: asyncio.run(body(count))  # type: ignore[arg-type]


def _compiled(source: str, make: Callable[[], Any]) -> Body:
    """Write the call out, as a user does: a wrapper's cost would dilute the ratio."""
    calls: dict[Callable[[], Any], tuple[str, dict[str, Any]]] = {
        track: ("track('x')", {"track": requiem.track}),
        null: ("nullcontext()", {"nullcontext": nullcontext}),
        async_null: ("AsyncNull()", {"AsyncNull": AsyncNull}),
        inprogress: ("gauge.track_inprogress()", {"gauge": GAUGE}),
    }
    text, names = calls[make]
    namespace = dict(names)
    exec(source.format(make=text), namespace)
    body: Body = namespace["body"]
    return body


GAUGE = prometheus_client.Gauge("bench_in_progress", "what is in flight", registry=None)


def track() -> None:
    """Stand for `track('x')`."""


def null() -> None:
    """Stand for `nullcontext()`."""


def async_null() -> None:
    """Stand for `AsyncNull()`."""


def inprogress() -> None:
    """Stand for prometheus_client's `track_inprogress()`."""


def on_threads(body: Body, number: int = 8) -> Body:
    """Run a body on several threads at once."""

    def run(count: int) -> None:
        threads = [threading.Thread(target=body, args=(count // number,)) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def ratio(ours: Body, control: Body, count: int = 20_000) -> float:
    """Return the median over the pairs of ours / control."""
    ours(count)
    control(count)
    return statistics.median(_best(ours, count) / _best(control, count) for _ in range(PAIRS))


def _best(body: Body, count: int) -> float:
    times = []
    for _ in range(BEST_OF):
        start = time.perf_counter()
        body(count)
        times.append(time.perf_counter() - start)
    return min(times)


def with_many_live(live: int = 100_000) -> float:
    """Return what a tracker costs with many live ones, against none."""
    body = plain(track)
    ratios = []
    for _ in range(PAIRS):
        alone = _best(body, 20_000)
        handles = [requiem.create_tracker("x") for _ in range(live)]
        beside = _best(body, 20_000)
        for handle in handles:
            handle.done()
        ratios.append(beside / alone)
    return statistics.median(ratios)


def bytes_per_handle(live: int = 100_000) -> float:
    """Return the memory of one live handle of create_tracker."""
    handles: list[Any] = [None] * live
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for index in range(live):
            handles[index] = requiem.create_tracker("x")
        size = (tracemalloc.get_traced_memory()[0] - before) / live
    finally:
        tracemalloc.stop()
    for handle in handles:
        handle.done()
    return size
