"""Imports go one way, the core stands alone, and it stands on other systems too."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import requiem_systemd

PACKAGE: Final = Path(requiem_systemd.__file__).parent
# The plugin's own modules; those of the package are held to ARCHITECTURE.md's list by test_architecture.
ORDER: Final = ("clock", "unit", "mailbox", "store", "child", "inside", "manager", "__init__", "plugin")
# What is slow to import, or drags much along.
LAZY: Final = (
    "asyncio",
    "dataclasses",
    "inspect",
    "multiprocessing",
    "typing_extensions",
    "unittest",
    "email",
    "http",
    "ssl",
)
LINUX_ONLY: Final = [
    "os.pidfd_open",
    "os.register_at_fork",
    "os.eventfd",
    "os.memfd_create",
    "os.fork",
    "os.getuid",
    "os.geteuid",
    "signal.pthread_kill",
    "signal.pthread_sigmask",
    "signal.SIGHUP",
    "signal.SIGQUIT",
    "signal.SIGUSR1",
    "signal.SIGCHLD",
    "signal.sigwait",
    "signal.pidfd_send_signal",
    "signal.SIG_BLOCK",
    "signal.SIG_SETMASK",
    "select.epoll",
    "select.poll",
    "select.EPOLLIN",
    "select.POLLIN",
    "socket.AF_UNIX",
    "socket.AF_VSOCK",
    "socket.SO_PASSCRED",
    "socket.SCM_CREDENTIALS",
    "socket.SCM_RIGHTS",
    "socket.TCP_INFO",
    "socket.SO_PEERCRED",
    "socket.SOCK_SEQPACKET",
    "socket.CMSG_SPACE",
    "socket.SO_REUSEPORT",
]


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    """Return full names of what a module imports."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("name", ORDER)
def test_direction_in_testing(name: str) -> None:
    """A module of `testing` imports at its top only from those before it."""
    for other in imported(PACKAGE / "testing" / f"{name}.py", top_only=True):
        if other.startswith("requiem_systemd.testing."):
            assert other.split(".")[2] in ORDER[: ORDER.index(name)]


def test_only_protocol_reads_the_environment() -> None:
    """`arming` passes os.environ on; nobody else in a service knows it."""
    users = set()
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("adapters/*.py")]:
        text = path.read_text()
        if "os.environ" in re.sub(r'"""[\s\S]*?"""|#.*', "", text) or {"os.environ", "os.getenv"} & imported(
            path
        ):
            users.add(path.stem)
    assert users == {"arming"}


def run(code: str, *options: str) -> str:
    """Run a program by itself, and return what it prints."""
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONWARNINGS": "error"}
    for name in ("NOTIFY_SOCKET", "COVERAGE_PROCESS_START"):
        environ.pop(name, None)
    shown = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.strip()


def test_the_bare_import_is_light() -> None:
    """It loads neither asyncio nor dataclasses, inspect or multiprocessing, nor a thread or a descriptor."""
    code = f"""
import logging, os, signal, socket, sys, threading
had, before = set(sys.modules), set(os.listdir("/proc/self/fd"))  # what logging brings is the interpreter's business
import requiem_systemd as r
with r.track("job"):
    pass
r.create_tracker("job").done()
new = set(sys.modules) - had
print([name for name in {LAZY!r} if name in new], threading.active_count(), set(os.listdir("/proc/self/fd")) - before)
"""
    assert run(code) == "[] 1 set()"


def test_arming_loads_what_it_needs() -> None:
    """What the engine needs is loaded by whoever arms: a fork while its thread imports would leave the child with half a module."""
    code = """
import os, sys, tempfile
import requiem_systemd as r
from requiem_systemd.loop import Loop
Loop.start = lambda self: None
os.environ.update(RUNTIME_DIRECTORY=tempfile.gettempdir(), REQUIEM_WORKER="1:3:", REQUIEM_WORKER_PID=str(os.getpid()))
r.initialize()
print([name for name in ("account", "control", "channel") if f"requiem_systemd.{name}" in sys.modules], flush=True)
os._exit(0)
"""
    assert run(code) == "['account', 'control', 'channel']"


def modules_of_the_package() -> list[str]:
    """Return the names of all modules that can be imported here."""
    return [
        info.name
        for info in pkgutil.walk_packages([str(PACKAGE)], "requiem_systemd.")
        if not info.name.endswith("__main__")
    ]


@pytest.mark.parametrize("name", ["requiem_systemd", *modules_of_the_package()])
def test_all(name: str) -> None:
    """`__all__`, where there is one, is sorted and names what is there."""
    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError as error:  # an adapter, and its framework is not here
        pytest.skip(str(error))
    names = getattr(module, "__all__", None)
    if names is None:
        return
    assert list(names) == sorted(names)
    assert [attribute for attribute in names if not hasattr(module, attribute)] == []


def test_all_is_all_that_is_public() -> None:
    """`from requiem_systemd import *` brings every function and class of the package."""
    public = {name for name, value in vars(requiem_systemd).items() if name[0] != "_" and callable(value)}
    assert public - {"Any", "Final"} == set(requiem_systemd.__all__)


def test_unknown_names() -> None:
    """A name that is not there is an AttributeError."""
    with pytest.raises(AttributeError, match="nonsense"):
        requiem_systemd.nonsense  # noqa: B018 - it is the attribute access that fails


ELSEWHERE = """
import os, select, selectors, signal, socket, sys, threading
for name in {names!r}:
    module, _, attribute = name.rpartition(".")
    if hasattr(sys.modules[module], attribute):
        delattr(sys.modules[module], attribute)
selectors.DefaultSelector = selectors.SelectSelector
def socketpair():  # as Windows makes one
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]
socket.socketpair = socketpair
import requiem_systemd as r
"""


def elsewhere(code: str) -> str:
    """Run a program on a system that has nothing of Linux alone."""
    return run(ELSEWHERE.format(names=list(LINUX_ONLY)) + code)


def test_elsewhere_unarmed() -> None:
    """Without what only Linux has: import, track and a drain work."""
    code = """
with r.track("job"):
    r.begin()
    print(r.draining(), [job.label for job in r.in_flight()])
print(r.wait(10))
"""
    assert elsewhere(code) == "True ['job']\nTrue"


def test_elsewhere_armed() -> None:
    """`initialize` works, and the main thread's end is a begin."""
    code = """
import threading
r.initialize()
r.ready("up")
r.on("dead", lambda status: print("dead", status))
def job():
    with r.track("job"):
        r.wait_begin(10)
        print("job done")
threading.Thread(target=job).start()
"""
    assert elsewhere(code) == "job done\ndead 0"


def test_elsewhere_a_signal() -> None:
    """SIGTERM drains and ends the process."""
    code = """
import signal, time, threading
r.initialize()
def job():
    with r.track("job"):
        signal.raise_signal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else r.wait_begin(10)
        print("job done")
thread = threading.Thread(target=job)
thread.start()
signal.raise_signal(signal.SIGTERM)
thread.join()
time.sleep(10)
print("not reached")
"""
    assert elsewhere(code) == "job done"


def test_elsewhere_things() -> None:
    """Threads and processes are waited for by threads."""
    code = """
import subprocess, threading
r.track(threading.Thread(target=r.wait_begin)).start()
process = r.track(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE), label="process")
print([job.label for job in r.in_flight()][1:])
r.begin()
process.stdin.close()
print(r.wait(10))
process.wait()
"""
    assert elsewhere(code) == "['process']\nTrue"


def test_elsewhere_testing() -> None:
    """FakeManager plays systemd there too, for a service in the same process."""
    code = """
from requiem_systemd.testing import FakeManager
with FakeManager(timeout_stop=10) as manager:
    manager.arm()
    r.ready()
    with r.track("export"):
        manager.stop()
        manager.advance(600)
        print(manager.state, manager.status)
    manager.wait_for("dead")
    print(manager.result)
"""
    shown = elsewhere(code)
    assert shown == 'stop-sigterm Draining 10 min: 1 job, oldest "export" 10 min\nsuccess'
