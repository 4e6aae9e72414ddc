"""gunicorn: its arbiter holds the stop while workers live, and each worker lives while jobs and requests do.

Two lines of `gunicorn.conf.py`, below the hooks of your own:

    from requiem_systemd.adapters import gunicorn

    gunicorn.hold(globals())

The arbiter is the service's main process: it alone speaks to the manager (NotifyAccess=main is enough), and each worker is a tracker in
its ledger. Signals stay gunicorn's own there, but SIGINT drains, and only a second one abandons, as SIGQUIT does at once.
"""

from __future__ import annotations

import contextlib
import pkgutil
from typing import Any

from requiem_systemd.adapters import gunicornworkers
from requiem_systemd.adapters.gunicorncrews import Crew
from requiem_systemd.errors import RequiemError
from requiem_systemd.slot import own


def hold(settings: dict[str, Any]) -> None:
    """Have gunicorn hold its stop, reload and restart for jobs; `settings` are the globals() of a gunicorn.conf.py.

    Hooks that stand in the file before this call are called after ours.
    """
    theirs = {name: settings.get(name) for name in ("on_starting", "when_ready", "pre_fork", "post_worker_init")}
    service = own()

    def on_starting(server: Any) -> None:
        if not hasattr(server, "wait_for_signals"):  # else it would break in the middle of the stop
            message = "this gunicorn cannot be held: its arbiter is older than that of gunicorn 25; install a newer one, or leave gunicorn.hold(globals()) out"
            raise RequiemError(message)
        with contextlib.suppress(RequiemError):  # armed by a preloaded application, with options of its own
            service.arm(signals=False)
        service.release_signals()
        service.lend_listeners()
        _call(theirs["on_starting"], server)

    def when_ready(server: Any) -> None:
        server.requiem = Crew(service, server)
        server.requiem.take()
        _call(theirs["when_ready"], server)

    def pre_fork(server: Any, worker: Any) -> None:
        worker.requiem_crew = server.requiem
        _call(theirs["pre_fork"], server, worker)

    def post_worker_init(worker: Any) -> None:
        gunicornworkers.adopt(service, worker).up()
        _call(theirs["post_worker_init"], worker)

    settings.update(on_starting=on_starting, when_ready=when_ready, pre_fork=pre_fork, post_worker_init=post_worker_init)


def _call(hook: Any, *args: Any) -> None:
    if isinstance(hook, str):  # gunicorn takes "module.function" too
        hook = pkgutil.resolve_name(hook)
    if hook is not None:
        hook(*args)
