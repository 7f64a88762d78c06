"""Tags that print one field of a contact or product: what they print, made for a whole column and remembered by value.

Most tags of a template are of that kind: `contact.city | default('your town')`, `product.price | money('EUR')`. They
depend on the field's value alone, and on the language of the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, nodes
from jinja2.runtime import Context

from senders.filters import FILTERS, LOCALISED
from senders.pieces import KEPT_LENGTH, Ready, pieces_of
from senders.rows import Column

#: What a tag prints in the text part and in the HTML part: both None where the field is empty and nothing stands for
#: it, b'' where the tag must be evaluated.
Pair = tuple["bytes | None", "bytes | None"]
EMPTY: Pair = (None, None)
EVALUATE: Pair = (b"", b"")
#: Of a tag's default: there is none.
MISSING: Any = object()
#: A tag: field, default, filters with their arguments.
Key = tuple[str, Any, tuple[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]], ...]]
#: What stands behind the token of a tracked link: number of the link and address -> piece; None if it is no web link.
Targets = Callable[[int, str], "Ready | None"]
#: The filter of links that lead through the gateway; its argument is the link's number.
TRACKED = "tracked"
_KEPT_PAIRS = 8192
_KEPT_PRODUCTS = 24_000
#: Filters that depend on their value and arguments alone, and on the locale of the file.
_SAME = frozenset(
    ("money", "number", "date", "pluralize", "plural", "upper", "lower", "title", "capitalize", "trim", "round", "int",
     "float", "abs", "length", "count", "wordcount")
)  # fmt: skip
#: And those that depend on whether values are escaped for HTML, too.
_PURE = _SAME | {"string", "truncate", "urlencode", "replace", "escape", "e", "striptags"}
_PLAIN_TYPES = (str, int, float, bool, type(None))


class Product(dict[str, Any]):
    """A recommended product: its fields, and what tags print of it.

    Attributes:
        pieces: for text and for HTML, one tag after the other; those of tag n begin at 2n.
    """

    __slots__ = ("pieces",)
    pieces: Sequence[bytes | None]

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class Printed:
    """A tag that prints one field of a record, through filters that depend on nothing else.

    Where the last of the filters is `TRACKED`, what it prints is the part of the link that all messages share.

    Args:
        default: what stands for an empty field; `MISSING` where nothing does.
        filters: name, positional and named arguments of each.
        environments: of text and HTML.
    """

    __slots__ = ("_environments", "_filters", "_index", "_is_same", "_memories", "_steps", "default", "field")

    def __init__(self, key: Key, environments: tuple[Environment, Environment]) -> None:
        self.field, self.default, filters = key
        self._environments = environments
        is_tracked = bool(filters) and filters[-1][0] == TRACKED
        self._index: int | None = filters[-1][1][0] if is_tracked else None
        self._filters = filters[:-1] if is_tracked else filters
        # nothing that depends on whether the part is escaped
        self._is_same = all(name in _SAME for name, _, _ in self._filters)
        self._memories: dict[tuple[str, str], _Memory] = {}
        self._steps: dict[
            str, list[tuple[str, Callable[..., Any] | None, tuple[Any, ...], dict[str, Any]]]
        ] = {}

    def pairs(self, column: Column | None, height: int, locale: str) -> list[Pair]:
        """What the tag prints for each value of a column."""
        if column is None:
            return [self._of_nothing(locale)] * height
        return list(map(self.printer(column, locale), column.values))

    def printer(
        self, column: Column | None, locale: str, targets: Targets | None = None
    ) -> Callable[[Any], Pair]:
        """From a value of a column of this kind to what the tag prints of it.

        Args:
            targets: of tracked links; what is remembered of those goes with the answer.
        """
        if column is None:
            pair = self._of_nothing(locale)
            return lambda _: pair
        key = (column.kind, locale)
        memory = self._memories.get(key)
        if memory is None:
            memory = _Memory(self, column, locale, targets)
            if self._index is None:
                self._memories[key] = memory
        # 1, True, 1.0 and Decimal('1.00') are one key and print differently
        return memory.__getitem__ if column.kind else memory.made

    def printed(self, value: Any, locale: str, targets: Targets | None = None) -> Pair:
        """What the tag prints of a value, which is not empty."""
        try:
            if self._index is not None:
                link = str(self._filtered(self._environments[1], value, locale))
                target = None if targets is None else targets(self._index, link)
                return EVALUATE if target is None else (target.encoded, target.encoded)
            of_text = self._filtered(self._environments[0], value, locale) if self._filters else value
            of_html = of_text if self._is_same else self._filtered(self._environments[1], value, locale)
            return pieces_of(of_text, of_html)
        except Exception:  # noqa: BLE001 - whatever it is, it is raised where the tag stands, if that is reached
            return EVALUATE

    def _of_nothing(self, locale: str) -> Pair:
        return EMPTY if self.default is MISSING else self.printed(self.default, locale)

    @property
    def takes_text(self) -> bool:
        """Whether a number may come as a text: what writes amounts reads them as such."""
        return bool(self._filters) and self._filters[0][0] == "money"

    def _filtered(self, environment: Environment, value: Any, locale: str) -> Any:
        steps = self._steps.get(locale)
        if steps is None:
            steps = self._steps[locale] = [
                (
                    name,
                    LOCALISED.get(name) or (FILTERS[name] if name == "pluralize" else None),
                    positional,
                    {"locale": locale, **dict(named)} if name in LOCALISED else dict(named),
                )
                for name, positional, named in self._filters
            ]
        for name, function, positional, named in steps:
            if function is not None:
                value = function(value, *positional, **named)
            else:
                context = Context(environment, {"locale": locale}, "", {})
                value = environment.call_filter(name, value, positional, named, context)
        return value


class _Memory(dict[Any, Pair]):
    """What a tag prints, by value."""

    def __init__(self, printed: Printed, column: Column, locale: str, targets: Targets | None = None) -> None:
        super().__init__()
        self._printed, self._locale, self._targets = printed, locale, targets
        self._decode = None if column.kind == "decimal" and printed.takes_text else column.decode
        self._older: dict[Any, Pair] = {}

    def __missing__(self, value: Any) -> Pair:
        # two generations: what is met again and again stays, and nothing is counted when it is
        pair = self._older.get(value) or self.made(value)
        if type(value) is not str or len(value) <= KEPT_LENGTH:
            if len(self) >= _KEPT_PAIRS:
                self._older = dict(self)
                self.clear()
            self[value] = pair
        return pair

    def made(self, value: Any) -> Pair:
        """What the tag prints of a value, without looking whether it is known."""
        printed = self._printed
        if value is None or value == "":
            if printed.default is MISSING:
                return EMPTY
            return printed.printed(printed.default, self._locale, self._targets)
        decoded = value if self._decode is None else self._decode(value)
        return printed.printed(decoded, self._locale, self._targets)


class Shelf(dict[tuple[Any, ...], Product]):
    """Products as the tags of a template print them, by the values of their fields: the same few go to many.

    Args:
        columns: the fields, of the kinds that all products of this shelf have.
        locale: of the file.
        targets: of tracked links.
    """

    def __init__(self, tags: Tags, columns: Mapping[str, Column], locale: str, targets: Targets) -> None:
        super().__init__()
        places = {name: place for place, name in enumerate(columns)}
        self._tags = [
            (places.get(tag.field), tag.printer(columns.get(tag.field), locale, targets))
            for tag in tags.of_products
        ]
        self._fields = [(name, place, columns[name].decode) for name, place in places.items()]
        fields = tags.product_fields
        self._looked_at = [one for one in self._fields if fields is None or one[0] in fields]
        self._texts = [places[name] for name, column in columns.items() if column.kind == "text"]
        self._is_known = all(column.kind for column in columns.values())
        self._older: dict[tuple[Any, ...], Product] = {}

    def products(self, columns: Mapping[str, Column], total: int) -> Iterable[Product]:
        """Products of these columns, so many; those with the same fields are the same object."""
        if not columns:
            return [self[()]] * total
        rows = zip(*[column.values for column in columns.values()], strict=True)
        # other objects may be equal and print differently, or not be hashable
        return map(self.__getitem__ if self._is_known else self._made, rows)

    def __missing__(self, values: tuple[Any, ...]) -> Product:
        # as `_Memory` does
        product = self._older.get(values) or self._made(values)
        for place in self._texts:
            if len(values[place] or "") > 2 * KEPT_LENGTH:
                return product
        if len(self) >= _KEPT_PRODUCTS:
            self._older = dict(self)
            self.clear()
        self[values] = product
        return product

    def _made(self, values: tuple[Any, ...]) -> Product:
        pairs = [printer(None if place is None else values[place]) for place, printer in self._tags]
        # where a tag is evaluated, it finds all there is
        fields = self._looked_at if all(map(all, pairs)) else self._fields
        product = Product()
        for name, place, decode in fields:
            value = values[place]
            product[name] = value if decode is None or value is None else decode(value)
        product.pieces = tuple(itertools.chain.from_iterable(pairs))
        return product


class Tags:
    """The tags of a template that print one field, each with a number: those of text and HTML together.

    Attributes:
        of_contact, of_products: by number.
        product_fields: fields of products that are looked at in other ways; None: perhaps all.
    """

    def __init__(self, text: Environment, html: Environment) -> None:
        self._environments = (text, html)
        self._numbers: tuple[dict[Key, int], dict[Key, int]] = ({}, {})
        self.of_contact: list[Printed] = []
        self.of_products: list[Printed] = []
        self.product_fields: frozenset[str] | None = frozenset()

    def number(self, key: Key, *, is_contact: bool) -> int:
        """The number of a tag, a new one if it is new."""
        numbers = self._numbers[0 if is_contact else 1]
        if key not in numbers:
            numbers[key] = len(numbers)
            (self.of_contact if is_contact else self.of_products).append(Printed(key, self._environments))
        return numbers[key]

    def look_at(self, tree: nodes.Template, *, is_precompiled: bool = True) -> None:
        """Note which fields of products a part looks at beside what it prints of them; all where each is evaluated."""
        used, others = product_fields(tree)
        if not is_precompiled:
            others = used
        if others is None or self.product_fields is None:
            self.product_fields = None
        else:
            self.product_fields |= others


def printed_of(node: nodes.Node) -> tuple[nodes.Name, Key] | None:
    """The name and field that a tag prints, if that is all that it depends on."""
    filters: list[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]] = []
    if isinstance(node, nodes.Filter) and node.name == TRACKED and node.node is not None:
        constants = _constants(node)
        if constants is None or constants[1] or [type(one) for one in constants[0]] != [int]:
            return None
        filters.append((TRACKED, *constants))
        node = node.node
    while isinstance(node, nodes.Filter) and node.name in _PURE and node.node is not None:
        constants = _constants(node)
        if constants is None:
            return None
        filters.insert(0, (node.name, *constants))
        node = node.node
    default: Any = MISSING
    if isinstance(node, nodes.Filter) and node.name in ("default", "d") and node.node is not None:
        constants = _constants(node)
        if constants is None or len(constants[0]) > 1 or constants[1]:
            return None
        default = constants[0][0] if constants[0] else ""
        if type(default) is not str:
            return None
        node = node.node
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        return node.node, (node.attr, default, tuple(filters))
    return None


def _constants(node: nodes.Filter) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]] | None:
    """A filter's arguments; None unless all are plain constants."""
    if node.dyn_args is not None or node.dyn_kwargs is not None:
        return None
    values = [*node.args, *(pair.value for pair in node.kwargs)]
    if not all(isinstance(one, nodes.Const) and type(one.value) in _PLAIN_TYPES for one in values):
        return None
    named = tuple((str(pair.key), pair.value.as_const()) for pair in node.kwargs)
    return tuple(one.as_const() for one in node.args), named


def product_fields(tree: nodes.Template) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """Fields of recommended products that a part uses, and those that it does more with than print them.

    None where a product goes somewhere as a whole, so that any field may be used.
    """
    used: set[str] = set()
    others: set[str] = set()
    printed: set[int] = set()
    allowed: set[int] = set()
    products: set[str] = set()
    # what is captured is evaluated as text, tag by tag
    captured = {
        id(output)
        for block in tree.find_all(
            (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock, nodes.For)
        )
        if not isinstance(block, nodes.For) or block.recursive
        for output in block.find_all(nodes.Output)
    }
    for output in tree.find_all(nodes.Output):
        for child in output.nodes if id(output) not in captured else ():
            found = printed_of(child)
            if found is not None:
                printed.add(id(found[0]))
    for loop in tree.find_all(nodes.For):
        items = _recommended(loop.iter)
        if items is not None:
            if not isinstance(loop.target, nodes.Name):
                return None, None
            allowed.add(id(items))
            products.add(loop.target.name)
    for branch in tree.find_all((nodes.If, nodes.CondExpr)):
        test = branch.test.node if isinstance(branch.test, nodes.Not) else branch.test
        allowed.add(id(test))
    for counted in tree.find_all(nodes.Filter):
        if counted.name in ("length", "count"):
            allowed.add(id(counted.node))
    for part in tree.find_all((nodes.Getattr, nodes.Getitem)):
        name = part.node
        if not isinstance(name, nodes.Name) or name.name not in products:
            continue
        if isinstance(part, nodes.Getattr):
            field = part.attr
        elif isinstance(part.arg, nodes.Const) and isinstance(part.arg.value, str):
            field = part.arg.value
        else:
            return None, None
        allowed.add(id(name))
        used.add(field)
        if id(name) not in printed:
            others.add(field)
    for name in tree.find_all(nodes.Name):
        is_product = name.name == "recommendations" or name.name in products
        if is_product and name.ctx == "load" and id(name) not in allowed:
            return None, None
    return frozenset(used), frozenset(others)


def _recommended(node: nodes.Node) -> nodes.Name | None:
    """The name `recommendations` in what a loop goes over: all of them, the first so many, or a slice."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    if isinstance(node, nodes.Call):
        node = node.node
    return node if isinstance(node, nodes.Name) and node.name == "recommendations" else None
