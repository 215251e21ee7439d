"""Dates in files."""

from datetime import datetime, timezone


def today() -> str:
    """ISO date."""
    return datetime.now(timezone.utc).date().isoformat()
