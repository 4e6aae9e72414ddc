"""`GET /` tells the version that answers; `POST /export?seconds=8` begins an export."""

from __future__ import annotations

import http.server
import itertools
import threading
import time
from urllib.parse import parse_qs, urlsplit

import requiem_systemd as requiem
from shop import VERSION

numbers = itertools.count(1)


def export(number: int, seconds: float) -> None:
    """Work for a while."""
    print(f"export {number} begun by {VERSION}", flush=True)
    time.sleep(seconds)
    from shop.receipt import receipt  # noqa: PLC0415 - late, as many libraries do it: this has to be the file of our own version

    print(receipt(number), flush=True)


class Shop(http.server.BaseHTTPRequestHandler):
    """The front door."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Tell the version."""
        self.answer(VERSION)

    def do_POST(self) -> None:
        """Begin an export, and answer before it is done."""
        seconds = float(parse_qs(urlsplit(self.path).query).get("seconds", ["8"])[0])
        number = next(numbers)
        requiem.track(threading.Thread(target=export, args=(number, seconds)), label=f"export {number}").start()
        self.answer(f"export {number}")

    def answer(self, text: str) -> None:
        """Send a line."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Stay silent."""


requiem.initialize()
server = http.server.ThreadingHTTPServer(("", 0), Shop, bind_and_activate=False)
server.socket.close()
server.socket = requiem.listener("http")
requiem.track_socket(server)
requiem.ready(f"version {VERSION}")
server.serve_forever()
