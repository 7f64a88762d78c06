"""Templates compiled for the wire: what is constant is encoded once, values are escaped and encoded as they go in.

jinja2's own code generator makes the function; only what it writes at the outermost level is replaced. Everything that
gives a template its meaning (scopes, loops, macros, filters, the sandbox, what is missing) is therefore jinja2's and
the same as in `senders.templates`, and no construct needs another path.

What most tags print is one field of a contact or product, perhaps through filters that depend on nothing else:
`contact.city | default('your town')`, `product.price | money('EUR')`. What such a tag prints is made for a whole column
at once (`senders.tags`), so that the function only picks it up. Where there is nothing to pick up, because the field is
empty, a filter fails or the record came another way, the tag is evaluated as ever.

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
from jinja2.idtracking import VAR_LOAD_RESOLVE
from jinja2.runtime import Context

from senders.mime import base64_lines, prefers_base64, quoted
from senders.pieces import (
    HTML_VALUES,
    MARK,
    TEXT_VALUES,
    made_in_html,
    made_in_text,
    other_in_html,
    other_in_text,
)
from senders.tags import EVALUATE, MISSING, TRACKED, Pair, Product, Tags, printed_of

Pieces = Callable[[tuple[bytes, ...]], None]

_LINE_END = re.compile(r"\r\n?")
_HARD = b"\r\n"
_TAGS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
#: Types of records whose fields are what `get` gives.
_DICTS = frozenset({dict, Product})

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
# the first of three may be the end of a soft break
_THREE_ENDS = re.compile(rb"\r\n\r\n\r\n(?<!=\r\n\r\n\r\n)")
_BLANK_LINES = re.compile(rb"\r\n(?<!=\r\n)(?:(?:=\r\n|=20| )*\r\n(?<!=\r\n)){2,}")


class WireContext(Context):
    """A context that knows where the encoded pieces go, and may be used again for the next message.

    Attributes:
        pairs: what tags print of this contact, by the tag's number.
    """

    write: Pieces
    pairs: Sequence[Pair]

    @property
    def click(self) -> bytes:
        """What tracked links of this message begin with."""
        return getattr(self.parent.get("click_url"), "encoded", b"")

    def begin(self, given: dict[str, Any], pairs: Sequence[Pair]) -> None:
        """Forget the last message."""
        self.parent, self.pairs = given, pairs
        if self.vars:
            self.vars = {}
            self.exported_vars = set()


class _WireGenerator(CodeGenerator):
    """jinja2's code generator, whose outermost output is encoded pieces handed to `context.write`.

    What is captured (in macros, `{% set %}` blocks, filters) stays text: it comes out as a value later on.

    Args:
        tags: gets the tags that print one field.
    """

    def __init__(self, environment: Environment, tree: nodes.Template, tags: Tags) -> None:
        super().__init__(environment, None, None)
        self._tags = tags
        self._is_html = bool(environment.autoescape)
        # who calls something else `contact` means that
        self._is_contact_given = not any(
            name.name == "contact" and name.ctx != "load" for name in tree.find_all(nodes.Name)
        )

        self._has_tracked = any(one.name == TRACKED for one in tree.find_all(nodes.Filter))

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("_contact = context.pairs")
        self.writeline("_given = context.parent.get")
        if self._has_tracked:
            self.writeline("_click = context.click")

    def enter_frame(self, frame: Frame) -> None:
        if not (frame.toplevel and frame.rootlevel):
            super().enter_frame(frame)
            return
        # when a message begins, the context has only what it was given: that needs no call into Python
        loads = frame.symbols.loads
        asked = {target: name for target, (action, name) in loads.items() if action == VAR_LOAD_RESOLVE}
        for target, name in asked.items():
            self.writeline(f"{target} = _given({name!r}, missing)")
        frame.symbols.loads = {target: load for target, load in loads.items() if target not in asked}
        super().enter_frame(frame)
        frame.symbols.loads = loads

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
                    piece += MARK
                self.writeline(f"{piece!r},")
            else:
                self.newline(item)
                self._printed(item, frame)
                self.write(",")
        self.outdent()
        self.writeline("))")

    def _printed(self, node: nodes.Node, frame: Frame) -> None:
        """The piece that a tag prints."""
        found = printed_of(node)
        is_contact = found is not None and found[0].name == "contact"
        if found is None or (is_contact and not self._is_contact_given):
            self._evaluated(node, frame)
            return
        name, (field, default, filters) = found
        is_tracked = bool(filters) and filters[-1][0] == TRACKED
        if is_tracked and (is_contact or not self._is_html):
            self._evaluated(node, frame)
            return
        stands_in = None
        if not filters and default is not MISSING:
            # the default stands apart, so tags of one field are one tag
            stands_in = (HTML_VALUES if self._is_html else TEXT_VALUES)[default] if default else b""
            default = MISSING
        number = self._tags.number((field, default, filters), is_contact=is_contact)
        if is_contact:
            piece = f"_contact[{number}][{int(self._is_html)}]"
            self.write(f"({piece} or (")
            if stands_in is not None:
                self.write(f"{stands_in!r} if {piece} is None else ")
            self._evaluated(node, frame)
            self.write("))")
            return
        self.write("(_click + _piece if _click and " if is_tracked else "(_piece if ")
        self.write("type(_record := ")
        self.visit(name, frame)
        piece = f"_record.pieces[{2 * number + int(self._is_html)}]"
        self.write(f") is _Product and (_piece := {piece}) else ")
        if stands_in is not None:
            self.write(f"{stands_in!r} if type(_record) is _Product and {piece} is None else ")
        self._evaluated(node, frame)
        self.write(")")

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
    twin.context_class = WireContext
    return twin


class WirePart:
    """One body part, `text/plain` or `text/html`, ready to be filled in.

    Args:
        environment: from `wire_environment`.
        source: the part with its merge tags.
        as_text: fills the part in as text; used where base64 is shorter, for nothing can be encoded beforehand then.
        is_trimmed: blank lines are joined to one and none stand at the ends, as `senders.rendering` does for text.
        tags: gets the tags that print one field; those of both parts of a template are counted together.

    Attributes:
        is_precompiled: its constant pieces are encoded; false where each message's part is made whole.
    """

    def __init__(
        self,
        environment: Environment,
        source: str,
        as_text: Callable[[Mapping[str, Any]], str],
        *,
        is_trimmed: bool,
        tags: Tags | None = None,
    ) -> None:
        self.environment, self.is_trimmed = environment, is_trimmed
        subtype = b"plain" if is_trimmed else b"html"
        head = b'Content-Type: text/%b; charset="utf-8"\r\nContent-Transfer-Encoding: %b\r\n\r\n'
        self._root: Callable[[Context], Iterator[str]] | None = None
        self.is_precompiled = not prefers_base64(_TAGS.sub("", source))
        self._tags = tags or Tags(environment, environment)
        if not self.is_precompiled:
            self._tags.look_at(environment.parse(source), is_precompiled=False)
            self._head, self._as_text = head % (subtype, b"base64"), as_text
            return
        self._head = head % (subtype, b"quoted-printable")
        if not is_trimmed and not source.endswith("\n"):
            source += "\n"
        tree = environment.parse(source)
        self._tags.look_at(tree)
        generator = _WireGenerator(environment, tree, self._tags)
        generator.visit(tree)
        code = compile(generator.stream.getvalue(), "<template>", "exec")  # pyright: ignore[reportAttributeAccessIssue]
        names: dict[str, Any] = {"environment": environment, "__file__": "<template>"}
        exec(code, names)  # noqa: S102 - what jinja2 does with the code that it makes
        names.update(
            _encoded=TEXT_VALUES if is_trimmed else HTML_VALUES, _made=made_in_text if is_trimmed else made_in_html,
            _other=other_in_text if is_trimmed else other_in_html, _Product=Product, _DICTS=_DICTS,
        )  # fmt: skip
        self._root = names["root"]
        self._context = WireContext(environment, {}, "", {})

    def write(self, context: dict[str, Any], out: list[bytes], pairs: Sequence[Pair] | None = None) -> None:
        """Append the part with its header, to the line end before the next boundary. Not for two threads at once.

        Args:
            context: what merge tags name, and the environment's globals.
            pairs: what each of the tags of the contact prints; without, every tag is evaluated.
        """
        if self._root is None:
            text = _LINE_END.sub("\n", self._as_text(context))
            out += (self._head, base64_lines((text if text.endswith("\n") else text + "\n").encode()))
            return
        made = self._context
        made.begin(context, [EVALUATE] * len(self._tags.of_contact) if pairs is None else pairs)
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
    if MARK in content or _THREE_ENDS.search(content):
        content = _BLANK_LINES.sub(b"\r\n\r\n", content.replace(MARK, b""))
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
