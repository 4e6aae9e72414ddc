"""What can be set, by code and by the unit; the unit wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from requiem_systemd.protocol import length


class Options(NamedTuple):
    """The options of `initialize`; lengths in seconds."""

    drain_timeout: float | None = None
    request_timeout: float = 30.0
    lame_duck: float | Literal["jobs"] = 0.0
    exit: bool | None = None
    exit_timeout: float = 90.0
    health: Callable[[], object] | None = None
    signals: bool = True
    take_environment: bool = True
    redact: Callable[[str], str] | None = None

    def checked(self) -> Options:
        """Return these if they make sense, else raise ValueError or TypeError."""
        for name in ("health", "redact"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                msg = f"{name}={getattr(self, name)!r}: give a function"
                raise TypeError(msg)
        duck: object = self.lame_duck  # callers without a type checker may give anything
        if isinstance(duck, str) and duck != "jobs":
            msg = f'lame_duck={duck!r}: give a number of seconds, or "jobs"'
            raise TypeError(msg)
        return self._replace(
            drain_timeout=None if self.drain_timeout is None else length("drain_timeout", self.drain_timeout),
            request_timeout=length("request_timeout", self.request_timeout),
            lame_duck=self.lame_duck if self.lame_duck == "jobs" else length("lame_duck", self.lame_duck),
            exit_timeout=length("exit_timeout", self.exit_timeout),
        )

    def overridden(self, limits: Mapping[str, float | str]) -> Options:
        """Return these with what the unit sets (REQUIEM_*); an infinite drain_timeout means none."""
        return self._replace(**{name: None if value == math.inf else value for name, value in limits.items()})  # type: ignore[arg-type] # protocol.read gives only these
