"""The unit templates: systemd understands every line, and finds little to fear in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.systemd.sandbox import Sandbox

UNITS = Path(__file__).parents[2] / "units"
FOLDER = "/run/requiem-verify"


@pytest.fixture(scope="module")
def folder(sandbox: Sandbox) -> str:
    """Return a folder inside with all templates, and with the programs that they start."""
    for path in UNITS.glob("*.s*"):
        sandbox.write(f"{FOLDER}/{path.name}", path.read_text())
        for program in re.findall(r"^Exec\w+=(\S+)", path.read_text(), re.MULTILINE):
            named = program.replace("%N", path.stem).replace("%p", path.stem.removesuffix("@"))
            sandbox.write(named, "#!/bin/sh\n", mode=0o755)
    return FOLDER


@pytest.mark.parametrize("name", [path.name for path in sorted(UNITS.glob("*.s*"))])
def test_verified(sandbox: Sandbox, folder: str, name: str) -> None:
    """`systemd-analyze verify` has nothing to say; of what is newer than 252 it says just that."""
    done = sandbox.run("systemd-analyze", "verify", "--man=no", f"{folder}/{name}", check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if name in line]
    if name == "notify-reload.service" and sandbox.systemd_version < 253:
        said = [line for line in said if "Failed to parse service type, ignoring: notify-reload" not in line]
    if name == "rolling@.service" and sandbox.systemd_version < 254:
        said = [line for line in said if not re.search("Unknown key '(RestartSteps|RestartMaxDelaySec)'", line)]
    assert said == []
    assert done.returncode == 0


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(UNITS.glob("*.service")) if "hardening" in path.read_text()]
)
def test_secured(sandbox: Sandbox, folder: str, name: str) -> None:
    """`systemd-analyze security` gives 1.5 at most."""
    done = sandbox.run(
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--threshold=15",
        "--no-pager",
        f"{folder}/{name}",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:]
