"""Generations of a service, as values: which is next, which are old, what a failed one says. No I/O.

A generation is one instance of NAME@.service (NAME@3.service), or several that are started and stopped together: its workers
(NAME@3-1.service, NAME@3-2.service). A release is a generation with a name instead of a number.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.protocol import clean, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: What `systemctl show` is asked for.
PROPERTIES: Final = (
    *("Id", "LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts", "MainPID"),
    *("StateChangeTimestampMonotonic", "StatusText"),
)
_NUMBERED: Final = re.compile(r"([0-9]+)(?:-[0-9]+)?")
#: What may be in the name of an instance as it stands (systemd.unit(5)); a "/" is the mark of a path.
_INSTANCE: Final = re.compile(r"[A-Za-z0-9:_.-]+")
_ENDED: Final = frozenset(("inactive", "failed"))
_LEAVING: Final = frozenset((*_ENDED, "deactivating"))
# systemd.service(5), Result= of org.freedesktop.systemd1(5).
_RESULTS: Final = MappingProxyType(
    {
        "success": "its start was cancelled, or what it requires did not start",
        "resources": "systemd could not set it up (memory, processes, descriptors, or a file that it needs)",
        "timeout": "it did not say READY=1 within TimeoutStartSec=",
        "protocol": "it ended without saying READY=1",
        "exit-code": "it exited with status {status}",
        "signal": "it was killed by signal {status}",
        "core-dump": "it was killed by signal {status}, with a core dump",
        "watchdog": "it did not feed its watchdog within WatchdogSec=",
        "oom-kill": "it was killed because memory ran out",
        "start-limit-hit": "it was started too often (StartLimitBurst=); systemctl reset-failed {unit} lets it be started again",
    }
)
# systemd.exec(5), "Process exit codes": it is systemd that says these, before the program runs.
_STATUSES: Final = MappingProxyType(
    {
        200: "its WorkingDirectory= is not there, or not for its User=",
        203: "what ExecStart= names cannot be executed",
        216: "its Group= is not known",
        217: "its User= is not known",
        226: "its file system sandbox cannot be set up",
        233: "its RuntimeDirectory= cannot be made",
    }
)


class Instance(NamedTuple):
    """One instance unit, as the manager shows it."""

    unit: str
    load: str
    active: str
    sub: str
    result: str
    status: int
    restarts: int
    pid: int
    since: float  # of its state, on the monotonic clock
    text: str  # STATUS=

    @property
    def name(self) -> str:
        """Without the suffix: NAME@3."""
        return self.unit.removesuffix(".service")

    @property
    def instance(self) -> str:
        """What comes after the @: 3, 3-1, or a release."""
        return self.name.partition("@")[2]

    @property
    def generation(self) -> str:
        """Which generation it belongs to: workers share one."""
        numbered = _NUMBERED.fullmatch(self.instance)
        return numbered[1] if numbered else self.instance

    @property
    def ended(self) -> bool:
        """It has no process, and nobody tries to give it one."""
        return self.active in _ENDED

    @property
    def live(self) -> bool:
        """It serves, or it is tried to make it serve; not if it drains."""
        return self.active not in _LEAVING

    @property
    def came_up(self) -> bool:
        """It was started, and has run ever since."""
        return self.active not in (*_LEAVING, "activating") and not self.restarts


def blocks(shown: str) -> list[dict[str, str]]:
    """Read the output of `systemctl show`, a block a unit."""
    return [dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.split("\n\n")]


def read(shown: str) -> list[Instance]:
    """Read the output of `systemctl show --property=PROPERTIES`: those that are instances."""
    return sorted((_instance(block) for block in blocks(shown) if "@" in block.get("Id", "")), key=lambda one: natural(one.instance))


def natural(name: str) -> list[tuple[int, str]]:
    """Sort 10 behind 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _instance(values: Mapping[str, str]) -> Instance:
    return Instance(
        unit=values["Id"],
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        result=values.get("Result", ""),
        status=_number(values.get("ExecMainStatus", "")),
        restarts=_number(values.get("NRestarts", "")),
        pid=_number(values.get("MainPID", "")),
        since=_number(values.get("StateChangeTimestampMonotonic", "")) / 1e6,
        text=clean(values.get("StatusText", "")),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


# -- which ----------------------------------------------------------------------------------------------------------------


def following(name: str, instances: Iterable[Instance], workers: int | None = None) -> list[str]:
    """Return the units of the next generation: one more than the highest number that systemd knows of, ended ones too."""
    number = 1 + max((int(one.generation) for one in instances if one.generation.isdecimal()), default=0)
    if workers is None:
        return [f"{name}@{number}.service"]
    return [f"{name}@{number}-{worker}.service" for worker in range(1, workers + 1)]


def release_unit(name: str, release: str) -> str:
    """Return the unit of a release; ValueError for what cannot be the name of an instance and of a folder."""
    if not _INSTANCE.fullmatch(release) or release in (".", ".."):
        msg = f"{release!r} cannot be an instance's name: use letters, digits, and any of :_.-"
        raise ValueError(msg)
    return f"{name}@{release}.service"


def others(instances: Iterable[Instance], new: Sequence[str]) -> list[Instance]:
    """Return what is told to stop when the new generation serves.

    Those that are on their way out too: one that ends because it hangs, or that waits for its restart after a crash, would come back.
    """
    return [one for one in instances if not one.ended and one.unit not in new]


def generations(instances: Iterable[Instance]) -> list[str]:
    """Return the generations that run, draining ones too."""
    return list(dict.fromkeys(one.generation for one in instances if not one.ended))


# -- what to say ----------------------------------------------------------------------------------------------------------


def why(instance: Instance, *, started: bool = False) -> str:
    """Say what became of an instance that did not come up, or (`started`) did and did not stay."""
    if instance.load not in ("loaded", ""):
        return f"systemd says of it: {instance.load}"
    if started and instance.result == "success":
        return "it ended by itself, with status 0"
    if instance.result == "exit-code" and instance.status in _STATUSES:
        return f"{_STATUSES[instance.status]} (status {instance.status})"
    if instance.result in _RESULTS:
        return _RESULTS[instance.result].format(status=instance.status, unit=instance.unit)
    return f"systemd says of it: {instance.result or instance.active or 'nothing'}"


def listing(instances: Iterable[Instance], now: float) -> str:
    """Show what runs, a line each: its state, for how long, and what it says of itself."""
    running = [one for one in instances if not one.ended]
    return "\n".join(
        f"    {one.name}  {_SHOWN.get(one.active, one.active)} for {duration(max(0.0, now - one.since))}"
        + (f": {one.text}" if one.text else "")
        for one in running
    )


_SHOWN: Final = MappingProxyType({"deactivating": "draining", "active": "serving", "activating": "starting"})


def named(instances: Iterable[Instance | str]) -> str:
    """List units in a sentence."""
    return ", ".join((one if isinstance(one, str) else one.unit).removesuffix(".service") for one in instances)
