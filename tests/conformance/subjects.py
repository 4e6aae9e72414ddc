"""What is tested: servers as their users start them, each with the one line that is ours."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping




@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """One server, started in one way.

    `command`: as it is typed; `{bin}` is the folder of the environment's commands, `{python}` the interpreter, `{port}` where it
    shall listen. `activated`: the same with a listener named "http" passed as descriptor 3; None: it cannot take one.
    `lacks`: tests (without `test_`) that say nothing about it, and why: the table shows a dash. `limits`: tests of what it makes
    impossible, and a part of the line by which it says so at its start: the table says no, and the test looks for that line.
    `workers`: how many processes of its own it starts, which say READY=1 and drain; 0: the main process does.
    """

    name: str
    command: tuple[str, ...]
    activated: tuple[str, ...] | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notify_access: str = "main"
    lacks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    workers: int = 0

    def __str__(self) -> str:
        return self.name


NO_WEBSOCKETS: Final = {"websocket": "WSGI has none", "events": "WSGI has no loop to hold them in"}
CLOSES_EACH: Final = "it closes each connection after its answer"
NO_HOOKS: Final = {"framework_hooks": "it has no shutdown hooks"}

GUNICORN: Final = ("{bin}/gunicorn", "--no-control-socket", "-c", "gunicorn_held.conf.py", "wsgi_app:app")

#: Servers that speak HTTP.
HTTP: Final = (
    Subject(
        "uvicorn",
        ("{bin}/uvicorn", "asgi_app:app", "--port", "{port}"),
        ("{bin}/uvicorn", "asgi_app:app", "--fd", "3"),
    ),
    Subject(
        "uvicorn --loop asyncio",
        ("{bin}/uvicorn", "asgi_app:app", "--loop", "asyncio", "--http", "h11", "--port", "{port}"),
        ("{bin}/uvicorn", "asgi_app:app", "--loop", "asyncio", "--http", "h11", "--fd", "3"),
    ),
    Subject(
        "uvicorn --workers",
        ("{bin}/uvicorn", "asgi_app:app", "--http", "h11", "--workers", "2", "--port", "{port}"),
        ("{bin}/uvicorn", "asgi_app:app", "--http", "h11", "--workers", "2", "--fd", "3"),
        notify_access="all",
        workers=2,
        limits={"stops_accepting": "keeps the port open", "sigint_twice": "passes no second SIGINT"},
    ),
    Subject(
        "gunicorn -k uvicorn_worker.UvicornWorker",
        ("{bin}/gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}", "asgi_app:app"),
        ("{bin}/gunicorn", "-k", "uvicorn_worker.UvicornWorker", "asgi_app:app"),
        notify_access="all",
        workers=1,
        limits={"sigint_twice": "SIGINT means abandon", "job_of_90_s": "graceful_timeout=30"},
    ),
    Subject(
        "aiohttp run_app",
        ("{python}", "aiohttp_run_app.py", "{port}"),
        ("{python}", "aiohttp_run_app.py"),
    ),
    Subject(
        "aiohttp AppRunner",
        ("{python}", "aiohttp_runner.py", "{port}"),
        ("{python}", "aiohttp_runner.py"),
    ),
    Subject(
        "Tornado",
        ("{python}", "tornado_app.py", "{port}"),
        ("{python}", "tornado_app.py"),
    ),
    Subject(
        "Twisted",
        ("{python}", "twisted_site.py", "{port}"),
        ("{python}", "twisted_site.py"),
    ),
    Subject(
        "hypercorn",
        ("{bin}/hypercorn", "asgi_app:app", "--bind", "127.0.0.1:{port}"),
        ("{bin}/hypercorn", "asgi_app:app", "--bind", "fd://3"),
        notify_access="all",
        workers=1,
        limits={"sigint_twice": "passes no second SIGINT"},
    ),
    Subject(
        "hypercorn --workers 2",
        ("{bin}/hypercorn", "asgi_app:app", "--workers", "2", "--bind", "127.0.0.1:{port}"),
        ("{bin}/hypercorn", "asgi_app:app", "--workers", "2", "--bind", "fd://3"),
        notify_access="all",
        workers=2,
        limits={"sigint_twice": "passes no second SIGINT"},
    ),
    Subject(
        "hypercorn --workers 0",
        ("{bin}/hypercorn", "asgi_app:app", "--workers", "0", "--bind", "127.0.0.1:{port}"),
        ("{bin}/hypercorn", "asgi_app:app", "--workers", "0", "--bind", "fd://3"),
    ),
    Subject(
        "granian",
        ("{bin}/granian", "--interface", "asgi", "--port", "{port}", "asgi_app:app"),
        notify_access="all",
        workers=1,
        limits={"sigint_twice": "passes no second SIGINT", "inherited_listener": "takes no listener"},
    ),
    Subject(
        "granian --workers 2",
        ("{bin}/granian", "--interface", "asgi", "--workers", "2", "--port", "{port}", "asgi_app:app"),
        notify_access="all",
        workers=2,
        limits={"sigint_twice": "passes no second SIGINT", "inherited_listener": "takes no listener"},
    ),
    Subject(
        "daphne",
        ("{bin}/daphne", "--port", "{port}", "asgi_app:app"),
        ("{bin}/daphne", "--fd", "3", "asgi_app:app"),
        lacks={"framework_hooks": "it has no lifespan"},
    ),
    Subject(
        "gunicorn gthread",
        (*GUNICORN, "-k", "gthread", "--threads", "4", "-b", "127.0.0.1:{port}"),
        (*GUNICORN, "-k", "gthread", "--threads", "4"),
        lacks=NO_WEBSOCKETS,
    ),
    Subject(
        "gunicorn sync",
        (*GUNICORN, "-k", "sync", "-b", "127.0.0.1:{port}"),
        (*GUNICORN, "-k", "sync"),
        lacks={**NO_WEBSOCKETS, "keepalive": CLOSES_EACH},
    ),
    Subject(
        "gunicorn gevent",
        (*GUNICORN, "-k", "gevent", "-b", "127.0.0.1:{port}"),
        (*GUNICORN, "-k", "gevent"),
        lacks=NO_WEBSOCKETS,
    ),
    Subject(
        "waitress",
        ("{python}", "waitress_server.py", "{port}"),
        ("{python}", "waitress_server.py"),
        lacks=NO_WEBSOCKETS,
    ),
    Subject(
        "waitress serve",
        ("{python}", "waitress_serve.py", "{port}"),
        ("{python}", "waitress_serve.py"),
        lacks=NO_WEBSOCKETS,
    ),
    Subject(
        "werkzeug threads",
        ("{python}", "werkzeug_server.py", "threaded", "{port}"),
        ("{python}", "werkzeug_server.py", "threaded"),
        lacks={**NO_WEBSOCKETS, **NO_HOOKS, "keepalive": CLOSES_EACH},
    ),
    Subject(
        "werkzeug processes",
        ("{python}", "werkzeug_server.py", "processes", "{port}"),
        ("{python}", "werkzeug_server.py", "processes"),
        lacks={**NO_WEBSOCKETS, **NO_HOOKS, "keepalive": CLOSES_EACH},
        limits=dict.fromkeys(
            ("background_job", "job_begun_in_the_drain", "double_sigterm", "sigint_twice", "stops_accepting", "health"),
            "forks a process for each request",
        ),
    ),
    Subject(
        "flask run",
        ("{bin}/flask", "--app", "flask_app", "run", "--port", "{port}"),
        lacks={
            **NO_WEBSOCKETS,
            **NO_HOOKS,
            "keepalive": CLOSES_EACH,
            "inherited_listener": "it takes none",
            "announces_close": "each of its answers does",
        },
    ),
    Subject(
        "wsgiref",
        ("{python}", "wsgiref_server.py", "{port}"),
        ("{python}", "wsgiref_server.py"),
        lacks={**NO_WEBSOCKETS, **NO_HOOKS, "keepalive": "it speaks HTTP/1.0", "announces_close": "it speaks HTTP/1.0"},
    ),
)

VARIED: Final = frozenset(
    (
        "uvicorn --loop asyncio",
        "aiohttp AppRunner",
        "hypercorn --workers 2",
        "hypercorn --workers 0",
        "granian --workers 2",
        "gunicorn sync",
        "werkzeug processes",
        "waitress serve",
        "flask run",
    )
)
#: Further ways to start a server that is there already; CI, which has 20 minutes, leaves them out.
VARIANTS: Final = [subject for subject in HTTP if subject.name in VARIED]
