"""What the programs of the tests write down: one line for each event, in one file, from any process."""

import os
import threading
import time


def record(text: str) -> None:
    """Append a line; one write is atomic."""
    with open(os.environ["RECORD"], "ab", buffering=0) as file:
        file.write(f"{text}\n".encode())


def job(name: str, seconds: float) -> None:
    """Work, in a thread."""
    record(f"begun {name}")
    time.sleep(seconds)
    record(f"ended {name}")


def hang() -> None:
    """Never return, in a thread."""
    threading.Event().wait(1000)
