"""Templates compiled for the wire: what is constant is encoded once, values are escaped and encoded as they go in.

jinja2's own code generator makes the function; only what it writes at the outermost level is replaced. Everything that
gives a template its meaning (scopes, loops, macros, filters, the sandbox, what is missing) is therefore jinja2's and
the same as in `senders.templates`, and no construct needs another path.

What most tags print is one field of a contact or product, perhaps through filters that depend on nothing else:
`contact.city | default('your town')`, `product.price | money('EUR')`. Such a tag is a `Printed`: what it prints is made
for a whole column at once and remembered by value, so that the function only picks it up. Where there is nothing to
pick up, because the field is empty, a filter fails or the record came another way, the tag is evaluated as ever.

Quoted-printable (RFC 2045 section 6.7) is written in pieces: every piece begins at the start of a line and ends with
the end of one, a hard one where the text has one and a soft one (`=` CRLF) elsewhere. So pieces may follow each other
in any order, and no line is longer than 76 characters whatever the values are. No line begins with a dot or with
`From `: mail servers change such lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from markupsafe import escape

from senders.mime import QUOTED_LENGTH, base64_lines, prefers_base64, quoted
from senders.rows import Column

Pieces = Callable[[tuple[bytes, ...]], None]

_LINE_END = re.compile(r"\r\n?")
_HARD = b"\r\n"
_TAGS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_MARK = b"\0"  # stands in no encoded text
_KEPT_LENGTH = 200
_KEPT_VALUES = 2048
_KEPT_PIECES = 4096
_UNKNOWN: Any = object()
#: Of a tag's default: there is none.
MISSING = object()
#: Filters that depend on their value and arguments alone, and on the locale of the file.
_PURE = frozenset(
    ("money", "number", "date", "pluralize", "plural", "upper", "lower", "title", "capitalize", "trim", "round", "int",
     "float", "string", "abs", "length", "count", "truncate", "urlencode", "wordcount", "replace", "escape", "e",
     "striptags")
)  # fmt: skip
_PLAIN_TYPES = (str, int, float, bool, type(None))
_PLAIN = re.compile(r"[ -<>-~]+")
_PLAIN_HTML = re.compile(r"[ !#$%(-;?-~]+")

# what str.strip() takes away, as it looks when encoded; soft breaks and hard ones first
_SPACES = tuple(
    [b"=\r\n", b"\r\n", b" ", b"\t"]
    + [
        b"".join(b"=%02X" % byte for byte in chr(code).encode())
        for code in range(0x3001)
        if chr(code).isspace() and chr(code) != "\n"
    ]
)
_WHITE = b" \t\r\n"
_BLANK_LINES = re.compile(rb"\r\n(?<!=\r\n)(?:(?:=\r\n|=20| )*\r\n(?<!=\r\n)){2,}")


class Ready(str):
    """A text that is encoded once, though it stands in several places of a message; it holds nothing that HTML escapes.

    Attributes:
        encoded: the text as a piece.
    """

    __slots__ = ("encoded",)
    encoded: bytes

    def __new__(cls, text: str) -> Ready:
        made = super().__new__(cls, text)
        made.encoded = _plain(text)
        return made

    def joined(self, other: Ready) -> Ready:
        """Both, one after the other, without encoding them anew."""
        made = str.__new__(Ready, self + other)
        made.encoded = self.encoded + other.encoded
        return made

    def __reduce__(self) -> tuple[type[Ready], tuple[str]]:
        return Ready, (str(self),)


class _Encoded(dict[str, bytes]):
    """Encoded values by value; contacts share first names, towns and products, so most are found."""

    def __missing__(self, value: str) -> bytes:
        encoded = self.made(value)
        if len(value) <= _KEPT_LENGTH:
            if len(self) >= _KEPT_VALUES:
                self.clear()
            self[value] = encoded
        return encoded

    def made(self, value: str) -> bytes:
        """The piece of a value, without looking whether it is known."""
        return _plain(value) if _PLAIN.fullmatch(value) else quoted(value)


class _EncodedHtml(_Encoded):
    def made(self, value: str) -> bytes:
        return _plain(value) if _PLAIN_HTML.fullmatch(value) else quoted(str(escape(value)))


def _plain(value: str) -> bytes:
    """A value of which nothing need be encoded but what a line begins with."""
    if len(value) <= QUOTED_LENGTH and value[0] not in ".F" and "  " not in value:
        return value.encode("ascii") + b"=\r\n"
    pieces = [value[at : at + QUOTED_LENGTH] for at in range(0, len(value), QUOTED_LENGTH)]
    for piece in pieces:
        if piece[0] in ".F":
            return quoted(value)
    if "  " in value:
        return quoted(value)
    return ("=\r\n".join(pieces) + "=\r\n").encode("ascii")


class _EncodedText(_Encoded):
    def made(self, value: str) -> bytes:
        encoded = _plain(value) if _PLAIN.fullmatch(value) else quoted(value)
        # only such values can make blank lines with what stands about them
        if "\n" in value or "\r" in value or not value.strip(" "):
            encoded += _MARK
        return encoded


_done_values = _Encoded()
_text_values = _EncodedText()
_html_values = _EncodedHtml()


def _other_in_html(value: Any) -> bytes:
    """A value that is no plain text: a number, a date, markup; what is missing raises here."""
    if type(value) is Ready:
        return value.encoded
    if type(value) is int:
        return _done_values[str(value)]
    return _done_values[str(escape(value))]


def _other_in_text(value: Any) -> bytes:
    if type(value) is Ready:
        return value.encoded
    return _text_values[str(value)]


def _made_in_html(text: str) -> bytes:
    """Text that is done: escaped, if it must be, when it was made."""
    return _done_values["".join((text,))]


def _made_in_text(text: str) -> bytes:
    return _text_values["".join((text,))]


class Product(dict[str, Any]):
    """A recommended product: its fields, and what tags of the two parts print of it, by the tag's number."""

    __slots__ = ("html", "text")
    html: Sequence[bytes | None]
    text: Sequence[bytes | None]

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class Printed:
    """A tag that prints one field of a record, through filters that depend on nothing else.

    Args:
        default: what stands for an empty field, already a value; `MISSING` where nothing does.
        filters: name, positional and named arguments of each.
        encode: a printed value -> its piece.
    """

    __slots__ = ("_encode", "_environment", "_filters", "_memories", "default", "field")

    def __init__(
        self,
        environment: Environment,
        field: str,
        default: Any,
        filters: Sequence[tuple[str, tuple[Any, ...], dict[str, Any]]],
        encode: Callable[[Any], bytes],
    ) -> None:
        self.field, self.default = field, default
        self._environment, self._encode, self._filters = environment, encode, filters
        self._memories: dict[tuple[str, str], _Memory] = {}

    def pieces(self, column: Column | None, height: int, locale: str) -> list[bytes | None]:
        """What the tag prints for each value of a column: None for an empty field, b'' where it must be evaluated."""
        if column is None:
            return [None if self.default is MISSING else self._default(locale)] * height
        key = (column.kind, locale)
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = _Memory(self, column.decode, locale)
        if column.kind:
            return list(map(memory.__getitem__, column.values))
        # 1, True, 1.0 and Decimal('1.00') are one key and print differently
        return [memory.made(value) for value in column.values]

    def _default(self, locale: str) -> bytes:
        return self.printed(self.default, locale)

    def printed(self, value: Any, locale: str) -> bytes:
        """The piece of a value, b'' if it cannot be printed just so."""
        try:
            if self._filters:
                context = WireContext(self._environment, {"locale": locale}, None, {})
                for name, positional, named in self._filters:
                    value = self._environment.call_filter(name, value, positional, named, context)
            return self._encode(value)
        except Exception:  # noqa: BLE001 - whatever it is, it is raised where the tag stands, if that is reached
            return b""


class _Memory(dict[Any, "bytes | None"]):
    """Pieces by value."""

    def __init__(self, printed: Printed, decode: Callable[[Any], Any] | None, locale: str) -> None:
        super().__init__()
        self._printed, self._decode, self._locale = printed, decode, locale
        self._older: dict[Any, bytes | None] = {}

    def __missing__(self, value: Any) -> bytes | None:
        # two generations: what is met again and again stays, and nothing is counted when it is
        piece = self._older.get(value, _UNKNOWN)
        if piece is _UNKNOWN:
            piece = self.made(value)
        if type(value) is not str or len(value) <= _KEPT_LENGTH:
            if len(self) >= _KEPT_PIECES:
                self._older = dict(self)
                self.clear()
            self[value] = piece
        return piece

    def made(self, value: Any) -> bytes | None:
        """The piece of a value, without looking whether it is known."""
        printed = self._printed
        if value is None or value == "":
            return None if printed.default is MISSING else printed.printed(printed.default, self._locale)
        return printed.printed(value if self._decode is None else self._decode(value), self._locale)


class WireContext(Context):
    """A context that knows where the encoded pieces go, and may be used again for the next message.

    Attributes:
        pieces: what tags print of this contact, by the tag's number.
    """

    write: Pieces
    pieces: Sequence[bytes | None]

    def begin(self, given: dict[str, Any], pieces: Sequence[bytes | None]) -> None:
        """Forget the last message."""
        self.parent, self.pieces = given, pieces
        if self.vars:
            self.vars = {}
            self.exported_vars = set()


class _WireGenerator(CodeGenerator):
    """jinja2's code generator, whose outermost output is encoded pieces handed to `context.write`.

    What is captured (in macros, `{% set %}` blocks, filters) stays text: it comes out as a value later on.

    Attributes:
        of_contact, of_products: tags that print one field, by number; `_Key` -> number.
    """

    def __init__(self, environment: Environment, tree: nodes.Template) -> None:
        super().__init__(environment, None, None)
        self.of_contact: dict[_Key, int] = {}
        self.of_products: dict[_Key, int] = {}
        self._is_html = bool(environment.autoescape)
        # who calls something else `contact` means that
        self._is_contact_given = not any(
            name.name == "contact" and name.ctx != "load" for name in tree.find_all(nodes.Name)
        )

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("_contact = context.pieces")

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:  # noqa: N802
        if frame.buffer is not None or frame.require_output_check:
            super().visit_Output(node, frame)
            return
        finalize = self._make_finalize()
        body: list[str | nodes.Node] = []
        for child in node.nodes:
            try:
                text = self._output_child_to_const(child, frame, finalize)
            except Exception:  # noqa: BLE001 - as jinja2 does: what cannot be known now is known, or fails, later
                body.append(child)
                continue
            if body and isinstance(body[-1], str):
                body[-1] += text
            else:
                body.append(text)
        self.writeline("context.write((")
        self.indent()
        for at, item in enumerate(body):
            if isinstance(item, str):
                piece = quoted(item)
                if not frame.eval_ctx.autoescape and _makes_blank_lines(
                    item, is_first=at == 0, is_last=at == len(body) - 1
                ):
                    piece += _MARK
                self.writeline(f"{piece!r},")
            else:
                self.newline(item)
                self._printed(item, frame)
                self.write(",")
        self.outdent()
        self.writeline("))")

    def _printed(self, node: nodes.Node, frame: Frame) -> None:
        """The piece that a tag prints."""
        found = _printed_of(node)
        if found is None:
            self._evaluated(node, frame)
            return
        name, key = found
        if name.name == "contact":
            if not self._is_contact_given:
                self._evaluated(node, frame)
                return
            number, default = self._number(self.of_contact, key)
            piece = f"_contact[{number}]"
            self.write(f"({piece} or (")
            if default is not None:
                self.write(f"{default!r} if {piece} is None else ")
            self._evaluated(node, frame)
            self.write("))")
            return
        number, default = self._number(self.of_products, key)
        self.write("(_piece if type(_record := ")
        self.visit(name, frame)
        piece = f"_record.{'html' if self._is_html else 'text'}[{number}]"
        self.write(f") is _Product and (_piece := {piece}) else ")
        if default is not None:
            self.write(f"{default!r} if type(_record) is _Product and {piece} is None else ")
        self._evaluated(node, frame)
        self.write(")")

    def _number(self, known: dict[_Key, int], key: _Key) -> tuple[int, bytes | None]:
        """A tag's number, and the piece of its default if that can stand apart: tags of one field are one then."""
        field, default, filters = key
        piece = None
        if not filters and default is not MISSING:
            piece = (_html_values if self._is_html else _text_values)[default] if default else b""
            key = (field, MISSING, ())
        return known.setdefault(key, len(known)), piece

    def _evaluated(self, node: nodes.Node, frame: Frame) -> None:
        self.write("(_encoded[_value] if type(_value := ")
        self.visit(node, frame)
        self.write(") is str else _other(_value))")

    def start_write(self, frame: Frame, node: nodes.Node | None = None) -> None:
        # where jinja2 yields what a call, a filter block or a recursive loop made
        if frame.buffer is not None:
            super().start_write(frame, node)
        else:
            self.writeline("context.write((_made(", node)

    def end_write(self, frame: Frame) -> None:
        if frame.buffer is not None:
            super().end_write(frame)
        else:
            self.write("),))")

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:  # noqa: N802
        self._field(node, frame)
        self.write(f"environment.getattr(_record, {node.attr!r}))")

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:  # noqa: N802
        is_plain = len(node.args) <= 1 and not (node.kwargs or node.dyn_args or node.dyn_kwargs)
        if node.name not in ("default", "d") or not is_plain or not isinstance(node.node, nodes.Getattr):
            super().visit_Filter(node, frame)
            return
        # `contact.city | default('your town')`: a field that has no value is its default, without a call
        self._field(node.node, frame)
        self.write("(")
        if node.args:
            self.visit(node.args[0], frame)
        else:
            self.write("''")
        self.write(f") if type(_record) in _DICTS else {self.filters[node.name]}(")
        self.write(f"environment.getattr(_record, {node.node.attr!r}), ")
        for argument in node.args:
            self.visit(argument, frame)
        self.write("))")

    def _field(self, node: nodes.Getattr, frame: Frame) -> None:
        """The case that nearly always is in `senders.rendering`'s sandbox: a field of a dict, if it has a value."""
        self.write("(_field if type(_record := ")
        self.visit(node.node, frame)
        name = repr(node.attr)
        # a comparison with a Decimal costs much; what is true is no empty text
        self.write(
            f") in _DICTS and (_field := _record.get({name})) is not None and (_field or _field != '') else "
        )


#: A printed tag: field, default, filters with their arguments.
_Key = tuple[str, Any, tuple[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]], ...]]


def _printed_of(node: nodes.Node) -> tuple[nodes.Name, _Key] | None:
    """The name and field that a tag prints, if that is all that it depends on."""
    filters: list[tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]] = []
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
    named = tuple((pair.key, pair.value.as_const()) for pair in node.kwargs)
    return tuple(one.as_const() for one in node.args), named


def _makes_blank_lines(text: str, *, is_first: bool, is_last: bool) -> bool:
    """Whether spaces of a constant may be part of blank lines, with others' or alone.

    At its ends that is so only where it is the first or last of its statement: values stand about it elsewhere, and
    those that can be part of blank lines are marked themselves.
    """
    return bool(
        re.search(r"\n +\n", text)
        or (is_first and re.match(r" +(\n|\Z)", text))
        or (is_last and re.search(r"(\A|\n) +\Z", text))
    )


#: Types of records whose fields are what `get` gives.
_DICTS = frozenset({dict, Product})


def wire_environment(environment: Environment) -> Environment:
    """The environment's twin whose templates write encoded pieces."""
    twin = environment.overlay()
    twin.context_class = WireContext
    return twin


class WirePart:
    """One body part, `text/plain` or `text/html`, ready to be filled in.

    Args:
        environment: from `wire_environment`.
        source: the part with its merge tags.
        as_text: fills the part in as text; used where base64 is shorter, for nothing can be encoded beforehand then.
        is_trimmed: blank lines are joined to one and none stand at the ends, as `senders.rendering` does for text.

    Attributes:
        is_precompiled: its constant pieces are encoded; false where each message's part is made whole.
        of_contact, of_products: tags that print a field, in the order of the pieces that are handed in.
    """

    def __init__(
        self,
        environment: Environment,
        source: str,
        as_text: Callable[[Mapping[str, Any]], str],
        *,
        is_trimmed: bool,
    ) -> None:
        self.environment, self.is_trimmed = environment, is_trimmed
        subtype = b"plain" if is_trimmed else b"html"
        head = b'Content-Type: text/%b; charset="utf-8"\r\nContent-Transfer-Encoding: %b\r\n\r\n'
        self._root: Callable[[Context], Iterator[str]] | None = None
        self.of_contact: Sequence[Printed] = ()
        self.of_products: Sequence[Printed] = ()
        self.is_precompiled = not prefers_base64(_TAGS.sub("", source))
        if not self.is_precompiled:
            self._head, self._as_text = head % (subtype, b"base64"), as_text
            return
        self._head = head % (subtype, b"quoted-printable")
        if not is_trimmed and not source.endswith("\n"):
            source += "\n"
        tree = environment.parse(source)
        generator = _WireGenerator(environment, tree)
        generator.visit(tree)
        code = compile(generator.stream.getvalue(), "<template>", "exec")  # pyright: ignore[reportAttributeAccessIssue]
        names: dict[str, Any] = {"environment": environment, "__file__": "<template>"}
        exec(code, names)  # noqa: S102 - what jinja2 does with the code that it makes
        encoded = _text_values if is_trimmed else _html_values
        other = _other_in_text if is_trimmed else _other_in_html
        names.update(
            _encoded=encoded, _made=_made_in_text if is_trimmed else _made_in_html, _other=other,
            _Product=Product, _DICTS=_DICTS,
        )  # fmt: skip
        self._root = names["root"]
        self._context = WireContext(environment, {}, None, {})

        def encode(value: Any) -> bytes:
            return encoded.made(value) if type(value) is str else other(value)

        self.of_contact, self.of_products = (
            [
                Printed(environment, name, default, [(one, args, dict(named)) for one, args, named in filters], encode)
                for name, default, filters in keys
            ]
            for keys in (generator.of_contact, generator.of_products)
        )  # fmt: skip
        self._no_pieces = (None,) * len(self.of_contact)

    def write(
        self, context: dict[str, Any], out: list[bytes], pieces: Sequence[bytes | None] | None = None
    ) -> None:
        """Append the part with its header, to the line end before the next boundary. Not for two threads at once.

        Args:
            context: what merge tags name, and the environment's globals.
            pieces: what each of `of_contact` prints; without, every tag is evaluated.
        """
        if self._root is None:
            text = _LINE_END.sub("\n", self._as_text(context))
            out += (self._head, base64_lines((text if text.endswith("\n") else text + "\n").encode()))
            return
        made = self._context
        made.begin(context, self._no_pieces if pieces is None else pieces)
        if not self.is_trimmed:
            out.append(self._head)
            made.write = out.extend
            # a generator that yields nothing: all that it has to say it writes
            for _ in self._root(made):
                pass
            return
        pieces: list[bytes] = []
        made.write = pieces.extend
        for _ in self._root(made):
            pass
        out += (self._head, trimmed(b"".join(pieces)))


def trimmed(content: bytes) -> bytes:
    """Encoded text whose blank lines are joined to one, without blank lines at the ends.

    Three line ends in a row are seen at once. Those that have spaces or soft breaks between them are looked for only
    if a piece is marked as able to make them.
    """
    if (
        _MARK in content
        or b"\r\n\r\n\r\n\r\n" in content
        # the first of three may be the end of a soft break
        or content.count(b"\r\n\r\n\r\n") != content.count(b"=\r\n\r\n\r\n")
    ):
        content = _BLANK_LINES.sub(b"\r\n\r\n", content.replace(_MARK, b""))
    content = content.strip(_WHITE)
    # what is left at the ends is a soft break or an encoded space, rarely
    while content[:1] == b"=" and content.startswith(_SPACES):
        content = content[next(len(space) for space in _SPACES if content.startswith(space)) :].lstrip(_WHITE)
    # an equals sign of the text's own would be =3D
    content = content.rstrip(_WHITE + b"=")
    while content[-3:-2] == b"=" and content.endswith(_SPACES):
        end = next(len(space) for space in _SPACES if content.endswith(space))
        content = content[:-end].rstrip(_WHITE + b"=")
    return content + _HARD
