"""A grpc.aio server."""

import asyncio
import sys

import grpc
from grpc_methods import done, handler
from record import record

import requiem_systemd as requiem
from requiem_systemd import aio
from requiem_systemd.adapters.grpc import TrackCalls


async def job(name, seconds):
    """Work, in a task."""
    record(f"begun {name}")
    await asyncio.sleep(seconds)
    record(f"ended {name}")


async def chain(seconds):
    """Work, then have another job begin."""
    await job("first", seconds)
    aio.spawn(job("second", 1), "second")


async def slow(request, context):
    """Answer late."""
    await asyncio.sleep(float(request))
    return b"slow"


async def count(request, context):
    """Answer in pieces."""
    for number in range(int(request)):
        yield b"%d" % number
        await asyncio.sleep(0.4)


async def write(request, context):
    """Answer in pieces, by the other way."""
    for number in range(int(request)):
        await context.write(b"%d" % number)
        await asyncio.sleep(0.4)


async def total(requests, context):
    """Answer when all has come."""
    return b"%d" % sum([int(request) async for request in requests])


async def echo(requests, context):
    """Answer each as it comes."""
    async for request in requests:
        yield request


async def hang(request, context):
    """Never answer."""
    await asyncio.sleep(1000)


async def fail(request, context):
    """Raise."""
    raise ZeroDivisionError


async def start_job(request, context):
    """Begin a job."""
    aio.spawn(job("job", float(request)), "job")
    return b""


async def start_chain(request, context):
    """Begin a job that begins another."""
    aio.spawn(chain(float(request)), "chain")
    return b""


async def main():
    """Serve until stopped."""
    server = grpc.aio.server(interceptors=[TrackCalls()])
    server.add_generic_rpc_handlers(
        [
            handler(
                Slow=slow, Count=count, Write=write, Sum=total, Echo=echo, Hang=hang, Fail=fail, Job=start_job, Chain=start_chain
            )
        ]
    )
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    requiem.track_socket(server)
    await server.start()
    requiem.ready()
    await server.wait_for_termination()
    await aio.wait()
    done()


aio.run(main())
