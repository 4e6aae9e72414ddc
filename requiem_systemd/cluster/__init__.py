"""Several processes of one service: a primary that keeps workers, as in Node's cluster.

By hand::

    from requiem_systemd import cluster

    if cluster.is_primary():
        worker = cluster.fork()
        ...
        worker.disconnect(lambda worker: print("done"))

or kept::

    Cluster(serve, workers=4).run()

The primary alone talks to systemd, and exits last. Workers stop by no longer accepting; killed, the primary leaves them to drain by
themselves.
"""

from __future__ import annotations

from typing import Final

from requiem_systemd.cluster.cluster import Cluster
from requiem_systemd.cluster.primary import Primary
from requiem_systemd.cluster.worker import Worker
from requiem_systemd.service import process as service

__all__ = ["Cluster", "Primary", "Worker", "fork", "is_primary", "on"]

# The module's functions are those of the process's one service, as the package's are.
process: Final = Primary(service)
fork: Final = process.fork
is_primary: Final = process.is_primary
on: Final = process.on
