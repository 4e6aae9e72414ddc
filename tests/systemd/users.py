"""A user of the sandbox's, without rights, and that user's own systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

    from tests.systemd.sandbox import Sandbox

# Without useradd, which not every root of the tests has.
_ADD: Final = 'echo "$1:x:$2:$2::$3:/bin/sh" >> /etc/passwd; echo "$1:x:$2:" >> /etc/group; mkdir "$3"; chown "$2:$2" "$3"'
_REMOVE: Final = 'sed -i "/^$1:/d" /etc/passwd /etc/group; rm -r "$2"'
# pam_systemd, which not every root of the tests has, would say where the manager's own folder is.
_DROP_IN: Final = "[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n"


class User:
    """A user whose manager runs as long as the `with` block, and who may read the journal, as `requiem-systemd history` asks for."""

    def __init__(self, box: Sandbox, name: str, number: int) -> None:
        """Store; entering makes the user."""
        self.box = box
        self.name = name
        self.number = number
        self.home: str = f"/home/{name}"

    def __enter__(self) -> User:  # noqa: PYI034 -- see Sandbox
        """Return it, with its manager up."""
        self.box.run("sh", "-c", _ADD, "add", self.name, str(self.number), self.home)
        self.box.unit(f"user@{self.number}.service.d/test.conf", _DROP_IN)
        self.box.daemon_reload()
        self.box.systemctl("start", f"user@{self.number}.service")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End all of it."""
        self.box.systemctl("stop", f"user@{self.number}.service", f"user-runtime-dir@{self.number}.service", check=False)
        self.box.run("sh", "-c", _REMOVE, "remove", self.name, self.home)

    def run(self, *argv: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        whom = (f"--reuid={self.number}", f"--regid={self.number}", "--groups=systemd-journal")
        env = {"XDG_RUNTIME_DIR": f"/run/user/{self.number}", "HOME": self.home, **environ}
        return self.box.run("setpriv", *whom, "--", *argv, check=check, env=env)

    def systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Ask this user's manager."""
        return self.run("systemctl", "--user", *words, check=check)

    def write(self, path: str, text: str) -> None:
        """Write a file below the home, as this user's."""
        self.box.write(f"{self.home}/{path}", text)
        self.box.run("chown", "-R", f"{self.number}:{self.number}", self.home)
