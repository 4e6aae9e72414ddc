"""What a drain's records tell: who held it and how long, what was extended, and no more than fits."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import pytest

from requiem_systemd import chronicle, unitfile
from requiem_systemd.chronicle import KEPT, LABEL_MAX, MARKS, Marks
from requiem_systemd.ledger import Record
from requiem_systemd.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from requiem_systemd.testing import FakeManager
    from tests.unit.conftest import Journal


@pytest.fixture
def deadline(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that says what the unit's TimeoutStopSec= is."""

    def deadline(seconds: float) -> None:
        monkeypatch.setattr(unitfile, "own_service", lambda: "x.service")
        monkeypatch.setattr(unitfile, "stop_timeout", lambda *_: seconds)
        monkeypatch.setattr(chronicle, "_manager", lambda _: unitfile.SYSTEM_SOCKET)

    return deadline


def holders(record: dict[str, str]) -> list[list[str]]:
    """Return the lines of a record's holders, split: kind, begin, end, fate, label."""
    return [line.split(" ", 4) for line in record["REQUIEM_HOLDERS"].splitlines()]


def test_one_record_for_a_drain(manager: FakeManager, service: Service, seen: Journal) -> None:
    """Its end tells who held it, from when to when, in milliseconds from the drain's begin on."""
    early, late = service.create_tracker("export 42"), service.create_tracker("mail 7")
    manager.advance(5)
    manager.stop()
    manager.advance(2)
    late.done()
    manager.advance(10)
    early.done()
    manager.wait_for(lambda: seen.of("drained"))
    (record,) = seen.of("drained")
    assert holders(record) == [["job", "-5000", "12000", "ended", "export 42"], ["job", "-5000", "2000", "ended", "mail 7"]]
    assert (record["REQUIEM_HELD"], record["REQUIEM_UNLISTED"], record["REQUIEM_ELAPSED_USEC"]) == ("job=2", "0", "12000000")
    assert (record["REQUIEM_EXTENDED"], record["REQUIEM_EXTENSIONS"]) == ("2", "0 10000")
    assert record["REQUIEM_ROLE"] == "main"
    assert record["MESSAGE"] == "drained in 12 s: 2 jobs"


def test_nothing_held(manager: FakeManager, service: Service, seen: Journal) -> None:
    """A drain that nobody holds leaves its two changes of state, and no more."""
    manager.stop()
    manager.wait_for(lambda: len(seen.of("state")) >= 2)
    assert service.wait(10)
    assert seen.of("drained") + seen.of("held") == []
    assert [record.get("REQUIEM_HOLDERS") for record in seen.of("state")[-2:]] == [None, None]


def test_told_at_the_begin(manager: FakeManager, service: Service, seen: Journal) -> None:
    """Who holds a drain stands in the record of its begin, which the manager has heard of by then: it may be killed at once."""
    tracker = service.create_tracker("export 42")
    manager.advance(5)
    manager.stop()
    manager.wait_for(lambda: seen.of("state"))
    (record,) = seen.of("state")
    assert "STOPPING" in manager.sent
    assert (record["REQUIEM_STATE"], record["REQUIEM_HELD"], record["REQUIEM_ROLE"]) == ("DRAINING", "job=1", "main")
    assert holders(record) == [["job", "-5000", "-", "open", "export 42"]]
    tracker.done()


def test_a_label_that_fails(manager: FakeManager, service: Service, seen: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """A drain whose holders cannot be told begins and ends all the same."""

    class Label:
        def __str__(self) -> str:
            raise SystemError

    record = Record(Label(), None)
    service.ledger.enter(record)
    manager.stop()
    service.ledger.leave(record)
    assert service.wait(10)
    assert [one["REQUIEM_STATE"] for one in seen.of("state")[-2:]] == ["DRAINING", "STOPPED"]


def test_told_while_it_lasts(manager: FakeManager, service: Service, seen: Journal) -> None:
    """A drain that lasts has told who holds it: it may never end."""
    tracker = service.create_tracker("export 42")
    manager.stop()
    manager.advance(1)
    (record,) = seen.of("held")
    assert holders(record) == [["job", "0", "-", "open", "export 42"]]
    assert record["MESSAGE"] == 'the drain is held by "export 42"'
    tracker.done()


def test_a_long_drain_tells_again(manager: FakeManager, service: Service, seen: Journal) -> None:
    """The warning of a long drain carries what the last record would."""
    service_jobs = [service.create_tracker(name) for name in ("a", "b")]
    manager.stop()
    manager.advance(30)
    service_jobs[0].done()
    manager.advance(31)
    (record,) = seen.of("draining-long")
    assert holders(record) == [["job", "0", "30000", "ended", "a"], ["job", "0", "-", "open", "b"]]
    service_jobs[1].done()


def test_late_comers(manager: FakeManager, service: Service, seen: Journal) -> None:
    """Jobs that begin in the drain are told too."""
    first = service.create_tracker("first")
    manager.stop()
    manager.advance(3)
    with service.track("second"):
        manager.advance(4)
    first.done()
    manager.wait_for(lambda: seen.of("drained"))
    (record,) = seen.of("drained")
    assert ["job", "3000", "7000", "ended", "second"] in holders(record)
    assert record["REQUIEM_HELD"] == "job=2"


def test_bounded(manager: FakeManager, service: Service, seen: Journal) -> None:
    """Of many jobs the oldest are told, the others counted, and a record fits the journal's datagram."""
    held = [service.create_tracker(f"{number} {'x' * 500}") for number in range(1000)]
    manager.stop()
    manager.advance(1)
    assert seen.of("held")[0]["MESSAGE"].endswith('" and 980 more')
    for tracker in held:
        tracker.done()
    manager.wait_for(lambda: seen.of("drained"))
    (record,) = seen.of("drained")
    assert len(holders(record)) == KEPT
    assert str(1000 - KEPT) == record["REQUIEM_UNLISTED"]
    assert all(len(label) <= LABEL_MAX for *_, label in holders(record))
    assert sum(map(len, record.values())) < 10_000


def test_longest_are_kept(manager: FakeManager, service: Service, seen: Journal) -> None:
    """A job that comes when there is no room any more takes the place of one that has ended soonest."""
    short = [service.create_tracker(f"short {number}") for number in range(KEPT)]
    manager.stop()
    manager.advance(1)
    for tracker in short:
        tracker.done()
        manager.advance(0.1)
        if tracker is short[0]:
            long = service.create_tracker("long")
    manager.advance(5)
    long.done()
    manager.wait_for(lambda: seen.of("drained"))
    labels = [label for *_, label in holders(seen.of("drained")[0])]
    assert ("long" in labels, "short 0" in labels, len(labels)) == (True, False, KEPT)


def test_beyond_the_deadline(manager: FakeManager, service: Service, seen: Journal, deadline: Callable[[float], None]) -> None:
    """Jobs that were in flight when TimeoutStopSec= had passed are counted, listed or not."""
    deadline(8.0)
    long, short = service.create_tracker("long"), service.create_tracker("short")
    manager.stop()
    manager.advance(4)
    short.done()
    manager.advance(5)
    long.done()
    manager.wait_for(lambda: seen.of("drained"))
    (record,) = seen.of("drained")
    assert (record["REQUIEM_STOP_TIMEOUT_USEC"], record["REQUIEM_OUTLIVED"]) == ("8000000", "1")
    assert record["MESSAGE"] == "drained in 9 s: 2 jobs, 1 job beyond TimeoutStopSec=8 s"


def test_abandoned_is_a_fate(manager: FakeManager, seen: Journal) -> None:
    """Who was given up is told apart from who has ended."""
    service = manager.arm(Service(), drain_timeout=5)
    service.ready()
    tracker = service.create_tracker("export 42")
    manager.stop()
    manager.advance(6)
    manager.wait_for(lambda: seen.of("drained"))
    (record,) = seen.of("drained")
    assert holders(record) == [["job", "0", "5000", "abandoned", "export 42"]]
    assert record["REQUIEM_ABANDONED"] == "1"
    tracker.done()


def test_labels_are_redacted(manager: FakeManager, seen: Journal) -> None:
    """What may not leave the process does not leave it here."""
    service = manager.arm(Service(), redact=lambda text: text.replace("secret", "…"))
    service.ready()
    tracker = service.create_tracker("mail secret")
    manager.stop()
    tracker.done()
    manager.wait_for(lambda: seen.of("drained"))
    assert [label for *_, label in holders(seen.of("drained")[0])] == ["mail …"]


def test_a_label_stays_in_its_line(manager: FakeManager, service: Service, seen: Journal) -> None:
    """Whatever a label holds, it is told as one line."""
    tracker = service.create_tracker("a\njob 0 - open b \x1b[31m\udcff")
    manager.stop()
    tracker.done()
    manager.wait_for(lambda: seen.of("drained"))
    assert [label for *_, label in holders(seen.of("drained")[0])] == ["a job 0 - open b  [31m\\udcff"]


def test_what_has_ended_is_let_go(manager: FakeManager, service: Service, seen: Journal) -> None:
    """Of what has ended only its label is kept: an entry may hold all of a request."""

    class Label:
        def __str__(self) -> str:
            return "large"

    held, label = service.create_tracker("held"), Label()
    record, gone = Record(label, None), weakref.ref(label)
    service.ledger.enter(record)
    manager.stop()
    service.ledger.leave(record)
    manager.advance(1)
    del record, label
    assert gone() is None
    held.done()
    manager.wait_for(lambda: seen.of("drained"))
    assert "large" in [label for *_, label in holders(seen.of("drained")[0])]


def test_marks_are_spread() -> None:
    """Of many points in time some are kept, evenly, and all are counted."""
    marks = Marks()
    for number in range(10_000):
        marks.add(float(number))
    steps = {later - earlier for earlier, later in zip(marks.kept, marks.kept[1:], strict=False)}
    assert marks.count == 10_000
    assert MARKS // 2 <= len(marks.kept) <= MARKS
    assert len(steps) == 1
