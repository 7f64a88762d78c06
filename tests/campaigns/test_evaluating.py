"""Conditions judged in process say what ClickHouse says, or decline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from conditions_world import COUNTED, LAST, PROFILE, TYPES, expressions, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.evaluating import NATIVE, Rows, compiled, judged
from campaigns.live import Live, Needs
from campaigns.predicates import FUNCTIONS, MISFITS, Predicate, parse_predicate
from warehouse.client import Warehouse
from warehouse.errors import WarehouseError

NOW = "{now:DateTime64(3, 'UTC')}"


@pytest.fixture(scope="module")
def engine(warehouse_server: Any) -> Iterator[Warehouse]:
    with Warehouse.connect(warehouse_server) as connection:
        yield connection


def parsed(text: str) -> Predicate:
    return parse_predicate(text, columns=PROFILE, qualifiers=("event", "message"))


def asked(
    engine: Warehouse, table: pl.DataFrame, wanted: dict[str, tuple[str, list[int]]], zone: str
) -> pl.DataFrame:
    """What ClickHouse says of expressions, each over rows of its own: `name`, `row`, `value` as text."""
    parts = [
        f"select '{name}' as name, row, ({sql.replace(NOW, '`as_of`')})::Nullable(String) as value"
        f" from judged_events where row in ({', '.join(map(str, places))})"
        for name, (sql, places) in wanted.items()
    ]
    return engine.frame(
        " union all ".join(parts),
        external={"judged_events": table},
        external_types={"judged_events": TYPES},
        settings={"session_timezone": zone},
    )


def shown(value: Any) -> str | None:
    return None if value is None else str(int(value)) if isinstance(value, bool) else str(value)


def check_parity(
    engine: Warehouse, texts: list[str], seed: int, *, count: int = 12, zone: str = "UTC"
) -> int:
    """Compare all that is judged in process; the number of verdicts that were."""
    frame, state = rows_of(seed, count)
    rows = Rows([state, frame], TYPES)
    types = tuple(TYPES.items())
    wanted: dict[str, tuple[str, list[int]]] = {}
    ours: dict[str, tuple[str, list[Any]]] = {}
    for place, text in enumerate(texts):
        predicate = parsed(text)
        is_value = text.startswith("toString(")
        # with all three truth values, and as a condition that is met or not
        value = compiled(predicate.sql, types, is_condition=False)
        verdict = None if is_value else compiled(predicate.sql, types)
        if value is None or (verdict is None and not is_value):
            continue
        columns = [rows.column(key) for key in value.keys]
        values, declined = value.judge(count, *(column for column, _ in columns))
        unsure = set(declined).union(*(missing for _, missing in columns))
        sure = [row for row in range(count) if row not in unsure]
        if verdict is not None:
            verdicts, hesitant = verdict.judge(count, *(rows.column(key)[0] for key in verdict.keys))
            assert all(bool(verdicts[row]) == bool(values[row]) for row in sure if row not in hesitant), text
        if sure:
            wanted[f"c{place}"] = (predicate.sql if is_value else f"toInt64({predicate.sql})", sure)
            ours[f"c{place}"] = (text, values)
    if not wanted:
        return 0
    table = frame.drop("email", "contact_id", "event_id").join(state, on="row")
    try:
        found = asked(engine, table, wanted, zone)
    except WarehouseError:
        for name, one in wanted.items():
            try:
                asked(engine, table, {name: one}, zone)
            except WarehouseError as error:
                raise AssertionError(f"{ours[name][0]}: {error.message}") from None
        raise
    assert found.height == sum(len(places) for _, places in wanted.values())
    for name, row, value in found.iter_rows():
        text, values = ours[name]
        if shown(values[row]) != value:
            reads = table.row(row, named=True)
            read = {key: reads[key] for key in reads if key in text or key == "event_properties"}
            raise AssertionError(f"{text}\nours {shown(values[row])!r}, ClickHouse {value!r}, of {read}")
    return found.height


@settings(max_examples=8)
@given(texts=expressions(), seed=st.integers(0, 2**32), zone=st.sampled_from(["UTC", "America/New_York"]))
def test_any_condition_means_what_clickhouse_means(engine, texts, seed, zone):
    check_parity(engine, texts, seed, zone=zone)


EXAMPLES = {
    "has": [
        "has(segments, 'engaged')",
        "has(event.items, 'a')",
        "has(event.items, 2.5)",
        "has([1, 2], tiny)",
    ],
    "hasAny": ["hasAny(segments, ['a', 'engaged'])", "hasAny(event.items, [1, 2.5])"],
    "hasAll": ["hasAll(segments, ['a'])", "hasAll(event.items, ['a', 'b'])"],
    "startsWith": ["startsWith(country, 'É')", "startsWith(email, event.a)"],
    "endsWith": ["endsWith(email, '@example.com')"],
    "ifNull": ["ifNull(country, band) = 'a'", "ifNull(days, tiny) > 1", "ifNull(rate, 1) < revenue"],
    "nullIf": ["nullIf(country, 'a') is null", "nullIf(revenue, 0) > 1"],
    "match": [r"match(email, '^[a-z]+@example\.com$')", "match(event.a, 'a.b')"],
    "length": ["length(email) > 2", "length(segments) = 2", "length(event.items) >= 2"],
    "empty": ["empty(segments)", "empty(country)"],
    "notEmpty": ["notEmpty(segments)", "notEmpty(event.a)"],
    "lower": ["lower(email) = 'a'", "toString(lower(event.a))"],
    "upper": ["upper(country) = 'A'", "toString(upper(country))"],
    "trim": ["trim(email) = 'x'"],
    "isNull": ["isNull(days)", "isNull(event.b.c)", "isNull(tiny)"],
    "isNotNull": ["isNotNull(days)"],
    "abs": ["toString(abs(days))", "toString(abs(small))", "toString(abs(revenue))", "toString(abs(share))"],
    "floor": ["toString(floor(rate))", "toString(floor(share))", "toString(floor(days))"],
    "ceil": ["toString(ceil(rate))", "toString(ceil(share))"],
    "round": ["toString(round(rate, 2))", "toString(round(engagement, 2))", "toString(round(share))"],
    "toDate": [
        "toString(toDate(last_order_at))",
        "toDate(created_at) = today()",
        "toDate(event.a) < today()",
    ],
    "toDateTime": ["toString(toDateTime(last_order_at))", "toDateTime(event.a) > created_at"],
    "toString": [
        "toString(rate)",
        "toString(share)",
        "toString(has_bought)",
        "toString(born)",
        "toString(days)",
    ],
    "toFloat64": ["toString(toFloat64(rate))", "toFloat64(event.a) > 1"],
    "toInt64": ["toString(toInt64(rate))", "toString(toInt64(share))", "toString(toInt64(huge))"],
    "toYear": ["toYear(last_order_at) = 2024", "toYear(born) > 1999"],
    "toMonth": ["toMonth(created_at) in (1, 2)"],
    "toDayOfMonth": ["toDayOfMonth(born) = 29"],
    "toDayOfWeek": ["toString(toDayOfWeek(created_at))", "toDayOfWeek(now()) = 7"],
    "toHour": ["toHour(event.occurred_at) between 8 and 20"],
    "toStartOfDay": ["toString(toStartOfDay(last_order_at))"],
    "toStartOfMonth": ["toString(toStartOfMonth(last_order_at))"],
    "toStartOfYear": ["toString(toStartOfYear(born))"],
    "toMonday": ["toString(toMonday(created_at))"],
    "least": ["toString(least(tiny, small))", "toString(least(revenue, 5))", "least(days, score, 3) > 1"],
    "greatest": ["toString(greatest(orders_count, 2.5))", "greatest(created_at, last_order_at) > now()"],
    "coalesce": ["coalesce(days, score, 3) > 2", "coalesce(country, band) = 'a'"],
    "if": ["if(has_bought, days, score) > 2", "if(orders_count > 0, revenue / orders_count, 0) > 3"],
    "position": ["position(email, '@') > 0", "toString(position(country, 'b'))"],
    "dateDiff": [f"toString(dateDiff('{unit}', last_order_at, now()))" for unit in ("second", "hour", "day")]
    + [
        f"toString(dateDiff('{unit}', born, today()))" for unit in ("day", "week", "month", "quarter", "year")
    ],
    "now": ["last_order_at < now() - interval 3 month"],
    "today": ["born < today() - interval 1 year"],
}


def test_every_function_is_judged_in_process_or_declined(engine):
    assert set(NATIVE) == set(FUNCTIONS), (
        "say in NATIVE what of a function is judged in process, '' for nothing"
    )
    assert set(EXAMPLES) == {name for name, what in NATIVE.items() if what}
    texts = [text for examples in EXAMPLES.values() for text in examples]
    for text in texts:
        is_value = text.startswith("toString(")
        assert compiled(parsed(text).sql, tuple(TYPES.items()), is_condition=not is_value), text
    for seed in range(2):
        assert check_parity(engine, texts, seed) > 5 * len(texts)


SURPRISES = [
    # ClickHouse looks at what stands behind null, tells minus zero from zero in a set, and fails for a decimal that it
    # need not look at; a common type of Bool and UInt8 is the first of them
    "has_bought and has(segments, event.b.c)", "share in (-1, 0)", "has_bought and rate <= items_count",
    "coalesce(is_deleted, rate <= items_count)", "toString(coalesce(floor(share), (5 % score)))",
    "if(has_bought, has_bought, tiny)", "orders_count > 0 and 5 % orders_count = 1", "toString(round(share, 1))",
    "toString(nullIf(rate, items_count))", "items_count between rate and tiny",
]  # fmt: skip


def test_what_has_surprised(engine):
    for seed in range(3):
        check_parity(engine, SURPRISES, seed, count=40)


@pytest.mark.parametrize(
    "text",
    [
        "match(email, '(a+)+b')", r"match(email, '\\w')", "email ilike 'é%'", "kind = 'a'", "email like country",
        "event.a % 2 = 1", "toInt64(email) = 1", "toDate(email) = today()", "lower(orders_count) = 'x'",
        "orders_count = 'x'", "segments = ['a']", "toStartOfDay(born) = born", "dateDiff('hour', born, today()) > 1",
        "email in ('a', 1)", "if(is_deleted, email, 1) = 1", "born - interval 3 hour > now()", "tiny % 0 = 1",
        "created_at > 'yesterday'", "round(engagement, -2) = 1", "revenue in (0.29)", "least(huge, 1.5) > 1",
    ],
)  # fmt: skip
def test_what_is_not_known_to_be_the_same_is_declined(text):
    columns = {**PROFILE, "kind": "Enum8('a' = 1)"}
    predicate = parse_predicate(text, columns=columns, qualifiers=("event", "message"))
    assert compiled(predicate.sql, tuple({**TYPES, **columns}.items())) is None


class NoEngine:
    """A warehouse that must not be asked."""

    def frame(self, *_: Any, **__: Any) -> pl.DataFrame:
        raise AssertionError("ClickHouse was asked")


def live(warehouse: Any) -> Live:
    made = Live(warehouse)
    made._columns = dict(PROFILE)
    return made


CONDITIONS = [
    "event.a > 1 and orders_count < 3", "event.b.c = '50'", "revenue / orders_count > 2", "email ilike 'A%'",
    "event_count('product.viewed', '1h') >= 2 or last_event_at('order.placed', '30d') is null", "event.a",
    "match(email, '(a|b)+')", "country is null", "toInt64(share) = 1 or length(event.items) > 1",
    "message.name = 'a' or event.type = 'clicked'",
]  # fmt: skip


@settings(max_examples=4)
@given(seed=st.integers(0, 2**32))
def test_a_batch_is_judged_as_one_query_would_judge_it(engine, seed):
    frame, state = rows_of(seed, 30)
    # no division by zero here: it is an error of the whole batch, as it has always been
    state = state.with_columns(pl.col("orders_count").clip(1), pl.col("share").fill_nan(None).clip(-9, 9))
    conditions = {f"met {place}": parsed(text) for place, text in enumerate(CONDITIONS)}
    needs = Needs.of(conditions.values())
    assert {"a", "b.c", "items"} <= needs.properties
    judge = live(engine)
    types = {name: TYPES[name] for name in [*needs.columns, COUNTED.column, LAST.column]}
    ours = judge._verdicts(frame, state, conditions, needs).frame(frame["row"])
    theirs = judge._asked(frame, state, conditions, sorted(needs.properties), types)
    assert ours.equals(theirs.select(ours.columns))
    assert ours.schema == theirs.select(ours.columns).schema


def test_what_is_judged_in_process_asks_nobody():
    frame, state = rows_of(1, 1)
    frame = frame.with_columns(
        pl.lit('{"cart":{"value":72.5},"items":[{"sku":"a"}]}').alias("event_properties")
    )
    text = "event.cart.value > 50 and length(event.items) = 1 and event_count('product.viewed', '1h') >= 0"
    conditions = {"met": parsed(text)}
    found = (
        live(NoEngine())
        ._verdicts(frame, state, conditions, Needs.of(conditions.values()))
        .frame(frame["row"])
    )
    assert found.to_dicts() == [
        {"row": 0, "met": True, "event.cart.value": "72.5", "event.items": '[{"sku":"a"}]'}
    ]


def test_values_that_do_not_have_their_type_are_declined():
    frame, state = rows_of(1, 3)
    state = state.with_columns(
        pl.Series("orders_count", [None, 2**32, 1]),
        pl.Series("segments", [["a"], None, ["a"]]),
        pl.lit("text").alias("engagement"),
    )
    conditions = {
        text: parsed(text) for text in ("orders_count < 3 and has(segments, 'a')", "engagement > 1")
    }
    found = judged(Rows([state, frame], TYPES), conditions, TYPES)
    first, second = (found.declined[name] for name in conditions)
    assert set(first) == {0, 1} and set(second) == {0, 1, 2}
    assert found.values["orders_count < 3 and has(segments, 'a')"][2] is True


def test_a_long_text_does_not_keep_a_pattern_busy():
    frame, state = rows_of(1, 2)
    state = state.with_columns(pl.Series("email", ["ann@example.com", "a" * 100_000]))
    conditions = {
        text: parsed(text) for text in ("match(email, '[a-z]+@[a-z]+x$')", "email like '%a%a%a%a%b'")
    }
    found = judged(Rows([state, frame], TYPES), conditions, TYPES)
    assert list(found.declined.items()) == [("match(email, '[a-z]+@[a-z]+x$')", {1})]
    assert found.values["email like '%a%a%a%a%b'"] == [False, False]


@pytest.mark.parametrize("text", ["lower(orders_count) = 'x'", "tiny % small = 1", "revenue * huge > 1"])
def test_a_condition_that_does_not_fit_its_values_fails_as_before(engine, text):
    frame, state = rows_of(1, 3)
    state = state.with_columns(
        pl.lit(0).alias("small"),
        pl.lit(2**63, pl.UInt64).alias("huge"),
        pl.lit(5, pl.Decimal(18, 2)).alias("revenue"),
    )
    conditions = {"met": parsed(text), "other": parsed("orders_count >= 0")}
    with pytest.raises(WarehouseError) as caught:
        live(engine)._verdicts(frame, state, conditions, Needs.of(conditions.values()))
    assert caught.value.code in MISFITS
