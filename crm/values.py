"""Countries, languages and time zones as people write them: what can be used, and what says nothing."""

from __future__ import annotations

import re
from functools import cache
from zoneinfo import available_timezones

import polars as pl
from babel import Locale, UnknownLocaleError

_NOTHING = frozenset(
    {
        "-",
        "--",
        "?",
        "n/a",
        "na",
        "none",
        "null",
        "nil",
        "unknown",
        "unbekannt",
        "inconnu",
        "undefined",
        "nan",
    }
)
# codes in use that ISO 3166-1 does not have
_COUNTRY_SLIPS = {"UK": "GB", "EL": "GR"}
_NO_COUNTRIES = ("ZZ", "XA", "XB", "EU", "EZ", "UN", "QO")
_SPOKEN = (
    "ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko",
    "lt", "lv", "nb", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")


def country(text: str) -> str:
    """A country's name as given, or its code in capitals; empty if it says nothing that could be one."""
    if text.lower() in _NOTHING or any(letter.isdigit() for letter in text) or len(text) > 60:
        return ""
    if len(text) == 2 and text.isascii():
        code = _COUNTRY_SLIPS.get(text.upper(), text.upper())
        return code if code in _territories() else ""
    return text if len(text) > 2 else ""


def locale(text: str) -> str:
    """A locale such as `de` or `de-DE`, also from a language's name; empty if it is none."""
    named = _languages().get(text.casefold())
    if named:
        return named
    if not _LOCALE.fullmatch(text):
        return ""
    try:
        found = Locale.parse(text.replace("-", "_"))
    except (ValueError, UnknownLocaleError):
        return ""
    return "-".join(part for part in (found.language, found.script, found.territory) if part)


def timezone(text: str) -> str:
    """A time zone of the IANA database; empty if it is none."""
    return text if text in _zones() else _zones_by_small_letters().get(text.lower(), "")


CHECKS = {"country": country, "locale": locale, "timezone": timezone}
"""Fields whose values are looked at, and by what."""


def checked(field: str, values: pl.Series) -> pl.Series:
    """Values of a field as they can be used, null where they cannot; each distinct one is looked at once."""
    distinct = values.drop_nulls().unique()
    check = CHECKS[field]
    known = {value: check(value) or None for value in distinct.to_list()}
    return values.replace_strict(known, default=None, return_dtype=pl.String)


@cache
def _territories() -> frozenset[str]:
    codes = (str(code) for code in Locale("en").territories)
    return frozenset(
        code for code in codes if len(code) == 2 and code.isalpha() and code not in _NO_COUNTRIES
    )


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


@cache
def _zones_by_small_letters() -> dict[str, str]:
    return {zone.lower(): zone for zone in _zones()}


@cache
def _languages() -> dict[str, str]:
    names: dict[str, str] = {}
    for shown in ("en", "de", "fr", "es", "it"):
        languages = Locale(shown).languages
        names |= {str(languages[code]).casefold(): code for code in _SPOKEN if code in languages}
    for code in _SPOKEN:
        own = Locale(code).languages.get(code)
        if own:
            names[str(own).casefold()] = code
    return names
