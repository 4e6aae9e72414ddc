"""Jobs of three times TimeoutStopSec=2 survive a real `systemctl stop`, whatever form of tracker holds them."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.systemd import forms
from tests.systemd.conftest import lacks, stop
from tests.systemd.fleet import Ended, Fleet, rounds
from tests.systemd.sandbox import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.systemd.conftest import ServiceFactory
    from tests.systemd.sandbox import Sandbox

pytestmark = pytest.mark.timeout(300)

FORMS: Final = {**forms.THREADS, **forms.COROUTINES}
#: Settings under which a job survives as well; a watchdog that was fed once must be fed until the exit.
SETTINGS: Final[dict[str, dict[str, object]]] = {
    "WatchdogSec": {"WatchdogSec": 5},  # shorter than the job; a hundred services start beside it
    "KillSignal": {"KillSignal": "SIGINT"},
    "SendSIGHUP": {"SendSIGHUP": "yes"},
    "KillMode": {"KillMode": "control-group"},
    "DynamicUser": {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "MemoryDenyWriteExecute": "yes",
    },
}
CONTROL: Final = """
requiem.initialize = lambda: None
notify = __import__("sdnotify").SystemdNotifier().notify
import signal
def job():
    notify("READY=1")
    stopped.wait()
    time.sleep(6)
    print("job done")
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
threading.Thread(target=job).start()
"""
UNGUARDED: Final = """
import requiem_systemd.extender
def unwatched(folder):
    raise OSError("taken out")
requiem_systemd.extender.Guard = unwatched
"""
CLIENT_PATH: Final = "/run/requiem-tests/client.py"

Launch = dict[str, list[Ended]]


@pytest.fixture(scope="module")
def drained(sandbox: Sandbox, python: str, repetitions: int) -> Launch:
    """Stop every form side by side, each as often as asked for, and say how they ended."""
    sandbox.write(CLIENT_PATH, forms.CLIENT)
    request = f"{python} {CLIENT_PATH} %t/%N/http /"
    found: Launch = {}
    for number, count in enumerate(rounds(repetitions)):
        with Fleet(sandbox, python, f"form{number}") as fleet:
            for name, text in FORMS.items():
                fleet.add(name, forms.script(text), count, ExecStartPost=request if name == "asgi" else None)
            for name, text in forms.ENDS.items():
                fleet.add(name, forms.script(text), count, ExecStartPre=f"mkfifo {forms.FIFO}")
            for name, settings in SETTINGS.items():
                fleet.add(name, forms.script(forms.THREADS["with"]), count, **settings)
            fleet.add("control", forms.script(CONTROL), count)
            fleet.start()
            fleet.end(*forms.ENDS)
            fleet.stop()
            for name, ended in fleet.ended().items():
                found.setdefault(name, []).extend(ended)
    return found


def assert_survived(ended: list[Ended], repetitions: int, *, longer_than: float = 5.9) -> None:
    """Assert that all jobs were done and all units ended well, and that it took as long as the jobs."""
    assert len(ended) == repetitions
    for one in ended:
        assert one.verdict == ("success", 0), one.journal
        assert "job done" in one.journal, one.journal
        assert one.seconds > longer_than, one.journal


@pytest.mark.parametrize("form", FORMS)
def test_survives_stop(form: str, drained: Launch, repetitions: int) -> None:
    """A job of three times TimeoutStopSec ends before `systemctl stop` does, and the unit's result is success."""
    assert_survived(drained[form], repetitions)


@pytest.mark.parametrize("form", forms.ENDS)
def test_survives_main_threads_end(form: str, drained: Launch, repetitions: int) -> None:
    """A job ends though the main thread, or what it ran, has ended."""
    assert_survived(drained[form], repetitions)


@pytest.mark.parametrize("setting", SETTINGS)
def test_survives_under_setting(setting: str, drained: Launch, repetitions: int) -> None:
    """A job survives under settings that others have."""
    assert_survived(drained[setting], repetitions)


def test_control_dies(drained: Launch) -> None:
    """The same job without the library is killed at TimeoutStopSec."""
    for one in drained["control"]:
        assert one.result == "timeout"
        assert "job done" not in one.journal


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_survives_managers_own_reload(verb: str, sandbox: Sandbox, python: str, repetitions: int) -> None:
    """What has outlived TimeoutStopSec survives a `daemon-reload`; without the guard all of it is killed."""
    survivors: list[Ended] = []
    unguarded: list[Ended] = []
    for number, count in enumerate(rounds(repetitions, 10)):
        with Fleet(sandbox, python, f"{verb}{number}") as fleet:
            fleet.add("guarded", forms.script(forms.THREADS["with"]), count)
            fleet.add("unguarded", UNGUARDED + forms.script(forms.THREADS["with"]), count)
            fleet.start()
            fleet.stop(block=False)
            time.sleep(3)  # past TimeoutStopSec=2 is what this is about
            sandbox.systemctl(verb)
            fleet.wait()
            ended = fleet.ended()
            survivors += ended["guarded"]
            unguarded += ended["unguarded"]
    assert_survived(survivors, repetitions)
    assert ["timeout"] * repetitions == [one.result for one in unguarded]


FASTAPI: Final = """
import asyncio
from contextlib import asynccontextmanager
from fastapi import FastAPI
from requiem_systemd.asgi import TrackRequests

@asynccontextmanager
async def lifespan(app):
    yield
    print("lifespan shutdown")

async def job():
    await asyncio.sleep(8)
    print("job done")

app = FastAPI(lifespan=lifespan)

@app.get("/start")
async def start():
    app.state.task = asyncio.create_task(job())
    return "begun"

app = TrackRequests(app)
"""


#: Examples, and what each says when its job is done; a client begins those of the second kind.
EXAMPLES: Final = {
    "01_threads": "worker 3, job 1 done",
    "02_asyncio": "mail 1: done",
    "04_fastapi": "export: done",
    "05_worker_loop": "first: done",
    "06_subprocess": "conversion: done",
    "07_watchdog": "turn: done",
    "08_reload": "Hello: done",
    "10_seed": "job: done",
    "11_cluster": "job done",
}
#: Of which version FastAPI must be for those that run it.
FASTAPI_SINCE: Final = ("0.93", "lifespan= as the examples have it", "fastapi")
#: Those that listen on a port, which several of them cannot share.
ON_A_PORT: Final = ("10_seed", "11_cluster")


@pytest.fixture(scope="module")
def examples(sandbox: Sandbox, python: str, repetitions: int, request: pytest.FixtureRequest) -> Launch:
    """Stop the examples that begin jobs by themselves, side by side: jobs of 16 s, for until all are up and stopped on a busy machine 6 s pass."""
    sandbox.write("/run/requiem-tests/example.json", '{"greeting": "Hello"}')
    for name in ON_A_PORT:
        text = (CHECKOUT / "examples" / f"{name}.py").read_text()
        sandbox.write(f"/run/requiem-tests/{name}.py", text.replace('("", PORT)', '("127.0.0.1", 0)'))
    sandbox.write("/run/requiem-tests/fastapi/app.py", FASTAPI)
    sandbox.write(CLIENT_PATH, forms.CLIENT)
    uvicorn = f"{Path(python).parent}/uvicorn app:app --uds %t/%N/http --log-level warning"
    ask = f'for unit; do {python} {CLIENT_PATH} "/run/${{unit%.service}}/http" /start & done; wait'
    with_fastapi = not lacks(request.config, *FASTAPI_SINCE)
    found: Launch = {}
    for number, count in enumerate(rounds(repetitions)):
        with Fleet(sandbox, python, f"example{number}") as fleet:
            for name in EXAMPLES.keys() - {"04_fastapi", "05_worker_loop"}:
                folder = "/run/requiem-tests" if name in ON_A_PORT else f"{CHECKOUT}/examples"
                environment = (
                    "PYTHONUNBUFFERED=1 EXAMPLE_SECONDS=16 EXAMPLE_CONFIG=/run/requiem-tests/example.json"
                )
                fleet.add(name, "", count, ExecStart=f"{python} {folder}/{name}.py", Environment=environment)
            spool = ["PYTHONUNBUFFERED=1", "EXAMPLE_SECONDS=16", "EXAMPLE_SPOOL=%t/%N"]
            worker = {"ExecStart": f"{python} {CHECKOUT}/examples/05_worker_loop.py", "Environment": spool}
            fleet.add("05_worker_loop", "", count, ExecStartPre="sh -c 'echo first > %t/%N/1.job'", **worker)
            if with_fastapi:
                app = uvicorn.replace("app:app", f"--app-dir {CHECKOUT}/examples 04_fastapi:app")
                client = f"{python} {CLIENT_PATH} %t/%N/http /export"
                fleet.add("04_fastapi", "", count, ExecStart=app, ExecStartPost=client, Environment=spool)
                folder = "/run/requiem-tests/fastapi"
                fleet.add("fastapi", "", count, TimeoutStopSec=3, WorkingDirectory=folder, ExecStart=uvicorn)
            fleet.start()
            sandbox.run("sh", "-c", ask, "ask", *fleet.units.get("fastapi", ()))
            fleet.stop()
            for name, ended in fleet.ended().items():
                found.setdefault(name, []).extend(ended)
    return found


@pytest.mark.parametrize("example", [pytest.param(name, marks=[pytest.mark.since(*FASTAPI_SINCE)] if "fastapi" in name else []) for name in EXAMPLES])
def test_example_survives(example: str, examples: Launch, repetitions: int) -> None:
    """An example's job, eight times TimeoutStopSec=2 when it begins, is done."""
    assert len(examples[example]) == repetitions
    for one in examples[example]:
        assert one.verdict == ("success", 0), one.journal
        assert EXAMPLES[example] in one.journal, one.journal
        assert one.seconds > 2.5, one.journal


@pytest.mark.since(*FASTAPI_SINCE)
def test_fastapi_under_uvicorn(examples: Launch, repetitions: int) -> None:
    """An unchanged FastAPI app's task of 8 s ends under `uvicorn app:app`; its own shutdown runs once, after it."""
    assert_survived(examples["fastapi"], repetitions, longer_than=5.0)
    for one in examples["fastapi"]:
        assert one.journal.count("lifespan shutdown") == 1
        assert one.journal.index("job done") < one.journal.index("lifespan shutdown")


def test_orphans_are_not_held(service: ServiceFactory) -> None:
    """What a job's subprocess leaves behind is no job: KillMode=mixed kills it when the main process has ended."""
    unit = service("""
        import subprocess, requiem_systemd as requiem
        requiem.initialize()
        requiem.track(subprocess.Popen(["sh", "-c", "(sleep 3; echo too late) & sleep 1; echo job done"]))
        requiem.ready()
        requiem.wait()
    """)
    assert unit.stop().result == "success"
    assert "job done" in unit.journal()
    assert "too late" not in unit.journal()


def poll(condition: Callable[[], bool], timeout: float = 15.0) -> None:
    """Wait until systemd shows something; it has no descriptor for it that a test could wait on."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_stopping_from_a_c_call(service: ServiceFactory) -> None:
    """STOPPING=1 reaches the manager while the main thread sits in a C call of 2 s."""
    unit = service("""
        import hashlib, time, requiem_systemd as requiem
        begin = time.monotonic()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)
        rounds = int(200_000 * 3 / (time.monotonic() - begin))
        requiem.initialize()
        requiem.ready()
        hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
        print("the call returned", flush=True)
        requiem.wait()
    """)
    unit.kill("TERM")  # not a stop: "deactivating" can only come from STOPPING=1
    poll(lambda: unit.state == "deactivating")
    assert "the call returned" not in unit.journal()
    poll(lambda: unit.state == "inactive")
    assert unit.result == "success"


def test_slow_start(service: ServiceFactory) -> None:
    """A start that outlasts TimeoutStartSec under `starting` is let come up."""
    unit = service(
        """
        import time, requiem_systemd as requiem
        requiem.initialize()
        with requiem.starting("warming the cache"):
            time.sleep(3)
        requiem.ready("warm")
        requiem.wait()
        """,
        TimeoutStartSec=1,
    )
    assert unit.state == "active"
    assert unit.status_text == "warm"
    assert unit.stop().result == "success"


def test_slow_start_survives_daemon_reload(sandbox: Sandbox, python: str) -> None:
    """A start that has outlasted TimeoutStartSec survives a `daemon-reload`."""
    with Fleet(sandbox, python, "slow-start") as fleet:
        text = """
            requiem.initialize()
            with requiem.starting("warming the cache"):
                time.sleep(4)
            requiem.ready()
            stay()
        """
        fleet.add("warm", forms.script(text), 1, TimeoutStartSec=1)
        sandbox.systemctl("start", "--no-block", *fleet.names)
        time.sleep(2)  # past TimeoutStartSec=1 is what this is about
        sandbox.systemctl("daemon-reload")
        poll(lambda: sandbox.show(fleet.names[0], "ActiveState")["ActiveState"] != "activating")
        assert sandbox.show(fleet.names[0], "ActiveState")["ActiveState"] == "active"


def test_watchdog_ends_the_unhealthy(service: ServiceFactory) -> None:
    """A service whose health check fails is ended by the watchdog."""
    unit = service(
        """
        import requiem_systemd as requiem
        requiem.initialize(health=lambda: False)
        requiem.ready()
        requiem.wait()
        """,
        WatchdogSec=1,
        WatchdogSignal="SIGKILL",
    )
    poll(lambda: unit.state == "failed")
    assert unit.result == "watchdog"


@pytest.mark.timeout(180)
def test_example_servers_answer(service: ServiceFactory, repetitions: int) -> None:
    """The examples that serve clients finish an answer of 8 s in a stop with TimeoutStopSec=2, side by side."""
    units, ports, clients = [], [], []
    for name in ("03_http_server", "09_fd_store") * repetitions:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        environment = [f"EXAMPLE_PORT={ports[-1]}", "EXAMPLE_SECONDS=8"]
        text = (CHECKOUT / "examples" / f"{name}.py").read_text()
        units.append(service(text, Environment=environment, FileDescriptorStoreMax=8))
    for port in ports:
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        clients.append(client)
    for unit in units:
        unit.wait_for("begun")
    results = stop(*units)
    answers = []
    for client in clients:
        with client, client.makefile("rb") as stream:
            answers.append(stream.read())
    assert all(answer.endswith(b"Hello world!\n") for answer in answers), answers
    assert {(one.result, one.status) for one in results} == {("success", 0)}
