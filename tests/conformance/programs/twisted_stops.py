"""A Twisted service that stops its reactor itself, in the middle of a job; its listener is one of ours, its site has two ports."""

import sys

from twisted.internet import defer, reactor, task
from twisted.web import resource, server

import requiem_systemd as requiem
from record import record


@requiem.track
async def job():
    """Work."""
    record("begun job")
    await task.deferLater(reactor, 3)
    record("ended job")


class Root(resource.Resource):
    """Begins a job, and stops in one of two ways."""

    def render_GET(self, request):
        """Answer."""
        defer.ensureDeferred(job())
        reactor.callLater(0.1, reactor.stop if request.path == b"/exit" else requiem.begin)
        return b""


requiem.initialize()
root = Root()
root.isLeaf = True
site = server.Site(root)
listener = requiem.listener("http", fallback=("127.0.0.1", int(sys.argv[1])))
requiem.track_socket(reactor.adoptStreamPort(listener.fileno(), listener.family, site))
requiem.track_socket(reactor.listenTCP(0, site, interface="127.0.0.1"))
reactor.addSystemEventTrigger("during", "shutdown", record, "cleaned")
reactor.callWhenRunning(requiem.ready)
reactor.run()
record("behind run_app")
