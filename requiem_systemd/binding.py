"""Addresses to bind a listener at: (host, port), or a path for AF_UNIX."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any, Final, TypeAlias

from requiem_systemd.errors import ListenerError

Fallback: TypeAlias = "tuple[str, int] | str | os.PathLike[str]"
PORT_MAX: Final = 65535


def shown(address: Any) -> str:
    """Write an address of any family for people."""
    if isinstance(address, (str, bytes)):
        return os.fsdecode(address).replace("\0", "@") or "an AF_UNIX socket without a name"
    if isinstance(address, tuple) and len(address) > 1:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}"
    return str(address)


def resolve(name: str, fallback: Any) -> tuple[int, Any]:
    """Return the family and the address to bind."""
    if isinstance(fallback, (str, os.PathLike)):
        path = os.fspath(fallback)
        if not hasattr(socket, "AF_UNIX"):
            msg = f"listener {name!r}: this system has no AF_UNIX sockets; give fallback=(host, port)"
            raise ListenerError(msg)
        return socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path
    match fallback:
        case (str(), port_given) if type(port_given) is int:
            host, port = fallback
        case _:
            msg = f"fallback={fallback!r}: give (host, port), or a path for AF_UNIX"
            raise TypeError(msg)
    if not 0 <= port <= PORT_MAX:
        msg = f"fallback={fallback!r}: a port is 0 to {PORT_MAX}"
        raise ValueError(msg)
    literal = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        anywhere = "0.0.0.0"  # noqa: S104 - an empty host asks for it
        found = socket.getaddrinfo(
            literal or anywhere, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        msg = f"listener {name!r} was not passed and cannot be bound at {shown(fallback)}: {error.strerror or error}"
        raise ListenerError(msg) from error
    return found[0][0], found[0][4]


def replace_stale(name: str, path: str) -> None:
    """Remove an AF_UNIX path that nobody listens at, if it is ours; else leave it for bind() to complain about."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        msg = f"listener {name!r} cannot be bound at {path}: there is something that is no socket; it is left alone"
        raise ListenerError(msg)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except OSError:  # full, of another type, or not to be reached: somebody is there
            return
        else:
            return
    if found.st_uid != os.geteuid():
        msg = f"listener {name!r} cannot be bound at {path}: a stale socket of user {found.st_uid} is there; it is not ours to remove"
        raise ListenerError(msg)
    os.unlink(path)  # noqa: PTH108 - see unlink()
