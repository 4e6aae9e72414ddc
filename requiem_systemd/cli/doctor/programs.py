"""What is known of programs: how each takes a stop when nothing is changed in it. No I/O.

From their sources and manuals: gunicorn 27, uvicorn 0.54, hypercorn 0.18, daphne 4.2, granian 2.8, waitress 3.0, uWSGI 2.0, Celery 5.7,
RQ 3.0, Dramatiq 2.2, arq 0.28, Huey 2.5 and 3.5, Puma 6 to 8, Sidekiq 7, Node 22, PM2 6 and 7, docker 27, podman 5. Tried too, a job in the
middle and each signal: uWSGI 2.0, arq 0.28, Huey 3.5, PM2 7.0, Node 20 with npm 11.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from requiem_systemd.cli.doctor import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

WEB: Final = "web"
QUEUE: Final = "queue"
OTHER: Final = "other"
#: What worker processes do at a SIGTERM of their own.
DRAIN: Final = "drain"
DIE: Final = "die"
#: What the main process does at SIGHUP.
RELOAD: Final = "reload"
STOP: Final = "stop"
IGNORE: Final = "ignore"


class Program(NamedTuple):
    """One program's ways; what is not said is that of a program that knows no signals."""

    name: str
    kind: str = OTHER
    words: tuple[str, ...] = ()  # it is known by: a file, a module of python -m, another and its subcommand
    graceful: float = 0.0  # seconds that work has after SIGTERM, infinite: as long as it takes, 0: none
    limits: tuple[str, ...] = ()  # options that set that
    by: str = ""  # the signal by which work is given that time, where that is not SIGTERM
    by_options: tuple[str, ...] = ()  # options that set that
    children: str = ""  # of its worker processes, if it has any
    many: tuple[str, ...] | bool = False  # whether it has worker processes: always, or by these options
    single: tuple[str, ...] = ()  # values of -P, --pool by which it has none
    again: bool = False  # a second SIGTERM is an order to kill
    hup: str = DIE
    fast: tuple[str, ...] = ("KILL", "QUIT", "ABRT")  # signals that end it at once
    notifies: bool = False  # says READY=1 by itself
    pings: bool = False  # says WATCHDOG=1 by itself
    mute: bool = False  # its parent process runs no line of the application's, thus none of this library's
    socket: tuple[str, ...] | bool = False  # takes systemd's listener: by itself, or by these options
    configs: tuple[str, ...] = ()  # options that name its configuration file
    config: str = ""  # where that is if they do not
    settings: bool = False  # its first argument names a class in a Python module, which is the configuration
    configured: str = ""  # what in it sets the limit: an expression whose group is the number; one without a group has no limit
    advice: str = ""  # the line to write where it has no drain at all


_SERVE: Final = "ExecStart=/path/to/venv/bin/python -m requiem_systemd serve MODULE:APP"
PROGRAMS: Final = (
    Program(
        "requiem-systemd serve", WEB, ("requiem-systemd serve", "requiem_systemd serve"), math.inf,
        children=DRAIN, many=("--workers",), hup=RELOAD, notifies=True, pings=True, socket=True,
    ),
    Program(
        "gunicorn", WEB, ("gunicorn", "gunicorn3", "gunicorn.app.wsgiapp", "run_gunicorn"), 30.0, ("--graceful-timeout",),
        children=DRAIN, many=True, hup=RELOAD, fast=("KILL", "QUIT", "INT", "ABRT"), notifies=True, socket=True,
        configs=("-c", "--config"), config="gunicorn.conf.py", configured=r"^graceful_timeout\s*=\s*(\d+)",
    ),
    Program(
        "uvicorn", WEB, ("uvicorn",), math.inf, ("--timeout-graceful-shutdown",),
        children=DRAIN, many=("--workers",), socket=("--fd",), mute=True,
    ),
    Program(
        "hypercorn", WEB, ("hypercorn",), 3.0, ("--graceful-timeout",),
        children=DRAIN, many=("--workers", "-w"), hup=RELOAD, socket=("--bind=fd://", "-b=fd://"),
        configs=("-c", "--config"), configured=r"^graceful_timeout\s*=\s*(\d+)",
    ),
    Program("granian", WEB, ("granian",), math.inf, ("--workers-kill-timeout",), children=DRAIN, many=True, hup=RELOAD, mute=True),
    Program("daphne", WEB, ("daphne",), socket=("--fd",), advice="app = requiem_systemd.asgi.TrackRequests(app), in the application"),
    Program("waitress", WEB, ("waitress-serve", "waitress"), advice=_SERVE),
    Program("Flask's development server", WEB, ("flask run",), advice=_SERVE),
    Program("Django's development server", WEB, ("runserver", "runserver_plus"), advice=_SERVE),
    Program(
        "uWSGI", WEB, ("uwsgi", "uwsgi-core"), children=DIE, many=True, hup=RELOAD, fast=("KILL", "QUIT", "INT", "ABRT"), notifies=True, socket=True,
        advice="hook-master-start = unix_signal:15 gracefully_kill_them_all, in uWSGI's own configuration, and no KillSignal= here",
        configs=("--ini", "-i", "--ini-paste"), configured="gracefully_kill_them_all",
    ),
    Program(
        "celery multi", QUEUE, ("celery multi", "celeryd_multi", "celeryd-multi"), math.inf,
        children=DIE, many=True, hup=RELOAD,
    ),
    Program(
        "celery worker", QUEUE, ("celery worker",), math.inf, ("--time-limit",),
        children=DIE, many=True, single=("solo", "threads", "gevent", "eventlet"), hup=RELOAD,
    ),
    Program("celery beat", OTHER, ("celery beat", "celery flower"), math.inf),
    Program("rq", QUEUE, ("rq worker", "rqworker"), math.inf, children=DIE, many=True, again=True),
    Program("dramatiq", QUEUE, ("dramatiq", "rundramatiq"), 600.0, children=DIE, many=True, again=True, hup=RELOAD, mute=True),
    Program(
        "arq", QUEUE, ("arq",), advice="requiem_systemd.adapters.arq.hold(WorkerSettings), in its module; or job_completion_wait = 600 there",
        settings=True, configured=r"^\s*job_completion_wait\s*(?::\s*\w+\s*)?=\s*(\d+)",
    ),
    Program(
        "huey", QUEUE, ("huey_consumer.py", "huey_consumer", "run_huey"), math.inf, ("-t", "--shutdown-timeout"),
        by="INT", by_options=("-g", "--graceful-signal"), many=("-k", "--worker-type"), again=True, hup=RELOAD, advice="KillSignal=SIGINT",
    ),
    Program("puma", WEB, ("puma",), 30.0, children=DRAIN, many=("-w", "--workers"), hup=STOP, notifies=True, pings=True, socket=True, configs=("-C", "--config"), config="config/puma.rb", configured=r"^\s*worker_shutdown_timeout\D+(\d+)"),
    Program("sidekiq", QUEUE, ("sidekiq", "sidekiqswarm"), 25.0, ("-t", "--timeout"), hup=IGNORE, notifies=True, pings=True, configs=("-C", "--config"), config="config/sidekiq.yml", configured=r"^:?timeout:\s*(\d+)"),
    Program("PM2", OTHER, ("pm2", "pm2-runtime", "pm2-docker"), 1.6, children=DIE, many=True, hup=IGNORE, fast=("KILL", "ABRT"), config="ecosystem.config.js"),
    Program("Node", WEB, ("node", "nodejs"), math.inf),
    Program("docker", OTHER, ("docker run", "docker start", "podman run", "podman start"), math.inf, hup=IGNORE),
    Program("docker compose", OTHER, ("docker-compose up", "docker compose"), 10.0, ("-t", "--timeout"), hup=IGNORE),
)  # fmt: skip  # a table reads better in its rows
_KNOWN: Final = {word: program for program in PROGRAMS for word in program.words}
#: Variables that say what options say, by program: the option, or "" where it is options as they are typed.
VARIABLES: Final = (
    ("gunicorn", "GUNICORN_CMD_ARGS", ""),
    ("uvicorn", "WEB_CONCURRENCY", "--workers"),
    ("uvicorn", "UVICORN_WORKERS", "--workers"),
    ("uvicorn", "UVICORN_FD", "--fd"),
    ("uvicorn", "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN", "--timeout-graceful-shutdown"),
    ("puma", "WEB_CONCURRENCY", "--workers"),
)
#: Programs that become, by exec, what stands behind them (airflow runs it as itself).
_PASSING: Final = (
    "env", "exec", "nice", "ionice", "chrt", "taskset", "setpriv", "nohup", "setsid", "stdbuf", "choom", "prlimit", "catchsegv", "chpst",
    "envdir", "softlimit", "systemd-cat", "dumb-init", "tini", "ddtrace-run", "opentelemetry-instrument", "newrelic-admin", "run-program",
    "bundle", "pipenv", "poetry", "run", "uv", "airflow",
)  # fmt: skip  # as above
# ${CELERY_BIN} and the like, as units of the kind that Celery documents write
_VARIABLE: Final = re.compile(r"^\$\{?([A-Z]+)_(?:BIN|PATH|EXE|CMD)\}?$")
_PYTHON: Final = ("python", "pypy")
_GROUPS: Final = (
    "celery",
    "rq",
    "flask",
    "docker",
    "podman",
    "docker-compose",
    "requiem-systemd",
    "requiem_systemd",
)


def find(argv: Sequence[str]) -> tuple[Program | None, list[str]]:
    """Return the program that a command line becomes, if it is known, and that program's own arguments."""
    rest = list(argv)
    while rest:
        name = _VARIABLE.sub(lambda match: match[1].lower(), rest[0].rpartition("/")[2])
        if name in _PASSING or "=" in name:
            rest = _without_options(rest[1:])
        elif name == "sudo":
            rest = _without_options(rest[1:], valued=True)
        elif name.startswith(_PYTHON):
            rest = _module(rest[1:])
        elif name in ("manage.py", "django-admin"):
            rest = rest[1:]
        else:
            return _named(name, rest[1:]), rest[1:]
    return None, []


def _without_options(rest: list[str], *, valued: bool = False) -> list[str]:
    """Skip what stands before the next program: options, and the numbers, or all (`valued`), that belong to them."""
    while rest and (rest[0].startswith("-") or rest[0].isdecimal()):
        rest = rest[2:] if valued and rest[0] in ("-u", "-g", "--user", "--group") else rest[1:]
    return rest


def _module(rest: list[str]) -> list[str]:
    """Return what Python is to run, a module or a script, in the place of a program."""
    while rest:
        if rest[0] == "-m":
            return rest[1:]
        if rest[0] == "-c":
            return []
        if rest[0] in ("-W", "-X"):
            rest = rest[2:]
        elif rest[0].startswith("-"):
            rest = rest[1:]
        else:
            return rest
    return []


def _named(name: str, rest: list[str]) -> Program | None:
    if name in _GROUPS:
        return next((_KNOWN[both] for word in rest if (both := f"{name} {word}") in _KNOWN), None)
    return _KNOWN.get(name)


def drain_of(program: Program, argv: Sequence[str], config: str = "", signal: str = "TERM") -> float:
    """Return how long a program's work has after a signal, in seconds: by its options, its configuration, or its own default."""
    if program.by and graceful_signal(program, argv) != signal:
        return 0.0
    text = parse.option(argv, *program.limits) if program.limits else None
    typed = "\n".join((config, *argv))  # uWSGI takes on its command line what its file may say
    if text is None and program.configured and (match := re.search(program.configured, typed, re.MULTILINE)):
        text = match[1] if match.re.groups else "inf"
    try:
        return program.graceful if text is None else float(text)
    except ValueError:
        return program.graceful


def graceful_signal(program: Program, argv: Sequence[str]) -> str:
    """Return the signal at which a program lets its work end."""
    return parse.option(argv, *program.by_options) or program.by or "TERM"


def has_children(program: Program, argv: Sequence[str]) -> bool:
    """Say whether a program has worker processes."""
    if program.single and parse.option(argv, "-P", "--pool") in program.single:
        return False
    if isinstance(program.many, bool):
        return program.many
    given = parse.option(argv, *program.many)
    return given is not None and given not in ("0", "1", "thread", "greenlet", "gevent")


def is_mute(program: Program, argv: Sequence[str], config: str = "") -> bool:
    """Say whether the main process is known to be a parent that runs no line of this library's; its workers may."""
    if program.name == "gunicorn":  # two lines of its configuration, which cannot always be read, change that
        return bool(config) and "requiem_systemd" not in config
    if program.name == "hypercorn":  # it has a worker also where none is asked for
        return parse.option(argv, "--workers", "-w") != "0"
    return program.mute and has_children(program, argv)


def takes_socket(program: Program, argv: Sequence[str]) -> bool:
    """Say whether a program serves from the listener that systemd passes."""
    if isinstance(program.socket, bool):
        return program.socket
    for wanted in program.socket:
        name, _, start = wanted.partition("=")
        given = parse.option(argv, name)
        if given is not None and given.startswith(start):
            return True
    return False
