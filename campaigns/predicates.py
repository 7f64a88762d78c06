"""Conditions that marketers write: SQL predicates over one wide row, such as a contact's profile.

A condition is read with a grammar of its own and written anew from what was understood, every operation in
parentheses and every literal escaped; the text itself never reaches the warehouse. What the grammar does not
have cannot be said: no sub-selects, no tables, no table functions, no settings, no comments, no second
statement, no lambda; functions only from `FUNCTIONS`. So a condition can neither read anything but the row it
judges nor change anything.

    engagement_score >= 20 and has(segments, 'engaged') and country in ('United Kingdom', 'Ireland')
    last_order_at < now() - interval 90 day

`now()` and `today()` are Mailhouse's clock, given as the query parameter `now`.

Where an event is judged (triggers, journeys), the qualifier `event` reads it, and two functions what came before it:

    event.cart.value > 50 and event.type = 'cart.updated'
    message.name = 'win_back'                      -- the message that the event is about
    event_count('product.viewed', '1h') >= 3 and last_event_at('order.placed', '30d') is null

A property is a path into the event's JSON. It has the type that it is compared with (a number, a text, a time, true or
false), so `"50"` and `50` read alike; what is missing, or does not read as that type, is null, and a comparison with
null is not met. The SQL reads it from the column `event_properties`, the rest from `event_type`, `event_source`,
`event_occurred_at` and `message_NAME`; whoever judges gives these, and a column for each of `Predicate.calls`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.yaml_specs import nearest, parse_duration

LONGEST = 5_000
_DEEPEST = 40

FUNCTIONS: dict[str, tuple[int, int]] = {
    # how many arguments, at least and at most; all are pure and cheap
    **dict.fromkeys(
        ("has", "hasAny", "hasAll", "startsWith", "endsWith", "ifNull", "nullIf", "match"), (2, 2)
    ),
    **dict.fromkeys(("length", "empty", "notEmpty", "lower", "upper", "trim", "isNull", "isNotNull"), (1, 1)),
    **dict.fromkeys(("abs", "floor", "ceil", "toDate", "toString", "toFloat64", "toInt64"), (1, 1)),
    **dict.fromkeys(("toYear", "toMonth", "toDayOfMonth", "toDayOfWeek", "toHour"), (1, 1)),
    **dict.fromkeys(("toStartOfDay", "toStartOfMonth", "toStartOfYear", "toMonday"), (1, 1)),
    **dict.fromkeys(("least", "greatest"), (2, 8)),
    "round": (1, 2),
    "coalesce": (1, 8),
    "if": (3, 3),
    "position": (2, 2),
    "dateDiff": (3, 3),
    "toDateTime": (1, 1),
    "now": (0, 0),
    "today": (0, 0),
}
EVENT_FUNCTIONS: dict[str, tuple[int, int]] = {"event_count": (2, 2), "last_event_at": (1, 2)}
"""Functions of conditions that judge an event: what came up to it, itself included."""
EVENT_FIELDS = {
    "type": ("event_type", "text"),
    "source": ("event_source", "text"),
    "occurred_at": ("event_occurred_at", "time"),
}
"""What `event.` names besides properties: the column, and its kind."""
MESSAGE_FIELDS = ("kind", "name", "template", "occurrence")
"""What `message.` names: of the message that the event is about, empty where it is about none."""
LONGEST_LOOK_BACK = 366 * 86_400
_LOOK_BACK = 35 * 86_400
_EVENT_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?")
_BY_LOWER = {name.lower(): name for name in (*FUNCTIONS, *EVENT_FUNCTIONS)}
_ARGUMENT_KINDS = {
    **dict.fromkeys(
        ("lower", "upper", "trim", "startswith", "endswith", "match", "position", "empty", "notempty", "tostring"),
        "text",
    ),
    **dict.fromkeys(("abs", "floor", "ceil", "round", "tofloat64", "toint64"), "number"),
    **dict.fromkeys(
        ("todate", "todatetime", "toyear", "tomonth", "todayofmonth", "todayofweek", "tohour", "tostartofday",
         "tostartofmonth", "tostartofyear", "tomonday", "datediff"),
        "time",
    ),
}  # fmt: skip
_RESULT_KINDS = {
    **dict.fromkeys(("lower", "upper", "trim", "tostring"), "text"),
    **dict.fromkeys(
        ("abs", "floor", "ceil", "round", "tofloat64", "toint64", "length", "position", "datediff", "toyear",
         "tomonth", "todayofmonth", "todayofweek", "tohour"),
        "number",
    ),
    **dict.fromkeys(
        ("todate", "todatetime", "tostartofday", "tostartofmonth", "tostartofyear", "tomonday"), "time"
    ),
    **dict.fromkeys(
        ("has", "hasany", "hasall", "startswith", "endswith", "match", "empty", "notempty", "isnull", "isnotnull"),
        "bool",
    ),
}  # fmt: skip
_PROPERTY_TYPES = {
    "text": "Nullable(String)",
    "number": "Nullable(Float64)",
    "bool": "Nullable(Bool)",
    "texts": "Array(Nullable(String))",
    "numbers": "Array(Nullable(Float64))",
}
_DATE_DIFF_UNITS = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
_INTERVALS = {unit: f"toInterval{unit.capitalize()}" for unit in _DATE_DIFF_UNITS}
_KEYWORDS = frozenset(
    ("and", "or", "not", "in", "between", "like", "ilike", "is", "null", "true", "false")
) | frozenset(("interval", "case", "when", "then", "else", "end"))
MISFITS = frozenset(
    (6, 8, 27, 32, 38, 41, 42, 43, 44, 53, 69, 70, 72, 131, 152, 153, 190, 349, 386, 407, 427)
)
"""ClickHouse's error codes that are the condition's fault: types, arguments, numbers, patterns."""
_NOW = "{now:DateTime64(3, 'UTC')}"

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?![A-Za-z_0-9]))
  | (?P<word>[A-Za-z_][A-Za-z_0-9]*)
  | (?P<string>'(?:[^'\\]|\\.|'')*')
  | (?P<operator><>|!=|==|<=|>=|\|\||[-+*/%=<>(),.\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)


class _Sql(str):
    """SQL whose kind is known: `number`, `text`, `time`, `interval`, `bool` or `list`; empty if it is not."""

    __slots__ = ("kind", "path")

    def __new__(cls, text: str, kind: str = "", path: tuple[str, ...] = ()) -> Self:
        made = super().__new__(cls, text)
        made.kind, made.path = kind, path
        return made


def _kind(sql: str) -> str:
    return sql.kind if isinstance(sql, _Sql) else ""


def _is_property(sql: str) -> bool:
    return isinstance(sql, _Sql) and bool(sql.path)


def _typed(sql: str, kind: str) -> str:
    """A property read as the type that is needed; anything else as it is."""
    if not isinstance(sql, _Sql) or not sql.path:
        return sql
    keys = ", ".join(f"'{part}'" for part in sql.path)
    if kind == "time":
        text = f"JSONExtract(`event_properties`, {keys}, 'Nullable(String)')"
        return _Sql(f"parseDateTime64BestEffortOrNull({text}, 3, 'UTC')", "time")
    kind = kind if kind in _PROPERTY_TYPES else "text"
    return _Sql(f"JSONExtract(`event_properties`, {keys}, '{_PROPERTY_TYPES[kind]}')", kind)


def property_sql(path: str) -> str:
    """SQL that reads a property of an event as text: `cart.value` from the column `event_properties`.

    Raises:
        ValueError: it is no path of words.
    """
    parts = tuple(path.split("."))
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]*", part) for part in parts):
        raise ValueError(f"{path!r} is no path to a property")
    return _typed(_Sql("", path=parts), "text")


@dataclass(frozen=True, order=True)
class EventCall:
    """What a condition asks about events before: a function, a type, and how many seconds back."""

    function: str
    event_type: str
    seconds: int

    @property
    def column(self) -> str:
        """The column under which the condition reads the answer."""
        return f"{self.function}|{self.event_type}|{self.seconds}"


@dataclass(frozen=True)
class Predicate:
    """A condition that was understood.

    Attributes:
        text: as it was written.
        sql: as the warehouse is asked; may need the query parameter `now`.
        columns: the columns it reads; `event.cart_value` for a qualified one.
        calls: what it asks about events before.
        segments: segments that it names, as `has(segments, 'engaged')` does.
    """

    text: str
    sql: str
    columns: frozenset[str]
    calls: frozenset[EventCall] = frozenset()
    segments: frozenset[str] = frozenset()

    @property
    def uses_now(self) -> bool:
        """Whether `sql` needs the parameter `now`."""
        return _NOW in self.sql


def parse_predicate(
    text: str,
    *,
    columns: Collection[str] | None = None,
    qualifiers: Collection[str] = (),
    place: Callable[[int], str] = lambda line: f"line {line}",
    key: str = "where",
) -> Predicate:
    """Read a condition.

    Args:
        text: the condition.
        columns: names that may be read, best with their ClickHouse types, which then say as what an event's property is
            read; None allows any.
        qualifiers: what may stand before a dot: `event`, `message`; properties of an event are not checked.
        place: from the condition's line, counted from 1, to the place that the error names.
        key: what the error calls the condition.

    Raises:
        InputError: it is no condition, or says what a condition may not; names line and character.
    """
    try:
        parser = _Parser(text, columns, frozenset(qualifiers))
        sql = str(parser.condition())
        return Predicate(
            text, sql, frozenset(parser.columns), frozenset(parser.calls), frozenset(parser.segments)
        )
    except _Mistake as mistake:
        line = text.count("\n", 0, mistake.offset) + 1
        character = mistake.offset - (text.rfind("\n", 0, mistake.offset) + 1) + 1
        where = f"{place(line)}: {key}, character {character}: {mistake.what}."
        raise InputError(where, fix=mistake.hint) from None


def check_types(
    predicate: Predicate,
    warehouse: Warehouse,
    table: str,
    parameters: Mapping[str, Any],
    *,
    place: str,
    key: str = "where",
) -> None:
    """Let the warehouse judge all rows of a table once, to see that types and values fit.

    Args:
        predicate: the condition.
        warehouse: where the table is.
        table: the table whose rows it judges.
        parameters: query parameters; `now`, if the condition uses it.
        place: `file:line` that the error names.
        key: what the error calls the condition.

    Raises:
        InputError: the types do not fit, or the condition is not true or false.
    """
    try:
        kinds = warehouse.frame(f"describe table (select {predicate.sql} as is_met from {table})", parameters)  # noqa: S608
        kind = re.sub(r"^(?:LowCardinality\()?(?:Nullable\()?(\w+).*$", r"\1", str(kinds["type"][0]))
        if kind not in ("Bool", "UInt8", "Nothing"):
            fix = "Compare it with something, as in x > 0."
            raise InputError(f"{place}: {key} gives a {kind}, not true or false.", fix=fix)
        # types alone do not tell everything: comparisons with literals are judged when they are made
        warehouse.value(f"select countIf({predicate.sql}) from {table}", parameters)  # noqa: S608
    except WarehouseError as error:
        if error.code not in MISFITS:
            raise
        reason = error.message.removeprefix("ClickHouse refused a query: ")
        reason = re.split(r":? [Ww]hile |: In scope|\. \(|: \(|: value", reason)[0].rstrip(".: ")
        raise InputError(
            f"{place}: {key} does not fit the columns: {reason}.",
            fix="Compare texts with texts in single quotes, numbers with numbers, times with times.",
        ) from None


class _Mistake(Exception):  # noqa: N818  (never leaves this module)
    def __init__(self, offset: int, what: str, hint: str = "") -> None:
        self.offset, self.what, self.hint = offset, what, hint


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    offset: int

    @property
    def lower(self) -> str:
        return self.text.lower() if self.kind == "word" else self.text


_HINTS = {
    ";": "A condition is one expression; leave ; away.",
    '"': "Write texts in single quotes and column names without quotes.",
    "`": "Write column names without quotes.",
    "{": "Conditions have no parameters or merge tags.",
    "?": "Write if(condition, then, else).",
    "#": "Conditions have no comments; use the YAML comment beside it.",
    "@": "Write texts in single quotes.",
    "$": "Write texts in single quotes.",
    "other": "A condition has columns, numbers, texts in single quotes, operators and functions.",
    "'": "Close the text with a single quote; write '' for a quote inside it.",
}


def _tokens(text: str) -> Iterator[_Token]:
    offset = 0
    while offset < len(text):
        found = _TOKEN.match(text, offset)
        if text.startswith(("--", "/*"), offset):
            raise _Mistake(offset, "a condition has no comments", _HINTS["#"])
        if found is None:
            character = text[offset]
            if character.isdigit():
                raise _Mistake(offset, "this is no number", "Write numbers such as 20 or 0.5.")
            raise _Mistake(
                offset, f"{character!r} has no place in a condition", _HINTS.get(character, _HINTS["other"])
            )
        if found.lastgroup != "space":
            yield _Token(str(found.lastgroup), found.group(), offset)
        offset = found.end()
    yield _Token("end", "", len(text))


@dataclass
class _Parser:
    """Recursive descent, loosest operator first; each method returns SQL."""

    text: str
    allowed: Collection[str] | None
    qualifiers: frozenset[str]
    columns: set[str] = field(default_factory=set)
    calls: set[EventCall] = field(default_factory=set)
    segments: set[str] = field(default_factory=set)

    def condition(self) -> str:
        if not self.text.strip():
            raise _Mistake(0, "it is empty", "Write a condition, or leave the key away.")
        if len(self.text) > LONGEST:
            raise _Mistake(0, f"it has more than {LONGEST} characters", "Make it a segment instead.")
        if "\x00" in self.text:
            raise _Mistake(self.text.index("\x00"), "it holds a zero byte", "Remove it.")
        self.tokens = list(_tokens(self.text))
        self.index = 0
        self.depth = 0
        sql = self._or()
        if self._peek().kind != "end":
            self._unexpected()
        return _typed(sql, "bool")

    def _peek(self, ahead: int = 0) -> _Token:
        return self.tokens[min(self.index + ahead, len(self.tokens) - 1)]

    def _next(self) -> _Token:
        token = self._peek()
        self.index += 1
        return token

    def _take(self, *texts: str) -> str | None:
        token = self._peek()
        if token.kind in ("word", "operator") and token.lower in texts:
            self.index += 1
            return token.lower
        return None

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            self._unexpected(text)

    def _unexpected(self, wanted: str = "") -> None:
        token = self._peek()
        found = "it ends here" if token.kind == "end" else f"{token.text!r} is not expected here"
        hint = (
            f"Write {wanted!r} here."
            if wanted
            else "Join conditions with and, or; compare with =, <, in, like."
        )
        if token.lower in ("select", "from", "union", "with", "settings", "format", "into"):
            hint = "A condition has no sub-queries or settings. Make it a segment instead."
        raise _Mistake(token.offset, found, hint)

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Mistake(self._peek().offset, "it nests too deeply", "Make it a segment instead.")

    def _or(self) -> str:
        self._deeper()
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else _joined(" or ", parts)

    def _and(self) -> str:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else _joined(" and ", parts)

    def _not(self) -> str:
        if self._take("not"):
            self._deeper()
            sql = f"(not {_typed(self._not(), 'bool')})"
            self.depth -= 1
            return _Sql(sql, "bool")
        return self._comparison()

    def _comparison(self) -> str:
        left = self._sum()
        while True:
            if operator := self._take("=", "==", "!=", "<>", "<", "<=", ">", ">="):
                operator = {"==": "=", "<>": "!="}.get(operator, operator)
                left, right = _alike(left, self._sum(), "number" if operator[0] in "<>" else "text")
                left = _Sql(f"({left} {operator} {right})", "bool")
                continue
            if self._take("is"):
                negated = "not " if self._take("not") else ""
                self._expect("null")
                left = _Sql(f"({_typed(left, 'text')} is {negated}null)", "bool")
                continue
            negated = ""
            if self._peek().lower == "not" and self._peek(1).lower in ("in", "between", "like", "ilike"):
                self._next()
                negated = "not "
            if self._take("in"):
                values = self._list()
                left = _Sql(f"({_typed(left, _kind(values))} {negated}in {values})", "bool")
            elif self._take("between"):
                low = self._sum()
                self._expect("and")
                high = self._sum()
                kind = _kind(low) or _kind(high) or "number"
                left, low, high = _typed(left, kind), _typed(low, _kind(left) or kind), _typed(high, kind)
                between = f"({left} >= {low} and {left} <= {high})"
                left = _Sql(f"(not {between})" if negated else between, "bool")
            elif operator := self._take("like", "ilike"):
                right = _typed(self._sum(), "text")
                left = _Sql(f"({_typed(left, 'text')} {negated}{operator} {right})", "bool")
            else:
                return left

    def _sum(self) -> str:
        left = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            is_time = {_kind(left), _kind(right)} & {"time", "interval"}
            left, right = (_typed(one, "time" if is_time else "number") for one in (left, right))
            kinds = (_kind(left), _kind(right))
            kind = "number" if kinds == ("time", "time") or not is_time else "time"
            left = _Sql(f"({left} {operator} {right})", kind)
        if self._peek().text == "||":
            raise _Mistake(
                self._peek().offset, "'||' has no place in a condition", "Use or between conditions."
            )
        return left

    def _product(self) -> str:
        left = self._sign()
        while operator := self._take("*", "/", "%"):
            right = _typed(self._sign(), "number")
            left = _Sql(f"({_typed(left, 'number')} {operator} {right})", "number")
        return left

    def _sign(self) -> str:
        if self._take("-"):
            self._deeper()
            sql = f"(- {_typed(self._sign(), 'number')})"
            self.depth -= 1
            return _Sql(sql, "number")
        return self._operand()

    def _list(self) -> str:
        if self._peek().lower != "(" or self._peek(1).lower == "select":
            token = self._peek(0 if self._peek().lower != "(" else 1)
            raise _Mistake(token.offset, "a list of values belongs after in", "Write it as in ('a', 'b').")
        self._next()
        parts = [self._value()]
        while self._take(","):
            parts.append(self._value())
        self._expect(")")
        return _Sql(f"({', '.join(parts)})", _kind(parts[0]))

    def _value(self) -> str:
        sign = "-" if self._take("-") else ""
        token = self._next()
        if token.kind == "number":
            return _Sql(sign + token.text, "number")
        if token.kind == "string" and not sign:
            return _Sql(_quoted(token), "text")
        raise _Mistake(token.offset, "the list may hold only texts and numbers", "Write it as in ('a', 'b').")

    def _operand(self) -> str:
        token = self._next()
        if token.kind == "number":
            return _Sql(token.text, "number")
        if token.kind == "string":
            return _Sql(_quoted(token), "text")
        if token.text == "(":
            inner = self._or()
            self._expect(")")
            return inner if _is_property(inner) else _Sql(f"({inner})", _kind(inner))
        if token.text == "[":
            return self._array()
        if token.kind == "word":
            return self._word(token)
        self.index -= 1
        self._unexpected()
        raise AssertionError  # _unexpected always raises

    def _array(self) -> str:
        parts: list[str] = []
        while not self._take("]"):
            if parts:
                self._expect(",")
            parts.append(self._value())
        return _Sql(f"[{', '.join(parts)}]", "numbers" if parts and _kind(parts[0]) == "number" else "texts")

    def _word(self, token: _Token) -> str:
        word = token.lower
        if word in ("true", "false", "null"):
            return _Sql(word, "" if word == "null" else "bool")
        if word == "interval":
            return self._interval()
        if word == "case":
            return self._case()
        if word in _KEYWORDS:
            self.index -= 1
            self._unexpected()
        if self._peek().text == "(":
            return self._call(token)
        if self._peek().text == ".":
            return self._qualified(token)
        if word in ("select", "with", "from", "exists", "any", "all"):
            self.index -= 1
            self._unexpected()
        if self.allowed is not None and token.text not in self.allowed:
            hint = nearest(token.text, sorted(self.allowed), shown=60)
            raise _Mistake(token.offset, f"{token.text} is no column of a contact's profile", hint)
        self.columns.add(token.text)
        return _Sql(f"`{token.text}`", self._column_kind(token.text))

    def _column_kind(self, name: str) -> str:
        if not isinstance(self.allowed, Mapping):
            return "time" if name.endswith("_at") else "bool" if name.startswith(("is_", "has_")) else ""
        found = re.match(
            r"(?:LowCardinality\(|Nullable\()*(U?Int|Float|Decimal|Bool|Date|Array|)", self.allowed[name]
        )
        kinds = {"Bool": "bool", "Date": "time", "Array": "texts", "": "text"}
        return kinds.get(found[1] if found else "", "number")

    def _qualified(self, token: _Token) -> str:
        if token.text not in self.qualifiers:
            raise _Mistake(
                token.offset,
                f"{token.text}. has no place in a condition",
                nearest(token.text, [f"{name}." for name in sorted(self.qualifiers)])
                or "Write the column's name alone; no other table can be read.",
            )
        path: list[str] = []
        while self._peek().text == ".":
            self._next()
            name = self._next()
            if name.kind != "word" or self._peek().text == "(":
                raise _Mistake(name.offset, "a name belongs after the dot", f"Write {token.text}.name.")
            path.append(name.text)
        full = ".".join((token.text, *path))
        self.columns.add(full)
        if token.text == "message":
            if path[0] not in MESSAGE_FIELDS or len(path) > 1:
                raise _Mistake(token.offset, f"{full} is not known", nearest(path[0], MESSAGE_FIELDS))
            return _Sql(f"`message_{path[0]}`", "text")
        if len(path) == 1 and path[0] in EVENT_FIELDS:
            column, kind = EVENT_FIELDS[path[0]]
            return _Sql(f"`{column}`", kind)
        return _Sql(f"`{full}`", path=tuple(path))

    def _call(self, token: _Token) -> str:
        name = _BY_LOWER.get(token.lower)
        known = {**FUNCTIONS, **(EVENT_FUNCTIONS if "event" in self.qualifiers else {})}
        if name is None or name not in known:
            raise _Mistake(
                token.offset,
                f"{token.text}() may not be used in a condition",
                nearest(token.text, known, shown=60),
            )
        if name in EVENT_FUNCTIONS:
            return self._event_call(token, name)
        self._deeper()
        self._next()
        arguments: list[str] = []
        first, second = self._peek(), self._peek(2)
        while not self._take(")"):
            if arguments:
                self._expect(",")
            arguments.append(self._or())
        self.depth -= 1
        least, most = FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise _Mistake(
                token.offset, f"{name}() takes {count} arguments, not {len(arguments)}", "Correct it."
            )
        if name == "now":
            return _Sql(_NOW, "time")
        if name == "today":
            return _Sql(f"toDate({_NOW})", "time")
        if name == "has" and arguments[0] == "`segments`" and second.kind == "string":
            self.segments.add(second.text[1:-1])
        if name == "dateDiff" and (
            first.kind != "string" or first.text[1:-1].lower() not in _DATE_DIFF_UNITS
        ):
            units = ", ".join(f"'{unit}'" for unit in _DATE_DIFF_UNITS)
            raise _Mistake(first.offset, "dateDiff() begins with a unit", f"Allowed: {units}.")
        return _called(name, arguments)

    def _event_call(self, token: _Token, name: str) -> str:
        """event_count('type', '1h'), last_event_at('type', '30d'): both arguments are constants."""
        self._next()
        texts: list[_Token] = []
        while not self._take(")"):
            if texts:
                self._expect(",")
            text = self._next()
            if text.kind != "string":
                raise _Mistake(text.offset, f"{name}() takes texts", f"Write {name}('cart.updated', '1h').")
            texts.append(text)
        least, most = EVENT_FUNCTIONS[name]
        if not least <= len(texts) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise _Mistake(
                token.offset,
                f"{name}() takes {count} arguments, not {len(texts)}",
                "Write event type and time.",
            )
        event_type = texts[0].text[1:-1]
        if not _EVENT_TYPE.fullmatch(event_type):
            raise _Mistake(
                texts[0].offset, f"{event_type!r} is no event type", "Write noun.verb, such as order.placed."
            )
        seconds = _LOOK_BACK
        if len(texts) > 1:
            try:
                seconds = int(parse_duration(texts[1].text[1:-1]).total_seconds())
            except ValueError as error:
                raise _Mistake(texts[1].offset, f"{texts[1].text} {error}", "Write it as in '1h'.") from None
            if not 1 <= seconds <= LONGEST_LOOK_BACK:
                raise _Mistake(
                    texts[1].offset, f"{texts[1].text} is too long or too short", "Allowed: 1s to 366d."
                )
        call = EventCall(name, event_type, seconds)
        self.calls.add(call)
        return _Sql(f"`{call.column}`", "number" if name == "event_count" else "time")

    def _interval(self) -> str:
        token = self._next()
        if token.kind != "number" or not token.text.isdigit():
            raise _Mistake(
                token.offset, "a whole number belongs after interval", "Write it as interval 30 day."
            )
        unit = self._next()
        singular = unit.lower.removesuffix("s")
        if unit.kind != "word" or singular not in _INTERVALS:
            raise _Mistake(
                unit.offset, f"{unit.text!r} is no unit of time", nearest(unit.text, _DATE_DIFF_UNITS)
            )
        return _Sql(f"{_INTERVALS[singular]}({token.text})", "interval")

    def _case(self) -> str:
        self._deeper()
        parts: list[str] = []
        while self._take("when"):
            condition = _typed(self._or(), "bool")
            self._expect("then")
            parts.append(f"when {condition} then {_typed(self._or(), 'text')}")
        if not parts:
            self._unexpected("when")
        if self._take("else"):
            parts.append(f"else {_typed(self._or(), 'text')}")
        self._expect("end")
        self.depth -= 1
        return f"(case {' '.join(parts)} end)"


def _joined(word: str, parts: Sequence[str]) -> str:
    return _Sql(f"({word.join(_typed(part, 'bool') for part in parts)})", "bool")


def _alike(left: str, right: str, otherwise: str) -> tuple[str, str]:
    """Two sides of a comparison, properties read as what stands on the other side."""
    kind = {"interval": "number", "list": "text"}.get(
        _kind(left) or _kind(right), _kind(left) or _kind(right)
    )
    return _typed(left, kind or otherwise), _typed(right, kind or otherwise)


def _called(name: str, arguments: list[str]) -> str:
    """A call whose properties are read as what the function, or the arguments beside them, need."""
    lower = name.lower()
    kind = _ARGUMENT_KINDS.get(lower, "")
    if lower in ("has", "hasany", "hasall"):
        others = "numbers" if _kind(arguments[1]) in ("number", "numbers") else "texts"
        arguments = [_typed(arguments[0], others), _typed(arguments[1], others if lower != "has" else "text")]
    elif lower == "length" and _is_property(arguments[0]):
        # of a list its entries, of a text its characters
        (one,) = arguments
        assert isinstance(one, _Sql)
        keys = ", ".join(f"'{part}'" for part in one.path)
        is_list = f"JSONType(`event_properties`, {keys}) = 'Array'"
        return _Sql(
            f"if({is_list}, JSONLength(`event_properties`, {keys}), lengthUTF8({_typed(one, 'text')}))",
            "number",
        )
    elif not kind:
        values = arguments[1:] if lower == "if" else arguments
        otherwise = "number" if lower in ("least", "greatest") else "text"
        kind = next((_kind(one) for one in values if _kind(one)), otherwise)
        if lower == "if":
            arguments = [_typed(arguments[0], "bool"), *arguments[1:]]
        if lower in ("isnull", "isnotnull"):
            kind = "text"
    return _Sql(
        f"{name}({', '.join(_typed(one, kind) for one in arguments)})", _RESULT_KINDS.get(lower, kind)
    )


_ESCAPES = {"\\": "\\", "'": "'", "n": "\n", "t": "\t", "r": "\r"}
# escapes that ClickHouse gives a meaning of its own
_REFUSED_ESCAPES = frozenset("abefvxN0")


def _quoted(token: _Token) -> str:
    """A text literal, decoded as ClickHouse would and encoded anew."""
    body = token.text[1:-1]
    decoded: list[str] = []
    index = 0
    while index < len(body):
        character = body[index]
        if character == "'":  # doubled: the token's pattern leaves no other
            decoded.append("'")
            index += 2
        elif character == "\\":
            escaped = body[index + 1]
            if escaped in _REFUSED_ESCAPES:
                raise _Mistake(
                    token.offset + 1 + index, f"\\{escaped} is not read here", "Write \\\\ for a backslash."
                )
            # an escape without meaning keeps its backslash: '100\%' for like, '\d' for match
            decoded.append(_ESCAPES.get(escaped, f"\\{escaped}"))
            index += 2
        else:
            decoded.append(character)
            index += 1
    text = "".join(decoded).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
