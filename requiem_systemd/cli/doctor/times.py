"""Rules of time: how long a stop may take, and what ends it sooner."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import programs
from requiem_systemd.cli.doctor.finding import KILLS, NOTES, ORDINARY, WARNS, Rule
from requiem_systemd.protocol import duration

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict

#: JobTimeoutSec= of reboot.target and poweroff.target; TimeoutStopSec= of user@.service.
REBOOT: Final = 1800.0
USER_MANAGER: Final = 120.0


def _short(facts: Facts) -> Verdict:
    if facts.library or not facts.worth_draining or facts.container:
        return None
    has, given, needs = facts.stop_timeout, facts.stop_timeout_given, facts.drain
    program = facts.called
    if facts.program is not None and facts.program.kind == programs.QUEUE and needs == math.inf:
        if has <= 90:
            return f"systemd kills {program} after {duration(has)}, and with it each job that takes longer; nobody extends that"
        return None
    if needs is not None and math.isfinite(needs):
        line = f"TimeoutStopSec={math.ceil(needs) + 5}"
        return (
            (f"systemd kills {program} after {duration(has)}, which gives its work {duration(needs)}", line)
            if has < needs
            else None
        )
    if given is None or given >= ORDINARY:
        return None
    return f"systemd kills {program} after {duration(given)}, and what takes longer with it, unless the program extends that"


def _default(facts: Facts) -> Verdict:
    if not facts.library or not facts.worth_draining or facts.container:
        return None
    if facts.stop_timeout_given is None and "TimeoutStopUSec" not in facts.source.live:
        return "no TimeoutStopSec=, thus 90 s: it is extended, but a service that is then found not running (SIGSTOP, C code) is killed at once"
    limit = facts.environment.get("REQUIEM_DRAIN_TIMEOUT") and facts.drain
    if limit and math.isfinite(limit) and facts.stop_timeout < limit:
        return (
            f"REQUIEM_DRAIN_TIMEOUT= allows {duration(limit)}, TimeoutStopSec= {duration(facts.stop_timeout)}: only extensions bridge the rest",
            f"TimeoutStopSec={math.ceil(limit)}",
        )
    return None


def _no_drain(facts: Facts) -> Verdict:
    program = facts.program
    if program is None or facts.library or facts.drain:
        return None
    if program.by:
        signal = programs.graceful_signal(program, facts.arguments)
        return f"{program.name} cuts off what it is doing at {facts.get('KillSignal') or 'SIGTERM'}: it lets it end at SIG{signal}", f"KillSignal=SIG{signal}"
    why = f"{program.name} has no drain: SIGTERM, or what KillSignal= says, cuts off what it is doing"
    return why, program.advice


def _own_limit(facts: Facts) -> Verdict:
    limit = facts.drain
    web = facts.program is not None and facts.program.kind == programs.WEB and not facts.library
    if not web or facts.program is None or not limit or limit >= ORDINARY:
        return None
    line = (
        f"ExecStart= with {facts.program.limits[0]} {ORDINARY:.0f}"
        if facts.program.limits
        else "a longer limit in its configuration"
    )
    return (
        f"{facts.program.name} by itself cuts off what takes longer than {duration(limit)} after SIGTERM",
        line,
    )


def _node(facts: Facts) -> Verdict:
    return (
        facts.program is not None
        and facts.program.name == "Node"
        and not facts.library
        and (
            "Node ends at once at SIGTERM, unless the program has a handler for it that calls server.close()"
        )
    )


def _reboot(facts: Facts) -> Verdict:
    limit = facts.source.limits.get("reboot", REBOOT)
    if not facts.worth_draining or facts.source.user or facts.stop_timeout <= limit:
        return None
    if facts.library and facts.drain is not None and facts.drain < limit:  # REQUIEM_DRAIN_TIMEOUT= caps it
        return None
    return f"a stop may take {_length(facts.stop_timeout)}, but a reboot or shutdown is forced after {duration(limit)}, drains or not"


def _user_manager(facts: Facts) -> Verdict:
    limit = facts.source.limits.get("user@", USER_MANAGER)
    if not facts.source.user or not facts.worth_draining or facts.stop_timeout <= limit:
        return None
    return f"a stop may take {_length(facts.stop_timeout)}, but the user's manager is itself killed {duration(limit)} after its own stop has begun"


def _linger(facts: Facts) -> Verdict:
    return (
        facts.source.user
        and facts.source.lingers is False
        and "the user does not linger: the last logout stops the service, whatever it is doing"
    )


def _runtime_max(facts: Facts) -> Verdict:
    value = facts.get("RuntimeMaxSec")
    return (
        value not in ("", "infinity")
        and f"RuntimeMaxSec={value}: systemd stops the service by itself then, and counts it as failed"
    )


def _was_killed(facts: Facts) -> Verdict:
    result = facts.source.live.get("Result")
    return (
        result in ("timeout", "watchdog", "oom-kill")
        and f"its last run ended as {result!r}: it was killed, and what it was doing with it"
    )


def _length(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else "for ever"


RULES: Final = (
    Rule("stop-timeout-short", KILLS, _short, "TimeoutStopSec=1h, or as long as the longest job", "systemd.service(5), TimeoutStopSec="),
    Rule("stop-timeout-default", WARNS, _default, "TimeoutStopSec=1h, or as long as the longest job", "systemd.service(5), TimeoutStopSec="),
    Rule("no-drain", KILLS, _no_drain, "", "the server's documentation on signals"),
    Rule("own-limit", KILLS, _own_limit, "", "the server's documentation on its graceful timeout"),
    Rule("node-sigterm", WARNS, _node, "process.on('SIGTERM', () => server.close()), in the program", "Node: process, Signal events"),
    Rule("runtime-max", WARNS, _runtime_max, "without RuntimeMaxSec=", "systemd.service(5), RuntimeMaxSec="),
    Rule("was-killed", WARNS, _was_killed, "what is said above; journalctl -u NAME has the rest", "systemd.exec(5), $SERVICE_RESULT"),
    Rule("reboot-limit", NOTES, _reboot, "Environment=REQUIEM_DRAIN_TIMEOUT=25min, or JobTimeoutSec= in drop-ins of reboot.target and poweroff.target", "systemd.special(7), reboot.target"),
    Rule("user-limit", NOTES, _user_manager, "TimeoutStopSec= in /etc/systemd/system/user@.service.d/drain.conf", "user@.service(5)"),
    Rule("user-linger", KILLS, _linger, "loginctl enable-linger USER", "loginctl(1), enable-linger"),
)  # fmt: skip  # a table reads better in its rows
