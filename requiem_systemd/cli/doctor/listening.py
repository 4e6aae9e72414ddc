"""Rules of listeners, and of what a service needs of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse, programs
from requiem_systemd.cli.doctor.facts import NOTIFYING
from requiem_systemd.cli.doctor.finding import DROPS, WARNS, Rule

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict
    from requiem_systemd.unitfile import Unit

_NETWORKS: Final = frozenset(("network.target", "network-online.target"))


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
    inherits = {
        name for name in facts.sockets if name in facts.source.others or name in facts.words("Sockets")
    }
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


def _namespace(facts: Facts) -> Verdict:
    return (
        bool(facts.source.forbids)
        and parse.is_true(facts.get("PrivateUsers"))
        and f"{facts.source.forbids} here: the user's manager cannot do PrivateUsers=yes, so that the start fails (status 217, 218 or 226), or the sandbox is not there"
    )


RULES: Final = (
    Rule("socket-missing", DROPS, _missing, "a NAME.socket with ListenStream=, and Requires=NAME.socket here", "systemd.socket(5)"),
    Rule("socket-unused", DROPS, _unused, "", "the server's documentation: it is descriptor 3"),
    Rule("socket-not-required", WARNS, _required, "", "systemd.socket(5)"),
    Rule("socket-restarts", DROPS, _part_of, "", "systemd.unit(5), PartOf="),
    Rule("socket-flushes", DROPS, _flush, "FlushPending=no", "systemd.socket(5), FlushPending="),
    Rule("user-namespace", DROPS, _namespace, "without PrivateUsers=, and without what stands behind it in units/user.service", "systemd.exec(5), PrivateUsers="),
    Rule("network-order", WARNS, _network, "After=network.target", "systemd.special(7), network.target"),
)  # fmt: skip  # a table reads better in its rows
