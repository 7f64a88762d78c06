from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.predicates import FUNCTIONS, LONGEST, parse_predicate
from warehouse.client import Warehouse
from warehouse.errors import InputError

COLUMNS = ["contact_id", "email", "country", "engagement_score", "segments", "orders_count", "last_order_at"]

UNDERSTOOD = {
    "orders_count = 1": "(`orders_count` = 1)",
    "orders_count == 1 or country <> 'x'": "((`orders_count` = 1) or (`country` != 'x'))",
    "NOT country IS NULL": "(not (`country` is null))",
    "country is not null": "(`country` is not null)",
    "country not in ('a', 'b')": "(`country` not in ('a', 'b'))",
    "orders_count between 1 and 2 and 1 < 2": "((`orders_count` >= 1 and `orders_count` <= 2) and (1 < 2))",
    "orders_count not between 1 and 2": "(not (`orders_count` >= 1 and `orders_count` <= 2))",
    "email ilike '%@example.com'": "(`email` ilike '%@example.com')",
    "HAS(segments, 'engaged')": "has(`segments`, 'engaged')",
    "hasAny(segments, ['a', 'b'])": "hasAny(`segments`, ['a', 'b'])",
    "last_order_at < now() - interval 3 months": (
        "(`last_order_at` < ({now:DateTime64(3, 'UTC')} - toIntervalMonth(3)))"
    ),
    "orders_count > -1 + 2 * 3": "(`orders_count` > ((- 1) + (2 * 3)))",
    "case when orders_count = 1 then true else false end": (
        "(case when (`orders_count` = 1) then true else false end)"
    ),
    "country = 'O''Brien'": r"(`country` = 'O\'Brien')",
    r"country = 'a\'b\\c\d'": r"(`country` = 'a\'b\\c\\d')",
}


@pytest.mark.parametrize(("text", "sql"), UNDERSTOOD.items())
def test_conditions_are_written_anew(text, sql):
    assert parse_predicate(text, columns=COLUMNS).sql == sql


def test_columns_are_known():
    predicate = parse_predicate("orders_count > 1 and event.value < 3", qualifiers=["event"])
    assert predicate.columns == {"orders_count", "event.value"}
    assert not predicate.uses_now
    assert parse_predicate("last_order_at < now()").uses_now


HOSTILE = [
    "1; drop table raw.events",
    "1 = 1; select 1",
    "contact_id in (select contact_id from marts.contacts)",
    "(select 1)",
    "exists (select 1)",
    "contact_id in segments.champions",
    "contact_id in marts.contacts",
    "contact_id = any(select 1)",
    "file('/etc/passwd') = ''",
    "url('http://example.com') = ''",
    "remote('example.com', system.one) = 1",
    "dictGet('d', 'a', 1) = 1",
    "joinGet('t', 'a', 1) = 1",
    "getSetting('max_threads') = 1",
    "currentUser() = 'x'",
    "hostName() = 'x'",
    "sleep(3) = 0",
    "sleepEachRow(1) = 0",
    "throwIf(1) = 0",
    "rand() > 0.5",
    "arrayExists(x -> x = 'a', segments)",
    "segments.1 = 'a'",
    "segments[1] = 'a'",
    "system.users.name = 'x'",
    "* = 1",
    "contact_id = 1 settings readonly = 0",
    "contact_id = 1 format JSON",
    "contact_id = 1 into outfile 'x'",
    "contact_id = 1 union all select 1",
    "contact_id = 1 group by contact_id",
    "contact_id = 1 -- and",
    "contact_id = 1 /* and */",
    "contact_id = 1 # and",
    "contact_id = {x:UInt8}",
    "{{ contact.country }} = 1",
    "country = $$x$$",
    'country = "x"',
    "`contact_id` = 1",
    "country = 'x",
    "country = 'x\\'",
    "country = '\\x27 or 1=1'",
    "contact_id::String = '1'",
    "cast(contact_id as String) = '1'",
    "contact_id = 0x10",
    "contact_id = 1_000",
    "contact_id ? 1 : 0",
    "contact_id || 'x' = 'y'",
    "contact_id = @@version",
    "contact_id = 1 or",
    "and contact_id = 1",
    "contact_id = (1",
    "contact_id = 1)",
    "has(segments)",
    "now(1) > last_order_at",
    "interval 'x' day > 1",
    "interval 3 fortnight > 1",
    "not",
    "",
    "   ",
    "contact_id = 1\x00",
    "(" * 200 + "1" + ")" * 200,
    "not " * 200 + "true",
    "contact_id = 1 and " * 400 + "true",
    "contact_ID = 1",
    "password = ''",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_condition_cannot_say(text):
    with pytest.raises(InputError) as error:
        parse_predicate(text, columns=COLUMNS, place=lambda line: f"content/campaigns/a.yaml:{line}")
    assert re.match(r"content/campaigns/a\.yaml:1: where, character \d+: ", error.value.message)
    assert error.value.fix


def test_messages_name_place_and_nearest():
    with pytest.raises(InputError) as error:
        parse_predicate(
            "orders_count > 1\n  and countri = 'x'", columns=COLUMNS, place=lambda line: f"a.yaml:{line + 4}"
        )
    assert error.value.message == "a.yaml:6: where, character 7: countri is no column of a contact's profile."
    assert error.value.fix.startswith("Did you mean country? Allowed: contact_id, country,")
    with pytest.raises(InputError) as error:
        parse_predicate("hasAnny(segments, ['a'])")
    assert error.value.fix.startswith("Did you mean hasAny?")


KEYWORDS = {
    "and", "or", "not", "in", "is", "null", "like", "ilike", "true", "false", "case", "when", "then",
    "else", "end",
}  # fmt: skip
FRAGMENTS = [
    *HOSTILE, *UNDERSTOOD, "'", '"', "`", "\\", "(", ")", "[", "]", ",", ";", "--", "/*", "*/", "select",
    "from", "system.users", "a", "1", "now()", "in", "and", "case", "end", "interval", " ", "\n", "{", "}",
    "$", "%", "é", "''",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=8))
def test_nothing_but_the_grammar_ever_comes_out(fragments):
    try:
        sql = parse_predicate(" ".join(fragments)).sql
    except InputError:
        return
    rest = sql.replace("{now:DateTime64(3, 'UTC')}", " ")
    rest = re.sub(r"'(?:[^'\\]|\\.)*'", " ", rest, flags=re.DOTALL)
    rest = re.sub(r"`[A-Za-z_][A-Za-z_0-9]*`", " ", rest)
    assert re.fullmatch(r"[A-Za-z0-9 .,()\[\]<>=!+\-*/%]*", rest), sql
    words = set(re.findall(r"[A-Za-z]\w*", re.sub(r"[\d.]+[eE][+-]?\d+", " ", rest)))
    assert words <= KEYWORDS | set(FUNCTIONS) | {word for word in words if word.startswith("toInterval")}, sql
    assert rest.count("(") == rest.count(")") and rest.count("[") == rest.count("]")


# conditions without columns mean to the engine what they meant as they were written
NUMBERS = st.integers(0, 3).map(str)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(" ".join) | inner.map("-{}".format)
    ),
    max_leaves=4,
).filter(lambda text: "--" not in text)
COMPARISONS = (
    st.tuples(SUMS, st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "<>", "=="]), SUMS).map(" ".join)
    | st.tuples(SUMS, st.sampled_from([" between ", " not between "]), SUMS, st.just(" and "), SUMS).map(
        "".join
    )
    | st.tuples(SUMS, st.sampled_from([" in ", " not in "]), st.just("(0, 2)")).map("".join)
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or", "AND", "Or"]), inner).map(" ".join)
        | inner.map("not {}".format)
        | inner.map("({})".format)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def engine(warehouse_server):
    with Warehouse.connect(warehouse_server) as connection:
        yield connection


@settings(max_examples=20, deadline=None)
@given(conditions=st.lists(CONDITIONS, min_size=10, max_size=10))
def test_conditions_keep_their_meaning(engine, conditions):
    written = engine.frame(
        "select " + ", ".join(f"toBool({text}) as c{i}" for i, text in enumerate(conditions))
    )
    understood = engine.frame(
        "select "
        + ", ".join(f"toBool({parse_predicate(text).sql}) as c{i}" for i, text in enumerate(conditions))
    )
    assert written.equals(understood)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), max_size=20))
def test_any_text_can_be_compared_with(engine, text):
    literal = "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    sql = parse_predicate(f"x = {literal} and y < now()").sql
    found = engine.value(
        f"select {sql} from (select unhex('{text.encode().hex()}') as x, toDateTime64(0, 3, 'UTC') as y)",
        {"now": "2011-06-27 09:00:00.000"},
    )
    assert found == 1


def test_too_long():
    with pytest.raises(InputError, match=f"more than {LONGEST} characters"):
        parse_predicate("1 = 1 or " * 1000 + "true")
