#!/usr/bin/python3
"""An open-loop HTTP/1.1 client: requests leave on time, whatever becomes of those before them. Standard library only.

    load.py 127.0.0.1:8080 --new 250 --keep 250 --seconds 20

`--new` requests a second go over a new connection each, `--keep` over a pool of kept ones. A pooled connection whose close has
been seen is dropped before it is used, as every HTTP client does; a request that dies on its way is not sent again, it
has failed. The end comes after `--seconds`, or when standard input ends. Then one JSON object goes to standard output: `sent`, `ok`,
`failed` (reason: count), `slowest` (seconds), `done` (when each answer was there, CLOCK_MONOTONIC), `failures` (when, why) and
`bodies` ("new BODY" and "kept BODY": how often, when a request that it answered was first sent, when last).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: A request that has no answer by then has failed.
PATIENCE: Final = 15.0
#: Kept connections are used in turn, so many that each rests so long, in seconds: far below the grace of a server that stops (0.5 s). A
#: request that comes just when its connection has been silent for the grace may cross the close on its way, at any server.
REST: Final = 0.08
#: So many requests on their way at once; beyond, they fail without being sent: the client must not be what breaks.
MOST: Final = 8000


class Figures(NamedTuple):
    """What a client has to say in the end."""

    sent: int
    ok: int
    failed: dict[str, int]
    slowest: float
    done: list[float]
    failures: list[list[Any]]
    bodies: dict[str, list[float]]

    def silence(self, begin: float, end: float) -> float:
        """Return the longest time between two answers in a stretch of time."""
        times = [begin, *sorted(when for when in self.done if begin <= when <= end), end]
        return max(after - before for before, after in itertools.pairwise(times))


class Course(NamedTuple):
    """What was done under load: when each stretch began and ended, CLOCK_MONOTONIC."""

    calm: list[tuple[float, float]]
    rolls: list[tuple[float, float]]

    @classmethod
    def begin(cls, rolls: int) -> Course:
        """Let the load run for a while, to compare with: for three seconds, and half a second more for each roll that is to come."""
        calm = []
        for _ in range(3 + rolls // 2):
            begin = time.monotonic()
            time.sleep(1.0)
            calm.append((begin, time.monotonic()))
        return cls(calm, [])

    def roll(self, command: Callable[[], object]) -> None:
        """Roll, and let the load run for a moment."""
        begin = time.monotonic()
        command()
        self.rolls.append((begin, time.monotonic()))
        time.sleep(0.3)

    def check(self, figures: Figures, *, surely: bool) -> None:
        """Print the figures; fail if clients noticed a roll, or if it took long: not `surely` where much else runs on this machine."""
        calm, rolls = (sorted(figures.silence(*span) for span in spans) for spans in self)
        took = sorted(end - begin for begin, end in self.rolls)
        print(
            f"{len(rolls)} rolls, {figures.sent} requests, {sum(figures.failed.values())} failed, slowest {figures.slowest:.3f} s; "
            f"longest silence {statistics.median(calm):.3f} s in a calm second (worst {calm[-1]:.3f} s), {statistics.median(rolls):.3f} s "
            f"in a roll (worst {rolls[-1]:.3f} s); a roll took {statistics.median(took):.2f} s (worst {took[-1]:.2f} s)"
        )
        assert figures.failed == {}
        if surely or os.getloadavg()[0] < 2 * (os.cpu_count() or 1):
            assert statistics.median(rolls) - statistics.median(calm) <= 0.05
            assert took[-1] < 2.0
        if surely:
            assert rolls[-1] - calm[-1] <= 0.05


class Load:
    """A client process, from `with` to `stop()`."""

    def __init__(self, address: str, *, new: int, keep: int, path: str = "/", seconds: float = 300) -> None:
        """Store; `with` starts."""
        self._argv = [
            sys.executable,
            str(Path(__file__).resolve()),
            address,
            f"--new={new}",
            f"--keep={keep}",
        ]
        self._argv += [f"--path={path}", f"--seconds={seconds}"]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Load:  # noqa: PYI034 - typing.Self would have to be imported at run time on 3.11
        """Start, and come back when the first answer is there."""
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def stop(self) -> Figures:
        """Have it end, and return its figures."""
        assert self._process is not None
        text, _ = self._process.communicate(timeout=PATIENCE + 10)
        return Figures(**json.loads(text))

    def __exit__(self, *_: object) -> None:
        """End it in any case."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


class Client:
    """The client itself, in its process."""

    def __init__(self, address: str, path: str, *, keep: int) -> None:
        """Store."""
        self.most = max(1, round(keep * REST))
        host, _, port = address.rpartition(":")
        self.address = (host.strip("[]"), int(port))
        self.request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\n".encode()
        self.pool: list[socket.socket] = []
        self.sent = 0
        self.done: list[float] = []
        self.failures: list[tuple[float, str]] = []
        self.bodies: dict[str, list[float]] = {}
        self.slowest = 0.0

    async def send(self, *, keep: bool) -> None:
        """Send one request, over a pooled connection or a new one."""
        begin = time.monotonic()
        self.sent += 1
        sock = self.pooled() if keep else None
        where = "kept" if sock is not None else "new"
        try:
            async with asyncio.timeout(PATIENCE):
                if sock is None:
                    sock = await self.connect()
                body, close = await self.exchange(sock, keep=keep)
        except (OSError, ValueError) as error:
            self.failures.append((begin, f"{where}: {type(error).__name__}: {error}"))
            if sock is not None:
                sock.close()
            return
        now = time.monotonic()
        if not self.done:
            print("first", flush=True)
        self.done.append(now)
        self.slowest = max(self.slowest, now - begin)
        count, first, last = self.bodies.get(f"{where} {body}", (0, begin, begin))
        self.bodies[f"{where} {body}"] = [count + 1, min(first, begin), max(last, begin)]
        if close or not keep or len(self.pool) >= self.most:
            sock.close()
        else:
            self.pool.append(sock)

    def pooled(self) -> socket.socket | None:
        """Return the kept connection that has rested longest and was not closed by the other side; None to have one more made."""
        while len(self.pool) >= self.most or (self.pool and self.sent % 4):
            sock = self.pool.pop(0)
            try:
                sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return sock
            except OSError:
                pass
            sock.close()  # its end has come, or something nobody asked for
        return None

    async def connect(self) -> socket.socket:
        """Open a connection."""
        sock = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET)
        sock.settimeout(0.0)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def exchange(self, sock: socket.socket, *, keep: bool) -> tuple[str, bool]:
        """Send, and read the whole answer; return its body, and whether it announced a close."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, self.request + (b"\r\n" if keep else b"Connection: close\r\n\r\n"))
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self.receive(sock)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        if lines[0].split()[1] != b"200":
            raise ValueError(lines[0].decode())
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        while len(body) < int(headers[b"content-length"]):
            body += await self.receive(sock)
        return body.decode(errors="replace"), headers.get(b"connection") == b"close"

    async def receive(self, sock: socket.socket) -> bytes:
        """Receive some; ConnectionError at the end."""
        data = await asyncio.get_running_loop().sock_recv(sock, 65536)
        if not data:
            raise ConnectionError("closed under a request")  # noqa: EM101, TRY003 - told by failures
        return data


async def run(client: Client, *, new: int, keep: int, seconds: float) -> None:
    """Send on time until told to end, then wait for what is on its way."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    begin = loop.time()
    tasks: set[asyncio.Task[None]] = set()
    rate = new + keep
    for number in range(int(seconds * rate)):
        pause = begin + number / rate - loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        if ended.is_set():
            break
        if len(tasks) >= MOST:
            client.failures.append((time.monotonic(), "the client is full"))
            continue
        task = loop.create_task(client.send(keep=number * keep // rate != (number + 1) * keep // rate))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    loop.remove_reader(sys.stdin)
    await asyncio.gather(*tasks)
    for sock in client.pool:
        sock.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Send HTTP requests on time, and say what became of them.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument(
        "--new", type=int, default=250, metavar="RATE", help="requests a second over new connections"
    )
    parser.add_argument(
        "--keep", type=int, default=250, metavar="RATE", help="requests a second over kept connections"
    )
    parser.add_argument("--path", default="/")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="end after this, or when standard input ends"
    )
    options = parser.parse_args()
    client = Client(options.address, options.path, keep=options.keep)
    asyncio.run(run(client, new=options.new, keep=options.keep, seconds=options.seconds))
    failed = Counter(reason for _, reason in client.failures)
    figures = Figures(
        client.sent,
        len(client.done),
        dict(failed),
        client.slowest,
        client.done,
        [list(f) for f in client.failures],
        client.bodies,
    )
    print(json.dumps(figures._asdict()))


if __name__ == "__main__":
    main()
