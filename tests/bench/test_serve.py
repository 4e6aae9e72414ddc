"""What `requiem-systemd serve --workers 2` costs, against `uvicorn --workers 2` with the same application: requests a second, in turns."""

from __future__ import annotations

import statistics
from typing import Final

import pytest

from tests.bench.test_throughput import PAIRS, rate, served
from tests.conformance.conftest import PROGRAMS
from tests.conformance.subjects import Subject

AT_LEAST: Final = 0.97
CONNECTIONS: Final = 64
BEST_OF: Final = 4
APP: Final = ("asgi_app:app", "--workers", "2")
OURS: Final = Subject("serve", ("{python}", "-m", "requiem_systemd", "serve", *APP, "--app-dir", str(PROGRAMS), "--bind", "127.0.0.1:{port}"))
THEIRS: Final = Subject("uvicorn", ("{python}", "-m", "uvicorn", *APP, "--no-access-log", "--port", "{port}"))


@pytest.mark.timeout(240)
def test_serve() -> None:
    """It answers at least 0.97 times as many requests as uvicorn, by the median of pairs; neither writes an access log."""
    with served(THEIRS, PLAIN="1") as theirs, served(OURS, PLAIN="1") as ours:
        rate(theirs, CONNECTIONS), rate(ours, CONNECTIONS)
        ratios = [best(ours) / best(theirs) for _ in range(PAIRS)]
    median = statistics.median(ratios)
    print(f"serve --workers 2: {median:.3f} times uvicorn's throughput (at least {AT_LEAST}); from {min(ratios):.3f} to {max(ratios):.3f}")
    assert median >= AT_LEAST


def best(port: int) -> float:
    """Return the best of some: with either, it is by chance how many of the connections each of the two workers gets, which may be all."""
    return max(rate(port, CONNECTIONS) for _ in range(BEST_OF))
