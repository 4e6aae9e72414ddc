"""Other Debians, as trees that can be booted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.supplies import cache, digest, make, quietly, step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: What mmdebstrap is told beside the name.
OPTIONS: Final = {"forky": ('--aptopt=Acquire::Check-Valid-Until "false"',)}  # mirrors of testing may lag
#: What is booted, and what the tests with a real systemd run in it.
BOOTED: Final = (
    *("ca-certificates", "dbus", "iproute2", "mount", "nodejs", "procps", "python3"),
    *("systemd", "systemd-sysv"),
)


def root_tree(suite: str, packages: Sequence[str]) -> Path:
    """Return the tree of a Debian with these packages, made if need be."""
    options = OPTIONS.get(suite, ())
    path = cache() / f"root-{suite}-{digest(*packages, *options)}"

    def build() -> None:
        with step(f"making {path} (half a minute)"):
            include = f"--include={','.join(packages)}"
            quietly("mmdebstrap", "--quiet", "--variant=apt", include, *options, suite, path)

    make(path, suite, build)
    return path
