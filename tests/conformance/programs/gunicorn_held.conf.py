"""gunicorn's configuration with the two lines that are ours, below hooks of its own."""

from record import record
from requiem_systemd.adapters import gunicorn


def post_worker_init(_worker):
    """Start."""
    record("startup")


def worker_exit(_server, _worker):
    """Shut down."""
    record("shutdown")


gunicorn.hold(globals())
