"""What a service tells of itself: where it stands, what holds its stop, and that telling costs nobody anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from requiem_systemd import account, control, varlink
from requiem_systemd.processes import Process, group_of, parse_stat, related
from requiem_systemd.service import Service
from tests.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DESCRIBE = f"{varlink.SERVICE}.Describe"
IN_FLIGHT = f"{varlink.SERVICE}.InFlight"


class Asked:
    """A service, and a client of its control socket."""

    def __init__(self, folder: Path, **options: Any) -> None:
        """Arm it."""
        self.service = Service(signals=False, environ={"RUNTIME_DIRECTORY": str(folder)}, exit=False, **options)
        self.service.arm()
        self.service.ready("up")
        self.path = folder / control.NAME
        self.caller = Caller(self.path)

    def describe(self) -> dict[str, Any]:
        """Ask where it stands."""
        found: dict[str, Any] = self.caller.ask(DESCRIBE)["parameters"]
        return found

    def in_flight(self, *, stacks: bool = False) -> dict[str, Any]:
        """Ask what holds its stop."""
        found: dict[str, Any] = self.caller.ask(IN_FLIGHT, parameters={"stacks": stacks})["parameters"]
        return found

    def close(self) -> None:
        """End both."""
        self.caller.close()
        self.service.close()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Return a service with a client."""
    asked = Asked(tmp_path)
    yield asked
    asked.close()


def test_where_it_stands(asked: Asked) -> None:
    """An idle service is running, and nothing else."""
    told = asked.describe()
    expected: tuple[object, ...] = ("running", "main", "up", "", 0, False, [])
    assert expected == tuple(told[key] for key in ("state", "role", "status", "reason", "in_flight", "manager", "workers"))
    assert (told["drain_age"], told["drain_left"], told["exit_left"], told["extension"]) == (None,) * 4
    assert told["limits"] == {"drain_timeout": None, "request_timeout": 30.0, "exit_timeout": 90.0, "lame_duck": "0.0"}


def test_where_it_stands_in_mid_drain(tmp_path: Path) -> None:
    """A drain tells who began it, how long ago, and when its limit comes."""
    with contextlib.closing(Asked(tmp_path, drain_timeout=1000)) as asked:
        with asked.service.track("job"):
            asked.service.begin("the test")
            told = asked.describe()
            assert (told["state"], told["reason"], told["in_flight"]) == ("draining", "the test", 1)
            assert 0 <= told["drain_age"] < 10
            assert 990 < told["drain_left"] <= 1000
        asked.service.wait()
        told = asked.describe()
        assert told["state"] == "stopped"
        assert 80 < told["exit_left"] <= 90


def test_answers_have_the_described_fields(asked: Asked) -> None:
    """What is answered is what the interface describes, field by field."""
    description = varlink.DESCRIPTIONS[varlink.SERVICE]

    def fields(head: str) -> list[str]:
        body = description.partition(head)[2].partition(")\n")[0]
        return sorted(line.strip().partition(":")[0] for line in body.replace(",", "\n").splitlines() if ":" in line)

    with asked.service.track("job"):
        told = asked.in_flight(stacks=True)
    assert sorted(asked.describe()) == fields("method Describe() -> (")
    assert sorted(told) == fields("method InFlight(stacks: ?bool) -> (")
    assert sorted(told["holders"][0]) == fields("type Holder (")
    assert sorted(told["threads"][0]) == fields("type Thread (")
    assert sorted(Process._fields) == fields("type Process (")


def test_what_holds(asked: Asked) -> None:
    """Each tracker is told with label, age, owner, status and place; oldest first, with sums by kind."""
    with asked.service.track("first") as first, asked.service.track("second"):
        first.status("page 3\n")
        told = asked.in_flight()
    names = [(one["label"], one["kind"], one["status"], one["owner"]) for one in told["holders"]]
    assert names == [("first", "job", "page 3 ", "thread MainThread"), ("second", "job", "", "thread MainThread")]
    assert all(one["age"] >= 0 and one["stack"] is None and one["left"] is None for one in told["holders"])
    assert (told["omitted"], told["counts"], told["threads"]) == (0, {"job": 2}, [])


def test_stacks_have_places_and_no_values(asked: Asked) -> None:
    """A stack is file:line:function, innermost first, and no local of any frame."""
    secret = "hunter2"
    begun, over = threading.Event(), threading.Event()

    def innermost(word: str) -> None:
        assert word
        begun.set()
        over.wait(10)

    def work() -> None:
        with asked.service.track("work"):
            innermost(secret)

    thread = threading.Thread(target=work, name="worker-1")
    thread.start()
    begun.wait(10)
    told = asked.in_flight(stacks=True)
    over.set()
    thread.join()
    (holder,) = told["holders"]
    functions = [line.rpartition(":")[2] for line in holder["stack"]]
    assert functions.index("innermost") < functions.index("work")
    assert "worker-1" in [one["name"] for one in told["threads"]]
    assert secret not in json.dumps(told)


def test_tasks_are_found(asked: Asked) -> None:
    """A tracker inside a coroutine is its task's, with the stack of what it awaits, for each of many."""

    async def inner(event: asyncio.Event) -> None:
        await event.wait()

    async def job(number: int, event: asyncio.Event) -> None:
        async with asked.service.track(f"job {number}"):
            await inner(event)

    async def main() -> dict[str, Any]:
        event = asyncio.Event()
        tasks = [asyncio.create_task(job(number, event), name=f"task-{number}") for number in range(50)]
        await asyncio.sleep(0)
        told = await asyncio.to_thread(asked.in_flight, stacks=True)
        event.set()
        await asyncio.gather(*tasks)
        return told

    told = asyncio.run(main())
    assert told["counts"] == {"job": 50}
    for number, one in enumerate(told["holders"]):
        assert one["owner"] == f"task task-{number}"
        assert [line.rpartition(":")[2] for line in one["stack"]][-2:] == ["inner", "job"]


@pytest.mark.parametrize("stacks", [False, True])
def test_many_are_cut(asked: Asked, *, stacks: bool) -> None:
    """Of 100,000 trackers with long labels the oldest are told, and how many more there are; a message is never too long."""
    service = asked.service
    held = [service.create_tracker(f"{number} " + "\U0001f600" * 40) for number in range(100_000)]
    asked.caller.say(IN_FLIGHT, parameters={"stacks": stacks})
    data = b""
    while not data.endswith(b"\0"):
        data += asked.caller.sock.recv(65536)
    for one in held:
        one.done()
    assert len(data) <= varlink.MESSAGE_MAX
    told = json.loads(data[:-1])["parameters"]
    assert told["holders"][0]["label"].startswith("0 ")
    assert len(told["holders"]) > (5 if stacks else 50)
    assert len(told["holders"]) + told["omitted"] == told["counts"]["job"] == 100_000


def test_limits_of_their_own(asked: Asked) -> None:
    """In the drain it is told when a tracker's own limit comes; before, that it has none yet."""
    with asked.service.track("bounded", drain_timeout=500), asked.service.track("free"):
        assert [one["left"] for one in asked.in_flight()["holders"]] == [None, None]
        asked.service.begin("test")
        bounded, free, *_ = asked.in_flight()["holders"]
    assert 490 < bounded["left"] <= 500
    assert free["left"] is None


def test_redacted(tmp_path: Path) -> None:
    """What `redact` takes out does not leave the process this way either."""
    with contextlib.closing(Asked(tmp_path, redact=lambda text: text.replace("secret", "***"))) as asked:
        asked.service.status("secret status")
        with asked.service.track("secret job") as job:
            job.status("secret page")
            told = json.dumps([asked.describe(), asked.in_flight(stacks=True)])
    assert "secret" not in told
    assert "*** job" in told


def test_who_hangs_in_user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `redact` that hangs costs neither the engine nor the drain anything; who asks is told; once it is over, it is told again."""
    monkeypatch.setattr(account, "HANGS_AFTER", 0.1)
    over = threading.Event()

    def redact(text: str) -> str:
        if threading.current_thread().name == "requiem-account":
            over.wait(10)
        return text

    with contextlib.closing(Asked(tmp_path, redact=redact)) as asked, asked.service.track("slow"):
        assert asked.caller.ask(IN_FLIGHT)["error"] == varlink.UNAVAILABLE
        assert "hangs" in asked.caller.ask(IN_FLIGHT)["parameters"]["reason"]
        assert asked.describe()["in_flight"] == 1
        over.set()
        while "error" in (answer := asked.caller.ask(IN_FLIGHT)):
            time.sleep(0.01)
        assert answer["parameters"]["holders"][0]["label"] == "slow"


def test_no_thread_can_be_started(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the interpreter finalizes the engine itself looks."""

    def refuse(self: threading.Thread) -> None:
        msg = "can't create new thread at interpreter shutdown"
        raise RuntimeError(msg)

    with asked.service.track("job"), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            assert [one["label"] for one in asked.in_flight(stacks=True)["holders"]] == ["job"]


def test_what_fails_is_said(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong, who asked is answered."""
    monkeypatch.setattr(account, "beside", lambda *_, **__: 1 / 0)
    assert asked.caller.ask(IN_FLIGHT)["parameters"]["reason"].startswith("ZeroDivisionError")
    assert "parameters" in asked.caller.ask(DESCRIBE)


@pytest.mark.parametrize("wrong", [1, "yes", [], {}])
def test_wrong_parameter(asked: Asked, wrong: object) -> None:
    """A parameter of another type is an error; one that is not known is left alone."""
    answer = asked.caller.ask(IN_FLIGHT, parameters={"stacks": wrong})
    assert answer == {"error": f"{varlink.STANDARD}.InvalidParameter", "parameters": {"parameter": "stacks"}}
    assert "holders" in asked.caller.ask(IN_FLIGHT, parameters={"stacks": None, "of": "a newer release"})["parameters"]


def test_no_alarm_is_left(asked: Asked) -> None:
    """When it has been told the engine sleeps as before: nothing wakes an idle service, with a client or without."""
    asked.in_flight(stacks=True)
    asked.describe()
    asked.service.engine.loop.call(lambda: None)
    assert asked.service.engine.loop._alarms == {}


def test_many_ask_at_once(asked: Asked) -> None:
    """Requests in a row, of several clients, are each answered."""
    callers = [Caller(asked.path) for _ in range(5)]
    with asked.service.track("job"):
        for caller in callers:
            for _ in range(10):
                caller.say(IN_FLIGHT, parameters={"stacks": True})
        for caller in callers:
            for _ in range(10):
                assert caller.hear()["parameters"]["counts"] == {"job": 1}
            caller.close()


def test_who_was_dropped_is_not_looked_for(tmp_path: Path) -> None:
    """A client that had to make room leaves no work behind: those that come and go keep nobody waiting."""
    begun, over, looks = threading.Event(), threading.Event(), list[str]()

    def redact(text: str) -> str:
        if threading.current_thread().name == "requiem-account":
            looks.append(text)
            begun.set()
            over.wait(4)  # less than HANGS_AFTER
        return text

    with contextlib.closing(Asked(tmp_path, redact=redact)) as asked, asked.service.track("job"):
        callers = [asked.caller, *(Caller(asked.path) for _ in range(control.CLIENTS_MAX - 1))]
        for caller in callers:
            caller.ask(DESCRIBE)
            caller.say(IN_FLIGHT)
        assert begun.wait(10)
        dropped = callers.pop()
        dropped.say(DESCRIBE)  # ahead of its answer
        for _ in range(2):  # one turn may be on its way; the next has seen it all
            asked.service.engine.loop.call(lambda: None)
        newcomer = Caller(asked.path)
        assert "parameters" in newcomer.ask(DESCRIBE)
        assert dropped.hear() == {}
        over.set()
        assert all("parameters" in caller.hear() for caller in callers)
        assert "parameters" in newcomer.ask(IN_FLIGHT)
        assert len(looks) == len(callers) + 1
        for caller in (*callers, dropped, newcomer):
            caller.close()


def test_after_the_stop(asked: Asked) -> None:
    """When all jobs have ended it is the threads of the exit that hold, and they are told with their stacks."""
    asked.service.begin("test")
    assert asked.service.wait(10)
    told = asked.in_flight(stacks=True)
    holder = told["holders"][0]
    assert (holder["kind"], holder["label"]) == ("thread", "main thread")
    assert holder["stack"]


def test_children(asked: Asked) -> None:
    """A child process is told, by its name and never by its arguments."""
    with subprocess.Popen(("sleep", "60.25")) as child:
        told = asked.in_flight()
        child.kill()
    (found,) = [one for one in told["processes"] if one["pid"] == child.pid]
    assert (found["name"], found["relation"]) == ("sleep", "child")
    assert 0 <= found["age"] < 60
    assert "60.25" not in json.dumps(told)


def test_relations() -> None:
    """Children, what they started, and orphans; neither oneself nor who is above. A circle, as /proc may show one, does not hang."""
    parents = {1: 0, 10: 1, 20: 10, 21: 20, 30: 1, 31: 30, 40: 41, 41: 40}
    expected = {20: "child", 21: "descendant", 30: "orphan", 31: "orphan", 40: "orphan", 41: "orphan"}
    assert expected == related(10, parents)
    assert related(20, parents)[21] == "child"
    assert related(7, {}) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 (a b) S) S 1 " + "0 " * 17 + "99 0", (7, "a b) S", "S", 1, 99)),
        ("7 (new\nline) Z 1 " + "0 " * 17 + "99 0", (7, "new line", "Z", 1, 99)),
        ("", None),
        ("7 (sh) S 1", None),
    ],
)
def test_stat(text: str, expected: object) -> None:
    """A name may hold what it likes; what is cut short is nothing."""
    assert expected == parse_stat(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/system.slice/a.service\n", "/system.slice/a.service"),
        ("0::/system.slice/a.service/inner\n", "/system.slice/a.service"),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/b@2.service\n", "/user.slice/user-1.slice/user@1.service/app.slice/b@2.service"),
        ("4:memory:/x.service\n1:name=systemd:/system.slice/a.service\n", "/system.slice/a.service"),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_group(text: str, expected: str | None) -> None:
    """The control group is the service's own, of whatever hierarchy; in a namespace of its own it is not known."""
    assert expected == group_of(text)
