"""waitress as most people start it: its server is shown to nobody."""

import sys

import waitress

import requiem_systemd as requiem
from record import record
from wsgi_app import app

requiem.initialize()
record("startup")
requiem.ready()
if sys.argv[1:]:
    waitress.serve(app, listen=f"127.0.0.1:{sys.argv[1]}", threads=8)
else:
    waitress.serve(app, sockets=[requiem.listener("http")], threads=8)
record("shutdown")
