"""What holds the stop, as a value to show."""

from __future__ import annotations

from typing import NamedTuple


class JobInfo(NamedTuple):
    """One tracker as it stood when it was asked for.

    `age` is in seconds. `owner` is "thread NAME", "task NAME" or "process PID". `where` is "file:line:function" of the
    place where the owner stands, "" where that cannot be known. `kind` is "job", "request", "connection", "listener",
    "hook" or "worker".
    """

    label: str
    age: float
    owner: str
    status: str
    where: str
    kind: str = "job"
