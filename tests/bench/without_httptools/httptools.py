"""Stands before the real one on the path: uvicorn does as if that were not installed."""

raise ImportError
