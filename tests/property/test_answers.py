"""Whatever a service answers, `ps` and `why` show it without failing, and without letting it draw on the terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from requiem_systemd import varlink
from requiem_systemd.cli import explain, look, ps, show
from requiem_systemd.errors import ProtocolError
from requiem_systemd.processes import Process
from requiem_systemd.standing import WorkerInfo

_KEYS = sorted(set(re.findall(r"(\w+):", varlink.DESCRIPTIONS[varlink.SERVICE])) | {"main", "x"})
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["draining", "stopped", "running", "main", "job", "orphan", "descendant", "Z", "\x1b[2J", "\ud800"]),
)
#: Anything, under names that the interface has.
_OBJECTS = st.dictionaries(
    st.sampled_from(_KEYS),
    st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=6), max_leaves=8),
    max_size=8,
)


def _shaped(lists: dict[str, tuple[str, ...]], *names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects of the right shape, each field of any type."""
    inner = {name: st.lists(st.fixed_dictionaries({field: _LEAVES | st.lists(_LEAVES, max_size=2) for field in fields}), max_size=2) for name, fields in lists.items()}
    return st.fixed_dictionaries({**inner, **dict.fromkeys(names, _LEAVES)})


_DESCRIBED = _OBJECTS | _shaped(
    {"workers": WorkerInfo._fields, "signals": ("signal", "effect")},
    *("unit", "pid", "role", "state", "since", "reason", "status", "in_flight", "abandoned", "drain_left", "exit_left", "extension"),
)
_IN_FLIGHT = _OBJECTS | _shaped({"holders": look.Holder._fields, "processes": Process._fields}, "omitted", "counts")
_SHOWN = st.dictionaries(
    st.sampled_from(["Id", "ActiveState", "MainPID", "StatusText", "TimeoutStopUSec", "StateChangeTimestampMonotonic"]),
    st.sampled_from(["", "x", "1", "\x1b[31m", "2s", "infinity", "deactivating", "9" * 30]),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first example pays for the tables of Unicode
@given(_DESCRIBED, _IN_FLIGHT, _SHOWN)
def test_any_answer_can_be_shown(described: dict[str, Any], in_flight: dict[str, Any], shown: dict[str, str]) -> None:
    """Fields that are missing, of other types, or not known, are as nothing."""
    told = look.Told("web", "/run/web/requiem", described, in_flight, "", shown)
    lines = [*show.table([told]), *explain.account(told, now=1.0)]
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(lines)), lines
    assert json.loads(ps.as_json([told]))["services"][0]["unit"] == "web"


@given(_OBJECTS)
def test_any_answer_can_be_read(values: dict[str, Any]) -> None:
    """An answer survives the way over the wire, or is refused."""
    try:
        error, parameters = varlink.read_reply(varlink.write_reply(values)[:-1])
    except ProtocolError:
        return
    assert (error, set(parameters)) == ("", set(values))


@given(st.binary())
def test_any_bytes_can_be_read(data: bytes) -> None:
    """Bytes are a request or an answer, or a ProtocolError: nothing else is raised."""
    for read in (varlink.read_call, varlink.read_reply):
        try:
            read(data)
        except ProtocolError:
            continue
