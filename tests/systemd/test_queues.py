"""Queue workers as units of a real systemd: a stop past TimeoutStopSec=, restarts in the middle of a hundred jobs, the unit templates."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import redisserver
from tests.conformance.workers import submit
from tests.systemd.conftest import Unit, stop
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.conftest import ServicesFactory
    from tests.systemd.sandbox import Sandbox

PROGRAMS: Final = CHECKOUT / "tests" / "conformance" / "programs"
RECORD: Final = "/run/requiem-tests/queue.record"


@dataclasses.dataclass(frozen=True)
class Kind:
    """One sort of worker: its command, in how many units there are four workers, what submits jobs, and the kinds of those."""

    command: str
    units: int
    program: str
    jobs: tuple[str, ...]


KINDS: Final = {
    "celery": Kind("celery -A celery_app worker -l INFO -c 4", 1, "celery_app", ("job", "late")),
    "rq": Kind("rq worker -u redis://127.0.0.1:{port}/0 --worker-class requiem_systemd.adapters.rq.Worker", 4, "rq_queue", ("job",)),
}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[redisserver.Server]:
    """Start a Redis; the container has this machine's loopback."""
    with redisserver.serving(tmp_path) as server:
        yield server


class Queue:
    """The workers of a kind, as units, and what they have done."""

    def __init__(self, name: str, broker: redisserver.Server, box: Sandbox) -> None:
        """Store; `start` starts."""
        self.kind = KINDS[name]
        self.broker = broker
        self.box = box
        self.units: list[Unit] = []

    def start(self, services: ServicesFactory, python: str) -> None:
        """Start the units."""
        self.box.write(RECORD, "", mode=0o666)
        command = self.kind.command.format(port=self.broker.port)
        environment = {"PYTHONPATH": f"{PROGRAMS}:{CHECKOUT}", "RECORD": RECORD, "BROKER": self.broker.url, "PYTHONUNBUFFERED": "1"}
        self.units = services(
            self.kind.units,
            "",
            ExecStart=f"{Path(python).parent}/{command}",
            WorkingDirectory=PROGRAMS,
            Environment=[f'"{key}={value}"' for key, value in environment.items()],
        )

    def submit(self, names: list[str], seconds: list[float]) -> None:
        """Put jobs into the queue."""
        kinds = self.kind.jobs
        words = [(kinds[number % len(kinds)], name, seconds[number]) for number, name in enumerate(names)]
        submit(self.kind.program, self.broker, *(word for triple in words for word in triple))

    def counted(self, word: str) -> Counter[str]:
        """Count what was begun, or ended, by name."""
        lines = self.box.read(RECORD).splitlines()
        return Counter(line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} "))

    def wait(self, word: str, count: int, seconds: float = 60) -> None:
        """Wait until so many were begun, or have ended."""
        deadline = time.monotonic() + seconds
        while sum(self.counted(word).values()) < count:
            assert time.monotonic() < deadline, self.journal
            time.sleep(0.2)

    @property
    def journal(self) -> str:
        """What all units wrote."""
        return "\n".join(unit.journal() for unit in self.units)


@pytest.fixture(params=KINDS)
def queue(
    request: pytest.FixtureRequest, broker: redisserver.Server, sandbox: Sandbox, services: ServicesFactory, python: str
) -> Queue:
    """Return running workers of a kind."""
    made = Queue(request.param, broker, sandbox)
    made.start(services, python)
    return made


@pytest.mark.timeout(120)
def test_stop(queue: Queue) -> None:
    """Under TimeoutStopSec=2 four jobs of 8 s end, none of the others is begun, and the units end well."""
    names = [f"job{number}" for number in range(8)]
    queue.submit(names, [8.0] * 8)
    queue.wait("begun", 4)
    ended = stop(*queue.units)
    assert [(unit.result, unit.status) for unit in ended] == [("success", 0)] * len(ended), queue.journal
    assert queue.counted("begun") == queue.counted("ended") == dict.fromkeys(names[:4], 1), queue.journal


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_restarts(queue: Queue) -> None:
    """Of 100 jobs of 3 to 8 s on four worker processes, restarted five times in the middle, each runs to its end, once."""
    names = [f"job{number}" for number in range(100)]
    lengths = random.Random(3)
    queue.submit(names, [lengths.uniform(3, 8) for _ in names])
    for count in (8, 24, 40, 56, 72):
        queue.wait("ended", count, 120)
        queue.box.systemctl("restart", *(unit.name for unit in queue.units), timeout=120)
    queue.wait("ended", len(names), 240)
    ended = stop(*queue.units)
    assert [(unit.result, unit.status) for unit in ended] == [("success", 0)] * len(ended), queue.journal
    assert queue.counted("begun") == queue.counted("ended") == dict.fromkeys(names, 1), queue.journal
    assert "Failed with result" not in queue.journal
    left = {key: queue.broker.ask("TYPE", key) for key in queue.broker.ask("KEYS", "*")}
    assert not {"unacked", "celery", "rq:queue:default", "rq:queue:default:intermediate"} & left.keys(), left


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["celery", "rq"])
def test_template(sandbox: Sandbox, python: str, broker: redisserver.Server, name: str) -> None:
    """The template works as it is: exposure of 1.5 at most with a task that runs, which is held past the timeout; an end without failure."""
    example = next((CHECKOUT / "examples").glob(f"*_{name}.py"))
    module = "app" if name == "celery" else example.stem
    unit = Unit(sandbox, f"{name}.service")
    sandbox.write(f"/srv/{name}/{module}.py", example.read_text())
    sandbox.run("rm", "-rf", f"/srv/{name}/venv")  # where there is what stands for it, see test_units
    sandbox.run("ln", "-sfn", Path(python).parents[1], f"/srv/{name}/venv")
    sandbox.unit(unit.name, (CHECKOUT / "units" / unit.name).read_text())
    environment = {
        "PYTHONPATH": CHECKOUT,
        "PYTHONUNBUFFERED": "1",
        "EXAMPLE_BROKER": broker.url,
        "RQ_REDIS_URL": broker.url,
        "EXAMPLE_SECONDS": "6",
    }
    lines = [f'Environment="{key}={value}"' for key, value in environment.items()]
    sandbox.write(f"/run/systemd/system/{unit.name}.d/test.conf", "\n".join(["[Service]", "TimeoutStopSec=2", *lines, ""]))
    sandbox.unit(f"{name}.target", f"[Unit]\nAfter={unit.name}\n")
    sandbox.daemon_reload()
    try:
        sandbox.systemctl("start", f"{name}.target", unit.name)
        env = {key: str(value) for key, value in environment.items()}
        sandbox.run(python, f"/srv/{name}/{module}.py", env=env, cwd=f"/srv/{name}")
        unit.wait_for("export 42: begun")
        exposure = sandbox.run("systemd-analyze", "security", "--threshold=15", "--no-pager", unit.name, check=False)
        assert exposure.returncode == 0, exposure.stdout[-1500:]
        stopped = unit.stop()
        journal = unit.journal()
        assert (stopped.result, stopped.status) == ("success", 0), journal
        assert "export 42: done" in journal
        assert "WARNING" not in journal.replace("WARNING/ForkPoolWorker", ""), journal  # Celery writes what a task prints so
    finally:
        sandbox.systemctl("kill", "--signal=KILL", unit.name, check=False)
        sandbox.systemctl("reset-failed", unit.name, check=False)
