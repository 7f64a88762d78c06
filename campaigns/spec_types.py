"""Types of fields that several kinds of specs share: names, lines, addresses, time zones, shares."""

from __future__ import annotations

import re
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from warehouse.yaml_specs import nearest

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_ADDRESS = re.compile(r"[^\s@<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name; use small letters, digits and _, beginning with a letter")
    return value


def _one_line(value: str) -> str:
    # a line break in a header would let the rest of the value become headers of its own
    if not value:
        raise ValueError("is empty; write some text")
    if any(ord(character) < 32 or character in "\x7f\u0085\u2028\u2029" for character in value):
        raise ValueError("must be one line; write it without line breaks")
    return value


def _address(value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ValueError(f"{value!r} is no address; write it as name@example.com")
    return value


def _time_zone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError(
            f"is no time zone: {value!r}\n{nearest(value, sorted(available_timezones()), shown=3)}"
        )
    return value


Name = Annotated[str, AfterValidator(_name)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Line = Annotated[str, AfterValidator(_one_line)]
Address = Annotated[str, AfterValidator(_address)]


def parse_share(value: object) -> float:
    """Read a share such as `20%`, `0.5 %` or `0.2`.

    Raises:
        ValueError: it is none, or not from 0 to 100 %.
    """
    text = str(value).strip()
    number, percent = text.removesuffix("%").strip(), text.endswith("%")
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.\d+)?", number):
        raise ValueError(f"{value!r} is no share; write a percentage such as 20%")
    share = float(number) / (100 if percent else 1)
    if share > 1:
        raise ValueError(f"{value!r} is more than all; write a percentage such as 20%")
    return share


Share = Annotated[float, BeforeValidator(parse_share), PlainSerializer(float, return_type=float)]
"""A field type: `20%` in the file, 0.2 in code."""
