"""gunicorn's own configuration; the last two lines have its arbiter hold the stop while its workers have jobs."""

import os

from requiem_systemd.adapters import gunicorn

bind = f"127.0.0.1:{os.environ.get('EXAMPLE_PORT', '8080')}"  # systemd's listeners, where it passes some, come first
workers = 2
threads = 4
gunicorn.hold(globals())
