"""Feeds the manager's watchdog, as long as the service is healthy."""

from __future__ import annotations

import logging
import threading
from typing import Final

from requiem_systemd.protocol import clean
from requiem_systemd.setting import Setting

LOG: Final = logging.getLogger("requiem_systemd")


class Watchdog:
    """Pings at half the interval: by the health check while running, in any case once the drain has begun.

    A ping after the stop has begun arms the manager's watchdog again (252 to 262), so once begun it never ends.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._checking = False

    def begin(self) -> None:
        """Begin, where the manager asks for it."""
        if self._setting.environment.watchdog is not None and self._setting.notifier:
            self._tick()

    def _tick(self) -> None:
        setting = self._setting
        setting.loop.alarm(self._tick, setting.now() + (setting.environment.watchdog or 0.0) / 2)
        if setting.options.health is None or setting.ledger.began is not None:
            setting.notifier.tell(WATCHDOG=1)
        elif not self._checking:  # one that hangs feeds nothing: that is what a watchdog is for
            self._checking = True
            # A daemon: a check that hangs must not keep the interpreter.
            threading.Thread(target=self._check, name="requiem-health", daemon=True).start()

    def _check(self) -> None:
        healthy, detail = False, "it returned something false"
        try:
            healthy = self._setting.options.health is None or bool(self._setting.options.health())
        except Exception as error:  # noqa: BLE001 - user code: whatever it raises means "not healthy"
            detail = f"{type(error).__name__}: {error}"
        self._setting.loop.post(lambda: self._checked(detail, healthy=healthy))

    def _checked(self, detail: str, *, healthy: bool) -> None:
        self._checking = False
        if healthy:
            self._setting.notifier.tell(WATCHDOG=1)
        else:
            LOG.warning("the health check failed, the watchdog is not fed: %s", clean(detail))
