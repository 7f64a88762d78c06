"""Conditions judged in process say what ClickHouse says, or decline."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.evaluating import NATIVE, NotNative, Rows, column_type, compiled, judged
from campaigns.live import JUDGED_COLUMNS, UTC_MS
from campaigns.predicates import FUNCTIONS, EventCall, parse_predicate, property_sql
from warehouse.client import Warehouse
from warehouse.errors import WarehouseError

COUNTED = EventCall("event_count", "product.viewed", 3600)
LAST = EventCall("last_event_at", "order.placed", 30 * 86_400)
TYPES = {
    "tiny": "UInt8", "score": "Nullable(UInt8)", "orders_count": "UInt32", "huge": "UInt64", "items_count": "Int64",
    "days": "Nullable(Int32)", "small": "Int8", "middling": "Nullable(Int16)", "revenue": "Decimal(18, 2)", "rate": "Nullable(Decimal(18, 4))",
    "engagement": "Float64", "share": "Nullable(Float64)", "is_deleted": "Bool", "has_bought": "Nullable(Bool)", "email": "String",
    "country": "Nullable(String)", "band": "LowCardinality(String)", "created_at": "DateTime64(3, 'UTC')",
    "last_order_at": "Nullable(DateTime64(3, 'UTC'))", "born": "Nullable(Date)", "segments": "Array(String)",
    COUNTED.column: "UInt64", LAST.column: "Nullable(DateTime64(3, 'UTC'))",
}  # fmt: skip
READABLE = {name: kind for name, kind in TYPES.items() if "|" not in name}
WORDS = ["", "a", "A", "engaged", "Éire", "K", "ß", "İ", "  x ", "a%b", "a_b", "a\\b", "a'b", "a\nb", "50", "-7", "1.50",
         "2024-02-29", "ann@example.com", "日本", "aaa", "\x7f", "\u2028", "true", "null", "0", "nan"]  # fmt: skip
JSON_VALUES: list[Any] = [
    0, 1, 2, -1, 50, 255, 256, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 0.1, 0.5, 1.0, -0.0, 2.675, 1e-7, 1e15, 1e16, 1e21, 1.5e300,
    12345678.9, True, False, None, *WORDS, "1e3", "0.1", "19.99", "-0.5", "00012", "123456789.123456", " 50", "+5", ".5", "5.", "abc",
    "inf", "2024-01-01", "2024-01-01T10:00:00Z", "2024-01-01T10:00:00.5+02:00", "2024-01-01 10:00:00.1239", "2024-02-30",
    "2024-01-01T10:00:00", "1969-12-31T10:00:00Z", "2024-01-01T10:60:00Z", [], [1, 2.5], ["a", "b"], ["a", 1, None, True, 1.5, {"x": 1}, [1]],
    [None], ["50", "x"], {}, {"a": 1}, [{"sku": "ü/\u2028\"\\", "price": 12.0, "n": [1e21, 1e-7]}],
]  # fmt: skip
ODD_DOCUMENTS = ['{"a":1,"a":2}', "", "[1]", '{"a":1', ' {"a" : 1e3} ', '{"a":NaN}', '{"a":1e400}', '{"a":"\\ud800"}',
                 '{"a":18446744073709551616}', '{"a":-0}', '{"b":{"c":1,"c":2},"a":5}', '{"a":"\\u00e9\\/"}', '{"a":0.10}']  # fmt: skip
NOW = datetime(2024, 6, 30, 23, 59, 59, 999000, tzinfo=UTC)


def rows_of(seed: int, count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with all that is odd, as the two frames that `Live` has: the event's columns, the state's."""
    rng = random.Random(seed)

    def pick(*values: Any) -> Any:
        return rng.choice(values)

    def moment() -> datetime:
        return pick(NOW, NOW - timedelta(days=rng.randrange(4000), milliseconds=rng.randrange(10**9)), datetime(1970, 1, 1, tzinfo=UTC),
                    datetime(2024, 2, 29, 12, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, tzinfo=UTC),
                    datetime(2150, 1, 1, tzinfo=UTC), datetime(2106, 2, 7, 7, tzinfo=UTC))  # fmt: skip

    def whole(bits: int, signed: bool) -> int:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return pick(rng.randint(0, 5), rng.randint(0, 5), low, high, rng.randint(low, high), max(low, -1))

    def real() -> float:
        return pick(0.0, -0.0, 1.0, 2.5, -2.5, 0.1, 20.0, 1e300, -1e18, 2**53 + 2.0, float("nan"), float("inf"), round(rng.uniform(-100, 100), 2), rng.uniform(-9, 9))  # fmt: skip

    def decimal(places: int) -> Decimal:
        return Decimal(
            pick(0, 1, -1, 7250, 255, -255, 10**15, 10**18 - 1, -(10**18) + 1, rng.randint(-99999, 99999))
        ).scaleb(-places)

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
            "tiny": whole(8, False), "score": or_null(whole(8, False)), "orders_count": whole(32, False), "huge": whole(64, False),
            "items_count": whole(64, True), "days": or_null(whole(32, True)), "small": whole(8, True), "middling": or_null(whole(16, True)),
            "revenue": decimal(2), "rate": or_null(decimal(4)), "engagement": real(), "share": or_null(real()),
            "is_deleted": pick(True, False), "has_bought": or_null(pick(True, False)), "email": word(), "country": or_null(word()),
            "band": word(), "created_at": moment(), "last_order_at": or_null(moment()),
            "born": or_null(pick(date(1970, 1, 1), date(2024, 2, 29), date(2149, 6, 6), date(2000, 12, 31))),
            "segments": [word() for _ in range(rng.randrange(4))], COUNTED.column: rng.randint(0, 5), LAST.column: or_null(moment()),
        }
        for _ in range(count)
    ]  # fmt: skip
    dtypes = {
        **{name: pl.Int64 for name in ("tiny", "score", "orders_count", "items_count", "days", "small", "middling")},
        "huge": pl.UInt64, "revenue": pl.Decimal(18, 2), "rate": pl.Decimal(18, 4), "engagement": pl.Float64, "share": pl.Float64,
        "is_deleted": pl.Boolean, "has_bought": pl.Boolean, "email": pl.String, "country": pl.String, "band": pl.String,
        "created_at": UTC_MS, "last_order_at": UTC_MS, "born": pl.Date, "segments": pl.List(pl.String), COUNTED.column: pl.UInt64,
        LAST.column: UTC_MS,
    }  # fmt: skip
    event = [
        {
            "row": place, "contact_id": 1, "email": "", "as_of": NOW, "event_id": str(place), "event_type": pick("cart.updated", "clicked"),
            "event_source": word(), "event_occurred_at": moment(), "event_properties": document(), "message_kind": word(),
            "message_name": word(), "message_template": "", "message_occurrence": "",
        }
        for place in range(count)
    ]  # fmt: skip
    frame = pl.DataFrame(event, schema=dict(JUDGED_COLUMNS))
    return frame.drop("email", "contact_id", "event_id"), pl.DataFrame(state, schema=dtypes)


# what marketers write, of all forms, nested

NUMBER_COLUMNS = [
    "tiny",
    "score",
    "orders_count",
    "huge",
    "items_count",
    "days",
    "small",
    "middling",
    "revenue",
    "rate",
    "engagement",
    "share",
]
LITERALS = ["0", "1", "2", "3", "5", "50", "255", "256", "65536", "2.5", "0.1", "72.50", "1e3", "-1", "-128", "-129", "4294967296",
            "9223372036854775807", "100", "7", "-2.5"]  # fmt: skip
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


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


quoted_words = st.sampled_from([quoted(word) for word in WORDS])


class Grammar:
    """Draws a condition; `depth` bounds it."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def one(self, *options: Any) -> Any:
        option = self.draw(st.sampled_from(options))
        return option() if callable(option) else option

    def number(self, depth: int) -> str:
        leaf = [lambda: self.one(*NUMBER_COLUMNS), lambda: self.one(*LITERALS), lambda: self.one(*PROPERTIES)]
        if depth <= 0:
            return self.one(*leaf)
        inner = lambda: self.number(depth - 1)  # noqa: E731
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
            lambda: f"length({self.one(lambda: self.text(depth - 1), lambda: self.listed())})",
            lambda: f"position({self.text(depth - 1)}, {self.text(0)})",
            lambda: (
                f"{self.one('toYear', 'toMonth', 'toDayOfMonth', 'toDayOfWeek', 'toHour')}({self.time(depth - 1)})"
            ),
            lambda: f"dateDiff('{self.one(*UNITS)}', {self.time(depth - 1)}, {self.time(depth - 1)})",
            lambda: f"({self.time(depth - 1)} - {self.time(depth - 1)})",
            "event_count('product.viewed', '1h')",
            lambda: self.either(inner, depth),
        )

    def text(self, depth: int) -> str:
        leaf = [lambda: self.one(*TEXT_COLUMNS), lambda: self.draw(quoted_words)]
        if depth <= 0:
            return self.one(*leaf)
        inner = lambda: self.text(depth - 1)  # noqa: E731
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
        inner = lambda: self.time(depth - 1)  # noqa: E731
        return self.one(
            *leaf,
            lambda: (
                f"({inner()} {self.one('-', '+')} interval {self.one('0', '1', '7', '30', '90', '13', '400')} {self.one(*UNITS)})"
            ),
            lambda: (
                f"{self.one('toDate', 'toDateTime', 'toStartOfDay', 'toStartOfMonth', 'toStartOfYear', 'toMonday')}({inner()})"
            ),
            lambda: f"{self.one('least', 'greatest')}({inner()}, {inner()})",
            lambda: self.either(inner, depth),
        )

    def listed(self) -> str:
        return self.one(
            "segments",
            "segments",
            lambda: self.one(*PROPERTIES),
            "['a', 'engaged']",
            "['50', '1']",
            "[1, 2.5]",
            "[1, 50, -1]",
            "['Éire']",
        )

    def either(self, inner: Any, depth: int) -> str:
        return self.one(
            lambda: f"if({self.condition(depth - 1)}, {inner()}, {inner()})",
            lambda: f"ifNull({inner()}, {inner()})",
            lambda: f"nullIf({inner()}, {inner()})",
            lambda: f"coalesce({inner()}, {inner()}, {inner()})",
            lambda: (
                f"case when {self.condition(depth - 1)} then {inner()} when {self.condition(0)} then {inner()} else {inner()} end"
            ),
            lambda: f"case when {self.condition(depth - 1)} then {inner()} end",
            lambda: f"if({self.condition(depth - 1)}, {inner()}, null)",
        )

    def comparison(self, depth: int) -> str:
        operator = self.one("=", "!=", "<", "<=", ">", ">=")
        word = self.one("", "not ")
        texts = lambda: self.text(depth)  # noqa: E731
        return self.one(
            lambda: f"{self.number(depth)} {operator} {self.number(depth)}",
            lambda: f"{self.number(depth)} {operator} {self.one(*LITERALS)}",
            lambda: f"{texts()} {operator} {texts()}",
            lambda: f"{self.time(depth)} {operator} {self.time(depth)}",
            lambda: f"{self.time(depth)} {operator} {self.one(quoted('2024-01-01'), quoted('2024-02-29 12:00:00'))}",
            lambda: f"{self.number(depth)} {word}between {self.number(0)} and {self.number(0)}",
            lambda: f"{self.time(depth)} {word}between {self.time(0)} and {self.time(0)}",
            lambda: f"{self.number(depth)} {word}in ({self.one(*LITERALS)}, {self.one(*LITERALS)})",
            lambda: f"{texts()} {word}in ({self.draw(quoted_words)}, {self.draw(quoted_words)})",
            lambda: f"{texts()} {word}{self.one('like', 'ilike')} {self.pattern()}",
            lambda: f"match({texts()}, {self.one(*map(quoted, REGEXES))})",
            lambda: f"{self.one(lambda: self.number(depth), texts, lambda: self.time(depth))} is {word}null",
            lambda: f"{self.one('isNull', 'isNotNull')}({self.one(lambda: self.number(depth), texts)})",
            lambda: f"has({self.listed()}, {self.one(texts, lambda: self.number(0), lambda: self.draw(quoted_words))})",
            lambda: f"{self.one('hasAny', 'hasAll')}({self.listed()}, {self.listed()})",
            lambda: f"{self.one('empty', 'notEmpty')}({self.one(texts, self.listed)})",
            lambda: f"{self.one('startsWith', 'endsWith')}({texts()}, {texts()})",
            "is_deleted", "has_bought", lambda: self.one(*PROPERTIES), "is_deleted = true", "has_bought != false", "true", "null", "score", "tiny",
            lambda: f"{self.one('is_deleted', 'has_bought', 'event.a')} {operator} {self.one('true', 'false', '1', 'tiny')}",
            lambda: f"{self.number(0)} {operator} null",
        )  # fmt: skip

    def pattern(self) -> str:
        return self.one(
            *map(
                quoted,
                [
                    "%",
                    "a%",
                    "%a",
                    "%a%",
                    "a_b",
                    "a\\%b",
                    "a\\_b",
                    "%a%b%",
                    "_",
                    "",
                    "É%",
                    "%\\",
                    "a\\\\b",
                    "A%",
                    "%@example.com",
                    "__",
                    "%a%_%",
                ],
            )
        )

    def condition(self, depth: int) -> str:
        if depth <= 0:
            return self.comparison(0)
        inner = lambda: self.condition(depth - 1)  # noqa: E731
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


REGEXES = [
    "^a",
    "a$",
    "a.b",
    "[a-z]+",
    r"\d+",
    "^.$",
    "a*b",
    r"\.com$",
    "[^a]",
    "x|y",
    "(a)",
    "é",
    "",
    "^a?b+",
    r"@example\.com",
]


@st.composite
def cases(draw: Any) -> list[str]:
    grammar = Grammar(draw)
    made: list[str] = []
    for _ in range(12):
        depth = draw(st.integers(0, 2))
        kind = draw(st.sampled_from(["condition", "condition", "number", "text", "time"]))
        made.append(
            grammar.condition(depth + 1)
            if kind == "condition"
            else f"toString({getattr(grammar, kind)(depth)})"
        )
    return made


@pytest.fixture(scope="module")
def engine(warehouse_server: Any):
    with Warehouse.connect(warehouse_server) as connection:
        yield connection


def asked(
    engine: Warehouse,
    frame: pl.DataFrame,
    state: pl.DataFrame,
    wanted: dict[str, tuple[str, list[int]]],
    zone: str = "UTC",
) -> pl.DataFrame:
    """What ClickHouse says of expressions, each over rows of its own: `name`, `row`, `value` as text."""
    parts = [
        f"select '{name}' as name, row, ({sql.replace(chr(123) + 'now:DateTime64(3, ' + chr(39) + 'UTC' + chr(39) + ')' + chr(125), '`as_of`')})::Nullable(String) as value"
        f" from judged_events where row in ({', '.join(map(str, places))})"
        for name, (sql, places) in wanted.items()
    ]  # fmt: skip
    return engine.frame(
        " union all ".join(parts),
        external={"judged_events": pl.concat([frame, state], how="horizontal")},
        external_types={"judged_events": TYPES},
        settings={"session_timezone": zone},
    )


def shown(value: Any) -> str | None:
    return None if value is None else str(int(value)) if isinstance(value, bool) else str(value)


COUNTS = {"native": 0, "declined": 0, "judged": 0, "unsure": 0}


def check_parity(engine: Warehouse, texts: list[str], seed: int, count: int = 12, zone: str = "UTC") -> None:
    frame, state = rows_of(seed, count)
    rows = Rows([state, frame], TYPES)
    types = tuple(TYPES.items())
    wanted: dict[str, tuple[str, list[int]]] = {}
    ours: dict[str, tuple[str, list[Any]]] = {}
    for place, text in enumerate(texts):
        predicate = parse_predicate(text, columns=READABLE, qualifiers=("event", "message"))
        function = compiled(predicate.sql, types, is_condition=False)
        verdict = compiled(predicate.sql, types)
        if function is None or (verdict is None and not text.startswith("toString")):
            # an if() of texts, say: no condition
            COUNTS["declined"] += 1
            continue
        COUNTS["native"] += 1
        columns, missing = (
            zip(*(rows.column(key) for key in function.keys), strict=True) if function.keys else ((), ())
        )
        values, declined = function.judge(count, *columns)
        unsure = set(declined).union(*missing)
        COUNTS["judged"] += count
        COUNTS["unsure"] += len(unsure)
        sure = [row for row in range(count) if row not in unsure]
        if verdict is not None and not text.startswith("toString"):
            verdict_columns = [rows.column(key)[0] for key in verdict.keys]
            verdicts, hesitant = verdict.judge(count, *verdict_columns)
            assert all(bool(verdicts[row]) == bool(values[row]) for row in sure if row not in hesitant), text
        if sure:
            sql = predicate.sql if text.startswith("toString") else f"toInt64({predicate.sql})"
            wanted[f"c{place}"] = (sql, sure)
            ours[f"c{place}"] = (text, values)
    if not wanted:
        return
    try:
        found = asked(engine, frame, state, wanted, zone)
    except WarehouseError:
        for name, one in wanted.items():
            try:
                asked(engine, frame, state, {name: one}, zone)
            except WarehouseError as error:
                raise AssertionError(f"{ours[name][0]}: {error.message}") from None
        raise
    assert found.height == sum(len(places) for _, places in wanted.values())
    for name, row, value in found.iter_rows():
        text, values = ours[name]
        if shown(values[row]) != value:
            reads = {**state.row(row, named=True), **frame.row(row, named=True)}
            read = {
                key: one
                for key, one in reads.items()
                if key in text or (key == "event_properties" and "event." in text)
            }
            raise AssertionError(f"{text}\nours {shown(values[row])!r}, ClickHouse {value!r}, of {read}")


@settings(max_examples=12)
@given(texts=cases(), seed=st.integers(0, 2**32), zone=st.sampled_from(["UTC", "America/New_York"]))
def test_any_condition_means_what_clickhouse_means(engine, texts, seed, zone):
    check_parity(engine, texts, seed, zone=zone)
