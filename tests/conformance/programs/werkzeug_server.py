"""Werkzeug's server, as `flask run` starts it, but where it can be tracked."""

import sys

from werkzeug.serving import make_server

import requiem_systemd as requiem
from wsgi_app import app

requiem.initialize()
kind = {"threaded": {"threaded": True}, "processes": {"processes": 8}}[sys.argv[1]]
if sys.argv[2:]:
    server = make_server("127.0.0.1", int(sys.argv[2]), app, **kind)
else:
    server = make_server("127.0.0.1", 0, app, fd=requiem.listener("http").fileno(), **kind)
requiem.track_socket(server)
requiem.ready()
server.serve_forever()
