"""A bare listening socket: the drain closes it, and nobody stays blocked in its `accept()`."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from requiem_systemd.accepting import Acceptor, secured
from requiem_systemd.hooks import running_loop
from requiem_systemd.listen import Listener

# Not an attribute of the socket: it has __slots__, and C code looks at it.
_ACCEPTORS: dict[int, Acceptor] = {}
