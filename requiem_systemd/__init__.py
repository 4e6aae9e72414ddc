"""Graceful stops, restarts and reloads of Python services under systemd."""
