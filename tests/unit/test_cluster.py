"""What is decided about workers, without any."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import Service, WorkerError, channel
from requiem_systemd.cluster import Cluster, Primary, Worker, command, policy
from requiem_systemd.cluster.policy import LIFE, ROLLS, Phase, Roll, Said, Seen, Step, Turn
from requiem_systemd.protocol import Place, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@pytest.mark.parametrize(
    ("words", "kind", "name"),
    [
        (["app.py", "-c", "x"], "script", "app.py"),
        (["-u", "-X", "dev", "app.py"], "script", "app.py"),
        (["-Xdev", "-W", "error", "-B", "-m", "app", "serve"], "module", "app"),
        (["-Im", "app"], "module", "app"),
        (["-mapp"], "module", "app"),
        (["-uc", "print(1)", "a"], "code", "print(1)"),
        (["--check-hash-based-pycs", "never", "app.py"], "script", "app.py"),
        (["-i", "app.py"], "script", "app.py"),
        ([], "nothing", ""),
        (["-"], "nothing", ""),
        (["-u", "-", "app.py"], "nothing", ""),
        (["-W"], "nothing", ""),
    ],
)
def test_program_is_read_as_python_does(words: Sequence[str], kind: str, name: str) -> None:
    """What an interpreter runs is found behind its options."""
    assert (kind, name) == command.program(words)


def test_command_is_run_again() -> None:
    """Word by word, by this very interpreter."""
    argv = ["python3", "-u", "app.py", "--port", "80"]
    assert ["/usr/bin/python3.11", *argv[1:]] == command.again("/usr/bin/python3.11", argv, lambda _: True)
    assert command.again("/p", ["python", "-c", "x"], lambda _: False) == ["/p", "-c", "x"]


@pytest.mark.parametrize(
    ("executable", "argv", "text"),
    [
        ("", ["python", "app.py"], "sys.executable"),
        ("/p", ["python"], "standard input"),
        ("/p", ["python", "-"], "standard input"),
        ("/p", ["python", "/dev/fd/63"], "pipe"),
        ("/p", ["python", "gone.py"], "gone.py is not there"),
    ],
)
def test_what_cannot_be_run_again_says_why(executable: str, argv: Sequence[str], text: str) -> None:
    """A program that came by a pipe, or is gone, is a WorkerError that says so."""
    with pytest.raises(WorkerError, match=text):
        command.again(executable, argv, lambda _: False)


def test_worker_knows_its_place() -> None:
    """What a primary writes into the environment is read by its worker, and by nobody else."""
    base = {"NOTIFY_SOCKET": "/run/systemd/notify", "SYSTEMD_EXEC_PID": "1", "RUNTIME_DIRECTORY": "/run/x", "container": "lxc"}
    environ = command.variables(base, 3, [("http", "s"), ("admin", "b")], 1.5)
    environ |= {"LISTEN_PID": "7", "REQUIEM_WORKER_PID": "7", "WATCHDOG_PID": "7", "REQUIEM_MANAGER": "/run/systemd/notify"}
    told = read(environ, 7)
    assert Place(3, 5, "sb") == told.worker
    assert told.listeners == ((3, "http"), (4, "admin"))
    assert (told.watchdog, told.fed_by) == (1.5, None)
    assert (
        told.notify_socket,
        told.exec_pid,
        told.runtime_directory,
        told.container,
        told.problems,
    ) == ("fd:5", None, "/run/x", None, ())
    assert told.above == "/run/systemd/notify"
    other = read(environ, 8)
    assert (other.worker, other.notify_socket, other.above, other.watchdog) == (None, "/run/systemd/notify", None, None)


@pytest.mark.parametrize("text", ["", "x", "1:2", "1:2:3:", "-1:5:", "1:5:B", "1:5:b\n"])
def test_nonsense_is_no_place(text: str) -> None:
    """What is no place makes no worker."""
    assert read({"REQUIEM_WORKER": text, "REQUIEM_WORKER_PID": "7"}, 7).worker is None


# -- tables


def test_every_phase_ends() -> None:
    """Whatever phase a worker is in, it can die, once."""
    for phase in set(Phase) - {Phase.DEAD}:
        assert LIFE[phase, Said.ENDED] == (Phase.DEAD, "exit")
    assert not [key for key in LIFE if key[0] is Phase.DEAD]


def test_life_goes_one_way() -> None:
    """No row leads back."""
    order = list(Phase)
    assert all(order.index(after) > order.index(before) for (before, _), (after, _) in LIFE.items())


def test_old_workers_go_last() -> None:
    """Nobody who serves is dismissed but when each of the new is ready."""
    for (_, turn), (_, steps) in ROLLS.items():
        if {Step.EXCHANGE_ALL, Step.EXCHANGE_ONE} & set(steps):
            assert turn is Turn.UP


def test_every_roll_is_answered() -> None:
    """From wherever a roll is, each way to rest, or out, answers who waits for it."""
    for (before, _), (after, steps) in ROLLS.items():
        if before in (Roll.TRYING, Roll.FILLING) and after in (Roll.RESTING, Roll.OVER):
            assert Step.ANSWER in steps
    assert ROLLS[Roll.OVER, Turn.ROLL] == (Roll.OVER, (Step.ANSWER,))


# -- deaths


def test_pauses_grow() -> None:
    """The first round of replacements comes at once, each further round later, up to a limit."""
    assert [policy.pause(failed, 2) for failed in range(8)] == [0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.4]
    assert policy.pause(10_000, 1) == policy.PAUSE_MAX


def test_stable_worker_ends_the_streak() -> None:
    """Who has served for long has not failed to start."""
    assert 0 == policy.streak(7, policy.STABLE)  # noqa: SIM300 - expected first
    assert 8 == policy.streak(7, policy.STABLE - 1) == policy.streak(7, None)


def test_loop_needs_everybody_to_fail() -> None:
    """Given up is where each place failed so often, and nobody else lasts."""
    assert policy.is_loop(6, 2, 3, [])
    assert policy.is_loop(6, 2, 3, [1.0])
    assert not policy.is_loop(5, 2, 3, [])
    assert not policy.is_loop(60, 2, 3, [policy.STABLE])


def test_jitter_only_shortens() -> None:
    """Recycling comes at the limit or earlier."""
    assert [policy.spread(1000, 0.1, chance) for chance in (0.0, 0.5, 1.0)] == [1000.0, 950.0, 900.0]


# -- the status


def test_summary_of_those_who_serve() -> None:
    """What all say is said once."""
    up = Seen(Phase.LISTENING, "serving")
    assert policy.summary([up, up], 2) == "2 of 2 workers: serving"
    assert policy.summary([up, Seen(Phase.LISTENING, "other")], 2) == "2 of 2 workers"
    assert policy.summary([Seen(Phase.ONLINE)], 1) == "0 of 1 worker"


def test_summary_adds_up_what_leaves() -> None:
    """Jobs and requests of workers that drain are summed, one of the oldest jobs is named."""
    leaving = [Seen(Phase.LEAVING, "", 2, 1, '"export" 4 min'), Seen(Phase.LEAVING, "", 1, 0)]
    assert policy.summary([Seen(Phase.LISTENING), *leaving], 1) == '1 of 1 worker; 2 leaving: 3 jobs, 1 request, oldest "export" 4 min'
    assert policy.summary(leaving) == 'in them 3 jobs, 1 request, oldest "export" 4 min'
    assert policy.summary([]) == ""


def test_what_a_worker_says_is_kept() -> None:
    """Sums stay until others come; nonsense changes nothing."""
    first = policy.seen(Phase.LEAVING, {"STATUS": "x", "X_REQUIEM_JOBS": "2", "X_REQUIEM_OLDEST": "y"}, Seen(Phase.ONLINE))
    assert Seen(Phase.LEAVING, "x", 2, 0, "y") == first
    assert first == policy.seen(Phase.LEAVING, {"WATCHDOG": "1"}, first)
    assert Seen(Phase.LEAVING, "x", 0, 0, "") == policy.seen(Phase.LEAVING, {"X_REQUIEM_JOBS": "0"}, first)
    assert first == policy.seen(Phase.LEAVING, {"X_REQUIEM_REQUESTS": "-1"}, first)


# -- what users may say


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"max_requests": 0}, {"max_age": math.nan}, {"start_timeout": -1}, {"jitter": 1.5}, {"max_crashes": 0}],
)
def test_bad_numbers_are_refused_at_once(options: dict[str, float]) -> None:
    """They are ValueErrors at the call."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Cluster(print, **options)  # type: ignore[arg-type] # on purpose


def test_auto_is_as_many_as_there_are_cpus() -> None:
    """There is one at least."""
    assert Cluster(print).plan.workers >= 1
    with pytest.raises(TypeError, match="workers"):
        Cluster(print, workers="many")  # type: ignore[arg-type] # on purpose
    with pytest.raises(TypeError, match="function"):
        Cluster("app")  # type: ignore[arg-type] # on purpose


def test_unknown_event_lists_the_known() -> None:
    """As with on() of the package."""
    with pytest.raises(ValueError, match="fork, online, listening, disconnect, exit"):
        Primary(Service()).on("death", print)


def test_worker_cannot_fork() -> None:
    """A worker's fork is an error that says so."""
    environ = {"REQUIEM_WORKER": "1:9:", "REQUIEM_WORKER_PID": str(os.getpid())}
    primary = Primary(Service(environ=environ))
    assert not primary.is_primary()
    with pytest.raises(WorkerError, match="is_primary"):
        primary.fork()


# -- the watchdog


class Owned:
    """A ready worker with a watchdog of 10 s, a clock that is set by hand, and a process that only notes what kills it."""

    def __init__(self) -> None:
        """Make the worker ready."""
        self.time = 100.0
        self.alarms: dict[Any, float] = {}
        self.loop: Any = SimpleNamespace(clock=SimpleNamespace(now=lambda: self.time), alarm=self.alarms.__setitem__, cancel=self.alarms.pop)
        self.killed: list[str] = []
        self.worker = Worker(self, 1)
        self.worker.watchdog = 10.0
        vars(self.worker)["kill"] = self.killed.append  # there is no process
        self.worker._pidfd = 99
        ours, self.sock = channel.pair()
        self.worker._channel = ours
        self.say("X_REQUIEM_ONLINE=1")
        self.say("READY=1")
        self.worker._readable()

    def say(self, text: str) -> None:
        """Have the worker say something, which is not read yet."""
        self.sock.send(text.encode())

    def pass_to(self, time: float) -> None:
        """Let it be a time of the clock, and make the calls that are due."""
        self.time = time
        for call in [call for call, when in self.alarms.items() if when <= time]:
            del self.alarms[call]
            call()

    def told(self, worker: Worker, event: str, *arguments: object) -> None:
        """Hear what users hear."""

    def changed(self, worker: Worker, packet: channel.Packet) -> None:
        """Hear what a worker has said."""

    def dismiss(self, worker: Worker, reason: str) -> None:
        """Have it drain."""

    def ended(self, worker: Worker) -> None:
        """Hear that its process has ended."""


@pytest.fixture
def owned() -> Iterator[Owned]:
    """Return a worker that is watched."""
    made = Owned()
    yield made
    made.sock.close()
    assert made.worker._channel is not None
    made.worker._channel.close()


def test_silent_worker_is_killed(owned: Owned) -> None:
    """A worker that says nothing for the length of its watchdog gets SIGABRT, and SIGKILL where that does not end it."""
    owned.pass_to(109.9)
    assert owned.killed == []
    owned.pass_to(110.0)
    assert owned.killed == ["SIGABRT"]
    owned.pass_to(115.0)
    assert owned.killed == ["SIGABRT", "SIGKILL"]


def test_worker_is_not_killed_for_what_was_not_read(owned: Owned) -> None:
    """Where the primary itself is late, it first reads what the worker has said in time."""
    owned.say("WATCHDOG=1")
    owned.pass_to(111.0)
    assert owned.killed == []
    owned.pass_to(121.0)
    assert owned.killed == ["SIGABRT"]


def test_nobody_is_killed_for_a_stop_of_all(owned: Owned) -> None:
    """Where the primary did not run for long, its workers may not have run either: they get their time once more."""
    owned.pass_to(200.0)
    assert owned.killed == []
    owned.pass_to(210.0)
    assert owned.killed == ["SIGABRT"]


def test_start_is_not_watched(owned: Owned) -> None:
    """A worker that is not ready yet has the start's own limit."""
    owned.worker.phase = Phase.ONLINE
    owned.alarms.clear()
    owned.say("WATCHDOG=1")
    owned.worker._readable()
    assert owned.alarms == {}
