"""Imports go one way, the core stands alone, and it stands on other systems too."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import requiem_systemd

PACKAGE: Final = Path(requiem_systemd.__file__).parent
# Each imports only from those above it. ARCHITECTURE.md shows the same list.
ORDER: Final = """
jobinfo
errors
latch
protocol
lifecycle
options
journal
guard
loop
exits
gate
notify
doors
wake
listen
ledger
stacks
decorate
tracker
joins
report
hooks
tracking
setting
limits
drain
extender
watchdog
wayout
engine
accepting
service
testing.clock
testing.unit
testing.mailbox
testing.store
testing.child
testing.inside
testing.manager
testing
testing.plugin
""".split()
# What only asks for the process's own service may stand anywhere below it.
LAZY: Final = ("asyncio", "dataclasses", "inspect", "multiprocessing", "typing_extensions", "unittest", "email", "http", "ssl")
LINUX_ONLY: Final = (
    "os.pidfd_open os.register_at_fork os.eventfd os.O_NONBLOCK os.O_CLOEXEC os.memfd_create os.fork os.getuid os.geteuid "
    "signal.pthread_kill signal.pthread_sigmask signal.SIGHUP signal.SIGQUIT signal.SIGUSR1 signal.SIGCHLD signal.sigwait "
    "signal.pidfd_send_signal signal.SIG_BLOCK signal.SIG_SETMASK "
    "select.epoll select.poll select.EPOLLIN select.POLLIN "
    "socket.AF_UNIX socket.AF_VSOCK socket.SO_PASSCRED socket.SCM_CREDENTIALS socket.SCM_RIGHTS socket.TCP_INFO "
    "socket.SO_PEERCRED socket.SOCK_SEQPACKET socket.CMSG_SPACE socket.SO_REUSEPORT "
    "threading._register_atexit"
).split()


def name_of(path: Path) -> str:
    """Return a module's name inside the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, ast.Module]:
    """Return the modules of the package but its `__init__`."""
    found = {name_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    return {name: tree for name, tree in found.items() if name}


def imported(tree: ast.Module, *, top_only: bool) -> set[str]:
    """Return full names of what a module imports."""
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(names: set[str], known: set[str]) -> set[str]:
    """Return which modules of the package these names belong to."""
    found = set()
    for name in names:
        if name.startswith("requiem_systemd."):
            rest = name.removeprefix("requiem_systemd.")
            found.add(rest if rest in known else rest.rpartition(".")[0])
    return found - {""}


def test_direction() -> None:
    """A module imports only from those above it in the order."""
    modules = sources()
    for name in ORDER:
        for other in inside(imported(modules[name], top_only=True), set(modules)):
            assert other in ORDER, f"{name} imports {other}, which is not in the order"
            assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}, which is below it"


def test_the_core_is_in_the_order() -> None:
    """What the bare import loads has its place."""
    code = "import requiem_systemd, sys; print(*[m for m in sys.modules if m.startswith('requiem_systemd.')])"
    loaded = run(code).split()
    assert {name.removeprefix("requiem_systemd.") for name in loaded} <= set(ORDER)


def users_of(attribute: str) -> set[str]:
    """Return the modules that import `attribute` or name it after a dot; `testing` and the command line are no part of a service."""
    module, _, name = attribute.rpartition(".")
    found = set()
    for user, tree in sources().items():
        named = any(
            isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.value, ast.Name) and node.value.id == module
            for node in ast.walk(tree)
        )
        if (module and named) or attribute in imported(tree, top_only=False):
            found.add(user)
    return {user for user in found if not user.startswith(("testing", "cli"))}


def test_only_gate_touches_signal() -> None:
    """Nobody else imports it."""
    assert users_of("signal") <= {"gate"}


def test_only_protocol_reads_the_environment() -> None:
    """`service` passes os.environ on; nobody else knows it."""
    assert users_of("os.environ") | users_of("os.getenv") <= {"service"}


def test_nobody_imports_asyncio_at_the_top() -> None:
    """Nothing that the bare import loads imports what is slow, at its top."""
    modules = sources()
    core = ORDER[: ORDER.index("service") + 1]
    for name in core:
        assert not {top.split(".")[0] for top in imported(modules[name], top_only=True)} & set(LAZY), name


def run(code: str, *options: str) -> str:
    """Run a program by itself, and return what it prints."""
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONWARNINGS": "error"}
    for name in ("NOTIFY_SOCKET", "COVERAGE_PROCESS_START"):
        environ.pop(name, None)
    shown = subprocess.run([sys.executable, *options, "-c", code], env=environ, capture_output=True, text=True, timeout=15, check=False)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.strip()


def test_the_bare_import_is_light() -> None:
    """It loads neither asyncio nor dataclasses, inspect or multiprocessing, nor a thread or a descriptor."""
    code = f"""
import sys, os, threading
before = set(os.listdir("/proc/self/fd"))
import requiem_systemd as r
with r.track("job"):
    pass
r.create_tracker("job").done()
print([name for name in {LAZY!r} if name in sys.modules], threading.active_count(), set(os.listdir("/proc/self/fd")) - before)
"""
    assert run(code) == "[] 1 set()"


def modules_of_the_package() -> list[str]:
    """Return the names of all modules that can be imported here."""
    return [info.name for info in pkgutil.walk_packages([str(PACKAGE)], "requiem_systemd.") if "adapters." not in info.name and "__main__" not in info.name]


@pytest.mark.parametrize("name", ["requiem_systemd", *modules_of_the_package()])
def test_all(name: str) -> None:
    """`__all__`, where there is one, is sorted and names what is there."""
    module: ModuleType = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    if names is None:
        return
    assert list(names) == sorted(names)
    assert [attribute for attribute in names if not hasattr(module, attribute)] == []


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
