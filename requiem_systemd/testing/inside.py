"""A service in this process as a manager's main process: signals become calls, its end is that of its drain."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from requiem_systemd.latch import Latch
from requiem_systemd.notify import Notifier
from requiem_systemd.testing.mailbox import Letter, Mailbox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from requiem_systemd.service import Service
    from requiem_systemd.testing.clock import FakeClock

# Real seconds in which a handler or a health check ends; one that takes longer is left alone.
PATIENCE: Final = 0.5


class Inside:
    """Arms a service by other means than the process's own, and gives everything back at `close`."""

    def __init__(
        self, service: Service, clock: FakeClock, environ: Mapping[str, str], options: Mapping[str, object]
    ) -> None:
        self.pid = os.getpid()
        self._service = service
        self._hung: Latch | None = None
        self._stuck: set[threading.Thread] = set()
        service.arm_with(environ=dict(environ), clock=clock, **{"signals": False, "exit": False, **options})

    def connect(self, mailbox: Mailbox) -> None:
        """Where the system has no AF_UNIX: deliver by hand."""
        if mailbox.socket is None:
            self._service.engine.setting.notifier = _ByHand(mailbox)

    def kill(self, name: str) -> bool:
        """Do what a signal does; say whether the process has died of it."""
        engine = self._service.engine
        if name == "SIGTERM":
            self._service.begin(name)
        elif name == "SIGHUP":
            engine.loop.call(lambda: engine.reload(_ignore))
        return name in ("SIGKILL", "SIGABRT")

    def ended(self) -> int | None:
        """Return the exit status; None: it runs."""
        engine = self._service.engine
        return engine.wayout.status if engine.stopped else None

    def stopped(self) -> int | None:
        """Return a descriptor that is readable once it has ended; None: it has."""
        engine = self._service.engine
        return None if engine.stopped else engine.stopped.fileno()

    def sync(self) -> None:
        """Wait until the engine has begun to turn."""
        self._service.engine.loop.call(_nothing)

    def quiesce(self) -> bool:
        """Wait for handlers and health checks that run; say whether there may have been any."""
        checked = self._service.engine.setting.options.health is not None
        for thread in threading.enumerate() if checked else ():
            if thread.name == "requiem-health" and thread not in self._stuck:
                thread.join(PATIENCE)
                self._stuck |= {thread} if thread.is_alive() else set()
        return self._handled() or checked

    def _handled(self) -> bool:
        hooks = self._service.hooks
        if not hooks.running or (self._hung is not None and not self._hung):
            return False
        barrier = Latch()
        hooks.submit(barrier.set)
        self._hung = None if barrier.wait(PATIENCE) else barrier
        return True

    def close(self) -> None:
        """Give everything back."""
        self._service.close()


class _ByHand(Notifier):
    """Puts datagrams into a mailbox of the same process."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(mailbox.address)
        self._mailbox = mailbox

    def _send(self, text: str, fds: Sequence[int], patience: float) -> None:
        del patience
        self._mailbox.put(Letter(text.encode(), os.getpid(), tuple(os.dup(fd) for fd in fds)))


def _ignore(reason: str) -> None:
    """SIGHUP asks for no answer."""
    del reason


def _nothing() -> None:
    """Be called."""
