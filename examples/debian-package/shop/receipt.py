"""What an export ends with. Nobody imports this before the first export ends: by then dpkg may have replaced it."""

from shop import VERSION


def receipt(number: int) -> str:
    """Return the line that says an export is done."""
    return f"export {number} done by {VERSION}"
