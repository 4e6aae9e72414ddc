"""A service that is rolled, made of the templates, in the sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from requiem_systemd.cli import generations
from tests.systemd.conftest import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from requiem_systemd.cli.generations import Instance
    from tests.systemd.sandbox import Sandbox

CHECKOUT: Final = Path(__file__).parents[2]
COMMAND: Final = "/run/requiem-tests/bin/requiem-systemd"

#: An http.server that answers with the version of its code; JOBS is replaced.
SERVER: Final = """
import http.server, os, subprocess, threading, time
import requiem_systemd as requiem

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        answer = b"VERSION"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

requiem.initialize()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = requiem.listener("http")
requiem.track_socket(server)
JOBS
requiem.ready("VERSION")
server.serve_forever()
"""
#: Four jobs from the start of a generation: in a thread, a daemon thread, a process, and a task; SECONDS is replaced.
FOUR_JOBS: Final = """
import asyncio

def done(kind):
    os.write(1, f"job done: {kind}\\n".encode())  # at once, with its end: others are done at the same time

def work(kind):
    time.sleep(SECONDS)
    done(kind)

async def task():
    await asyncio.sleep(SECONDS)
    done("task")

async def tasks():
    await requiem.track(asyncio.create_task(task()))
    await asyncio.Event().wait()

requiem.track(threading.Thread(target=work, args=("thread",))).start()
requiem.track(threading.Thread(target=work, args=("daemon thread",), daemon=True)).start()
requiem.track(subprocess.Popen(("sh", "-c", "sleep SECONDS; echo job done: process")))
threading.Thread(target=asyncio.run, args=(tasks(),), daemon=True).start()
"""
#: A worker without a listener, whose job lasts as long as a file says.
HOLDING: Final = """
import pathlib, time
import requiem_systemd as requiem

requiem.initialize()
held = requiem.create_tracker("export")
requiem.ready("VERSION")
requiem.wait_begin()
print("drain begins: VERSION", flush=True)
while not pathlib.Path("FOLDER/release").exists():
    time.sleep(0.02)
print("job done: VERSION", flush=True)
held.done()
requiem.wait()
"""


class Rolled(Unit):
    """An anchor and its generations; `write` says what code the next one runs."""

    def __init__(self, box: Sandbox, stem: str, python: str) -> None:
        """Store; `install` writes."""
        super().__init__(box, f"{stem}.service")
        self.stem = stem
        self.folder = f"/srv/{stem}"
        self._python = python

    # -- files

    def write(self, code: str, version: str = "one") -> None:
        """Put new code on disk."""
        text = textwrap.dedent(code).replace("VERSION", version).replace("FOLDER", self.folder)
        self.box.write(f"{self.folder}/app.py", text)

    def install(
        self,
        *,
        port: int | None = None,
        roll: str = "",
        settings: Mapping[str, object],
    ) -> None:
        """Write the units as the templates have them, and drop-ins with what a test needs otherwise."""
        self.box.write(COMMAND, f'#!/bin/sh\nexec {self._python} -m requiem_systemd "$@"\n', 0o755)
        self.box.run("mkdir", "-p", self.folder)
        for suffix in (".service", "@.service", *([".socket"] if port else [])):
            text = (CHECKOUT / f"units/rolling{suffix}").read_text().replace("/usr/bin/requiem-systemd", COMMAND)
            text = text.replace("requiem-systemd roll %N", f"requiem-systemd roll %N {roll}")
            if not port:
                lines = text.splitlines(keepends=True)
                text = "".join(line for line in lines if not line.startswith("#") and ".socket" not in line)
            self.box.unit(f"{self.stem}{suffix}", text)
        environment = f"Environment=PYTHONPATH={CHECKOUT}\n"
        self.drop_in("", f"[Service]\n{environment}")
        own = {"ExecStart": ["", f"{self._python} -u {self.folder}/app.py"], "TimeoutStopSec": 2, **settings}
        self.drop_in("@", f"[Service]\n{environment}{settings_text(own)}")
        if port:
            self.box.unit(
                f"{self.stem}.socket.d/test.conf", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"
            )
        self.box.daemon_reload()

    def drop_in(self, suffix: str, text: str) -> None:
        """Write a drop-in of the anchor ("") or of the generations ("@")."""
        self.box.unit(f"{self.stem}{suffix}.service.d/test.conf", text)

    def reconfigure(self, **settings: object) -> None:
        """Set more for the generations to come."""
        self.box.unit(f"{self.stem}@.service.d/zz.conf", f"[Service]\n{settings_text(settings)}")
        self.box.daemon_reload()

    # -- what runs

    def instances(self) -> dict[str, Instance]:
        """Return the generations that systemd knows of, by what comes after the @."""
        words = ("show", f"--property={','.join(generations.PROPERTIES)}", "--", f"{self.stem}@*.service")
        return {one.instance: one for one in generations.read(self.box.systemctl(*words).stdout)}

    def states(self) -> dict[str, str]:
        """Return their states, of those that run."""
        return {name: one.active for name, one in self.instances().items() if not one.ended}

    def text(self, instance: str) -> str:
        """Return what a generation wrote and systemd wrote about it."""
        return self.box.journal(f"{self.stem}@{instance}.service")

    def generations_text(self) -> str:
        """Return what all generations wrote."""
        return self.box.journal(f"{self.stem}@*.service")

    def await_states(self, wanted: Mapping[str, str], timeout: float = 15) -> None:
        """Wait until exactly these run, in these states."""
        deadline = time.monotonic() + timeout
        while (found := self.states()) != dict(wanted):
            assert time.monotonic() < deadline, f"{found}, not {wanted}"
            time.sleep(0.02)

    def await_anchor(self, state: str) -> None:
        """Wait until the anchor is in a state."""
        self.box.run(
            "sh", "-c", f"until [ $(systemctl show -P ActiveState {self.stem}) = {state} ]; do sleep 0.02; done"
        )

    def newest(self) -> int:
        """Return the number of the newest generation."""
        return max(int(one.generation) for one in self.instances().values())

    def kill_generation(self, instance: str) -> None:
        """Have a generation's main process end as by a crash."""
        self.box.systemctl("kill", "--signal=KILL", "--kill-who=main", f"{self.stem}@{instance}.service")

    def finish_jobs(self) -> None:
        """Let jobs that wait for it end."""
        self.box.write(f"{self.folder}/release", "")

    # -- commands

    def command(self, verb: str, *, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run systemctl VERB, and return how it went."""
        return self.box.systemctl(verb, self.stem, check=check)

    def by_hand(self, *words: str) -> list[str]:
        """Say how a person runs `requiem-systemd` on it."""
        return [COMMAND, words[0], self.stem, *words[1:]]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `requiem-systemd VERB NAME ...` as a person would."""
        return self.box.run(*self.by_hand(*words), check=False, env={"PYTHONPATH": str(CHECKOUT)})

    @contextlib.contextmanager
    def beside(self, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside the test; it does not outlive the block."""
        environ = {"PYTHONPATH": str(CHECKOUT)}
        process = self.box.popen(*argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def clear(self) -> None:
        """End everything at once, whatever state it is in."""
        every = (f"{self.stem}.socket", f"{self.stem}.service", f"{self.stem}@*.service")
        self.box.systemctl("stop", "--no-block", *every, check=False)
        self.box.systemctl("kill", "--signal=KILL", *every, check=False)
        self.box.systemctl("stop", *every, check=False)
        self.box.systemctl("reset-failed", *every, check=False)


def traces(box: Sandbox, stem: str, folder: str) -> set[str]:
    """Return what bears a service's name: units that systemd knows, processes, folders and files, control groups."""
    units = box.systemctl("list-units", "--all", "--plain", "--no-legend", f"{stem}*").stdout
    found = {f"unit {' '.join(line.split()[:4])}" for line in units.splitlines()}
    processes = box.run("pgrep", "--full", "--list-full", folder, check=False).stdout
    found |= {f"process {line}" for line in processes.splitlines()}
    where = ("/run", "/tmp", "/var/tmp", "/var/lib", "/sys/fs/cgroup")
    paths = box.run("find", *where, "-name", f"*{stem}*", "-prune", "-print", check=False).stdout.splitlines()
    return found | {f"path {path}" for path in paths if "/run/systemd/system/" not in path}


def settings_text(settings: Mapping[str, object]) -> str:
    """Write settings as lines of a unit; one that is a list comes several times."""
    return "".join(
        f"{name}={single}\n"
        for name, value in settings.items()
        for single in (value if isinstance(value, list) else [value])
    )
