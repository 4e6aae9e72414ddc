"""Pools of all kinds: a job that begins another when it has ended. What is ours is one line."""

import sys

import requiem_systemd as requiem

if __name__ == "__main__":
    requiem.initialize()  # before the pools' modules are there, which have something to do at the main thread's end too

import concurrent.futures
import multiprocessing.pool

from record import job, record
from requiem_systemd.adapters.pools import context, track_pool


def make(kind):
    """Make a pool of two."""
    match kind.split("-"):
        case ["threads"]:
            return concurrent.futures.ThreadPoolExecutor(2)
        case ["processes", method]:
            return concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))
        case ["multiprocessing", "threads"]:
            return multiprocessing.pool.ThreadPool(2)
        case ["multiprocessing", "unshielded"]:
            return multiprocessing.get_context("fork").Pool(2)
        case ["multiprocessing", method]:
            return context(method).Pool(2)


def begin(pool, name, seconds, then):
    """Give the pool a job."""
    if isinstance(pool, concurrent.futures.Executor):
        pool.submit(job, name, seconds).add_done_callback(then)
    else:
        pool.apply_async(job, (name, seconds), callback=then)


def main(kind, ending, seconds):
    """Begin a job, wait for the drain, and end as told."""
    requiem.on("dead", lambda: record("dead"))
    pool = track_pool(make(kind))
    begin(pool, "first", seconds, lambda _: begin(pool, "second", 1, lambda _: None))
    if ending == "full":
        for number in range(4):
            begin(pool, f"queued {number}", 1, lambda _: None)
    requiem.ready()
    if ending == "with":
        with pool:
            requiem.wait_begin()
    elif ending == "wait":
        requiem.wait()
    else:
        requiem.wait_begin()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
