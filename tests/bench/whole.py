"""What the library adds to a whole process: its import, an idle service, the begin of a drain, the way out."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.systemd.sandbox import Sandbox

PAIRS = 21
BASE = "import logging, threading, socket, signal"
IDLE = """
import requiem_systemd as requiem, threading, sys
requiem.initialize()
requiem.ready()
requiem.wait()
"""
JOB_SECONDS = 0.5
KINDS = {
    "thread": (
        """
import requiem_systemd as requiem, signal, threading, time
requiem.initialize()
begun = threading.Event()
def job():
    with requiem.track("job"):
        begun.wait(); time.sleep({seconds})
        open("{stamp}", "w").write(str(time.monotonic_ns()))
threading.Thread(target=job).start()
requiem.ready()
requiem.wait_begin(); begun.set(); requiem.wait()
""",
        """
import signal, socket, os, threading, time
begun = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: begun.set())
def job():
    begun.wait(); time.sleep({seconds})
    open("{stamp}", "w").write(str(time.monotonic_ns()))
thread = threading.Thread(target=job); thread.start()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
thread.join()
""",
    ),
    "asyncio": (
        """
import asyncio, time
import requiem_systemd as requiem
from requiem_systemd import aio
async def job():
    await aio.wait_begin(); await asyncio.sleep({seconds})
    open("{stamp}", "w").write(str(time.monotonic_ns()))
async def main():
    aio.spawn(job(), "job"); requiem.ready()
    await aio.wait()
aio.run(main())
""",
        """
import asyncio, os, signal, socket, time
async def main():
    begun = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, begun.set)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    await begun.wait(); await asyncio.sleep({seconds})
    open("{stamp}", "w").write(str(time.monotonic_ns()))
asyncio.run(main())
""",
    ),
}


def _import_seconds(code: str, environ: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
    return time.perf_counter() - start


def import_milliseconds() -> float:
    """Return what `import requiem_systemd`, compiled as an installed package is, adds to the modules that any service has."""
    added = []
    with tempfile.TemporaryDirectory() as compiled:
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(PAIRS):
            base = min(_import_seconds(BASE, environ) for _ in range(5))
            ours = min(_import_seconds(f"{BASE}; import requiem_systemd", environ) for _ in range(5))
            added.append(ours - base)
    return statistics.median(added) * 1000


def imports_asyncio() -> bool:
    """Say whether the bare import loads asyncio."""
    code = "import requiem_systemd, sys; sys.exit('asyncio' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0


def begin_milliseconds() -> float:
    """Return the time from SIGTERM to STOPPING=1 of an idle service."""
    return statistics.median(min(_begin_once() for _ in range(3)) for _ in range(PAIRS)) * 1000


def _begin_once() -> float:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = f"{folder}/notify"
        manager.bind(address)
        manager.settimeout(10)
        with subprocess.Popen([sys.executable, "-c", IDLE], env={**os.environ, "NOTIFY_SOCKET": address}) as service:
            while b"READY=1" not in manager.recv(4096):
                pass
            start = time.perf_counter()
            service.send_signal(signal.SIGTERM)
            while b"STOPPING=1" not in manager.recv(4096):
                pass
            return time.perf_counter() - start


def idle_switches(seconds: float = 10.0) -> int:
    """Return how often threads of an idle service were switched to in `seconds`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = f"{folder}/notify"
        manager.bind(address)
        manager.settimeout(10)
        with subprocess.Popen([sys.executable, "-c", IDLE], env={**os.environ, "NOTIFY_SOCKET": address}) as service:
            while b"READY=1" not in manager.recv(4096):
                pass
            time.sleep(0.5)
            before = _switches(service.pid)
            time.sleep(seconds)
            after = _switches(service.pid)
            service.send_signal(signal.SIGTERM)
        return after - before


def _switches(pid: int) -> int:
    lines = (line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "status").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def exit_milliseconds(kind: str, box: Sandbox, python: str) -> float:
    """Return how much later than a script of the same kind the unit is inactive after its last job's end."""
    ours, control = KINDS[kind]
    root = Path(__file__).resolve().parents[2]

    def best(name: str, code: str) -> float:
        return min(_exit_once(box, python, root, f"{name}-{turn}", code) for turn in range(3))

    return 1000 * statistics.median(
        best(f"ours-{kind}-{pair}", ours) - best(f"control-{kind}-{pair}", control) for pair in range(PAIRS)
    )


def _exit_once(box: Sandbox, python: str, root: Path, name: str, code: str) -> float:
    unit, stamp = f"bench-{name}.service", f"/run/bench-{name}"
    box.write(f"/run/{name}.py", code.format(seconds=JOB_SECONDS, stamp=stamp))
    box.unit(
        unit,
        f"[Service]\nType=notify\nKillMode=mixed\nTimeoutStopSec=30\nEnvironment=PYTHONPATH={root}\nExecStart={python} /run/{name}.py\n",
    )
    box.daemon_reload()
    box.systemctl("start", unit)
    box.systemctl("stop", unit)
    inactive = time.monotonic_ns()  # one clock for the host and the container; systemctl returns when the unit is inactive
    if box.show(unit, "Result")["Result"] != "success":
        raise AssertionError(box.journal(unit))
    return (inactive - int(box.run("cat", stamp).stdout)) / 1e9
