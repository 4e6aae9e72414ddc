"""What can go wrong, one class for each thing a caller may do about it."""

from __future__ import annotations

from requiem_systemd.jobinfo import JobInfo


class RequiemError(Exception):
    """Base of every error that this package raises on its own account."""


class DrainingError(RequiemError):
    """Raised where no new work is let in: `admit` once the drain has begun, `track` once it is over."""


class AbandonedError(RequiemError):
    """Raised by `wait` when the service has stopped and jobs had to be abandoned.

    `jobs` names them.
    """

    def __init__(self, jobs: tuple[JobInfo, ...]) -> None:
        names = ", ".join(f'"{job.label}"' for job in jobs[:20])
        more = f" and {len(jobs) - 20} more" if len(jobs) > 20 else ""
        counted = "1 job was" if len(jobs) == 1 else f"{len(jobs)} jobs were"
        super().__init__(f"{counted} abandoned: {names}{more}")
        self.jobs = jobs


class ListenerError(RequiemError):
    """Raised when a listener that was asked for was not passed and cannot be bound."""


class NotMainThreadError(RequiemError):
    """Raised by `initialize` outside the main thread of the main interpreter, where no signal can be armed."""


class ReloadError(RequiemError):
    """Raised when a reload failed: the old state is kept, the message says why."""


class WorkerError(RequiemError):
    """Raised when a worker process cannot be started."""


class ProtocolError(RequiemError, ValueError):
    """Raised when text is not what sd_notify(3), sd_listen_fds(3) or systemd.time(7) describe."""
