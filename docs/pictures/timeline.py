"""Stop a real service with jobs in flight, and have `requiem-systemd history` draw that drain.

Usage: timeline.py OUT.svg
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))
from tests import supplies  # noqa: E402 -- found thanks to the line above
from tests.systemd.sandbox import Sandbox  # noqa: E402 -- the same

# Six jobs in a drain under TimeoutStopSec=3: one is over before it, one is begun by another.
SERVICE: Final = """
import threading, time
import requiem_systemd as requiem

JOBS = (("invoice 1201", 1.2), ("mail 88", 2.6), ("export 42", 7.5), ("thumbnail 7", 4.1), ("backup", 9.0))

def run(label, seconds):
    with requiem.track(label):
        requiem.wait_begin()
        time.sleep(seconds)
        if label == "thumbnail 7":
            threading.Thread(target=run, args=("thumbnail 8", 2.2)).start()
            time.sleep(0.1)

requiem.initialize()
for job in JOBS:
    threading.Thread(target=run, args=job).start()
while len(requiem.in_flight()) < len(JOBS):
    time.sleep(0.01)
requiem.ready()
requiem.wait()
"""
UNIT: Final = """
[Service]
Type=notify
NotifyAccess=main
KillMode=mixed
TimeoutStopSec=3
Environment=PYTHONPATH={checkout}
ExecStart={python} /srv/shop.py
"""


def main(target: Path) -> None:
    """Write the picture."""
    python = supplies.virtual_environment(supplies.GROUPS) / "bin" / "python"
    with Sandbox() as box:
        box.bind(CHECKOUT)
        box.write("/srv/shop.py", SERVICE)
        box.write("/etc/systemd/system/shop.service", UNIT.format(checkout=CHECKOUT, python=python))
        box.systemctl("daemon-reload")
        box.systemctl("start", "shop")
        box.systemctl("stop", "shop", timeout=60)
        box.run("journalctl", "--sync")
        told = box.run(str(python), "-m", "requiem_systemd", "history", "shop", "--svg", "/srv/drain.svg", env={"PYTHONPATH": str(CHECKOUT)})
        sys.stdout.write(told.stdout)
        target.write_text(box.read("/srv/drain.svg"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").strip())
    main(Path(sys.argv[1]))
