"""Conditions that marketers write: SQL predicates over one wide row, such as a contact's profile.

A condition is read with a grammar of its own and written anew from what was understood, every operation in
parentheses and every literal escaped; the text itself never reaches the warehouse. What the grammar does not
have cannot be said: no sub-selects, no tables, no table functions, no settings, no comments, no second
statement, no lambda; functions only from `FUNCTIONS`. So a condition can neither read anything but the row it
judges nor change anything.

    engagement_score >= 20 and has(segments, 'engaged') and country in ('United Kingdom', 'Ireland')
    last_order_at < now() - interval 90 day

`now()` and `today()` are Mailhouse's clock, given as the query parameter `now`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.yaml_specs import nearest

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
_BY_LOWER = {name.lower(): name for name in FUNCTIONS}
_DATE_DIFF_UNITS = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
_INTERVALS = {unit: f"toInterval{unit.capitalize()}" for unit in _DATE_DIFF_UNITS}
_KEYWORDS = frozenset(
    ("and", "or", "not", "in", "between", "like", "ilike", "is", "null", "true", "false")
) | frozenset(("interval", "case", "when", "then", "else", "end"))
_MISFITS = frozenset(
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


@dataclass(frozen=True)
class Predicate:
    """A condition that was understood.

    Attributes:
        text: as it was written.
        sql: as the warehouse is asked; may need the query parameter `now`.
        columns: the columns it reads; `event.cart_value` for a qualified one.
    """

    text: str
    sql: str
    columns: frozenset[str]

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
        columns: names that may be read; None allows any.
        qualifiers: what may stand before a dot, such as `event`; names behind it are not checked.
        place: from the condition's line, counted from 1, to the place that the error names.
        key: what the error calls the condition.

    Raises:
        InputError: it is no condition, or says what a condition may not; names line and character.
    """
    try:
        parser = _Parser(text, columns, frozenset(qualifiers))
        return Predicate(text, parser.condition(), frozenset(parser.columns))
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
        if error.code not in _MISFITS:
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
        return sql

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
        return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"

    def _and(self) -> str:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else f"({' and '.join(parts)})"

    def _not(self) -> str:
        if self._take("not"):
            self._deeper()
            sql = f"(not {self._not()})"
            self.depth -= 1
            return sql
        return self._comparison()

    def _comparison(self) -> str:
        left = self._sum()
        while True:
            if operator := self._take("=", "==", "!=", "<>", "<", "<=", ">", ">="):
                operator = {"==": "=", "<>": "!="}.get(operator, operator)
                left = f"({left} {operator} {self._sum()})"
                continue
            if self._take("is"):
                negated = "not " if self._take("not") else ""
                self._expect("null")
                left = f"({left} is {negated}null)"
                continue
            negated = ""
            if self._peek().lower == "not" and self._peek(1).lower in ("in", "between", "like", "ilike"):
                self._next()
                negated = "not "
            if self._take("in"):
                left = f"({left} {negated}in {self._list()})"
            elif self._take("between"):
                low = self._sum()
                self._expect("and")
                between = f"({left} >= {low} and {left} <= {self._sum()})"
                left = f"(not {between})" if negated else between
            elif operator := self._take("like", "ilike"):
                left = f"({left} {negated}{operator} {self._sum()})"
            else:
                return left

    def _sum(self) -> str:
        left = self._product()
        while operator := self._take("+", "-"):
            left = f"({left} {operator} {self._product()})"
        if self._peek().text == "||":
            raise _Mistake(
                self._peek().offset, "'||' has no place in a condition", "Use or between conditions."
            )
        return left

    def _product(self) -> str:
        left = self._sign()
        while operator := self._take("*", "/", "%"):
            left = f"({left} {operator} {self._sign()})"
        return left

    def _sign(self) -> str:
        if self._take("-"):
            self._deeper()
            sql = f"(- {self._sign()})"
            self.depth -= 1
            return sql
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
        return f"({', '.join(parts)})"

    def _value(self) -> str:
        sign = "-" if self._take("-") else ""
        token = self._next()
        if token.kind == "number":
            return sign + token.text
        if token.kind == "string" and not sign:
            return _quoted(token)
        raise _Mistake(token.offset, "the list may hold only texts and numbers", "Write it as in ('a', 'b').")

    def _operand(self) -> str:
        token = self._next()
        if token.kind == "number":
            return token.text
        if token.kind == "string":
            return _quoted(token)
        if token.text == "(":
            inner = self._or()
            self._expect(")")
            return f"({inner})"
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
        return f"[{', '.join(parts)}]"

    def _word(self, token: _Token) -> str:
        word = token.lower
        if word in ("true", "false", "null"):
            return word
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
        return f"`{token.text}`"

    def _qualified(self, token: _Token) -> str:
        if token.text not in self.qualifiers:
            raise _Mistake(
                token.offset,
                f"{token.text}. has no place in a condition",
                nearest(token.text, [f"{name}." for name in sorted(self.qualifiers)])
                or "Write the column's name alone; no other table can be read.",
            )
        self._next()
        name = self._next()
        if name.kind != "word" or self._peek().text in (".", "("):
            raise _Mistake(name.offset, "one name belongs after the dot", f"Write {token.text}.name.")
        self.columns.add(f"{token.text}.{name.text}")
        return f"`{token.text}`.`{name.text}`"

    def _call(self, token: _Token) -> str:
        name = _BY_LOWER.get(token.lower)
        if name is None:
            raise _Mistake(
                token.offset,
                f"{token.text}() may not be used in a condition",
                nearest(token.text, FUNCTIONS, shown=60),
            )
        self._deeper()
        self._next()
        arguments: list[str] = []
        first = self._peek()
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
            return _NOW
        if name == "today":
            return f"toDate({_NOW})"
        if name == "dateDiff" and (
            first.kind != "string" or first.text[1:-1].lower() not in _DATE_DIFF_UNITS
        ):
            units = ", ".join(f"'{unit}'" for unit in _DATE_DIFF_UNITS)
            raise _Mistake(first.offset, "dateDiff() begins with a unit", f"Allowed: {units}.")
        return f"{name}({', '.join(arguments)})"

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
        return f"{_INTERVALS[singular]}({token.text})"

    def _case(self) -> str:
        self._deeper()
        parts: list[str] = []
        while self._take("when"):
            condition = self._or()
            self._expect("then")
            parts.append(f"when {condition} then {self._or()}")
        if not parts:
            self._unexpected("when")
        if self._take("else"):
            parts.append(f"else {self._or()}")
        self._expect("end")
        self.depth -= 1
        return f"(case {' '.join(parts)} end)"


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
