"""Calendar periods, around what clocks do to them."""

import zoneinfo
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.limits.calendar import FOREVER, bounds

ZONES = sorted(zoneinfo.available_timezones())
PERIODS = ("Day", "Week", "Month", "Total")
_1971, _2037 = 31_536_000, 2_114_380_800


def instant(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp()


def said(period: str, zone: str, now: str) -> tuple[str, str]:
    """The bounds around a local time, as local times with their offsets."""
    where = zoneinfo.ZoneInfo(zone)
    since, until = bounds(period, zone, instant(now, zone))
    return (
        datetime.fromtimestamp(since, where).isoformat(timespec="minutes"),
        datetime.fromtimestamp(until, where).isoformat(timespec="minutes"),
    )


@pytest.mark.parametrize(
    ("period", "zone", "now", "since", "until"),
    [
        # Clocks forward, clocks back: days of 23 and 25 hours.
        (
            "Day",
            "Europe/Paris",
            "2026-03-29T12:00",
            "2026-03-29T00:00+01:00",
            "2026-03-30T00:00+02:00",
        ),
        (
            "Day",
            "Europe/Paris",
            "2026-10-25T02:30",
            "2026-10-25T00:00+02:00",
            "2026-10-26T00:00+01:00",
        ),
        (
            "Month",
            "Europe/Paris",
            "2026-03-31T23:59",
            "2026-03-01T00:00+01:00",
            "2026-04-01T00:00+02:00",
        ),
        # A midnight that does not exist, and one that comes twice.
        (
            "Day",
            "America/Santiago",
            "2026-09-06T09:00",
            "2026-09-06T01:00-03:00",
            "2026-09-07T00:00-03:00",
        ),
        (
            "Day",
            "America/Havana",
            "2026-11-01T00:30",
            "2026-11-01T00:00-04:00",
            "2026-11-02T00:00-05:00",
        ),
        # A day that Samoa left out.
        (
            "Day",
            "Pacific/Apia",
            "2011-12-29T12:00",
            "2011-12-29T00:00-10:00",
            "2011-12-31T00:00+14:00",
        ),
        # Ends of years: ISO week 53, leap days, the month after December.
        ("Week", "UTC", "2027-01-01T00:00", "2026-12-28T00:00+00:00", "2027-01-04T00:00+00:00"),
        (
            "Month",
            "Asia/Tokyo",
            "2026-12-31T23:59",
            "2026-12-01T00:00+09:00",
            "2027-01-01T00:00+09:00",
        ),
        ("Month", "UTC", "2028-02-29T12:00", "2028-02-01T00:00+00:00", "2028-03-01T00:00+00:00"),
        ("Day", "UTC", "2028-02-29T00:00", "2028-02-29T00:00+00:00", "2028-03-01T00:00+00:00"),
    ],
)
def test_periods(period: str, zone: str, now: str, since: str, until: str) -> None:
    assert said(period, zone, now) == (since, until)


def test_a_total_never_begins_anew() -> None:
    assert bounds("Total", "Europe/Paris", 1.7e9) == (0, FOREVER)


def test_a_zone_that_is_not_known_counts_as_utc() -> None:
    assert bounds("Day", "Mars/Olympus", 1.7e9) == bounds("Day", "UTC", 1.7e9)


@given(st.sampled_from(PERIODS), st.sampled_from(ZONES), st.integers(_1971, _2037))
@settings(deadline=None, max_examples=500)
def test_periods_follow_one_another_without_gap_or_overlap(
    period: str, zone: str, now: int
) -> None:
    since, until = bounds(period, zone, now)
    assert since <= now < until
    assert bounds(period, zone, since) == (since, until)
    assert bounds(period, zone, until - 1) == (since, until)
    if period != "Total":
        assert bounds(period, zone, until)[0] == until


@given(st.sampled_from(ZONES), st.integers(_1971, _2037))
@settings(deadline=None, max_examples=200)
def test_a_period_begins_at_the_first_moment_of_its_day(zone: str, now: int) -> None:
    where = zoneinfo.ZoneInfo(zone)
    for period in ("Day", "Week", "Month"):
        since, _ = bounds(period, zone, now)
        first = datetime.fromtimestamp(since, where).date()
        assert datetime.fromtimestamp(since - 1, where).date() < first
        assert period != "Week" or first.weekday() == 0
        assert period != "Month" or first.day == 1
