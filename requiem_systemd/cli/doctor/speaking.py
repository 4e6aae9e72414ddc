"""Rules of what is said to systemd: readiness, extensions, the watchdog, reloads, the exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from requiem_systemd.cli.doctor import parse, programs
from requiem_systemd.cli.doctor.facts import NOTIFYING
from requiem_systemd.cli.doctor.finding import DROPS, KILLS, WARNS, Rule

if TYPE_CHECKING:
    from requiem_systemd.cli.doctor.facts import Facts
    from requiem_systemd.cli.doctor.finding import Verdict

_ABANDONED: Final = frozenset(("75", "TEMPFAIL", "EX_TEMPFAIL"))


def _speaks(facts: Facts) -> bool:
    """Say whether the service has something to say to systemd, as far as is known."""
    return facts.type in NOTIFYING or bool(facts.watchdog) or (facts.library and not facts.anchor)


def _dropped(facts: Facts) -> Verdict:
    return (
        facts.library
        and facts.worth_draining
        and not facts.container
        and facts.notify_access == "none"
        and (
            f"Type={facts.type} without NotifyAccess=: what the service says is dropped, so that no stop is extended"
        )
    )


def _from_behind(facts: Facts) -> Verdict:
    return (
        facts.wrapper is not None
        and facts.wrapper.sure
        and facts.type in NOTIFYING
        and facts.notify_access != "all"
        and (
            "the program is not the main process, so that its READY=1 is dropped: the start times out, and systemd kills it"
        )
    )


def _too_old(facts: Facts) -> Verdict:
    version = facts.source.version
    return (
        facts.type == "notify-reload"
        and version is not None
        and version < 253
        and (
            f"systemd {version} does not know Type=notify-reload, takes the service for Type=simple, and drops what it says"
        )
    )


def _open_to_all(facts: Facts) -> Verdict:
    return (
        facts.library
        and not facts.container
        and facts.notify_access == "all"
        and not facts.has_children
        and not facts.mute  # whose workers speak
        and facts.get("ExitType") != "cgroup"  # a cluster's workers speak when the primary is gone
        and ("NotifyAccess=all: a child process that says STOPPING=1 ends the service")
    )


def _dies_with_primary(facts: Facts) -> Verdict:
    return (
        facts.cluster
        and facts.get("ExitType") != "cgroup"
        and "without ExitType=cgroup, when the primary is killed (kill -9, the kernel for want of memory) systemd kills its workers at once, with their jobs"
    )


def _orphans_unheard(facts: Facts) -> Verdict:
    return (
        facts.cluster
        and facts.get("ExitType") == "cgroup"
        and facts.notify_access != "all"
        and (
            f"NotifyAccess={facts.notify_access}: workers whose primary was killed cannot extend their drain, so that a stop, or WatchdogSec=, kills them"
        )
    )


def _simple(facts: Facts) -> Verdict:
    if facts.program is None or not facts.program.notifies or facts.type not in ("simple", "exec"):
        return None
    return f"Type={facts.type}: the service counts as started before {facts.program.name}, which would say READY=1, can serve"


def _forks(facts: Facts) -> Verdict:
    return (
        facts.type == "forking"
        and not facts.get("PIDFile")
        and (
            "Type=forking without PIDFile=: systemd guesses which process is the main one, and signals, waits for and restarts that"
        )
    )


def _no_pinger(facts: Facts) -> Verdict:
    if facts.program is None or facts.program.pings or facts.program.name == "Node":
        return None
    if not facts.watchdog or (facts.library and not facts.mute):
        return None
    who = f"{facts.program.name}'s parent process" if facts.mute else facts.program.name
    return f"WatchdogSec={facts.get('WatchdogSec')}: {who} never says WATCHDOG=1, and is killed each time that has passed"


def _no_unix(facts: Facts) -> Verdict:
    restricted = parse.families(facts.source.unit.all("Service", "RestrictAddressFamilies"))
    if restricted is None or not _speaks(facts):
        return None
    allows, listed = restricted
    return (
        ("AF_UNIX" in listed) != allows
        and "RestrictAddressFamilies= keeps AF_UNIX out: nothing that the service says reaches systemd"
    )


def _hup_kills(facts: Facts) -> Verdict:
    program = facts.program
    if (
        program is None
        or program.hup not in (programs.DIE, programs.STOP)
        or facts.library
        or (program.name == "uvicorn" and facts.has_children)
    ):
        return None
    sent = [command for command in facts.commands("ExecReload") if (parse.kill(command) or ("",))[0] == "HUP"]
    does = "has no handler for SIGHUP, and dies of it" if program.hup == programs.DIE else "stops at SIGHUP, unless its stdout_redirect is set"
    return bool(sent) and f"ExecReload={sent[0]}: {program.name} {does}"


def _racy_reload(facts: Facts) -> Verdict:
    if (facts.program is not None and facts.program.hup == programs.RELOAD) or not (
        facts.library or facts.is_python
    ):
        return None
    sent = [command for command in facts.commands("ExecReload") if (parse.kill(command) or ("",))[0] == "HUP"]
    return bool(sent) and f"ExecReload={sent[0]} is back before the reload has begun, and never fails"


def _reloads_twice(facts: Facts) -> Verdict:
    return (
        facts.type == "notify-reload"
        and bool(facts.commands("ExecReload"))
        and (
            "Type=notify-reload has systemd send SIGHUP beside ExecReload= (253 to 258) or behind it: the service reloads twice"
        )
    )


def _no_control(facts: Facts) -> Verdict:
    asks = any(
        "reload" in command.words and parse.is_ours(str(command)) for command in facts.commands("ExecReload")
    )
    return (
        asks
        and not facts.words("RuntimeDirectory")
        and "ExecReload=requiem-systemd reload finds no control socket without RuntimeDirectory="
    )


def _restart(facts: Facts) -> Verdict:
    return (
        facts.restart == "no"
        and facts.worth_draining
        and not facts.is_socket
        and "no Restart=: a crash lasts until somebody sees it"
    )


def _restart_75(facts: Facts) -> Verdict:
    if not facts.library or facts.anchor:
        return None
    if _ABANDONED & set(facts.words("RestartPreventExitStatus")):
        return "RestartPreventExitStatus=75: a drain that the service began by itself and that abandoned a job leaves it down"
    return facts.restart in ("on-success", "on-abnormal", "on-abort", "on-watchdog") and (
        f"Restart={facts.restart}: after status 75, a drain that abandoned jobs, and after a failed start, nobody starts it again"
    )


def _success_75(facts: Facts) -> Verdict:
    return (
        facts.library
        and bool(_ABANDONED & set(facts.words("SuccessExitStatus")))
        and (
            "SuccessExitStatus=75 makes abandoned jobs a success: nothing that looks for failed units sees them"
        )
    )


def _oom(facts: Facts) -> Verdict:
    policy = facts.get("OOMPolicy")
    if facts.container or parse.is_true(facts.get("Delegate")):  # the default is then continue
        return None
    return (
        facts.has_children
        and policy not in ("continue", "kill")
        and (
            f"OOMPolicy={policy or 'stop'}: when the kernel kills one worker for its memory, systemd stops all of them"
        )
    )


def _oom_kill(facts: Facts) -> Verdict:
    return (
        facts.get("OOMPolicy") == "kill"
        and "OOMPolicy=kill: when one process takes too much memory, all are killed"
    )


def _store(facts: Facts) -> Verdict:
    kept = "keep=True" in facts.source.script.replace(" ", "")
    return (
        kept
        and facts.library
        and not facts.store
        and (
            "the program keeps a listener (keep=True), but FileDescriptorStoreMax= is 0: systemd drops it, and a restart refuses connections"
        )
    )


def _stale(facts: Facts) -> Verdict:
    return (
        facts.source.live.get("NeedDaemonReload") == "yes"
        and "the files have changed since systemd read them: what is said here may not be in force yet, and a new drop-in is not looked at"
    )


_SERVICE: Final = "systemd.service(5)"
RULES: Final = (
    Rule("notify-dropped", KILLS, _dropped, "Type=notify", f"{_SERVICE}, NotifyAccess="),
    Rule("notify-from-behind", KILLS, _from_behind, "ExecStart= the program itself, or NotifyAccess=all", f"{_SERVICE}, NotifyAccess="),
    Rule("notify-reload-unknown", KILLS, _too_old, "Type=notify, and ExecReload=requiem-systemd reload --pid $MAINPID", f"{_SERVICE}, Type="),
    Rule("notify-all", WARNS, _open_to_all, "NotifyAccess=main", f"{_SERVICE}, NotifyAccess="),
    Rule("cluster-exit-type", WARNS, _dies_with_primary, "ExitType=cgroup, and NotifyAccess=all", f"{_SERVICE}, ExitType="),
    Rule("cluster-unheard", WARNS, _orphans_unheard, "NotifyAccess=all", f"{_SERVICE}, NotifyAccess="),
    Rule("type-simple", WARNS, _simple, "Type=notify", f"{_SERVICE}, Type="),
    Rule("forking-guesses", WARNS, _forks, "Type=exec, with the program in the foreground", f"{_SERVICE}, PIDFile="),
    Rule("watchdog-no-pinger", KILLS, _no_pinger, "without WatchdogSec=", f"{_SERVICE}, WatchdogSec="),
    Rule("af-unix", KILLS, _no_unix, "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6", "systemd.exec(5), RestrictAddressFamilies="),
    Rule("reload-kills", KILLS, _hup_kills, "without the ExecReload= line", f"{_SERVICE}, ExecReload="),
    Rule("reload-racy", WARNS, _racy_reload, "ExecReload=requiem-systemd reload --pid $MAINPID", f"{_SERVICE}, ExecReload="),
    Rule("reload-twice", WARNS, _reloads_twice, "without the ExecReload= line", f"{_SERVICE}, Type="),
    Rule("reload-no-socket", WARNS, _no_control, "RuntimeDirectory=%N", "requiem-systemd(1), reload"),
    Rule("restart-none", WARNS, _restart, "Restart=on-failure", f"{_SERVICE}, Restart="),
    Rule("restart-75", DROPS, _restart_75, "Restart=on-failure", f"{_SERVICE}, Restart="),
    Rule("abandoned-is-success", WARNS, _success_75, "SuccessExitStatus= without 75", f"{_SERVICE}, SuccessExitStatus="),
    Rule("oom-stops-all", WARNS, _oom, "OOMPolicy=continue", f"{_SERVICE}, OOMPolicy="),
    Rule("oom-kills-all", KILLS, _oom_kill, "OOMPolicy=continue", f"{_SERVICE}, OOMPolicy="),
    Rule("fdstore-zero", DROPS, _store, "FileDescriptorStoreMax=16", f"{_SERVICE}, FileDescriptorStoreMax="),
    Rule("stale", WARNS, _stale, "systemctl daemon-reload", "systemctl(1), daemon-reload"),
)  # fmt: skip  # a table reads better in its rows
