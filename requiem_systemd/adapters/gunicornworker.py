"""gunicorn's UvicornWorker (uvicorn_worker): uvicorn in a worker process of gunicorn's arbiter.

Read from gunicorn 27.0 (arbiter.py, workers/base.py) and uvicorn_worker. The arbiter is the service's main process: it says READY=1
itself, before there is any worker; at the stop it closes its listeners, sends its workers SIGTERM, and SIGKILL after
`graceful_timeout`, unless `requiem_systemd.adapters.gunicorn` has it wait. A reload kills only a worker whose heartbeat stands still
for `timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from requiem_systemd import journal

LOG: Final = logging.getLogger("requiem_systemd")


def attach(service: Any, loop: asyncio.AbstractEventLoop, server: Any) -> None:
    """Keep the arbiter from killing a worker that drains; say what cannot be kept from it."""
    worker = getattr(server.config.callback_notify, "__self__", None)
    if worker is None or not hasattr(worker, "cfg"):  # gunicorn is loaded, and this is not one of its workers
        return
    if worker.age == 1 and not hasattr(worker, "requiem_crew"):  # the first one; where gunicorn.hold() was called all is well
        LOG.warning(
            "gunicorn's graceful_timeout=%s: so many seconds after a stop began it kills this worker with its jobs, and SIGINT means abandon "
            "to it; write into gunicorn.conf.py: from requiem_systemd.adapters import gunicorn; gunicorn.hold(globals())",
            worker.cfg.graceful_timeout,
            extra=journal.record("mistake"),
        )
    if worker.timeout:
        _Heartbeat(loop, worker).begin_with(service.engine.begun)


class _Heartbeat:
    """Shows the arbiter that the loop lives while it drains: uvicorn does so only until it is told to stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: Any) -> None:
        self._loop = loop
        self._worker = worker

    def begin_with(self, begun: Any) -> None:
        """Beat from then on, until the loop ends."""

        def begin() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._beat)

        begun.then(begin)

    def _beat(self) -> None:
        self._worker.notify()
        self._loop.call_later(self._worker.timeout / 2, self._beat)
