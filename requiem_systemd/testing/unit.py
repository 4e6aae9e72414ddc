"""A unit as the manager sees it: its state, its timers, what messages do to them. No I/O; `now` comes in.

Read from systemd's src/core/service.c, 252 to 262: service_notify_message, service_extend_timeout, service_enter_signal,
service_start_watchdog, service_coldplug_timeout. What no test of a drain needs (ExecStop=, control processes, Restart=) is left out.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from requiem_systemd.protocol import DATAGRAM_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INFINITY: Final = float("inf")
_NUMBER: Final = re.compile(r"\s*\+?[0-9]+\Z", re.ASCII)
_USEC_INFINITY: Final = 2**64 - 1
_CLEAN_SIGNALS: Final = frozenset(("SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE"))
# Which of the configured timeouts counts in which state; in the others no timer runs.
_TIMED: Final = MappingProxyType(
    {
        "start": "timeout_start",
        "reload": "timeout_start",
        "reload-signal": "timeout_start",
        "reload-notify": "timeout_start",
        "stop-watchdog": "timeout_stop",
        "stop-sigterm": "timeout_stop",
        "stop-sigkill": "timeout_stop",
    }
)
_WATCHED: Final = frozenset(("running", "reload", "reload-signal", "reload-notify"))
_RELOADS: Final = frozenset(("reload", "reload-signal", "reload-notify"))
_OVER: Final = frozenset(("dead", "failed"))


class Settings(NamedTuple):
    """What stands in the unit file; lengths in seconds, `version` is systemd's."""

    type: Literal["notify", "notify-reload", "simple"] = "notify"
    timeout_start: float = 90.0
    timeout_stop: float = 90.0
    watchdog: float | None = None
    notify_access: Literal["none", "main", "all"] = "main"
    fd_store_max: int = 0
    version: int = 257


def parse(datagram: bytes) -> tuple[tuple[str, str], ...]:
    """Read a datagram as leniently as the manager does; empty for one that it drops."""
    if len(datagram) > DATAGRAM_MAX or b"\0" in datagram:
        return ()
    pairs = []
    for line in datagram.split(b"\n"):
        key, equals, value = line.partition(b"=")
        try:
            pairs.append((key.decode("ascii"), value.decode("utf-8"))) if equals else None
        except UnicodeDecodeError:  # that field is ignored
            continue
    return tuple(pairs)


class Unit:
    """One service unit, and how it got where it is.

    `kill` is called with the name of each signal that the manager sends to the main process.
    """

    def __init__(self, settings: Settings, kill: Callable[[str], object]) -> None:
        self.settings = settings
        self.state: str = "dead"
        self.result: str = "success"
        self.reload_result: str = "success"
        self.status: str = ""
        self.notify_state: str = ""
        self.deadline: float = INFINITY
        self.watchdog_deadline: float = INFINITY
        self._kill = kill
        self._since = 0.0
        self._watchdog = settings.watchdog
        self._reload_asked = 0

    # -- what operators and the process do -----------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin anew: the main process has been started."""
        self.result = self.reload_result = "success"
        self.status = self.notify_state = ""
        self._watchdog = self.settings.watchdog
        self._enter("start" if self.settings.type != "simple" else "running", now)
        if self.settings.type == "simple":
            self._arm_watchdog(now)

    def stop(self, now: float) -> None:
        """`systemctl stop`. While it is stopping already (also by its own STOPPING=1): nothing, and no signal."""
        if self.state in _OVER or self.state.startswith("stop-"):
            return
        self._enter("stop-sigterm", now)
        self._kill("SIGTERM")

    def reload(self, now: float, monotonic_usec: int) -> None:
        """`systemctl reload`: SIGHUP; under Type=notify-reload it is waited for RELOADING=1 newer than this."""
        if self.state != "running":
            return
        self.reload_result = "success"
        if self.settings.type == "notify-reload":
            self._reload_asked = monotonic_usec
            self._enter("reload-signal", now)
        self._kill("SIGHUP")

    def daemon_reload(self) -> None:
        """`systemctl daemon-reload`: every extension is forgotten (systemd issue 43000)."""
        self.deadline = self._since + self._timeout()

    def exited(self, now: float, *, code: int = 0, signal: str = "") -> None:
        """The main process has ended."""
        if code != 0 or (signal and signal not in _CLEAN_SIGNALS):
            self._fail("signal" if signal else "exit-code")
        elif self.state == "start":
            self._fail("protocol")
        self._enter("dead" if self.result == "success" else "failed", now)

    # -- what time does ------------------------------------------------------------------------------------------------

    def due(self) -> float:
        """Return when the next timer fires."""
        return min(self.deadline, self.watchdog_deadline)

    def expire(self, now: float) -> bool:
        """Fire what is due; say whether anything was."""
        if now >= self.watchdog_deadline:
            self._abort(now)
            return True
        if now < self.deadline:
            return False
        if self.state in _RELOADS:
            self.reload_result = "timeout"
            if self.settings.version >= 259:
                self.notify_state = ""
            self._enter_running(
                now
            )  # up to 258 a reload that never ends begins again here (systemd issue 37515)
            return True
        self._fail("timeout")
        if self.state == "start":
            self._enter("stop-sigterm", now)
            self._kill("SIGTERM")
        elif self.state == "stop-sigkill":
            self._enter("failed", now)
        else:
            self._enter("stop-sigkill", now)
            self._kill("SIGKILL")
        return True

    # -- what messages do ----------------------------------------------------------------------------------------------

    def message(self, pairs: tuple[tuple[str, str], ...], now: float) -> None:
        """Take one datagram's assignments, in the manager's order: the state, then the text, then the timers."""
        values = dict(pairs)
        self._process_state(pairs, values, now)
        if "STATUS" in values:
            self.status = values["STATUS"]
        if "EXTEND_TIMEOUT_USEC" in values:
            self._extend(values["EXTEND_TIMEOUT_USEC"], now)
        if values.get("WATCHDOG") == "1":
            self._arm_watchdog(now)  # whatever the state: a ping while stopping arms it again
        elif values.get("WATCHDOG") == "trigger":
            self._abort(now)
        if _usec(values.get("WATCHDOG_USEC")):
            self._watchdog = (_usec(values["WATCHDOG_USEC"]) or 0) / 1e6
            self._arm_watchdog(now)

    def _process_state(
        self, pairs: tuple[tuple[str, str], ...], values: Mapping[str, str], now: float
    ) -> None:
        said = [key for key, value in pairs if key in ("STOPPING", "READY", "RELOADING") and value == "1"]
        if not said or (self.settings.version >= 259 and self.notify_state == "STOPPING"):
            return  # sd_notify(3), v259: STOPPING=1 is final
        # 252: the last one in the message wins; 253 and later: by rank
        chosen = (
            said[-1]
            if self.settings.version < 253
            else next(k for k in ("STOPPING", "READY", "RELOADING") if k in said)
        )
        self.notify_state = chosen
        if chosen == "STOPPING":
            if self.state in ("running", "reload-signal", "reload-notify"):
                self._enter("stop-sigterm", now)
        elif chosen == "READY":
            answered = self.state == "reload-signal" and "RELOADING" in said and self._is_answer(values)
            if self.state == "start":
                self._arm_watchdog(now)
                self._enter_running(now)
            elif self.state in ("reload", "reload-notify") or answered:
                self._enter_running(now)
        elif self.state == "running" or (self.state == "reload-signal" and self._is_answer(values)):
            self._enter(self._reload_state(), now)

    def _is_answer(self, values: Mapping[str, str]) -> bool:
        """sd_notify(3), v253: a reload is answered by RELOADING=1 with a MONOTONIC_USEC that is newer than the request."""
        said = _usec(values.get("MONOTONIC_USEC"))
        return said is not None and said >= self._reload_asked

    def _extend(self, text: str, now: float) -> None:
        """EXTEND_TIMEOUT_USEC: counted from now, only ever later; acts on both timers, on those that run."""
        value = _usec(text)
        if not value or value == _USEC_INFINITY:
            return
        until = now + value / 1e6
        if self.deadline != INFINITY:
            self.deadline = max(self.deadline, until)
        if self.watchdog_deadline != INFINITY:
            self.watchdog_deadline = max(self.watchdog_deadline, until)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _enter(self, state: str, now: float) -> None:
        self.state = state
        self._since = now
        self.deadline = now + self._timeout()
        if state not in _WATCHED:
            self.watchdog_deadline = INFINITY

    def _enter_running(self, now: float) -> None:
        """service_enter_running(): what was said too early takes effect now."""
        if self.notify_state == "STOPPING":
            self._enter("stop-sigterm", now)
        elif self.notify_state == "RELOADING":
            self._enter(self._reload_state(), now)
        else:
            self._enter("running", now)

    def _reload_state(self) -> str:
        return "reload-notify" if self.settings.version >= 253 else "reload"

    def _timeout(self) -> float:
        name = _TIMED.get(self.state)
        length: float = INFINITY if name is None else getattr(self.settings, name)
        return length or INFINITY  # systemd.service(5): 0 and infinity mean none

    def _arm_watchdog(self, now: float) -> None:
        if self._watchdog and self.state not in _OVER:
            self.watchdog_deadline = now + self._watchdog

    def _abort(self, now: float) -> None:
        self._fail("watchdog")
        self._enter("stop-watchdog", now)
        self._kill("SIGABRT")

    def _fail(self, result: str) -> None:
        """Only the first failure counts."""
        if self.result == "success":
            self.result = result


def _usec(text: str | None) -> int | None:
    """safe_atou64(): a whole number from 0 to 2^64-1, else nothing."""
    if text is None or not _NUMBER.match(text):
        return None
    number = int(text)
    return number if number <= _USEC_INFINITY else None


def environment(
    settings: Settings, address: str, names: tuple[str, ...] = (), pid: int | None = None
) -> dict[str, str]:
    """Return what the manager puts into the environment of the main process `pid`; None: it is filled in by who executes it."""
    variables = {"NOTIFY_SOCKET": address} if settings.notify_access != "none" else {}
    if settings.watchdog:
        variables["WATCHDOG_USEC"] = str(round(settings.watchdog * 1e6))
    if settings.fd_store_max and settings.version >= 254:
        variables["FDSTORE"] = str(settings.fd_store_max)
    if names:
        variables["LISTEN_FDS"] = str(len(names))
        variables["LISTEN_FDNAMES"] = ":".join(names)
    if pid is not None:
        variables["SYSTEMD_EXEC_PID"] = str(pid)
        variables |= {"WATCHDOG_PID": str(pid)} if settings.watchdog else {}
        variables |= {"LISTEN_PID": str(pid)} if names else {}
    return variables
