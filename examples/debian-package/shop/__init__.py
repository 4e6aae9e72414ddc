"""A shop that exports its orders: a request is answered at once, an export takes its time and must not be lost."""

VERSION = "1.0"
