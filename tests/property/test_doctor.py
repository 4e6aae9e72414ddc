"""Whatever stands in a unit, doctor judges it: nothing raises, and what it says is whole."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from requiem_systemd.cli.doctor import parse
from requiem_systemd.cli.doctor.facts import Source
from requiem_systemd.cli.doctor.programs import PROGRAMS
from requiem_systemd.cli.doctor.rules import findings
from requiem_systemd.unitfile import KEPT, Unit, assignments

KEYS = st.sampled_from(
    sorted(
        KEPT
        | {
            "ExecStart",
            "ExecStop",
            "ExecReload",
            "ExecStartPre",
            "ExecStopPost",
            "Environment",
            "RestrictAddressFamilies",
            "RuntimeDirectory",
        }
        | {
            "WorkingDirectory",
            "KillMode",
            "Exec",
            "StopTimeout",
            "PodmanArgs",
            "PublishPort",
            "Notify",
            "SuccessExitStatus",
            "PIDFile",
        }
    )
)
WORDS = st.sampled_from(
    [word for program in PROGRAMS for word in program.words]
    + [
        "/bin/sh",
        "-c",
        "exec",
        "&&",
        "'a",
        "b'",
        '"',
        "'",
        "\\",
        "\\x41",
        "-9",
        "--time",
        "=",
        "%",
        "%i",
        "$MAINPID",
        "kill",
        "pkill",
        "env",
        "nice",
        "sudo",
        "-u",
        "python",
        "-m",
        "-D",
        "--reload",
        "notify",
        "yes",
        "no",
        "0",
        "1",
        "5min",
    ]
    + [
        "infinity",
        "none",
        "mixed",
        "process",
        "~AF_UNIX",
        "AF_INET",
        "roll",
        "drain",
        "reload",
        "requiem-systemd",
        "requiem_systemd",
        "a.socket",
        "a.service",
        ";",
        "@-",
        "+",
    ]
)
VALUES = st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=8).map(" ".join))
LINES = st.one_of(
    st.tuples(KEYS, VALUES).map("=".join),
    st.sampled_from(["[Service]", "[Unit]", "[Container]", "[Socket]", "# x \\", "x \\"]),
    st.text(max_size=20),
)
NAMES = st.sampled_from(["a.service", "a@.service", "a@b.service", "a.container", "a.socket"])


@given(
    name=NAMES,
    lines=st.lists(LINES, max_size=25),
    user=st.booleans(),
    script=st.sampled_from(["", "requiem_systemd keep=True"]),
)
def test_any_unit_is_judged(name: str, lines: list[str], *, user: bool, script: str) -> None:
    """No unit is stumbled over, and each finding has its why, its line and its reference."""
    unit = Unit(("[Service]\n" + "\n".join(lines),))
    for one in findings(Source(name, unit, {"a.service": unit, "a.socket": unit}, user=user, script=script)):
        assert all((one.why, one.line, one.see)), one


@given(
    st.lists(
        st.text(
            alphabet=st.characters(
                exclude_characters="\0\n\r", exclude_categories=["Cs", "Zl", "Zp", "Zs", "Cc"]
            ),
            min_size=1,
        ),
        min_size=1,
    )
)
def test_quoted_words_come_back(typed: list[str]) -> None:
    """Words in single quotes are read as they are, escapes aside."""
    line = " ".join("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in typed)
    assert parse.words(line) == typed


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """Of any text there are assignments or none: no key is empty of what it was, and no line gives two."""
    found = list(assignments(text))
    assert len(found) <= text.count("=")
