"""Properties of events, read in process as ClickHouse's `JSONExtract` reads them.

A property has the type that it is compared with, and ClickHouse has rules for that: `"50"` reads as the number 50,
`true` as 1, a list as its text. Here are those of the rules that are plain; in rows where others would decide (`"1e3"`
as a number, a number beyond 64 bits, a key written twice) the reading is declined, and ClickHouse is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson


class Unsure(Exception):  # noqa: N818  (no error: ClickHouse is asked)
    """A row that is not judged here."""


_MISSING: Final = object()
_UNREAD: Final = object()
_I64 = 2**63
_U64 = 2**64


def number_text(value: float) -> str:
    """A float as ClickHouse writes it: the shortest digits that mean it, without an exponent from 1e-6 to 1e21."""
    text = repr(value)
    if "e" not in text:
        return text.removesuffix(".0")
    if "n" in text:
        raise Unsure
    mantissa, _, power = text.partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, part = mantissa.lstrip("-").partition(".")
    part = "" if part == "0" else part
    exponent = int(power)
    if 0 <= exponent < 21:
        digits = whole + part
        return sign + digits.ljust(exponent + 1, "0")
    if -7 < exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{whole}{part}"
    return f"{sign}{whole}{'.' if part else ''}{part}e{exponent}"


class Documents:
    """The properties of a batch of events.

    Args:
        texts: an object in JSON for each event.
    """

    def __init__(self, texts: Sequence[str | None]) -> None:
        self._roots = [_document(text) for text in texts]
        self._unread = frozenset(place for place, root in enumerate(self._roots) if root is _UNREAD)

    def read(self, path: str, reader: str) -> tuple[list[Any], Collection[int]]:
        """A property of each event, as `text`, `number`, `bool`, `time`, `texts`, `numbers` or `length`.

        Returns:
            the values, None where there is none, and the places where it is not known here what ClickHouse would read.
        """
        read = _READERS[reader]
        missing = read(_MISSING)
        first, *rest = path.split(".")
        values: list[Any] = []
        declined: set[int] | frozenset[int] = self._unread
        for place, root in enumerate(self._roots):
            if root is _UNREAD:
                values.append(missing)
                continue
            value = root.get(first, _MISSING)
            for part in rest:
                value = value.get(part, _MISSING) if type(value) is dict else _MISSING
            if value is _MISSING:
                values.append(missing)
                continue
            try:
                values.append(read(value))
            except Unsure:
                values.append(missing)
                declined = {*declined, place}
        return values, declined


def _document(text: str | None) -> Any:
    if text is None:
        return _UNREAD
    try:
        root = orjson.loads(text)
        if type(root) is not dict:
            return _UNREAD
        # what orjson would have written holds no key twice, and no number that it has not understood as it stands
        if orjson.dumps(root).decode() != text:
            root = json.loads(
                text,
                object_pairs_hook=_object,
                parse_int=_whole,
                parse_float=_float,
                parse_constant=_constant,
            )
    except (ValueError, TypeError, RecursionError, Unsure):
        return _UNREAD
    return root


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Unsure
    return made


def _whole(text: str) -> int:
    number = int(text)
    if not -_I64 <= number < _U64 or text == "-0":
        raise Unsure
    return number


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Unsure
    return number


def _constant(text: str) -> Any:
    raise Unsure(text)


def _text(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return value
    if value is _MISSING or value is None:
        return None
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    return _written(value)


def _written(value: Any) -> str:
    """JSON as ClickHouse writes it."""
    kind = type(value)
    if kind is dict:
        return "{" + ",".join(f"{_quoted(key)}:{_written(one)}" for key, one in value.items()) + "}"
    if kind is list:
        return "[" + ",".join(map(_written, value)) + "]"
    if kind is str:
        return _quoted(value)
    if kind is float:
        return number_text(value)
    return "null" if value is None else "true" if value is True else "false" if value is False else str(value)


def _quoted(text: str) -> str:
    written = orjson.dumps(text).decode()
    if "\u2028" in written or "\u2029" in written:
        written = written.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return written


_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})", re.ASCII)
_NO_NUMBER = re.compile(r"[A-HJ-MO-Za-hj-mo-z]", re.ASCII)


def _number(value: Any) -> float | None:
    kind = type(value)
    if kind is float:
        return value
    if kind is int:
        return float(value)
    if kind is str:
        if _NUMBER.fullmatch(value):
            return float(value)
        whole, dot, part = value.partition(".")
        if dot and len(value) <= 16 and _NUMBER.fullmatch(whole) and part.isascii() and part.isdigit():
            return float(value)
        if not value or _NO_NUMBER.match(value):
            return None
        raise Unsure
    if kind is bool:
        return 1.0 if value else 0.0
    return None


def _bool(value: Any) -> bool | None:
    kind = type(value)
    if kind is bool:
        return value
    if value is _MISSING or value is None or kind is dict or kind is list:
        return None
    if kind is str and (not value or _NO_NUMBER.match(value)):
        return None
    if kind is int and value in (0, 1):
        return value == 1
    raise Unsure


def _texts(value: Any) -> list[str | None]:
    return [_text(one) for one in value] if type(value) is list else []


def _numbers(value: Any) -> list[float | None]:
    if type(value) is not list:
        return []
    numbers = [_number(one) for one in value]
    # a list without a number is none
    if any(number is not None or one is None for number, one in zip(numbers, value, strict=True)):
        return numbers
    return []


def _length(value: Any) -> int | None:
    if type(value) is list:
        return len(value)
    text = _text(value)
    return None if text is None else len(text)


_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:(Z)|([+-])(\d\d):(\d\d))?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _time(value: Any) -> int | None:
    """Milliseconds since 1970; a time without a zone is UTC."""
    text = _text(value)
    if not text:
        return None
    found = _TIME.fullmatch(text)
    if found is None:
        raise Unsure
    year, month, day, hour, minute, second = (int(one or 0) for one in found.groups()[:6])
    if not 1970 <= year < 2100:
        raise Unsure
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise Unsure from None
    milliseconds = int((moment - _EPOCH) / timedelta(seconds=1)) * 1000
    if found[7]:
        milliseconds += int(found[7][:3].ljust(3, "0"))
    if found[9]:
        offset = int(found[10]) * 60 + int(found[11])
        if offset > 14 * 60 or int(found[11]) > 59:
            raise Unsure
        milliseconds -= offset * 60_000 * (1 if found[9] == "+" else -1)
    if milliseconds < 0:
        raise Unsure
    return milliseconds


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "text": _text,
    "number": _number,
    "bool": _bool,
    "time": _time,
    "texts": _texts,
    "numbers": _numbers,
    "length": _length,
}
