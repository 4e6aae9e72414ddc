"""Figures of a real cluster: rolls by verdict, and its workers' drains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.process.conftest import Program

pytest.importorskip("prometheus_client")

CLUSTER = """
import os
from prometheus_client import generate_latest
from requiem_systemd import Cluster, cluster, metrics

BROKEN = os.path.join(os.path.dirname(__file__), "broken")

def serve(service):
    if os.path.exists(BROKEN):
        raise SystemExit("broken")
    requiem.ready("up")
    requiem.wait()

def show():
    lines = generate_latest().decode().splitlines()
    print(*(line for line in lines if line.startswith("requiem_")), sep="\\n", flush=True)

requiem.initialize()
if cluster.is_primary():
    metrics.register(stop_timeout=60)
    requiem.on("dead", show)
Cluster(serve, workers=2).run()
"""


def test_cluster(program: Program) -> None:
    """A roll that went well, one that failed, then the drain: reloads and rolls are told by verdict, and four workers' drains."""
    program.start(CLUSTER)
    program.manager.reload()
    program.wait_for(lambda: program.manager.sent.count("RELOADING") == 1 and program.manager.state == "running")
    (program._folder / "broken").touch()
    program.manager.reload()
    program.wait_for(lambda: program.manager.sent.count("RELOADING") == 2 and program.manager.state == "running")
    program.manager.stop()
    figures = dict(line.rsplit(" ", 1) for line in program.ended().splitlines() if line.startswith("requiem_"))
    for name in ("reloads", "rolls"):
        assert figures[f'requiem_{name}_total{{verdict="ok"}}'] == "1.0"
        assert figures[f'requiem_{name}_total{{verdict="failed"}}'] == "1.0"
    assert figures['requiem_drains_total{process="worker"}'] == "4.0"  # two that were rolled, two at the end
    assert float(figures['requiem_drain_seconds_total{process="worker"}']) > 0
    assert figures['requiem_drains_total{process="self"}'] == "1.0"
    assert figures['requiem_in_flight{kind="worker"}'] == "0.0"
    assert figures["requiem_abandoned_total"] == "0.0"
