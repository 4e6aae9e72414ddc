"""The manager's fd store: what a service keeps there outlives its process (sd_notify(3), FDSTORE=1)."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME_MAX: Final = 255


class FdStore:
    """At most `most` descriptors, newest first, each open file once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[str, int]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of what is kept."""
        return tuple(name for name, _ in self.kept())

    def message(self, values: Mapping[str, str], fds: tuple[int, ...]) -> None:
        """Keep, remove, or close what a datagram brought."""
        name = values.get("FDNAME", "")
        if values.get("FDSTOREREMOVE") == "1" and name:
            for kept in [kept for kept in self._kept if kept[0] == name]:
                self._kept.remove(kept)
                os.close(kept[1])
        keep = values.get("FDSTORE") == "1" and values.get("FDSTOREREMOVE") != "1"
        for fd in fds:
            if (
                keep
                and len(self._kept) < self._most
                and not any(os.path.sameopenfile(fd, other) for _, other in self._kept)
            ):
                self._kept.insert(0, (name if _is_name(name) else "stored", fd))
            else:
                os.close(fd)

    def kept(self) -> list[tuple[str, int]]:
        """Return names and descriptors; what has hung up since is let go."""
        for kept in [kept for kept in self._kept if _is_dead(kept[1])]:
            self._kept.remove(kept)
            os.close(kept[1])
        return list(self._kept)

    def clear(self) -> None:
        """Give all back, as the end of a stop without a restart does."""
        while self._kept:
            os.close(self._kept.pop()[1])


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _NAME_MAX and name.isascii() and name.isprintable() and ":" not in name


def _is_dead(fd: int) -> bool:
    if not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))
