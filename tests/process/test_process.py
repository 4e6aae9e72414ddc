"""Real processes, real signals."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.patience import PatientManager

if TYPE_CHECKING:
    from tests.process.conftest import Program

# A job in a thread that says when it has seen the begin of the drain, and ends when a file is there.
JOB = """
import os, signal, sys, threading, time
def wait_for_file(name):
    while not os.path.exists(name):
        time.sleep(0.01)
def job(label="job", file=os.path.join(os.path.dirname(__file__), "go")):
    with requiem.track(label):
        requiem.wait_begin()
        requiem.status(f"{label} has seen the begin")
        wait_for_file(file)
        print(f"{label} done")
def start(**options):
    thread = threading.Thread(target=job, **options)
    thread.start()
    while not requiem.in_flight():
        time.sleep(0.01)
    return thread
"""


def let_go(program: Program) -> None:
    """Let the program's job end."""
    (program._folder / "go").touch()


def send(program: Program, name: str) -> None:
    """Send a signal to the program alone."""
    program.process.send_signal(getattr(signal, name))


def draining(program: Program) -> bool:
    """Say whether its drain has begun."""
    return "STOPPING" in program.manager.sent


def test_sigterm_drains(program: Program) -> None:
    """SIGTERM begins the drain; when the last job ends the process ends, with status 0."""
    program.start(JOB + "requiem.initialize(); start(); requiem.ready(); time.sleep(100)")
    program.manager.stop()
    program.wait_for(lambda: "has seen the begin" in program.manager.status)
    let_go(program)
    assert "job done" in program.ended()
    assert program.manager.result == "success"


def test_sigterm_twice(program: Program) -> None:
    """A second SIGTERM changes nothing."""
    program.start(JOB + "requiem.initialize(); start(); requiem.ready(); time.sleep(100)")
    for _ in range(3):
        program.manager.kill("SIGTERM")
        program.wait_for(lambda: draining(program))
    program.wait_for(lambda: "has seen the begin" in program.manager.status)
    let_go(program)
    assert "job done" in program.ended()
    assert program.manager.sent.count("STOPPING") == 1


def test_sigint_once(program: Program) -> None:
    """SIGINT drains; sent twice within a second it is the same Ctrl-C."""
    program.start(JOB + "requiem.initialize(); start(); requiem.ready(); time.sleep(100)")
    send(program, "SIGINT")
    program.wait_for(lambda: draining(program))
    send(program, "SIGINT")
    program.wait_for(lambda: "has seen the begin" in program.manager.status)
    let_go(program)
    assert "job done" in program.ended()


def test_sigint_again_a_second_later(program: Program) -> None:
    """A second later it abandons, and says so first: status 75."""
    program.start(JOB + "requiem.initialize(); start(daemon=True); requiem.ready(); time.sleep(100)")
    send(program, "SIGINT")
    program.wait_for(lambda: "Draining 1 s" in program.manager.status)
    send(program, "SIGINT")
    output = program.ended(75)
    assert 'a second SIGINT: abandoning what is in flight: "job"' in output


def test_sigquit(program: Program) -> None:
    """SIGQUIT abandons at once, with the jobs and their stacks: status 75."""
    program.start(JOB + "requiem.initialize(); start(daemon=True); requiem.ready(); time.sleep(100)")
    send(program, "SIGQUIT")
    output = program.ended(75)
    assert 'abandoned "job"' in output
    assert ":job" in output


def test_sigquit_while_draining(program: Program) -> None:
    """The operator's hurry-up."""
    program.start(JOB + "requiem.initialize(); start(); requiem.ready(); time.sleep(100)")
    program.manager.stop()
    program.wait_for(lambda: draining(program))
    send(program, "SIGQUIT")
    program.ended(75)


def test_sigquit_in_the_main_threads_own_job(program: Program) -> None:
    """A main thread inside the abandoned job is made to leave it."""
    program.start(
        "import time\nrequiem.initialize()\nwith requiem.track('job'): requiem.ready(); time.sleep(100)"
    )
    send(program, "SIGQUIT")
    assert 'abandoned "job"' in program.ended(75)


def test_sighup_reloads(program: Program) -> None:
    """Under a manager SIGHUP reloads and ends in READY."""
    program.start(
        JOB
        + "requiem.initialize(); requiem.on('reload', lambda: print('reloaded')); start(); requiem.ready('up'); time.sleep(100)"
    )
    program.manager.reload()
    program.wait_for(lambda: program.manager.sent == ["READY", "RELOADING", "READY"])
    assert "reloaded" in program.output
    program.manager.stop()
    let_go(program)
    program.ended()


def test_nohup(program: Program) -> None:
    """A signal that was ignored when we came stays ignored."""
    program.start(
        JOB
        + "requiem.initialize(); print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN); start(); requiem.ready(); time.sleep(100)",
        prefix=("nohup",),
    )
    send(program, "SIGHUP")
    program.manager.stop()
    let_go(program)
    assert "True" in program.ended()
    assert "RELOADING" not in program.manager.sent


ENDS = {
    "falls off its end": ("", 0),
    "raises": ("raise KeyError('x')", 1),
    "exits": ("sys.exit(3)", 3),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("daemon", ["True", "False"])
def test_the_main_threads_end_is_a_begin(program: Program, how: str, daemon: str) -> None:
    """However the main thread ends, the drain begins, jobs are waited for, and its exit status stands."""
    end, status = ENDS[how]
    program.start(JOB + f"requiem.initialize(); start(daemon={daemon}); requiem.ready()\n{end}", until=None)
    program.wait_for(lambda: "has seen the begin" in program.manager.status)
    let_go(program)
    output = program.ended(status)
    assert "job done" in output
    assert program.manager.sent == ["READY", "STOPPING"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_handlers_at_the_main_threads_end(program: Program, when: str) -> None:
    """Handlers run there too, although no thread can be started any more (CPython 3.12)."""
    lines = [
        "requiem.on('begin', lambda: print('begin')); requiem.on('dead', lambda: print('dead'))",
        "requiem.initialize()",
    ]
    program.start("\n".join(lines if when == "before" else lines[::-1]) + "\nrequiem.ready()", until=None)
    assert program.ended() == "begin\ndead\n"


def test_in_a_c_call(program: Program) -> None:
    """STOPPING arrives while the main thread sits in a C call, not when it returns."""
    program.start(
        """
        import hashlib, time
        requiem.initialize()
        with requiem.track("hash"):
            requiem.ready()
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 3_000_000)
            requiem.status("returned")
        time.sleep(100)
        """
    )
    program.manager.stop()
    program.wait_for(lambda: draining(program))
    assert "returned" not in program.manager.status
    program.ended()


FORKED = """
import os, signal, sys, threading, time
requiem.initialize()
entered = threading.Event()
def job():
    with requiem.track("job"):
        entered.set()
        requiem.wait_begin()
        print("job done")
threading.Thread(target=job).start()
entered.wait()
requiem.ready()
def child():
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)]
    assert handlers == [signal.SIG_DFL] * 3, handlers
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert requiem.in_flight() == () and not requiem.draining()
    assert requiem.notify(STATUS="from the child") is False
    assert "NOTIFY_SOCKET" not in os.environ
"""


def test_fork_in_flight(program: Program) -> None:
    """A fork's child is disarmed: handlers, wakeup fd, mask, trackers and notifications are not the parent's."""
    program.start(
        FORKED
        + """
pid = os.fork()
if pid == 0:
    try:
        child()
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)
    os._exit(0)
print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
requiem.status("forked")
time.sleep(100)
"""
    )
    program.wait_for(lambda: program.manager.status == "forked")
    program.manager.stop()
    output = program.ended()
    assert "child 0" in output
    assert "from the child" not in str(program.manager._messages)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(program: Program, method: str) -> None:
    """Children of multiprocessing are disarmed too, and can be told to end right after their start."""
    program.start(
        f"""
        import multiprocessing, os, signal, sys, threading, time
        def child():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            assert signal.set_wakeup_fd(-1) == -1
            assert requiem.in_flight() == ()
            assert requiem.notify(STATUS="from the child") is False
        if __name__ == "__main__":
            requiem.initialize()
            requiem.ready()
            with requiem.track("job"):
                context = multiprocessing.get_context({method!r})
                process = context.Process(target=child)
                process.start()
                process.join()
                print("child", process.exitcode)
                for _ in range(5):
                    process = context.Process(target=time.sleep, args=(100,))
                    process.start()
                    process.terminate()
                    process.join()
                    assert process.exitcode == -signal.SIGTERM, process.exitcode
            requiem.status("all ended")
            time.sleep(100)
        """
    )
    program.wait_for(lambda: program.manager.status == "all ended")
    program.manager.stop()
    assert "child 0" in program.ended()


def test_a_fork_in_a_thread(program: Program) -> None:
    """A fork in another thread than the main: the child dies of SIGTERM, and the parent lives on."""
    program.start(
        FORKED
        + """
def fork():
    pid = os.fork()
    if pid == 0:
        time.sleep(100)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    requiem.status("forked")
threading.Thread(target=fork).start()
time.sleep(100)
"""
    )
    program.wait_for(lambda: program.manager.status == "forked")
    program.manager.stop()
    assert "child -15" in program.ended()


def test_subprocesses_cannot_speak_for_us(program: Program) -> None:
    """A subprocess gets nothing of the manager's environment, nor a descriptor of ours."""
    program.manager.listen("http")
    program.start(
        """
        import os, subprocess, sys, time
        requiem.initialize()
        show = "import os; print('child', [n for n in os.environ if n.startswith(('NOTIFY', 'LISTEN', 'WATCHDOG'))])"
        subprocess.run([sys.executable, "-c", show], check=True)
        requiem.ready()
        time.sleep(100)
        """
    )
    program.manager.stop()
    assert "child []" in program.ended()


@pytest.mark.parametrize("place", [0, 1, 2], ids=["before", "after", "last"])
def test_a_frameworks_handler(program: Program, place: int) -> None:
    """A handler that was there before us, or came after us, after READY=1 too, is called once, when the ledger is empty."""
    lines = ["requiem.initialize()", "start(); requiem.ready()", "time.sleep(100)"]
    lines.insert(place, "signal.signal(signal.SIGTERM, lambda *_: print('framework', len(requiem.in_flight())))")
    program.start(JOB + "\n".join((*lines[:-1], "requiem.status('set up')", lines[-1])))
    program.wait_for(lambda: program.manager.status == "set up")
    program.manager.stop()
    program.wait_for(lambda: "has seen the begin" in program.manager.status)
    program.manager.kill("SIGTERM")
    program.wait_for(lambda: "Draining 1 s" in program.manager.status)
    assert "framework" not in program.output
    let_go(program)
    output = program.ended()
    assert output.count("framework 0") == 1
    assert output.index("job done") < output.index("framework")


def test_asyncios_handler(program: Program) -> None:
    """The handler that a program gives its event loop, last of all, is called once, when the ledger is empty; the drain begins at once."""
    program.start(
        JOB
        + """
import asyncio

async def main():
    loop = asyncio.get_running_loop()
    requiem.initialize()
    start()
    requiem.ready()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, lambda: (print("framework", len(requiem.in_flight())), stop.set()))
    requiem.status("set up")
    await stop.wait()
    print("main ends")

asyncio.run(main())
"""
    )
    program.wait_for(lambda: program.manager.status == "set up")
    program.manager.stop()
    program.wait_for(lambda: "has seen the begin" in program.manager.status)
    assert "framework" not in program.output
    let_go(program)
    output = program.ended()
    assert output.count("framework 0") == 1
    assert output.index("job done") < output.index("framework") < output.index("main ends")


def test_exit_timeout(program: Program) -> None:
    """A thread that keeps the exit is named, and past exit_timeout the process is ended: 75."""
    program.start(
        """
        import threading, time
        requiem.initialize(exit_timeout=2.5)
        threading.Thread(target=time.sleep, args=(100,), name="stuck one").start()
        requiem.ready()
        time.sleep(100)
        """
    )
    program.manager.stop()
    program.wait_for(lambda: "thread stuck one" in program.manager.unit.status)
    output = program.ended(75)
    assert "the exit has taken 2 s" in output
    assert "thread stuck one:" in output


def test_the_exit_is_held(program: Program) -> None:
    """What runs on the way out is extended for, and shown."""
    program.manager.close()
    with PatientManager(timeout_stop=0.5) as manager:
        program.manager = manager
        program.start(
            """
            import atexit, time
            requiem.initialize()
            def flush():
                time.sleep(1.5)
                print("flushed")
            atexit.register(flush)
            requiem.ready()
            time.sleep(100)
            """
        )
        manager.stop()
        program.wait_for(lambda: re.search(r"Exiting \d s: main thread in flush", manager.unit.status))
        assert "flushed" in program.ended()
        assert manager.result == "success"


def test_an_abandoned_thread_does_not_keep_the_process(program: Program) -> None:
    """A non-daemon thread whose job was abandoned is left behind; other threads are waited for."""
    program.start(
        """
        import threading, time
        requiem.initialize(drain_timeout=0.3)
        def stuck():
            with requiem.track("stuck"):
                time.sleep(100)
        def other():
            requiem.wait_begin()
            time.sleep(0.6)
            print("other done")
        threading.Thread(target=stuck).start()
        threading.Thread(target=other).start()
        requiem.ready()
        time.sleep(100)
        """
    )
    program.manager.stop()
    output = program.ended(75)
    assert 'abandoned "stuck"' in output
    assert "other done" in output


def test_the_last_things(program: Program) -> None:
    """`dead` handlers, `finally` blocks and atexit callbacks run, in that order."""
    program.start(
        """
        import atexit, time
        requiem.initialize()
        requiem.on("dead", lambda status: print("dead", status))
        atexit.register(print, "atexit")
        try:
            requiem.ready()
            time.sleep(100)
        finally:
            print("finally")
        """
    )
    program.manager.stop()
    assert program.ended().splitlines() == ["dead 0", "finally", "atexit"]


@pytest.mark.parametrize("call", ["requiem.wait()", "requiem.wait_begin(); requiem.wait()"])
def test_a_main_thread_that_waits(program: Program, call: str) -> None:
    """It is not made to leave: it goes on when all is done."""
    program.start(JOB + f"requiem.initialize(); start(); requiem.ready(); {call}; print('main goes on')")
    program.manager.stop()
    let_go(program)
    assert "main goes on" in program.ended()


def test_a_main_thread_that_works(program: Program) -> None:
    """A main thread that holds a tracker ends its job first."""
    program.start(
        """
        import time
        requiem.initialize()
        with requiem.track("mine"):
            requiem.ready()
            requiem.wait_begin()
            time.sleep(0.3)
            print("done")
        time.sleep(100)
        """
    )
    program.manager.stop()
    assert "done" in program.ended()


@pytest.mark.parametrize(
    "where",
    [
        "time.sleep(100)",
        "threading.Event().wait()",
        "queue.Queue().get()",
        "listener.accept()",
        "select.select([], [], [])",
    ],
)
def test_a_main_thread_that_blocks(program: Program, where: str) -> None:
    """Wherever it blocks, it is made to leave."""
    program.start(
        f"""
        import queue, select, socket, threading, time
        listener = socket.create_server(("127.0.0.1", 0))
        requiem.initialize()
        requiem.ready()
        with listener:
            {where}
        """
    )
    program.manager.stop()
    program.ended()


def test_daemon_reload_in_mid_drain(program: Program) -> None:
    """A real program with a stop timeout that has long passed survives a daemon-reload."""
    program.manager.close()
    with PatientManager(timeout_stop=0.4) as manager:
        program.manager = manager
        program.start(JOB + "requiem.initialize(); start(); requiem.ready(); time.sleep(100)")
        manager.stop()
        program.wait_for(lambda: "Draining 1 s" in manager.status)
        manager.daemon_reload()
        program.wait_for(lambda: "Draining 2 s" in manager.status)
        let_go(program)
        program.ended()
        assert manager.result == "success"


def test_no_signal_is_lost_while_another_is_handled(program: Program) -> None:
    """A signal that comes while the handler of one before it runs makes its byte too, however busy the interpreter is."""
    program.start(
        """
        import os, select, signal, socket, sys, threading, time
        from requiem_systemd.gate import Gate

        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        gate = Gate(theirs.fileno())
        gate.arm()
        sys.setswitchinterval(1e-4)

        def busy():
            while not over:
                pass

        def rounds():
            for number in range(400):
                for wanted in (signal.SIGHUP, signal.SIGTERM):
                    os.kill(os.getpid(), wanted)
                    if not select.select([ours], [], [], 5)[0]:
                        print("lost", wanted, "in round", number)
                        return
                    assert set(ours.recv(100)) <= {signal.SIGHUP, signal.SIGTERM}
            print("none lost")

        over = False
        threads = [threading.Thread(target=busy) for _ in range(2)]
        asking = threading.Thread(target=rounds)
        for thread in (asking, *threads):
            thread.start()
        asking.join()
        over = True
        gate.disarm()
        ours.close()
        theirs.close()
        """,
        until=None,
    )
    assert "none lost" in program.ended()


def test_a_knock_that_interrupts_nothing_is_repeated(program: Program) -> None:
    """A main thread that was just about to block when it was told to leave is told again."""
    program.start(
        """
        import signal, time
        send = signal.pthread_kill
        sent = []
        def just_too_early(thread, number):
            sent.append(number)
            if len(sent) > 1:
                send(thread, number)
        signal.pthread_kill = just_too_early
        requiem.initialize()
        requiem.ready()
        time.sleep(100)
        """
    )
    program.manager.stop()
    program.ended()


def test_a_main_thread_whose_job_was_abandoned_leaves(program: Program) -> None:
    """Past drain_timeout= nothing holds the stop any more, a job of the main thread's neither."""
    program.start(
        """
        import time
        requiem.initialize(drain_timeout=0.2)
        with requiem.track("mine"):
            requiem.ready()
            time.sleep(100)
        """
    )
    program.manager.stop()
    assert 'abandoned "mine"' in program.ended(75)


@pytest.mark.parametrize("run", ["requiem.aio.run", "asyncio.run"])
@pytest.mark.parametrize("wait", ["requiem.aio.wait()", "asyncio.wait_for(requiem.aio.wait(), 10)"])
def test_a_main_task_that_waits(program: Program, run: str, wait: str) -> None:
    """It is neither cancelled nor made to leave: it goes on when all is done, and its value is returned."""
    program.start(
        f"""
        import asyncio
        async def main():
            job = requiem.create_tracker("job")
            requiem.ready()
            await requiem.aio.wait_begin()
            asyncio.get_running_loop().call_later(0.1, job.done)
            await {wait}
            await asyncio.sleep(0.1)
            return "main has returned"
        requiem.initialize()
        print({run}(main()))
        """
    )
    program.manager.stop()
    assert "main has returned" in program.ended()


def test_another_task_that_waits(program: Program) -> None:
    """It goes on when all is done, and does not keep the process after its end."""
    program.start(
        """
        import asyncio
        async def farewell():
            await requiem.aio.wait()
            await asyncio.sleep(0.1)
            print("farewell")
        async def main():
            task = asyncio.create_task(farewell())
            await asyncio.sleep(0)
            requiem.ready()
            await asyncio.sleep(100)
        requiem.initialize()
        asyncio.run(main())
        """
    )
    program.manager.stop()
    assert "farewell" in program.ended()


def test_uvloop_without_handlers_ends_at_once(program: Program) -> None:
    """The wakeup fd is uvloop's, but where nobody handles a signal nobody is waited for."""
    pytest.importorskip("uvloop")
    program.start(
        """
        import asyncio, uvloop
        from requiem_systemd import wayout
        wayout.CHAINED_GRACE = requiem.aio.CHAINED_GRACE = 100
        uvloop.install()
        async def main():
            requiem.ready()
            await asyncio.sleep(100)
        requiem.aio.run(main())
        """
    )
    program.manager.stop()
    program.ended()


@pytest.mark.parametrize("stop", ["os.kill(os.getpid(), signal.SIGINT)", "requiem.begin()"])
def test_asyncio_runs_own_interrupt_handler_is_not_a_frameworks(program: Program, stop: str) -> None:
    """A service armed inside of `asyncio.run` drains, and no KeyboardInterrupt comes out of it."""
    program.start(
        f"""
        import asyncio, os, signal
        async def main():
            requiem.initialize()
            engine = requiem.process.engine
            requiem.on('begin', lambda: engine.loop.call(lambda: engine.wayout.tell_others(unasked=True)))
            requiem.ready()
            job = requiem.create_tracker("job")
            asyncio.get_running_loop().call_later(0.3, lambda: (print("done"), job.done()))
            {stop}
            await asyncio.sleep(100)
        asyncio.run(main())
        """,
        until="dead",
    )
    output = program.ended()
    assert "done" in output
    assert "KeyboardInterrupt" not in output


@pytest.mark.parametrize(
    "loop",
    [
        "requiem.wait_begin()",
        "while not requiem.should_stop(): time.sleep(0.01)",
        "for _ in requiem.jobs(lambda: time.sleep(0.01)): pass",
        "for _ in requiem.accept(requiem.listener('x', fallback=('127.0.0.1', 0))): pass",
    ],
    ids=["wait_begin", "should_stop", "jobs", "accept"],
)
def test_what_the_main_thread_does_last(program: Program, loop: str) -> None:
    """A main thread whose loop heeds the drain does what comes behind the loop, though nothing is in flight any more."""
    program.start(
        f"""
import sys, threading, time
requiem.initialize()
def ready():  # when the main thread is in its loop: a stop that comes before finds one that does not heed it
    while not requiem.process._heeds: time.sleep(0.001)
    requiem.ready()
threading.Thread(target=ready).start()
{loop}
requiem.process.engine.stopped.wait()
time.sleep(0.1)
print("cleared up")
sys.exit(4)
"""
    )
    program.manager.stop()
    assert "cleared up" in program.ended(4)


def test_a_main_thread_that_only_says_so_leaves(program: Program) -> None:
    """One that heeds the drain and then does not leave is made to, with status 0."""
    program.start("requiem.initialize(); requiem.ready(); requiem.wait_begin(); import time; time.sleep(100)")
    program.manager.stop()
    program.ended()


def test_accept_after_the_drain(program: Program) -> None:
    """A stop that comes before the first accept() leaves nothing to accept, and is no error."""
    program.start(
        """
requiem.initialize(exit=False)
listener = requiem.listener("x", fallback=("127.0.0.1", 0))
requiem.ready()
requiem.begin()
requiem.wait()
print(list(requiem.accept(listener)), listener.fileno())
""",
        until=None,
    )
    assert "[] -1" in program.ended()
