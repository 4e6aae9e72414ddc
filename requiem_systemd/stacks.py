"""Where threads, tasks and processes stand: file, line and function, never locals."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from requiem_systemd.jobinfo import JobInfo
from requiem_systemd.ledger import JOB, Entry
from requiem_systemd.protocol import clean, duration

_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep
# BaseEventLoop.run_forever, and Runner.run for loops that are not written in Python (uvloop)
_LOOP_FUNCTIONS: Final = frozenset(("run_forever", "run"))
# Of an entry's methods only these lie where it is entered: a request's `send` is handed on to other tasks.
_EXITS: Final = frozenset(("__exit__", "__aexit__"))
_HERE: Final = os.path.dirname(__file__) + os.sep


def line(frame: FrameType) -> str:
    """Write one frame as file:line:function."""
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno}:{code.co_name}"


def frames(owner: object) -> list[FrameType]:
    """Return the frames of a thread (by ident) or of a task, innermost first; empty where none can be seen."""
    if isinstance(owner, int):
        frame = sys._current_frames().get(owner)  # noqa: SLF001 - the documented way to see other threads' frames
        found = []
        while frame is not None:
            found.append(frame)
            frame = frame.f_back
        return found
    if not hasattr(owner, "get_coro"):
        return []
    seen = (getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None) or getattr(step, "ag_frame", None) for step in _awaited(owner))
    return [frame for frame in seen if frame is not None][::-1]


def running_task() -> Any:
    """Return the running asyncio task, None where there is none."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.current_task()
    except (RuntimeError, AttributeError):  # no running loop; a half-imported asyncio
        return None


def task_of(entry: Entry) -> object:
    """Return the asyncio task that is inside this entry's `with`, else the owner that was noted.

    Asking for the running task costs as much as all of tracking (CPython 3.11 calls getpid for it), so it is found here:
    the entry, or its bound `__aexit__`, lies on the value stack of one suspended coroutine of the loop that its thread runs.
    """
    return TaskIndex((entry,)).task_of(entry)


class TaskIndex:
    """The tasks that are inside of many entries' `with`, found in one pass; `late` says when to look no further."""

    def __init__(self, entries: Iterable[Entry], late: Callable[[], bool] = bool) -> None:
        by_thread: dict[int, list[Entry]] = {}
        for entry in entries:
            if isinstance(owner := getattr(entry, "owner", None), int):
                by_thread.setdefault(owner, []).append(entry)
        self._found: dict[int, object] = {}
        asyncio = sys.modules.get("asyncio")
        if asyncio is None:
            return
        for ident, own in by_thread.items():
            # A loop that is written in C (uvloop) and not run by asyncio's Runner shows no frame: a request knows its own.
            loop = _loop_of(ident) or next(filter(None, (getattr(entry.extra(), "loop", None) for entry in own)), None)
            if loop is not None and not late():
                self._look(asyncio, loop, {id(entry) for entry in own}, late)

    def _look(self, asyncio: Any, loop: Any, wanted: set[int], late: Callable[[], bool]) -> None:
        current = asyncio.current_task(loop)
        if current is not None:
            self._found.update(dict.fromkeys(wanted, current))
        try:
            tasks = asyncio.all_tasks(loop)
        except RuntimeError:  # they come and go faster than they can be listed from this thread
            return
        for task in tasks:
            if late():
                return
            for awaited in _awaited(task):
                for thing in gc.get_referents(awaited):
                    if getattr(thing, "__name__", "") in _EXITS:
                        thing = getattr(thing, "__self__", thing)  # noqa: PLW2901 - what it is bound to lies there by it
                    if id(thing) in wanted:
                        self._found[id(thing)] = task

    def task_of(self, entry: Entry) -> object:
        """Return the task inside an entry, else the owner that was noted."""
        return self._found.get(id(entry), getattr(entry, "owner", None))


def _loop_of(ident: int) -> Any:
    """Return the event loop that a thread runs, as its frames show it.

    Only asyncio's own frames are looked into: `f_locals` leaves a copy behind in the frame (CPython up to 3.12), which would keep
    alive what a user's function has dropped since, trackers included.
    """
    folder = os.path.dirname(sys.modules["asyncio"].__file__ or "") + os.sep
    frame = sys._current_frames().get(ident)  # noqa: SLF001 - see frames
    while frame is not None:
        code = frame.f_code
        if code.co_name in _LOOP_FUNCTIONS and code.co_filename.startswith(folder):
            this: Any = frame.f_locals.get("self")
            for loop in (this, getattr(this, "_loop", None)):
                if loop is not None and hasattr(loop, "call_soon_threadsafe") and loop.is_running():
                    return loop
        frame = frame.f_back
    return None


def _awaited(task: Any) -> list[Any]:
    """Return a task's coroutine and what it awaits, outermost first."""
    awaiting, found = task.get_coro(), list[Any]()
    while awaiting is not None and len(found) < 200:
        if not any(hasattr(awaiting, name) for name in ("cr_frame", "gi_frame", "ag_frame")):
            break
        found.append(awaiting)
        awaiting = getattr(awaiting, "cr_await", None) or getattr(awaiting, "gi_yieldfrom", None) or getattr(awaiting, "ag_await", None)
    return found


def place(owner: object) -> str:
    """Say where an owner stands: its innermost frame outside the standard library, else its innermost, "" if unknown."""
    found = frames(owner)
    inner = [frame for frame in found if not _is_library(frame.f_code.co_filename)]
    return line((inner or found)[0]) if found else ""


def _is_library(filename: str) -> bool:
    return filename.startswith((_LIBRARY, "<frozen ", _HERE)) and "-packages" not in filename[len(_LIBRARY) :]


def stack(owner: object) -> str:
    """Write where an owner stands, innermost first, a frame a line."""
    return "\n".join(line(frame) for frame in frames(owner))


def owner_name(owner: object) -> str:
    """Name an owner for people."""
    if isinstance(owner, int):
        for thread in threading.enumerate():
            if thread.ident == owner:
                return f"thread {thread.name}"
        return f"thread {owner}"
    if hasattr(owner, "get_name"):
        return f"task {owner.get_name()}"
    return "" if owner is None else str(owner)


def describe(entry: Entry, age: float, redact: Any = None, find: Callable[[Entry], object] = task_of) -> JobInfo:
    """Show one entry as it stands now; `redact` sees the label and the status before they leave the process. `find`: `task_of`."""
    more = entry.extra()
    owner = find(entry)
    label, status = clean(entry.name), clean(more.status) if more else ""
    shown = redacted(redact, label), redacted(redact, status)
    return JobInfo(shown[0], age, owner_name(owner), shown[1], place(owner), more.kind if more else JOB)


def redacted(redact: Any, text: str) -> str:
    """Show what a user's function leaves of a text; nothing of it where that fails, for the drain must go on."""
    if redact is None or not text:
        return text
    try:
        return clean(redact(text))
    except Exception as error:  # noqa: BLE001 - user code
        return f"<redact failed: {type(error).__name__}>"


def brief(job: JobInfo) -> str:
    """Write one job as STATUS shows it: "export 42" 4 min (uploading)."""
    shown = clean(job.label, 120)
    return f'"{shown}" {duration(job.age)}' + (f" ({clean(job.status, 120)})" if job.status else "")
