"""An application that stops Twisted's reactor by itself, at /stop."""

from asgi_app import plain
from requiem_systemd.asgi import TrackRequests
from twisted.internet import reactor


async def stopping(scope, receive, send):
    """Serve one scope."""
    if scope["path"] == "/stop":
        reactor.callLater(0, reactor.stop)
    await plain(scope, receive, send)


app = TrackRequests(stopping)
