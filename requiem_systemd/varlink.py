"""Varlink as values: NUL-terminated JSON, and what the service says about itself. No I/O.

Source: https://varlink.org/Service and /Interface-Definition. The caller often runs from another release than the service: what an
interface has is never changed, only added to; what must change becomes an interface of another name.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from requiem_systemd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = "0.1.0"
# No message in either direction is longer.
MESSAGE_MAX: Final = 65536
STANDARD: Final = "org.varlink.service"
# Interface names have no underscores.
SERVICE: Final = "io.requiem-systemd.Service"
RELOAD_FAILED: Final = f"{SERVICE}.ReloadFailed"
UNAVAILABLE: Final = f"{SERVICE}.Unavailable"

DESCRIPTIONS: Final[Mapping[str, str]] = {
    STANDARD: """\
# What every Varlink service answers.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)
""",
    SERVICE: f"""\
# A service that drains and reloads.
interface {SERVICE}

# What a signal does if it comes next.
type Effect (signal: string, effect: string)

# All lengths are in seconds. lame_duck is a length, or "jobs".
type Limits (drain_timeout: ?float, request_timeout: float, exit_timeout: float, lame_duck: string)

# A worker process as its primary sees it.
type Worker (id: int, pid: int, phase: string, status: string, jobs: int, requests: int, oldest: string)

# What holds the stop. kind: job, request, connection, listener, hook, worker; once all jobs have ended, thread.
# where: file:line:function. left: until a limit of its own lets it go, once the drain has begun. stack: innermost first.
type Holder (
  kind: string,
  label: string,
  age: float,
  owner: string,
  status: string,
  where: string,
  left: ?float,
  stalled: bool,
  stack: ?[]string
)

# relation: child, descendant, or orphan, whose parent has ended.
type Process (pid: int, parent: int, name: string, state: string, age: float, relation: string)

type Thread (name: string, daemon: bool, stack: []string)

# Reload, and answer when that has ended: with an error if it failed or cannot be done. The unit's main process does it.
# note: what whoever asked should know of a reload that went well, if there is anything.
method Reload() -> (note: ?string)

# Where this process stands. since: in this state. extension: until what the manager was last asked for runs out.
# drain_left: until drain_timeout abandons what is in flight. exit_left: until exit_timeout ends the process.
method Describe() -> (
  unit: ?string,
  pid: int,
  role: string,
  release: string,
  state: string,
  since: float,
  reason: string,
  status: string,
  in_flight: int,
  abandoned: int,
  manager: bool,
  drain_age: ?float,
  drain_left: ?float,
  exit_left: ?float,
  extension: ?float,
  limits: Limits,
  signals: []Effect,
  workers: []Worker
)

# What holds the stop, oldest first. omitted: so many holders more, for which there was no room. counts: of all, by kind.
# With stacks: where each stands, and all threads.
method InFlight(stacks: ?bool) -> (
  holders: []Holder,
  omitted: int,
  counts: [string]int,
  processes: []Process,
  threads: []Thread
)

# The old state is kept. draining: there is no other to come, the service ends.
error ReloadFailed (reason: string, draining: bool)

# It cannot be told now, and why.
error Unavailable (reason: string)
""",
}


class Call(NamedTuple):
    """One request; `oneway` wants no answer."""

    method: str
    parameters: Mapping[str, Any]
    oneway: bool = False


def read_call(data: bytes) -> Call:
    """Read a request, without its NUL. Raises ProtocolError for what is none."""
    message = _read(data)
    method, parameters = message.get("method"), message.get("parameters") or {}
    if not isinstance(method, str) or not isinstance(parameters, dict):
        msg = "varlink: a request has a method, a string, and parameters, an object"
        raise ProtocolError(msg)
    return Call(method, parameters, message.get("oneway") is True)


def read_reply(data: bytes) -> tuple[str, Mapping[str, Any]]:
    """Read an answer, without its NUL: the error's name, "" for none, and the parameters. Raises ProtocolError for what is none."""
    message = _read(data)
    error, parameters = message.get("error") or "", message.get("parameters") or {}
    if not isinstance(error, str) or not isinstance(parameters, dict):
        msg = "varlink: an answer has parameters, an object, and an error's name, a string"
        raise ProtocolError(msg)
    return error, parameters


def write_call(method: str, **parameters: object) -> bytes:
    """Write a request, its NUL included."""
    return _write({"method": method, "parameters": parameters})


def write_reply(parameters: Mapping[str, object], error: str = "") -> bytes:
    """Write an answer, its NUL included."""
    return _write({"error": error, "parameters": parameters} if error else {"parameters": parameters})


def introspect(call: Call) -> bytes:
    """Answer what every service answers; an error for any other method: there is none, or not in this process."""
    interface, _, method = call.method.rpartition(".")
    if interface not in DESCRIPTIONS:
        return write_reply({"interface": interface}, f"{STANDARD}.InterfaceNotFound")
    if call.method == f"{STANDARD}.GetInfo":
        about = {"vendor": "requiem_systemd", "product": "requiem_systemd", "version": VERSION, "url": ""}
        return write_reply({**about, "interfaces": list(DESCRIPTIONS)})
    if call.method == f"{STANDARD}.GetInterfaceDescription":
        wanted = call.parameters.get("interface")
        if not isinstance(wanted, str):
            return write_reply({"parameter": "interface"}, f"{STANDARD}.InvalidParameter")
        if wanted not in DESCRIPTIONS:
            return write_reply({"interface": wanted}, f"{STANDARD}.InterfaceNotFound")
        return write_reply({"description": DESCRIPTIONS[wanted]})
    known = method in methods_of(DESCRIPTIONS[interface])
    return write_reply({"method": method}, f"{STANDARD}.Method{'NotImplemented' if known else 'NotFound'}")


def methods_of(description: str) -> list[str]:
    """Return the methods that an interface description defines."""
    return re.findall(r"^method +(\w+) *\(", description, re.MULTILINE)


def _read(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"varlink: no JSON: {error}"
        raise ProtocolError(msg) from error
    if not isinstance(message, dict):
        msg = "varlink: a message is an object"
        raise ProtocolError(msg)
    return message


def _write(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\0"  # ASCII: lone surrogates are escaped
