"""Filters of merge tags: default, money, number, date, pluralize.

A filter that is given a value which is empty for this contact fails, naming the tag, unless a default stands before it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jinja2 import Undefined, UndefinedError

# symbol, digits after the point (ISO 4217)
_CURRENCIES = {
    "GBP": ("£", 2), "EUR": ("€", 2), "USD": ("$", 2), "JPY": ("¥", 0), "CHF": ("CHF\u00a0", 2),
    "CAD": ("CA$", 2), "AUD": ("A$", 2), "NZD": ("NZ$", 2), "SEK": ("SEK\u00a0", 2), "NOK": ("NOK\u00a0", 2),
    "DKK": ("DKK\u00a0", 2), "PLN": ("PLN\u00a0", 2), "KRW": ("₩", 0), "INR": ("₹", 2), "BRL": ("R$", 2),
}  # fmt: skip


class FilterError(ValueError):
    """A filter cannot work on its value; the message says which filter and what it got."""


def default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """The value, or the default where it is missing, NULL or an empty text (with `boolean` also where it is 0)."""
    if isinstance(value, Undefined) or value is None or value == "" or (boolean and not value):
        return default_value
    return value


def money(value: Any, currency: str = "GBP", digits: int | None = None) -> str:
    """An amount with its currency: `{{ product.price | money('EUR') }}` gives €1,234.50."""
    symbol, usual = _CURRENCIES.get(currency.upper(), (f"{currency.upper()}\u00a0", 2))
    amount = _decimal(value, "money")
    text = _rounded(abs(amount), usual if digits is None else digits)
    return f"-{symbol}{text}" if amount < 0 and text.strip("0.,") else f"{symbol}{text}"


def number(value: Any, digits: int = 0) -> str:
    """A number with thousands separated: 1,234."""
    amount = _decimal(value, "number")
    text = _rounded(abs(amount), digits)
    return f"-{text}" if amount < 0 and text.strip("0.,") else text


def format_date(value: Any, pattern: str = "%-d %B %Y", timezone: str = "") -> str:
    """A day or an instant: `{{ contact.last_order_at | date('%-d %b') }}`; UTC unless a time zone is named."""
    _require(value)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise FilterError(f"date: {value!r} is no date") from None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=UTC)
        try:
            value = value.astimezone(ZoneInfo(timezone) if timezone else UTC)
        except (ZoneInfoNotFoundError, ValueError):
            raise FilterError(f"date: {timezone!r} is no time zone") from None
    elif not isinstance(value, date):
        raise FilterError(f"date: {value!r} is no date")
    return value.strftime(pattern)


def pluralize(count: Any, singular: str = "", plural: str | None = None) -> str:
    """The ending for a count: `item{{ n | pluralize }}`, `box{{ n | pluralize('es') }}`, or both words.

    With two arguments the first is for one, the second for any other count; a list counts its items.
    """
    _require(count)
    is_one = (
        len(count)
        if hasattr(count, "__len__") and not isinstance(count, str)
        else _decimal(count, "pluralize")
    ) == 1
    if plural is None:
        singular, plural = "", singular or "s"
    return singular if is_one else plural


def _require(value: Any) -> None:
    if isinstance(value, Undefined):
        str(value)  # raises, naming the tag
        raise UndefinedError("a value is missing")


def _decimal(value: Any, name: str) -> Decimal:
    _require(value)
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise FilterError(f"{name}: {value!r} is no number") from None
    if not amount.is_finite():
        raise FilterError(f"{name}: {value!r} is no number")
    return amount


def _rounded(amount: Decimal, digits: int) -> str:
    # a price of 2.345 is 2.35 to people, not 2.34
    return f"{amount.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP):,f}"


FILTERS = {
    "default": default, "d": default, "money": money, "number": number, "date": format_date,
    "pluralize": pluralize,
}  # fmt: skip
