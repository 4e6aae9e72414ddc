"""A real HTTP client that does not let up, and counts what becomes of its requests."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter


class Load:
    """Clients in threads, each with a new connection a request, as long as the `with` block lasts."""

    def __init__(self, port: int, clients: int = 4) -> None:
        """Store; `with` begins."""
        self.port = port
        self.outcomes: Counter[str] = Counter()
        self.longest = 0.0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:  # noqa: PYI034 -- typing.Self would be needed at run time
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last answers."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        """How many requests were answered, in full."""
        return self.outcomes["answered"]

    @property
    def failed(self) -> int:
        """How many were not."""
        return self.outcomes.total() - self.answered

    def _run(self) -> None:
        while not self._ended.wait(0.01):
            begin = time.monotonic()
            outcome = request(self.port, "GET", "/", timeout=60)
            self.longest = max(self.longest, time.monotonic() - begin)
            self.outcomes[outcome] += 1


def request(port: int, method: str, path: str, timeout: float = 10.0) -> str:
    """Make one request; say what became of it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path)
        body = connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    return "answered" if body.endswith(b"\n") else "cut short"
