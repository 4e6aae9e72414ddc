"""Figures for Prometheus, by the real prometheus_client."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest

from requiem_systemd import Service, metrics
from requiem_systemd.errors import ReloadError

if TYPE_CHECKING:
    from requiem_systemd.testing import FakeManager


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return a registry of the test's own."""
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Scrape one figure."""
    return registry.get_sample_value(name, labels)


def test_in_flight(service: Service, registry: CollectorRegistry) -> None:
    """What is in flight is counted when it is scraped, by kind; kinds that there are none of are 0."""
    metrics.register(registry, service=service)
    assert value(registry, "requiem_in_flight", kind="job") == 0
    with service.track("one"), service.track("two"):
        assert value(registry, "requiem_in_flight", kind="job") == 2
        assert value(registry, "requiem_in_flight", kind="request") == 0
    assert value(registry, "requiem_in_flight", kind="job") == 0


def test_unarmed(registry: CollectorRegistry) -> None:
    """Of a service that is not armed the figures are there, and scraping starts no thread."""
    service = Service()
    before = threading.active_count()
    metrics.register(registry, service=service)
    with service.track("job"):
        assert value(registry, "requiem_in_flight", kind="job") == 1
    assert value(registry, "requiem_drains_total", process="self") == 0
    assert value(registry, "requiem_reloads_total", verdict="ok") == 0
    assert before == threading.active_count()


def test_process_s_service(registry: CollectorRegistry) -> None:
    """Without a service it is the process's one; a collector can be taken back."""
    figures = metrics.register(registry)
    assert b"requiem_in_flight" in generate_latest(registry)
    registry.unregister(figures)
    assert b"requiem" not in generate_latest(registry)


def test_drain(service: Service, manager: FakeManager, registry: CollectorRegistry) -> None:
    """A drain is counted, its seconds grow while it lasts and no longer, and the jobs in it that outlive TimeoutStopSec=."""
    metrics.register(registry, service=service, stop_timeout=20)
    first, second = service.create_tracker("first"), service.create_tracker("second")
    assert value(registry, "requiem_draining") == 0
    manager.stop()
    assert value(registry, "requiem_draining") == 1
    assert value(registry, "requiem_drains_total", process="self") == 1
    manager.advance(19)
    first.done()
    assert value(registry, "requiem_outlived_total") == 0
    manager.advance(2)
    assert value(registry, "requiem_outlived_total") == 1
    assert value(registry, "requiem_drain_seconds_total", process="self") == 21
    second.done()
    assert service.wait(10)
    manager.advance(5)
    assert value(registry, "requiem_drain_seconds_total", process="self") == 21
    assert value(registry, "requiem_abandoned_total") == 0


def test_abandoned(service: Service, manager: FakeManager, registry: CollectorRegistry) -> None:
    """Jobs that were given up are counted."""
    metrics.register(registry, service=service)
    held = service.create_tracker("export", drain_timeout=3)
    manager.stop()
    manager.advance(4)
    assert value(registry, "requiem_abandoned_total") == 1
    held.done()


def test_reloads(service: Service, manager: FakeManager, registry: CollectorRegistry) -> None:
    """Reloads are counted by verdict."""
    metrics.register(registry, service=service)
    verdicts: list[BaseException | None] = [None, ReloadError("line 3"), None]

    @service.on("reload")
    def reload() -> None:
        error = verdicts.pop(0)
        if error is not None:
            raise error

    for number in range(1, 4):
        done = threading.Event()
        service.engine.loop.call(lambda done=done: service.engine.reload(lambda _: done.set()))  # type: ignore[misc] # mypy cannot infer a lambda's default
        assert done.wait(10), number
    with service.track("job"):
        manager.stop()
        service.engine.loop.call(lambda: service.engine.reload(lambda _: None))
        counted = {name: value(registry, "requiem_reloads_total", verdict=name) for name in ("ok", "failed", "refused")}
    assert counted == {"ok": 2, "failed": 1, "refused": 1}


@pytest.mark.parametrize("timeout", [float("inf"), None])
def test_no_stop_timeout(service: Service, registry: CollectorRegistry, timeout: float | None) -> None:
    """Where TimeoutStopSec= is infinite nothing outlives it; where it is not known, no figure claims so."""
    registry.register(metrics.Figures(service, timeout))
    assert value(registry, "requiem_outlived_total") == (None if timeout is None else 0)
    service.begin()
    assert service.wait(10)


def test_without_prometheus() -> None:
    """Without prometheus_client the import says what to install."""
    code = "import sys; sys.modules['prometheus_client.core'] = None\ntry:\n    import requiem_systemd.metrics\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True)
    assert "pip install 'requiem-systemd[metrics]'" in done.stdout


def test_exposition(service: Service, registry: CollectorRegistry) -> None:
    """The text of a scrape has each figure once, with what it is."""
    metrics.register(registry, service=service, stop_timeout=90)
    text = generate_latest(registry).decode()
    names = ("in_flight", "draining", "drains_total", "drain_seconds_total", "abandoned_total", "outlived_total", "reloads_total", "rolls_total")
    for name in names:
        assert text.count(f"# TYPE requiem_{name} ") == 1, text
        assert text.count(f"# HELP requiem_{name} ") == 1
