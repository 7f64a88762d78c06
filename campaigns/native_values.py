"""What compiled conditions (`campaigns.native_sql`) call: ClickHouse's arithmetic, texts and calendar in Python.

Decimals are whole numbers at a scale, dates are days, datetimes seconds, moments milliseconds since 1970 UTC. Each
raises `Unsure` where ClickHouse would raise, or where its answer is not imitated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from typing import Any, Final

from campaigns.event_properties import Unsure, number_text

_I64 = 2**63
_U64 = 2**64
_DAY = 86_400
# a Date ends in 2149, a DateTime in 2106: what lies outside is bent in ways that are not imitated
_LAST_DATE = 65_535
_LAST_SECOND = 2**32 - 1


def _fit(value: int) -> int:
    """A decimal of 18 digits; ClickHouse raises where the number behind it overflows."""
    if -_I64 <= value < _I64:
        return value
    raise Unsure


def _signed(value: int) -> int:
    return (value + _I64) % _U64 - _I64


def _real(value: int, unit: int) -> float:
    """A decimal as a float."""
    if -(2**53) < value < 2**53:
        return value / unit
    raise Unsure


def _ratio(one: float, other: float) -> float:
    try:
        return one / other
    except ZeroDivisionError:
        return math.nan if one == 0 or one != one else math.copysign(math.inf, one) * math.copysign(1, other)


def _quotient(one: int, other: int) -> int:
    """Of decimals: towards zero."""
    if other == 0:
        raise Unsure
    _fit(one)
    found = abs(one) // abs(other)
    return found if (one < 0) == (other < 0) else -found


def _remainder(one: int, other: int) -> int:
    """Of whole numbers: with the sign of the first."""
    if other == 0:
        raise Unsure
    found = abs(one) % abs(other)
    return -found if one < 0 else found


def _rounded(value: float, unit: int) -> float:
    if abs(value) < 2**40:
        return math.copysign(round(value * unit) / unit, value)
    raise Unsure


def _rounded_decimal(value: int, unit: int) -> int:
    half = (abs(value) + unit // 2) // unit * unit
    return -half if value < 0 else half


def _whole(value: float) -> int:
    if -(2.0**62) < value < 2.0**62:
        return int(value)
    raise Unsure


def _floored(value: float) -> float:
    if abs(value) < 2.0**52:
        return math.copysign(math.floor(value), value)
    raise Unsure


def _ceiled(value: float) -> float:
    if abs(value) < 2.0**52:
        return math.copysign(math.ceil(value), value)
    raise Unsure


def _sane(value: float) -> float:
    if value == value:
        return value
    raise Unsure


def _some(value: Any) -> Any:
    if value is not None:
        return value
    raise Unsure


def _no_minus_zero(value: float) -> float:
    if value != 0 or math.copysign(1, value) > 0:
        return value
    raise Unsure


def _decimal_text(value: int, scale: int) -> str:
    digits = str(abs(value)).rjust(scale + 1, "0")
    whole, part = (digits[:-scale], digits[-scale:].rstrip("0")) if scale else (digits, "")
    return ("-" if value < 0 else "") + whole + (f".{part}" if part else "")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else text.encode().lower().decode()


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else text.encode().upper().decode()


def _position(text: str, part: str) -> int:
    return text.find(part) + 1 if text.isascii() else text.encode().find(part.encode()) + 1


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    raise Unsure


def _moment(milliseconds: int) -> int:
    if 0 <= milliseconds <= _LAST_SECOND * 1000:
        return milliseconds
    raise Unsure


def _second(seconds: int) -> int:
    if 0 <= seconds <= _LAST_SECOND:
        return seconds
    raise Unsure


def _day(days: int) -> int:
    if 0 <= days <= _LAST_DATE:
        return days
    raise Unsure


@lru_cache(maxsize=10_000)
def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of the month."""
    if not 0 <= days <= _LAST_DATE:
        raise Unsure
    found = date.fromordinal(days + 719_163)
    return found.year, found.month, found.day


def _days(year: int, month: int, day: int) -> int:
    return date(year, month, day).toordinal() - 719_163


def _add_months(days: int, months: int) -> int:
    year, month, day = _civil(days)
    years, month = divmod(month - 1 + months, 12)
    year, month = year + years, month + 1
    if not 1970 <= year <= 2105:
        raise Unsure
    last = 31 if month == 12 else _days(year, month + 1, 1) - _days(year, month, 1)
    return _days(year, month, min(day, last))


def _add_months_to(moment: int, months: int, per_day: int) -> int:
    days, rest = divmod(moment, per_day)
    return _add_months(days, months) * per_day + rest


def _relative(days: int, unit: str) -> int:
    if unit == "week":
        return (_day(days) + 3) // 7
    year, month, _ = _civil(days)
    if unit == "year":
        return year
    return year * 4 + (month - 1) // 3 if unit == "quarter" else year * 12 + month


def _date_text(days: int) -> str:
    year, month, day = _civil(days)
    return f"{year:04d}-{month:02d}-{day:02d}"


def _second_text(seconds: int) -> str:
    clock = f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{_date_text(seconds // _DAY)} {clock}"


def _moment_text(milliseconds: int) -> str:
    return f"{_second_text(milliseconds // 1000)}.{milliseconds % 1000:03d}"


def like_function(pattern: str) -> Callable[[str], bool]:
    """A pattern of `like`: % for any characters, _ for one, a backslash before one that is meant."""
    pieces: list[list[str]] = [[]]
    plain = True
    index = 0
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "%":
            pieces.append([])
        elif character == "_":
            pieces[-1].append(".")
            plain = False
        else:
            if character == "\\":
                if index == len(pattern):
                    raise ValueError("a pattern that ends with a backslash")
                if pattern[index] in "%_\\":
                    character = pattern[index]
                    index += 1
            pieces[-1].append(re.escape(character))
    if plain and len(pieces) <= 3:
        texts = [re.sub(r"\\(.)", r"\1", "".join(piece), flags=re.DOTALL) for piece in pieces]
        if len(texts) == 1:
            return texts[0].__eq__
        if len(texts) == 2:
            start, end = texts
            return lambda text: (
                len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end)
            )
        if not texts[0] and not texts[2]:
            return lambda text: texts[1] in text
    first, *others = ("".join(piece) for piece in pieces)
    # the leftmost place of each piece is as good as any: nothing is tried twice
    body = first
    if others:
        body += "".join(f"(?>.*?{piece})" for piece in others[:-1] if piece)
        body += f".*{others[-1]}"
    search = re.compile(body, re.DOTALL).fullmatch
    return lambda text: search(text) is not None


_CHARACTER = r"[A-Za-z0-9 @_%/,:;=!\"'&~#<>-]|\\[.+*?^$()|\[\]/@-]|\\d|\."
_CLASS = r"\[\^?(?:[A-Za-z0-9_.@%+]|[a-z]-[a-z]|[A-Z]-[A-Z]|\d-\d)+\]"
_SAFE_PATTERN = re.compile(rf"\^?(?:(?:{_CHARACTER}|{_CLASS})[*+?]?)*\$?")


def simple_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a pattern is found, for one that RE2 and Python read alike.

    Python goes back where RE2 does not, so that texts are declined with which that might take long: with one repetition
    the time grows with the square of the length, with two with its cube.

    Raises:
        ValueError: the pattern is not of that kind.
    """
    if not _SAFE_PATTERN.fullmatch(pattern) or not pattern.isascii():
        raise ValueError("a pattern that is not simple")
    repetitions = len(re.findall(r"(?<!\\)[*+]", pattern))
    if repetitions > 2 or pattern.count("?") > 3:
        raise ValueError("a pattern of many repetitions")
    longest = (100_000, 1_000, 200)[repetitions]
    if pattern.endswith("$") and not pattern.endswith(r"\$"):
        pattern = pattern[:-1] + r"\Z"
    try:
        search = re.compile(pattern, re.DOTALL | re.ASCII).search
    except re.error:
        raise ValueError("no pattern") from None

    def is_found(text: str) -> bool:
        if len(text) > longest:
            raise Unsure
        return search(text) is not None

    return is_found


HELPERS: Final[dict[str, Any]] = {
    one.__name__: one
    for one in (
        _fit, _signed, _real, _ratio, _quotient, _remainder, _rounded, _rounded_decimal, _whole, _floored, _ceiled,
        _sane, _some, _no_minus_zero, _decimal_text, _bytes, _lower, _upper, _position, _ascii, _moment, _second, _day,
        _civil, _days, _add_months, _add_months_to, _relative, _date_text, _second_text, _moment_text, number_text,
    )
} | {"Unsure": Unsure}  # fmt: skip
"""By the names under which compiled conditions call them."""
