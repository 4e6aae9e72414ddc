"""No .socket unit: `keep=True` leaves the listener with systemd during a restart, so no client is refused.

The unit needs `FileDescriptorStoreMax=8`; the listener is the server's own, on the first start.
"""

import os
import socket
import threading
import time

import requiem_systemd as requiem

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PORT = int(os.environ.get("EXAMPLE_PORT", "8080"))


def answer(connection: socket.socket) -> None:
    """Serve one client."""
    with connection:
        print("client: begun", flush=True)
        connection.recv(4096)
        time.sleep(SECONDS)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nHello world!\n")
        print("client: done", flush=True)


requiem.initialize()
listener = requiem.listener("http", fallback=("127.0.0.1", PORT), keep=True)
requiem.track_socket(listener)
requiem.ready()
for connection, _ in requiem.accept(listener):
    requiem.track(threading.Thread(target=answer, args=(connection,), daemon=True), label="client").start()
