"""Rules of instances, and of services that are rolled: their anchor and their generations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse
from requiem_systemd.cli.doctor.facts import NOTIFYING
from requiem_systemd.cli.doctor.finding import DROPS, WARNS, Rule
from requiem_systemd.protocol import duration

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict

_DEPENDS: Final = ("After", "Requires", "Requisite", "BindsTo", "PartOf", "Wants")


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


def _restarted(facts: Facts) -> Verdict:
    return (
        bool(facts.anchored_by)
        and facts.source.needrestart
        and "needrestart, told to restart, does it to a generation by its own name: apt waits for its jobs, and nobody serves"
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


_ROLLING: Final = "requiem-systemd(1), roll"
RULES: Final = (
    Rule("runtime-folder-shared", DROPS, _shared_folder, "RuntimeDirectory=%N", "systemd.exec(5), RuntimeDirectory="),
    Rule("generation-blocking", DROPS, _blocking, "NonBlocking=yes", "systemd.exec(5), NonBlocking="),
    Rule("generation-depends", DROPS, _depends, "no dependency on the anchor", _ROLLING),
    Rule("generation-unready", DROPS, _unready, "Type=notify, or Type=exec and --probation=5s in the anchor", _ROLLING),
    Rule("generation-isolated", WARNS, _isolated, "IgnoreOnIsolate=yes", "systemd.unit(5), IgnoreOnIsolate="),
    Rule("generation-user", DROPS, _changing_user, "User=%p", "systemd.exec(5), DynamicUser="),
    Rule("needrestart", WARNS, _restarted, "its conf.d/requiem-systemd.conf (units/needrestart/)", "docs/upgrades.md"),
    Rule("start-limit", DROPS, _gives_up, "StartLimitIntervalSec=0, in [Unit]", "systemd.unit(5), StartLimitIntervalSec="),
    Rule("anchor-gone", DROPS, _anchor_gone, "RemainAfterExit=yes", _ROLLING),
    Rule("anchor-stop", DROPS, _anchor_stop, "ExecStopPost=requiem-systemd drain %N", _ROLLING),
    Rule("anchor-restart", DROPS, _anchor_restart, "Restart=on-failure", _ROLLING),
    Rule("anchor-stop-timeout", WARNS, _anchor_short, "TimeoutStopSec=infinity", _ROLLING),
)  # fmt: skip  # a table reads better in its rows
