"""Figures for Prometheus, by prometheus_client: `pip install 'requiem-systemd[metrics]'`.

    from requiem_systemd import metrics

    metrics.register()

They are collected when they are scraped; tracking costs what it did. A drain ends its process, which takes its last figures along: what
became of past drains is in the journal. In a cluster each process has its own, and the primary counts its workers' drains and rolls. Of a
roll by `requiem-systemd roll` no process is left to be scraped: `requiem-systemd history NAME --json` has those, by verdict, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from requiem_systemd import slot, unitfile
from requiem_systemd.ledger import BOUNDED, HOOK, JOB, WORKER
from requiem_systemd.lifecycle import State
from requiem_systemd.limits import kind_of
from requiem_systemd.service import Service
from requiem_systemd.tally import VERDICTS, Tally

try:
    from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector, CollectorRegistry
except ModuleNotFoundError as _missing:
    _text = "requiem_systemd.metrics needs prometheus_client: pip install 'requiem-systemd[metrics]', or apt install python3-prometheus-client"
    raise ImportError(_text) from _missing

KINDS: Final = tuple(sorted({JOB, HOOK, WORKER, *BOUNDED}))


def register(registry: CollectorRegistry = REGISTRY, *, service: Service | None = None, stop_timeout: float | None = None) -> Figures:
    """Have a registry show the figures of a service: of the process's one, if none is given. Returns the collector, to unregister it by.

    `stop_timeout`: seconds after which systemd would have killed what still runs, as far as nobody had asked it for more time;
    None: the TimeoutStopSec= of the unit's files, where they can be read.
    """
    figures = Figures(slot.own(service), _stop_timeout() if stop_timeout is None else stop_timeout)
    registry.register(figures)
    return figures


class Figures(Collector):
    """Shows a service's figures; any thread may ask."""

    def __init__(self, service: Service, stop_timeout: float | None) -> None:
        self._service = service
        self._stop_timeout = stop_timeout
        self._outlived = 0
        if stop_timeout is not None and stop_timeout < math.inf:
            service.on("begin", self._begun)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield what there is to tell now."""
        ledger, engine = self._service.ledger, self._service.running_engine
        began = ledger.began
        tally = Tally() if engine is None else engine.tally
        kinds = Counter(kind_of(entry) for entry, _ in ledger.entries())
        yield _family(GaugeMetricFamily, "requiem_in_flight", "What holds the stop, by kind.", "kind", {kind: kinds[kind] for kind in KINDS})
        yield GaugeMetricFamily("requiem_draining", "1 from the begin of the drain on.", value=float(began is not None))
        drains = {"self": float(began is not None), "worker": tally.drains}
        yield _family(CounterMetricFamily, "requiem_drains", "Drains: begun by this process; ended by its workers.", "process", drains)
        ended = ledger.clock() if tally.stopped is None else tally.stopped
        lengths = {"self": 0.0 if began is None else ended - began, "worker": tally.drain_seconds}
        yield _family(CounterMetricFamily, "requiem_drain_seconds", "How long they have taken.", "process", lengths)
        abandoned = 0 if engine is None else len(engine.drain.limits.abandoned)
        yield CounterMetricFamily("requiem_abandoned", "Jobs that were given up in a drain, and workers that gave up theirs.", value=abandoned)
        if self._stop_timeout is not None:
            yield CounterMetricFamily("requiem_outlived", "Jobs that TimeoutStopSec= alone would have had killed.", value=self._outlived)
        for name, text, counted in (
            ("requiem_reloads", "Reloads, by verdict.", tally.reloads),
            ("requiem_rolls", "Exchanges of a cluster's workers, by verdict; rolls of units: requiem-systemd history.", tally.rolls),
        ):
            yield _family(CounterMetricFamily, name, text, "verdict", {one: counted[one] for one in VERDICTS})

    def describe(self) -> list[Metric]:
        """Tell the registry the names; without this it would collect for them."""
        return list(self.collect())

    def _begun(self) -> None:
        engine = self._service.engine
        when = engine.setting.now() + (self._stop_timeout or 0.0)
        engine.loop.post(lambda: engine.loop.alarm(self._count, when))

    def _count(self) -> None:
        """Count, when TimeoutStopSec= has passed, the jobs that are in flight; in the loop."""
        engine = self._service.running_engine
        if engine is not None and engine.state is State.DRAINING:
            self._outlived += engine.jobs()


F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)


def _family(kind: type[F], name: str, text: str, label: str, values: Mapping[str, float]) -> F:
    family = kind(name, text, labels=[label])
    for value, figure in values.items():
        family.add_metric([value], figure)
    return family


def _stop_timeout() -> float | None:
    name = unitfile.own_service()
    return unitfile.stop_timeout(name) if name else None
