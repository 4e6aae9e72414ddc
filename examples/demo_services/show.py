"""The demonstration: `examples/demo` is the way in. Standard library only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(CHECKOUT)]
from load import Load, request  # noqa: E402 -- found thanks to the line above
from say import say, title, working  # noqa: E402
from stand_in import stop_held  # noqa: E402

from tests import supplies  # noqa: E402
from tests.systemd.sandbox import Sandbox, SandboxError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("python3-sdnotify", "systemd-container")
JOBS = 4
WITHOUT, WITH = HERE / "without.py", HERE / "with_requiem.py"
SERVICE = "A small web service: each POST begins a background job of 6 s. Its TimeoutStopSec=2: SIGKILL comes 2 s after SIGTERM."


class Stopped(NamedTuple):
    """What became of a service that was stopped with jobs in flight."""

    jobs: int
    seconds: float
    result: str


class Restarted(NamedTuple):
    """What became of the requests, and the jobs, of a service that was restarted."""

    jobs: int
    seconds: float
    answered: int
    failed: int
    longest: float


# -- on a real systemd


class Demo:
    """The services in a booted container."""

    def __init__(self, box: Sandbox) -> None:
        """Store."""
        self.box = box
        self.port = free_port()

    def write(self, unit: str, script: Path, *lines: str) -> None:
        """Write a service."""
        settings = (
            "Type=notify",
            "KillMode=mixed",
            "TimeoutStopSec=2",
            f"ExecStart=/usr/bin/python3 {script}",
            *lines,
        )
        environment = f"Environment=PYTHONPATH={CHECKOUT} PORT={self.port} PYTHONPYCACHEPREFIX=/run/pycache"
        self.box.unit(
            unit, "\n".join(("[Unit]", "StartLimitIntervalSec=0", "[Service]", environment, *settings, ""))
        )

    def hold(self, *units: str) -> None:
        """Refer to units, so that systemd does not forget how they ended."""
        self.box.unit("demo.target", f"[Unit]\nAfter={' '.join(units)}\n")
        self.box.systemctl("start", "demo.target")

    def begin_jobs(self) -> None:
        """Begin jobs, as clients do."""
        for number in range(JOBS):
            if request(self.port, "POST", f"/{number + 1}") != "answered":
                message = "the service does not answer"
                raise SandboxError(message)
        say(f"{JOBS} jobs of 6 s are in flight, TimeoutStopSec=2")

    def jobs_done(self, unit: str) -> int:
        """Count the jobs that have ended well."""
        return sum(line.endswith(": done") for line in self.box.journal(unit).splitlines())

    def systemctl(self, *words: str) -> None:
        """Run systemctl, and show it."""
        say(f"# systemctl {' '.join(words)}")
        self.box.systemctl(*words)

    def status(self, unit: str, begin: float) -> None:
        """Show what an operator sees of a stop."""
        lines = self.box.systemctl("status", "--lines=0", unit, check=False).stdout.splitlines()
        shown = [line.strip().partition(" since ")[0] for line in lines if line.lstrip().startswith(("Active:", "Status:"))]
        say(f"{time.monotonic() - begin:3.0f} s  {'   '.join(shown)}")

    def stop(self, unit: str, *, reload_after: float | None = None) -> Stopped:
        """Stop a service, show it second by second, and reload the manager in the middle."""
        begin = time.monotonic()
        say(f"# systemctl stop {unit}")
        with self.box.popen("systemctl", "stop", unit) as process:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                    break
                self.status(unit, begin)
                if reload_after is not None and time.monotonic() - begin > reload_after:
                    reload_after = None
                    self.systemctl("daemon-reload")
        seconds = time.monotonic() - begin
        stopped = Stopped(self.jobs_done(unit), seconds, self.box.show(unit, "Result")["Result"])
        say(f"{seconds:3.0f} s  stopped: {stopped.jobs} of {JOBS} jobs done, result: {stopped.result}", good(stopped.jobs == JOBS))
        return stopped

    def restart(self, unit: str) -> Restarted:
        """Restart a service while clients do not let up."""
        with Load(self.port) as load:
            time.sleep(1)
            self.begin_jobs()
            begin = time.monotonic()
            say(f"# systemctl restart {unit}        (under load)")
            with self.box.popen("systemctl", "restart", unit) as process:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1.0)
                        break
                    say(
                        f"{time.monotonic() - begin:3.0f} s  {load.answered} requests answered, {load.failed} failed"
                    )
            seconds = time.monotonic() - begin
            time.sleep(1)
        why = ", ".join(f"{count} {kind}" for kind, count in load.outcomes.items() if kind != "answered")
        say(
            f"{seconds:3.0f} s  restarted: {load.answered} requests answered, {load.failed} failed"
            + (f": {why}" if why else ""),
            good(not load.failed),
        )
        return Restarted(self.jobs_done(unit), seconds, load.answered, load.failed, load.longest)


def on_systemd(box: Sandbox) -> int:
    """Show all."""
    demo = Demo(box)
    demo.write("without.service", WITHOUT)
    demo.write("with.service", WITH)
    demo.write("web.service", WITH, "Environment=REQUIEM_LAME_DUCK=jobs")
    box.unit("web.socket", f"[Socket]\nListenStream=127.0.0.1:{demo.port}\nFileDescriptorName=http\n")
    demo.hold("without.service", "with.service", "web.service")

    say(SERVICE)
    title("1  Without the library: systemctl stop")
    box.systemctl("start", "without.service")
    with Load(demo.port):
        demo.begin_jobs()
        stop_without = demo.stop("without.service")
    title("2  Without the library: systemctl restart under load")
    box.systemctl("reset-failed", "without.service", check=False)
    box.systemctl("start", "without.service")
    restart_without = demo.restart("without.service")
    box.systemctl("stop", "without.service")

    title("3  With it: systemctl stop, and a daemon-reload in the middle")
    box.systemctl("start", "with.service")
    with Load(demo.port):
        demo.begin_jobs()
        stop_with = demo.stop("with.service", reload_after=3.0)
    title("4  With it, and a .socket unit: systemctl restart under load")
    box.systemctl("start", "web.socket", "web.service")
    restart_with = demo.restart("web.service")

    table(stop_without, stop_with, restart_without, restart_with)
    return verdict(
        {
            "without the library the jobs died": stop_without.jobs == 0 and stop_without.result == "timeout",
            "the stop was held until the jobs were done": stop_with.jobs == JOBS
            and stop_with.result == "success",
            "it was held past TimeoutStopSec=2 and past the daemon-reload": stop_with.seconds > 5,
            "the restart cost no request": restart_with.failed == 0 and restart_with.answered > 100,
            "the restart cost no job": restart_with.jobs == JOBS,
        }
    )


def table(
    stop_without: Stopped, stop_with: Stopped, restart_without: Restarted, restart_with: Restarted
) -> None:
    """Sum up."""
    rows = [
        ("", "without", "with"),
        ("stop: jobs done", f"{stop_without.jobs} of {JOBS}", f"{stop_with.jobs} of {JOBS}"),
        ("stop: seconds", f"{stop_without.seconds:.1f}", f"{stop_with.seconds:.1f}"),
        ("stop: result", stop_without.result, stop_with.result),
        ("restart: jobs done", f"{restart_without.jobs} of {JOBS}", f"{restart_with.jobs} of {JOBS}"),
        ("restart: seconds", f"{restart_without.seconds:.1f}", f"{restart_with.seconds:.1f}"),
        ("restart: requests failed", of_all(restart_without), of_all(restart_with)),
        ("restart: longest answer", f"{restart_without.longest:.2f} s", f"{restart_with.longest:.2f} s"),
    ]
    print()
    for name, without, with_it in rows:
        say(f"{name:<30}{without:>12}{with_it:>12}")


def good(is_good: bool) -> str:  # noqa: FBT001 - it is all there is to say
    """Return the colour of what went well, or did not."""
    return "32" if is_good else "31"


def of_all(restarted: Restarted) -> str:
    """Say how many requests failed, of how many."""
    return f"{restarted.failed} of {restarted.answered + restarted.failed}"


def verdict(claims: dict[str, bool]) -> int:
    """Say what was claimed and did not happen."""
    print()
    for claim, happened in claims.items():
        say(f"{'ok' if happened else 'NOT SO'}: {claim}", good(happened))
    return int(not all(claims.values()))


# -- without root


def without_systemd(reason: str) -> int:
    """Show what can be shown: a stand-in for systemd that kills at 2 s, unless it is asked for time."""
    title(f"No real systemd here ({reason}).")
    say(
        "Left out: systemctl stop, status, daemon-reload and restart. Shown: a stand-in that kills at 2 s unless it is asked for time."
    )
    say(SERVICE)
    environment = {"PYTHONPATH": os.pathsep.join((str(CHECKOUT), *library_path()))}
    done = {}
    for number, name, script in ((1, "without", WITHOUT), (2, "with", WITH)):
        title(f"{number}  {name.capitalize()} the library")
        done[name], seconds = stop_held(script, free_port(), JOBS, environment)
        say(f"stopped after {seconds:.1f} s: {done[name]} of {JOBS} jobs done")
    return verdict(
        {
            "without the library the jobs died": done["without"] == 0,
            "with it they ended": done["with"] == JOBS,
        }
    )


def library_path() -> Iterator[str]:
    """Yield where sdnotify is, fetched if need be."""
    if importlib.util.find_spec("sdnotify") is not None:
        return
    target = supplies.cache() / "demo"
    if not (target / "sdnotify").is_dir():
        try:
            with working(f"installing sdnotify in {target}"):
                supplies.quietly(
                    sys.executable, "-m", "pip", "install", "--quiet", f"--target={target}", "sdnotify"
                )
        except supplies.NotReadyError as error:
            message = f"needs sdnotify (apt install python3-sdnotify), and cannot fetch it itself:\n{error}"
            raise supplies.NotReadyError(message) from None
    yield str(target)


# -- the way in


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Show what this machine allows; 0 if all that is claimed has happened."""
    supplies.say = say  # its messages are ours here
    if os.geteuid() != 0:
        return without_systemd("it takes root to boot one: sudo examples/demo")
    with working("installing"):
        supplies.install(PACKAGES)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        with working("booting a throw-away copy of this machine"):
            box = stack.enter_context(Sandbox())
        say(f"systemd {box.systemd_version} is up in a throw-away copy of this machine")
        status = on_systemd(box)
    say(f"{time.monotonic() - begin:.0f} s, not counting what was installed")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SandboxError, supplies.NotReadyError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing is left running", file=sys.stderr)
        sys.exit(130)
