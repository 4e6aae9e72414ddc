"""APScheduler 3: runs end, nothing is scheduled in the drain, and what comes due meanwhile is run by the next process."""

from __future__ import annotations

import re
import signal
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from requiem_systemd import Service
from requiem_systemd.adapters.apscheduler import track_scheduler
from tests.conformance.working import Program, program, redis_server

pytest.importorskip("apscheduler")
KINDS: Final = ("background", "blocking", "asyncio", "processes")


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[str]:
    """Run a Redis, and return its port."""
    with redis_server(tmp_path) as url:
        yield str(urllib.parse.urlsplit(url).port)


@pytest.fixture
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """Return a worker of a kind, not started."""
    kind = request.param if hasattr(request, "param") else "background"
    with program(tmp_path, "{python}", "apscheduler_worker.py", kind) as made:
        yield made


every_kind = pytest.mark.parametrize("worker", KINDS, indirect=True)


def started(worker: Program, **env: str) -> Program:
    """Start it, and wait until its job runs."""
    worker.launch(**env)
    worker.wait_recorded("begun job")
    return worker


@every_kind
def test_job(worker: Program) -> None:
    """A run is held past TimeoutStopSec=; the program's own shutdown comes once, after it. What comes due in the drain is not begun."""
    started(worker).stop()
    ticks = worker.recorded.count("tick")
    recorded = worker.ended()
    assert recorded[-2:] == ["ended job", "shutdown"]
    assert recorded.count("shutdown") == 1
    assert "begun due" not in recorded
    assert recorded.count("tick") - ticks <= 1  # one may have been on its way
    assert worker.manager.result == "success"


@every_kind
def test_due_in_the_drain(worker: Program, redis_port: str) -> None:
    """What comes due in the drain stays in the job store, and the next process runs it, once."""
    started(worker, REDIS_PORT=redis_port).stop()
    assert "begun due" not in worker.ended()
    worker.launch(REDIS_PORT=redis_port, FILL="no")
    worker.wait_recorded("ended due")
    worker.stop()
    recorded = worker.ended()
    assert (recorded.count("begun due"), recorded.count("begun job"), recorded.count("ended job")) == (1, 1, 1)


def test_short_grace_is_named(worker: Program, redis_port: str) -> None:
    """That APScheduler would drop what came due is said in one line, and the setting to change."""
    started(worker, REDIS_PORT=redis_port, SECONDS="0", GRACE="default").stop()
    worker.ended()
    assert worker.output.count("set job_defaults={'misfire_grace_time': None}") == 1


def test_failing_job(worker: Program) -> None:
    """A run that raises holds nothing afterwards."""
    worker.launch(SECONDS="0")
    worker.wait_recorded("failed")
    worker.stop()
    worker.ended()
    assert "abandoned" not in worker.output


@every_kind
def test_signals_to_the_group(worker: Program) -> None:
    """SIGTERM and SIGINT that come to every process, twice, hurt no run."""
    started(worker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        worker.signal_all(number)
    assert "ended job" in worker.ended()


@every_kind
def test_sigint_twice(worker: Program) -> None:
    """SIGINT twice abandons, with the name of the job."""
    started(worker, SECONDS="300").sigint_again()
    worker.ended(status=75)
    assert re.search('abandoned "(coroutine )?job"', worker.output), worker.output


def test_refusals() -> None:
    """What is no scheduler, or runs, is refused."""
    from apscheduler.schedulers.background import BackgroundScheduler  # noqa: PLC0415 - it may be missing

    with pytest.raises(TypeError, match="give a scheduler of APScheduler 3"):
        track_scheduler(object())
    scheduler: Any = BackgroundScheduler()
    scheduler.start()
    with pytest.raises(RuntimeError, match="before start"):
        track_scheduler(scheduler)
    scheduler.shutdown()


def test_max_instances(tmp_path: Path) -> None:
    """A run that is skipped because the last one still runs holds nothing."""
    from apscheduler.executors.base import MaxInstancesReachedError  # noqa: PLC0415 - it may be missing
    from apscheduler.schedulers.background import BackgroundScheduler  # noqa: PLC0415 - same

    service = Service()
    scheduler: Any = track_scheduler(BackgroundScheduler(), service=service)
    scheduler.start(paused=True)
    job = scheduler.add_job(str, id="job")
    executor = scheduler._lookup_executor("default")
    executor._instances["job"] = 1
    with pytest.raises(MaxInstancesReachedError):
        executor.submit_job(job, [])
    assert service.in_flight() == ()
    scheduler.shutdown()
    service.close()
