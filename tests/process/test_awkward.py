"""Hosts and circumstances that were not made for a service: each works, or says what is wrong."""

from __future__ import annotations

import json
import os
import pty
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from tests.process.running import Running

#: A job in a thread that ends when the drain has begun, and writes so to a file.
JOB: Final = """
import pathlib, sys, threading, time
import requiem_systemd as requiem
def job():
    with requiem.track("job"):
        requiem.ready()
        print("job: begun")
        requiem.wait_begin()
        time.sleep(0.3)
        pathlib.Path("done").write_text("job: done")
requiem.initialize()
threading.Thread(target=job, daemon=True).start()
"""
SERVICE: Final = f"{JOB}\nrequiem.wait()\n"


def assert_done(running: Running) -> None:
    """Assert that the process ended well, and after its job."""
    assert running.ends() == 0, running.lines
    assert (running.folder / "done").read_text() == "job: done"


def test_wrapper_shell_is_named(running: Running) -> None:
    """Under a shell that stays the main process, the mistake is named: what is said from here would be dropped."""
    wrapper = ["/bin/sh", "-c", 'export SYSTEMD_EXEC_PID=$$; "$@"; exit $?', "sh"]
    running.start(
        "-c",
        "import requiem_systemd as requiem; requiem.initialize(); requiem.begin(); requiem.wait()",
        wrapper=wrapper,
        ready=False,
    )
    assert running.ends() == 0
    assert any("is the service's main process" in line and "exec" in line for line in running.lines), (
        running.lines
    )


def test_kill_signal_int(running: Running) -> None:
    """KillSignal=SIGINT stops like SIGTERM."""
    running.start("-c", SERVICE)
    running.signal(signal.SIGINT)
    running.manager.expect("STOPPING=1")
    assert_done(running)


@pytest.mark.parametrize("stopped", [False, True], ids=["at once", "both pending"])
def test_send_sighup(running: Running, *, stopped: bool) -> None:
    """SendSIGHUP=yes sends SIGHUP right behind SIGTERM; pending together, SIGHUP comes first. Either way it is a stop."""
    running.start("-c", SERVICE)
    around = ((signal.SIGSTOP,), (signal.SIGCONT,)) if stopped else ((), ())
    running.signal(*around[0], signal.SIGTERM, signal.SIGHUP, *around[1])
    running.manager.expect("STOPPING=1")
    assert_done(running)


def test_nohup(running: Running) -> None:
    """A signal that was ignored when we came stays ignored: nohup survives its terminal, and stops by SIGTERM."""
    running.start("-c", SERVICE, wrapper=["nohup"])
    running.signal(signal.SIGHUP, signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    assert_done(running)
    assert not any("RELOADING" in line or "reload" in line for line in running.lines)


def test_closed_terminal(running: Running) -> None:
    """Without a manager, the end of the terminal is a stop, and the job ends."""
    leader, follower = pty.openpty()
    script = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{SERVICE}"
    options: dict[str, Any] = {
        "stdin": follower,
        "stdout": follower,
        "stderr": follower,
        "start_new_session": True,
    }
    running.start("-c", script, env={"NOTIFY_SOCKET": ""}, ready=False, **options)
    os.close(follower)
    seen = b""
    while not seen.endswith(b"begun\r\n"):  # all of the line: the job must not be cut off in its print()
        seen += os.read(leader, 4096)
    os.close(leader)
    assert running.process.wait(PATIENCE) == 0
    assert (running.folder / "done").read_text() == "job: done"


def test_terminate_right_after_fork(running: Running) -> None:
    """A child that is told to end before it has run a line of its own dies of it; the parent goes on."""
    running.start(
        "-c",
        """
import multiprocessing, time
import requiem_systemd as requiem
requiem.initialize()
context = multiprocessing.get_context("fork")
codes = set()
for _ in range(30):
    process = context.Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join()
    codes.add(process.exitcode)
print("codes", *codes)
print("draining", requiem.draining())
requiem.begin()
requiem.wait()
""",
        ready=False,
    )
    assert running.ends() == 0
    assert "codes -15" in running.lines
    assert "draining False" in running.lines


@pytest.mark.parametrize("take", [True, False])
def test_subprocess_and_notify_socket(running: Running, *, take: bool) -> None:
    """A job's subprocess does not get NOTIFY_SOCKET, unless the service leaves it there."""
    running.start(
        "-c",
        f"""
import subprocess
import requiem_systemd as requiem
requiem.initialize(take_environment={take})
requiem.track(subprocess.Popen(["/bin/sh", "-c", "echo seen=$NOTIFY_SOCKET"])).wait()
requiem.begin()
requiem.wait()
""",
        ready=False,
    )
    assert running.ends() == 0
    assert f"seen={'' if take else running.manager.path}" in running.lines


GEVENT: Final = """
from gevent import monkey
monkey.patch_all()
import gevent
"""


GEVENT_JOB: Final = JOB.replace(
    "requiem.wait_begin()", "while not requiem.draining(): gevent.sleep(0.01)"
).replace("time.sleep", "gevent.sleep")


def test_gevent(running: Running) -> None:
    """Patched by gevent, jobs in greenlets hold the stop as those in threads do, and `wait` ends the main one."""
    pytest.importorskip("gevent")
    running.start("-c", f"{GEVENT}{GEVENT_JOB}\nrequiem.wait()")
    running.expect("job: begun")
    running.signal(signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    assert_done(running)


def test_gevent_without_wait(running: Running) -> None:
    """A main greenlet that does not wait cannot be made to leave; it is told what to write."""
    pytest.importorskip("gevent")
    running.start("-c", f"{GEVENT}{GEVENT_JOB}\nwhile not pathlib.Path('end').exists(): gevent.sleep(0.01)")
    running.expect("job: begun")
    running.signal(signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    running.expect("call wait() at its end")
    (running.folder / "end").touch()
    assert_done(running)


ASYNC_JOB: Final = """
import asyncio, pathlib, sys
import requiem_systemd as requiem
from requiem_systemd import aio
async def main():
    async with requiem.track("job"):
        requiem.ready()
        print("job: begun")
        await aio.wait_begin()
        await asyncio.sleep(0.3)
        pathlib.Path("done").write_text("job: done")
    await asyncio.Event().wait()
"""


def test_uvloop(running: Running) -> None:
    """Under uvloop a task holds the stop."""
    pytest.importorskip("uvloop")
    running.start("-c", f"{ASYNC_JOB}\nimport uvloop\nuvloop.install()\naio.run(main())")
    running.expect("job: begun")
    running.signal(signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    assert_done(running)


def test_trio(running: Running) -> None:
    """Under trio a job that is entered by `async with` holds the stop; then trio's main is made to leave."""
    pytest.importorskip("trio")
    job = ASYNC_JOB.replace("await aio.wait_begin()", "await trio.to_thread.run_sync(requiem.wait_begin)")
    job = job.replace("asyncio.sleep", "trio.sleep").replace("asyncio.Event().wait", "trio.sleep_forever")
    running.start("-c", f"import trio\n{job}\nrequiem.initialize()\ntrio.run(main)")
    running.expect("job: begun")
    running.signal(signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    assert_done(running)


def test_pytest_is_a_host(running: Running) -> None:
    """In pytest a drain ends without the process: the main thread is the test runner's."""
    (running.folder / "test_host.py").write_text(
        f"{SERVICE.replace('requiem.wait()', '')}\ndef test():\n    requiem.begin()\n    requiem.wait()\n"
    )
    running.start(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:requiem_systemd",
        "test_host.py",
        ready=False,
    )
    assert_done(running)
    assert any("1 passed" in line for line in running.lines), running.lines


def test_ipython_is_a_host(running: Running) -> None:
    """In IPython a drain ends without the shell."""
    pytest.importorskip("IPython")
    code = f"{SERVICE.replace('requiem.wait()', '')}\nrequiem.begin(); requiem.wait(); time.sleep(0.3); print('still', 'here')"
    env = {"IPYTHONDIR": str(running.folder / "ipython"), "HOME": str(running.folder)}
    running.start("-m", "IPython", "--quick", "--colors=NoColor", "-c", code, env=env, ready=False)
    assert_done(running)
    assert "still here" in running.lines


def test_interactive_is_a_host(running: Running) -> None:
    """In `python -i` a drain ends without the shell."""
    code = f"{SERVICE.replace('requiem.wait()', '')}\nrequiem.begin(); requiem.wait(); time.sleep(0.3); print('still', 'here')"
    running.start("-i", "-c", code, ready=False)
    assert_done(running)
    assert any("still here" in line for line in running.lines)


def test_coverage(running: Running) -> None:
    """Under coverage the exit leaves it the time to write its data, of the job's last lines too."""
    pytest.importorskip("coverage")
    (running.folder / "service.py").write_text(SERVICE)
    running.start("-m", "coverage", "run", "--data-file=data", "service.py")
    running.signal(signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    assert_done(running)
    running.start("-m", "coverage", "json", "--data-file=data", "-o", "report.json", ready=False)
    assert running.ends() == 0
    executed = json.loads((running.folder / "report.json").read_text())["files"]["service.py"][
        "executed_lines"
    ]
    assert SERVICE.splitlines().index('        pathlib.Path("done").write_text("job: done")') + 1 in executed


def test_module(running: Running) -> None:
    """`python -m package` is a service like any other."""
    (running.folder / "package").mkdir()
    (running.folder / "package" / "__main__.py").write_text(SERVICE)
    running.start("-m", "package", env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{running.folder}"})
    running.signal(signal.SIGTERM)
    running.manager.expect("STOPPING=1")
    assert_done(running)


def test_container_runtime_is_named(running: Running) -> None:
    """Behind podman's proxy no stop is extended: the setting to raise is named, and STATUS does not claim that it is held."""
    running.start("-c", SERVICE, env={"container": "podman"})
    running.signal(signal.SIGTERM)
    assert "runtime's own stop timeout goes on" in running.manager.expect("STOPPING=1")
    assert_done(running)
    assert any("--stop-timeout" in line for line in running.lines)
