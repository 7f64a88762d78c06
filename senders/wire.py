"""Templates compiled for the wire: what is constant is encoded once, values are escaped and encoded as they go in.

jinja2's own code generator makes the function; only what it writes at the outermost level is replaced. Everything that
gives a template its meaning (scopes, loops, macros, filters, the sandbox, what is missing) is therefore jinja2's and
the same as in `senders.rendering`, and no construct needs another path.

Quoted-printable (RFC 2045 section 6.7) is written in pieces: every piece begins at the start of a line and ends with
the end of one, a hard one where the text has one and a soft one (`=` CRLF) elsewhere. So pieces may follow each other
in any order, and no line is longer than 76 characters whatever the values are. No line begins with a dot or with
`From `: mail servers change such lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from markupsafe import escape

from senders.mime import QUOTED_LENGTH, base64_lines, prefers_base64, quoted

Pieces = Callable[[tuple[bytes, ...]], None]

_LINE_END = re.compile(r"\r\n?")
_HARD = b"\r\n"
_MARK = b"\0"  # stands in no encoded text
_KEPT_LENGTH = 200
_KEPT_VALUES = 16_384
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

    def __reduce__(self) -> tuple[type[Ready], tuple[str]]:
        return Ready, (str(self),)


class _Encoded(dict[str, bytes]):
    """Encoded values by value; contacts share first names, towns and products, so most are found."""

    def __missing__(self, value: str) -> bytes:
        encoded = _plain(value) if _PLAIN.fullmatch(value) else quoted(value)
        return self._keep(value, encoded)

    def _keep(self, value: str, encoded: bytes) -> bytes:
        if len(value) <= _KEPT_LENGTH:
            if len(self) >= _KEPT_VALUES:
                self.clear()
            self[value] = encoded
        return encoded


class _EncodedHtml(_Encoded):
    def __missing__(self, value: str) -> bytes:
        encoded = _plain(value) if _PLAIN_HTML.fullmatch(value) else quoted(str(escape(value)))
        return self._keep(value, encoded)


def _plain(value: str) -> bytes:
    """A value of which nothing need be encoded but what a line begins with."""
    pieces = [value[at : at + QUOTED_LENGTH] for at in range(0, len(value), QUOTED_LENGTH)]
    for piece in pieces:
        if piece[0] in ".F":
            return quoted(value)
    if "  " in value:
        return quoted(value)
    return ("=\r\n".join(pieces) + "=\r\n").encode("ascii")


class _EncodedText(_Encoded):
    def __missing__(self, value: str) -> bytes:
        encoded = _plain(value) if _PLAIN.fullmatch(value) else quoted(value)
        # only such values can make blank lines with what stands about them
        if "\n" in value or "\r" in value or not value.strip(" "):
            encoded += _MARK
        return self._keep(value, encoded)


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


class WireContext(Context):
    """A context that knows where the encoded pieces go."""

    write: Pieces


class _WireGenerator(CodeGenerator):
    """jinja2's code generator, whose outermost output is encoded pieces handed to `context.write`.

    What is captured (in macros, `{% set %}` blocks, filters) stays text: it comes out as a value later on.
    """

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
                self.write("(_encoded[_value] if type(_value := ")
                self.visit(item, frame)
                self.write(") is str else _other(_value)),")
        self.outdent()
        self.writeline("))")

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
        # `senders.rendering`'s sandbox, for the case that nearly always is: a field of a dict that has a value
        self.write("(_field if type(_record := ")
        self.visit(node.node, frame)
        name = repr(node.attr)
        self.write(
            f") is dict and (_field := _record.get({name})) is not None and _field != ''"
            f" else environment.getattr(_record, {name}))"
        )


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


def wire_environment(environment: Environment) -> Environment:
    """The environment's twin whose templates write encoded pieces."""
    twin = environment.overlay()
    twin.code_generator_class = _WireGenerator
    twin.context_class = WireContext
    return twin


class WirePart:
    """One body part, `text/plain` or `text/html`, ready to be filled in.

    Args:
        environment: from `wire_environment`.
        source: the part with its merge tags.
        as_text: fills the part in as text; used where base64 is shorter, for nothing can be encoded beforehand then.
        is_trimmed: blank lines are joined to one and none stand at the ends, as `senders.rendering` does for text.
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
        self._root = None
        if prefers_base64(source):
            self._head, self._as_text = head % (subtype, b"base64"), as_text
            return
        self._head = head % (subtype, b"quoted-printable")
        if not is_trimmed and not source.endswith("\n"):
            source += "\n"
        template = environment.from_string(source)
        self._root = template.root_render_func
        self._root.__globals__.update(
            _encoded=_html_values if not is_trimmed else _text_values,
            _made=_made_in_html if not is_trimmed else _made_in_text,
            _other=_other_in_html if not is_trimmed else _other_in_text,
        )

    def write(self, context: dict[str, Any], out: list[bytes]) -> None:
        """Append the part with its header, to the line end before the next boundary.

        Args:
            context: what merge tags name, and the environment's globals.
        """
        if self._root is None:
            text = _LINE_END.sub("\n", self._as_text(context))
            out += (self._head, base64_lines((text if text.endswith("\n") else text + "\n").encode()))
            return
        made = WireContext(self.environment, context, None, {})
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
    content = content.strip(b" \t\r\n")
    # what is left at the ends is a soft break or an encoded space, rarely
    while content.startswith(_SPACES):
        content = content[next(len(space) for space in _SPACES if content.startswith(space)) :]
    # an equals sign of the text's own would be =3D
    content = content.rstrip(b" \t\r\n=")
    while content.endswith(_SPACES):
        content = content[: -next(len(space) for space in _SPACES if content.endswith(space))]
    return content + _HARD
