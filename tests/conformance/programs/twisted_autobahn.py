"""A Twisted site whose WebSockets are Autobahn's: it takes the transport from the site's protocol, and tells it nothing any more."""

import sys

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor
from twisted.web import resource, server

import requiem_systemd as requiem
from record import record


class Greeter(WebSocketServerProtocol):
    """Says hello."""

    def onOpen(self):
        """Say it."""
        self.sendMessage(b"hello")

    def onClose(self, was_clean, code, reason):
        """Take note."""
        record("closed")


requiem.initialize()
sockets = WebSocketServerFactory()
sockets.protocol = Greeter
root = resource.Resource()
root.putChild(b"", WebSocketResource(sockets))
requiem.track_socket(reactor.listenTCP(int(sys.argv[1]), server.Site(root), interface="127.0.0.1"))
reactor.callWhenRunning(requiem.ready)
reactor.run()
