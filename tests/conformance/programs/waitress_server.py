"""waitress, where it can be tracked."""

import sys

import waitress

import requiem_systemd as requiem
from record import record
from wsgi_app import app

requiem.initialize()
if sys.argv[1:]:
    server = waitress.create_server(app, listen=f"127.0.0.1:{sys.argv[1]}", threads=8)
else:
    server = waitress.create_server(app, sockets=[requiem.listener("http")], threads=8)
requiem.track_socket(server)
record("startup")
requiem.ready()
server.run()
record("shutdown")
