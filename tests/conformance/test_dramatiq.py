"""Dramatiq, as its command starts it: messages in work run to their end, once; what was only fetched goes back at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.conftest import CHECKOUT, PROGRAMS
from tests.conformance.working import Program, program, redis_server

pytest.importorskip("dramatiq")
COMMAND: Final = ("{bin}/dramatiq", "dramatiq_app", "--processes", "1", "--threads", "1")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Redis, and return its URL."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(autouse=True)
def _empty(redis_url: str) -> None:
    """Begin with nothing in it."""
    subprocess.run(("redis-cli", "-u", redis_url, "flushall"), check=True, capture_output=True)


def left_in(url: str) -> int:
    """Count the messages that are queued, or were fetched and not acknowledged."""
    ask = ("redis-cli", "-u", url, "hlen", "dramatiq:default.msgs")
    return int(subprocess.run(ask, check=True, capture_output=True, text=True).stdout)


def fetched_from(url: str) -> int:
    """Count the messages that were fetched and not acknowledged."""
    script = "local n = 0 for _, key in ipairs(redis.call('keys', 'dramatiq:__acks__.*')) do n = n + redis.call('scard', key) end return n"
    return int(subprocess.run(("redis-cli", "-u", url, "eval", script, "0"), check=True, capture_output=True, text=True).stdout)


def send(url: str, actor: str, *arguments: str) -> None:
    """Send a message."""
    env = {**os.environ, "REDIS_URL": url, "PYTHONPATH": f"{PROGRAMS}:{CHECKOUT}"}
    subprocess.run((sys.executable, "-B", PROGRAMS / "dramatiq_app.py", actor, *arguments), check=True, env=env)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Program]:
    """Return a worker, not started. Its own limit for a stop is a second."""
    with program(tmp_path, *COMMAND, "--worker-shutdown-timeout", "1000", workers=1) as made:
        yield made


def working(worker: Program, url: str, *message: str, begun: str = "begun job") -> Program:
    """Start it, and wait until it works on a message."""
    send(url, *message)
    worker.launch(REDIS_URL=url)
    worker.wait_recorded(begun)
    return worker


def test_job(worker: Program, redis_url: str) -> None:
    """A message is worked on past TimeoutStopSec= and past dramatiq's own limit; its hooks run once, after it. It is acknowledged."""
    working(worker, redis_url, "work", "job", "5").stop()
    recorded = worker.ended()
    assert sorted(recorded[:2]) == ["begun job", "startup"]  # dramatiq's threads may take a message before it says that it has booted
    assert recorded[2:] == ["ended job", "shutting down", "shutdown"]
    worker.is_clean()
    assert left_in(redis_url) == 0
    assert worker.manager.result == "success"


def test_fetched_goes_back_at_once(redis_url: str, tmp_path: Path) -> None:
    """What was fetched and nobody works on, and what is sent now, is another worker's, while the first one still drains."""
    one, other_folder = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other_folder.mkdir()
    two_threads = (*COMMAND[:-1], "2")
    with program(one, *two_threads, workers=1) as worker, program(other_folder, *COMMAND, workers=1) as other:
        for name in ("job", "twin", "next 0"):
            send(redis_url, "work", name, "8" if name != "next 0" else "0")
        worker.launch(REDIS_URL=redis_url)
        worker.wait_recorded("begun job")
        worker.wait_recorded("begun twin")
        worker.wait_for(lambda: fetched_from(redis_url) == 3, poll=True)  # and it would fetch one more
        worker.stop()
        worker.wait_for(lambda: fetched_from(redis_url) == 2, poll=True)
        for number in range(1, 4):
            send(redis_url, "work", f"next {number}", "0")
        other.launch(REDIS_URL=redis_url)
        for number in range(4):
            other.wait_recorded(f"ended next {number}")
        assert "ended job" not in worker.recorded
        assert not [line for line in worker.ended() if "next" in line]
        other.stop()
        other.ended()
    assert left_in(redis_url) == 0


def test_begun_in_the_drain(worker: Program, redis_url: str) -> None:
    """A job that an actor begins in the drain is held; a message that it sends is the next process's, once."""
    working(worker, redis_url, "chain", "3", begun="begun first").stop()
    recorded = worker.ended()
    assert "ended second" in recorded
    assert "begun third" not in recorded
    worker.launch(REDIS_URL=redis_url)
    worker.wait_recorded("ended third")
    worker.stop()
    recorded = worker.ended()
    assert [recorded.count(f"begun {name}") for name in ("first", "second", "third")] == [1, 1, 1]


def test_double_sigterm(worker: Program, redis_url: str) -> None:
    """A second SIGTERM, which dramatiq passes on and takes for a kill, changes nothing; nor does one to the whole group."""
    working(worker, redis_url, "work", "job", "4").stop()
    worker.manager.kill("SIGTERM")
    worker.signal_all(signal.SIGTERM)
    assert worker.ended().count("ended job") == 1
    assert left_in(redis_url) == 0
    worker.is_clean()


def test_sigint_twice(worker: Program, redis_url: str) -> None:
    """SIGINT to the whole group, as of a terminal, drains; another one a second later abandons, and names. The message stays Redis's."""
    working(worker, redis_url, "work", "job", "300")
    worker.signal_all(signal.SIGINT)
    begun = worker.manager.wait_message("EXTEND_TIMEOUT_USEC").at
    worker.wait_for(lambda: any(message.at > begun + 1.2 for message in worker.manager.messages))
    worker.signal_all(signal.SIGINT)
    worker.ended(status=75)
    assert 'abandoned "work ' in worker.output
    assert left_in(redis_url) == 1


def test_sigint_to_the_parent(worker: Program, redis_url: str) -> None:
    """SIGINT to the parent alone drains, as often as it comes: dramatiq passes it on as SIGTERM."""
    working(worker, redis_url, "work", "job", "4")
    worker.sigint_again()
    assert worker.ended().count("ended job") == 1


def test_failing_actor(worker: Program, redis_url: str) -> None:
    """An actor that raises holds nothing afterwards."""
    working(worker, redis_url, "fail", begun="failed").stop()
    worker.ended()


def test_actor_that_wants_to_be_interrupted(worker: Program, redis_url: str) -> None:
    """`notify_shutdown` is kept: such an actor hears of the stop when it begins."""
    working(worker, redis_url, "heed", begun="begun heed").stop()
    assert "interrupted" in worker.ended()


def test_idle_stop(worker: Program, redis_url: str) -> None:
    """With nothing to do it ends at once, with status 0."""
    worker.launch(REDIS_URL=redis_url)
    worker.manager.stop()
    assert worker.ended() == ["startup", "shutting down", "shutdown"]
    worker.is_clean()


def test_reload(worker: Program, redis_url: str) -> None:
    """SIGHUP starts the processes anew, as ever, and the message that is worked on runs to its end, once."""
    working(worker, redis_url, "work", "job", "4")
    worker.manager.kill("SIGHUP")
    worker.wait_for(lambda: worker.recorded.count("startup") == 2, poll=True)
    worker.stop()
    recorded = worker.ended()
    assert recorded[: recorded.index("shutdown")].count("ended job") == 1
    assert (recorded.count("begun job"), recorded.count("shutdown")) == (1, 2)


def test_several_processes(tmp_path: Path, redis_url: str) -> None:
    """Of several worker processes each drains by itself."""
    command = ("{bin}/dramatiq", "dramatiq_app", "--processes", "3", "--threads", "2")
    with program(tmp_path, *command, workers=3) as worker:
        worker.launch(REDIS_URL=redis_url)
        worker.wait_for(lambda: worker.recorded.count("startup") == 3, poll=True)
        for number in range(4):
            send(redis_url, "work", f"job {number}", "4")
        worker.wait_for(lambda: sum("begun" in line for line in worker.recorded) == 4, poll=True)
        worker.stop()
        recorded = worker.ended()
        assert [recorded.count(f"ended job {number}") for number in range(4)] == [1] * 4
        assert left_in(redis_url) == 0
