"""Test your own drains, in milliseconds and without systemd: a manager that plays it, and a clock that you move.

`FakeManager` shows how; the pytest plugin gives it as the fixture `requiem_manager`::

    def test_an_export_survives_a_restart(requiem_manager):
        export = start_export_in_a_thread()       # somewhere in it: with requiem.track("export 42")
        requiem_manager.stop()
        requiem_manager.advance(600)
        assert "export 42" in requiem_manager.status
        export.finish()
        requiem_manager.wait_for("dead")
        assert requiem_manager.result == "success"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requiem_systemd.testing.clock import FakeClock
    from requiem_systemd.testing.manager import FakeManager

__all__ = ["FakeClock", "FakeManager"]


def __getattr__(name: str) -> Any:
    """Load them when asked for: pytest imports this package at its start, for the plugin."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from requiem_systemd.testing import clock, manager  # noqa: PLC0415 - see above

    return {"FakeClock": clock.FakeClock, "FakeManager": manager.FakeManager}[name]
