"""The server under a WSGI application: gunicorn is found by its signal handlers, others in the thread that runs them when a drain begins."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

from requiem_systemd import journal

LOG: Final = logging.getLogger("requiem_systemd")


HOLD_GUNICORN: Final = "add to gunicorn.conf.py: from requiem_systemd.adapters import gunicorn; gunicorn.hold(globals())"


def attach(service: Any) -> None:
    """Have the drain stop the server in whose worker the application is being loaded, or that runs it when the drain begins."""
    service.engine.begun.then(lambda: _begin(service))
    if "gunicorn.workers.base" in sys.modules:
        from requiem_systemd.adapters import gunicornworkers  # noqa: PLC0415 - only where there is gunicorn

        worker = gunicornworkers.find(service)
        if worker is not None:
            gunicornworkers.adopt(service, worker)


def _begin(service: Any) -> None:
    if "waitress.server" in sys.modules:
        from requiem_systemd.adapters import waitressservers  # noqa: PLC0415 - only where there is waitress

        waitressservers.running(service)
    if "socketserver" in sys.modules:
        from requiem_systemd.adapters import lateservers  # noqa: PLC0415 - same

        lateservers.serving(service)


def first_request(service: Any, environ: dict[str, Any]) -> None:
    """Arm the service where the application was loaded before the fork, and say what its server makes impossible."""
    if not service.armed:  # forked after the application was loaded: the server keeps its signals, the main thread's end is the begin
        service.arm(signals=False)
        if "gunicorn.socket" in environ:
            LOG.warning("under preload_app gunicorn's graceful_timeout cuts jobs off: %s", HOLD_GUNICORN, extra=journal.record("mistake"))
