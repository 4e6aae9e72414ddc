"""The drop-ins for units that are there already: with them the units of servers' documentations hold their jobs past TimeoutStopSec=."""

from __future__ import annotations

import dataclasses
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import redisserver
from tests.conftest import any_port
from tests.systemd.conftest import UNITS, Unit, stop
from tests.systemd.rolling import settings_text
from tests.systemd.sandbox import CHECKOUT
from tests.unit.test_doctor import CORPUS

if TYPE_CHECKING:
    from tests.systemd.sandbox import Sandbox

EXAMPLES: Final = CHECKOUT / "examples"


@dataclasses.dataclass(frozen=True)
class Documented:
    """A unit as a documentation has it, and what is at the paths that it names."""

    unit: str
    drop_in: str
    folder: str  # where its application is
    files: dict[str, str]  # what is there: the examples, by the names that the unit has for them
    links: dict[str, str]  # and what of the virtual environment is where
    command: str = ""  # in the place of its own, whose paths cannot be had here
    begins: str = ""  # the address, or the program, by which a job begins

    @property
    def name(self) -> str:
        """The name under which it runs."""
        return self.unit.replace("@.", "@1.")


ALL: Final = (
    Documented(
        "gunicorn-docs.service",
        "gunicorn",
        "/home/someuser/applicationroot",
        {"applicationname/wsgi.py": "13_flask.py", "gunicorn.conf.py": "13_gunicorn.conf.py"},
        {"/home/someuser/applicationroot/venv": ""},
        begins="/export",
    ),
    Documented(
        "uvicorn-module.service",
        "uvicorn",
        "/var/www/myapp",
        {"main.py": "04_fastapi.py"},
        {},
        command="{python} -m uvicorn main:app --host 127.0.0.1 --port {port}",
        begins="/export",
    ),
    Documented("celery-docs.service", "celery", "/opt/celery", {"proj.py": "15_celery.py"}, {"/opt/celery/venv": ""}, begins="proj.py"),
    Documented(
        "rqworker@.service",
        "rq",
        "/path/to/working_directory",
        {"16_rq.py": "16_rq.py"},
        {"/path/to/rq": "bin/rq"},
        command="/path/to/rq worker",
        begins="16_rq.py",
    ),
)
#: Celery's documentation has this file beside its unit.
CELERY: Final = """
CELERY_BIN="/opt/celery/venv/bin/celery"
CELERY_APP="proj"
CELERYD_NODES="w1"
CELERYD_LOG_LEVEL="INFO"
CELERYD_PID_FILE="/var/run/celery/%n.pid"
CELERYD_LOG_FILE="/var/log/celery/%n%I.log"
CELERYD_OPTS="--concurrency=1"
"""


def install(box: Sandbox, python: str, one: Documented, port: int, broker: str) -> Unit:
    """Write a documented unit, our drop-in, what it runs, and what must be otherwise here."""
    for place, example in one.files.items():
        text = (EXAMPLES / example).read_text()
        box.write(f"{one.folder}/{place}", text + ("\napplication = app\n" if place.endswith("wsgi.py") else ""))
    for place, source in one.links.items():
        box.run("rm", "-rf", place)  # where there is what stands for it, see test_units
        box.run("mkdir", "-p", Path(place).parent)
        box.run("rm", "-rf", place)  # test_units has what stands for programs there
        box.run("ln", "-sfn", Path(python).parents[1] / source, place)
    box.unit(one.unit, (CORPUS / one.unit).read_text())
    for name in (one.drop_in, "hardening"):
        box.unit(f"{one.unit}.d/{name}.conf", (CHECKOUT / "units/drop-ins" / f"{name}.conf").read_text())
    environment = (f"PYTHONPATH={CHECKOUT}", f"EXAMPLE_PORT={port}", f"EXAMPLE_BROKER={broker}", f"RQ_REDIS_URL={broker}")
    own: dict[str, object] = {
        "User": "",
        "WorkingDirectory": one.folder,
        "TimeoutStopSec": 2,
        "Environment": [*environment, "EXAMPLE_SECONDS=5", "PYTHONUNBUFFERED=1"],
    }
    if one.command:
        own["ExecStart"] = ["", one.command.format(python=python, port=port)]
    if one.drop_in == "uvicorn":  # the command is that of a package which is not installed here
        own["ExecReload"] = ["", f"{python} -m requiem_systemd reload --pid $MAINPID"]
    box.unit(f"{one.unit}.d/zz.conf", f"[Service]\n{settings_text(own)}")
    return Unit(box, one.name)


def begin(box: Sandbox, python: str, one: Documented, port: int, broker: str) -> None:
    """Have a job begin."""
    if one.begins.startswith("/"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{one.begins}", timeout=10) as answer:
            assert answer.status == 200
        return
    box.run(python, f"{one.folder}/{one.begins}", cwd=one.folder, env={"PYTHONPATH": str(CHECKOUT), "EXAMPLE_BROKER": broker})


@pytest.mark.since("0.93", "lifespan= as the example has it", "fastapi")
@pytest.mark.since("2.12", "worker that the adapter can hold", "rq")
@pytest.mark.since("25", "arbiter that the adapter can hold", "gunicorn")
@pytest.mark.timeout(120)
def test_documented_units(sandbox: Sandbox, python: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each is ready, has a job of 5 s, is exposed by 1.5 at most, and ends well after the job, though it has 2 s."""
    if sandbox.run(python, "-c", "import celery, fastapi, flask, gunicorn, rq", check=False).returncode:
        pytest.skip("this Python lacks the servers")
    ports = [any_port(), any_port(), 0, 0]
    units = request.node.stash.setdefault(UNITS, [])
    with redisserver.serving(tmp_path) as broker:
        sandbox.write("/etc/conf.d/celery", CELERY)
        sandbox.unit("gunicorn.socket", f"[Socket]\nListenStream=127.0.0.1:{ports[0]}\nService=gunicorn-docs.service\n")
        units += [install(sandbox, python, one, port, broker.url) for one, port in zip(ALL, ports, strict=True)]
        names = [unit.name for unit in units]
        # systemd forgets a unit that has ended well, its result and its times, unless another refers to it.
        sandbox.unit("documented.target", f"[Unit]\nAfter={' '.join(names)}\n")
        sandbox.daemon_reload()
        try:
            sandbox.systemctl("start", "documented.target", *names)
            for one, unit, port in zip(ALL, units, ports, strict=True):
                begin(sandbox, python, one, port, broker.url)
                unit.wait_for(": begun")
            exposed = [sandbox.run("systemd-analyze", "security", "--threshold=15", "--no-pager", name, check=False) for name in names]
            assert [done.returncode for done in exposed] == [0] * len(ALL), [done.stdout[-1500:] for done in exposed]
            ended = stop(*units)
            journals = [unit.journal() for unit in units]
            assert [(unit.result, unit.status) for unit in ended] == [("success", 0)] * len(ALL), journals
            assert ["done" in journal for journal in journals] == [True] * len(ALL), journals
        finally:
            sandbox.systemctl("stop", "--no-block", "gunicorn.socket", *names, check=False)
            sandbox.systemctl("kill", "--signal=KILL", *names, check=False)
            sandbox.run("sh", "-c", f"cd /run/systemd/system && rm -r gunicorn.socket {' '.join(one.unit + '*' for one in ALL)}")
            sandbox.daemon_reload()
