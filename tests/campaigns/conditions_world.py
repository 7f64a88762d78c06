"""Conditions of all forms that marketers may write, and rows with all that is odd."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
from hypothesis import strategies as st

from campaigns.live import JUDGED_COLUMNS, UTC_MS
from campaigns.predicates import EventCall

COUNTED = EventCall("event_count", "product.viewed", 3600)
LAST = EventCall("last_event_at", "order.placed", 30 * 86_400)
PROFILE = {
    "tiny": "UInt8", "score": "Nullable(UInt8)", "orders_count": "UInt32", "huge": "UInt64", "items_count": "Int64",
    "days": "Nullable(Int32)", "small": "Int8", "middling": "Nullable(Int16)", "revenue": "Decimal(18, 2)",
    "rate": "Nullable(Decimal(18, 4))", "engagement": "Float64", "share": "Nullable(Float64)", "is_deleted": "Bool",
    "has_bought": "Nullable(Bool)", "email": "String", "country": "Nullable(String)", "band": "LowCardinality(String)",
    "created_at": "DateTime64(3, 'UTC')", "last_order_at": "Nullable(DateTime64(3, 'UTC'))", "born": "Nullable(Date)",
    "segments": "Array(String)",
}  # fmt: skip
TYPES = {**PROFILE, COUNTED.column: "UInt64", LAST.column: "Nullable(DateTime64(3, 'UTC'))"}
DTYPES: dict[str, Any] = {
    **dict.fromkeys(("tiny", "score", "orders_count", "items_count", "days", "small", "middling"), pl.Int64),
    "huge": pl.UInt64, "revenue": pl.Decimal(18, 2), "rate": pl.Decimal(18, 4), "engagement": pl.Float64,
    "share": pl.Float64, "is_deleted": pl.Boolean, "has_bought": pl.Boolean, "email": pl.String, "country": pl.String,
    "band": pl.String, "created_at": UTC_MS, "last_order_at": UTC_MS, "born": pl.Date, "segments": pl.List(pl.String),
    COUNTED.column: pl.UInt64, LAST.column: UTC_MS, "row": pl.Int64,
}  # fmt: skip
WORDS = [
    "", "a", "A", "engaged", "Éire", "K", "ß", "İ", "  x ", "a%b", "a_b", "a\\b", "a'b", "a\nb", "50", "-7", "1.50",
    "2024-02-29", "ann@example.com", "日本", "aaa", "\x7f", "\u2028", "true", "null", "0", "nan",
]  # fmt: skip
JSON_VALUES: list[Any] = [
    *WORDS, 0, 1, 2, -1, 50, 255, 256, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 0.1, 0.5, 1.0, -0.0, 2.675, 1e-7, 1e15,
    1e16, 1e21, 1.5e300, 12345678.9, True, False, None, "1e3", "0.1", "19.99", "-0.5", "00012", "123456789.123456",
    " 50", "+5", ".5", "5.", "abc", "inf", "2024-01-01", "2024-01-01T10:00:00Z", "2024-01-01T10:00:00.5+02:00",
    "2024-01-01 10:00:00.1239", "2024-02-30", "2024-01-01T10:00:00", "1969-12-31T10:00:00Z", "2024-01-01T10:60:00Z",
    [], [1, 2.5], ["a", "b"], ["a", 1, None, True, 1.5, {"x": 1}, [1]], [None], ["50", "x"], {}, {"a": 1},
    [{"sku": "ü/\u2028\"\\", "price": 12.0, "n": [1e21, 1e-7]}],
]  # fmt: skip
ODD_DOCUMENTS = [
    '{"a":1,"a":2}', "", "[1]", '{"a":1', ' {"a" : 1e3} ', '{"a":NaN}', '{"a":1e400}', '{"a":"\\ud800"}',
    '{"a":18446744073709551616}', '{"a":-0}', '{"b":{"c":1,"c":2},"a":5}', '{"a":"\\u00e9\\/"}', '{"a":0.10}',
]  # fmt: skip
NOW = datetime(2024, 6, 30, 23, 59, 59, 999000, tzinfo=UTC)


def rows_of(seed: int, count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows as the two frames that `Live` has: the event's columns, the state's."""
    rng = random.Random(seed)

    def pick(*values: Any) -> Any:
        return rng.choice(values)

    def moment() -> datetime:
        ago = timedelta(days=rng.randrange(4000), milliseconds=rng.randrange(10**9))
        year, month, day = pick(
            (1970, 1, 1), (2024, 2, 29), (2024, 1, 1), (1969, 12, 31), (2150, 1, 1), (2106, 2, 7)
        )
        return pick(NOW, NOW - ago, datetime(year, month, day, pick(0, 12), tzinfo=UTC))

    def whole(bits: int, signed: bool) -> int:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return pick(rng.randint(0, 5), rng.randint(0, 5), low, high, rng.randint(low, high), max(low, -1))

    def real() -> float:
        odd = pick(-0.0, 1e300, -1e18, 2**53 + 2.0, float("nan"), float("inf"))
        return pick(0.0, 1.0, 2.5, -2.5, 0.1, 20.0, odd, round(rng.uniform(-100, 100), 2), rng.uniform(-9, 9))

    def decimal(places: int) -> Decimal:
        digits = pick(
            0, 1, -1, 7250, 255, -255, 10**15, 10**18 - 1, -(10**18) + 1, rng.randint(-99999, 99999)
        )
        return Decimal(digits).scaleb(-places)

    def word() -> str:
        return pick(*WORDS)

    def document() -> str:
        if rng.random() < 0.1:
            return pick(*ODD_DOCUMENTS)
        made: dict[str, Any] = {
            name: pick(*JSON_VALUES) for name in ("a", "d", "items") if rng.random() < 0.8
        }
        if rng.random() < 0.8:
            made["b"] = pick({"c": pick(*JSON_VALUES)}, {"c": pick(*JSON_VALUES)}, pick(*JSON_VALUES))
        return json.dumps(made, ensure_ascii=pick(True, False), separators=pick((",", ":"), (", ", ": ")))

    def or_null(value: Any) -> Any:
        return None if rng.random() < 0.25 else value

    state = [
        {
            "tiny": whole(8, False), "score": or_null(whole(8, False)), "orders_count": whole(32, False),
            "huge": whole(64, False), "items_count": whole(64, True), "days": or_null(whole(32, True)),
            "small": whole(8, True), "middling": or_null(whole(16, True)), "revenue": decimal(2),
            "rate": or_null(decimal(4)), "engagement": real(), "share": or_null(real()),
            "is_deleted": pick(True, False), "has_bought": or_null(pick(True, False)), "email": word(),
            "country": or_null(word()), "band": word(), "created_at": moment(), "last_order_at": or_null(moment()),
            "born": or_null(pick(date(1970, 1, 1), date(2024, 2, 29), date(2149, 6, 6), date(2000, 12, 31))),
            "segments": [word() for _ in range(rng.randrange(4))], COUNTED.column: rng.randint(0, 5),
            LAST.column: or_null(moment()), "row": place,
        }
        for place in range(count)
    ]  # fmt: skip
    event = [
        {
            "row": place, "contact_id": 1, "email": "", "as_of": NOW, "event_id": str(place),
            "event_type": pick("cart.updated", "clicked"), "event_source": word(), "event_occurred_at": moment(),
            "event_properties": document(), "message_kind": word(), "message_name": word(), "message_template": "",
            "message_occurrence": "",
        }
        for place in range(count)
    ]  # fmt: skip
    return pl.DataFrame(event, schema=dict(JUDGED_COLUMNS)), pl.DataFrame(state, schema=DTYPES)


NUMBER_COLUMNS = [
    "tiny", "score", "orders_count", "huge", "items_count", "days", "small", "middling", "revenue", "rate",
    "engagement", "share",
]  # fmt: skip
LITERALS = [
    "0", "1", "2", "3", "5", "50", "255", "256", "65536", "2.5", "0.1", "72.50", "1e3", "-1", "-128", "-129",
    "4294967296", "9223372036854775807", "100", "7", "-2.5",
]  # fmt: skip
PATTERNS = [
    "%", "a%", "%a", "%a%", "a_b", "a\\%b", "a\\_b", "%a%b%", "_", "", "É%", "%\\", "a\\\\b", "A%", "%@example.com",
    "__", "%a%_%",
]  # fmt: skip
REGEXES = [
    "^a", "a$", "a.b", "[a-z]+", r"\d+", "^.$", "a*b", r"\.com$", "[^a]", "x|y", "(a)", "é", "", "^a?b+",
    r"@example\.com",
]  # fmt: skip
PROPERTIES = ["event.a", "event.b.c", "event.d", "event.items", "event.b"]
TEXT_COLUMNS = ["email", "country", "band", "event.type", "event.source", "message.name", *PROPERTIES]
TIME_COLUMNS = [
    "created_at",
    "last_order_at",
    "event.occurred_at",
    "now()",
    "last_event_at('order.placed', '30d')",
]
UNITS = ["second", "minute", "hour", "day", "week", "month", "quarter", "year"]
LISTS = [
    "segments",
    "segments",
    *PROPERTIES,
    "['a', 'engaged']",
    "['50', '1']",
    "[1, 2.5]",
    "[1, 50, -1]",
    "['Éire']",
]


def quoted(text: str) -> str:
    """A text as a condition writes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


class Grammar:
    """Draws conditions and values; `depth` bounds how they nest."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def one(self, *options: Any) -> Any:
        option = self.draw(st.sampled_from(options))
        return option() if callable(option) else option

    def word(self) -> str:
        return quoted(self.one(*WORDS))

    def number(self, depth: int) -> str:
        leaf = [lambda: self.one(*NUMBER_COLUMNS), lambda: self.one(*LITERALS), lambda: self.one(*PROPERTIES)]
        if depth <= 0:
            return self.one(*leaf)

        def inner() -> str:
            return self.number(depth - 1)

        def time() -> str:
            return self.time(depth - 1)

        parts = ("toYear", "toMonth", "toDayOfMonth", "toDayOfWeek", "toHour")
        return self.one(
            *leaf,
            lambda: f"({inner()} {self.one('+', '-', '*', '/', '%')} {inner()})",
            lambda: f"(-{self.one(*NUMBER_COLUMNS)})",
            lambda: f"abs({inner()})",
            lambda: f"{self.one('round', 'floor', 'ceil')}({inner()})",
            lambda: f"round({inner()}, {self.one('0', '1', '2', '3', '-1')})",
            lambda: f"{self.one('least', 'greatest')}({inner()}, {inner()})",
            lambda: f"least({inner()}, {inner()}, {inner()})",
            lambda: f"{self.one('toInt64', 'toFloat64')}({inner()})",
            lambda: f"length({self.one(lambda: self.text(depth - 1), lambda: self.one(*LISTS))})",
            lambda: f"position({self.text(depth - 1)}, {self.text(0)})",
            lambda: f"{self.one(*parts)}({time()})",
            lambda: f"dateDiff('{self.one(*UNITS)}', {time()}, {time()})",
            lambda: f"({time()} - {time()})",
            "event_count('product.viewed', '1h')",
            lambda: self.either(inner, depth),
        )

    def text(self, depth: int) -> str:
        leaf = [lambda: self.one(*TEXT_COLUMNS), self.word]
        if depth <= 0:
            return self.one(*leaf)

        def inner() -> str:
            return self.text(depth - 1)

        return self.one(
            *leaf,
            lambda: f"{self.one('lower', 'upper', 'trim')}({inner()})",
            lambda: (
                f"toString({self.one(lambda: self.number(depth - 1), lambda: self.time(depth - 1), inner)})"
            ),
            lambda: self.either(inner, depth),
        )

    def time(self, depth: int) -> str:
        leaf = [lambda: self.one(*TIME_COLUMNS), "born", "today()", lambda: self.one(*PROPERTIES)]
        if depth <= 0:
            return self.one(*leaf)

        def inner() -> str:
            return self.time(depth - 1)

        counts = ("0", "1", "7", "30", "90", "13", "400")
        starts = ("toDate", "toDateTime", "toStartOfDay", "toStartOfMonth", "toStartOfYear", "toMonday")
        return self.one(
            *leaf,
            lambda: f"({inner()} {self.one('-', '+')} interval {self.one(*counts)} {self.one(*UNITS)})",
            lambda: f"{self.one(*starts)}({inner()})",
            lambda: f"{self.one('least', 'greatest')}({inner()}, {inner()})",
            lambda: self.either(inner, depth),
        )

    def either(self, inner: Any, depth: int) -> str:
        def condition() -> str:
            return self.condition(depth - 1)

        return self.one(
            lambda: f"if({condition()}, {inner()}, {inner()})",
            lambda: f"ifNull({inner()}, {inner()})",
            lambda: f"nullIf({inner()}, {inner()})",
            lambda: f"coalesce({inner()}, {inner()}, {inner()})",
            lambda: (
                f"case when {condition()} then {inner()} when {condition()} then {inner()} else {inner()} end"
            ),
            lambda: f"case when {condition()} then {inner()} end",
            lambda: f"if({condition()}, {inner()}, null)",
        )

    def comparison(self, depth: int) -> str:
        operator = self.one("=", "!=", "<", "<=", ">", ">=")
        word = self.one("", "not ")

        def number() -> str:
            return self.number(depth)

        def text() -> str:
            return self.text(depth)

        def time() -> str:
            return self.time(depth)

        def listed() -> str:
            return self.one(*LISTS)

        flags = ("is_deleted", "has_bought", "event.a")
        return self.one(
            lambda: f"{number()} {operator} {number()}",
            lambda: f"{number()} {operator} {self.one(*LITERALS)}",
            lambda: f"{text()} {operator} {text()}",
            lambda: f"{time()} {operator} {time()}",
            lambda: f"{time()} {operator} {self.one(quoted('2024-01-01'), quoted('2024-02-29 12:00:00'))}",
            lambda: f"{number()} {word}between {self.number(0)} and {self.number(0)}",
            lambda: f"{time()} {word}between {self.time(0)} and {self.time(0)}",
            lambda: f"{number()} {word}in ({self.one(*LITERALS)}, {self.one(*LITERALS)})",
            lambda: f"{text()} {word}in ({self.word()}, {self.word()})",
            lambda: f"{text()} {word}{self.one('like', 'ilike')} {quoted(self.one(*PATTERNS))}",
            lambda: f"match({text()}, {quoted(self.one(*REGEXES))})",
            lambda: f"{self.one(number, text, time)} is {word}null",
            lambda: f"{self.one('isNull', 'isNotNull')}({self.one(number, text)})",
            lambda: f"has({listed()}, {self.one(text, number, self.word)})",
            lambda: f"{self.one('hasAny', 'hasAll')}({listed()}, {listed()})",
            lambda: f"{self.one('empty', 'notEmpty')}({self.one(text, listed)})",
            lambda: f"{self.one('startsWith', 'endsWith')}({text()}, {text()})",
            *("true", "null", "score", "tiny", "is_deleted", "has_bought", "event.a", "event.b.c"),
            lambda: f"{self.one(*flags)} {operator} {self.one('true', 'false', '1', 'tiny')}",
            lambda: f"{self.number(0)} {operator} null",
        )

    def condition(self, depth: int) -> str:
        if depth <= 0:
            return self.comparison(0)

        def inner() -> str:
            return self.condition(depth - 1)

        return self.one(
            lambda: self.comparison(depth),
            lambda: self.comparison(depth - 1),
            lambda: f"({inner()} and {inner()})",
            lambda: f"({inner()} or {inner()} or {inner()})",
            lambda: f"not {inner()}",
            lambda: f"({inner()} or not ({inner()} and {inner()}))",
            lambda: self.either(inner, depth),
            lambda: f"({inner()}) = ({inner()})",
        )

    def expression(self, depth: int) -> str:
        """A condition, or a value as a text, which shows its type too."""
        kind = self.one("condition", "condition", "number", "text", "time")
        if kind == "condition":
            return self.condition(depth + 1)
        return f"toString({getattr(self, kind)(depth)})"


@st.composite
def expressions(draw: Any, count: int = 12, deepest: int = 2) -> list[str]:
    """Expressions as marketers may write them."""
    grammar = Grammar(draw)
    return [grammar.expression(draw(st.integers(0, deepest))) for _ in range(count)]
