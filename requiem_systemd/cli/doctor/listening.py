"""Rules of listeners, of rolling, and of what a service needs of others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse, programs
from requiem_systemd.cli.doctor.facts import NOTIFYING
from requiem_systemd.cli.doctor.finding import DROPS, KILLS, WARNS, Rule
from requiem_systemd.protocol import duration

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict
    from requiem_systemd.unitfile import Unit

_DEPENDS: Final = ("After", "Requires", "Requisite", "BindsTo", "PartOf", "Wants")
_NETWORKS: Final = frozenset(("network.target", "network-online.target"))
#: What podman waits between a container's SIGTERM and SIGKILL; podman-run(1), --stop-timeout.
PODMAN: Final = 10.0


# -- sockets


def _missing(facts: Facts) -> Verdict:
    if (
        facts.sockets
        or facts.anchor
        or facts.program is None
        or facts.program.kind != programs.WEB
        or facts.container
    ):
        return None
    how = (
        ""
        if facts.program.socket
        else f"; {facts.program.name} takes no listener from systemd, but requiem-systemd serve does"
    )
    return f"{facts.program.name} opens its own listener: from its stop until the next start connections are refused{how}"


def _unused(facts: Facts) -> Verdict:
    if (
        not facts.sockets
        or facts.program is None
        or facts.program.kind != programs.WEB
        or facts.program.name == "Node"
    ):
        return None
    if programs.takes_socket(facts.program, facts.arguments):
        return None
    options = facts.program.socket if isinstance(facts.program.socket, tuple) else ()
    line = (
        f"ExecStart= with {options[0]}{'' if '=' in options[0] else ' '}3"
        if options
        else "ExecStart=… -m requiem_systemd serve MODULE:APP"
    )
    return (
        f"{facts.program.name} does not serve from {', '.join(facts.sockets)}, but from a listener of its own",
        line,
    )


def _required(facts: Facts) -> Verdict:
    inherits = {name for name in facts.sockets if name in facts.source.others} | set(facts.words("Sockets"))
    needed = {word for key in ("Requires", "BindsTo", "Requisite") for word in facts.words(key, "Unit")}
    lacking = sorted(inherits - needed)
    if not lacking or facts.anchored_by or facts.template:
        return None
    return (
        f"without Requires={lacking[0]} it can be started without its listener, by hand or at boot",
        f"Requires={lacking[0]}",
    )


def _sockets(facts: Facts) -> dict[str, Unit]:
    """Return the sockets that can be looked at: those beside the service, or the one that is asked about."""
    return {facts.name: facts.source.unit} if facts.is_socket else facts.sockets


def _part_of(facts: Facts) -> Verdict:
    for name, unit in _sockets(facts).items():
        for key in ("PartOf", "BindsTo", "Requires", "StopPropagatedFrom"):
            bound = [
                word for line in unit.all("Unit", key) for word in line.split() if word.endswith(".service")
            ]
            if bound:
                return (
                    f"{key}={bound[0]} in {name}: a restart of the service closes the listener too",
                    f"without {key}= in {name}",
                )
    return None


def _flush(facts: Facts) -> Verdict:
    flushed = [
        name for name, unit in _sockets(facts).items() if parse.is_true(unit.last("Socket", "FlushPending"))
    ]
    return (
        bool(flushed)
        and f"FlushPending=yes in {flushed[0]}: connections that wait for the next start are thrown away"
    )


# -- instances and generations


def _shared_folder(facts: Facts) -> Verdict:
    if (
        not facts.template
        or parse.is_true(facts.get("RuntimeDirectoryPreserve"))
        or facts.get("RuntimeDirectoryPreserve") == "restart"
    ):
        return None
    lines = facts.source.unit.all("Service", "RuntimeDirectory")
    shared = [
        word
        for line in lines
        for word in line.split()
        if not any(one in word for one in ("%n", "%N", "%i", "%I"))
    ]
    return (
        bool(shared)
        and f"RuntimeDirectory={shared[0]} is one folder for all instances: the first that stops deletes it under the others"
    )


def _blocking(facts: Facts) -> Verdict:
    shares = bool(facts.anchored_by) and bool(facts.words("Sockets"))
    return (
        shares
        and not parse.is_true(facts.get("NonBlocking"))
        and (
            "without NonBlocking=yes each new generation makes the listener of the old ones blocking, and their event loops hang in accept()"
        )
    )


def _depends(facts: Facts) -> Verdict:
    if not facts.anchored_by:
        return None
    keys = [key for key in _DEPENDS if facts.anchored_by in facts.words(key, "Unit")]
    what = (
        "the roll waits for itself"
        if keys == ["After"]
        else "a restart, or a roll that fails, stops what serves"
    )
    return bool(keys) and f"{keys[0]}={facts.anchored_by} in a generation: {what}"


def _unready(facts: Facts) -> Verdict:
    # Type=exec with a probation is the documented way for what cannot say READY=1
    return (
        bool(facts.anchored_by)
        and facts.type not in (*NOTIFYING, "exec", "dbus")
        and (f"Type={facts.type} in a generation: the old ones are stopped before the new one can serve")
    )


def _gives_up(facts: Facts) -> Verdict:
    if not (facts.anchor or facts.anchored_by) or facts.get("StartLimitIntervalSec", "Unit") in ("0", "0s"):
        return None
    return (
        "the sixth deploy within ten seconds is refused, and takes the socket with it"
        if facts.anchor
        else "a generation that crashes is given up after five times in ten seconds"
    )


def _isolated(facts: Facts) -> Verdict:
    return (
        bool(facts.anchored_by)
        and not parse.is_true(facts.get("IgnoreOnIsolate", "Unit"))
        and ("`systemctl isolate` stops what serves, since no target wants a generation")
    )


def _changing_user(facts: Facts) -> Verdict:
    dynamic = parse.is_true(facts.get("DynamicUser")) and not facts.get("User")
    return (
        bool(facts.anchored_by)
        and dynamic
        and bool(facts.words("StateDirectory"))
        and (
            "DynamicUser=yes without User=: each generation is another user, and takes StateDirectory= from the old ones"
        )
    )


def _anchor_gone(facts: Facts) -> Verdict:
    return (
        facts.anchor
        and not parse.is_true(facts.get("RemainAfterExit"))
        and "an anchor without RemainAfterExit=yes cannot be reloaded or stopped"
    )


def _anchor_stop(facts: Facts) -> Verdict:
    drains = any("drain" in command.words for command in facts.commands("ExecStopPost"))
    return (
        facts.anchor
        and not drains
        and "a stop, and one that cuts in on a roll, leaves the generations running: systemd skips ExecStop= then"
    )


def _anchor_restart(facts: Facts) -> Verdict:
    return (
        facts.anchor
        and facts.restart != "on-failure"
        and "after a restart that failed `systemctl stop` reaches nothing, and connections start roll after roll"
    )


def _anchor_short(facts: Facts) -> Verdict:
    return (
        facts.anchor
        and math.isfinite(facts.stop_timeout)
        and (
            f"`systemctl stop` comes back after {duration(facts.stop_timeout)}, before the generations have drained"
        )
    )


# -- others


def _network(facts: Facts) -> Verdict:
    speaks = facts.is_python and facts.type in NOTIFYING
    known = facts.library or speaks or (facts.program is not None and facts.program.kind != programs.OTHER)
    if not known or not facts.worth_draining or facts.source.user or facts.container:
        return None
    ordered = set(facts.words("After", "Unit"))
    return (
        not ordered & _NETWORKS
        and "a shutdown takes the network away while it drains: nothing orders it behind network.target"
    )


# -- Quadlet


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


ORDINARY: Final = 30.0


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


_ROLLING: Final = "requiem-systemd(1), roll"
_QUADLET: Final = "podman-systemd.unit(5)"
RULES: Final = (
    Rule("socket-missing", DROPS, _missing, "a NAME.socket with ListenStream=, and Requires=NAME.socket here", "systemd.socket(5)"),
    Rule("socket-unused", DROPS, _unused, "", "the server's documentation: it is descriptor 3"),
    Rule("socket-not-required", WARNS, _required, "", "systemd.socket(5)"),
    Rule("socket-restarts", DROPS, _part_of, "", "systemd.unit(5), PartOf="),
    Rule("socket-flushes", DROPS, _flush, "FlushPending=no", "systemd.socket(5), FlushPending="),
    Rule("runtime-folder-shared", DROPS, _shared_folder, "RuntimeDirectory=%N", "systemd.exec(5), RuntimeDirectory="),
    Rule("generation-blocking", DROPS, _blocking, "NonBlocking=yes", "systemd.exec(5), NonBlocking="),
    Rule("generation-depends", DROPS, _depends, "no dependency on the anchor", _ROLLING),
    Rule("generation-unready", DROPS, _unready, "Type=notify, or Type=exec and --probation=5s in the anchor", _ROLLING),
    Rule("generation-isolated", WARNS, _isolated, "IgnoreOnIsolate=yes", "systemd.unit(5), IgnoreOnIsolate="),
    Rule("generation-user", DROPS, _changing_user, "User=%p", "systemd.exec(5), DynamicUser="),
    Rule("start-limit", DROPS, _gives_up, "StartLimitIntervalSec=0, in [Unit]", "systemd.unit(5), StartLimitIntervalSec="),
    Rule("anchor-gone", DROPS, _anchor_gone, "RemainAfterExit=yes", _ROLLING),
    Rule("anchor-stop", DROPS, _anchor_stop, "ExecStopPost=requiem-systemd drain %N", _ROLLING),
    Rule("anchor-restart", DROPS, _anchor_restart, "Restart=on-failure", _ROLLING),
    Rule("anchor-stop-timeout", WARNS, _anchor_short, "TimeoutStopSec=infinity", _ROLLING),
    Rule("network-order", WARNS, _network, "After=network.target", "systemd.special(7), network.target"),
    Rule("container-stop", KILLS, _container_short, "StopTimeout=300, in [Container], and TimeoutStopSec=315 in [Service]", _QUADLET),
    Rule("container-order", KILLS, _container_order, "", _QUADLET),
    Rule("container-ready", WARNS, _container_notify, "Notify=true, or Notify=healthy with HealthCmd=", _QUADLET),
    Rule("container-port", DROPS, _container_port, "a NAME.socket, whose listener podman passes on to the container", "podman: Socket activation"),
)  # fmt: skip  # a table reads better in its rows
