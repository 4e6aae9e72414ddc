"""A service from its start to its stop, by the manager's eyes."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

import requiem_systemd as requiem
from requiem_systemd import AbandonedError, DrainingError, RequiemError, Service
from requiem_systemd.doors import Door
from requiem_systemd.ledger import CONNECTION, REQUEST, More
from requiem_systemd.service import process
from requiem_systemd.testing import FakeManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from requiem_systemd.jobinfo import JobInfo


@pytest.fixture
def armed(manager: FakeManager) -> Callable[..., Service]:
    """Return what arms a service with options and says ready."""

    def arm(**options: Any) -> Service:
        service = manager.arm(Service(), **options)
        service.ready()
        return service

    return arm


@pytest.fixture
def bare() -> Iterator[Service]:
    """Return a service that no manager looks after."""
    service = Service(environ={}, signals=False, exit=False)
    yield service
    service.close()


class Shutter(Door):
    """A door that knows whether it was shut, and says so at once."""

    label = "front door"

    def __init__(self) -> None:
        self.shuts = 0

    def shut(self, done: Callable[[], object]) -> None:
        """Shut."""
        self.shuts += 1
        done()


# -- initialize --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Iterator[None]:
    """Give the process's service back after the test."""
    yield
    process.close()


@pytest.mark.usefixtures("quiet")
def test_initialize_twice() -> None:
    """Again with no or the same options it is the same service."""
    service = requiem.initialize(signals=False, exit=False, drain_timeout=5)
    assert requiem.initialize() is service
    assert requiem.initialize(signals=False, exit=False, drain_timeout=5) is service


@pytest.mark.usefixtures("quiet")
def test_initialize_with_others() -> None:
    """Again with other options it is an error that names the difference."""
    requiem.initialize(signals=False, exit=False, drain_timeout=5)
    with pytest.raises(RequiemError, match=r"drain_timeout=6.* instead of 5"):
        requiem.initialize(signals=False, exit=False, drain_timeout=6)


@pytest.mark.usefixtures("quiet")
def test_initialize_arms_what_is_there() -> None:
    """What was tracked before is in the service that is armed."""
    with requiem.track("early"):
        service = requiem.initialize(signals=False, exit=False)
        assert [info.label for info in service.in_flight()] == ["early"]


@pytest.mark.usefixtures("quiet")
def test_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch, manager: FakeManager) -> None:
    """Children cannot speak for us: the variables are gone; with take_environment=False they stay."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    requiem.initialize(signals=False, exit=False, take_environment=False)
    assert requiem.notify(STATUS="x") is True
    assert os.environ["NOTIFY_SOCKET"] == manager.address
    process.close()
    requiem.initialize(signals=False, exit=False)
    assert "NOTIFY_SOCKET" not in os.environ
    assert requiem.notify(STATUS="x") is True


@pytest.mark.parametrize(
    "options",
    [
        {"drain_timeout": -1},
        {"drain_timeout": float("nan")},
        {"drain_timeout": float("inf")},
        {"request_timeout": -1},
        {"lame_duck": float("inf")},
        {"lame_duck": -1},
        {"exit_timeout": float("nan")},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    """Bad numbers are a ValueError at the call that names them, and nothing is armed."""
    with pytest.raises(ValueError, match=next(iter(options))):
        requiem.initialize(signals=False, **options)
    assert process._armed is None


@pytest.mark.parametrize(
    "options", [{"lame_duck": "job"}, {"health": 1}, {"redact": "x"}, {"request_timeout": None}]
)
def test_options_of_a_wrong_type(options: dict[str, Any]) -> None:
    """What is of the wrong type is a TypeError that names it."""
    with pytest.raises(TypeError, match=next(iter(options))):
        requiem.initialize(signals=False, **options)


def test_a_lame_duck_of_another_name() -> None:
    """Who misspells it is told the one word that there is."""
    with pytest.raises(TypeError, match='give a number of seconds, or "jobs"'):
        Service(lame_duck="job")


def test_unarmed_outside_a_manager(bare: Service) -> None:
    """Outside a manager everything works, and notify says that there is none."""
    bare.ready("up")
    bare.status("x")
    assert bare.notify(READY=1) is False
    with bare.track("job"), bare.starting("part"):
        bare.begin()
    assert bare.wait(10)


# -- ready, status, starting -------------------------------------------------------------------------------------------


def test_ready_with_a_status(manager: FakeManager) -> None:
    """READY=1 carries the line."""
    manager.arm(Service()).ready("serving")
    assert (manager.state, manager.status) == ("running", "serving")


def test_ready_once(manager: FakeManager, service: Service) -> None:
    """READY=1 is said once."""
    service.ready()
    service.ready("again")
    assert manager.sent.count("READY") == 1
    assert manager.status == "again"


def test_never_ready_after_stopping(manager: FakeManager) -> None:
    """A service that is stopped while it starts says no READY any more."""
    service = manager.arm(Service())
    with service.track("job"):
        manager.stop()
        service.ready()
    manager.wait_for("dead")
    assert manager.sent == ["STOPPING"]


def test_status(manager: FakeManager, service: Service) -> None:
    """A status is shown while running, and behind the drain's line while draining."""
    service.status("42 clients")
    assert manager.status == "42 clients"
    with service.track("job"):
        manager.stop()
        assert manager.status.endswith("; 42 clients")
        service.status("still 41")
        manager.advance(1)
        assert manager.status == 'Draining 1 s: 1 job, oldest "job" 1 s; still 41'
    manager.wait_for("dead")


def test_a_slow_start_is_extended(manager: FakeManager) -> None:
    """Inside `starting` the start timeout never ends, and the line says what is waited for."""
    service = manager.arm(Service())
    with service.starting("migrating"):
        manager.advance(120)
        assert (manager.state, manager.status) == ("start", "Starting: migrating")
    service.ready()
    assert manager.state == "running"


def test_a_start_outside_is_not_extended(manager: FakeManager) -> None:
    """After `starting` the extensions end: a start that hangs then times out."""
    service = manager.arm(Service())
    with service.starting("migrating"):
        manager.advance(60)
    manager.advance(60)
    assert (manager.result, manager.kills[0].signal) == ("timeout", "SIGTERM")


def test_nested_starting(manager: FakeManager) -> None:
    """The inner part's end does not end the outer one's extensions."""
    service = manager.arm(Service())
    with service.starting("outer"):
        with service.starting("inner"):
            manager.advance(30)
        manager.advance(60)
        assert manager.state == "start"


def test_missing_ready(manager: FakeManager, warnings_of: list[str]) -> None:
    """Under a manager that hears no READY for ten seconds, a warning says what to write."""
    manager.arm(Service())
    manager.advance(9)
    assert warnings_of == []
    manager.advance(1)
    assert len(warnings_of) == 1
    assert "requiem_systemd.ready()" in warnings_of[0]


def test_no_missing_ready_when_slow(manager: FakeManager, warnings_of: list[str]) -> None:
    """None is missed inside `starting`, nor after ready."""
    service = manager.arm(Service())
    with service.starting("migrating"):
        manager.advance(15)
    service.ready()
    manager.advance(15)
    assert warnings_of == []


# -- the drain ---------------------------------------------------------------------------------------------------------


def test_the_first_datagram(manager: FakeManager, service: Service) -> None:
    """STOPPING=1, the first extension and the line come in one datagram, the first of the drain."""
    with service.track("job"):
        manager.stop()
        message = manager.wait_message("STOPPING")
        assert list(message.values) == ["STOPPING", "EXTEND_TIMEOUT_USEC", "STATUS"]
        assert message.values["EXTEND_TIMEOUT_USEC"] == "30000000"
    manager.wait_for("dead")


def test_extended_every_ten_seconds(manager: FakeManager, service: Service) -> None:
    """30 s at a time, every 10 s."""
    with service.track("job"):
        manager.stop()
        manager.advance(30)
        times = [message.at for message in manager.messages if "EXTEND_TIMEOUT_USEC" in message.values]
        assert times == [0.0, 10.0, 20.0, 30.0]
    manager.wait_for("dead")


def test_begin_is_idempotent(manager: FakeManager, service: Service) -> None:
    """The drain begins once, whoever asks however often, from whatever thread."""
    reasons: list[str] = []
    service.on("begin", reasons.append)
    with service.track("job"):
        service.begin("deploy")
        service.begin("again")
        threads = [threading.Thread(target=service.begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        manager.stop()
    manager.wait_for("dead")
    assert reasons == ["deploy"]
    assert manager.sent == ["READY", "STOPPING"]
    assert manager.kills == []  # it had said STOPPING=1 by itself


def test_draining_and_should_stop(manager: FakeManager, service: Service) -> None:
    """Both say whether it has begun; a tracker says the same."""
    with service.track("job") as tracker:
        assert (service.draining(), service.should_stop(), tracker.should_stop()) == (False, False, False)
        manager.stop()
        assert (service.draining(), service.should_stop(), tracker.should_stop()) == (True, True, True)
    manager.wait_for("dead")


def test_wait_begin(manager: FakeManager, service: Service) -> None:
    """It waits until the drain begins; False when the time has run out."""
    assert service.wait_begin(0) is False
    manager.stop()
    assert service.wait_begin(0) is True
    assert service.wait_begin() is True


def test_wait(manager: FakeManager, service: Service) -> None:
    """It waits until all is done; False when the time has run out."""
    tracker = service.create_tracker("job")
    tracker.done()
    assert service.wait(0) is False
    manager.stop()
    assert service.wait(10) is True


def test_wait_in_another_thread(manager: FakeManager, service: Service) -> None:
    """Whoever waits goes on when the last job ends."""
    done = []
    thread = threading.Thread(target=lambda: done.append(service.wait(10)))
    with service.track("job"):
        thread.start()
        manager.stop()
    thread.join()
    assert done == [True]


def test_wait_in_a_running_loop(service: Service) -> None:
    """In a thread with a running loop it is a RuntimeError that says what to write."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"await requiem_systemd\.aio\.wait\(\)"):
            service.wait()

    asyncio.run(main())


def test_wait_inside_a_tracker(service: Service) -> None:
    """Inside a tracker of the same thread it could never return."""
    with service.track("job"), pytest.raises(RuntimeError, match='"job"'):
        service.wait()


def test_wait_beside_a_handle_of_the_same_thread(service: Service) -> None:
    """What began in this thread by `create_tracker` may end in another: waiting for it is no mistake."""
    handle = service.create_tracker("begins here, ends there")
    service.begin()
    ender = threading.Thread(target=handle.done)
    ender.start()
    assert service.wait(10)
    ender.join()


def test_wait_beside_a_tracker(manager: FakeManager, service: Service) -> None:
    """A tracker of another thread is no obstacle."""
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with service.track("job"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(10)
    manager.stop()
    assert service.wait(0) is False
    leave.set()
    assert service.wait(10) is True
    thread.join()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
def test_wait_with_a_bad_timeout(service: Service, timeout: float) -> None:
    """Bad numbers are a ValueError."""
    for call in (service.wait, service.wait_begin):
        with pytest.raises(ValueError, match="timeout"):
            call(timeout)


def test_in_flight(manager: FakeManager, service: Service) -> None:
    """It shows each tracker: label, age, owner, status, place and kind; oldest first."""
    with service.track("old"):
        manager.advance(5)
        with service.track("new") as tracker:
            tracker.status("half")
            manager.advance(2)
            old, new = service.in_flight()
    assert (old.label, old.age, old.owner, old.status, old.kind) == (
        "old",
        7.0,
        "thread MainThread",
        "",
        "job",
    )
    assert (new.label, new.age, new.status) == ("new", 2.0, "half")
    path, line, function = new.where.rsplit(":", 2)
    assert (path, line.isdecimal(), function) == (__file__, True, "test_in_flight")


def test_admit(manager: FakeManager, service: Service) -> None:
    """A front door is shut from the begin: at the call, on entry, and in a decorated function."""
    late = service.admit("late")
    decorated: Callable[[], None] = service.admit("decorated")(lambda: None)
    decorated()
    with service.admit("request"):
        manager.stop()
        with pytest.raises(DrainingError, match="503"):
            service.admit("new")
        with pytest.raises(DrainingError, match="503"), late:
            pass
        with pytest.raises(DrainingError, match="503"):
            decorated()
        assert [info.label for info in service.in_flight()] == ["request"]
    manager.wait_for("dead")


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_jobs(manager: FakeManager, service: Service) -> None:
    """Each job is held from before it is fetched until its body has run; the loop ends with the drain."""
    seen: list[list[str]] = []
    queue = ["a", None, "b"]

    def fetch() -> str | None:
        seen.append([info.label for info in service.in_flight()])
        if not queue:
            service.begin()
            return "last"
        return queue.pop(0)

    done = []
    for job in service.jobs(fetch, label=lambda job: f"job {job}"):
        seen.append([info.label for info in service.in_flight()])
        done.append(job)
    assert done == ["a", "b", "last"]
    fetching = ["fetching the next job"]
    assert seen == [fetching, ["job a"], fetching, fetching, ["job b"], fetching, ["job last"]]
    manager.wait_for("dead")


def test_jobs_whose_body_fails(service: Service) -> None:
    """A body that breaks or raises holds nothing any more."""

    def work() -> None:
        for _ in service.jobs(lambda: 1):
            raise KeyError

    with pytest.raises(KeyError):
        work()
    for _ in service.jobs(lambda: 1):
        break
    assert service.in_flight() == ()


def test_jobs_once_stopped(manager: FakeManager, service: Service) -> None:
    """Nothing is fetched any more."""
    manager.stop()
    manager.wait_for("dead")
    assert list(service.jobs(lambda: 1)) == []


# -- handlers ----------------------------------------------------------------------------------------------------------


def test_on_an_unknown_event(service: Service) -> None:
    """It is a ValueError that lists the events, as a call and as a decorator."""
    for call in (lambda: service.on("stop"), lambda: service.on("stop", print)):
        with pytest.raises(ValueError, match="begin, reload, stalled, dead"):
            call()


def test_on_something_that_cannot_be_called(service: Service) -> None:
    """It is a TypeError."""
    with pytest.raises(TypeError, match="function"):
        service.on("begin", 42)  # type: ignore[call-overload]


def test_on_dead_with_a_coroutine_function(service: Service) -> None:
    """The loop may be gone by then: TypeError."""

    async def dead() -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        service.on("dead", dead)


def test_on_a_coroutine_function_without_a_loop(service: Service) -> None:
    """Where no loop runs a coroutine function is a RuntimeError."""

    async def begin() -> None: ...

    with pytest.raises(RuntimeError, match="event loop"):
        service.on("begin", begin)


def test_handlers_in_their_loop(manager: FakeManager) -> None:
    """A coroutine function runs in the loop that ran when it was registered; it holds the stop."""
    seen: list[bool] = []

    async def main() -> None:
        service = manager.arm(Service())

        @service.on("begin")
        async def begin(reason: str) -> None:
            await asyncio.sleep(0)
            seen.append(asyncio.get_running_loop() is loop and reason == "SIGTERM")

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(manager.stop)
        await asyncio.to_thread(manager.wait_for, "dead")

    asyncio.run(main())
    assert seen == [True]


def test_handlers_run_one_after_another(
    manager: FakeManager, service: Service, warnings_of: list[str]
) -> None:
    """In a thread of their own; one that fails is logged, the rest still run; without an argument too."""
    seen: list[str] = []

    @service.on("begin")
    def first(reason: str) -> None:
        seen.append(f"first {reason} {threading.current_thread().name}")
        raise KeyError(reason)

    @service.on("begin")
    def second() -> None:
        seen.append("second")

    service.on("dead", lambda status: seen.append(f"dead {status}"))
    manager.stop()
    manager.wait_for("dead")
    assert seen == ["first SIGTERM requiem-hooks", "second", "dead 0"]
    assert len(warnings_of) == 1
    assert "first" in warnings_of[0]


def test_a_builtin_is_called_with_nothing(manager: FakeManager, service: Service, tmp_path: Path) -> None:
    """A builtin that shows no signature, such as a file's close, is called without the event's argument."""
    with (tmp_path / "file").open("wb") as file:
        service.on("begin", file.close)
        manager.stop()
        manager.wait_for("dead")
        assert file.closed


def test_a_handler_holds_the_stop(manager: FakeManager, service: Service) -> None:
    """While a `begin` handler runs it is a tracker that operators see."""
    go = threading.Event()
    service.on("begin", lambda: go.wait(10))
    manager.stop()
    manager.advance(20)
    assert manager.state == "stop-sigterm"
    assert any("begin handler" in info.label for info in service.in_flight())
    go.set()
    manager.wait_for("dead")


def test_doors_are_shut_after_the_handlers(manager: FakeManager, service: Service) -> None:
    """`begin` handlers run before the listeners are closed."""
    door, seen = Shutter(), []
    service.doors.add(door)
    service.on("begin", lambda: seen.append(door.shuts))
    manager.stop()
    manager.wait_for("dead")
    assert (seen, door.shuts) == ([0], 1)


def test_a_hung_handler_does_not_keep_doors_open(manager: FakeManager, service: Service) -> None:
    """After request_timeout the listeners are closed whatever the handlers do."""
    door, go = Shutter(), threading.Event()
    service.doors.add(door)
    service.on("begin", lambda: go.wait(10))
    manager.stop()
    manager.advance(29)
    assert door.shuts == 0
    manager.advance(1)
    assert door.shuts == 1
    assert manager.state == "stop-sigterm"
    go.set()
    manager.wait_for("dead")
    assert door.shuts == 1


# -- reload ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["notify", "notify-reload"])
def test_reload(kind: str) -> None:
    """A reload says RELOADING with its time, runs the handlers, and ends in READY."""
    with FakeManager(type=kind) as manager:
        service, seen = manager.arm(Service()), []
        service.on("reload", lambda: seen.append(manager.unit.state))
        service.ready("up")
        manager.reload()
        manager.wait_for("running")
        assert len(seen) == 1
        assert manager.sent == ["READY", "RELOADING", "READY"]
        assert "MONOTONIC_USEC" in manager.messages[1].values
        assert manager.unit.reload_result == "success"
        assert manager.status == "up"


def test_a_failed_reload_ends_in_ready(
    manager: FakeManager, service: Service, warnings_of: list[str]
) -> None:
    """The failure is in STATUS and in the log; the next good reload clears it."""
    fail = [True]

    @service.on("reload")
    def reload() -> None:
        if fail.pop():
            msg = "no such file"
            raise OSError(msg)

    manager.reload()
    manager.wait_for("running")
    assert manager.status == "Reload failed: OSError: no such file"
    assert any("the old state is kept" in text for text in warnings_of)
    fail.append(False)
    manager.reload()
    manager.wait_for("running")
    assert manager.status == ""


def test_a_slow_reload_is_extended(manager: FakeManager, service: Service) -> None:
    """A reload that outlives TimeoutStartSec is extended."""
    go = threading.Event()
    service.on("reload", lambda: go.wait(10))
    manager.reload()
    manager.advance(120)
    assert manager.state == "reload-notify"
    assert manager.unit.reload_result == "success"
    go.set()
    manager.wait_for("running")


def test_a_reload_that_is_cut_by_a_drain(manager: FakeManager, service: Service) -> None:
    """A drain in the middle of a reload: STOPPING, and no READY after it."""
    go = threading.Event()
    service.on("reload", lambda: go.wait(10))
    manager.reload()
    manager.stop()
    go.set()
    manager.wait_for("dead")
    assert manager.sent == ["READY", "RELOADING", "STOPPING"]


def test_reloads_while_reloading(manager: FakeManager, service: Service) -> None:
    """Those that come meanwhile are one more reload."""
    go, runs = threading.Event(), []

    @service.on("reload")
    def reload() -> None:
        go.wait(10)
        runs.append(1)

    for _ in range(3):
        manager.kill("SIGHUP")
    go.set()
    manager.wait_for(lambda: manager.sent.count("READY") == 3)
    assert len(runs) == 2


# -- limits ------------------------------------------------------------------------------------------------------------


def test_drain_timeout(manager: FakeManager, armed: Callable[..., Service], warnings_of: list[str]) -> None:
    """When it has passed, jobs are abandoned: named with their stacks, status 75, AbandonedError."""
    service = armed(drain_timeout=25)
    dead: list[int] = []
    service.on("dead", dead.append)
    with service.track("export 42") as tracker:
        manager.stop()
        manager.advance(24)
        assert manager.state == "stop-sigterm"
        manager.advance(1)
        assert tracker.should_stop()
        with pytest.raises(AbandonedError, match="export 42") as caught:
            service.wait(10)
    assert [job.label for job in caught.value.jobs] == ["export 42"]
    assert (dead, manager.unit.result) == ([75], "exit-code")
    assert any('abandoned "export 42"' in text and "test_drain_timeout" in text for text in warnings_of)


def test_a_trackers_drain_timeout(manager: FakeManager, service: Service) -> None:
    """One that outlives its own limit is abandoned; the others go on."""
    with service.track("limited", drain_timeout=5) as limited, service.track("job") as other:
        manager.advance(60)  # no limit on the job itself
        manager.stop()
        manager.advance(4)
        assert len(service.in_flight()) == 2
        manager.advance(1)
        assert [info.label for info in service.in_flight()] == ["job"]
        assert limited.should_stop()
        other.done()
        with pytest.raises(AbandonedError) as caught:
            service.wait(10)
    assert [job.label for job in caught.value.jobs] == ["limited"]


def test_a_late_trackers_drain_timeout(manager: FakeManager, service: Service) -> None:
    """Of one that began while draining the limit counts from its own begin."""
    with service.track("job"):
        manager.stop()
        manager.advance(20)
        late = service.create_tracker("late", drain_timeout=5)
        manager.advance(4)
        assert len(service.in_flight()) == 2
        manager.advance(1)
        assert len(service.in_flight()) == 1
        late.done()


@pytest.mark.parametrize("kind", [REQUEST, CONNECTION])
def test_request_timeout(manager: FakeManager, armed: Callable[..., Service], kind: str) -> None:
    """Requests and connections hold a drain so long, and are then let go: no abandonment."""
    service = armed(request_timeout=15)
    with service.open("GET /", More(kind)):
        manager.advance(100)
        manager.stop()
        manager.advance(14)
        assert manager.state == "stop-sigterm"
        manager.advance(1)
        manager.wait_for("dead")
    assert manager.result == "success"


def test_stalled(manager: FakeManager, service: Service, warnings_of: list[str]) -> None:
    """One that gives no heartbeat while draining is named once, with its stack, and handed to the handlers."""
    stalled: list[JobInfo] = []
    service.on("stalled", stalled.append)
    with service.track("export", heartbeat_timeout=5) as tracker:
        manager.advance(60)
        manager.stop()
        manager.advance(4)
        tracker.heartbeat()
        manager.advance(4)
        assert stalled == []
        manager.advance(20)
        assert [info.label for info in stalled] == ["export"]
        assert sum("stalled" in text and "test_stalled" in text for text in warnings_of) == 1
        tracker.heartbeat()
        manager.advance(5)
        assert len(stalled) == 2
    manager.wait_for("dead")
    assert manager.result == "success"


def test_long_drains_are_warned_of(manager: FakeManager, service: Service, warnings_of: list[str]) -> None:
    """After 1 and 5 minutes, then every 15: with the jobs, and how to hurry it up."""
    times: list[float] = []
    with service.track("export"):
        manager.stop()
        for minute in range(1, 48):
            manager.advance(60)
            times += [minute] * (len(warnings_of) - len(times))
    manager.wait_for("dead")
    assert times == [1, 5, 15, 30, 45]
    assert all('"export"' in text and "systemctl kill -s QUIT" in text for text in warnings_of)


def test_lame_duck_of_seconds(manager: FakeManager, armed: Callable[..., Service]) -> None:
    """STOPPING at once, the doors are shut when it ends; it holds that long even with no job."""
    service, door = armed(lame_duck=5), Shutter()
    service.doors.add(door)
    manager.stop()
    manager.advance(4)
    assert ("STOPPING" in manager.sent, door.shuts, manager.state) == (True, 0, "stop-sigterm")
    manager.advance(1)
    manager.wait_for("dead")
    assert door.shuts == 1


def test_lame_duck_of_jobs(manager: FakeManager, armed: Callable[..., Service]) -> None:
    """The doors stay open until the jobs that were in flight have ended; requests and late comers do not count."""
    service, door = armed(lame_duck="jobs"), Shutter()
    service.doors.add(door)
    job = service.create_tracker("job")
    with service.open("GET /", More(REQUEST)):
        manager.stop()
        late = service.create_tracker("late")
        manager.advance(20)
        assert door.shuts == 0
        job.done()
        manager.advance(0)
        assert door.shuts == 1
    late.done()
    manager.wait_for("dead")


def test_lame_duck_of_no_jobs(manager: FakeManager, armed: Callable[..., Service]) -> None:
    """With no job in flight the doors are shut at once."""
    service, door = armed(lame_duck="jobs"), Shutter()
    service.doors.add(door)
    with service.open("GET /", More(REQUEST)):
        manager.stop()
        manager.advance(0)
        assert door.shuts == 1
    manager.wait_for("dead")


def test_the_environment_is_given_back() -> None:
    """The end of the `with` block puts back what was taken, but for what somebody has set anew."""
    taken = {"NOTIFY_SOCKET": "@nobody-listens", "WATCHDOG_USEC": "30000000", "LISTEN_FDS": "0"}
    environ = dict(taken)
    with Service(environ=environ, signals=False, exit=False):
        assert environ == {}
        environ["NOTIFY_SOCKET"] = "@another"
    assert environ == {**taken, "NOTIFY_SOCKET": "@another"}


# -- what leaves the process -------------------------------------------------------------------------------------------


def test_redact(manager: FakeManager, armed: Callable[..., Service], warnings_of: list[str]) -> None:
    """It sees each label and status before it leaves the process."""
    service = armed(redact=lambda text: text.replace("secret", "***"), drain_timeout=70)
    with service.track("export secret") as tracker:
        tracker.status("secret 1")
        manager.stop()
        manager.advance(65)
        assert "secret" not in manager.status
        assert '"export ***" 65 s (*** 1)' in manager.status
        manager.advance(10)
    assert "secret" not in "".join(text.split(", at\n")[0] for text in warnings_of)


def test_redact_of_the_services_own_texts(manager: FakeManager) -> None:
    """It sees what the service says of itself too: while it starts, when it is up, and in the drain."""
    service = manager.arm(Service(), redact=lambda text: text.replace("secret", "***"))
    with service.starting("secret migration"):
        manager.wait_for(lambda: "migration" in manager.status)
    service.ready("up with secret")
    manager.wait_for("running")
    service.status("secret 1")
    with service.track("job"):
        manager.stop()
        service.status("secret 2")
        manager.advance(3)
        assert "*** 2" in manager.status
    manager.wait_for("dead")
    assert "secret" not in "".join(str(message.values) for message in manager.messages)


def test_redact_that_fails(manager: FakeManager, armed: Callable[..., Service]) -> None:
    """One that raises does not stop the drain, and what it did not pass does not leave."""

    def redact(text: str) -> str:
        raise KeyError(text)

    service = armed(redact=redact)
    with service.track("secret"):
        manager.stop()
        manager.advance(30)
        assert manager.state == "stop-sigterm"
        assert "secret" not in "".join(str(message.values) for message in manager.messages)
    manager.wait_for("dead")


# -- the unit wins over the code ---------------------------------------------------------------------------------------


def test_the_unit_wins(manager: FakeManager) -> None:
    """REQUIEM_* override the code's options."""
    service = manager.arm(Service(), environ={"REQUIEM_DRAIN_TIMEOUT": "2min"}, drain_timeout=5)
    with service.track("job"):
        manager.stop()
        manager.advance(119)
        assert manager.state == "stop-sigterm"
        manager.advance(1)
        assert manager.unit.result == "exit-code"


def test_the_unit_may_say_infinity(manager: FakeManager) -> None:
    """REQUIEM_DRAIN_TIMEOUT=infinity takes the code's limit away."""
    service = manager.arm(Service(), environ={"REQUIEM_DRAIN_TIMEOUT": "infinity"}, drain_timeout=5)
    with service.track("job"):
        manager.stop()
        manager.advance(600)
        assert manager.state == "stop-sigterm"
    manager.wait_for("dead")


def test_nonsense_in_the_unit(manager: FakeManager, warnings_of: list[str]) -> None:
    """What makes no sense is reported by name and ignored."""
    nonsense = {
        "REQUIEM_DRAIN_TIMEOUT": "soon",
        "REQUIEM_REQUEST_TIMEOUT": "-1",
        "REQUIEM_LAME_DUCK": "infinity",
    }
    service = manager.arm(Service(), environ=nonsense, request_timeout=7)
    options = service.engine.setting.options
    assert (options.drain_timeout, options.request_timeout, options.lame_duck) == (None, 7.0, 0.0)
    assert sorted(text.split()[0] for text in warnings_of) == sorted(nonsense)


# -- the watchdog ------------------------------------------------------------------------------------------------------


def test_watchdog() -> None:
    """It is fed while running, draining and until the exit."""
    with FakeManager(timeout_stop=10, watchdog=4) as manager:
        service = manager.arm(Service())
        service.ready()
        manager.advance(60)
        assert manager.state == "running"
        with service.track("job"):
            manager.stop()
            manager.advance(60)
            assert manager.state == "stop-sigterm"
        manager.wait_for("dead")
        assert manager.result == "success"


def test_watchdog_with_health() -> None:
    """While draining it is fed whatever the service's health: the first ping of the drain has armed it again."""
    healthy = [True]
    with FakeManager(timeout_stop=10, watchdog=4) as manager:
        service = manager.arm(Service(), health=lambda: healthy[0])
        service.ready()
        manager.advance(30)
        assert manager.state == "running"
        with service.track("job"):
            manager.stop()
            manager.advance(6)
            healthy[0] = False
            before = manager.sent.count("WATCHDOG")
            manager.advance(30)
            assert manager.sent.count("WATCHDOG") == before + 15
        manager.wait_for("dead")


@pytest.mark.parametrize("how", ["false", "raises", "hangs"])
def test_watchdog_of_the_unhealthy(how: str) -> None:
    """A health check that says no, raises or hangs lets the watchdog bite."""
    go = threading.Event()

    def health() -> bool:
        if how == "raises":
            raise OSError
        return how == "hangs" and go.wait(10)

    with FakeManager(watchdog=4) as manager:
        manager.arm(Service(), health=health).ready()
        manager.advance(5)
        assert (manager.state, manager.result) == ("failed", "watchdog")
        go.set()


# -- daemon-reload -----------------------------------------------------------------------------------------------------


def test_daemon_reload_in_mid_drain(manager: FakeManager, service: Service) -> None:
    """The guard sees it, and the stop is extended before the timers are counted again."""
    with service.track("job"):
        manager.stop()
        for _ in range(5):
            manager.advance(17)
            manager.daemon_reload()
        assert manager.state == "stop-sigterm"
    manager.wait_for("dead")
    assert manager.result == "success"


def test_daemon_reload_without_the_guard(manager: FakeManager, service: Service) -> None:
    """What the guard is for: without it a daemon-reload is death."""
    service.engine.extender._guard.unwatch = service.engine.extender._guard.watch = lambda: None  # type: ignore[union-attr, method-assign]
    with service.track("job"):
        manager.stop()
        manager.advance(17)
        manager.daemon_reload()
        assert (manager.state, manager.result) == ("failed", "timeout")


def test_daemon_reload_in_a_slow_start(manager: FakeManager) -> None:
    """The same for a start that lasts."""
    service = manager.arm(Service())
    with service.starting("migrating"):
        manager.advance(45)
        manager.daemon_reload()
        assert manager.state == "start"


def test_a_running_service_is_not_woken(manager: FakeManager, service: Service) -> None:
    """While nothing lasts, a daemon-reload is not looked at."""
    before = len(manager.messages)
    manager.daemon_reload()
    assert len(manager.messages) == before


# -- the with block ----------------------------------------------------------------------------------------------------


def test_the_end_of_the_block_is_a_begin() -> None:
    """A service's `with` block drains at its end."""
    ended = []
    with Service(environ={}, signals=False, exit=False) as service:
        tracker = service.create_tracker("job")

        def work() -> None:
            service.wait_begin(10)
            ended.append(1)
            tracker.done()

        thread = threading.Thread(target=work)
        thread.start()
    thread.join()
    assert ended == [1]
    assert not service.draining()


def test_the_block_tells_what_was_abandoned() -> None:
    """Jobs that were abandoned are raised at its end."""
    with (
        pytest.raises(AbandonedError, match="job"),
        Service(environ={}, signals=False, exit=False, drain_timeout=0) as service,
    ):
        tracker = service.create_tracker("job")
    tracker.done()


def test_the_blocks_own_error_goes_first() -> None:
    """An exception in the block is not hidden by one of the drain."""
    service = Service(environ={}, signals=False, exit=False, drain_timeout=0)
    tracker = service.create_tracker("job")
    with pytest.raises(KeyError), service:
        raise KeyError
    tracker.done()


def test_the_line_after_a_failed_reload(manager: FakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """The line that says that the service runs again does not call a failed reload done."""
    caplog.set_level(logging.INFO, "requiem_systemd")
    service = manager.arm(Service())
    service.on("reload", lambda: open("/nowhere/at/all"))  # noqa: PTH123, SIM115 -- fails
    service.ready()
    manager.reload()
    manager.wait_for("running")
    lines = [record.getMessage() for record in caplog.records if " -> running" in record.getMessage()]
    assert lines[-1] == "reloading -> running: reload failed, 0 in flight"


def test_one_line_for_each_state(manager: FakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """Each change of state is one INFO line with its reason and the count in flight."""
    caplog.set_level(logging.INFO, "requiem_systemd")
    service = manager.arm(Service())
    service.ready()
    with service.track("job"):
        manager.stop()
    manager.wait_for("dead")
    lines = [record.getMessage() for record in caplog.records if " -> " in record.getMessage()]
    assert lines == [
        "starting -> running: ready, 0 in flight",
        "running -> draining: SIGTERM, 1 in flight",
        "draining -> stopped: SIGTERM, 0 in flight",
    ]
