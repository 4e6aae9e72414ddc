"""What matters of a unit: its settings with their defaults, the program that it runs, and the units beside it. No I/O."""

from __future__ import annotations

import math
import re
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.cli.doctor import parse, programs, wrappers
from requiem_systemd.protocol import timespan
from requiem_systemd.unitfile import Unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from requiem_systemd.cli.doctor.parse import Command
    from requiem_systemd.cli.doctor.programs import Program
    from requiem_systemd.cli.doctor.wrappers import Wrapper

DEFAULT_TIMEOUT: Final = 90.0  # DefaultTimeoutStopSec= of systemd-system.conf(5)
NOTIFYING: Final = frozenset(("notify", "notify-reload"))
# What Quadlet writes into the service of a container; podman-systemd.unit(5), and its source, pkg/systemd/quadlet/quadlet.go
_QUADLET: Final = MappingProxyType({"Type": "notify", "NotifyAccess": "all", "KillMode": "mixed"})
_CLUSTER: Final = re.compile(r"^[^#\n]*\bCluster\(", re.MULTILINE)
#: Sockets that many services need and that start none of them.
_FOREIGN: Final = (
    "dbus",
    "docker",
    "podman",
    "containerd",
    "systemd-",
    "avahi",
    "cups",
    "libvirt",
    "rpcbind",
    "snapd",
    "mysql",
    "postgresql",
    "redis",
)


class Source(NamedTuple):
    """What was read, from files or from systemd."""

    name: str  # as web.service, web@3.service, web.container
    unit: Unit
    others: Mapping[str, Unit] = MappingProxyType({})  # sockets, and the anchor of a generation, by name
    live: Mapping[str, str] = MappingProxyType({})  # of `systemctl show`; empty for a file
    user: bool = False  # of a user's manager
    version: int | None = None  # of systemd
    script: str = ""  # the text of the program, where it can be read
    config: str = ""  # the text of the server's configuration, likewise
    limits: Mapping[str, float] = MappingProxyType({})  # "reboot", "user@": seconds, where systemd told
    lingers: bool | None = None
    process: str = ""  # the running main process's name
    forbids: str = ""  # what of the kernel's settings keeps user namespaces from the users that this one's manager is of
    needrestart: bool = False  # it is installed, and nothing of ours is in its configuration


class Facts:
    """One unit, looked at for what a stop does to it."""

    def __init__(self, source: Source) -> None:
        """Store; everything is worked out when it is asked for."""
        self.source: Source = source
        self.name: str = source.name
        self.container: bool = source.name.endswith(".container")
        self.is_socket: bool = source.name.endswith(".socket")
        self.template: bool = "@" in source.name
        self.specifiers: dict[str, str] = parse.specifiers(source.name)

    # -- settings

    def get(self, key: str, section: str = "Service") -> str:
        """Return the assignment that counts, specifiers resolved."""
        return parse.expand(self.source.unit.last(section, key), self.specifiers)

    def words(self, key: str, section: str = "Service") -> list[str]:
        """Return the words of a list."""
        return [
            word
            for line in self.source.unit.all(section, key)
            for word in parse.expand(line, self.specifiers).split()
        ]

    def commands(self, key: str) -> list[Command]:
        """Return the commands of an Exec setting."""
        return parse.commands(self.source.unit.all("Service", key), self.specifiers)

    @cached_property
    def type(self) -> str:
        """Type=."""
        return self._setting("Type") or (
            "dbus" if self.get("BusName") else "simple" if self.commands("ExecStart") else "oneshot"
        )

    @cached_property
    def notify_access(self) -> str:
        """NotifyAccess=, with what systemd makes of it: systemd.service(5)."""
        needed = self.type in NOTIFYING or bool(self.watchdog) or self.store > 0
        given = self._setting("NotifyAccess") or "none"
        return "main" if needed and given == "none" else given

    @cached_property
    def kill_mode(self) -> str:
        """KillMode=."""
        return self._setting("KillMode") or "control-group"

    @cached_property
    def restart(self) -> str:
        """Restart=."""
        return self.get("Restart") or "no"

    @cached_property
    def watchdog(self) -> float:
        """WatchdogSec=, in seconds; 0 if there is none."""
        length = _span(self.get("WatchdogSec"), 0.0)
        return 0.0 if length == math.inf else length

    @cached_property
    def store(self) -> int:
        """FileDescriptorStoreMax=."""
        text = self.get("FileDescriptorStoreMax")
        return int(text) if text.isdecimal() else 0

    @cached_property
    def stop_timeout(self) -> float:
        """How long a stop may take until SIGKILL, in seconds."""
        if live := self.source.live.get("TimeoutStopUSec"):
            return _span(live, DEFAULT_TIMEOUT)
        return self.stop_timeout_given if self.stop_timeout_given is not None else DEFAULT_TIMEOUT

    @cached_property
    def stop_timeout_given(self) -> float | None:
        """TimeoutStopSec=, or TimeoutSec= which sets it too; None where the unit says nothing."""
        text = self.get("TimeoutStopSec") or self.get("TimeoutSec")
        length = _span(text, -1.0) if text else -1.0
        return None if length < 0 else length or math.inf  # 0 is infinite

    @cached_property
    def environment(self) -> dict[str, str]:
        """Environment=."""
        section = "Container" if self.container else "Service"
        pairs = [word for line in self.source.unit.all(section, "Environment") for word in parse.words(line)]
        return {key: value for key, equals, value in (pair.partition("=") for pair in pairs) if equals}

    def _setting(self, key: str) -> str:
        return self.get(key) or (_QUADLET.get(key, "") if self.container else "")

    # -- the program

    @cached_property
    def argv(self) -> list[str]:
        """What is run in the end: behind a shell, the command that it is given."""
        if self.container:
            return parse.words(self.source.unit.last("Container", "Exec"))
        return wrappers.behind_shell(list(self._main.words)) if self._main else []

    @cached_property
    def _main(self) -> Command | None:
        run = self.commands("ExecStart")
        return run[-1] if run else None

    @cached_property
    def _found(self) -> tuple[Program | None, list[str]]:
        return programs.find(self.argv)

    @property
    def program(self) -> Program | None:
        """The program, if it is known."""
        return self._found[0]

    @cached_property
    def arguments(self) -> list[str]:
        """The known program's own arguments; those that come by the environment first, since typed ones count more."""
        program, typed = self._found
        told = [
            word
            for name, variable, option in programs.VARIABLES
            if program is not None and program.name == name and (value := self.environment.get(variable))
            for word in ((option, value) if option else parse.words(value))
        ]
        return [*told, *typed]

    @property
    def called(self) -> str:
        """The program's name in a sentence."""
        return self.program.name if self.program else "the program"

    @cached_property
    def drain(self) -> float | None:
        """How long the program's work has after SIGTERM, by itself: seconds, infinite for as long as it takes; None if unknown."""
        limit = self.environment.get("REQUIEM_DRAIN_TIMEOUT")
        if self.library and limit:
            return _span(limit, math.inf)
        signal = (self.get("KillSignal") or "SIGTERM").upper().removeprefix("SIG")
        return programs.drain_of(self.program, self.arguments, self.source.config, signal) if self.program else None

    @cached_property
    def has_children(self) -> bool:
        """Whether work is known to be done in worker processes."""
        return self.cluster or (self.program is not None and programs.has_children(self.program, self.arguments))

    @cached_property
    def mute(self) -> bool:
        """Whether the main process is known to be a server's parent that runs no line of this library's."""
        return self.program is not None and programs.is_mute(self.program, self.arguments, self.source.config)

    @cached_property
    def cluster(self) -> bool:
        """Whether it is a primary with workers of this library's making, as far as that can be seen from here."""
        if self.program is not None and self.program.name == "requiem-systemd serve":
            return programs.has_children(self.program, self.arguments)
        return "requiem_systemd" in self.source.script and _CLUSTER.search(self.source.script) is not None

    @cached_property
    def library(self) -> bool:
        """Whether it uses requiem_systemd, as far as that can be seen from here."""
        lines = [line for key in ("ExecStart", "ExecReload") for line in self.source.unit.all("Service", key)]
        if self.container:
            lines += self.source.unit.all("Container", "Exec")
        if any(map(parse.is_ours, lines)):
            return True
        if (
            any(name.startswith("REQUIEM_") for name in self.environment)
            or "requiem_systemd" in self.source.script + self.source.config
        ):
            return True
        # somebody says READY=1 for a program that does not by itself
        known = (
            self.program is not None
            and not self.program.notifies
            and self.program.name not in ("Node", "docker", "docker compose")
        )
        return known and self._setting("Type") in NOTIFYING and not self.container

    @cached_property
    def is_python(self) -> bool:
        """Whether it is a program of one's own in Python, which may use the library and may not."""
        return (
            self.program is None
            and bool(self.argv)
            and any(
                word.rpartition("/")[2].startswith(("python", "pypy")) or word.endswith(".py")
                for word in self.argv[:4]
            )
        )

    @cached_property
    def wrapper(self) -> Wrapper | None:
        """What stands between systemd and the program, if anything does."""
        return (
            None
            if self.container or self._main is None
            else wrappers.find(self._main.words, self.source.process)
        )

    # -- the units beside it

    @cached_property
    def sockets(self) -> dict[str, Unit]:
        """The socket units that start it or that it inherits from, as far as their names are known; an unread one is empty."""
        inherited = [*self.words("Sockets"), *self.source.live.get("TriggeredBy", "").split()]
        depends = [word for key in ("Requires", "Wants", "BindsTo") for word in self.words(key, "Unit")]
        own = [f"{self.specifiers['N']}.socket", f"{self.specifiers['p']}.socket"]
        beside = [name for name in own if name in self.source.others]
        names = [*inherited, *(name for name in (*depends, *beside) if self._starts_us(name, own))]
        return {name: self.source.others.get(name, Unit(())) for name in names if name.endswith(".socket")}

    def _starts_us(self, socket: str, own: Sequence[str]) -> bool:
        """Say whether a socket is the service's own, and no other's that it needs, such as dbus.socket."""
        if (unit := self.source.others.get(socket)) is None:
            return socket in own or not socket.startswith(_FOREIGN)
        started = parse.expand(unit.last("Socket", "Service"), parse.specifiers(socket)) or socket.replace(
            ".socket", ".service"
        )
        return started in (self.name.replace(".container", ".service"), f"{self.specifiers['p']}.service")

    @cached_property
    def anchor(self) -> bool:
        """Whether it is an anchor: its only work is to roll."""
        return any(
            "roll" in command.words and parse.is_ours(str(command)) for command in self.commands("ExecStart")
        )

    @cached_property
    def anchored_by(self) -> str:
        """The name of the anchor that rolls it; empty if it is no generation."""
        name = f"{self.specifiers['p']}.service"
        beside = self.source.others.get(name)
        rolls = beside is not None and any(
            parse.is_ours(line) and " roll" in line for line in beside.all("Service", "ExecStart")
        )
        return name if self.template and rolls else ""

    @cached_property
    def worth_draining(self) -> bool:
        """Whether work in flight is to be expected: not in a tool that is known to have none, nor in an anchor."""
        return (
            not self.anchor
            and self.type != "oneshot"
            and (self.program is None or self.program.name != "celery beat")
        )


def _span(text: str, unknown: float) -> float:
    try:
        return timespan(text)
    except ValueError:
        return unknown
