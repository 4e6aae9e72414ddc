"""A gunicorn worker: the drain stops it from accepting, and it leaves when its jobs and requests have ended.

Of a worker's listeners others have copies (the arbiter, its siblings, systemd), so each is put behind a `Port`, by which the engine's
thread can close it while the worker's only thread is busy. What then waits there is handed out by the port's `accept()`; when all is
handed out, the worker's own loop ends as gunicorn's SIGTERM would have ended it, and finishes its connections: here without
`graceful_timeout`, which does not know what a job is; a hung request is bounded by `request_timeout`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from requiem_systemd import journal
from requiem_systemd.adapters.gunicornports import GreenPort, Port
from requiem_systemd.adapters.lines import cut, silence
from requiem_systemd.doors import shut_late
from requiem_systemd.errors import DrainingError
from requiem_systemd.ledger import CONNECTION, More, Record
from requiem_systemd.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOG: Final = logging.getLogger("requiem_systemd")
FOREVER: Final = 10**9
GRACE: Final = 0.5
_KINDS: Final = {
    "gunicorn.workers.sync": "SyncWorker",
    "gunicorn.workers.gthread": "ThreadWorker",
    "gunicorn.workers.ggevent": "GeventWorker",
}


def find(service: Any) -> Any:
    """Return the worker whose signal handlers stand under ours; None where there is none."""
    base = getattr(sys.modules.get("gunicorn.workers.base"), "Worker", None)
    handlers = service.gate.chained() if service.gate is not None else ()
    workers = (getattr(handler, "__self__", None) for handler in handlers)
    return next((worker for worker in workers if base is not None and isinstance(worker, base)), None)


def adopt(service: Any, worker: Any) -> Post:
    """Have the drain stop a worker, before its loop runs; again: the same."""
    post: Post | None = getattr(worker, "requiem_post", None)
    if post is not None:
        return post
    crew = getattr(worker, "requiem_crew", None)
    if crew is None and worker.age == 1:
        LOG.warning(
            "gunicorn kills a worker %s s after a stop, whatever job it is at (graceful_timeout), and the manager is not asked for more "
            "time: add to gunicorn.conf.py: from requiem_systemd.adapters import gunicorn; gunicorn.hold(globals())",
            worker.cfg.graceful_timeout,
            extra=journal.record("mistake"),
        )
    kind = next((name for module, name in _KINDS.items() if isinstance(worker, getattr(sys.modules.get(module), name, ()))), None)
    post = worker.requiem_post = Post(service, worker, crew)
    post.take(whole=kind is not None, greenlets=kind == "GeventWorker")
    return post


class Post:
    """A door: one worker."""

    label: str = "of the worker"

    def __init__(self, service: Any, worker: Any, crew: Any) -> None:
        """Store; `take` acts."""
        self.service = service
        self.worker = worker
        self.crew = crew
        self._run_theirs: Callable[[], object] = worker.run
        self._before = worker.cfg.pre_request
        self._after = worker.cfg.post_request
        self._ports: list[Port] = []
        self._live: set[int] = set()
        self._deciding: set[type] = set()  # kinds of requests
        self._record = Record("connections of the worker", None)
        self._record.more = More(CONNECTION)

    def take(self, *, whole: bool, greenlets: bool) -> None:
        """Arm the service and override what has to be; not `whole`: an event loop's worker, which TrackRequests sees to."""
        service, worker = self.service, self.worker
        if whole:
            worker.cfg.set("graceful_timeout", FOREVER)
            worker.cfg.set("pre_request", self._pre_request)
            worker.cfg.set("post_request", self._post_request)
            port = GreenPort if greenlets else Port
            self._ports = worker.sockets = [port(listener, self._emptied) for listener in worker.sockets]
            worker.wait_fds = [*self._ports, worker.PIPE[0]]
            worker.__class__ = _watched(type(worker), self._gone)
            worker.run = self._run
        service.engine.begun.then(self._begin)
        if whole:
            if not service.doors.add(self):
                shut_late(self, service.ledger)
            service.arm()
        if greenlets:  # nothing can make the main greenlet leave, but its loop looks at this
            service.keepers[self] = True
            service.engine.stopped.then(lambda: worker.cfg.set("graceful_timeout", 0))

    def up(self) -> None:
        """All is loaded. A stop that came before our handlers stood is heeded here: who waits at the listeners is served first."""
        self.crew.tell("up")
        if self._ports and (not self.worker.alive or self.crew.stopping):
            self.worker.alive = True
            self.service.begin("a stop that came before the worker was up")

    # -- in the engine's thread ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        engine = self.service.engine
        if self._ports:
            with contextlib.suppress(DrainingError):  # a stop in the boot is over already
                self.service.ledger.enter(self._record)
            engine.loop.alarm(self._cut_silent, engine.loop.clock.now() + GRACE)
        if self.crew is not None:
            engine.setting.notifier = _Upward(self.crew)
            self.crew.tell("begun")

    def shut(self, done: Callable[[], object]) -> None:
        """Close the ports: see doors.Door."""
        for port in self._ports:
            port.shut(backlog=self._serves_backlog())
        done()

    def _serves_backlog(self) -> bool:
        """Say whether nobody else will: siblings and successors do, but in a stop; of a socket unit's listener the next process does."""
        if self.crew is None:
            return True
        arbiter = self.crew.arbiter
        return not arbiter.systemd and (arbiter.cfg.reuse_port or bool(self.crew.stopping))

    def _cut_silent(self) -> None:
        """End the wait for a request that does not come: a sync worker would sit in it for ever, with others behind."""
        if self._record not in self.service.ledger.live:
            return
        for port in self._ports if not self._live else ():
            if isinstance(port.last, socket.socket) and silence(port.last) >= GRACE:
                cut(port.last)
        loop = self.service.engine.loop
        loop.alarm(self._cut_silent, loop.clock.now() + GRACE)

    # -- in the worker's threads -----------------------------------------------------------------------------------------

    def _gone(self) -> None:
        """The worker leaves by itself (max_requests), or when its listeners are closed."""
        engine = self.service.engine
        if self.service.ledger.began is None:  # posted: a signal handler may be what sets `alive`
            engine.loop.post(lambda: engine.begin("the worker leaves"))

    def _emptied(self) -> None:
        if all(port.empty() for port in self._ports):
            self.worker.alive = False
            with contextlib.suppress(OSError):  # full: awake already. A sync worker would look at `alive` half its timeout later
                os.write(self.worker.PIPE[1], b".")

    def _run(self) -> None:
        if self.crew is None:  # gunicorn has said so before; the manager may listen to workers too
            self.service.ready()
        try:
            self._run_theirs()
        finally:
            self.service.begin("the worker's loop has ended")
            self.service.ledger.leave(self._record)
            with self.service.keeping_main():
                self.service.engine.stopped.wait()

    def _pre_request(self, worker: Any, request: Any) -> None:
        self._live.add(id(request))
        if type(request) not in self._deciding:
            self._deciding.add(type(request))
            type(request).should_close = self._decided(type(request).should_close)
        self._before(worker, request)

    def _decided(self, theirs: Callable[[Any], bool]) -> Callable[[Any], bool]:
        """Say whether the connection ends with the answer, once, when its head is written: it must not be closed after "keep-alive"."""

        def should_close(request: Any) -> bool:
            known = request.__dict__
            if "requiem_closes" not in known:
                known["requiem_closes"] = theirs(request) or self.service.draining()
            return bool(known["requiem_closes"])

        return should_close

    def _post_request(self, worker: Any, request: Any, environ: Any, response: Any) -> None:
        self._live.discard(id(request))
        self._after(worker, request, environ, response)


def _watched(kind: Any, gone: Callable[[], object]) -> type:
    """Make a subclass that tells when `alive` becomes false."""

    def alive(self: Any) -> bool:
        return bool(self.__dict__["alive"])

    def set_alive(self: Any, value: bool) -> None:  # noqa: FBT001 - a property's
        self.__dict__["alive"] = value
        if not value:
            gone()

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "alive": property(alive, set_alive)})


class _Upward(Notifier):
    """What a worker's drain says goes to the arbiter, which shows it behind the worker's name."""

    def __init__(self, crew: Any) -> None:
        super().__init__(None)
        self._crew = crew

    def __bool__(self) -> bool:
        return True

    def send(self, assignments: Mapping[str, object], fds: Any = (), *, patience: float = 0.0) -> bool:  # noqa: ARG002 - of another transport
        if "STATUS" in assignments:
            self._crew.tell("status", str(assignments["STATUS"]))
        return True

    def tell(self, **assignments: object) -> bool:
        return self.send(assignments)


