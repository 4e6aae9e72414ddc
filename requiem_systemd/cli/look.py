"""What a service answers through its control socket, read with suspicion: it may run another release, hang, or lie."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from requiem_systemd import varlink
from requiem_systemd.cli import client
from requiem_systemd.errors import ProtocolError
from requiem_systemd.protocol import clean

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from requiem_systemd.cli.sockets import Found

# A service looks for at most 1 s, and says after 5 s that it hangs (`account`).
WITHIN: Final = 10.0
# So many are asked at once: one that hangs keeps nobody from seeing the others.
AT_ONCE: Final = 16
_NOT_FOUND: Final = (f"{varlink.STANDARD}.MethodNotFound", f"{varlink.STANDARD}.InterfaceNotFound")


class Told(NamedTuple):
    """What one process told; `problem` says what it did not, and why."""

    unit: str
    path: str
    described: Mapping[str, Any]
    in_flight: Mapping[str, Any]
    problem: str
    shown: Mapping[str, str]  # by systemd


class Holder(NamedTuple):
    """What holds the stop; lengths in seconds."""

    kind: str
    label: str
    age: float
    owner: str
    status: str
    where: str
    left: float | None
    stalled: bool
    stack: tuple[str, ...]


def ask_all(services: Sequence[Found], *, stacks: bool) -> list[Told]:
    """Ask all processes of services, side by side; what has gone is left out."""
    jobs = [(one, path) for one in services for path in (one.paths or ("",))]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        told = list(pool.map(lambda job: ask(*job, stacks=stacks), jobs))
    finally:  # after a Ctrl-C nobody waits for one that hangs
        pool.shutdown(wait=False, cancel_futures=True)
    return [one for one in told if one is not None]


def ask(service: Found, path: str, *, stacks: bool) -> Told | None:
    """Ask one process; None where it has gone: a worker, or a service that is not said to run."""
    nothing = Told(service.name, path, {}, {}, "", service.shown)
    if not path:
        return nothing._replace(problem="has no control socket: RuntimeDirectory=%N in its unit gives it one, from its next start on")
    try:
        with client.connect(path) as sock:
            told = _asked(nothing, sock, stacks=stacks)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        may_go = "." in os.path.basename(path) or not service.shown
        return None if may_go else nothing._replace(problem=f"does not listen at {clean(path)}: {error.strerror}")
    except PermissionError:
        return nothing._replace(problem=f"{clean(path)}: permission denied; run this as root or as the service's user")
    except OSError as error:
        return nothing._replace(problem=f"{clean(path)}: {error.strerror or error}")
    return told if told.described or not told.problem or _is_there(path) else None


def _is_there(path: str) -> bool:
    """Say whether anybody listens: a process that ends in the middle of an answer has gone, and did not refuse."""
    try:
        client.connect(path).close()
    except OSError:
        return False
    return True


def _asked(told: Told, sock: socket.socket, *, stacks: bool) -> Told:
    try:
        error, described = client.call(sock, f"{varlink.SERVICE}.Describe", WITHIN)
        if error:
            return told._replace(problem=_refused(sock, error, described))
        told = told._replace(described=described, unit=text(described, "unit") or told.unit)
        error, holding = client.call(sock, f"{varlink.SERVICE}.InFlight", WITHIN, stacks=stacks)
    except TimeoutError:
        return told._replace(problem=f"does not answer within {WITHIN:.0f} s")
    except (OSError, ProtocolError) as problem:
        return told._replace(problem=f"gives no answer: {clean(problem, 300)}")
    return (
        told._replace(problem=_refused(sock, error, holding)) if error else told._replace(in_flight=holding)
    )


def _refused(sock: socket.socket, error: str, parameters: Mapping[str, Any]) -> str:
    if error in _NOT_FOUND:
        known = ", ".join(_known(sock)) or "nothing"
        return f"the service runs an older release: only {known} is known"
    return f"answers {clean(error.rpartition('.')[2], 100)}: {text(parameters, 'reason') or 'no reason was given'}"


def _known(sock: socket.socket) -> list[str]:
    """Return the methods that the service says it has."""
    try:
        _, answer = client.call(
            sock, f"{varlink.STANDARD}.GetInterfaceDescription", WITHIN, interface=varlink.SERVICE
        )
    except (OSError, ProtocolError):
        return []
    description = answer.get("description")
    return varlink.methods_of(description)[:20] if isinstance(description, str) else []


# -- reading: what is not there, or of another type, is as nothing; what is there and not known is left alone


def text(values: Mapping[str, Any], key: str, limit: int = 300) -> str:
    """Return a text, fit for a terminal."""
    value = values.get(key)
    return clean(value, limit) if isinstance(value, str) else ""


def number(values: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number; None where there is none."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(values: Mapping[str, Any], key: str) -> int:
    """Return a whole number; 0 where there is none."""
    return int(number(values, key) or 0)


def objects(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the objects of a list."""
    value = values.get(key)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def lines(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the texts of a list."""
    value = values.get(key)
    return tuple(clean(one, 400) for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def counts(told: Told) -> dict[str, int]:
    """Return how many of each kind are in flight."""
    found = told.in_flight.get("counts")
    return {clean(kind, 40): whole(found, kind) for kind in found} if isinstance(found, dict) else {}


def holders(told: Told) -> list[Holder]:
    """Return what holds the stop, the oldest first."""
    return [
        Holder(
            kind=text(one, "kind"),
            label=text(one, "label"),
            age=number(one, "age") or 0.0,
            owner=text(one, "owner"),
            status=text(one, "status"),
            where=text(one, "where", 400),
            left=number(one, "left"),
            stalled=one.get("stalled") is True,
            stack=lines(one, "stack"),
        )
        for one in objects(told.in_flight, "holders")
    ]
