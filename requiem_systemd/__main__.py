"""`python -m requiem_systemd`: the command line."""

from __future__ import annotations

import sys

from requiem_systemd.cli import main

sys.exit(main())
