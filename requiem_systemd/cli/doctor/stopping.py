"""Rules of the stop: who is signalled, by whom, and how often."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse, programs
from requiem_systemd.cli.doctor.finding import KILLS, ORDINARY, WARNS, Rule
from requiem_systemd.protocol import duration

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict
    from requiem_systemd.cli.doctor.wrappers import Wrapper

_DAEMON: Final = ("--daemon", "--daemonize", "-D", "--detach")
_RELOADS: Final = ("--reload", "--reload-dir", "--debug", "--watch", "--reload-engine", "--use-reloader")


# -- signals


def _none(facts: Facts) -> Verdict:
    return (
        facts.kill_mode == "none"
        and "KillMode=none: nobody is told of the stop, and what still runs at a shutdown is killed"
    )


def _kills_children(facts: Facts) -> Verdict:
    if facts.kill_mode != "control-group" or facts.program is None or facts.program.children != programs.DIE:
        return None
    name = facts.program.name
    awaited = name == "celery multi" or (name == "PM2" and facts.commands("ExecStop"))  # before anybody is signalled
    if not facts.has_children or awaited:
        return None
    if name == "dramatiq":
        return "dramatiq's processes are signalled by systemd and by dramatiq: the second SIGTERM has them drop their messages"
    return f"KillMode=control-group, the default, sends SIGTERM to every process: the one that runs {name}'s job dies of it, and the job with it"


def _control_group(facts: Facts) -> Verdict:
    if facts.kill_mode != "control-group" or not facts.worth_draining or facts.type == "forking":
        return None
    if facts.program is not None and facts.program.children == programs.DIE and facts.has_children:
        return None  # the rule above
    if facts.has_children:
        return "KillMode=control-group, the default, sends SIGTERM to the worker processes too, and again when the main process has ended"
    return (
        facts.library
        and "KillMode=control-group, the default, sends SIGTERM to every child process; a job that waits for one loses it"
    )


def _leaves(facts: Facts) -> Verdict:
    return facts.kill_mode == "process" and (
        "KillMode=process: what the main process leaves behind runs on, outside of any limit, beside the next start of the service"
    )


def _kill_signal(facts: Facts) -> Verdict:
    if facts.program is not None and not facts.library and facts.drain == 0:
        return None  # no signal is any better: no-drain says so
    for key in ("KillSignal", "RestartKillSignal"):
        signal = facts.get(key).upper().removeprefix("SIG")
        fast = facts.program.fast if facts.program else ("KILL", "ABRT")
        if signal in fast or (facts.library and signal == "QUIT"):
            return f"{key}={facts.get(key)} is, for {facts.called}, the order to end at once"
    return None


def _hangup(facts: Facts) -> Verdict:
    dies = facts.program is not None and facts.program.hup == programs.DIE
    return (
        parse.is_true(facts.get("SendSIGHUP"))
        and not facts.library
        and dies
        and (
            f"SendSIGHUP=yes: the SIGHUP right behind the SIGTERM kills {facts.called}, which has no handler for it"
        )
    )


def _wrapper(facts: Facts) -> Verdict:
    wrapper = _between(facts)
    if wrapper is None or not wrapper.sure or wrapper.passes:
        return None
    then = {
        "mixed": "it ends, and systemd then kills the rest at once",
        "control-group": "it ends, and what is left gets a second SIGTERM",
        "process": "it ends, and the rest is never told",
    }
    return f"{wrapper.text}. With KillMode={facts.kill_mode} {then.get(facts.kill_mode, 'it ends')}"


def _maybe_wrapper(facts: Facts) -> Verdict:
    wrapper = _between(facts)
    return wrapper.text if wrapper is not None and (wrapper.passes or not wrapper.sure) else None


def _between(facts: Facts) -> Wrapper | None:
    """Return the wrapper of a program whose work counts; a forking service's start command ends anyway."""
    return facts.wrapper if facts.worth_draining and facts.type != "forking" else None


def _daemonizes(facts: Facts) -> Verdict:
    if facts.program is None or facts.type == "forking":
        return None
    option = next((word for word in facts.arguments if word in _DAEMON), "")
    why = "the process that systemd started ends at once, and systemd then stops the service, thus kills what is left"
    return bool(option) and f"{option}: {why}"


def _foreground(facts: Facts) -> Verdict:
    stays = (
        facts.program is not None
        and facts.program.kind in (programs.WEB, programs.QUEUE)
        and facts.program.name not in ("uWSGI", "celery multi")
    )
    configured = parse.option(facts.arguments, "-c", "--config", "-C")
    if not stays or facts.type != "forking" or configured or set(facts.arguments) & set(_DAEMON):
        return None
    return f"Type=forking: {facts.program.name if facts.program else ''} does not fork into the background, so that the start times out, and systemd kills it"


def _reloader(facts: Facts) -> Verdict:
    if facts.program is None or facts.program.kind != programs.WEB:
        return None
    found = [word for word in facts.arguments if word.partition("=")[0] in _RELOADS]
    return (
        bool(found)
        and f"{found[0]}: whatever changes a file, a deploy or a stray edit, ends the requests that are being answered"
    )


# -- ExecStop=


def _stop_again(facts: Facts) -> Verdict:
    for command in facts.commands("ExecStop"):
        if (sent := parse.kill(command)) is None:
            continue
        fast = facts.program.fast if facts.program else ("KILL",)
        if sent[0] in fast:
            return f"ExecStop={command}: SIG{sent[0]} ends {facts.called} at once"
        if facts.program is not None and facts.program.again and not facts.library:
            return f"ExecStop={command} is back at once, and systemd sends SIGTERM behind it, which {facts.program.name} takes for an order to kill"
    return None


def _stop_kill(facts: Facts) -> Verdict:
    sent = [command for command in facts.commands("ExecStop") if parse.kill(command)]
    if not sent or _stop_again(facts):
        return None
    return f"ExecStop={sent[0]} is back at once, so that systemd sends its own signal behind it; without the line it would be the only one"


def _start_kills(facts: Facts) -> Verdict:
    sent = [command for command in facts.commands("ExecStartPre") if parse.kill(command)]
    return bool(sent) and f"ExecStartPre={sent[0]} hits whatever matches, also what drains of another unit"


def _docker_stop(facts: Facts) -> Verdict:
    for command in facts.commands("ExecStop"):
        if command.name not in _ENGINES or not {"stop", "rm", "restart", "down"} & set(command.words):
            continue
        given = parse.option(command.words, "-t", "--time", "--timeout") or parse.option(
            facts.arguments, "--stop-timeout"
        )
        limit = float(given) if given and given.isdecimal() else 10.0
        if limit < ORDINARY:
            why = f"ExecStop={command} gives the container {duration(limit)}, then SIGKILL"
            return (why, _COMPOSE_DOWN) if {"compose", "docker-compose"} & {command.name, *command.words} else why
    compose = facts.program is not None and facts.program.name == "docker compose" and facts.type != "oneshot"
    if compose and not facts.commands("ExecStop") and (facts.drain or 0) < ORDINARY:
        return f"at SIGTERM compose gives each container {duration(facts.drain or 0)}, or its stop_grace_period, then SIGKILL", _COMPOSE_UP
    return None


def _docker(facts: Facts) -> Verdict:
    return (
        facts.program is not None
        and facts.program.name in ("docker", "docker compose")
        and (
            "the container is not in this unit: its processes get neither KillMode= nor TimeoutStopSec=, and what they notify is lost"
        )
    )


def _pm2(facts: Facts) -> Verdict:
    if facts.program is None or facts.program.name != "PM2":
        return None
    longer = any(int(length) >= ORDINARY * 1000 for length in re.findall(r"kill_timeout\W+([0-9]{1,9})", facts.source.config))
    return not longer and "PM2 passes a stop on as SIGINT, and sends SIGKILL 1.6 s later (kill_timeout)"


_ENGINES: Final = ("docker", "podman", "docker-compose")
_COMPOSE_DOWN: Final = "ExecStop=docker compose down --timeout 300"
_COMPOSE_UP: Final = "ExecStart= with --timeout 300, or stop_grace_period: 5m in the compose file"
_MIXED: Final = "KillMode=mixed"
_NO_STOP: Final = "without the ExecStop= line: systemd sends SIGTERM by itself, and waits"
_DIRECT: Final = "ExecStart= the program itself; or put exec before it, the last thing that the shell does"
RULES: Final = (
    Rule("killmode-none", KILLS, _none, _MIXED, "systemd.kill(5), KillMode="),
    Rule("killmode-kills-children", KILLS, _kills_children, _MIXED, "systemd.kill(5), KillMode="),
    Rule("killmode-control-group", WARNS, _control_group, _MIXED, "systemd.kill(5), KillMode="),
    Rule("killmode-leaves", WARNS, _leaves, _MIXED, "systemd.kill(5), KillMode="),
    Rule("killsignal-fast", KILLS, _kill_signal, "KillSignal=SIGTERM", "systemd.kill(5), KillSignal="),
    Rule("sighup-too", KILLS, _hangup, "SendSIGHUP=no", "systemd.kill(5), SendSIGHUP="),
    Rule("wrapper", KILLS, _wrapper, _DIRECT, "systemd.service(5), ExecStart="),
    Rule("wrapper-maybe", WARNS, _maybe_wrapper, _DIRECT, "systemd.service(5), ExecStart="),
    Rule("daemonizes", KILLS, _daemonizes, "ExecStart= without that option", "systemd.service(5), Type="),
    Rule("forking-foreground", KILLS, _foreground, "Type=exec, or Type=notify for what says READY=1", "systemd.service(5), Type="),
    Rule("reloader", KILLS, _reloader, "ExecStart= without that option", "the server's documentation: for development"),
    Rule("execstop-kills", KILLS, _stop_again, _NO_STOP, "systemd.service(5), ExecStop="),
    Rule("execstop-kill", WARNS, _stop_kill, _NO_STOP, "systemd.service(5), ExecStop="),
    Rule("execstartpre-kill", WARNS, _start_kills, "without the ExecStartPre= line", "systemd.service(5), ExecStartPre="),
    Rule("docker-stop", KILLS, _docker_stop, "ExecStop=docker stop --time=300 NAME", "docker-stop(1), --time"),
    Rule("docker-outside", WARNS, _docker, "a Quadlet NAME.container, run by podman", "podman-systemd.unit(5)"),
    Rule("pm2-kill", KILLS, _pm2, "a unit for each program, with ExecStart=node, or kill_timeout: 300000 in PM2's ecosystem file", "pm2: Graceful Stop"),
)  # fmt: skip  # a table reads better in its rows
