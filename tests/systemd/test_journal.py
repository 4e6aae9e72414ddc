"""A journal that hangs does not hang the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.systemd.conftest import ServiceFactory
    from tests.systemd.sandbox import Sandbox

CHECKOUT = Path(__file__).parents[2]

# More warnings than the queue of journald's socket holds; begun by a reload, so that journald lives until the start is over.
FLOOD = """
import logging, requiem_systemd as requiem

@requiem.on("reload")
def flood():
    for number in range(1500):
        logging.getLogger("requiem_systemd").warning("flood %d", number)

requiem.initialize()
requiem.ready()
requiem.wait()
"""


def test_hung_journald(service: ServiceFactory, sandbox: Sandbox) -> None:
    """While journald is stopped and its queue is full, the service reloads and stops; no record is lost."""
    unit = service(FLOOD, Environment=f"PYTHONPATH={CHECKOUT}")
    journald = sandbox.show("systemd-journald.service", "MainPID")["MainPID"]
    sandbox.run("kill", "-STOP", journald)
    try:
        unit.kill("HUP")
        stopped = unit.stop()
    finally:
        sandbox.run("kill", "-CONT", journald)
    assert stopped.result == "success"
    assert "reloading -> " in unit.journal()
    assert unit.journal().count("flood") == 1500
