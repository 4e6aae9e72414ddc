"""A grpc server with threads."""

import concurrent.futures
import sys
import threading
import time

import grpc
from grpc_methods import begin, chain, done, handler
from record import job

import requiem_systemd as requiem
from requiem_systemd.adapters.grpc import TrackCalls


def slow(request, context):
    """Answer late."""
    time.sleep(float(request))
    return b"slow"


def count(request, context):
    """Answer in pieces."""
    for number in range(int(request)):
        yield b"%d" % number
        time.sleep(0.4)


def iterate(request, context):
    """Answer in pieces, by an iterator that is no generator function's."""
    return count(request, context)


def total(requests, context):
    """Answer when all has come."""
    return b"%d" % sum(map(int, requests))


def echo(requests, context):
    """Answer each as it comes."""
    yield from requests


def hang(request, context):
    """Never answer."""
    threading.Event().wait(1000)


def fail(request, context):
    """Raise."""
    raise ZeroDivisionError


def start_job(request, context):
    """Begin a job."""
    begin(job, "job", float(request))
    return b""


def start_chain(request, context):
    """Begin a job that begins another."""
    begin(chain, float(request))
    return b""


requiem.initialize()
server = grpc.server(concurrent.futures.ThreadPoolExecutor(10), interceptors=[TrackCalls()])
server.add_generic_rpc_handlers(
    [
        handler(
            Slow=slow, Count=count, Iterate=iterate, Sum=total, Echo=echo, Hang=hang, Fail=fail, Job=start_job, Chain=start_chain
        )
    ]
)
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
requiem.track_socket(server)
server.start()
requiem.ready()
server.wait_for_termination()
requiem.wait()
done()
