"""`asgi` where no asyncio runs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from requiem_systemd.asgi import NEEDS_ASYNCIO, TrackRequests
from requiem_systemd.service import Service


def test_without_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """Under another loop (trio) the server is told not to start, and one line says why."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with caplog.at_level(logging.ERROR), pytest.raises(StopIteration):
        TrackRequests(app, service=Service(environ={}))({"type": "lifespan"}, receive, send).send(None)
    assert sent == [{"type": "lifespan.startup.failed", "message": NEEDS_ASYNCIO}]
    assert [record.message for record in caplog.records] == [NEEDS_ASYNCIO]
