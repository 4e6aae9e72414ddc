"""A grpc.aio server: calls in flight are answered, clients are sent elsewhere, and a job outlives its call.

There is no generated code here, so that it runs as it is: a method takes bytes and gives bytes.
"""

import asyncio
import os

import grpc

import requiem_systemd as requiem
from requiem_systemd import aio
from requiem_systemd.adapters.grpc import TrackCalls

SECONDS = float(os.environ.get("EXAMPLE_SECONDS", "10"))
PORT = os.environ.get("EXAMPLE_PORT", "8080")


async def export() -> None:
    """Do what must not be cut off, long after the answer."""
    print("export: begun", flush=True)
    await asyncio.sleep(SECONDS)
    print("export: done", flush=True)


async def start_export(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    """Begin a job, and answer at once."""
    aio.spawn(export(), "export")
    return b"begun: " + request


async def main() -> None:
    """Serve until told to stop; `aio.run` waits for the jobs."""
    server = grpc.aio.server(interceptors=[TrackCalls()])
    handler = grpc.unary_unary_rpc_method_handler(start_export)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("example.Reports", {"Export": handler})])
    server.add_insecure_port(f"127.0.0.1:{PORT}")  # grpc opens its port itself: it cannot take one from a .socket unit
    requiem.track_socket(server)
    await server.start()
    requiem.ready()
    await server.wait_for_termination()


aio.run(main())
