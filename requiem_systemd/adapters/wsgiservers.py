"""The server under a WSGI application, where it can be found: gunicorn, by its signal handlers."""

from __future__ import annotations

import sys
from typing import Any


def attach(service: Any) -> None:
    """Have the drain stop the server in whose worker the application is being loaded."""
    if "gunicorn.workers.base" in sys.modules:
        from requiem_systemd.adapters import gunicornworkers  # noqa: PLC0415 - only where there is gunicorn

        worker = gunicornworkers.find(service)
        if worker is not None:
            gunicornworkers.adopt(service, worker)
