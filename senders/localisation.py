"""Languages: which file of a template somebody gets, and how dates, numbers and plurals read there.

A template `offer.mjml` may have `offer.de.mjml` and `offer.de_AT.mjml` beside it. Who has the locale de_AT gets the
last, who has de_CH the second, everybody else the first. Formats are CLDR's, through babel; a template without locale
keeps the English ones of `senders.filters`.
"""

from __future__ import annotations

import copy
import functools
import re
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from babel import Locale
    from babel.numbers import NumberPattern

_LOCALE = re.compile(r"([A-Za-z]{2,3})(?:[-_]([A-Za-z]{4}))?(?:[-_]([A-Za-z]{2}|[0-9]{3}))?")
_NAMES = {"%B": "MMMM", "%b": "MMM", "%A": "EEEE", "%a": "EEE"}
#: Lengths that a date may have beside patterns of strftime.
LENGTHS = ("short", "medium", "long", "full")


def normalised(locale: str) -> str:
    """A locale as `de_AT` or `zh_Hant_TW`; empty if this is none. Encodings (`de_DE.UTF-8`) are left out."""
    found = _LOCALE.fullmatch(locale.strip().partition(".")[0].partition("@")[0])
    if not found:
        return ""
    language, script, territory = found.groups()
    parts = [language.lower(), script.title() if script else "", territory.upper() if territory else ""]
    return "_".join(part for part in parts if part)


@functools.lru_cache(maxsize=1024)
def fallbacks(locale: str) -> tuple[str, ...]:
    """The locale, then what it is a kind of: `de_AT`, `de`. Empty for what is no locale."""
    parts = normalised(locale).split("_")
    return tuple("_".join(parts[:length]) for length in range(len(parts), 0, -1) if parts[0])


@functools.lru_cache(maxsize=256)
def known(locale: str) -> Locale | None:
    """What CLDR knows of a locale; None if it does not know it."""
    # babel takes a tenth of a second to import, and most templates have no locale
    from babel import Locale, UnknownLocaleError

    try:
        return Locale.parse(normalised(locale))
    except (UnknownLocaleError, ValueError, TypeError):
        return None


def locale_of(name: str) -> Locale:
    """A locale that has been checked when the template was loaded.

    Raises:
        ValueError: CLDR does not know it.
    """
    found = known(name)
    if found is None:
        raise ValueError(f"{name!r} is no locale")
    return found


@functools.lru_cache(maxsize=8192)
def localised_number(amount: Decimal, digits: int, locale: str) -> str:
    """A number with the locale's separators, rounded half up: 1.234,5."""
    pattern = _with_digits(locale_of(locale).decimal_formats[None], digits)
    return pattern.apply(_rounded(amount, digits), locale_of(locale))


@functools.lru_cache(maxsize=8192)
def localised_money(amount: Decimal, currency: str, digits: int | None, locale: str) -> str:
    """An amount with its currency where the locale puts it: 1.234,50 €."""
    from babel.numbers import get_currency_precision

    if digits is None:
        digits = get_currency_precision(currency)
    pattern = _with_digits(locale_of(locale).currency_formats["standard"], digits)
    return pattern.apply(
        _rounded(amount, digits), locale_of(locale), currency=currency, currency_digits=False
    )


def _with_digits(pattern: NumberPattern, digits: int) -> NumberPattern:
    changed = copy.copy(pattern)
    changed.frac_prec = (digits, digits)
    return changed


def localised_date(value: datetime | date, pattern: str, locale: str) -> str:
    """A day or instant by a length (`long`), or a pattern of strftime with the locale's names of months and days."""
    from babel.dates import format_date as babel_date

    chosen = locale_of(locale or "en_GB")
    if pattern in LENGTHS:
        return babel_date(value, pattern, locale=chosen)
    for directive, names in _NAMES.items():
        if directive in pattern and locale:
            # the name as it stands in a date: 27 июня, not июнь
            pattern = pattern.replace(directive, babel_date(value, names, locale=chosen).replace("%", "%%"))
    return value.strftime(pattern)


def plural_category(count: Decimal, locale: str) -> str:
    """CLDR's category of a count in a language: zero, one, two, few, many or other."""
    return locale_of(locale or "en").plural_form(count)


def _rounded(amount: Decimal, digits: int) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
