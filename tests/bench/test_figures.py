"""The figures that the project promises; `tests/bench/run` prints them as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.bench import hot, whole
from tests.systemd.sandbox import Sandbox, missing


class Figure(NamedTuple):
    """A measure, and what it may be at most."""

    name: str
    measure: Callable[[], float]
    most: float
    unit: str = "x"


FIGURES = (
    Figure("track / nullcontext", lambda: hot.ratio(hot.plain(hot.track), hot.plain(hot.null)), 1.8),
    Figure(
        "track / nullcontext in a coroutine",
        lambda: hot.ratio(hot.in_coroutine(hot.track), hot.in_coroutine(hot.null)),
        1.8,
    ),
    Figure(
        "async with track / empty async context manager",
        lambda: hot.ratio(hot.asynchronous(hot.track), hot.asynchronous(hot.async_null)),
        1.8,
    ),
    Figure(
        "track / nullcontext on 8 threads",
        lambda: hot.ratio(hot.on_threads(hot.plain(hot.track)), hot.on_threads(hot.plain(hot.null)), 80_000),
        2.2,
    ),
    Figure("track / track_inprogress", lambda: hot.ratio(hot.plain(hot.track), hot.plain(hot.inprogress)), 0.5),
    Figure(
        "track / track_inprogress on 8 threads",
        lambda: hot.ratio(hot.on_threads(hot.plain(hot.track)), hot.on_threads(hot.plain(hot.inprogress)), 80_000),
        0.7,
    ),
    Figure("track with 100,000 live / with none", hot.with_many_live, 1.25),
    Figure("memory of a live create_tracker handle", hot.bytes_per_handle, 250, "bytes"),
    Figure("SIGTERM to STOPPING=1, idle", whole.begin_milliseconds, 5, "ms"),
    Figure("import requiem_systemd", whole.import_milliseconds, 20, "ms"),
    Figure("context switches of an idle service in 10 s", whole.idle_switches, 0, ""),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figure(figure: Figure) -> None:
    """What the library costs stays below what is promised."""
    measured = figure.measure()
    print(f"\n{figure.name}: {measured:.2f} {figure.unit} (at most {figure.most})")
    assert measured <= figure.most


def test_bare_import_leaves_asyncio_alone() -> None:
    """Threaded services do not pay for asyncio."""
    assert not whole.imports_asyncio()


@pytest.mark.systemd
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", sorted(whole.KINDS))
def test_way_out(kind: str, bench_box: Sandbox, pytestconfig: pytest.Config) -> None:
    """From the last job's end to the inactive unit it takes at most 15 ms more than a script that simply exits."""
    measured = whole.exit_milliseconds(kind, bench_box, pytestconfig.getoption("--sandbox-python"))
    print(f"\nlast job's end to inactive unit, {kind}: {measured:.2f} ms more (at most 15)")
    assert measured <= 15


@pytest.fixture(scope="module")
def bench_box() -> object:
    """Return a booted container."""
    if reason := missing():
        pytest.skip(f"no systemd: {reason}")
    with Sandbox("/") as box:
        yield box
