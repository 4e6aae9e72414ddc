"""A Redis of our own, on this machine only, that keeps nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Server:
    """Where it listens."""

    port: int
    path: Path

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def ask(self, *command: object) -> Any:
        """Send a command over a connection of its own; return the answer, decoded."""
        import redis  # noqa: PLC0415 - not in what Debian's build has

        with redis.Redis(port=self.port, decode_responses=True) as client:
            return client.execute_command(*command)

    def flush(self) -> None:
        """Forget everything; a server that has ended has."""
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(64).startswith(b"+OK")

    def end(self) -> None:
        """End it before its time."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            connection.recv(64)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start one, wait until it answers, and end it with the block."""
    program = shutil.which("redis-server") or pytest.skip("no redis-server (Debian: apt install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = folder / "socket"
    command = (program, "--bind", "127.0.0.1", "--port", str(port), "--unixsocket", path, "--save", "", "--dir", folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            while "eady to accept connections" not in (line := server.stdout.readline()):
                assert line, "redis-server did not come up"
            yield Server(port, path)
        finally:
            server.terminate()
