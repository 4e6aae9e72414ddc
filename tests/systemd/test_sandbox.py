"""The sandbox itself."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systemd.sandbox import CommandError, Sandbox

SCRIPT = Path(__file__).with_name("sandbox.py")


def test_manager_is_up(sandbox: Sandbox) -> None:
    """Nothing is still starting (which of this machine's units fail in a container is not our concern)."""
    state = sandbox.run("systemctl", "is-system-running", check=False).stdout
    assert state in ("running\n", "degraded\n")


def test_command_fails(sandbox: Sandbox) -> None:
    """The error tells what the command had to say."""
    with pytest.raises(CommandError, match=r"status 3\.\nso it is"):
        sandbox.run("sh", "-c", "echo so it is >&2; exit 3")


def test_command_hangs(sandbox: Sandbox) -> None:
    """A command that takes too long is killed with its children, and does not keep us."""
    with pytest.raises(subprocess.TimeoutExpired):
        sandbox.run("sh", "-c", "sleep 1000 & sleep 1000", timeout=0.2)
    assert "sleep\x001000" not in sandbox.run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout


def test_write_stays_inside(sandbox: Sandbox) -> None:
    """A file is written inside, also where the way to it is an absolute symbolic link."""
    sandbox.run("ln", "--symbolic", "--force", "/tmp", "/root/link")
    sandbox.write("/root/link/requiem-inside", "text\n", 0o600)
    assert sandbox.read("/tmp/requiem-inside") == "text\n"
    assert not Path("/tmp/requiem-inside").exists()


def test_bind_is_live(sandbox: Sandbox, tmp_path: Path) -> None:
    """What is bound is seen as it is now, at its own path, also below /tmp."""
    sandbox.bind(tmp_path)
    (tmp_path / "later").write_text("later")
    assert sandbox.read(tmp_path / "later") == "later"


def test_private_network() -> None:
    """A sandbox can have a network of its own, beside other sandboxes."""
    with Sandbox(private_network=True) as box:
        names = box.run("sh", "-c", "ls /sys/class/net").stdout.split()
    assert names == ["lo"]


def test_script() -> None:
    """Run as a script it hands on streams and status."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--", "sh", "-c", "cat; exit 7"],
        input=b"text",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, b"text")


def test_killed(tmp_path: Path) -> None:
    """However the one that booted it dies, nothing of it is left."""
    command = [sys.executable, str(SCRIPT), "--", "sh", "-c", "echo up; exec sleep 1001"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = [
            int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
        descriptors = [os.pidfd_open(child) for child in children]
        assert list(tmp_path.iterdir()) != []
        process.kill()
    for descriptor in descriptors:
        select.select([descriptor], [], [], 10)
        os.close(descriptor)
    assert list(tmp_path.iterdir()) == []
    assert list(Path("/sys/fs/cgroup").rglob(f"requiem-sandbox-{process.pid}-*")) == []
