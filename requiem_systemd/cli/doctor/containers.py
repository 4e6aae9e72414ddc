"""Rules of Quadlet's .container files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse
from requiem_systemd.cli.doctor.finding import DROPS, KILLS, ORDINARY, WARNS, Rule
from requiem_systemd.protocol import duration

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict

#: What podman waits between a container's SIGTERM and SIGKILL; podman-run(1), --stop-timeout.
PODMAN: Final = 10.0


def _container_drain(facts: Facts) -> float:
    """Return what podman gives a container at its stop: StopTimeout=, or the option of that name."""
    arguments = [
        word for line in facts.source.unit.all("Container", "PodmanArgs") for word in parse.words(line)
    ]
    given = facts.get("StopTimeout", "Container") or parse.option(arguments, "--stop-timeout") or ""
    return float(given) if given.isdecimal() else PODMAN


def _container_short(facts: Facts) -> Verdict:
    if not facts.container:
        return None
    has, needs = _container_drain(facts), facts.drain
    wanted = needs if needs is not None and math.isfinite(needs) else ORDINARY
    # an infinite one is a job's, or a request's, of which nothing more is known
    return has < wanted and f"podman kills the container {duration(has)} after its SIGTERM"


def _container_order(facts: Facts) -> Verdict:
    if not facts.container or facts.stop_timeout > _container_drain(facts):
        return None
    line = f"TimeoutStopSec={math.ceil(_container_drain(facts)) + 15}, in [Service]"
    return f"systemd kills podman after {duration(facts.stop_timeout)}, before StopTimeout= has passed", line


def _container_notify(facts: Facts) -> Verdict:
    return (
        facts.container
        and facts.get("Notify", "Container").lower() not in ("true", "yes", "1", "on", "healthy")
        and (
            "without Notify= podman says READY=1 as soon as the container has started, whether or not it can serve"
        )
    )


def _container_port(facts: Facts) -> Verdict:
    ports = facts.words("PublishPort", "Container")
    return (
        facts.container
        and bool(ports)
        and not facts.sockets
        and f"PublishPort={ports[0]}: across a restart connections are refused"
    )


_QUADLET: Final = "podman-systemd.unit(5)"
RULES: Final = (
    Rule("container-stop", KILLS, _container_short, "StopTimeout=300, in [Container], and TimeoutStopSec=315 in [Service]", _QUADLET),
    Rule("container-order", KILLS, _container_order, "", _QUADLET),
    Rule("container-ready", WARNS, _container_notify, "Notify=true, or Notify=healthy with HealthCmd=", _QUADLET),
    Rule("container-port", DROPS, _container_port, "a NAME.socket, whose listener podman passes on to the container", "podman: Socket activation"),
)  # fmt: skip  # a table reads better in its rows
