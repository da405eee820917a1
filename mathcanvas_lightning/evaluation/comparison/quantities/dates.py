"""Dates and days of the week: March 5, 2024; 5 March; 2024年3月5日; Wed; 星期三."""

import re
from dataclasses import dataclass

_MONTHS = (
    "january february march april may june july august september october november december".split()
)
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_CHINESE_DAYS = {**dict(zip("123456", range(6), strict=True)), "日": 6, "天": 6, "7": 6}
_MONTH = rf"(?P<month>{'|'.join(f'{one}|{one[:3]}' for one in _MONTHS)}|sept)\.?"
_DAY = rf"(?P<weekday>{'|'.join(f'{one}|{one[:3]}' for one in _DAYS)}|tues|thurs?)\.?"
_NUMBER = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_FORMS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:on\s)?(?:{_DAY},?\s?)?(?:the\s)?{_NUMBER}\s(?:of\s)?{_MONTH}(?:,?\s?{_YEAR})?",
        rf"(?:on\s)?(?:{_DAY},?\s?)?{_MONTH}\s(?:the\s)?{_NUMBER}(?:,?\s?{_YEAR})?",
        rf"(?:{_MONTH},?\s{_YEAR}|(?:in\s)?{_MONTH.replace('month', 'only')})",
        rf"(?:on\s)?(?:a\s)?{_DAY}",
        r"(?P<year>\d{4})(?P<sign>[-/.])(?P<number>\d{1,2})(?P=sign)(?P<day>\d{1,2})",
        r"(?:(?P<year>\d{4})年)?(?P<number>\d{1,2})月(?P<day>\d{1,2})[日号]?"
        r"(?:\s?\(?(?:星期|周|礼拜)(?P<chinese>[1-7日天])\)?)?",
        r"(?P<year>\d{4})年(?P<number>\d{1,2})月",
        r"(?:星期|周|礼拜)(?P<chinese>[1-6日天])",
        r"(?P<number>\d{1,2})月份?",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Date:
    """A date, or a part of one."""

    year: int | None
    month: int | None
    day: int | None
    weekday: int | None
    """Days since Monday."""


def same_date(given: str, expected: str) -> bool | None:
    """Compares two dates; a missing year or weekday is assumed to be that of the other.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether they are the same date; None if not both are dates.
    """
    first, second = read_date(given), read_date(expected)
    if first is None or second is None:
        return None
    if (first.month, first.day) != (second.month, second.day):
        return False
    pairs = ((first.year, second.year), (first.weekday, second.weekday))
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def read_date(text: str) -> Date | None:
    """Reads a date.

    Args:
        text: A text in canonical form.

    Returns:
        The date; None if the text is something else.
    """
    plain = " ".join(text.casefold().split())
    for form in _FORMS:
        if match := form.fullmatch(plain):
            return _date(match.groupdict())
    return None


def _date(found: dict[str, str | None]) -> Date | None:
    name = found.get("month") or found.get("only")
    month = _index(name, _MONTHS) + 1 if name else int(found.get("number") or 0) or None
    day = int(found.get("day") or 0) or None
    named = found.get("weekday")
    weekday = _index(named, _DAYS) if named else None
    if chinese := found.get("chinese"):
        weekday = _CHINESE_DAYS[chinese]
    if (month or 0) > 12 or (day or 0) > 31:
        return None
    return Date(year=int(found.get("year") or 0) or None, month=month, day=day, weekday=weekday)


def _index(name: str, names: list[str]) -> int:
    return next(number for number, one in enumerate(names) if one.startswith(name[:3]))
