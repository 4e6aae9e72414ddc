"""The journal's records of a unit, by journalctl, as values: what it prints is read with suspicion, and in bounded amounts."""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from requiem_systemd.cli.systemctl import UnavailableError, run
from requiem_systemd.journal import MESSAGE_IDS
from requiem_systemd.lifecycle import State
from requiem_systemd.protocol import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: So many records are read at the most, the newest; a drain leaves about four, and one more for each job that is given up.
RECORDS: Final = 10_000
#: Of one field; a chronicle's are shorter.
FIELD_MAX: Final = 32_768
# systemd's own (journalctl --catalog): what it did to the unit, and how a process of it ended.
STOPPING: Final = "de5b426a63be47a7b6ac3eaac82e2f6f"
STOPPED: Final = "9d1aaa27d60140bd96365438aad20286"
EXITED: Final = "98e322203f7a4ed290d09fe03c09fe15"
FAILED: Final = "d9b373ed55a64feb8242e02dbe79a49c"
SUCCEEDED: Final = "7ad2d189f7e94e70a38c781354912448"
_SYSTEMD: Final = (STOPPING, STOPPED, EXITED, FAILED, SUCCEEDED)
_OURS: Final = ("state", "held", "draining-long", "drained", "reload-failed", "exit-stuck", "rolled")
_FIELDS: Final = (
    *("MESSAGE_ID", "MESSAGE", "_PID", "_UID", "_SYSTEMD_UNIT", "_SYSTEMD_USER_UNIT", "_SYSTEMD_INVOCATION_ID"),
    *("UNIT", "USER_UNIT", "INVOCATION_ID", "USER_INVOCATION_ID", "COMMAND", "EXIT_CODE", "EXIT_STATUS"),
    *("REQUIEM_STATE", "REQUIEM_PREVIOUS", "REQUIEM_IN_FLIGHT", "REQUIEM_REASON", "REQUIEM_ROLE", "REQUIEM_ELAPSED_USEC"),
    *("REQUIEM_STOP_TIMEOUT_USEC", "REQUIEM_OUTLIVED", "REQUIEM_HELD", "REQUIEM_HOLDERS", "REQUIEM_UNLISTED", "REQUIEM_EXTENDED"),
    *("REQUIEM_EXTENSIONS", "REQUIEM_ABANDONED", "REQUIEM_WAITING"),
    *("REQUIEM_UNIT", "REQUIEM_VERDICT", "REQUIEM_NEW", "REQUIEM_OLD"),
)
_PLAIN: Final = r"^[a-z, ]+ -> [a-z, ]+: .*, [0-9]+ in flight$"
_BAD_TIME: Final = "Failed to parse timestamp"
_CLOSED: Final = re.compile(r"insufficient permissions|not seeing messages|Permission denied", re.IGNORECASE)
_MISSING: Final = re.compile(r"No journal files were found", re.IGNORECASE)


class TimeError(Exception):
    """Raised where journalctl does not understand --since."""


class Record(NamedTuple):
    """One record: `at` in seconds of the boot's own clock, which nobody sets; `when` in seconds since 1970, as the clock stood."""

    boot: str
    at: float
    when: float
    fields: Mapping[str, str]

    def kind(self) -> str:
        """Return what it is, as `journal.record` calls it, "" for none of ours."""
        return _KINDS.get(self.fields.get("MESSAGE_ID", ""), "")


_KINDS: Final = {number: kind for kind, number in MESSAGE_IDS.items()}


class Found(NamedTuple):
    """What was read; `notes` is what journalctl said beside, `cut`: there may be more, further back."""

    records: list[Record]
    notes: list[str]
    cut: bool


def read(unit: str, *, user: bool, since: str) -> Found:
    """Return the records of a unit; of the anchor of rolling units, of its generations too.

    Raises UnavailableError where the journal cannot be read, TimeError where `since` is none.
    """
    name = unit.removesuffix(".service")
    pattern = name.replace("\\", "\\\\")  # fnmatch(3)
    flag = "--user-unit" if user else "--unit"
    own = [f"{flag}={name}.service", *([] if "@" in name else [f"{flag}={pattern}@*.service"])]
    ids = [f"MESSAGE_ID={MESSAGE_IDS[kind]}" for kind in _OURS] + [f"MESSAGE_ID={number}" for number in _SYSTEMD]
    found = _asked(*own, *ids, since=since)
    if not any(record.kind() == "state" for record in found.records):
        # Where the journal's socket is not to be had records are lines without fields. They are looked for where there are no others: it takes long.
        with contextlib.suppress(UnavailableError):  # a journalctl without --grep
            plain = _asked(*own, f"--grep={_PLAIN}", "--case-sensitive=yes", "_TRANSPORT=stdout", since=since)
            found = Found([*found.records, *filter(None, map(_from_line, plain.records))], found.notes, found.cut or plain.cut)
    if "@" not in name:  # a roll by hand is in no unit; whoever may write as root, or as this user, may say so
        owner = os.getuid() if user else 0
        rolls = _asked(f"REQUIEM_UNIT={name}.service", f"MESSAGE_ID={MESSAGE_IDS['rolled']}", f"_UID={owner}", since=since)
        known = {(one.boot, one.at) for one in found.records if one.kind() == "rolled"}
        found.records.extend(one for one in rolls.records if one.kind() == "rolled" and (one.boot, one.at) not in known)
    return found


def _asked(*words: str, since: str) -> Found:
    fixed = ("--no-pager", "--all", "--output=json", f"--output-fields={','.join(_FIELDS)}", f"--lines={RECORDS}")
    done = run("journalctl", *fixed, *([f"--since={since}"] if since else []), *words)
    records = parse(done.stdout.split("\n"))
    if _BAD_TIME in done.stderr:
        raise TimeError(clean(done.stderr, 300))
    said = [clean(line, 300) for line in done.stderr.splitlines() if line.strip() and not line.startswith((" ", "Hint:"))]
    if not records and (message := problem(done.stderr)):
        raise UnavailableError(message)
    if done.returncode and not records and said:
        msg = f"journalctl says: {'; '.join(said)[:600]}"
        raise UnavailableError(msg)
    return Found(records, said[:5], len(records) >= RECORDS)


def problem(stderr: str) -> str:
    """Say why nothing was seen, and what to do, by what journalctl wrote; "" where that is not why."""
    if _CLOSED.search(stderr):
        return "the journal may not be read: run this as root, or add yourself to the group systemd-journal (usermod -aG systemd-journal USER)"
    if _MISSING.search(stderr):
        return "there is no journal: systemd-journald does not run here, or keeps none (Storage=none in journald.conf)"
    return ""


def parse(lines: Iterable[str]) -> list[Record]:
    """Read the output of `journalctl --output=json`; what is no record, or half of one, is left out."""
    return [record for line in lines if line.startswith("{") and (record := _record(line)) is not None]


def _record(line: str) -> Record | None:
    try:
        values = json.loads(line)
        at, when = int(values["__MONOTONIC_TIMESTAMP"]) / 1e6, int(values["__REALTIME_TIMESTAMP"]) / 1e6
        boot = values["_BOOT_ID"]
    except (ValueError, KeyError, TypeError, RecursionError):  # truncated; a field that is not there
        return None
    if not isinstance(boot, str):
        return None
    fields = {name: text for name, value in values.items() if (text := _text(value)) is not None}
    return Record(boot, at, when, fields)


def _text(value: Any) -> str | None:
    """Return a field's text: what is not printable comes as a list of bytes, what comes several times as a list of values."""
    if isinstance(value, str):
        return value[:FIELD_MAX]
    if isinstance(value, list) and value:
        if all(isinstance(one, int) and 0 <= one < 256 for one in value):
            return bytes(value[:FIELD_MAX]).decode("utf-8", "replace")
        return _text(value[0])
    return None


_CHANGE: Final = re.compile(r"([a-z, ]+) -> ([a-z, ]+): (.*), ([0-9]+) in flight")
_STATES: Final = {state.value: state.name for state in State}


def _from_line(record: Record) -> Record | None:
    """Return the record that a line was meant to be, without what only fields can tell."""
    message = record.fields.get("MESSAGE", "")
    change = _CHANGE.fullmatch(message)
    if change is None:
        return None
    previous, state, reason, count = change.groups()
    made = {
        "MESSAGE_ID": MESSAGE_IDS["state"],
        "REQUIEM_PREVIOUS": _STATES.get(previous, ""),
        "REQUIEM_STATE": _STATES.get(state, ""),
        "REQUIEM_IN_FLIGHT": count,
        "REQUIEM_REASON": reason,
    }
    return record._replace(fields={**record.fields, **made})


def unit_of(record: Record) -> str:
    """Return the unit that a record is of: of systemd's own, the one that it is about."""
    fields = record.fields
    if is_systemd(record):
        return fields.get("USER_UNIT") or fields.get("UNIT", "")
    return fields.get("_SYSTEMD_USER_UNIT") or fields.get("_SYSTEMD_UNIT", "")


def invocation_of(record: Record) -> str:
    """Return which start of its unit a record is of."""
    fields = record.fields
    if is_systemd(record):
        return fields.get("USER_INVOCATION_ID") or fields.get("INVOCATION_ID", "")
    return fields.get("_SYSTEMD_INVOCATION_ID", "")


def is_systemd(record: Record) -> bool:
    """Say whether a manager wrote it: a service may write any MESSAGE_ID=, but not for process 1."""
    fields = record.fields
    return fields.get("MESSAGE_ID") in _SYSTEMD and (fields.get("_PID") == "1" or "USER_UNIT" in fields)


def number_of(fields: Mapping[str, str], name: str) -> int | None:
    """Return a field that is a whole number; None where it is not there, or nonsense."""
    text = fields.get(name, "")
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else None


def words_of(fields: Mapping[str, str], name: str) -> Sequence[str]:
    """Return the words of a field."""
    return fields.get(name, "").split()
