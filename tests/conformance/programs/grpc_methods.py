"""What both grpc servers serve: bytes in, bytes out, without generated code."""

import threading

import grpc
from record import job, record

import requiem_systemd as requiem


def chain(seconds):
    """Work, then have another job begin."""
    job("first", seconds)
    requiem.track(threading.Thread(target=job, args=("second", 1))).start()


def begin(target, *args):
    """Have a job run in a thread."""
    requiem.track(threading.Thread(target=target, args=args), label="job").start()


def handler(**methods):
    """Make the service "test" of functions; a name's first part says how it is called."""
    made = {}
    for name, function in methods.items():
        make = {
            "Count": grpc.unary_stream_rpc_method_handler,
            "Iterate": grpc.unary_stream_rpc_method_handler,
            "Write": grpc.unary_stream_rpc_method_handler,
            "Sum": grpc.stream_unary_rpc_method_handler,
            "Echo": grpc.stream_stream_rpc_method_handler,
        }.get(name, grpc.unary_unary_rpc_method_handler)
        made[name] = make(function)
    return grpc.method_handlers_generic_handler("test", made)


def done():
    """The program's own shutdown."""
    record("shutdown")
