"""A client of the control socket that says what it likes."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


class Caller:
    """A client that says what it likes."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(path))
        self._read = b""

    def say(self, method: str, **more: object) -> None:
        """Send one request."""
        self.sock.sendall(json.dumps({"method": method, **more}).encode() + b"\0")

    def hear(self) -> dict[str, Any]:
        """Wait for one answer; empty if the service hangs up."""
        while b"\0" not in self._read:
            try:
                more = self.sock.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                return {}
            self._read += more
        data, _, self._read = self._read.partition(b"\0")
        answer: dict[str, Any] = json.loads(data)
        return answer

    def ask(self, method: str, **more: object) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        self.say(method, **more)
        return self.hear()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()
