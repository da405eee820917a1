"""Times of day: 3:30 pm, 15:30, half past three, quarter to five, 下午3点半."""

import re
from dataclasses import dataclass
from typing import Literal

from mathcanvas_lightning.evaluation.comparison.quantities.numbers import parse_number

NOON_S = 12 * 3600
_PART = r"[aApP]\.?\s?[mM]\.?"
_DIGITAL = re.compile(
    rf"(?P<hour>\d{{1,2}})(?:[:：](?P<minute>\d\d)(?:[:：](?P<second>\d\d))?"
    rf"|[.h](?P<other>\d\d)(?=\s*{_PART}|$))?(?P<clock>\s*o'?\s?clock)?"
    rf"(?:\s*(?P<half>{_PART})|\s*(?:in the|at)?\s*(?P<word>noon|midnight|morning|afternoon"
    rf"|evening|night))?"
)
_CHINESE = re.compile(
    r"(?P<half>上午|下午|晚上|早上|中午|凌晨|清晨|傍晚|夜里)?\s*(?:(?P<short>差)(?P<early>\d{1,2}|一刻)分?)?"
    r"(?P<hour>\d{1,2})(?P<point>[点时:])(?:钟|整)?"
    r"(?:(?P<quarters>[1一3三])刻|(?P<middle>半)|(?P<minute>\d{1,2})分?)?"
)
_RELATIVE = re.compile(
    r"(?P<count>half|(?:a\s)?quarter|[a-z]+(?:[\s-][a-z]+)?|\d{1,2})(?:\sminutes?)?[\s-]"
    r"(?P<side>past|after|to|before|of|till)[\s-](?P<hour>noon|midnight|[a-z]+|\d{1,2})"
    r"(?:\so'?\s?clock)?(?P<rest>\s.+)?"
)
_SPOKEN = re.compile(
    r"(?P<hour>[a-z]+)(?:\so'?\s?clock|\s(?P<minute>(?:oh\s)?[a-z]+(?:[\s-][a-z]+)?)"
    r"(?=\s[ap]\.?m|\s(?:in|at)\s)|(?=\s[ap]\.?m|\sin\sthe\s|\sat\snight))(?P<rest>\s.+)?"
)
_HALVES = {
    "上午": "a", "早上": "a", "凌晨": "a", "清晨": "a", "下午": "p", "晚上": "p", "傍晚": "p",
    "夜里": "p", "中午": "p",
    "noon": "p", "midnight": "a", "morning": "a", "afternoon": "p", "evening": "p", "night": "p",
}  # fmt: skip
_ALONE = {"noon": "12:00 noon", "midday": "12:00 noon", "midnight": "12:00 midnight",
          "12 noon": "12:00 noon", "12 midnight": "12:00 midnight", "正午": "12:00 noon",
          "午夜": "12:00 midnight"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day."""

    seconds: int
    """Since midnight; since midnight or noon if the half of the day is not known."""
    known: Literal["half", "24", "words", ""]
    """How it is written: with am or pm, on a 24-hour clock, in words; empty for "3:30"."""
    is_full_hour: bool = False
    """Whether it is an hour without minutes, such as 5 o'clock."""


def same_time(given: str, expected: str) -> bool | None:
    """Compares two times of day; a missing "am" or "pm" is assumed to be that of the other.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether they are the same time; None if not both are times, or neither says so.
    """
    first, second = read_clock(given), read_clock(expected)
    for clock, other, text in ((first, second, expected), (second, first, given)):
        if clock and not other and clock.known == "words" and clock.is_full_hour:
            number = parse_number(text)  # 5 o'clock is 5
            return None if number is None else number.value * 3600 % NOON_S == clock.seconds
    if first is None or second is None or not (first.known or second.known):
        return None
    if "words" in (first.known, second.known) or {first.known, second.known} == {"half", ""}:
        return first.seconds % NOON_S == second.seconds % NOON_S
    return first.seconds == second.seconds


def read_clock(text: str) -> Clock | None:
    """Reads a time of day.

    Args:
        text: A text in canonical form.

    Returns:
        The time; None if the text is something else.
    """
    text = _ALONE.get(text.lower(), text)
    text = re.sub(r"^at\s|\s(?:exactly|sharp)$", "", text)
    if match := _DIGITAL.fullmatch(text):
        return _digital(match)
    if match := _CHINESE.fullmatch(text):
        return _chinese(match)
    plain = " ".join(text.lower().replace("-", " ").split())
    for pattern, read in ((_RELATIVE, _relative), (_SPOKEN, _spoken)):
        if match := pattern.fullmatch(plain):
            return read(match)
    return None


def _digital(match: re.Match[str]) -> Clock | None:
    minute = match["minute"] or match["other"]
    half = match["half"] or match["word"] or ""
    if not (minute or half or match["clock"]) or (
        match["other"] and not half and "h" not in match[0]
    ):
        return None
    hour, minutes, seconds = (int(one or 0) for one in (match["hour"], minute, match["second"]))
    if hour > 24 or minutes > 59 or seconds > 59:
        return None
    total = minutes * 60 + seconds
    if half:
        return _of_half(hour, total, half)
    is_whole_day = hour > 12 or match["hour"].startswith("0")
    known: Literal["24", "words", ""] = "24" if is_whole_day else "words" if match["clock"] else ""
    seconds = hour % (24 if known != "words" else 12) * 3600 + total
    return Clock(seconds, known, is_full_hour=not minute)


def _of_half(hour: int, seconds: int, half: str) -> Clock:
    letter = _HALVES.get(half.lower(), half[:1].lower())
    if hour <= 12:
        hour = hour % 12 + (12 if letter == "p" else 0)
    return Clock(hour % 24 * 3600 + seconds, "half")


def _chinese(match: re.Match[str]) -> Clock | None:
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if match["quarters"]:
        minute = 15 if match["quarters"] in "1一" else 45
    elif match["middle"]:
        minute = 30
    if hour > 24 or minute > 59 or (match["point"] == ":" and not match["half"]):
        return None
    early = 0 if not match["short"] else 15 if match["early"] == "一刻" else int(match["early"])
    seconds = (minute - early) * 60
    if match["half"]:
        found = _of_half(hour, 0, match["half"])
        return Clock((found.seconds + seconds) % (2 * NOON_S), "half")
    if hour > 12:
        return Clock(hour % 24 * 3600 + seconds, "24")
    return Clock((hour * 3600 + seconds) % NOON_S, "words", is_full_hour=seconds == 0)


def _relative(match: re.Match[str]) -> Clock | None:
    count = match["count"].removeprefix("a ")
    minutes = {"half": 30, "quarter": 15}.get(count) or _integer(count)
    is_named = match["hour"] in ("noon", "midnight")
    hour = 12 if is_named else _integer(match["hour"])
    if minutes is None or hour is None or not (0 < minutes < 60 and 0 < hour <= 12):
        return None
    sign = 1 if match["side"] in ("past", "after") else -1
    half = match["hour"] if is_named else (match["rest"] or "")
    return _in_words(hour, sign * minutes, half)


def _spoken(match: re.Match[str]) -> Clock | None:
    hour = _integer(match["hour"])
    minute = _integer((match["minute"] or "zero").removeprefix("oh "))
    if hour is None or minute is None or not (0 < hour <= 12 and 0 <= minute < 60):
        return None
    return _in_words(hour, minute, match["rest"] or "")


def _in_words(hour: int, minutes: int, rest: str) -> Clock | None:
    half = re.sub(r"^(?:in the|at)\s", "", rest.strip())
    if not half:
        return Clock((hour * 3600 + minutes * 60) % NOON_S, "words", is_full_hour=not minutes)
    if half not in _HALVES and not re.fullmatch(_PART, half):
        return None
    found = _of_half(hour, 0, half)
    return Clock((found.seconds + minutes * 60) % (2 * NOON_S), "half")


def _integer(text: str) -> int | None:
    number = parse_number(text)
    return int(number.value) if number is not None and number.value.denominator == 1 else None
