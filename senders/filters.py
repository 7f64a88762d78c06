"""Filters of merge tags: default, money, number, date, pluralize, plural.

In a template of a locale (`offer.de.mjml`) they write as is usual there (`senders.localisation`), else as in English.

A filter that is given a value which is empty for this contact fails, naming the tag, unless a default stands before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jinja2 import Undefined, UndefinedError, pass_context
from jinja2.runtime import Context

from senders.localisation import (
    LENGTHS,
    localised_date,
    localised_money,
    localised_number,
    plural_category,
)

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


def money(value: Any, currency: str = "GBP", digits: int | None = None, *, locale: str = "") -> str:
    """An amount with its currency: `{{ product.price | money('EUR') }}` gives €1,234.50, in German 1.234,50 €."""
    if locale:
        return localised_money(_decimal(value, "money"), currency.upper(), digits, locale)
    _require(value)
    # a filter sees the same few prices in many messages
    return _money(str(value), currency, digits)


@functools.lru_cache(maxsize=8192)
def _money(value: str, currency: str, digits: int | None) -> str:
    symbol, usual = _CURRENCIES.get(currency.upper(), (f"{currency.upper()}\u00a0", 2))
    whole, point, fraction = value.partition(".")
    if (
        point and len(fraction) == (usual if digits is None else digits)
        and value.isascii() and whole.isdigit() and fraction.isdigit()
    ):  # fmt: skip
        # nothing to round: a quarter of the cost
        return f"{symbol}{int(whole):,}.{fraction}"
    amount = _decimal(value, "money")
    text = _rounded(abs(amount), usual if digits is None else digits)
    return f"-{symbol}{text}" if amount < 0 and text.strip("0.,") else f"{symbol}{text}"


def number(value: Any, digits: int = 0, *, locale: str = "") -> str:
    """A number with thousands separated: 1,234, in German 1.234."""
    amount = _decimal(value, "number")
    if locale:
        return localised_number(amount, digits, locale)
    text = _rounded(abs(amount), digits)
    return f"-{text}" if amount < 0 and text.strip("0.,") else text


def format_date(value: Any, pattern: str = "", timezone: str = "", *, locale: str = "") -> str:
    """A day or an instant: `{{ contact.last_order_at | date('%-d %b') }}`; UTC unless a time zone is named.

    The pattern is strftime's, or one of short, medium, long and full. Left out, 27 June 2026, in other languages long.
    """
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
    if not pattern:
        pattern = "long" if locale else "%-d %B %Y"
    if locale or pattern in LENGTHS:
        return localised_date(value, pattern, locale)
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


def plural(count: Any, *, locale: str = "", **forms: str) -> str:
    """The form for a count: `{{ n | plural(one='товар', few='товара', many='товаров', other='товара') }}`.

    Categories are CLDR's for the template's language; `other` stands for all that are not named.
    """
    if "other" not in forms:
        raise FilterError("plural: needs other='...', the form for every other count")
    _require(count)
    number_of = len(count) if hasattr(count, "__len__") and not isinstance(count, str) else count
    category = plural_category(_decimal(number_of, "plural"), locale)
    return forms.get(category, forms["other"])


def _in_locale(function: Callable[..., str]) -> Callable[..., str]:
    """The filter as templates call it: in the locale of their file."""

    @pass_context
    @functools.wraps(function)
    def call(context: Context, value: Any, *arguments: Any, **named: Any) -> str:
        locale = context.parent.get("locale")
        if locale and "locale" not in named:
            named["locale"] = locale
        return function(value, *arguments, **named)

    return call


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


#: Those that write as is usual in a locale, without a context to take it from.
LOCALISED: dict[str, Callable[..., str]] = {
    "money": money,
    "number": number,
    "date": format_date,
    "plural": plural,
}
FILTERS: dict[str, Callable[..., Any]] = {
    "default": default, "d": default, "pluralize": pluralize,
    **{name: _in_locale(function) for name, function in LOCALISED.items()},
}  # fmt: skip
