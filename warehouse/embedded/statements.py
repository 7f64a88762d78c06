"""Where in a query's bytes the statement ends and its data begins, and which output format it names.

ClickHouse's own parser judges what a statement does (`access`); this module only finds clauses at the end of a
statement and the data behind `INSERT ... FORMAT X`, which may be binary and so cannot be handed to a parser. It walks
tokens, so that words inside strings, quoted names and comments are not taken for clauses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""
      (?P<space> \s+ | --[^\n]* | \#[ !][^\n]* | /\*.*?\*/ )
    | (?P<quoted> '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<word> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<number> [0-9][A-Za-z0-9_.]* )
    | (?P<mark> . )
    """,
    re.DOTALL | re.VERBOSE,
)
_MAYBE_FORMAT = re.compile(rb"\bFORMAT\s", re.IGNORECASE)
# after these a word is an operand, not a clause: a column may be called `format`
_BEFORE_NAME = frozenset({b".", b",", b"=", b"+", b"-", b"/", b"%", b"<", b">"})
_DATA_START = re.compile(rb"[ \t\f]*(?:;)?[ \t\f]*\r?\n?")


@dataclass(frozen=True)
class Token:
    """A word, mark, number or quoted text (never a space or comment) and where it stands."""

    kind: str
    text: bytes
    start: int
    end: int

    def is_word(self, *words: bytes) -> bool:
        """Whether it is one of these keywords, whatever its case."""
        return self.kind == "word" and self.text.upper() in words


def tokens(query: bytes, start: int = 0) -> Iterator[Token]:
    """The tokens of a query, spaces and comments left out."""
    for match in _TOKEN.finditer(query, start):
        kind = match.lastgroup or "mark"
        if kind == "tag":
            kind = "quoted"
        if kind != "space":
            yield Token(kind, match.group(), match.start(), match.end())


def first_word(query: bytes) -> bytes:
    """The keyword a statement begins with, upper case; parentheses skipped; empty if it begins otherwise."""
    for token in tokens(query):
        if token.kind == "word":
            return token.text.upper()
        if token.text != b"(":
            break
    return b""


def is_insert(query: bytes) -> bool:
    """Whether the statement is an INSERT."""
    return first_word(query) == b"INSERT"


@dataclass(frozen=True)
class InsertHead:
    """An INSERT cut where its data begins.

    Attributes:
        target: the text up to SETTINGS: table, columns, a SELECT from input().
        settings: the SETTINGS clause, empty if there is none.
        format: the data's format; `Values` for VALUES.
        data_start: offset of the first byte of data.
        has_select: the rows go through a SELECT.
    """

    target: bytes
    settings: bytes
    format: str
    data_start: int
    has_select: bool

    @property
    def statement(self) -> bytes:
        """The text before FORMAT or VALUES."""
        return self.target + self.settings


def insert_head(query: bytes) -> InsertHead | None:
    """Cut an INSERT at its data; None if it names none (INSERT SELECT)."""
    depth = 0
    before: Token | None = None
    format_at: int | None = None
    settings_at: int | None = None
    has_select = False

    def head(end: int, data_format: str, data_start: int) -> InsertHead:
        cut = end if settings_at is None else settings_at
        return InsertHead(query[:cut], query[cut:end], data_format, data_start, has_select)

    for token in tokens(query):
        if format_at is not None:
            if token.kind != "word":
                return None
            after = _DATA_START.match(query, token.end)
            start = after.end() if after else token.end
            return head(format_at, token.text.decode(), start)
        is_name = before is not None and (
            before.text in _BEFORE_NAME or before.is_word(b"INTO", b"TABLE", b"SELECT")
        )
        if token.text == b"(":
            depth += 1
        elif token.text == b")":
            depth -= 1
        elif depth == 0 and not is_name and token.kind == "word":
            if token.is_word(b"FORMAT"):
                format_at = token.start
            elif token.is_word(b"SETTINGS") and not has_select:
                settings_at = token.start
            elif token.is_word(b"SELECT", b"WITH"):
                has_select = True
            elif token.is_word(b"VALUES") and not has_select:
                return head(token.start, "Values", token.end)
        before = token
    return None


@dataclass(frozen=True)
class Output:
    """A statement and the output format that it names at its very end, '' if it names none there.

    Attributes:
        statement: the text; without the FORMAT clause and `;` if that clause stood last.
        format: the format's name.
    """

    statement: bytes
    format: str


def output_of(query: bytes) -> Output:
    """Cut `FORMAT X` off a query's end. A FORMAT followed by SETTINGS is named but left where it is."""
    if not _MAYBE_FORMAT.search(query):
        return Output(query, "")
    found: list[Token] = list(tokens(query))
    while found and found[-1].text == b";":
        found.pop()
    if len(found) > 2 and found[-2].is_word(b"FORMAT") and found[-1].kind == "word":
        return Output(query[: found[-2].start].rstrip(), found[-1].text.decode())
    depth = 0
    for place, token in enumerate(found[:-1]):
        depth += (token.text == b"(") - (token.text == b")")
        after = found[place + 2] if place + 2 < len(found) else None
        if depth == 0 and token.is_word(b"FORMAT") and after is not None and after.is_word(b"SETTINGS"):
            return Output(query, found[place + 1].text.decode())
    return Output(query, "")


@dataclass(frozen=True)
class InputCall:
    """`input('structure')` in a statement: the quoted structure, and where the call stands."""

    structure: bytes
    start: int
    end: int


def input_call(statement: bytes) -> InputCall | None:
    """The call of input() in an INSERT SELECT, None if there is none with a literal structure."""
    found = list(tokens(statement))
    for place, token in enumerate(found[:-3]):
        opening, structure, closing = found[place + 1 : place + 4]
        if (
            token.is_word(b"INPUT")
            and opening.text == b"("
            and closing.text == b")"
            and structure.text[:1] == b"'"
        ):
            return InputCall(structure.text, token.start, closing.end)
    return None


_NO_ROWS = re.compile(rb"\blimit\s+0[\s;]*$", re.IGNORECASE)


def asks_for_columns(query: bytes) -> bool:
    """Whether the query is `SELECT * FROM (...) LIMIT 0`, as dbt asks what another query would give."""
    if not _NO_ROWS.search(query):
        return False
    found = list(tokens(query))
    while found and found[-1].text == b";":
        found.pop()
    if len(found) < 8 or not (
        found[0].is_word(b"SELECT") and found[1].text == b"*" and found[2].is_word(b"FROM")
    ):
        return False
    depth = 0
    for place, token in enumerate(found[3:], 3):
        depth += (token.text == b"(") - (token.text == b")")
        if depth == 0:
            # what follows the first subquery: a name of it, and nothing else that has rows
            rest = found[place + 1 :]
            if len(rest) == 4 and rest[0].is_word(b"AS") and rest[1].kind == "word":
                rest = rest[2:]
            return len(rest) == 2 and rest[0].is_word(b"LIMIT") and rest[1].text == b"0"
    return False
