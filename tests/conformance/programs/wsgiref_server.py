"""wsgiref's server, one thread a request."""

import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import requiem_systemd as requiem
from wsgi_app import app


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """As its documentation has it."""


class Quiet(WSGIRequestHandler):
    """Writes no access log."""

    def log_message(self, *_):
        """Say nothing."""


requiem.initialize()
port = int(sys.argv[1]) if sys.argv[1:] else 0
server = Server(("127.0.0.1", port), Quiet, bind_and_activate=bool(port))
if not port:
    server.socket.close()
    server.socket = requiem.listener("http")
    server.server_name, server.server_port = "localhost", server.socket.getsockname()[1]
    server.setup_environ()
server.set_app(app)
requiem.track_socket(server)
requiem.ready()
server.serve_forever()
