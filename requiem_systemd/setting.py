"""What the parts of one engine share."""

from __future__ import annotations

import os

from requiem_systemd.doors import Doors
from requiem_systemd.hooks import Hooks
from requiem_systemd.ledger import Ledger
from requiem_systemd.loop import Loop
from requiem_systemd.notify import Notifier
from requiem_systemd.options import Options
from requiem_systemd.protocol import Environment
from requiem_systemd.stacks import redacted


class Setting:
    """The ledger and the loop for good; options, environment and manager as the last arming left them."""

    def __init__(self, ledger: Ledger, hooks: Hooks, doors: Doors, loop: Loop) -> None:
        self.ledger = ledger
        self.hooks = hooks
        self.doors = doors
        self.loop = loop
        self.options: Options = Options()
        self.environment: Environment = Environment()
        self.notifier: Notifier = Notifier(None)

    def now(self) -> float:
        """Return the clock's time."""
        return self.loop.clock.now()

    def shown(self, text: str) -> str:
        """Return what may leave the process of a label or a status (`redact=`)."""
        return redacted(self.options.redact, text)

    def is_main(self) -> bool:
        """Say whether this is the service's main process, as far as the manager tells; else it is a server's worker, or behind a wrapper."""
        return self.environment.exec_pid in (None, os.getpid())

    def is_worker(self) -> bool:
        """Say whether the manager is a primary, which knows by itself what became of us."""
        return self.environment.worker is not None

    def role(self) -> str:
        """Say what this process is to its service: "main", "worker 3" of a cluster, or "process": a server's worker, or behind a wrapper."""
        if self.environment.worker is not None:
            return f"worker {self.environment.worker.id}"
        return "main" if self.is_main() else "process"

    def in_container(self) -> bool:
        """Say whether a container runtime stands between us and a manager: it forwards readiness, but no EXTEND_TIMEOUT_USEC= (docs/containers.md)."""
        socket = self.environment.notify_socket
        return bool(self.environment.container and socket and not socket.endswith("/systemd/notify"))
