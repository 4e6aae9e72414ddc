"""The README's two commands, on a machine that has none of their dependencies yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("folder", "module"), [("examples/demo_services", "show"), (".", "tests.suite")])
def test_needs_only_python(folder: str, module: str) -> None:
    """What they begin with can be imported where nothing is installed: it is what installs."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / folder)!r}); import {module}"
    subprocess.run((sys.executable, "-I", "-S", "-B", "-c", code), check=True, cwd="/")
