"""A Twisted site; what is ours is the line that tracks its port, `track` on what is a job, and the resource of the health path."""

import os
import sys

from twisted.internet import defer, reactor, task
from twisted.web import resource, server, websocket

import requiem_systemd as requiem
from record import record
from requiem_systemd.adapters import twistedports


@requiem.track
async def job(name, seconds):
    """Work."""
    record(f"begun {name}")
    await task.deferLater(reactor, seconds)
    record(f"ended {name}")


@requiem.track
async def chain(seconds):
    """Work, then have another job begin."""
    await job("first", seconds)
    begin(job("second", 1))


def begin(coroutine):
    """Have a coroutine run."""
    defer.ensureDeferred(coroutine)


def argument(request, name, default):
    """Return an argument of the query."""
    return request.args.get(name.encode(), [default.encode()])[0].decode()


class Root(resource.Resource):
    """Serves everything but what has a resource of its own."""

    def getChild(self, _path, _request):
        """Serve it here."""
        return self

    def render_GET(self, request):
        """Answer later."""
        gone = request.notifyFinish()
        answer = defer.ensureDeferred(self.answer(request))
        gone.addErrback(lambda _: answer.cancel())
        answer.addErrback(self.failed, request)
        return server.NOT_DONE_YET

    def failed(self, failure, request):
        """Answer for a handler that failed."""
        if not failure.check(defer.CancelledError):
            request.setResponseCode(500)
            request.finish()

    async def answer(self, request):
        """Answer."""
        path = request.path.decode()
        seconds = float(argument(request, "s", "1"))
        match path:
            case "/slow":
                await task.deferLater(reactor, seconds)
            case "/job":
                begin(job(argument(request, "name", "job"), seconds))
            case "/chain":
                begin(chain(seconds))
            case "/fail":
                raise ZeroDivisionError
            case "/hang":
                await task.deferLater(reactor, 1000)
        request.setHeader("Content-Length", str(len(path)))
        request.write(path.encode())
        request.finish()


class Stream(Root):
    """Answers in pieces."""

    async def answer(self, request):
        """Answer."""
        for piece in range(int(argument(request, "n", "1"))):
            request.write(f"piece {piece}\n".encode())
            await task.deferLater(reactor, float(argument(request, "s", "1")))
        request.write(b"end\n")
        request.finish()


class Events(Root):
    """Sends events until told to stop."""

    async def answer(self, request):
        """Answer."""
        request.setHeader("Content-Type", "text/event-stream")
        while not requiem.should_stop():
            request.write(b"data: tick\n\n")
            await task.deferLater(reactor, 0.1)
        request.write(b"data: bye\n\n")
        request.finish()


class Socket:
    """Says when it is time to go; or, at /deaf, never."""

    def __init__(self, request):
        self.deaf = request.path == b"/deaf"
        self.ticks = task.LoopingCall(self.tick)

    def negotiationStarted(self, transport):
        """Keep the transport."""
        self.transport = transport

    def negotiationFinished(self):
        """Begin to send."""
        self.ticks.start(0.1)

    def tick(self):
        """Send, or go."""
        if self.deaf or not requiem.should_stop():
            self.transport.sendTextMessage("tick")
        else:
            self.ticks.stop()
            self.transport.loseConnection(1012)

    def connectionLost(self, _reason):
        """Send no more."""
        if self.ticks.running:
            self.ticks.stop()


class Sockets(websocket.WebSocketResource):
    """Switches protocols where asked to."""

    def __init__(self):
        super().__init__(self)

    def buildProtocol(self, request):
        """Make what talks."""
        return Socket(request)

    def render_GET(self, request):
        """Answer, or switch protocols."""
        return super().render_GET(request) if request.getHeader("Upgrade") else b"/"


def shutdown():
    """Shut down, which takes a while: nothing cuts it off."""
    reactor.addSystemEventTrigger("during", "shutdown", record, "shutdown")
    return task.deferLater(reactor, 1.5)


requiem.initialize()
root = Root()
root.putChild(b"", Sockets())
root.putChild(b"deaf", Sockets())
root.putChild(b"stream", Stream())
root.putChild(b"events", Events())
root.putChild(b"health", twistedports.health())
site = server.Site(root)
if sys.argv[2:]:
    from twisted.internet import ssl

    port = reactor.listenSSL(int(sys.argv[1]), site, ssl.DefaultOpenSSLContextFactory(*sys.argv[2:] * 2), interface="127.0.0.1")
elif sys.argv[1:]:
    port = reactor.listenTCP(int(sys.argv[1]), site, interface="127.0.0.1")
else:
    listener = requiem.listener("http")
    port = reactor.adoptStreamPort(listener.fileno(), listener.family, site)
if "PLAIN" not in os.environ:
    requiem.track_socket(port)
record("startup")
reactor.addSystemEventTrigger("before", "shutdown", shutdown)
reactor.callWhenRunning(requiem.ready)
reactor.run()
