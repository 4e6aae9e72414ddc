"""What a Celery worker does when its service is stopped, with a pool of processes and with one of threads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests import redisserver
from tests.conformance.conftest import wait_until
from tests.conformance.subjects import Subject
from tests.conformance.workers import ALARMS, Workers, workers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TYPED: Final = ("{bin}/celery", "-A", "celery_app", "worker", "--loglevel", "INFO", "-c")
POOLS: Final = {
    pool: Subject(pool, (), (*TYPED, "1", "-P", pool), env={"PROGRAM": "celery_app"}) for pool in ("prefork", "threads")
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redisserver.Server]:
    """Start a Redis."""
    with redisserver.serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=POOLS)
def workers(request: pytest.FixtureRequest, tmp_path: Path, broker: redisserver.Server) -> Iterator[Workers]:
    """Return what starts workers with a pool."""
    with workers_of(POOLS[request.param], tmp_path, broker) as made:
        yield made


def test_held(workers: Workers) -> None:
    """A task is held past TimeoutStopSec= and named; Celery's own shutdown comes after it, once, and nothing is amiss."""
    worker = workers.begin()
    workers.submit("job", "one", 5)
    worker.wait_recorded("begun one")
    worker.stop()
    worker.wait_for(lambda: "celery_app.job[" in worker.manager.status, poll=True)
    assert "(one" not in worker.manager.status
    assert worker.ended() == ["begun one", "shutting down", "ended one", "shutdown"]
    assert worker.manager.result == "success"
    assert not [word for word in ALARMS if word in worker.output], worker.output
