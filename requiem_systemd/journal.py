"""Structured records of what happens to a service."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from requiem_systemd.protocol import Environment

# Stable for ever: what operators and tools look for with `journalctl MESSAGE_ID=…`.
MESSAGE_IDS: Final = MappingProxyType(
    {
        "state": "0d8bc1b0b0a44f4cb1a87c2b7fdbf6c1",
        "draining-long": "5f0f6cbb3c7c4a0f8f5e6b3f0d1f7a52",
        "abandoned": "b0e3c9d6a7514d7c9a7d6d4b8c1f2e93",
        "let-go": "3c5b8f0e9d2a4e61a6f4b7c8d9e0f1a4",
        "stalled": "7e1d2c3b4a5f4968b7a6958473625145",
        "reload-failed": "9a8b7c6d5e4f43a2b1c0d9e8f7a6b5c6",
        "mistake": "1f2e3d4c5b6a4978a6b5c4d3e2f1a0b7",
        "exit-stuck": "c4d5e6f7a8b94c0dae1f2a3b4c5d6e78",
    }
)


def record(kind: str, **fields: object) -> dict[str, object]:
    """Make a log call's `extra`: the MESSAGE_ID of `kind` and REQUIEM_* fields."""
    named = {f"REQUIEM_{name.upper()}": value for name, value in fields.items()}
    return {"requiem": {"MESSAGE_ID": MESSAGE_IDS[kind], **named}}


def install(environment: Environment) -> None:
    """Send the library's log records to the journal where that is where they end."""


def uninstall() -> None:
    """Undo `install`."""
