"""An HTTP/1.1 client that shows what happens to a connection, byte by byte."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.patience import PATIENCE

if TYPE_CHECKING:
    import ssl


class Response(NamedTuple):
    """One answer; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One connection to a server on this machine."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Connect; ConnectionRefusedError where nobody listens."""
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="here")
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self.sock.close()

    def send(self, path: str, *headers: str) -> None:
        """Send a request, and do not wait for its answer."""
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *headers]
        self.sock.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())

    def receive(self) -> Response:
        """Read one whole answer; ConnectionError where the connection ends before it does."""
        status, headers = self.head()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while chunk := self.chunk():
                body += chunk
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            body = self._file.read()
        return Response(status, headers, body)

    def get(self, path: str, *headers: str) -> Response:
        """Send a request and read its answer."""
        self.send(path, *headers)
        return self.receive()

    def head(self) -> tuple[int, dict[str, str]]:
        """Read an answer's status and headers."""
        line = self._line()
        status = int(line.split()[1])
        headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def chunk(self) -> bytes:
        """Read one chunk; empty: the last."""
        size = int(self._line(), 16)
        data = self._exactly(size)
        self._line()
        return data

    def ended(self) -> bool:
        """Wait for the other side's end; False: it sent something."""
        try:
            return not self._file.read(1)
        except ConnectionResetError:
            return True

    def _line(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            message = f"the connection ended within {line!r}"
            raise ConnectionError(message)
        return line.rstrip(b"\r\n").decode("latin-1")

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            message = f"the connection ended after {len(data)} bytes of {size}"
            raise ConnectionError(message)
        return data


def get(port: int, path: str) -> Response:
    """Send one request over a connection of its own."""
    with Connection(port) as connection:
        return connection.get(path)


def refused(port: int) -> bool:
    """Say whether nobody listens."""
    try:
        Connection(port).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # reset in the instant of closing
        return False
    return False
