"""Columns of files as typed values: a value, or null and the reason why there is none.

Every function works on whole columns and works its answer out once, however often it is used. `Parsed.reason`
is null where all is well; an empty cell is well, too: what must not be empty is the caller's to say (`needed`).
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from crm.specs import Moment, Value
from warehouse.errors import InputError
from warehouse.loads import UTC_MS

# the addr-spec of RFC 5322 without quoted local parts and comments, hosts with a dot: what providers accept
EMAIL = (
    r"^[^\s@\"(),:;<>\[\]\\.\x00-\x1f]+(\.[^\s@\"(),:;<>\[\]\\.\x00-\x1f]+)*"
    r"@([\p{L}\p{N}]([\p{L}\p{N}-]{0,61}[\p{L}\p{N}])?\.)+(\p{L}{2,63}|xn--[A-Za-z0-9-]{2,59})$"
)
_ISO = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r"\s*(?:(Z|z)|(?:([+-])(\d{2}):?(\d{2})?))?$"
)
_NUMBER = r"^[+-]?(\d{1,30}(\.\d*)?|\.\d+)$"
# beyond these a mart's Decimal(18,2) sum of quantity times price would overflow and stop every model after it
_LARGEST_PRICE = 10**9
_LARGEST_QUANTITY = 10**6
_TRUE = ("true", "t", "yes", "y", "1", "on", "ja", "j", "oui", "si", "sí", "sì", "sim", "tak")
_FALSE = ("false", "f", "no", "n", "0", "off", "nein", "non", "nee", "nej", "não", "nao", "nie")
# country codes that ITU has assigned, with the rest of a number; the macro `calling_codes` of dbt_project says the same
_CALLING_CODES = (
    r"1[2-9][0-9]{2}[2-9][0-9]{6}|7[0-9]{10}"
    r"|(?:2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58])[0-9]{5,13}"
    + "".join(
        f"|{codes}[0-9]{{4,12}}"
        for codes in (
            "21[1-368]", "22[0-9]", "23[0-9]", "24[0-9]", "25[0-8]", "26[0-9]", "29[0179]", "35[0-9]", "37[0-8]",
            "38[0-35-79]", "42[013]", "50[0-9]", "59[0-9]", "67[02-9]", "68[0-35-9]", "69[0-2]", "80[08]", "85[02356]",
            "87[08]", "88[01368]", "96[0-8]", "97[0-79]", "99[2-68]",
        )
    )
)  # fmt: skip


@dataclass(frozen=True)
class Parsed:
    """A value, null where there is none, and why there is none, null where all is well."""

    value: pl.Expr
    reason: pl.Expr


def text(value: Value, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """The value as text without surrounding spaces, null if empty. Whole numbers have no decimal point."""
    if value.column is not None:
        return _column_text(value.column, schema)
    if value.template is not None:
        parts: list[pl.Expr] = []
        for literal, name, _, _ in string.Formatter().parse(value.template):
            if literal:
                parts.append(pl.lit(literal))
            if name:
                parts.append(_column_text(name, schema))
        return pl.concat_str(parts)
    constant = value.value
    return pl.lit(str(constant).lower() if isinstance(constant, bool) else str(constant))


def _column_text(name: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    dtype = schema.get(name)
    column = pl.col(name)
    if dtype is None:  # an optional column that the file does not have
        return pl.lit(None, pl.String)
    if dtype.is_float():
        whole = column.is_finite() & (column == column.round(0)) & (column.abs() < 2**53)
        return (
            pl.when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(column.cast(pl.String))
        )
    if dtype == pl.Boolean:
        return pl.when(column).then(pl.lit("true")).when(~column).then(pl.lit("false"))
    if isinstance(dtype, pl.Datetime):
        return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.3f" + ("%z" if dtype.time_zone else ""))
    if dtype == pl.Date:
        return column.dt.strftime("%Y-%m-%d")
    if dtype.is_nested():
        return _nested(column, dtype)
    if dtype == pl.Binary:
        column = column.cast(pl.String, strict=False)
    trimmed = column.cast(pl.String).str.strip_chars()
    return pl.when(trimmed != "").then(trimmed)


def _nested(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Struct):
        return pl.when(column.is_not_null()).then(column.struct.json_encode())
    inner = pl.struct(column.alias("v")).struct.json_encode()
    return pl.when(column.is_not_null()).then(inner.str.slice(5).str.head(-1))


def moment(name: str, value: Moment, frame: pl.DataFrame, *, shown: str) -> Parsed:
    """The value as a time in UTC, to the millisecond (later digits are cut off).

    Without a format it must be ISO 8601. What has no zone is read in `value.timezone`: of a time that the
    clock shows twice the first; a time that it skips is none.

    Raises:
        InputError: a column of times has no zone and the mapping names none.
    """
    dtype = frame.schema.get(value.column) if value.column is not None else None
    zone = value.timezone
    if isinstance(dtype, pl.Datetime) and value.column is not None:
        column = pl.col(value.column)
        if dtype.time_zone is None:
            if zone is None:
                raise InputError(
                    f"{shown}: times in column {value.column!r} have no time zone.",
                    fix=f"Write {name}: {{column: {value.column}, timezone: UTC}} with the zone they are in.",
                )
            column = _localised(column, zone)
        return _checked(
            frame,
            name,
            text(value, frame.schema),
            column.dt.convert_time_zone("UTC"),
            pl.lit(f"is a time that clocks skip in {zone}"),
        )
    raw = text(value, frame.schema)
    if value.format is not None:
        read = raw.str.to_datetime(value.format, strict=False, time_unit="us")
        if "%z" in value.format:
            parsed = read.dt.convert_time_zone("UTC")
        else:
            parsed = _localised(read, zone or "UTC").dt.convert_time_zone("UTC")
        return _checked(frame, name, raw, parsed, pl.lit(f"is no time like {value.format}"))
    # one set of groups for all kinds of ISO 8601; a part that is missing is null
    frame = frame.select(raw.alias("raw")).with_columns(
        pl.col("raw").str.extract_groups(_ISO).alias("groups")
    )
    frame = frame.unnest("groups")
    raw = pl.col("raw")
    day, clock, seconds, fraction, zulu, sign, hours, minutes = (pl.col(str(index)) for index in range(1, 9))
    local = pl.concat_str(
        day,
        pl.lit("T"),
        clock.fill_null("00:00"),
        pl.lit(":"),
        seconds.fill_null("00"),
        pl.lit("."),
        fraction.fill_null("0").str.pad_end(9, "0"),
    ).str.to_datetime("%Y-%m-%dT%H:%M:%S%.9f", strict=False, time_unit="us")
    offset = (hours.cast(pl.Int64) * 60 + minutes.fill_null("00").cast(pl.Int64)) * pl.when(sign == "-").then(
        -1
    ).otherwise(1)
    shifted = (
        local - pl.duration(minutes=pl.when(zulu.is_not_null()).then(0).otherwise(offset))
    ).dt.replace_time_zone("UTC")
    has_zone = zulu.is_not_null() | (sign.is_not_null() & (hours.cast(pl.Int64) <= 15))
    if zone is None:
        parsed = pl.when(has_zone).then(shifted)
        said = (
            pl.when(day.is_not_null() & zulu.is_null() & sign.is_null())
            .then(pl.lit("has no time zone"))
            .otherwise(pl.lit("is no ISO 8601 time"))
        )
    else:
        naive = _localised(local, zone).dt.convert_time_zone("UTC")
        parsed = pl.when(has_zone).then(shifted).when(sign.is_null()).then(naive)
        said = pl.lit(f"is no ISO 8601 time, or one that clocks skip in {zone}")
    return _checked(frame, name, raw, parsed, said)


def _checked(frame: pl.DataFrame, name: str, raw: pl.Expr, parsed: pl.Expr, said: pl.Expr) -> Parsed:
    """Times that ClickHouse can hold, in milliseconds; `said` where there is none."""
    year = parsed.dt.year()
    held = pl.when(year.is_between(1901, 2298)).then(parsed.cast(UTC_MS))
    said = pl.when(parsed.is_not_null()).then(pl.lit("lies outside 1901 to 2298")).otherwise(said)
    reason = pl.when(raw.is_not_null() & held.is_null()).then(
        pl.concat_str(pl.lit(f"{name} "), _quoted(raw), pl.lit(" "), said)
    )
    return _settled(frame, held, reason)


def _settled(frame: pl.DataFrame, value: pl.Expr, reason: pl.Expr) -> Parsed:
    # with_columns rather than select: constants fill the frame's height, too
    worked_out = frame.with_columns(value.alias("value"), reason.alias("reason"))
    return Parsed(pl.lit(worked_out["value"]), pl.lit(worked_out["reason"]))


def _localised(column: pl.Expr, zone: str) -> pl.Expr:
    return column.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")


def decimal(name: str, value: Value, frame: pl.DataFrame) -> Parsed:
    """The value as the text of a decimal number: `2.55`, never an exponent."""
    raw = text(value, frame.schema)
    number = pl.when(raw.str.contains(_NUMBER)).then(raw.str.strip_prefix("+"))
    # floats of Parquet and JSON may come as 1e-07; up to nine decimals are money enough
    spread = raw.str.contains(r"^[+-]?\d+(\.\d+)?[eE][+-]?\d+$")
    written = (
        raw.cast(pl.Float64, strict=False)
        .cast(pl.Decimal(38, 9), strict=False)
        .cast(pl.String)
        .str.strip_chars_end("0")
        .str.strip_suffix(".")
    )
    number = pl.when(spread).then(written).otherwise(number)
    number = number.str.strip_suffix(".").str.replace(r"^(-?)\.", "${1}0.")
    number = pl.when(number.cast(pl.Float64, strict=False).abs() < _LARGEST_PRICE).then(number)
    return _settled(frame, number, _unparsed(name, raw, number, f"no number below {_LARGEST_PRICE:,}"))


def whole(name: str, value: Value, frame: pl.DataFrame) -> Parsed:
    """The value as a whole number, `6` or `6.0`."""
    raw = text(value, frame.schema)
    number = raw.str.replace(r"\.0*$", "").str.strip_prefix("+").cast(pl.Int64, strict=False)
    number = pl.when(number.abs() < _LARGEST_QUANTITY).then(number)
    return _settled(
        frame, number, _unparsed(name, raw, number, f"no whole number below {_LARGEST_QUANTITY:,}")
    )


def boolean(name: str, value: Value, frame: pl.DataFrame) -> Parsed:
    """The value as true (true, t, yes, y, 1, on, and yes in other languages) or false."""
    raw = text(value, frame.schema)
    low = raw.str.to_lowercase()
    answer = pl.when(low.is_in(_TRUE)).then(pl.lit(True)).when(low.is_in(_FALSE)).then(pl.lit(False))
    return _settled(frame, answer, _unparsed(name, raw, answer, "neither true nor false"))


def email(name: str, value: Value, frame: pl.DataFrame) -> Parsed:
    """The value as an e-mail address, as written but for surrounding spaces."""
    raw = text(value, frame.schema)
    good = (
        raw.str.contains(EMAIL)
        & (raw.str.len_bytes() <= 254)
        & (raw.str.extract(r"^([^@]*)@", 1).str.len_bytes() <= 64)
    )
    address = pl.when(good).then(raw)
    return _settled(frame, address, _unparsed(name, raw, address, "no e-mail address"))


def e164(raw: pl.Expr) -> pl.Expr:
    """Telephone numbers as E.164 writes them, null where that would be a guess: the macro `e164` of dbt_project."""
    plain = raw.str.replace_all(r"[ \t\n\r\f\x{00a0}\x{2010}-\x{2015}./-]+", "").str.replace(r"^(\+|00)", "+")
    number = plain.str.replace(r"^(\+(?:[124-9][0-9]{0,2}|3[0-8][0-9]?))\(0\)", "${1}").str.replace_all(
        r"[()]", ""
    )
    good = number.str.contains(rf"^\+(?:{_CALLING_CODES})$") & number.str.len_bytes().is_between(8, 16)
    return pl.when(good).then(number)


def word(name: str, value: Value, frame: pl.DataFrame, pattern: str, wanted: str) -> Parsed:
    """The value as text that matches a pattern."""
    raw = text(value, frame.schema)
    good = pl.when(raw.str.contains(pattern)).then(raw)
    return _settled(frame, good, _unparsed(name, raw, good, wanted))


def digest(name: str, value: Value, frame: pl.DataFrame) -> Parsed:
    """The value as a SHA-256 in 64 small hexadecimal digits."""
    raw = text(value, frame.schema)
    low = raw.str.to_lowercase()
    good = pl.when(low.str.contains(r"^[0-9a-f]{64}$")).then(low)
    return _settled(frame, good, _unparsed(name, raw, good, "no SHA-256: 64 hexadecimal digits"))


def digests(texts: pl.Series) -> pl.Series:
    """SHA-256 of each text, in hexadecimal; null where there is none. Each text is worked on once."""
    words = texts.drop_nulls().unique()
    table = pl.DataFrame(
        {
            "words": words,
            "digest": [hashlib.sha256(one.encode("utf-8", "replace")).hexdigest() for one in words],
        },
        schema={"words": pl.String(), "digest": pl.String()},
    )
    return pl.DataFrame({"words": texts}, schema={"words": pl.String()}).join(
        table, on="words", how="left", maintain_order="left"
    )["digest"]


def proof_key(names: Sequence[str]) -> pl.Expr:
    """What of a proof goes into the id of a consent: what is there, so that ids of rows without stay what they were."""
    parts = []
    for name in names:
        column = pl.col(name).dt.epoch("ms") if name.endswith("_at") else pl.col(name)
        written = pl.concat_str(pl.lit(f"\x1f{name}="), column.cast(pl.String))
        parts.append(pl.when(column.cast(pl.String).fill_null("") != "").then(written).otherwise(pl.lit("")))
    return pl.concat_str(parts)


def needed(name: str, value: pl.Expr) -> pl.Expr:
    """The reason where a value is empty that must not be."""
    return pl.when(value.is_null()).then(pl.lit(f"{name} is missing"))


def allowed_type(type_: pl.Expr, mail_types: tuple[str, ...]) -> pl.Expr:
    """The reason where an event's type is neither of mail nor `noun.verb`."""
    good = type_.is_in(mail_types) | type_.str.contains(r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$")
    return pl.when(type_.is_not_null() & ~good).then(
        pl.concat_str(pl.lit("type "), _quoted(type_), pl.lit(" is neither a mail event nor noun.verb"))
    )


def properties(
    fields: Mapping[str, pl.Expr], rest: Mapping[str, pl.DataType], extras: pl.Expr | None
) -> pl.Expr:
    """A JSON object a row: the fields, the other columns under their own names, then what JSON Lines add.

    Numbers and booleans of Parquet and JSON stay what they are; cells of CSV are text; what is empty is left
    out.
    """
    columns = [value.alias(name) for name, value in fields.items()]
    columns += [_jsonable(name, dtype).alias(name) for name, dtype in rest.items()]
    if not columns:
        return extras if extras is not None else pl.lit("{}")
    # polars writes what is empty as null, and ClickHouse stores a null as nothing
    encoded = pl.struct(columns).struct.json_encode()
    if extras is None:
        return encoded
    joined = pl.concat_str(encoded.str.head(-1), pl.lit(","), extras.str.slice(1))
    return pl.when(extras == "{}").then(encoded).otherwise(joined)


def _jsonable(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if dtype.is_integer() or dtype == pl.Boolean or isinstance(dtype, (pl.Struct, pl.List, pl.Array)):
        return column
    if dtype.is_float():
        return pl.when(column.is_finite()).then(column)
    if dtype.is_decimal():
        return column.cast(pl.Float64)
    return _column_text(name, {name: dtype})


def _quoted(raw: pl.Expr) -> pl.Expr:
    short = pl.when(raw.str.len_chars() > 60).then(raw.str.head(57) + pl.lit("...")).otherwise(raw)
    return pl.concat_str(pl.lit('"'), short, pl.lit('"'))


def _unparsed(name: str, raw: pl.Expr, parsed: pl.Expr, wanted: str) -> pl.Expr:
    return pl.when(raw.is_not_null() & parsed.is_null()).then(
        pl.concat_str(pl.lit(f"{name} "), _quoted(raw), pl.lit(f" is {wanted}"))
    )
