"""`requiem-systemd doctor`: what it finds in units, how it says it, and how it reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from requiem_systemd import cli
from requiem_systemd.cli.colours import coloured, paint, plain
from requiem_systemd.cli.doctor import parse, programs, show, sources
from requiem_systemd.cli.doctor.facts import Facts, Source
from requiem_systemd.cli.doctor.finding import NOTES, SEVERITIES
from requiem_systemd.cli.doctor.rules import RULES, findings
from requiem_systemd.unitfile import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE / "corpus"
UNITS: Final = HERE.parents[1] / "units"
EXAMPLES: Final = HERE.parents[1] / "examples"


def table() -> Iterator[tuple[str, set[str]]]:
    """Yield the rows of the corpus's table."""
    for line in (CORPUS / "expected.txt").read_text().splitlines():
        name, *ids = line.split() or ["#"]
        if not name.startswith("#"):
            yield name, set(ids) - {"-"}


def found(path: Path) -> set[str]:
    """Return the ids of what is found in a file."""
    return {one.id for one in findings(sources.from_file(str(path)))}


# -- the corpus


@pytest.mark.parametrize(("name", "ids"), list(table()), ids=[name for name, _ in table()])
def test_corpus(name: str, ids: set[str]) -> None:
    """In each unit of the corpus exactly that is found which its table says."""
    assert found(CORPUS / name) == ids


def test_corpus_is_whole() -> None:
    """Each unit of the corpus is in the table, and says in its first line where it is from."""
    files = [path for path in CORPUS.iterdir() if path.suffix != ".txt"]
    assert sorted(path.name for path in files) == sorted(name for name, _ in table())
    assert [path.name for path in files if not path.read_text().startswith("# ")] == []


def test_every_rule_is_met() -> None:
    """Each rule has a unit in the corpus that it speaks of, but for those that need a systemd or a program."""
    live = {"was-killed", "user-limit", "user-linger", "notify-reload-unknown", "stale", "fdstore-zero", "user-namespace", "needrestart"}
    assert {rule.id for rule in RULES} - set().union(*(ids for _, ids in table())) == live


@pytest.mark.parametrize("path", sorted([*UNITS.glob("*.s*"), *EXAMPLES.glob("*/debian/shop*.s*")]), ids=lambda path: str(path.name))
def test_templates_are_clean(path: Path) -> None:
    """Of the templates nothing is to be said; that a reboot does not wait for an hour is noted."""
    assert [one for one in findings(sources.from_file(str(path))) if one.severity != NOTES] == []


# -- what only a running systemd tells

PLAIN: Final = "[Unit]\nAfter=network.target\n[Service]\nType=notify\nExecStart=/usr/bin/python3 -m app\nTimeoutStopSec=10min\nRestart=always\n"


def judged(text: str, **more: Any) -> set[str]:
    """Return what is found in a unit of which systemd has told more."""
    return {one.id for one in findings(Source("app.service", Unit((text,)), **more))}


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ({}, set()),
        ({"live": {"NeedDaemonReload": "yes"}}, {"stale"}),
        ({"live": {"NeedDaemonReload": "no", "Result": "timeout"}}, {"was-killed"}),
        ({"live": {"Result": "success"}, "limits": {"reboot": 300.0}}, {"reboot-limit"}),
        ({"needrestart": True}, set()),
        ({"user": True}, {"user-limit"}),
        ({"user": True, "lingers": False, "limits": {"user@": 3600.0}}, {"user-linger"}),
        ({"user": True, "lingers": True, "limits": {"user@": 3600.0}}, set()),
    ],
)
def test_told_by_systemd(more: dict[str, Any], ids: set[str]) -> None:
    """What systemd tells of a loaded unit, of itself and of the user counts; with none there is nothing to find."""
    assert judged(PLAIN, **more) == ids


@pytest.mark.parametrize(("setting", "ids"), [("", set()), ("kernel.unprivileged_userns_clone=0", {"user-namespace"})])
def test_user_namespaces(setting: str, ids: set[str]) -> None:
    """Where users may have no user namespace, a unit that asks for one does not start, or not as it says."""
    text = PLAIN.replace("[Service]", "[Service]\nPrivateUsers=yes")
    assert judged(text, user=True, lingers=True, limits={"user@": 3600.0}, forbids=setting) == ids
    assert judged(PLAIN, user=True, lingers=True, limits={"user@": 3600.0}, forbids=setting) == set()


def test_kernel_settings(tmp_path: Path) -> None:
    """Which setting forbids them is read where the kernel has it; each kind of system has another."""
    assert sources.forbidding(str(tmp_path)) == ""
    write(tmp_path / "kernel" / "unprivileged_userns_clone", "1\n")
    write(tmp_path / "user" / "max_user_namespaces", "0\n")
    assert sources.forbidding(str(tmp_path)) == "user.max_user_namespaces=0"
    write(tmp_path / "kernel" / "apparmor_restrict_unprivileged_userns", "1\n")
    assert sources.forbidding(str(tmp_path)) == "kernel.apparmor_restrict_unprivileged_userns=1"


def test_capped_drain_ends_before_a_reboot_does() -> None:
    """Where the drain is capped, a reboot waits for it, whatever TimeoutStopSec= says."""
    text = PLAIN.replace("TimeoutStopSec=10min", "TimeoutStopSec=1h\nKillMode=mixed\nEnvironment=REQUIEM_DRAIN_TIMEOUT=LIMIT")
    assert judged(text.replace("LIMIT", "25min")) == set()
    assert judged(text.replace("LIMIT", "40min")) == {"reboot-limit"}


def test_needrestart_restarts_generations() -> None:
    """Where needrestart is not told of us, it is said of a generation; not of other instances."""
    text = (UNITS / "rolling@.service").read_text()
    anchor = {"app.service": Unit(((UNITS / "rolling.service").read_text(),))}
    for others, ids in ((anchor, {"needrestart"}), ({}, set())):
        found = {one.id for one in findings(Source("app@3.service", Unit((text,)), others, needrestart=True)) if one.severity != NOTES}
        assert found == ids


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, False),
        ({"needrestart.conf": "$nrconf{restart} = 'a';"}, True),
        ({"needrestart.conf": "#", "conf.d/requiem-systemd.conf": "$nrconf{restart_d} = '/run/requiem-systemd/restart.d';"}, False),
        ({"needrestart.conf": "#", "conf.d/shop.conf": "$nrconf{override_rc}{qr(^shop@)} = 0;"}, False),
        ({"needrestart.conf": "#", "conf.d/shop.conf": "$nrconf{override_rc}{qr(^workshop@)} = 0;\n# requiem-systemd"}, True),
    ],
)
def test_needrestart(tmp_path: Path, files: dict[str, str], told: bool) -> None:  # noqa: FBT001 - a table
    """It is looked for, and whether its configuration names us or the generations."""
    (tmp_path / "conf.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert sources.needrestart("shop@3.service", str(tmp_path)) == told


@pytest.mark.parametrize(("version", "ids"), [(252, {"notify-reload-unknown"}), (253, set()), (None, set())])
def test_version(version: int | None, ids: set[str]) -> None:
    """Type=notify-reload is an error under a systemd that does not know it."""
    assert judged(PLAIN.replace("=notify", "=notify-reload"), version=version) == ids


def test_live_timeout_counts() -> None:
    """The manager's own default for a stop counts, where it is another than 90 s."""
    text = (
        PLAIN.replace("TimeoutStopSec=10min\n", "")
        .replace("python3 -m app", "env gunicorn --graceful-timeout 60 app")
        .replace("[Service]", "[Service]\nKillMode=mixed\nOOMPolicy=continue")
    )
    assert judged(text) == {"socket-missing"}
    assert judged(text, live={"TimeoutStopUSec": "45s"}) == {"socket-missing", "stop-timeout-short"}


@pytest.mark.parametrize(("process", "ids"), [("", {"wrapper-maybe"}), ("run.sh", {"wrapper", "notify-from-behind"}), ("python3", set())])
def test_running_script_settles_it(process: str, ids: set[str]) -> None:
    """A script that is still the main process has not ended in exec."""
    assert judged(PLAIN.replace("/usr/bin/python3 -m app", "/srv/app/run.sh"), process=process) == ids


@pytest.mark.parametrize(("process", "ids"), [("", {"wrapper-maybe"}), ("bash", {"wrapper", "notify-from-behind"}), ("python3", set())])
def test_running_process_settles_it(process: str, ids: set[str]) -> None:
    """Whether a shell has stayed need not be guessed where the service runs."""
    text = PLAIN.replace("/usr/bin/python3 -m app", "/bin/bash -c 'cd /srv && python3 -m app'")
    assert judged(text, process=process) == ids


@pytest.mark.parametrize(
    ("command", "sure"),
    [
        ("/bin/sh -c 'python3 -m app'", True),
        ("/bin/sh -ec 'exec python3 -m app'", None),
        ("/bin/sh -c 'cd /srv; exec python3 -m app;'", None),
        ("/bin/sh -c 'exec python3 -m app | logger'", True),
        ("/bin/bash -c 'cd /srv && python3 -m app'", False),
        ("/bin/bash -c 'python3 -m app | logger'", True),
        ("/bin/bash -c 'python3 -m app &'", True),
        ("/bin/bash /srv/run.sh", False),
        ("/srv/run.sh", False),
        ("/usr/bin/env A=1 npm start", True),
        ("/usr/bin/env python3 -m app", None),
        ("/usr/bin/python3 -m app", None),
    ],
)
def test_wrappers(command: str, *, sure: bool | None) -> None:
    """What stays between systemd and the program is told from what execs, and from what may."""
    wrapper = Facts(Source("a.service", Unit((f"[Service]\nExecStart={command}\n",)))).wrapper
    assert (None if wrapper is None else wrapper.sure) == sure


# -- reading


def write(path: Path, text: str) -> Path:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_drop_ins(tmp_path: Path) -> None:
    """Drop-ins beside a file are applied in the order of their names; an empty assignment resets a list."""
    unit = write(tmp_path / "app.service", PLAIN + "ExecStop=/bin/kill -9 $MAINPID\nKillMode=none\n")
    assert found(unit) == {"execstop-kills", "killmode-none"}
    write(tmp_path / "app.service.d" / "20.conf", "[Service]\nKillMode=mixed\n")
    write(tmp_path / "app.service.d" / "10.conf", "[Service]\nKillMode=process\nExecStop=\n")
    assert found(unit) == set()


def test_socket_beside(tmp_path: Path) -> None:
    """A socket beside the service, of its name, is its socket, unless it says that it starts another."""
    unit = write(
        tmp_path / "app.service",
        PLAIN.replace("After=", "Requires=app.socket\nAfter=").replace(
            "python3 -m app", "env uvicorn --fd 3 app:app"
        ),
    )
    write(tmp_path / "app.socket", "[Socket]\nListenStream=1\n")
    assert "socket-missing" not in found(unit)
    unit.write_text(unit.read_text().replace("Requires=app.socket\n", ""))
    assert "socket-not-required" in found(unit)
    write(tmp_path / "app.socket", "[Socket]\nListenStream=1\nService=other.service\n")
    assert "socket-missing" in found(unit)


def test_socket_of_others(tmp_path: Path) -> None:
    """A socket that the service only needs is none of its own, whether or not it is there to be read."""
    text = PLAIN.replace("After=", "Wants=dbus.socket\nAfter=").replace("python3 -m app", "env uvicorn --fd 3 app:app")
    unit = write(tmp_path / "app.service", text)
    assert "socket-missing" in found(unit)
    write(tmp_path / "dbus.socket", "[Socket]\nListenStream=1\n")
    assert found(unit) >= {"socket-missing"}
    assert "socket-not-required" not in found(unit)


def test_program_is_looked_at(tmp_path: Path) -> None:
    """A program that is there tells whether it uses the library, and whether it keeps a listener in the fd store."""
    unit = write(
        tmp_path / "app.service",
        PLAIN.replace("Type=notify", f"KillMode=mixed\nWorkingDirectory={tmp_path}").replace(
            "/usr/bin/python3 -m app", "/usr/bin/python3 app.py"
        ),
    )
    assert found(unit) == set()
    write(
        tmp_path / "app.py",
        "import requiem_systemd\nrequiem_systemd.listener('http', fallback=('', 80), keep=True)\n",
    )
    assert found(unit) == {"notify-dropped", "fdstore-zero"}
    unit.write_text(unit.read_text() + "FileDescriptorStoreMax=16\nNotifyAccess=main\n")
    assert found(unit) == set()


@pytest.mark.parametrize(
    ("command", "file", "text", "ids"),
    [
        ("gunicorn app", "gunicorn.conf.py", "graceful_timeout = 300\n", {"stop-timeout-short"}),
        ("gunicorn --graceful-timeout 40 app", "gunicorn.conf.py", "graceful_timeout = 300\n", set()),
        ("gunicorn -c file:conf.py app", "conf.py", "graceful_timeout=300\n", {"stop-timeout-short"}),
        ("gunicorn app", "gunicorn.conf.py", "from requiem_systemd.adapters import gunicorn\ngraceful_timeout = 300\n", set()),
        ("gunicorn app", "other.py", "graceful_timeout = 300\n", set()),
        ("uwsgi --ini x.ini", "x.ini", "[uwsgi]\nmaster = true\n", {"no-drain"}),
        ("uwsgi --ini x.ini", "x.ini", "hook-master-start = unix_signal:15 gracefully_kill_them_all\n", set()),
        ("uwsgi --ini x.ini --hook-master-start 'unix_signal:15 gracefully_kill_them_all'", "x.ini", "", set()),
        ("arq jobs.worker.WorkerSettings", "jobs/worker.py", "class WorkerSettings:\n    functions = [job]\n", {"no-drain"}),
        ("arq jobs.worker.WorkerSettings", "jobs/worker.py", "class WorkerSettings:\n    job_completion_wait = 200\n", {"stop-timeout-short"}),
        ("arq jobs.worker.WorkerSettings", "jobs/worker.py", "class WorkerSettings:\n    job_completion_wait: int = 90\n", set()),
        ("huey_consumer main.huey -g TERM --shutdown-timeout 200", "x", "", {"stop-timeout-short"}),
        ("huey_consumer main.huey --graceful-signal=INT", "x", "", {"no-drain"}),
        ("pm2-runtime start ecosystem.config.js", "ecosystem.config.js", "module.exports = {apps: [{kill_timeout: 60000}]}", set()),
        ("pm2-runtime start ecosystem.config.js", "ecosystem.config.js", "module.exports = {apps: [{kill_timeout: 3000}]}", {"pm2-kill"}),
        ("docker compose up --timeout 60", "x", "", {"docker-outside"}),
        ("puma", "config/puma.rb", "workers 2\n  worker_shutdown_timeout(200)\n", {"stop-timeout-short"}),
        ("sidekiq", "config/sidekiq.yml", ":concurrency: 5\n:timeout: 200\n", {"stop-timeout-short"}),
    ],
)
def test_configuration_is_looked_at(tmp_path: Path, command: str, file: str, text: str, ids: set[str]) -> None:
    """A server's own limit may stand in its configuration file: one that can be read counts, after the options."""
    write(tmp_path / file, text)
    lines = PLAIN.replace("/usr/bin/python3 -m app", f"/usr/bin/{command}").replace("10min", "100").replace(
        "[Service]", f"Requires=app.socket\n[Service]\nKillMode=mixed\nOOMPolicy=continue\nWorkingDirectory={tmp_path}"
    )
    if command.startswith(("arq", "huey")):  # who says READY=1 for these has the library
        lines = lines.replace("Type=notify", "Type=exec")
    assert found(write(tmp_path / "app.service", lines)) == ids


@pytest.mark.parametrize(
    ("command", "config", "named"),
    [
        ("uvicorn app:app --fd 3 --workers 2", "", True),
        ("uvicorn app:app --fd 3", "", False),
        ("hypercorn --bind fd://3 app:app", "", True),
        ("hypercorn --bind fd://3 --workers 0 app:app", "", False),
        ("gunicorn -k uvicorn_worker.UvicornWorker app:app", "workers = 2\n", True),
        ("gunicorn app:app", "from requiem_systemd.adapters import gunicorn\ngunicorn.hold(globals())\n", False),
        ("dramatiq app", "", True),
    ],
)
def test_parents_feed_no_watchdog(tmp_path: Path, command: str, config: str, *, named: bool) -> None:
    """Where a server's parent is the main process the library's workers feed no watchdog, and it would be killed: unless gunicorn's has our lines."""
    write(tmp_path / "gunicorn.conf.py", config)
    lines = PLAIN.replace("/usr/bin/python3 -m app", f"/usr/bin/{command}").replace(
        "[Service]",
        f"Requires=app.socket\n[Service]\nType=notify\nNotifyAccess=all\nEnvironment=REQUIEM_DRAIN_TIMEOUT=1min\nWatchdogSec=30s\nKillMode=mixed\n"
        f"OOMPolicy=continue\nWorkingDirectory={tmp_path}",
    )
    assert ("watchdog-no-pinger" in found(write(tmp_path / "app.service", lines))) == named


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        ("Cluster(serve, workers=4).run()", {"cluster-exit-type", "oom-stops-all"}),
        ("requiem_systemd.cluster.Cluster(serve).run()", {"cluster-exit-type", "oom-stops-all"}),
        ("# Cluster(serve).run(), one day", set()),
        ("serve()", set()),
    ],
)
def test_cluster_is_seen(tmp_path: Path, line: str, ids: set[str]) -> None:
    """A program that runs a cluster of ours is told by its code; its unit needs what keeps the workers of a killed primary."""
    write(tmp_path / "srv" / "app.py", f"import requiem_systemd\nfrom requiem_systemd import Cluster\n{line}\n")
    text = PLAIN.replace("-m app", "app.py").replace("[Service]", f"[Service]\nKillMode=mixed\nWorkingDirectory={tmp_path}/srv")
    assert found(write(tmp_path / "app.service", text)) == ids
    mended = text.replace("KillMode=mixed", "KillMode=mixed\nExitType=cgroup\nNotifyAccess=all\nOOMPolicy=continue")
    assert not found(write(tmp_path / "app.service", mended)) & {"cluster-exit-type", "cluster-unheard", "oom-stops-all"}


DROP_INS: Final[tuple[tuple[str, str, set[str]], ...]] = (
    ("gunicorn", "gunicorn-docs.service", set()),
    ("gunicorn", "gunicorn-docs-19.service", set()),
    ("uvicorn", "uvicorn-module.service", {"socket-missing"}),
    ("uvicorn", "uvicorn-hup.service", set()),
    ("celery", "celery-docs.service", set()),
    ("celery", "celery-worker.service", set()),
    ("rq", "rqworker@.service", set()),
)


@pytest.mark.parametrize(("drop_in", "unit", "ids"), DROP_INS, ids=[f"{one[0]}-{one[1]}" for one in DROP_INS])
def test_drop_ins_mend(tmp_path: Path, drop_in: str, unit: str, ids: set[str]) -> None:
    """With a drop-in of ours a unit from a server's documentation is clean, but for what no drop-in can bring: a socket."""
    path = write(tmp_path / unit, (CORPUS / unit).read_text())
    write(tmp_path / f"{unit}.d" / "requiem.conf", (UNITS / "drop-ins" / f"{drop_in}.conf").read_text())
    assert {one.id for one in findings(sources.from_file(str(path))) if one.severity != NOTES} == ids


@pytest.mark.parametrize("drop_in", ["notify-reload", "restart-pauses"])
@pytest.mark.parametrize("unit", ["plain", "socket-activated", "cluster", "instance@", "user", "uvicorn"])
def test_drop_ins_fit_the_templates(tmp_path: Path, drop_in: str, unit: str) -> None:
    """The drop-ins for all kinds of units leave the templates clean."""
    path = write(tmp_path / f"{unit}.service", (UNITS / f"{unit}.service").read_text())
    write(tmp_path / "plain.socket", (UNITS / "plain.socket").read_text())
    write(tmp_path / f"{unit}.service.d" / "more.conf", (UNITS / "drop-ins" / f"{drop_in}.conf").read_text())
    assert [one for one in findings(sources.from_file(str(path))) if one.severity != NOTES] == []


def test_variables_are_options() -> None:
    """What a server takes from its environment counts as an option."""
    text = PLAIN.replace("/usr/bin/python3 -m app", "/usr/bin/env uvicorn app").replace("[Service]", "Requires=app.socket\n[Service]")
    assert "socket-unused" in judged(text)
    assert "socket-unused" not in judged(text + "Environment=UVICORN_FD=3\n")
    assert "oom-stops-all" in judged(text + "Environment=WEB_CONCURRENCY=4\n")


def test_generation_knows_its_anchor() -> None:
    """A template is a generation by the anchor beside it."""
    assert Facts(sources.from_file(str(UNITS / "rolling@.service"))).anchored_by == "rolling.service"
    assert Facts(sources.from_file(str(CORPUS / "rqworker@.service"))).anchored_by == ""


# -- command lines


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/bin/a b  c", ["/bin/a", "b", "c"]),
        ('/bin/a \'b c\' "d \\" e"', ["/bin/a", "b c", 'd " e']),
        ("/bin/a --x='1 2' b\\x20c\\tt \\101", ["/bin/a", "--x=1 2", "b c\tt", "A"]),
        ("/bin/a 'open", ["/bin/a", "'open"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    """Quotes and escapes are read as systemd reads them."""
    assert parse.words(line) == words


def test_commands() -> None:
    """A line may hold several commands; prefixes are no part of the path, and after @ comes a name; specifiers are resolved."""
    known = parse.specifiers("a-b@c.service")
    found = parse.commands(["-@/bin/%p name %i ; /bin/%j \\; %%n %N", "+/bin/x"], known)
    assert [one.words for one in found] == [("/bin/a-b", "c"), ("/bin/b", ";", "%n", "a-b@c"), ("/bin/x",)]
    assert [one.prefix for one in found] == ["-@", "", "+"]


@pytest.mark.parametrize(
    ("command", "program", "arguments"),
    [
        ("/usr/bin/env A=1 /v/bin/python3 -u -W error -m gunicorn x:y", "gunicorn", ["x:y"]),
        ("nice -n 10 ionice -c 2 -n 0 uvicorn a", "uvicorn", ["a"]),
        ("sudo -u www-data hypercorn a", "hypercorn", ["a"]),
        ("bundle exec puma -C x", "puma", ["-C", "x"]),
        ("/v/bin/python manage.py rqworker high", "rq", ["high"]),
        ("python -m requiem_systemd serve a:b", "requiem-systemd serve", ["serve", "a:b"]),
        ("requiem-systemd roll a", "", ["roll", "a"]),
        ("/v/bin/python app.py", "", []),
        ("python -c pass", "", []),
        ("celery -A a beat", "celery beat", ["-A", "a", "beat"]),
    ],
)
def test_programs(command: str, program: str, arguments: list[str]) -> None:
    """The program is found behind what only leads to it."""
    known, rest = programs.find(command.split())
    assert (known.name if known else "", rest) == (program, arguments)


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("/srv/venv/bin/requiem-systemd reload --pid $MAINPID", True),
        ("python -m requiem_systemd serve app", True),
        ("rq worker --worker-class requiem_systemd.adapters.rq.Worker", True),
        ("rq worker --worker-class=requiem_systemd.adapters.rq.Worker", True),
        ("/opt/requiem-systemd/venv/bin/python -m app", False),
        ("/opt/requiem_systemd/venv/bin/python -m app", False),
    ],
)
def test_what_is_ours(line: str, *, ours: bool) -> None:
    """A command of the library is told from a folder of its name."""
    assert parse.is_ours(line) == ours


@pytest.mark.parametrize(
    ("command", "signal"),
    [
        ("/bin/kill -s HUP $MAINPID", "HUP"),
        ("/bin/kill -HUP $MAINPID", "HUP"),
        ("kill -SIGUSR1 1", "USR1"),
        ("kill -9 1", "KILL"),
        ("kill --signal=SIGQUIT 1", "QUIT"),
        ("kill -sINT 1", "INT"),
        ("kill $MAINPID", "TERM"),
        ("pkill -f server", "TERM"),
        ("killall -s KILL x", "KILL"),
        ("/bin/true", None),
    ],
)
def test_kill(command: str, signal: str | None) -> None:
    """A signal is read however kill is told it."""
    sent = parse.kill(parse.Command(tuple(command.split())))
    assert (sent[0] if sent else None) == signal


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["AF_INET", "AF_UNIX"], (True, {"AF_INET", "AF_UNIX"})),
        (["~AF_UNIX AF_PACKET", "AF_UNIX"], (False, {"AF_PACKET"})),
        (["none"], (True, set())),
    ],
)
def test_families(lines: list[str], expected: Any) -> None:
    """RestrictAddressFamilies= allows or forbids by its first line."""
    assert parse.families(lines) == expected


# -- the command


def test_clean_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    """A unit in which nothing is found is 0, and said to be."""
    assert cli.main(["doctor", str(CORPUS / "gunicorn-mended.service")]) == 0
    assert "nothing kills a drain or drops a connection" in capsys.readouterr().out


def test_warnings_are_0(capsys: pytest.CaptureFixture[str]) -> None:
    """What only warns is shown, and is 0."""
    assert cli.main(["doctor", str(CORPUS / "ssh-debian.service")]) == 0
    assert "killmode-leaves" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rqworker@.service", "uvicorn-module.service"])
def test_kills_or_drops_is_1(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What kills is 1, and so is what drops; whatever else is asked about."""
    assert cli.main(["doctor", str(CORPUS / name), str(CORPUS / "gunicorn-mended.service")]) == 1
    assert "write: " in capsys.readouterr().out


def test_why_and_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    """A finding has why, with its numbers, the line to write, and where that is written."""
    cli.main(["doctor", str(CORPUS / "gunicorn-docs.service")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    out = " ".join(out.split())
    assert "systemd kills gunicorn after 5 s, which gives its work 30 s" in out
    assert "write: TimeoutStopSec=35 see:" in out
    assert "systemd.service(5), TimeoutStopSec=" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """--json is a list of units, each with its findings, the worst first."""
    path = str(CORPUS / "gunicorn-flask.service")
    assert cli.main(["doctor", "--json", path]) == 1
    (unit,) = json.loads(capsys.readouterr().out)
    assert (unit["unit"], unit["clean"]) == (path, False)
    assert [set(one) for one in unit["findings"]] == [{"id", "severity", "why", "line", "see"}] * len(
        unit["findings"]
    )
    ranks = [SEVERITIES.index(one["severity"]) for one in unit["findings"]]
    assert ranks == sorted(ranks)


def test_every_finding_says_all() -> None:
    """No finding in the corpus lacks its why, its line or its reference, and none has a format left open."""
    for name, _ in table():
        for one in findings(sources.from_file(str(CORPUS / name))):
            assert all((one.why, one.line, one.see)), (name, one)
            assert "{" not in one.why + one.line.replace("${", ""), (name, one)


def test_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colors are for a terminal, and NO_COLOR turns them off."""

    class Terminal:
        def isatty(self) -> bool:
            return True

    terminal: Any = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint(terminal) is coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint(terminal) is plain
    told = [("x", findings(sources.from_file(str(CORPUS / "waitress.service"))))]
    assert "\x1b[1;31mkills\x1b[0m" in show.as_text(told, coloured)


@pytest.mark.parametrize("verb", ["doctor", "new"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help has the exit statuses, and an example."""
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert re.search(r"The exit\s+status:\n\n  0  ", text)
    assert f"Such as\n\n    requiem-systemd {verb} " in text


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("/nowhere/a.service", "No such file"),
        ("./a.timer", "neither a service"),
        ("nowhere/", "neither a service"),
    ],
)
def test_unreadable_is_3(what: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be read is 3, and said on stderr."""
    assert cli.main(["doctor", what]) == 3
    assert said in capsys.readouterr().err


def test_no_systemctl_is_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit's name needs systemctl: without it 3, and what to do."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["doctor", "web"]) == 3
    assert "give the path of the unit's file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\xff",
        "[Service]\n" * 3,
        "[Service]\nExecStart=\\",
        "[Service]\nExecStart=-\nTimeoutStopSec=soon\nWatchdogSec=x",
    ],
)
def test_strange_files(tmp_path: Path, text: str) -> None:
    """A file of whatever is judged, not stumbled over."""
    for suffix in (".service", ".container", ".socket", "@.service"):
        assert isinstance(found(write(tmp_path / f"a{suffix}", text)), set)
