"""The command line: `requiem-systemd VERB ...`. Each verb is a module of its own, loaded when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# Each is a module here with `run(argv) -> exit status`.
VERBS: Final = MappingProxyType(
    {
        "ps": "show what is in flight in services",
        "why": "show what holds a service's stop, where it stands, and what can be done",
        "history": "show past drains, reloads and rolls of a unit, from the journal",
        "reload": "have a service reload, wait, and say how it went",
        "serve": "run an ASGI or WSGI application, in one process or in several",
        "roll": "start a service's next generation, and have the old ones drain",
        "drain": "stop all generations of a service, and wait for their jobs",
        "renew": "have units take up replaced files, and wait for no drain",
        "new": "write the units of a service",
        "doctor": "say what of a unit will kill a drain or drop a connection",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = [*_renewed(sys.argv[0]), *sys.argv[1:]] if argv is None else list(argv)
    if words and words[0] in VERBS:
        status: int = importlib.import_module(f"{__name__}.{words[0]}").run(words[1:])
        return status
    listing = "\n".join(f"  {name:<10}{summary}" for name, summary in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="requiem-systemd",
        usage="%(prog)s [-h] [--version] VERB ...",
        description=f"For services that use requiem_systemd.\n\nverbs:\n{listing}",
        epilog="requiem-systemd VERB --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"requiem-systemd {_version()}")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", default=(), help=argparse.SUPPRESS)
    parser.parse_args(words)
    return 2


def _renewed(program: str) -> list[str]:
    """Under the name of a unit the command renews it: as a link in needrestart's restart.d, whose scripts are named so and take no words."""
    name = os.path.basename(program)
    return ["renew", name] if name.endswith(".service") else []


def _version() -> str:
    from requiem_systemd.varlink import VERSION  # noqa: PLC0415 - a verb need not load it

    return VERSION
