"""The SQL of conditions as Python functions over columns: what `campaigns.evaluating` judges with.

`campaigns.predicates` writes a small language, every operation in parentheses; that is what is read here, so that what
is judged in process is the very text that ClickHouse would be asked. Each expression becomes a Python expression with
ClickHouse's types of results: three-valued logic, wrap-around of whole numbers, decimals as scaled whole numbers.

Nothing here depends on ClickHouse's own time zone: a `Date` is not turned into a time, and times are UTC or declined.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from campaigns.native_values import HELPERS, like_function, simple_pattern
from campaigns.predicates import FUNCTIONS

NATIVE: Final[dict[str, str]] = {
    # name in predicates.FUNCTIONS: what of it is judged here; everything else of it is declined
    "has": "lists and values of the same kind: texts, or numbers",
    "hasAny": "two lists of the same kind: texts, or numbers",
    "hasAll": "two lists of the same kind: texts, or numbers",
    "startsWith": "texts",
    "endsWith": "texts",
    "ifNull": "values with a common type",
    "nullIf": "values that can be compared",
    "match": "patterns of characters, classes, ?, and up to two of * and +, given as a text",
    "length": "texts and lists",
    "empty": "texts and lists",
    "notEmpty": "texts and lists",
    "lower": "texts",
    "upper": "texts",
    "trim": "texts",
    "isNull": "all but lists",
    "isNotNull": "all but lists",
    "abs": "whole numbers, decimals, floats",
    "floor": "whole numbers, decimals, floats",
    "ceil": "whole numbers, decimals, floats",
    "round": "whole numbers, decimals, floats; to 0 to 6 places",
    "toDate": "dates and times",
    "toDateTime": "times",
    "toString": "all but lists",
    "toFloat64": "numbers",
    "toInt64": "numbers",
    "toYear": "dates and times",
    "toMonth": "dates and times",
    "toDayOfMonth": "dates and times",
    "toDayOfWeek": "dates and times",
    "toHour": "times",
    "toStartOfDay": "times",
    "toStartOfMonth": "dates and times",
    "toStartOfYear": "dates and times",
    "toMonday": "dates and times",
    "least": "values with a common type, none of them null",
    "greatest": "values with a common type, none of them null",
    "coalesce": "values with a common type",
    "if": "values with a common type",
    "position": "texts",
    "dateDiff": "two times, or two dates by day and longer",
    "now": "as_of",
    "today": "as_of",
}
"""What of each function is judged in process. A function that is missing here is declined."""


class NotNative(Exception):  # noqa: N818  (no error: ClickHouse is asked)
    """A condition, or a part of it, that is not judged here."""


@dataclass(frozen=True)
class Type:
    """A ClickHouse type as far as it is known here, apart from Nullable and LowCardinality.

    Attributes:
        name: `uint`, `int`, `float`, `decimal`, `bool`, `truth` (the UInt8 of a comparison), `logic` (of and, or, not:
            UInt8 or Bool), `text`, `date` (days), `datetime` (seconds), `moment` (milliseconds), `list`, `interval`,
            `nothing` (of null).
        bits: of whole numbers.
        scale: of decimals, which have 18 digits.
        element: of lists.
        has_null_elements: of lists.
    """

    name: str
    bits: int = 0
    scale: int = 0
    element: Type | None = None
    has_null_elements: bool = False


FLOAT: Final = Type("float")
BOOL: Final = Type("bool")
TRUTH: Final = Type("truth")
LOGIC: Final = Type("logic")
TEXT: Final = Type("text")
DATE: Final = Type("date")
DATETIME: Final = Type("datetime")
MOMENT: Final = Type("moment")
NOTHING: Final = Type("nothing")
UINT8: Final = Type("uint", 8)
UINT16: Final = Type("uint", 16)
UINT64: Final = Type("uint", 64)
INT64: Final = Type("int", 64)

_BOOLEAN = ("bool", "truth", "logic")
_WHOLE = ("uint", "int", *_BOOLEAN)
_TIMES = ("date", "datetime", "moment")
_I64 = 2**63
_U64 = 2**64
_DAY = 86_400
_UNITS = {"Second": 1, "Minute": 60, "Hour": 3600, "Day": _DAY, "Week": 7 * _DAY}
_MONTHS = {"Month": 1, "Quarter": 3, "Year": 12}
_LONGEST_INTERVAL = 100 * 366 * _DAY


@lru_cache(maxsize=256)
def column_type(kind: str) -> tuple[Type, bool]:
    """A ClickHouse type by its name: the type, and whether it is Nullable.

    Raises:
        NotNative: it is not known here.
    """
    kind = re.sub(r"^LowCardinality\((.*)\)$", r"\1", kind)
    inner = re.sub(r"^Nullable\((.*)\)$", r"\1", kind)
    is_nullable = inner != kind
    if found := re.fullmatch(r"(U?)Int(8|16|32|64)", inner):
        return Type("uint" if found[1] else "int", int(found[2])), is_nullable
    if found := re.fullmatch(r"Decimal\((\d+), (\d+)\)", inner):
        if not 10 <= int(found[1]) <= 18:
            raise NotNative(kind)
        return Type("decimal", scale=int(found[2])), is_nullable
    if (found := re.fullmatch(r"Array\((.*)\)", inner)) and not is_nullable:
        element, has_null = column_type(found[1])
        if element not in (TEXT, FLOAT):
            raise NotNative(kind)
        return Type("list", element=element, has_null_elements=has_null), False
    known = {
        "Float64": FLOAT,
        "Bool": BOOL,
        "String": TEXT,
        "Date": DATE,
        "DateTime('UTC')": DATETIME,
        "DateTime64(3, 'UTC')": MOMENT,
    }
    if inner not in known:
        raise NotNative(kind)
    return known[inner], is_nullable


_PROPERTIES: Final[dict[str, tuple[str, Type, bool]]] = {
    "Nullable(String)": ("text", TEXT, True),
    "Nullable(Float64)": ("number", FLOAT, True),
    "Nullable(Bool)": ("bool", BOOL, True),
    "Array(Nullable(String))": ("texts", Type("list", element=TEXT, has_null_elements=True), False),
    "Array(Nullable(Float64))": ("numbers", Type("list", element=FLOAT, has_null_elements=True), False),
    "time": ("time", MOMENT, True),
    "length": ("length", UINT64, True),
}
"""How a property is read: the reader of `event_properties`, the type, whether it may be null."""


# values


LAZY, EAGER = 1, 2


@dataclass(frozen=True)
class _Node:
    """A compiled expression.

    Attributes:
        code: a Python expression; None is null.
        is_atom: a name or a literal: it may be written twice.
        value: of a constant.
        guards: where the value is null unless all of these hold; `inner` is the value then.
        joined: `and`, `or` or `not`, and of what.
        bound: of whole numbers and decimals: no value, a decimal's digits without the point, is larger.
        risk: whether ClickHouse raises for some values. `EAGER`: it looks at them whatever stands before them in `and`,
            `or` and `if`. `LAZY`: there it looks only at rows that it needs, as it does for divisions.
    """

    code: str
    type: Type
    is_nullable: bool = False
    is_atom: bool = False
    value: Any = None
    is_constant: bool = False
    guards: tuple[str, ...] = ()
    inner: str = ""
    joined: tuple[str, tuple[_Node, ...]] | None = None
    bound: int = 0
    risk: int = 0

    @property
    def true(self) -> str:
        """Python: whether it is true, neither false nor null."""
        if self.joined:
            word, parts = self.joined
            if word == "not":
                return parts[0].false
            return f"({f' {word} '.join(part.true for part in parts)})"
        if self.guards:
            return f"({' and '.join(self.guards)} and {self.inner})"
        return f"({self.code} is True)" if self.is_nullable else self.code

    @property
    def false(self) -> str:
        """Python: whether it is false, neither true nor null."""
        if self.joined:
            word, parts = self.joined
            if word == "not":
                return parts[0].true
            other = " or " if word == "and" else " and "
            return f"({other.join(part.false for part in parts)})"
        if self.guards:
            return f"({' and '.join(self.guards)} and not {self.inner})"
        return f"({self.code} is False)" if self.is_nullable else f"(not {self.code})"


_NULL = _Node("None", NOTHING, is_nullable=True, is_atom=True, is_constant=True)


# reading

_KEYS = r"(?:,\ '[A-Za-z_0-9]+')+"
_TOKEN = re.compile(
    rf"""\s*(?:
    (?P<length>if\(JSONType\(`event_properties`(?P<length_keys>{_KEYS})\)\ =\ 'Array',\ JSONLength\(`event_properties`
        (?P=length_keys)\),\ lengthUTF8\(JSONExtract\(`event_properties`(?P=length_keys),\ 'Nullable\(String\)'\)\)\))
  | (?P<time>parseDateTime64BestEffortOrNull\(JSONExtract\(`event_properties`(?P<time_keys>{_KEYS}),
        \ 'Nullable\(String\)'\),\ 3,\ 'UTC'\))
  | (?P<property>JSONExtract\(`event_properties`(?P<property_keys>{_KEYS}),\ '(?P<kind>[A-Za-z0-9()]+)'\))
  | (?P<now>\{{now:DateTime64\(3,\ 'UTC'\)\}})
  | (?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<word>[A-Za-z_][A-Za-z_0-9]*)
  | `(?P<column>[^`]*)`
  | '(?P<text>(?:[^'\\]|\\.)*)'
  | (?P<operator>!=|<=|>=|[-+*/%=<>(),\[\]])
  )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass
class _Compiler:
    """Reads the SQL that `predicates` writes; each method returns an expression."""

    sql: str
    types: Mapping[str, str]
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    temporaries: int = 0
    divisions: int = 0
    is_wary: bool = False

    def __post_init__(self) -> None:
        self.tokens: list[tuple[str, str, re.Match[str]]] = []
        offset = 0
        while offset < len(self.sql):
            found = _TOKEN.match(self.sql, offset)
            if found is None:
                raise NotNative(f"{self.sql[offset : offset + 20]!r} is not known")
            kind = next(
                name
                for name in (
                    "length",
                    "time",
                    "property",
                    "now",
                    "number",
                    "word",
                    "column",
                    "text",
                    "operator",
                )
                if found[name] is not None
            )
            self.tokens.append((kind, found[kind], found))
            offset = found.end()
        self.index = 0

    def whole(self) -> _Node:
        node = self.expression()
        if self.index != len(self.tokens):
            raise NotNative("more than an expression")
        return node

    def peek(self, ahead: int = 0) -> str:
        """The operator or word that comes, or ''."""
        place = self.index + ahead
        if place >= len(self.tokens):
            return ""
        kind, text, _ = self.tokens[place]
        return text if kind in ("operator", "word") else ""

    def take(self, text: str) -> bool:
        if self.peek() == text:
            self.index += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise NotNative(f"{text} was expected")

    # grammar

    def expression(self) -> _Node:
        parts = [self.comparison()]
        word = self.peek()
        if word not in ("and", "or"):
            return parts[0]
        while self.take(word):
            parts.append(self.comparison())
        if self.peek() in ("and", "or"):
            raise NotNative("and beside or")
        return self.joined(word, parts)

    def comparison(self) -> _Node:
        if self.take("not"):
            return self.negated(self.comparison())
        if self.take("-"):
            kind, text, _ = self.tokens[self.index]
            if kind == "number":
                self.index += 1
                return self.number(text, negative=True)
            return self.minus(self.operand())
        left = self.operand()
        operator = self.peek()
        if operator in ("=", "!=", "<", "<=", ">", ">="):
            self.index += 1
            return self.compared(operator, left, self.operand())
        if operator in ("+", "-", "*", "/", "%"):
            self.index += 1
            return self.calculated(operator, left, self.operand())
        if self.take("is"):
            is_negated = self.take("not")
            self.expect("null")
            return self.is_null(left, is_negated)
        is_negated = self.take("not")
        if self.take("in"):
            return self.within(left, self.values("(", ")"), is_negated)
        if self.peek() in ("like", "ilike"):
            word = self.peek()
            self.index += 1
            return self.like(left, self.operand(), is_negated, word == "ilike")
        if is_negated:
            raise NotNative("not of what?")
        return left

    def operand(self) -> _Node:
        if self.index >= len(self.tokens):
            raise NotNative("it ends early")
        kind, text, found = self.tokens[self.index]
        if kind == "operator" and text == "[":
            return self.array(self.values("[", "]"))
        self.index += 1
        if kind == "number":
            return self.number(text)
        if kind == "text":
            return self.text(_ESCAPED.sub(r"\1", text))
        if kind == "column":
            node_type, is_nullable = column_type(self.types[text]) if text in self.types else (NOTHING, True)
            if node_type is NOTHING:
                raise NotNative(f"{text} has no type")
            return self.column(("column", text), node_type, is_nullable)
        if kind == "now":
            return self.column(("column", "as_of"), MOMENT, False)
        if kind in ("length", "time", "property"):
            how = found["kind"] if kind == "property" else kind
            if how not in _PROPERTIES:
                raise NotNative(how)
            reader, node_type, is_nullable = _PROPERTIES[how]
            path = ".".join(re.findall(r"'([^']*)'", found[f"{kind}_keys"]))
            return self.column((reader, path), node_type, is_nullable)
        if kind == "operator":
            if text != "(":
                raise NotNative(f"{text} is not expected")
            node = self.case() if self.take("case") else self.expression()
            self.expect(")")
            return node
        if text in ("true", "false"):
            value = text == "true"
            return _Node(str(value), BOOL, is_atom=True, value=value, is_constant=True)
        if text == "null":
            return _NULL
        self.expect("(")
        arguments: list[_Node] = []
        interval = re.fullmatch(r"toInterval(\w+)", text)
        while not self.take(")"):
            if arguments:
                self.expect(",")
            arguments.append(self.expression())
        if interval:
            return _Node("", Type("interval"), value=(interval[1], arguments[0].value))
        return self.called(text, arguments)

    def values(self, opening: str, closing: str) -> list[_Node]:
        self.expect(opening)
        found: list[_Node] = []
        while not self.take(closing):
            if found:
                self.expect(",")
            negative = self.take("-")
            kind, text, _ = self.tokens[self.index]
            self.index += 1
            if kind == "number":
                found.append(self.number(text, negative=negative))
            elif kind == "text":
                found.append(self.text(_ESCAPED.sub(r"\1", text)))
            else:
                raise NotNative("a list of what?")
        return found

    # leaves

    def column(self, key: tuple[str, str], node_type: Type, is_nullable: bool) -> _Node:
        name = self.names.setdefault(key, f"v{len(self.names)}")
        return _Node(name, node_type, is_nullable, is_atom=True)

    def number(self, text: str, *, negative: bool = False) -> _Node:
        if not text.isdigit():
            value = float(text)
            if math.isinf(value):
                raise NotNative("a number without end")
            value = -value if negative else value
            return _Node(repr(value), FLOAT, is_atom=True, value=value, is_constant=True)
        number = -int(text) if negative else int(text)
        if not -_I64 <= number < _U64:
            raise NotNative("a whole number of more than 64 bits")
        bits = (8, 16, 32, 64)
        if number >= 0:
            node_type = Type("uint", next(one for one in bits if number < 2**one))
        else:
            node_type = Type("int", next(one for one in bits if number >= -(2 ** (one - 1))))
        code = f"({number})" if number < 0 else str(number)
        return _Node(code, node_type, is_atom=True, value=number, is_constant=True)

    def text(self, text: str) -> _Node:
        return _Node(repr(text), TEXT, is_atom=True, value=text, is_constant=True)

    def array(self, nodes: list[_Node]) -> _Node:
        if not nodes:
            raise NotNative("an empty list")
        if all(one.type == TEXT for one in nodes):
            element = TEXT
        elif any(one.type == TEXT for one in nodes):
            raise NotNative("a list of texts and numbers")
        else:
            element = self.common([one.type for one in nodes])
            self.small(element)
        values = [one.value for one in nodes]
        return _Node(
            self.given(values), Type("list", element=element), is_atom=True, value=values, is_constant=True
        )

    def made(self, make: Callable[[str], Any], text: str) -> Any:
        try:
            return make(text)
        except ValueError as error:
            raise NotNative(str(error)) from None

    def given(self, value: Any) -> str:
        """A name under which the compiled function finds a value."""
        name = f"c{len(self.objects)}"
        self.objects[name] = value
        return name

    def temporary(self) -> str:
        self.temporaries += 1
        return f"t{self.temporaries}"

    # how nulls go through

    def strict(
        self,
        nodes: Sequence[_Node],
        node_type: Type,
        build: Callable[..., str],
        *,
        bound: int = 0,
        risk: int = 0,
    ) -> _Node:
        """What is null where any argument is."""
        risk = max(risk, *(node.risk for node in nodes))
        guards: list[str] = []
        atoms: list[str] = []
        if len(nodes) > 1 and any(node.risk for node in nodes):
            before, nodes = self.beforehand(nodes)
            guards.append(f"({', '.join(before)}, True)[-1]")
        for node in nodes:
            if node.type is NOTHING:
                raise NotNative("null as an argument")
            if node.is_nullable:
                if node.is_atom:
                    guards.append(f"{node.code} is not None")
                    atoms.append(node.code)
                else:
                    name = self.temporary()
                    guards.append(f"({name} := {node.code}) is not None")
                    atoms.append(name)
            else:
                atoms.append(node.code)
        inner = build(*atoms)
        if not guards:
            return _Node(inner, node_type, bound=bound, risk=risk)
        return _Node(
            f"({inner} if {' and '.join(guards)} else None)",
            node_type,
            any(node.is_nullable for node in nodes),
            guards=tuple(guards),
            inner=inner,
            bound=bound,
            risk=risk,
        )

    def beforehand(self, nodes: Sequence[_Node], least: int = LAZY) -> tuple[list[str], list[_Node]]:
        """Assignments that judge risky expressions whatever comes of those beside them, and the names to use then."""
        before: list[str] = []
        held: list[_Node] = []
        for node in nodes:
            if node.risk >= least:
                name = self.temporary()
                before.append(f"({name} := {node.code})")
                held.append(_Node(name, node.type, node.is_nullable, is_atom=True, bound=node.bound))
            else:
                held.append(node)
        return before, held

    def after(self, before: list[str], node: _Node, nodes: Sequence[_Node]) -> _Node:
        """An expression of these nodes, judged after others if there are any."""
        risk = max(one.risk for one in nodes)
        if not before:
            return replace(node, risk=risk)
        code = f"({', '.join(before)}, {node.code})[-1]"
        return _Node(code, node.type, node.is_nullable, risk=risk)

    def joined(self, word: str, parts: Sequence[_Node]) -> _Node:
        given = [self.boolean(part) for part in parts]
        before, nodes = self.beforehand(given, EAGER)
        is_nullable = any(node.is_nullable for node in nodes)
        if not is_nullable:
            code = f"({f' {word} '.join(node.code for node in nodes)})"
        else:
            # null unless one part decides
            names = [self.temporary() for _ in nodes]
            decides, otherwise = ("False", "True") if word == "and" else ("True", "False")
            tests = " or ".join(
                f"({name} := {node.code}) is {decides}" for name, node in zip(names, nodes, strict=True)
            )
            nulls = " or ".join(f"{name} is None" for name in names)
            code = f"({decides} if {tests} else None if {nulls} else {otherwise})"
        return self.after(before, _Node(code, LOGIC, is_nullable, joined=(word, tuple(nodes))), given)

    def boolean(self, node: _Node) -> _Node:
        """True, False or None."""
        if node.type.name in _BOOLEAN:
            return node
        if node.type is NOTHING:
            return _Node("None", LOGIC, is_nullable=True, is_atom=True)
        if node.type.name not in ("uint", "int"):
            raise NotNative("neither true nor false")
        return self.strict([node], TRUTH, lambda one: f"({one} != 0)")

    def negated(self, node: _Node) -> _Node:
        if node.type is NOTHING:
            return _NULL
        node = self.boolean(node)
        if node.is_nullable:
            inner = self.strict([node], LOGIC, lambda one: f"(not {one})")
            return _Node(inner.code, LOGIC, is_nullable=True, joined=("not", (node,)), risk=node.risk)
        return _Node(f"(not {node.code})", LOGIC, joined=("not", (node,)), risk=node.risk)

    # numbers

    def small(self, *types: Type) -> None:
        """Refuse whole numbers of which a float does not have all."""
        for one in types:
            if one.name in ("uint", "int") and one.bits > 32:
                raise NotNative("whole numbers of 64 bits beside floats")

    def minus(self, node: _Node) -> _Node:
        name = node.type.name
        if name == "uint":
            node_type = Type("int", min(64, node.type.bits * 2))
        elif name in ("int", "float", "decimal"):
            node_type = node.type
        elif name in _BOOLEAN:
            node_type = Type("int", 16)
        else:
            raise NotNative("minus what?")
        if name == "decimal":
            return self.fitting([node], node_type, self.bound(node), lambda one: f"-{one}")
        if node_type.name == "int" and name != "uint":
            width = 2 ** (node_type.bits - 1)
            return self.strict([node], node_type, lambda one: f"((-{one} + {width}) % {width * 2} - {width})")
        if name == "uint" and node.type.bits == 64:
            return self.strict([node], node_type, lambda one: f"_signed(-{one})")
        return self.strict([node], node_type, lambda one: f"(-{one})")

    def as_float(self, node: _Node) -> Callable[[str], str]:
        if node.type == FLOAT:
            return lambda one: one
        if node.type.name == "decimal":
            unit = 10**node.type.scale
            return lambda one: f"_real({one}, {unit})"
        return lambda one: f"float({one})"

    def bound(self, node: _Node) -> int:
        """No value of a whole number or a decimal is larger."""
        if node.is_constant:
            return abs(node.value)
        if node.bound:
            return node.bound
        if node.type.name == "decimal":
            return 10**18
        return 2**node.type.bits if node.type.bits else 1

    def fitting(
        self, nodes: Sequence[_Node], node_type: Type, bound: int, build: Callable[..., str]
    ) -> _Node:
        """A decimal, which is looked at for overflow only if it might."""
        if bound < _I64:
            return self.strict(nodes, node_type, lambda *codes: f"({build(*codes)})", bound=bound)
        return self.strict(nodes, node_type, lambda *codes: f"_fit({build(*codes)})", bound=_I64, risk=EAGER)

    def scaled(self, node: _Node, scale: int) -> _Node:
        """A whole number or a decimal as a decimal of a scale."""
        factor = 10 ** (scale - (node.type.scale if node.type.name == "decimal" else 0))
        target = Type("decimal", scale=scale)
        if node.is_constant:
            value = node.value * factor
            if not -_I64 <= value < _I64:
                raise NotNative("a decimal that overflows")
            code = f"({value})"
            return _Node(code, target, is_atom=True, value=value, is_constant=True)
        if factor == 1 and node.type.name == "decimal":
            return node
        return self.fitting([node], target, self.bound(node) * factor, lambda one: f"{one} * {factor}")

    def calculated(self, operator: str, left: _Node, right: _Node) -> _Node:
        names = (left.type.name, right.type.name)
        if left.type is NOTHING or right.type is NOTHING:
            other = left if right.type is NOTHING else right
            if other.type.name in (*_WHOLE, "float", "decimal", "nothing"):
                return self.nothing(left, right)
            raise NotNative("calculating with null")
        if set(names) & {*_TIMES, "interval"}:
            return self.shifted(operator, left, right)
        if not all(name in (*_WHOLE, "float", "decimal") for name in names):
            raise NotNative("calculating with what is no number")
        both = [left, right]
        if "float" in names or (operator == "/" and "decimal" not in names):
            if operator == "%":
                raise NotNative("remainders of floats")
            first, second = self.as_float(left), self.as_float(right)
            if operator == "/":
                return self.strict(both, FLOAT, lambda a, b: f"_ratio({first(a)}, {second(b)})")
            return self.strict(both, FLOAT, lambda a, b: f"({first(a)} {operator} {second(b)})")
        if "decimal" in names:
            return self.calculated_decimal(operator, left, right)
        if operator == "%":
            return self.remainder(left, right)
        bits = [one.type.bits if one.type.name in ("uint", "int") else 8 for one in both]
        is_signed = operator == "-" or "int" in names
        node_type = Type("int" if is_signed else "uint", min(64, max(bits) * 2))
        if max(bits) < 64:
            return self.strict(both, node_type, lambda a, b: f"({a} {operator} {b})")
        if is_signed:
            return self.strict(both, node_type, lambda a, b: f"_signed({a} {operator} {b})")
        return self.strict(both, node_type, lambda a, b: f"(({a} {operator} {b}) % {_U64})")

    def remainder(self, left: _Node, right: _Node) -> _Node:
        if left.type.name in _BOOLEAN or right.type.name in _BOOLEAN or right.type.bits == 64:
            raise NotNative("a remainder of these types")
        if right.is_constant and right.value == 0:
            raise NotNative("a remainder of these types")
        if left.type.name == "uint":
            if right.type.name != "uint":
                raise NotNative("a remainder of these types")
            node_type = right.type
        else:
            node_type = Type("int", min(64, right.type.bits * 2))
        return self.strict(
            [left, right], node_type, lambda a, b: f"_remainder({a}, {b})", risk=self.division()
        )

    def nothing(self, *nodes: _Node) -> _Node:
        """What comes of null and something."""
        if any(node.risk for node in nodes):
            raise NotNative("null beside what ClickHouse may refuse")
        return _NULL

    def division(self) -> int:
        """The risk of a division: ClickHouse may look at all rows of an expression that it finds in two places."""
        self.divisions += 1
        return EAGER if self.is_wary else LAZY

    def calculated_decimal(self, operator: str, left: _Node, right: _Node) -> _Node:
        one, other = (node.type.scale if node.type.name == "decimal" else 0 for node in (left, right))
        if operator == "*":
            if one + other > 18:
                raise NotNative("a decimal of more than 18 places")
            node_type = Type("decimal", scale=one + other)
            bound = self.bound(left) * self.bound(right)
            return self.fitting([left, right], node_type, bound, lambda a, b: f"{a} * {b}")
        if operator in ("+", "-"):
            scale = max(one, other)
            both = [self.scaled(left, scale), self.scaled(right, scale)]
            bound = self.bound(both[0]) + self.bound(both[1])
            return self.fitting(both, Type("decimal", scale=scale), bound, lambda a, b: f"{a} {operator} {b}")
        if operator == "/" and left.type.name == "decimal":
            if one < other or one + other > 18 or (right.is_constant and right.value == 0):
                raise NotNative("a quotient of these decimals")
            unit = 10**other
            return self.strict(
                [left, right],
                left.type,
                lambda a, b: f"_quotient({a} * {unit}, {b})",
                bound=_I64,
                risk=self.division(),
            )
        raise NotNative("calculating with these decimals")

    def shifted(self, operator: str, left: _Node, right: _Node) -> _Node:
        """Times and intervals."""
        if right.type.name != "interval":
            if operator == "-" and left.type == right.type == MOMENT:
                return self.strict([left, right], Type("decimal", scale=3), lambda a, b: f"({a} - {b})")
            if operator == "-" and left.type == right.type == DATE:
                return self.strict([left, right], Type("int", 32), lambda a, b: f"({a} - {b})")
            if not (operator == "+" and left.type.name == "interval"):
                raise NotNative("calculating with times")
            left, right = right, left
        if left.type.name not in _TIMES or operator not in ("+", "-"):
            raise NotNative("calculating with times")
        unit, count = right.value
        if not isinstance(count, int) or count * _UNITS.get(unit, 30 * _DAY) > _LONGEST_INTERVAL:
            raise NotNative("an interval that is too long")
        if unit in _MONTHS and count * _MONTHS[unit] > 1200:
            raise NotNative("an interval that is too long")
        sign = operator
        if left.type == DATE:
            if unit in _MONTHS:
                return self.strict([left], DATE, lambda a: f"_add_months({a}, {sign}{count * _MONTHS[unit]})")
            if unit not in ("Day", "Week"):
                raise NotNative("hours and a date")
            days = count * _UNITS[unit] // _DAY
            return self.strict([left], DATE, lambda a: f"_day(_day({a}) {sign} {days})")
        check, per_second = ("_moment", 1000) if left.type == MOMENT else ("_second", 1)
        if unit in _MONTHS:
            per_day = _DAY * per_second
            return self.strict(
                [left], left.type, lambda a: f"_add_months_to({a}, {sign}{count * _MONTHS[unit]}, {per_day})"
            )
        length = count * _UNITS[unit] * per_second
        return self.strict([left], left.type, lambda a: f"{check}({a} {sign} {length})")

    # comparisons

    def compared(self, operator: str, left: _Node, right: _Node) -> _Node:
        python = "==" if operator == "=" else operator
        if left.type is NOTHING or right.type is NOTHING:
            return self.nothing(left, right)
        names = {left.type.name, right.type.name}
        first: Callable[[str], str]
        second: Callable[[str], str]
        first = second = lambda one: one
        if names <= {*_WHOLE, "float"} or names == {"text"}:
            pass
        elif "decimal" in names and names <= {*_WHOLE, "float", "decimal"}:
            if "float" in names:
                first, second = self.as_float(left), self.as_float(right)
            else:
                scale = max(one.type.scale for one in (left, right))
                left, right = self.scaled(left, scale), self.scaled(right, scale)
        elif names <= set(_TIMES):
            units = {"date": _DAY * 1000, "datetime": 1000, "moment": 1}
            factors = [1, 1] if len(names) == 1 else [units[one.type.name] for one in (left, right)]

            def multiplied(factor: int) -> Callable[[str], str]:
                return (lambda one: one) if factor == 1 else (lambda one: f"({one} * {factor})")

            first, second = (multiplied(factor) for factor in factors)
        elif left.type.name in _TIMES and right.type == TEXT and right.is_constant:
            right = self.instant(right.value, left.type)
        elif right.type.name in _TIMES and left.type == TEXT and left.is_constant:
            left = self.instant(left.value, right.type)
        else:
            raise NotNative("a comparison of these types")
        return self.strict([left, right], TRUTH, lambda a, b: f"({first(a)} {python} {second(b)})")

    def instant(self, text: str, node_type: Type) -> _Node:
        """A text that stands for a date or a time."""
        pattern = r"\d{4}-\d\d-\d\d" if node_type == DATE else r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?"
        if not re.fullmatch(pattern, text, re.ASCII) or not "1970-01-02" <= text < "2100":
            raise NotNative("a text as a time")
        try:
            moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
        except ValueError:
            raise NotNative("a text that is no time") from None
        seconds = int(moment.timestamp())
        value = {"date": seconds // _DAY, "datetime": seconds, "moment": seconds * 1000}[node_type.name]
        return _Node(str(value), node_type, is_atom=True, value=value, is_constant=True)

    def is_null(self, node: _Node, is_negated: bool) -> _Node:
        if node.type.name == "list":
            raise NotNative("a list that is null")
        if not node.is_nullable:
            # it is judged all the same: a row may be declined
            code = f"(({node.code}), {is_negated})[1]"
        else:
            code = f"({node.code} is {'not ' if is_negated else ''}None)"
        return _Node(code, TRUTH, risk=node.risk)

    def within(self, left: _Node, values: list[_Node], is_negated: bool) -> _Node:
        name = left.type.name
        are_texts = [one.type == TEXT for one in values]
        found: set[Any] = set()
        has_zero = False
        if name == "text":
            if not all(are_texts):
                raise NotNative("texts and numbers")
            found = {one.value for one in values}
        elif name in ("uint", "int", "float", "decimal"):
            if any(are_texts):
                raise NotNative("texts and numbers")
            unit = 10**left.type.scale
            for one in values:
                if abs(one.value) >= 2**53:
                    raise NotNative("a number that is too large")
                value = one.value
                if name == "decimal":
                    if isinstance(value, float) and not (value * unit).is_integer():
                        raise NotNative("a float among decimals")
                    value = int(value * unit)
                if value == 0 and name == "float":
                    if math.copysign(1, value) < 0:
                        raise NotNative("minus zero")
                    # sets tell minus zero from zero
                    has_zero = True
                found.add(value)
        else:
            raise NotNative("in for this type")
        values_name = self.given(frozenset(found))
        word = "not in" if is_negated else "in"
        check = "_no_minus_zero" if has_zero else ""
        return self.strict([left], TRUTH, lambda one: f"({check}({one}) {word} {values_name})")

    # texts

    def like(self, left: _Node, pattern: _Node, is_negated: bool, ignores_case: bool) -> _Node:
        if left.type != TEXT or not pattern.is_constant or pattern.type != TEXT:
            raise NotNative("like with what is no text")
        text: str = pattern.value
        if ignores_case and not text.isascii():
            raise NotNative("ilike beyond ASCII")
        judge = self.made(like_function, text.lower() if ignores_case else text)
        name = self.given(judge)
        negation = "not " if is_negated else ""
        if ignores_case:
            return self.strict([left], TRUTH, lambda one: f"({negation}{name}(_ascii({one}).lower()))")
        return self.strict([left], TRUTH, lambda one: f"({negation}{name}({one}))")

    # functions

    def called(self, name: str, arguments: list[_Node]) -> _Node:
        if name not in NATIVE:
            raise NotNative(f"{name}()")
        least, most = FUNCTIONS[name]
        if not least <= len(arguments) <= most or any(one.type.name == "interval" for one in arguments):
            raise NotNative(f"arguments of {name}()")
        method = getattr(self, f"call_{_METHODS.get(name, name)}")
        return method(name, *arguments)

    def call_condition(self, _name: str, condition: _Node, one: _Node, other: _Node) -> _Node:
        return self.chosen([(condition, one)], other)

    def case(self) -> _Node:
        branches: list[tuple[_Node, _Node]] = []
        while self.take("when"):
            condition = self.expression()
            self.expect("then")
            branches.append((condition, self.expression()))
        otherwise = self.expression() if self.take("else") else _NULL
        self.expect("end")
        return self.chosen(branches, otherwise)

    def chosen(self, branches: list[tuple[_Node, _Node]], otherwise: _Node) -> _Node:
        results = [*(result for _, result in branches), otherwise]
        common = self.common([one.type for one in results])
        conditions: list[_Node] = []
        for condition, _ in branches:
            if condition.type.name not in _BOOLEAN and condition.type != UINT8:
                raise NotNative("a condition that is neither true nor false")
            conditions.append(self.boolean(condition))
        given = [*conditions, *(self.cast(one, common) for one in results)]
        before, nodes = self.beforehand(given, EAGER)
        conditions, results = nodes[: len(conditions)], nodes[len(conditions) :]
        code = results.pop().code
        for condition, result in zip(reversed(conditions), reversed(results), strict=True):
            code = f"({result.code} if {condition.true} else {code})"
        is_nullable = any(one.is_nullable for one in nodes[len(conditions) :])
        return self.after(before, _Node(code, common, is_nullable), given)

    def common(self, types: Sequence[Type]) -> Type:
        """The type that values of these types have together."""
        types = [one for one in dict.fromkeys(types) if one is not NOTHING]
        if not types:
            raise NotNative("nothing but null")
        if len(types) == 1:
            return types[0]
        names = {one.name for one in types}
        if names <= set(_BOOLEAN):
            return LOGIC
        if not names <= {*_WHOLE, "float", "decimal"}:
            raise NotNative("values without a common type")
        wholes = [UINT8 if one.name in _BOOLEAN else one for one in types if one.name in _WHOLE]
        if names & {"float", "decimal"}:
            self.small(*wholes)
            if {"float", "decimal"} <= names:
                raise NotNative("floats and decimals")
            if "float" in names:
                return FLOAT
            return Type("decimal", scale=max(one.scale for one in types))
        signed = [one.bits for one in wholes if one.name == "int"]
        unsigned = [one.bits for one in wholes if one.name == "uint"]
        if not signed:
            if max(unsigned) == 8 and names & {"bool", "logic"}:
                raise NotNative("whole numbers that become true or false")
            return Type("uint", max(unsigned))
        bits = max(*signed, *(2 * one for one in unsigned))
        if bits > 64:
            raise NotNative("signed and unsigned whole numbers of 64 bits")
        return Type("int", bits)

    def cast(self, node: _Node, target: Type) -> _Node:
        """A value as the common type."""
        if node.type is NOTHING or node.type == target:
            return node
        if target == FLOAT:
            return self.strict([node], target, self.as_float(node))
        if target.name == "decimal":
            return self.scaled(node, target.scale)
        return node

    def call_coalesce(self, _name: str, *nodes: _Node) -> _Node:
        kept: list[_Node] = []
        left: list[_Node] = []
        for node in nodes:
            if kept and not kept[-1].is_nullable:
                left.append(node)
            elif node.type is not NOTHING:
                kept.append(node)
        if not kept:
            raise NotNative("nothing but null")
        if any(node.type.name == "list" for node in kept):
            raise NotNative("lists that are null")
        common = self.common([one.type for one in kept])
        given = [self.cast(node, common) for node in kept]
        # what comes after a value that is never null is looked at all the same
        before, kept = self.beforehand(given)
        before += self.beforehand(left)[0]
        code = kept[-1].code
        for node in reversed(kept[:-1]):
            temporary = self.temporary()
            code = f"({temporary} if ({temporary} := {node.code}) is not None else {code})"
        return self.after(before, _Node(code, common, kept[-1].is_nullable), [*given, *left])

    def call_null_if(self, _name: str, one: _Node, other: _Node) -> _Node:
        if one.type.name == "list" or one.type is NOTHING:
            raise NotNative("nullIf() of this type")
        if other.type is NOTHING:
            return _Node(one.code, one.type, is_nullable=True, is_atom=one.is_atom)
        before: list[str] = []
        held = one
        if not one.is_atom:
            temporary = self.temporary()
            before.append(f"({temporary} := {one.code})")
            held = _Node(temporary, one.type, one.is_nullable, is_atom=True, bound=one.bound)
        is_equal = self.compared("=", held, other)
        if is_equal.type is NOTHING:
            raise NotNative("nullIf() of these types")
        made = _Node(f"(None if {is_equal.true} else {held.code})", one.type, is_nullable=True)
        risk = max(one.risk, is_equal.risk)
        code = f"({', '.join(before)}, {made.code})[-1]" if before else made.code
        return _Node(code, one.type, is_nullable=True, risk=risk)

    def call_is_null(self, name: str, node: _Node) -> _Node:
        return self.is_null(node, name == "isNotNull")

    def call_has(self, _name: str, where: _Node, what: _Node) -> _Node:
        if where.type.name != "list" or what.type is NOTHING:
            raise NotNative("has() of these types")
        element = where.type.element
        assert element is not None
        if (element == TEXT) != (what.type == TEXT) or what.type.name not in ("text", "float", "uint", "int"):
            raise NotNative("has() of these types")
        self.small(element)
        if not what.is_constant:
            self.small(what.type)
        elif what.type != TEXT and abs(what.value) >= 2**53:
            raise NotNative("a number that is too large")
        # null is found where the list holds null; in a list that cannot, ClickHouse finds what stands behind the null
        value = f"_sane({what.code})" if what.type == FLOAT and not what.is_nullable else what.code
        if what.type == FLOAT and what.is_nullable:
            raise NotNative("has() with a float that may be null")
        if what.is_nullable and not where.type.has_null_elements:
            value = f"_some({value})"
        return _Node(f"({value} in {where.code})", TRUTH, risk=what.risk)

    def call_has_any(self, name: str, one: _Node, other: _Node) -> _Node:
        if one.type.name != "list" or other.type.name != "list":
            raise NotNative(f"{name}() of these types")
        assert one.type.element is not None and other.type.element is not None
        if (one.type.element == TEXT) != (other.type.element == TEXT):
            raise NotNative(f"{name}() of these types")
        if one.type.element != TEXT and not (one.is_constant or other.is_constant):
            raise NotNative(f"{name}() of lists of numbers")
        held = self.given(frozenset(other.value)) if other.is_constant else f"frozenset({other.code})"
        call = f"{held}.issubset({one.code})" if name == "hasAll" else f"(not {held}.isdisjoint({one.code}))"
        return _Node(call, TRUTH)

    def texts(self, *nodes: _Node) -> None:
        if any(node.type != TEXT for node in nodes):
            raise NotNative("no text")

    def call_starts_with(self, name: str, one: _Node, other: _Node) -> _Node:
        self.texts(one, other)
        return self.strict([one, other], TRUTH, lambda a, b: f"{a}.{name.lower()}({b})")

    def call_match(self, _name: str, one: _Node, pattern: _Node) -> _Node:
        self.texts(one, pattern)
        if not pattern.is_constant:
            raise NotNative("a pattern that is no text")
        is_found = self.given(self.made(simple_pattern, pattern.value))
        return self.strict([one], TRUTH, lambda a: f"{is_found}({a})")

    def call_length(self, name: str, node: _Node) -> _Node:
        if node.type.name not in ("text", "list"):
            raise NotNative(f"{name}() of this type")
        if name == "empty":
            return self.strict([node], TRUTH, lambda a: f"(not {a})")
        if name == "notEmpty":
            return self.strict([node], TRUTH, lambda a: f"(not not {a})")
        measure = "_bytes" if node.type == TEXT else "len"
        return self.strict([node], UINT64, lambda a: f"{measure}({a})")

    def call_lower(self, name: str, node: _Node) -> _Node:
        self.texts(node)
        if name == "trim":
            return self.strict([node], TEXT, lambda a: f"{a}.strip(' ')")
        return self.strict([node], TEXT, lambda a: f"_{name}({a})")

    def call_position(self, _name: str, one: _Node, other: _Node) -> _Node:
        self.texts(one, other)
        return self.strict([one, other], UINT64, lambda a, b: f"_position({a}, {b})")

    def call_abs(self, _name: str, node: _Node) -> _Node:
        kind = node.type.name
        if kind == "int":
            return self.strict([node], Type("uint", node.type.bits), lambda a: f"abs({a})")
        if kind == "decimal":
            return self.fitting([node], node.type, self.bound(node), lambda a: f"abs({a})")
        if kind not in ("uint", "float"):
            raise NotNative("abs() of this type")
        return self.strict([node], node.type, lambda a: f"abs({a})")

    def call_round(self, name: str, node: _Node, places: _Node | None = None) -> _Node:
        kind = node.type.name
        if places is not None and not (
            places.is_constant and isinstance(places.value, int) and 0 <= places.value <= 6
        ):
            raise NotNative("round() to places that are no small whole number")
        count: int = places.value if places is not None else 0
        if kind in ("uint", "int"):
            return self.strict([node], node.type, lambda a: a)
        if kind == "float":
            calls = {"floor": "_floored({})", "ceil": "_ceiled({})", "round": f"_rounded({{}}, {10**count})"}
            return self.strict([node], FLOAT, lambda a: calls[name].format(a))
        if kind != "decimal":
            raise NotNative(f"{name}() of this type")
        unit = 10 ** max(node.type.scale - count, 0)
        bound = self.bound(node) + unit
        calls = {"floor": "{} // {} * {}", "ceil": "-(-{} // {}) * {}", "round": "_rounded_decimal({}, {})"}
        return self.fitting([node], node.type, bound, lambda a: calls[name].format(a, unit, unit))

    def call_least(self, name: str, *nodes: _Node) -> _Node:
        if any(node.type is NOTHING or node.type.name in ("list", *_BOOLEAN) for node in nodes):
            raise NotNative(f"{name}() of this type")
        common = self.common([node.type for node in nodes])
        if len(nodes) > 2 and common.name == "decimal" and any(node.type != common for node in nodes):
            raise NotNative(f"{name}() of these types")
        # versions differ in what they make of null
        parts: list[str] = []
        risk = 0
        for node in nodes:
            cast = self.cast(node, common)
            code, risk = cast.code, max(risk, cast.risk)
            if node.is_nullable:
                code = f"_some({code})"
            parts.append(f"_sane({code})" if common == FLOAT else code)
        function = "min" if name == "least" else "max"
        is_nullable = any(node.is_nullable for node in nodes)
        return _Node(f"{function}({', '.join(parts)})", common, is_nullable, risk=risk)

    def call_to_int64(self, name: str, node: _Node) -> _Node:
        kind = node.type.name
        if name == "toFloat64":
            if kind not in (*_WHOLE, "float", "decimal"):
                raise NotNative("toFloat64() of this type")
            return self.strict([node], FLOAT, self.as_float(node))
        if kind == "float":
            return self.strict([node], INT64, lambda a: f"_whole({a})")
        if kind == "decimal":
            unit = 10**node.type.scale
            return self.strict([node], INT64, lambda a: f"_quotient({a}, {unit})")
        if kind not in _WHOLE:
            raise NotNative("toInt64() of this type")
        if node.type == UINT64:
            return self.strict([node], INT64, lambda a: f"_signed({a})")
        return self.strict([node], INT64, lambda a: a)

    def call_to_string(self, _name: str, node: _Node) -> _Node:
        kind = node.type.name
        scale = node.type.scale
        writers: dict[str, Callable[[str], str]] = {
            "text": lambda a: a,
            "uint": lambda a: f"str({a})",
            "int": lambda a: f"str({a})",
            "truth": lambda a: f"('1' if {a} else '0')",
            "bool": lambda a: f"('true' if {a} else 'false')",
            "float": lambda a: f"number_text({a})",
            "decimal": lambda a: f"_decimal_text({a}, {scale})",
            "date": lambda a: f"_date_text({a})",
            "datetime": lambda a: f"_second_text({a})",
            "moment": lambda a: f"_moment_text({a})",
        }
        if kind not in writers:
            raise NotNative("toString() of this type")
        return self.strict([node], TEXT, writers[kind])

    # times

    def days(self, node: _Node) -> Callable[[str], str]:
        divisors = {"date": 1, "datetime": _DAY, "moment": _DAY * 1000}
        if node.type.name not in divisors:
            raise NotNative("no time")
        divisor = divisors[node.type.name]
        return (lambda a: f"_day({a})") if divisor == 1 else (lambda a: f"_day({a} // {divisor})")

    def call_to_date(self, _name: str, node: _Node) -> _Node:
        days = self.days(node)
        return self.strict([node], DATE, days)

    def call_to_date_time(self, _name: str, node: _Node) -> _Node:
        if node.type == MOMENT:
            return self.strict([node], DATETIME, lambda a: f"_second({a} // 1000)")
        if node.type == DATETIME:
            return node
        raise NotNative("toDateTime() of this type")

    def call_to_year(self, name: str, node: _Node) -> _Node:
        days = self.days(node)
        if name == "toDayOfWeek":
            return self.strict([node], UINT8, lambda a: f"(({days(a)} + 3) % 7 + 1)")
        place = ("toYear", "toMonth", "toDayOfMonth").index(name)
        return self.strict([node], UINT8 if place else UINT16, lambda a: f"_civil({days(a)})[{place}]")

    def call_to_hour(self, _name: str, node: _Node) -> _Node:
        if node.type == MOMENT:
            return self.strict([node], UINT8, lambda a: f"(_moment({a}) // 3600000 % 24)")
        if node.type == DATETIME:
            return self.strict([node], UINT8, lambda a: f"({a} // 3600 % 24)")
        raise NotNative("toHour() of this type")

    def call_to_start(self, name: str, node: _Node) -> _Node:
        if name == "toStartOfDay":
            if node.type == MOMENT:
                return self.strict([node], DATETIME, lambda a: f"(_moment({a}) // {_DAY * 1000} * {_DAY})")
            if node.type == DATETIME:
                return self.strict([node], DATETIME, lambda a: f"({a} // {_DAY} * {_DAY})")
            raise NotNative("toStartOfDay() of this type")
        days = self.days(node)
        if name == "toMonday":
            # of the first days of 1970 it is before the first date
            return self.strict([node], DATE, lambda a: f"_day(({days(a)} + 3) // 7 * 7 - 3)")
        if name == "toStartOfMonth":
            return self.strict([node], DATE, lambda a: f"_days(*_civil({days(a)})[:2], 1)")
        return self.strict([node], DATE, lambda a: f"_days(_civil({days(a)})[0], 1, 1)")

    def call_date_diff(self, _name: str, unit: _Node, one: _Node, other: _Node) -> _Node:
        word = str(unit.value).lower()
        if {one.type.name, other.type.name} == {"date"}:
            if word not in ("day", "week", "month", "quarter", "year"):
                raise NotNative("dateDiff() of dates by less than a day")
        elif not {one.type.name, other.type.name} <= {"datetime", "moment"}:
            # where a date begins depends on the server's time zone
            raise NotNative("dateDiff() of these types")
        if word in ("week", "month", "quarter", "year"):
            first, second = self.days(one), self.days(other)
            return self.strict(
                [one, other],
                INT64,
                lambda a, b: f"(_relative({second(b)}, {word!r}) - _relative({first(a)}, {word!r}))",
            )
        length = {"second": 1, "minute": 60, "hour": 3600, "day": _DAY}[word]

        def counted(node: _Node) -> Callable[[str], str]:
            if node.type == DATE:
                return lambda a: f"_day({a})"
            if node.type == MOMENT:
                return lambda a: f"_moment({a}) // {length * 1000}"
            return lambda a: f"{a} // {length}"

        first, second = counted(one), counted(other)
        return self.strict([one, other], INT64, lambda a, b: f"({second(b)} - {first(a)})")

    def call_now(self, _name: str) -> _Node:
        raise NotNative("now() has been written as a parameter")


_METHODS: Final = {
    "if": "condition",
    "ifNull": "coalesce",
    "nullIf": "null_if",
    "isNull": "is_null",
    "isNotNull": "is_null",
    "hasAny": "has_any",
    "hasAll": "has_any",
    "startsWith": "starts_with",
    "endsWith": "starts_with",
    "empty": "length",
    "notEmpty": "length",
    "upper": "lower",
    "trim": "lower",
    "floor": "round",
    "ceil": "round",
    "greatest": "least",
    "toInt64": "to_int64",
    "toFloat64": "to_int64",
    "toString": "to_string",
    "toDate": "to_date",
    "toDateTime": "to_date_time",
    "toYear": "to_year",
    "toMonth": "to_year",
    "toDayOfMonth": "to_year",
    "toDayOfWeek": "to_year",
    "toHour": "to_hour",
    "toStartOfDay": "to_start",
    "toStartOfMonth": "to_start",
    "toStartOfYear": "to_start",
    "toMonday": "to_start",
    "dateDiff": "date_diff",
    "today": "now",
}


@dataclass(frozen=True)
class Compiled:
    """A condition, or another expression, as a function over columns.

    Attributes:
        keys: what it reads, in order: `("column", name)`, or a reader of `event_properties` and a path.
        judge: from the number of rows and these columns to a value for each row, and the rows that were declined.
    """

    keys: tuple[tuple[str, str], ...]
    judge: Callable[..., tuple[list[Any], list[int]]]
    type: Type


def compiled_sql(sql: str, types: Mapping[str, str], *, is_condition: bool) -> Compiled:
    try:
        compiler = _Compiler(sql, types)
        node = compiler.whole()
        if compiler.divisions > 1:
            compiler = _Compiler(sql, types, is_wary=True)
            node = compiler.whole()
        code = node.code
        if is_condition:
            code = "False" if node.type is NOTHING else compiler.boolean(node).true
        names = ", ".join(compiler.names.values())
        loop = f"for {names}, in zip({names.replace('v', 'l')})" if names else "for _ in range(count)"
        # a row whose values do not have the types that their columns promise is declined like any other
        source = (
            f"def judge(count{', ' if names else ''}{names.replace('v', 'l')}):\n"
            "    found, declined = [], []\n"
            "    append = found.append\n"
            f"    {loop}:\n"
            f"        try: append({code})\n"
            "        except (Unsure, OverflowError, ValueError, TypeError):\n"
            "            declined.append(len(found)); append(None)\n"
            "    return found, declined\n"
        )
        space = {**HELPERS, **compiler.objects}
        exec(compile(source, "<condition>", "exec"), space)  # noqa: S102  (written here, from checked tokens)
    except (RecursionError, MemoryError, SyntaxError, IndexError) as error:
        raise NotNative(f"too deep or too long: {error}") from None
    return Compiled(tuple(compiler.names), space["judge"], node.type)
