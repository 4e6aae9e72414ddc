"""`requiem-systemd history`: from the journal's records to what happened, and how that is shown."""

from __future__ import annotations

import json
import os
import stat
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from requiem_systemd import cli
from requiem_systemd.cli.colours import coloured
from requiem_systemd.cli.history import events, records, show, svg
from requiem_systemd.journal import MESSAGE_IDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from requiem_systemd.cli.history.events import Happening

#: Of a real unit (systemd 252): two reloads, a stop, a drain that was killed, one that was given up.
RECORDED: Final = (Path(__file__).parent / "journals" / "stops.json").read_text(encoding="utf-8").split("\n")
HOSTILE: Final = "</text><script>alert(1)</script>\x1b[31m\u202e]]>&\"'\ufffe\ud800 日本語"
SVG: Final = "{http://www.w3.org/2000/svg}"

CHRONICLE: Final[dict[str, Any]] = {
    "REQUIEM_REASON": "SIGTERM",
    "REQUIEM_ROLE": "main",
    "REQUIEM_ELAPSED_USEC": "104000000",
    "REQUIEM_STOP_TIMEOUT_USEC": "90000000",
    "REQUIEM_OUTLIVED": "1",
    "REQUIEM_HELD": "job=2 request=1",
    "REQUIEM_HOLDERS": "job -840000 104000 ended export 42\njob -3000 12000 ended mail 7\nrequest -1 3100 let-go GET /report",
    "REQUIEM_UNLISTED": "0",
    "REQUIEM_EXTENDED": "11",
    "REQUIEM_EXTENSIONS": " ".join(str(10_000 * number) for number in range(11)),
    "REQUIEM_ABANDONED": "0",
    "REQUIEM_WAITING": "2",
}


def line(kind: str, at: float, *, boot: str = "b1", pid: int = 812, when: float | None = None, **fields: Any) -> str:
    """Return one line of journalctl's, of the unit's process."""
    values = {
        "_BOOT_ID": boot,
        "__MONOTONIC_TIMESTAMP": str(round(at * 1e6)),
        "__REALTIME_TIMESTAMP": str(round((1_700_000_000 + at if when is None else when) * 1e6)),
        "MESSAGE_ID": MESSAGE_IDS.get(kind, kind),
        "_PID": str(pid),
        "_SYSTEMD_UNIT": "shop.service",
        "_SYSTEMD_INVOCATION_ID": "i1",
        **fields,
    }
    return json.dumps(values)


def change(state: str, previous: str, at: float, count: int = 3, **more: Any) -> str:
    """Return the line of a change of state."""
    message = f"{previous.lower()} -> {state.lower()}: SIGTERM, {count} in flight"
    return line("state", at, **more, REQUIEM_STATE=state, REQUIEM_PREVIOUS=previous, REQUIEM_IN_FLIGHT=str(count), MESSAGE=message)


def by_systemd(number: str, at: float, **fields: Any) -> str:
    """Return a line of systemd's own about the unit."""
    return line(number, at, pid=1, **{"_SYSTEMD_UNIT": "init.scope", "UNIT": "shop.service", "INVOCATION_ID": "i1", **fields})


def whole(at: float = 100.0, /, **more: Any) -> list[str]:
    """Return a drain's lines, from its begin to its end."""
    fields = {**CHRONICLE, **{name: value for name, value in more.items() if name.isupper()}}
    rest = {name: value for name, value in more.items() if not name.isupper()}
    return [
        change("DRAINING", "RUNNING", at, **rest),
        change("STOPPED", "DRAINING", at + 104, 0, **rest),
        line("drained", at + 104.001, **rest, **fields),
    ]


def happened(lines: list[str]) -> list[Happening]:
    """Return what happened by these lines, the oldest first."""
    return events.happenings(records.parse(lines))[::-1]


def only(lines: list[str]) -> Happening:
    """Return the one thing that happened."""
    (one,) = happened(lines)
    return one


def course(one: Happening) -> events.Course:
    """Return a drain's course."""
    assert one.course is not None
    return one.course


# -- what happened


def test_recorded() -> None:
    """Of a real journal: what, how it ended, and who outlived the timeout."""
    found = happened(RECORDED)
    assert [(one.what, one.outcome) for one in found] == [
        ("reload", "ok"),
        ("reload", "failed"),
        ("drain", "ended"),
        ("drain", "killed: signal 9"),
        ("drain", "abandoned"),
    ]
    assert found[1].reason == "line 3: no colon"
    assert [course(one).outlived for one in found[2:]] == [1, 0, 0]
    assert [bar.label for bar in events.lost(found[3])] == ["export 1", "export 2"]
    assert [bar.fate for bar in course(found[4]).bars] == ["abandoned"] * 3


def test_drain() -> None:
    """A drain's records together: when, how long, why, who held it, the deadline before that."""
    one = only(whole())
    assert (one.run.unit, one.process, one.when, one.seconds, one.reason) == ("shop.service", 812, 1_700_000_100.0, 104.0, "SIGTERM")
    found = course(one)
    assert (found.deadline, found.outlived, found.waiting, found.held) == (90.0, 1, 2, {"job": 2, "request": 1})
    assert found.bars[0] == events.Bar("job", "export 42", -840.0, 104.0, "ended")


def test_clock_steps() -> None:
    """Whoever sets the clock in mid-drain changes no length, nor the order of what one process told."""
    lines = [change("DRAINING", "RUNNING", 100.0, when=5000.0), change("STOPPED", "DRAINING", 160.0, 0, when=1000.0)]
    one = only(lines[::-1])
    assert (one.when, one.seconds, one.outcome) == (5000.0, 60.0, "ended")


def test_boots_are_apart() -> None:
    """The same process number and time of another boot is another process."""
    lines = [change("DRAINING", "RUNNING", 100.0, boot="b1", when=1.0), *whole(boot="b2")]
    first, second = happened(lines)
    assert (first.outcome, first.seconds) == ("unknown", None)
    assert (second.outcome, second.seconds) == ("ended", 104.0)
    other = [change("DRAINING", "RUNNING", 100.0, boot="b1"), change("STOPPED", "DRAINING", 104.0, boot="b2")]
    assert [one.outcome for one in happened(other)] == ["unknown"]


def test_begin_was_rotated_away() -> None:
    """A drain's last record is enough to tell of it."""
    one = only(whole()[2:])
    assert (round(one.when), one.seconds, course(one).outlived) == (1_700_000_100, 104.0, 1)


def test_end_was_rotated_away() -> None:
    """A state that ends what was not begun tells nothing."""
    assert happened([change("STOPPED", "DRAINING", 5.0), change("RUNNING", "RELOADING", 1.0)]) == []


@pytest.mark.parametrize("number", range(4))
def test_any_record_may_be_missing(number: int) -> None:
    """Whichever record is lost, nothing fails, and one drain is told."""
    lines = [*whole(), line("held", 101.0, **CHRONICLE)]
    del lines[number]
    assert only(lines).what == "drain"


def test_killed() -> None:
    """A kill ends the drain where systemd says that the process ended."""
    held = {**CHRONICLE, "REQUIEM_ELAPSED_USEC": "1000000", "REQUIEM_HOLDERS": "job 0 - open export", "REQUIEM_OUTLIVED": "0"}
    killed = by_systemd(records.EXITED, 195.0, COMMAND="ExecStart", EXIT_CODE="killed", EXIT_STATUS="9")
    one = only([change("DRAINING", "RUNNING", 100.0), line("held", 101.0, **held), killed])
    assert (one.outcome, one.seconds, course(one).outlived) == ("killed: signal 9", 95.0, None)
    assert [bar.label for bar in events.lost(one)] == ["export"]


def test_killed_at_once() -> None:
    """Of a drain that was killed before it could say more, its begin tells who held it."""
    begun = {**CHRONICLE, "REQUIEM_ELAPSED_USEC": "2000", "REQUIEM_HOLDERS": "job -5000 - open export", "REQUIEM_OUTLIVED": ""}
    killed = by_systemd(records.EXITED, 100.3, COMMAND="ExecStart", EXIT_CODE="killed", EXIT_STATUS="9")
    one = only([change("DRAINING", "RUNNING", 100.002, **begun), killed])
    assert (one.at, one.outcome, round(one.seconds or 0, 3), course(one).outlived) == (100.0, "killed: signal 9", 0.3, 0)
    assert [bar.label for bar in events.lost(one)] == ["export"]


def test_control_process_ends_nothing() -> None:
    """The end of an ExecReload= is not the service's."""
    ended = by_systemd(records.EXITED, 101.0, COMMAND="ExecReload", EXIT_CODE="exited", EXIT_STATUS="1")
    assert only([change("DRAINING", "RUNNING", 100.0), ended]).outcome == "unknown"


def test_nobody_else_says_that_it_was_killed() -> None:
    """A service cannot write systemd's records."""
    forged = line(records.EXITED, 101.0, pid=812, UNIT="shop.service", INVOCATION_ID="i1", COMMAND="ExecStart", EXIT_CODE="killed")
    assert only([change("DRAINING", "RUNNING", 100.0), forged]).outcome == "unknown"


def test_two_drains_of_one_process() -> None:
    """A process may hold one service after another."""
    assert [one.seconds for one in happened([*whole(100.0), *whole(300.0)])] == [104.0, 104.0]


@pytest.mark.parametrize(
    ("lines", "outcome", "reason"),
    [
        ([change("RUNNING", "RELOADING", 12.0)], "ok", ""),
        ([line("reload-failed", 11.0, REQUIEM_REASON="line 3"), change("RUNNING", "RELOADING", 12.0)], "failed", "line 3"),
        ([change("DRAINING", "RELOADING", 12.0)], "refused", ""),
        ([], "unknown", ""),
    ],
)
def test_reloads(lines: list[str], outcome: str, reason: str) -> None:
    """A reload went well, failed, was cut off by a drain, or nobody says."""
    one = happened([change("RELOADING", "RUNNING", 10.0), *lines])[0]
    assert (one.what, one.seconds, one.outcome, one.reason) == ("reload", 2.0 if lines else None, outcome, reason)


def test_queued_reload() -> None:
    """A reload that waited for another is the next one."""
    lines = [change("RELOADING", "RUNNING", 10.0), change("RELOAD_QUEUED", "RELOADING", 11.0)]
    lines += [change("RELOADING", "RELOAD_QUEUED", 12.0), change("RUNNING", "RELOADING", 15.0)]
    assert [(one.seconds, one.outcome) for one in happened(lines)] == [(2.0, "ok"), (3.0, "ok")]


def test_roll() -> None:
    """A roll says which generation came and which went."""
    fields: dict[str, Any] = {"REQUIEM_UNIT": "shop.service", "REQUIEM_VERDICT": "ok", "REQUIEM_NEW": "shop@3", "REQUIEM_OLD": "shop@2", "REQUIEM_ELAPSED_USEC": "400000"}
    one = only([line("rolled", 10.0, **fields)])
    assert (one.what, one.run.unit, one.seconds, show.ending(one)) == ("roll", "shop.service", 0.4, "ok: shop@3 for shop@2")


def test_replaced_worker_has_no_deadline() -> None:
    """No timeout runs for a worker that is replaced; one that ends with its service has the service's."""
    worker = whole(110.0, pid=900, REQUIEM_ROLE="worker 3", REQUIEM_OUTLIVED="")
    assert course(only(worker)).deadline is None
    both = happened([*whole(100.0), *worker])
    assert [course(one).deadline for one in both] == [90.0, 80.0]
    assert course(both[1]).outlived == 1
    assert show.total(both) == ["2 drains with 4 jobs; 1 outlived TimeoutStopSec=, and would have been killed"]  # the primary has counted it


def test_stopped_worker_of_a_server() -> None:
    """Where the main process tells nothing, the stop began when systemd says so."""
    stopping = by_systemd(records.STOPPING, 99.0)
    assert course(happened([stopping, *whole(100.0, REQUIEM_ROLE="process")])[0]).deadline == 89.0


def test_without_fields() -> None:
    """Lines of a service that cannot reach the journal's socket tell when and how long."""
    lines = ["running -> draining: SIGTERM, 2 in flight", "draining -> stopped: SIGTERM, 0 in flight", "reloading, another queued -> nonsense: x, 1 in flight"]
    found = [records._from_line(record) for record in records.parse([line("", 10.0 + number, MESSAGE=text) for number, text in enumerate(lines)])]
    (one,) = events.happenings([record for record in found if record is not None])
    assert (one.seconds, one.reason, course(one).in_flight, show.held(course(one))) == (1.0, "SIGTERM", 2, "2 in flight")


# -- reading


@pytest.mark.parametrize(
    "text",
    [
        *("", "-- No entries --", "{", '{"a"', "[]", "null", "{}", '{"_BOOT_ID": 3, "__MONOTONIC_TIMESTAMP": "1", "__REALTIME_TIMESTAMP": "1"}'),
        '{"_BOOT_ID": "b", "__MONOTONIC_TIMESTAMP": null, "__REALTIME_TIMESTAMP": "1"}',
        '{"_BOOT_ID": "b", "__MONOTONIC_TIMESTAMP": "x", "__REALTIME_TIMESTAMP": "1"}',
        "{" * 100_000,
        RECORDED[0][:200],
    ],
)
def test_no_record(text: str) -> None:
    """What is cut off, or no record, is left out."""
    assert records.parse([text]) == []


def test_truncated_anywhere() -> None:
    """Wherever a journal's output ends, what came before is told."""
    text = "\n".join(RECORDED)
    for end in range(0, len(text), 97):
        events.happenings(records.parse(text[:end].split("\n")))


@pytest.mark.parametrize(("value", "expected"), [("a", "a"), ([104, 105], "hi"), (["a", "b"], "a"), ([[104], [105]], "h"), (None, None), ([300], None), ([], None)])
def test_values(value: object, expected: str | None) -> None:
    """Bytes that do not show come as numbers, fields that come several times as a list; too long ones as null."""
    assert records._text(value) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"REQUIEM_HOLDERS": "job\njob x y z\njob 1 2 3\njob nan inf ended x\n\njob 1 - odd x"},
        {"REQUIEM_HELD": "job=x =3 job", "REQUIEM_EXTENSIONS": "a nan 1e999"},
        {"REQUIEM_STOP_TIMEOUT_USEC": "-1", "REQUIEM_OUTLIVED": "9" * 40, "REQUIEM_UNLISTED": "-5", "REQUIEM_WAITING": "x"},
        {"REQUIEM_ELAPSED_USEC": "-104000000"},
        {"REQUIEM_HOLDERS": "\n".join("job 0 1 ended x" for _ in range(5000))},
    ],
)
def test_nonsense_in_fields(fields: dict[str, Any]) -> None:
    """Whatever a service writes, it is shown or left out, and nothing fails."""
    one = only(whole(**fields))
    show.table([one])
    show.timeline(one)
    ET.fromstring(svg.picture(one))
    json.dumps(show.as_json("shop", [one]), allow_nan=False)
    assert len(course(one).bars) <= events.BARS


# -- showing


def test_table() -> None:
    """A row each, the newest first, and the sum."""
    lines = [change("RELOADING", "RUNNING", 10.0), change("RUNNING", "RELOADING", 10.3), *whole()]
    head, first, second, _, total = show.table(events.happenings(records.parse(lines)))
    assert head == "#  WHEN                 UNIT          WHAT    TOOK   HELD BY            OUTLIVED  WAITING  END"
    assert first[24:] == "shop.service  drain   104 s  2 jobs, 1 request  1         2        all ended"
    assert second[24:].split() == ["shop.service", "reload", "0.3", "s", "ok"]
    assert total == "1 drain with 2 jobs; 1 outlived TimeoutStopSec=, and would have been killed"


def test_timeline() -> None:
    """Who held it as bars, extensions as marks, the deadline as a line; what is drawn without one is told."""
    lines = show.timeline(only(whole()), width=80, drawn=show.PLAIN)
    assert lines[1:] == [
        "  job export 42        ==========================================#======  104 s",
        "  job mail 7           ======                                    |        12 s",
        "  request GET /report  =x                                        |        let go",
        "  extended 11 times    ^   ^    ^    ^   ^    ^    ^   ^    ^    ^    ^",
        "                       0 s                           TimeoutStopSec=90 s",
        "  1 job outlived TimeoutStopSec=90 s, and would have been killed",
        "  2 clients waited at its listeners when it ended",
    ]


def test_far_deadline_is_told() -> None:
    """A deadline that was never near is no line that squeezes all else."""
    short: dict[str, Any] = {"REQUIEM_ELAPSED_USEC": "2000000", "REQUIEM_HOLDERS": "job 0 2000 ended x", "REQUIEM_OUTLIVED": ""}
    lines = show.timeline(only(whole(**short)[2:]), drawn=show.PLAIN)
    assert not any("|" in row for row in lines)
    assert "  it was over before TimeoutStopSec=90 s had passed" in lines


def test_timeline_of_a_drain_that_goes_on() -> None:
    """Bars that hold yet reach the edge, and say so."""
    held = {**CHRONICLE, "REQUIEM_ELAPSED_USEC": "1000000", "REQUIEM_HOLDERS": "job 0 - open export"}
    one = only([change("DRAINING", "RUNNING", 100.0), line("held", 101.0, **held)])._replace(outcome=events.NOW)
    row = show.timeline(one, drawn=show.PLAIN, now=30.0)[1]
    assert row.rstrip().endswith(">  holds")


def test_unlisted_and_unknown_are_said() -> None:
    """What a chart lacks is said in words."""
    many = only(whole(REQUIEM_UNLISTED="960"))
    assert "  and 960 more held it, which are not told one by one" in show.timeline(many)
    old = only([change("DRAINING", "RUNNING", 1.0), change("STOPPED", "DRAINING", 2.0)])
    assert "older release" in show.timeline(old)[-1]


@pytest.mark.parametrize("width", [1, 60, 100, 10_000])
def test_widths(width: int) -> None:
    """Rows fit the terminal, from a sensible least width on."""
    rows = show.timeline(only(whole(REQUIEM_HOLDERS=f"job 0 104000 ended {'日' * 90}\njob 0 5 abandoned x")), width=width)[1:-2]
    assert max(map(show.wide, rows)) <= max(show.NARROWEST, min(width, show.WIDEST)) + 4


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", show.DRAWN), ("ascii", show.PLAIN), ("latin-1", show.PLAIN), (None, show.PLAIN), ("odd", show.PLAIN)])
def test_glyphs(encoding: str | None, expected: show.Glyphs) -> None:
    """Lines are drawn where the stream can show them."""
    assert show.glyphs(encoding) == expected


def test_hostile_labels_on_a_terminal() -> None:
    """A label can neither colour, nor turn, nor break a line."""
    failed = [change("RELOADING", "RUNNING", 10.0), line("reload-failed", 11.0, REQUIEM_REASON=HOSTILE), change("RUNNING", "RELOADING", 12.0)]
    both = happened([*failed, *whole(REQUIEM_HOLDERS=f"job 0 1000 ended {HOSTILE}", REQUIEM_REASON=HOSTILE, REQUIEM_ROLE=f"worker {HOSTILE}")])
    text = "\n".join([*show.table(both), *show.timeline(both[1])])
    assert all(sign.isprintable() or sign == "\n" for sign in text)


def test_colours_change_nothing_else() -> None:
    """Colours are the only difference that they make."""
    one = only(whole())
    text = "\n".join([*show.table([one], coloured), *show.timeline(one, coloured)])
    bare = "".join(part.partition("m")[2] if number else part for number, part in enumerate(text.split("\x1b[")))
    assert [row.rstrip() for row in bare.split("\n")] == [*show.table([one]), *show.timeline(one)]


def test_picture() -> None:
    """A bar in two colours where it crosses the deadline, marks, the line, and words; nothing that runs or loads."""
    root = ET.fromstring(svg.picture(only(whole())))
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "job export 42" in texts
    assert "TimeoutStopSec=90 s" in texts
    assert len({rect.get("fill") for rect in root.iter(f"{SVG}rect")}) == 3
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "title", "rect", "text", "g", "path"}


def test_hostile_labels_in_a_picture() -> None:
    """A label is text in it, whatever it holds: valid XML, no element of its own, no attribute that runs."""
    lines = whole(REQUIEM_HOLDERS=f"job 0 1000 ended {HOSTILE}", REQUIEM_REASON=HOSTILE)
    text = svg.picture(only(lines))
    root = ET.fromstring(text.encode())
    assert "<script" not in text
    assert any("<script>" in (element.text or "") for element in root.iter(f"{SVG}title"))
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]


def test_what_xml_cannot_hold() -> None:
    """Characters that may not stand in a document, not even escaped, are replaced."""
    root = ET.Element("svg")
    svg._child(root, "text", "a\x00\x1b\ud800\ufffe\uffffb")
    assert ET.fromstring(ET.tostring(root))[0].text == "a" + "\ufffd" * 5 + "b"


# -- the command


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a journalctl of our own first; what it was called with is in the file that it returns."""

    def journalctl(text: str) -> Path:
        path = tmp_path / "journalctl"
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n{text}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "words"

    return journalctl


@pytest.fixture
def recorded(tmp_path: Path, journalctl: Callable[[str], Path]) -> Path:
    """Have journalctl tell what was recorded; return the file with its words."""
    (tmp_path / "stops").write_text("\n".join(RECORDED))
    return journalctl(f'case "$*" in *\\ REQUIEM_UNIT=*) ;; *) cat {tmp_path}/stops;; esac')


def test_command(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, and below it the newest drain with somebody in it; journalctl reads a bounded amount, of this unit and its generations."""
    assert cli.main(["history", "web", "--since", "2d"]) == 0
    text = capsys.readouterr().out
    assert "3 drains with 9 jobs; 1 outlived TimeoutStopSec=" in text
    assert "begun by SIGTERM" in text
    words = recorded.read_text()
    assert "--unit=web.service --unit=web@*.service" in words
    assert f"--lines={records.RECORDS}" in words
    assert "--since=-172800s" in words


def test_chosen_drain(recorded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A number shows that drain only, and draws it."""
    assert cli.main(["history", "web", "3", "--svg", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out.startswith("drain of web.service")
    assert "TimeoutStopSec=2 s" in (tmp_path / "x.svg").read_text()


def test_picture_on_stdout(recorded: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """With "-" the picture is all that there is."""
    assert cli.main(["history", "web", "--svg", "-"]) == 0
    ET.fromstring(capfdbinary.readouterr().out)


def test_json(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything as values."""
    assert cli.main(["history", "web", "--json", "--limit", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in told["happenings"]] == ["drain"] * 3
    assert told["happenings"][2]["drain"]["outlived"] == 1


def test_of_one_s_own_manager(recorded: Path) -> None:
    """--user reads one's own units' records."""
    assert cli.main(["history", "web@2.service", "--user"]) == 0
    assert "--user-unit=web@2.service MESSAGE_ID" in recorded.read_text()


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1", 3, "group systemd-journal"),
        ("echo 'Hint: You are currently not seeing messages from other users and the system.' >&2", 3, "group systemd-journal"),
        ("echo 'No journal files were found.' >&2; echo '-- No entries --'", 3, "there is no journal"),
        ("echo 'Something is odd' >&2; exit 1", 3, "journalctl says: Something is odd"),
        ("echo '-- No entries --'", 1, "the journal tells of no drain, reload or roll of web"),
    ],
)
def test_nothing_to_read(journalctl: Callable[[str], Path], capsys: pytest.CaptureFixture[str], script: str, status: int, said: str) -> None:
    """No permission, no journal, an error, nothing found: each has its words."""
    journalctl(script)
    assert cli.main(["history", "web"]) == status
    assert said in capsys.readouterr().err


def test_no_journalctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without journalctl it is 3, and said."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["history", "web"]) == 3
    assert "journalctl cannot be run" in capsys.readouterr().err


def test_damaged_journal(journalctl: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What journalctl says of damage is passed on, beside what it could read."""
    (tmp_path / "stops").write_text("\n".join(RECORDED)[:-300])
    journalctl(f"cat {tmp_path}/stops; echo 'Journal file x is truncated, ignoring file.' >&2")
    assert cli.main(["history", "web"]) == 0
    assert "journalctl: Journal file x is truncated" in capsys.readouterr().err


def test_time_that_is_none(journalctl: Callable[[str], Path]) -> None:
    """A --since that journalctl does not know is wrong usage."""
    journalctl("echo 'Failed to parse timestamp: soonish' >&2; exit 1")
    with pytest.raises(SystemExit) as caught:
        cli.main(["history", "web", "--since", "soonish"])
    assert caught.value.code == 2


@pytest.mark.parametrize("number", ["5", "9"])
def test_no_such_drain(recorded: Path, capsys: pytest.CaptureFixture[str], number: str) -> None:
    """A number that is a reload, or none, is 1."""
    assert cli.main(["history", "web", number]) == 1
    assert f"{number} is no drain" in capsys.readouterr().err


def test_picture_that_cannot_be_written(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's own error is said."""
    assert cli.main(["history", "web", "--svg", "/nowhere/x.svg"]) == 1
    assert "/nowhere/x.svg: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["a/b"], ["-x"], ["web.socket"], ["we*b"], ["web", "0"], ["web", "x"], ["web", "--limit", "0"], ["web", "--since", "infinity"], ["web", "٣"]],
)
def test_usage(words: list[str]) -> None:
    """What cannot be understood is 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["history", *words])
    assert caught.value.code == 2


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows what it looks like, and says what the exit statuses mean."""
    with pytest.raises(SystemExit):
        cli.main(["history", "--help"])
    text = capsys.readouterr().out
    assert "# requiem-systemd history shop" in text
    assert "3  the journal cannot be read" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says which release it is of."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("requiem-systemd 0.")
