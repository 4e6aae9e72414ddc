"""The way out: the main thread's end is a begin, and abandoned jobs do not keep the process.

`threading._register_atexit` is the only hook that runs while threads can still be started and nothing has been torn down:
`atexit` comes after the interpreter has joined every non-daemon thread. concurrent.futures uses it to end its pools; hooks run last
registered first, so its module is imported before ours is registered, and jobs can submit to pools until the last of them ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any


def at_main_threads_end(callback: Callable[[], object]) -> None:
    """Call back when the main thread has ended, before anything is torn down."""
    register: Any = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(callback)
        return
    import concurrent.futures.thread  # noqa: F401, PLC0415 - for its place in the order of the hooks, see above

    register(callback)


def leave(status: int, abandoned: Collection[object]) -> None:
    """End the process with `status`, waiting for every other thread but those that `abandoned` names by ident.

    What `Py_FinalizeEx` does as far as it can be done without joining an abandoned thread: threads, atexit callbacks, streams.
    """
    pools: Any = sys.modules.get("concurrent.futures.thread")
    idle = getattr(pools, "_threads_queues", ())  # a pool's threads wait for work for ever
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon and thread.ident not in abandoned and thread not in idle:
            thread.join()
    atexit._run_exitfuncs()  # noqa: SLF001 - what the interpreter itself calls
    flush()
    os._exit(status)


def flush() -> None:
    """Write out what the streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or none at all
            continue
