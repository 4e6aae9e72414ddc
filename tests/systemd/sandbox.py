#!/usr/bin/python3
r"""Boot a real systemd in a throw-away container, run commands and units in it.

    with Sandbox() as box:
        box.unit("hello.service", "[Service]\nExecStart=/bin/echo hello\n")
        box.systemctl("start", "hello")
        print(box.journal("hello"))

or `python3 tests/systemd/sandbox.py [--root DIR] -- COMMAND...`. Needs root and systemd-nspawn, and nothing
but the standard library. The container is a copy-on-write clone of this machine (or of the tree under
`root=`): same Python, same checkout, nothing it writes lasts. It boots in about half a second.

Discussion of strategies:

*systemd on the host's own root* (`unshare --pid --fork /sbin/init`) is out: its tmpfiles step empties the
host's /tmp.

*Own cgroup.* Containers started from one shell would share `/payload`, and on a cgroup v1 hierarchy a systemd
in a container never waits for other than main processes: kill semantics would be false. So each gets a cgroup
of its own on the unified hierarchy (on hybrid hosts on the one named systemd too); below a delegated scope
where systemd is PID 1.

*Own PID namespace around systemd-nspawn.* nspawn killed leaves its container running. In a PID namespace
whose init is our launcher, the kernel kills everything, however the launcher dies; and the launcher ends when
a pipe does that only this process holds, however this process dies.

*Own mount namespace*, so that the bind mount of `/`, which nspawn wants in place of `/` itself, is seen by
nobody else.

*Binding after the boot.* What is hidden in the container (/tmp and /run are its own, other file systems are
not part of the clone) is moved in with open_tree(2) and move_mount(2) when it is up. `--bind=` would have it
there during the boot, when systemd-tmpfiles empties /tmp, across mounts.

*Room for notifications.* On a machine PID 1 raises the queue of datagram sockets from 10 to 512 (`bump_unix_max_dgram_qlen` in
systemd's main.c), in a container it does not. Of more than three services that extend at once, three times at a daemon-reload, some
would find no room. So it is done here, before the boot; the value belongs to the network, which is the host's unless it is private.

*READY=1.* `--notify-ready=yes` makes nspawn forward the manager's own READY=1, so nothing polls.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

CHECKOUT: Final = Path(__file__).resolve().parents[2]

#: What a command inside gets, instead of the environment of whoever runs the tests.
ENVIRONMENT: Final = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
    "TERM": "dumb",
}

#: Not handed on to the command of a script run: they would lead it back to a manager outside.
FOREIGN: Final = re.compile(
    r"DBUS_|INVOCATION_ID|JOURNAL_STREAM|LISTEN_|MAINPID|NOTIFY_|SYSTEMD_|WATCHDOG_|XDG_RUNTIME|XDG_SESSION"
)

_PREFIX: Final = "requiem-sandbox-"
_QUEUE: Final = Path("/proc/sys/net/unix/max_dgram_qlen")

# PID 1 around it all: $1 the tree, $2 where nspawn finds it, $3 the cgroup.procs files to enter, then nspawn.
# Its standard input is the pipe that ends with the tests; its own end is the end of everything inside.
_INIT: Final = """
mount --bind "$1" "$2" || exit
exec 3<&0 < /dev/null
{ read -r _ <&3; kill -KILL -1; } &
( for procs in $3; do echo 0 > "$procs" || exit; done; shift 3; exec "$@" 3<&- )
"""

_NSPAWN: Final = (
    "systemd-nspawn",
    "--quiet",
    "--volatile=overlay",
    "--register=no",
    "--keep-unit",
    "--link-journal=no",
    "--notify-ready=yes",
    "--boot",
)
# No timers (apt's and others' would start work of their own), none of the host's fstab.
# The two mounts are refused to a systemd newer than the nspawn that runs it.
_CMDLINE: Final = (
    "systemd.unit=basic.target",
    "systemd.mask=timers.target",
    "systemd.mask=dev-hugepages.mount",
    "systemd.mask=sys-fs-fuse-connections.mount",
    "fstab=no",
)


class SandboxError(Exception):
    """The container cannot be had here, or did not come up; the message says what is missing."""


class CommandError(subprocess.CalledProcessError):
    """A command inside failed; the message ends with what it wrote."""

    def __str__(self) -> str:
        """Add the output to the usual sentence."""
        return f"{super().__str__()}\n{self.output or ''}{self.stderr or ''}"


def missing() -> str:
    """Say why there can be no sandbox on this machine; empty if there can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("systemd-nspawn") is None:
        return "needs systemd-nspawn (Debian: apt install systemd-container)"
    if not _hierarchies():
        return "needs a cgroup v2 hierarchy (mount -t cgroup2 cgroup2 /sys/fs/cgroup)"
    return ""


def systemd_version(root: str | os.PathLike[str] = "/") -> int:
    """Return the version of the systemd in a tree, such as 252, without a boot; needs root."""
    said = subprocess.run(("chroot", root, "systemctl", "--version"), check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return int(said.stdout.split()[1])


class Sandbox:
    """A booted container; everything in it, and every trace of it, ends with the `with` block.

    Args:
        root: the tree to clone (`/`: this machine).
        bind: files and folders to share live, at the same path. Others are seen as at boot, and what is
            written there does not last. The checkout and this Python are seen to without asking.
        private_network: a network of its own with only `lo`, instead of the host's.
        boot_timeout: seconds until it counts as failed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        bind: Iterable[str | os.PathLike[str]] = (),
        private_network: bool = False,
        boot_timeout: float = 60.0,
    ) -> None:
        """Store; `with` boots."""
        self.root = Path(root).resolve()
        self.leader = 0
        self._binds = [Path(path).resolve() for path in bind]
        self._private_network = private_network
        self._boot_timeout = boot_timeout
        self._launcher: subprocess.Popen[str] | None = None
        self._work = Path()

    def __enter__(self) -> Sandbox:  # noqa: PYI034 -- typing.Self would have to be imported at run time on 3.11
        """Boot, and come back when basic.target has been reached."""
        reason = missing()
        if reason:
            raise SandboxError(reason)
        _sweep()
        # Not mkdtemp: it is a machine's name too, which must not end in "_".
        self._work = Path(tempfile.gettempdir(), f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}")
        self._work.mkdir(mode=0o700)
        try:
            self._boot()
            self._share()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the container, whatever runs in it."""
        self.close()

    def close(self) -> None:
        """End the container at once; harmless when there is none."""
        launcher, self._launcher, self.leader = self._launcher, None, 0
        if launcher is not None:
            try:
                launcher.communicate("\n", timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
        if self._work.name:
            _clear(self._work)

    # -- commands

    def run(
        self,
        *argv: str | os.PathLike[str],
        check: bool = True,
        timeout: float | None = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root to its end, and capture what it writes."""
        with self.popen(
            *argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout)
            except BaseException:
                # The whole group: a nsenter killed alone leaves its child, which holds the pipes open.
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if check and process.returncode:
            raise CommandError(process.returncode, [str(word) for word in argv], stdout, stderr)
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def popen(
        self,
        *argv: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
        **options: Any,  # whatever Popen takes
    ) -> subprocess.Popen[str]:
        """Start a command inside; signals reach it by its process group: `os.killpg(process.pid, ...)`."""
        options.setdefault("start_new_session", True)
        return subprocess.Popen(
            self.command(*argv, env={**ENVIRONMENT, **(env or {})}, cwd=cwd), text=True, **options
        )

    def command(
        self, *argv: str | os.PathLike[str], env: Mapping[str, str], cwd: str | os.PathLike[str] = "/"
    ) -> list[str]:
        """Say what to execute outside to have `argv` run inside."""
        if not self.leader:
            message = "the sandbox is not up: use it as a context manager"
            raise SandboxError(message)
        # --root: where we are in a chroot ourselves, the root of the mount namespace is still the machine's.
        words = ["nsenter", f"--target={self.leader}", "--all", "--root", "--"]
        words += ["env", "--ignore-environment", f"--chdir={cwd}"]
        words += [f"{name}={value}" for name, value in env.items()]
        return [*words, *map(str, argv)]

    # -- files

    def write(self, path: str | os.PathLike[str], text: str, mode: int = 0o644) -> None:
        """Write a file inside, with the folders above it."""
        # Not through /proc/PID/root: an absolute symbolic link there leads to the host's file.
        script = 'umask 022; mkdir -p "${1%/*}/" && cat > "$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "write", path, f"{mode:o}", stdin=text)

    def read(self, path: str | os.PathLike[str]) -> str:
        """Return the text of a file inside."""
        return self.run("cat", path).stdout

    def bind(self, path: str | os.PathLike[str], at: str | os.PathLike[str] | None = None) -> None:
        """Share a file or folder of the host, live, at the same path or another."""
        where = str(Path(path).resolve())
        # A process of its own, because setns(2) wants one with a single thread.
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__, "--move-mount", str(self.leader), where, at or where],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            message = f"cannot bind {where}: {done.stderr.strip()}"
            raise SandboxError(message)

    # -- systemd

    def unit(self, name: str, text: str) -> None:
        """Write /run/systemd/system/NAME; a unit that was loaded before also needs `daemon_reload()`."""
        self.write(f"/run/systemd/system/{name}", text)

    def daemon_reload(self) -> None:
        """Have the manager read the units anew."""
        self.systemctl("daemon-reload")

    def systemctl(
        self, *args: str, check: bool = True, timeout: float | None = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run systemctl inside."""
        return self.run("systemctl", *args, check=check, timeout=timeout)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return the named properties of a unit, or all."""
        text = self.systemctl("show", *(f"--property={name}" for name in properties), "--", unit).stdout
        return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}

    def journal(self, unit: str) -> str:
        """Return what the unit, and the manager about it, wrote to the journal."""
        self.run("journalctl", "--sync")
        return self.run(
            *(
                "journalctl",
                "--boot",
                "--no-pager",
                "--no-hostname",
                "--quiet",
                "--output=short-monotonic",
                f"--unit={unit}",
            )
        ).stdout

    @functools.cached_property
    def systemd_version(self) -> int:
        """The version of systemd inside, such as 252."""
        return int(self.run("systemctl", "--version").stdout.split()[1])

    # -- coming up

    def _boot(self) -> None:
        """Start the launcher; wait for nspawn to forward READY=1."""
        (self._work / "root").mkdir()
        _make_room()
        deadline = time.monotonic() + self._boot_timeout
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
            (self._work / "console.log").open("w+", errors="replace") as console,
        ):
            notify.bind(str(self._work / "notify"))
            notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._launcher = subprocess.Popen(
                [
                    *_delegated(),
                    sys.executable,
                    "-I",
                    "-S",
                    __file__,
                    "--launch",
                    self._work,
                    self.root,
                    *self._options(),
                ],
                env={
                    **ENVIRONMENT,
                    "NOTIFY_SOCKET": str(self._work / "notify"),
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                },
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                start_new_session=True,
                text=True,
            )
            why = self._wait_ready(notify, deadline)
            if why:
                console.seek(0)
                message = f"the container of {self.root} {why}:\n{''.join(console.readlines()[-40:])}"
                raise SandboxError(message)

    def _options(self) -> list[str]:
        return ["--private-network"] if self._private_network else []

    def _wait_ready(self, notify: socket.socket, deadline: float) -> str:
        """Wait until the container is up, and learn the PID of its PID 1; else return what became of it."""
        assert self._launcher is not None
        pidfd = os.pidfd_open(self._launcher.pid)
        try:
            poll = select.poll()
            poll.register(notify, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            while True:
                ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
                if notify.fileno() not in ready:
                    return "ended" if ready else "was not up in time"
                sender, text = _receive(notify)
                self.leader = self.leader or _child_of(sender)
                if "READY=1" in text.splitlines():
                    return ""
        finally:
            os.close(pidfd)

    def _share(self) -> None:
        """Bind what was asked for, and of the checkout and this Python what the clone lacks."""
        for path in self._binds:
            self.bind(path)
        needed = {CHECKOUT}
        if self.root == Path("/"):
            needed |= {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
        closed = set()
        for path in needed:
            bound = not Path(f"/proc/{self.leader}/root{path}").exists()
            if bound:
                self.bind(path)
            # Units with DynamicUser= must get there too, past a /root that is closed to others. What is bound
            # is the host's: only what lies above it is changed.
            for folder in path.parents if bound else (path, *path.parents):
                if not Path(f"/proc/{self.leader}/root{folder}").stat().st_mode & 0o001:
                    closed.add(folder)
        if closed:
            self.run("chmod", "o+x", *closed)


# -- the launcher: a process of its own outside the namespaces, to clear up when all inside is gone


def _launch(work: Path, root: str, *options: str) -> None:
    """Run nspawn to its end, in a cgroup and in namespaces of its own; then leave nothing behind."""
    cgroups = [parent / work.name for parent in _hierarchies()]
    tree = str(work / "root")
    try:
        for cgroup in cgroups:
            cgroup.mkdir()
        subprocess.run(
            [
                *(
                    "unshare",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child=KILL",
                    "--mount-proc",
                    "sh",
                    "-c",
                    _INIT,
                    "sh",
                ),
                *(root, tree, " ".join(str(cgroup / "cgroup.procs") for cgroup in cgroups)),
                *(*_NSPAWN, f"--directory={tree}", f"--machine={work.name}", *options, *_CMDLINE),
            ],
            check=False,
        )
    finally:
        for cgroup in cgroups:
            _remove_cgroup(cgroup)
        _clear(work)


def _make_room() -> None:
    """Let sockets that are made from now on hold as many datagrams as on a machine that systemd has booted."""
    with contextlib.suppress(OSError):  # a container of ours already, with a /proc/sys that cannot be written
        if int(_QUEUE.read_text()) < 512:
            _QUEUE.write_text("512")


def _delegated() -> list[str]:
    """Say what to put before a command to have a cgroup from the systemd that is PID 1 here, if it is."""
    if not Path("/run/systemd/system").is_dir():
        return []
    return ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"]


def _hierarchies() -> list[Path]:
    """Return our cgroup on the unified hierarchy and, on hybrid hosts, on the one named systemd."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            controllers = ""
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            controllers = "name=systemd"
        else:
            continue
        # A process that was entered from outside (nsenter) has a path with "..": then the top will do.
        inside = Path(where + own.get(controllers, "/"))
        found.append((controllers, Path(where) if ".." in inside.parts else inside))
    return [path for _, path in sorted(found)] if any(not controllers for controllers, _ in found) else []


def _remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup and those below it, as far as they are empty."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _clear(work: Path) -> None:
    """Remove a work folder; never recursively: were the tree mounted here, that would be its end."""
    for name in ("notify", "console.log", ".#root.lck"):
        (work / name).unlink(missing_ok=True)
    for folder in (work / "root", work):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sweep() -> None:
    """Remove what sandboxes left whose launcher was killed."""
    for parent in (Path(tempfile.gettempdir()), *_hierarchies()):
        for path in parent.glob(f"{_PREFIX}*"):
            if not Path("/proc", path.name.removeprefix(_PREFIX).partition("-")[0]).exists():
                (_clear if parent == Path(tempfile.gettempdir()) else _remove_cgroup)(path)


# -- small change


def _receive(notify: socket.socket) -> tuple[int, str]:
    """Return the sender's PID and the text of one notification."""
    data, ancillary, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
    pids = [struct.unpack("3i", body)[0] for _, kind, body in ancillary if kind == socket.SCM_CREDENTIALS]
    return pids[0], data.decode(errors="replace")


def _child_of(parent: int) -> int:
    """Return the child of a nspawn that is PID 1 in its own PID namespace; 0 if there is none."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # a process that has just ended
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if int(fields["PPid"]) == parent and fields["NSpid"].split()[-1] == "1":
                return int(fields["Pid"])
    return 0


def _move_mount(leader: int, source: str, target: str) -> None:
    """Make a path of this mount namespace appear in a container's."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), source)
        return result

    open_tree, move_mount, at_fdcwd = 428, 429, -100  # the same on every architecture
    tree = call(
        libc.syscall(open_tree, at_fdcwd, os.fsencode(source), 0x8001)
    )  # OPEN_TREE_CLONE | AT_RECURSIVE
    is_folder = Path(source).is_dir()
    namespace, root = (os.open(f"/proc/{leader}/{name}", os.O_RDONLY) for name in ("ns/mnt", "root"))
    call(libc.setns(namespace, 0))
    os.fchdir(root)
    os.chroot(".")
    path = Path(target)
    (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
    if not is_folder:
        path.touch()
    call(libc.syscall(move_mount, tree, b"", at_fdcwd, os.fsencode(target), 0x4))  # MOVE_MOUNT_F_EMPTY_PATH


def main(argv: list[str]) -> int:
    """Boot, run one command inside with our standard streams, and return its status."""
    parser = argparse.ArgumentParser(
        description="Run a command in a throw-away container with a systemd of its own."
    )
    parser.add_argument(
        "--root", default="/", metavar="DIR", help="the tree to clone (default: this machine)"
    )
    parser.add_argument("--bind", action="append", default=[], metavar="PATH", help="share PATH live")
    parser.add_argument("--private-network", action="store_true", help="no network but lo")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(argv)
    env = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    try:
        with Sandbox(options.root, bind=options.bind, private_network=options.private_network) as box:
            here = Path.cwd()
            cwd = here if Path(f"/proc/{box.leader}/root{here}").is_dir() else "/"
            with subprocess.Popen(box.command(*options.command, env=env, cwd=cwd)) as process:
                # Ctrl-C is for the command: a handler, not SIG_IGN, which it would inherit.
                signal.signal(signal.SIGINT, lambda *_: None)
                status = process.wait()
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 125
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--launch", work, *rest]:
            _launch(Path(work), *rest)
        case ["--move-mount", leader, source, target]:
            _move_mount(int(leader), source, target)
        case rest:
            sys.exit(main(rest))
