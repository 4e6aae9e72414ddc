"""`systemctl reload` without a restart: a handler reads the configuration anew; one that raises keeps the old."""

import json
import os
import threading
import time
from pathlib import Path

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PATH = Path(os.environ.get("EXAMPLE_CONFIG", "/etc/example.json"))

config = {"greeting": "Hello"}


@requiem.on("reload")
def read_config() -> None:
    """Read the configuration; systemd says "reloading" meanwhile, and `systemctl status` what was wrong."""
    global config  # noqa: PLW0603 -- an example has no room for a class
    config = {"greeting": str(json.loads(PATH.read_text())["greeting"])}
    print(f"config: {config['greeting']}", flush=True)


def greet() -> None:
    """Go on by the configuration that there is."""
    while not requiem.should_stop():
        with requiem.track("greeting"):
            print(f"{config['greeting']}: begun", flush=True)
            time.sleep(SECONDS)
            print(f"{config['greeting']}: done", flush=True)


if PATH.exists():  # else the default above, until a reload finds one
    read_config()
requiem.initialize()
threading.Thread(target=greet, daemon=True).start()
requiem.ready()
requiem.wait()
