"""Pools of threads and processes: what was given to them runs to its end, whatever comes to the whole group."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing.pool
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Final

import pytest

from requiem_systemd import Service
from requiem_systemd.adapters.pools import _KEPT, track_pool
from tests.conformance.working import Program, program

KINDS: Final = (
    "threads",
    "processes-fork",
    "processes-spawn",
    "processes-forkserver",
    "multiprocessing-threads",
    "multiprocessing-fork",
    "multiprocessing-spawn",
    "multiprocessing-forkserver",
)
IN_PROCESSES: Final = tuple(kind for kind in KINDS if not kind.endswith("threads"))
FIRST: Final = ["begun first", "ended first", "begun second", "ended second", "dead"]


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a function that starts the program with a kind of pool, an ending, and a first job of some seconds."""
    made: list[Any] = []

    def start(kind: str, ending: str, seconds: float = 4.0) -> Program:
        block = program(tmp_path, "{python}", "pools.py", kind, ending, str(seconds))
        made.append(block)
        pool = block.__enter__()
        pool.launch()
        pool.wait_recorded("begun first")
        return pool

    yield start
    for block in made:
        block.__exit__(None, None, None)


@pytest.mark.parametrize("ending", ["wait", "end"])
@pytest.mark.parametrize("kind", KINDS)
def test_job(run: Any, kind: str, ending: str) -> None:
    """A job is held past TimeoutStopSec=, and one that is given to the pool in the drain; also where the main thread has ended."""
    pool = run(kind, ending)
    pool.stop()
    assert pool.ended() == FIRST
    pool.is_clean()


@pytest.mark.parametrize("kind", ["threads", "multiprocessing-threads", "multiprocessing-fork"])
def test_end_of_with_block(run: Any, kind: str) -> None:
    """A `with` block that the drain ends kills nothing: the end of one around a multiprocessing pool would."""
    pool = run(kind, "with", 3.0)
    pool.stop()
    assert "ended first" in pool.ended()


@pytest.mark.parametrize("kind", ["threads", "processes-fork", "multiprocessing-fork"])
def test_queued(run: Any, kind: str) -> None:
    """What waits in the pool runs too: nobody else knows of it."""
    pool = run(kind, "full", 3.0)
    pool.stop()
    assert sum(line.startswith("ended queued") for line in pool.ended()) == 4


@pytest.mark.parametrize("kind", IN_PROCESSES)
def test_signals_to_the_group(run: Any, kind: str) -> None:
    """SIGTERM and SIGINT that come to every process, twice, hurt no job."""
    pool = run(kind, "wait")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        pool.signal_all(number)
    pool.manager.wait_message("EXTEND_TIMEOUT_USEC")
    assert pool.ended() == FIRST
    pool.is_clean()


@pytest.mark.parametrize("kind", KINDS)
def test_sigint_twice(run: Any, kind: str) -> None:
    """SIGINT twice abandons, with the name, and leaves no process behind."""
    pool = run(kind, "end", 300.0)
    pool.sigint_again()
    pool.ended(status=75)
    assert 'abandoned "job"' in pool.output


def test_unshielded_is_named(run: Any) -> None:
    """A multiprocessing.Pool of unshielded processes is tracked, and one line says what it cannot bear, and what to write instead."""
    pool = run("multiprocessing-unshielded", "wait")
    pool.stop()
    assert pool.ended() == FIRST
    assert pool.output.count("pools.context().Pool(") == 1


def test_idle_stop(run: Any) -> None:
    """With nothing to do its end is quick, and nothing is left."""
    pool = run("processes-fork", "end", 0.0)
    pool.wait_recorded("ended second")
    pool.manager.stop()
    pool.ended()
    assert pool.manager.result == "success"


# -- in this process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service of this process."""
    service = Service()
    service.in_flight()
    yield service
    service.close()


def labels(service: Service) -> list[str]:
    """Name what is in flight."""
    return [job.label for job in service.in_flight()]


def wait(event: Event, *_: object) -> None:
    """Wait: a job's function."""
    event.wait(10)


EXECUTORS: Final = pytest.mark.parametrize("make", [ThreadPoolExecutor, multiprocessing.pool.ThreadPool])


@contextlib.contextmanager
def tracked(make: Any, service: Service) -> Iterator[Any]:
    """Give a tracked pool of two threads."""
    pool = track_pool(make(2), service=service)
    yield pool
    if isinstance(pool, Executor):
        pool.shutdown()
    else:
        pool.close()
        pool.join()


@EXECUTORS
def test_map(make: Any, service: Service) -> None:
    """What `map` has begun holds under the function's name."""
    event = Event()
    with tracked(make, service) as pool:
        if isinstance(pool, Executor):
            results: Any = pool.map(functools.partial(wait, event), range(2))
            assert labels(service) == ["wait", "wait"]
        else:
            results = pool.map_async(functools.partial(wait, event), range(2))
            assert labels(service) == ["wait"]
        event.set()
        assert list(results if isinstance(pool, Executor) else results.get()) == [None, None]
    assert labels(service) == []


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_imap(service: Service, method: str) -> None:
    """`imap` holds until its last result was taken, or the rest was dropped."""
    with tracked(multiprocessing.pool.ThreadPool, service) as pool:
        results = getattr(pool, method)(str, [1, 2])
        assert labels(service) == ["str"]
        assert sorted(results) == ["1", "2"]
        assert labels(service) == []
        results = getattr(pool, method)(str, range(8), 2)
        next(results)
        assert labels(service) == ["str"]
        del results
        assert labels(service) == []


@EXECUTORS
def test_map_of_nothing(make: Any, service: Service) -> None:
    """Nothing to do holds nothing."""
    with tracked(make, service) as pool:
        assert list(pool.map(str, [])) == []
        assert labels(service) == []


@EXECUTORS
def test_failing_job(make: Any, service: Service) -> None:
    """A job that raises holds nothing afterwards."""
    with tracked(make, service) as pool:
        if isinstance(pool, Executor):
            pool.submit(int, "x")
        else:
            pool.apply_async(int, ("x",))
    assert labels(service) == []


def test_terminated_pool_holds_nothing(service: Service) -> None:
    """What `terminate()` has killed never ends, and holds nothing."""
    event = Event()
    pool = track_pool(multiprocessing.pool.ThreadPool(1), service=service)
    pool.apply_async(wait, (event,))
    pool.apply_async(wait, (event,))
    assert labels(service) == ["wait", "wait"]
    event.set()
    pool.terminate()
    pool.join()
    assert labels(service) == []


def test_dropped_pool_outlives_the_drain(service: Service) -> None:
    """A pool that only its last job held is not ended by its own helper thread: the interpreter's end would stop that one halfway."""
    event, ended = Event(), Event()
    pool = track_pool(multiprocessing.pool.ThreadPool(1), service=service)
    handler = pool._result_handler  # type: ignore[attr-defined] # the thread that lets go of it last
    pool.apply_async(wait, (event,), callback=lambda _: ended.set())
    weak = weakref.ref(pool)
    del pool
    service.begin()
    event.set()
    assert ended.wait(10)
    handler.join(1.0)
    kept = weak()
    assert kept is not None
    assert handler.is_alive()
    _KEPT.clear()
    kept.terminate()
    kept.join()


def test_no_pool(service: Service) -> None:
    """What is no pool is refused."""
    with pytest.raises(TypeError, match="give a concurrent"):
        track_pool(object(), service=service)
