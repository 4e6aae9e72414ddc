"""aiohttp's own way to run an application."""

import os
import ssl
import sys

from aiohttp import web

import requiem_systemd as requiem
from aiohttp_app import make

app = make()
if "PLAIN" not in os.environ:
    requiem.track_socket(app)
tls = None
if sys.argv[2:]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(sys.argv[2])
if sys.argv[1:]:
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), ssl_context=tls, shutdown_timeout=0.5, print=None)
else:
    web.run_app(app, sock=requiem.listener("http"), shutdown_timeout=0.5, print=None)
