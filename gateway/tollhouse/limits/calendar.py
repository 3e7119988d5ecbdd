"""Calendar periods: when money is counted anew. Pure.

A period begins at midnight where its time zone says so, and where a change of the clocks takes that
midnight away, with the first moment of the day. Weeks begin on Monday, as in ISO 8601.
"""

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

FOREVER = 253_402_300_800
"""The year 10000: when the period Total ends, in seconds since the epoch."""
_KEPT = 1024


def bounds(period: str, zone: str, now: float) -> tuple[int, int]:
    """[since, until) of the period around ``now``, all in seconds since the epoch.

    ``period`` is Day, Week, Month or Total; ``zone`` an IANA time zone. A zone that this machine
    does not know counts as UTC: whoever compiled the snapshot has checked the name.
    """
    if period == "Total":
        return 0, FOREVER
    where = _zone(zone)
    today = datetime.fromtimestamp(now, where).date()
    return _cached_bounds(period, zone, today.toordinal())


@lru_cache(maxsize=_KEPT)
def _cached_bounds(period: str, zone: str, day: int) -> tuple[int, int]:
    """The bounds of the period that has this day (a proleptic ordinal) in it."""
    where, first = _zone(zone), date.fromordinal(day)
    if period == "Day":
        following = first + timedelta(days=1)
    elif period == "Week":
        first -= timedelta(days=first.weekday())
        following = first + timedelta(days=7)
    else:
        first = first.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    return _midnight(first, where), _midnight(following, where)


def _midnight(day: date, where: tzinfo) -> int:
    # Where the clocks skip midnight, fold 0 reads it by the offset before the change, which is the
    # very moment of the change; where midnight comes twice, it is the first one.
    return int(datetime.combine(day, time(), where).timestamp())


@lru_cache(maxsize=_KEPT)
def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC
