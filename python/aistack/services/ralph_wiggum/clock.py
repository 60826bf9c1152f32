"""Moments as the routes show them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: float) -> str:
    """A Unix time in seconds as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_or_none(moment: float | None) -> str | None:
    """The same, or None for none."""
    return None if moment is None else rfc3339(moment)
