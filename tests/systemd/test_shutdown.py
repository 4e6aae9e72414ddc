"""A shutdown waits for drains, and not for ever: past the limit of poweroff.target all are killed, in no order; a cap below it keeps it clean."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.systemd.conftest import unit_text
from tests.systemd.sandbox import CHECKOUT, Sandbox, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Instead of 30 minutes.
LIMIT: Final = 6
#: A job that never ends, and says all the time that it is at work.
APP: Final = """
import time
import requiem_systemd as requiem

log = open("FOLDER/log", "a", buffering=1)
requiem.initialize()
requiem.ready()
with requiem.track("import"):
    while True:
        print("app works", file=log)
        time.sleep(0.1)
"""
#: What the job needs: it is to be stopped after it.
DATABASE: Final = """
import requiem_systemd as requiem

log = open("FOLDER/log", "a", buffering=1)
requiem.initialize()
requiem.ready()
requiem.wait_begin()
print("database stops", file=log)
"""

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(120)]


@pytest.fixture
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Return a sandbox that is shut down."""
    if reason := missing():
        pytest.skip(f"no systemd: {reason}")
    with Sandbox(request.config.getoption("--sandbox-root"), bind=request.config.getoption("--sandbox-bind")) as box:
        yield box


@pytest.mark.parametrize(("cap", "clean"), [("infinity", False), ("2s", True)], ids=["no cap", "capped"])
def test_shutdown(box: Sandbox, python: str, tmp_path: Path, cap: str, clean: bool) -> None:  # noqa: FBT001 - a table
    """With a job that does not end the limit takes the database away from under it; capped, the job is abandoned, and then the database stops."""
    box.bind(tmp_path)
    for name, code, more in (("app", APP, {"REQUIEM_DRAIN_TIMEOUT": cap}), ("database", DATABASE, {})):
        box.write(f"/root/{name}.py", textwrap.dedent(code).replace("FOLDER", str(tmp_path)))
        environment = [f"{key}={value}" for key, value in {"PYTHONPATH": CHECKOUT, **more}.items()]
        text = unit_text(f"{python} -u /root/{name}.py", {"Environment": environment})
        box.unit(f"{name}.service", text + ("[Unit]\nAfter=database.service\n" if name == "app" else ""))
    box.unit("poweroff.target.d/limit.conf", f"[Unit]\nJobTimeoutSec={LIMIT}\n")
    box.daemon_reload()
    box.systemctl("start", "database", "app")
    begin = time.monotonic()
    box.systemctl("poweroff")
    log = tmp_path / "log"
    while not (after := log.read_text().partition("database stops\n")[1:])[0] or (not clean and "app works" not in after[1]):
        assert time.monotonic() - begin < 60, log.read_text()[-200:]
        time.sleep(0.05)
    print(f"the database was stopped after {time.monotonic() - begin:.1f} s")
    assert ("app works" in after[1]) != clean
