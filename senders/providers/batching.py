"""Many personal messages in one call: what they share is sent once, what differs as values a recipient.

A provider is handed messages that are rendered, each with HTML of its own. `share` finds what messages of one template
have in common and leaves gaps where they differ. Whatever it finds, filling a recipient's values into the gaps gives
that recipient's message back character by character, because the values are what stands between the common parts.

Messages that come in the pieces that their template wrote (`Message.pieces`) are laid side by side: a piece that is the
same in all is common, and columns of pieces that are the same are one gap. Messages built differently (one has a
condition's block, the other has not) have the common parts that both have in the same order. Without pieces the common
parts are searched for in each message, at ten times the cost.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from senders.message import Message

#: Tokens between which messages may differ: in HTML text runs, tags' words and attributes, in text lines.
_HTML = re.compile(r'[^<>"\n]+|[<>"\n]+')
_TEXT = re.compile(r"[^\n]+|\n+")
#: A common part that is shorter joins the values beside it: it would be found anywhere.
_SHORTEST = 4
#: Characters of a common part that are searched for.
_BEGINNING = 32
#: Share of the HTML that messages of one shape have in common at least: less is not worth sending together.
_LEAST = 0.25
#: Shapes that are tried before a message counts as a shape of its own.
_SHAPES = 16


@dataclass(frozen=True)
class Shared:
    """Messages with one HTML and one text for all.

    Attributes:
        html, text: with a tag at each gap; a tag may stand in several.
        values: for each message, tag -> what stands there. Empty for messages that are the same for all.
    """

    messages: Sequence[Message]
    html: str
    text: str
    values: Sequence[dict[str, str]]


def share(
    messages: Sequence[Message], *, tag: Callable[[str], str], most_bytes: int, most: int = 1000
) -> list[Shared]:
    """Group messages by their common HTML and text.

    Args:
        tag: a name of letters and digits -> how the provider writes a tag of that name.
        most_bytes: UTF-8 bytes of one message's tags and values at most; a message with more goes alone.
        most: messages in one group at most.
    """
    done: list[Shared] = []
    whole: list[Message] = []
    lying: dict[tuple[int, int], list[Message]] = {}
    for message in messages:
        pieces = message.pieces
        if pieces is None:
            whole.append(message)
            continue
        html, text = pieces
        key = len(html), len(text)
        if key in lying:
            lying[key].append(message)
        else:
            lying[key] = [message]
    shapes: list[_Columns] = []
    for members in lying.values():
        while members:
            columns, members = _Columns.of(members)
            shapes.append(columns)
    shapes.sort(key=lambda one: len(one.members), reverse=True)
    # laying shapes over each other takes milliseconds, once; of so many, most have a few messages only
    whole += [message for columns in shapes[2 * _SHAPES :] for message in columns.members]
    for bundle in _bundles(shapes[: 2 * _SHAPES], most_bytes):
        if bundle.is_worth_it:
            done += bundle.finish(tag, most_bytes, most)
        else:
            whole += [message for columns in bundle.columns for message in columns.members]
    return done + _searched(whole, tag, most_bytes, most)


class _Columns:
    """Messages that are built alike, their pieces side by side.

    Attributes:
        constants: of HTML and of text, by column: the piece that is the same in all messages, None for those below.
        columns: the others.
        skeletons: the constants alone.
    """

    def __init__(
        self,
        members: Sequence[Message],
        constants: Sequence[Sequence[str | None]],
        columns: Sequence[Sequence[tuple[str, ...]]],
    ) -> None:
        self.members, self.constants, self.columns = members, constants, columns
        self.skeletons = [tuple(piece for piece in part if piece is not None) for part in constants]

    @classmethod
    def of(cls, members: Sequence[Message]) -> tuple[_Columns, list[Message]]:
        """Messages of as many pieces, and those of them that are built differently."""
        parts = [[message.pieces[part] for message in members if message.pieces] for part in (0, 1)]
        count = len(members)
        samples = [(rows[0], rows[count // 2], rows[-1]) for rows in parts]
        # constants of a template are the very same objects in all its messages
        fixed = [
            [at for at, (a, b, c) in enumerate(zip(*three, strict=True)) if a is b is c] for three in samples
        ]
        left: list[Message] = []
        for places, rows in zip(fixed, parts, strict=True):
            if not places:
                continue
            pick = operator.itemgetter(*places)
            wanted = pick(rows[0])
            if list(map(pick, rows)).count(wanted) < count:
                good = [pick(row) == wanted for row in rows]
                left = [message for message, is_good in zip(members, good, strict=True) if not is_good]
                mine = [message for message, is_good in zip(members, good, strict=True) if is_good]
                made, others = cls.of(mine)
                return made, left + others
        constants: list[list[str | None]] = []
        columns: list[list[tuple[str, ...]]] = []
        for places, rows in zip(fixed, parts, strict=True):
            known: list[str | None] = [None] * len(rows[0])
            for at in places:
                known[at] = rows[0][at]
            others = [at for at, piece in enumerate(known) if piece is None]
            varying: list[tuple[str, ...]] = []
            for at, column in zip(others, _transposed(rows, others), strict=True):
                # values may be the same for all, too
                if column[0] == column[-1] and column.count(column[0]) == count:
                    known[at] = column[0]
                else:
                    varying.append(column)
            constants.append(known)
            columns.append(varying)
        return cls(members, constants, columns), left

    def gaps(self, part: int, skeleton: Sequence[str]) -> list[Sequence[str] | None]:
        """What stands before each piece of a skeleton and behind the last, message by message; None for nothing."""
        found: list[Sequence[str] | None] = []
        between: list[Sequence[str]] = []
        varying = iter(self.columns[part])
        wanted = iter((*skeleton, None))
        next_one = next(wanted)
        for constant in self.constants[part]:
            if constant is None:
                between.append(next(varying))
            elif constant == next_one:
                found.append(_run(between))
                between = []
                next_one = next(wanted)
            else:
                between.append((constant,) * len(self.members))
        found.append(_run(between))
        return found


def _transposed(rows: Sequence[Sequence[str]], places: Sequence[int]) -> list[tuple[str, ...]]:
    if not places:
        return []
    if len(places) == 1:
        return [tuple([row[places[0]] for row in rows])]
    return list(zip(*map(operator.itemgetter(*places), rows), strict=True))


def _run(columns: Sequence[Sequence[str]]) -> Sequence[str] | None:
    if len(columns) > 1:
        return list(map("".join, zip(*columns, strict=True)))
    return columns[0] if columns else None


class _Bundle:
    """Messages that go together although they are built differently.

    Attributes:
        skeletons: pieces of HTML and of text that all have, in order.
    """

    def __init__(self, first: _Columns) -> None:
        self.columns = [first]
        self.skeletons = first.skeletons
        self._longest = _length(first.skeletons)

    @property
    def is_worth_it(self) -> bool:
        """Whether enough is in common."""
        pieces = self.columns[0].members[0].pieces
        return pieces is not None and sum(map(len, self.skeletons[0])) >= _LEAST * sum(map(len, pieces[0]))

    def take(self, columns: _Columns, most_bytes: int) -> bool:
        """Add messages, unless they or ours would have too much that is not in common."""
        skeletons = [_common(*pair) for pair in zip(self.skeletons, columns.skeletons, strict=True)]
        longest = max(self._longest, _length(columns.skeletons))
        if longest - _length(skeletons) > most_bytes // 3:
            return False
        self.columns.append(columns)
        self.skeletons, self._longest = skeletons, longest
        return True

    def finish(self, tag: Callable[[str], str], most_bytes: int, most: int) -> list[Shared]:
        """The messages in groups; those that have too much of their own alone."""
        # nobody can know it beforehand, so no content holds it
        salt = secrets.token_hex(6)
        members = [message for columns in self.columns for message in columns.members]
        tags: list[str] = []
        values: list[Sequence[str]] = []
        known: dict[tuple[str, ...], list[int]] = {}
        bodies: list[str] = []
        for part in (0, 1):
            body: list[str] = []
            skeleton = self.skeletons[part]
            found = [columns.gaps(part, skeleton) for columns in self.columns]
            for number, theirs in enumerate(zip(*found, strict=True)):
                if any(one is not None for one in theirs):
                    column = _stacked(theirs, self.columns)
                    # a column that is the same has the same in a few places, too: the others are not compared
                    alike = known.setdefault((column[0], column[len(column) // 2], column[-1]), [])
                    at = next((one for one in alike if values[one] == column), -1)
                    if at < 0:
                        at = len(values)
                        alike.append(at)
                        tags.append(tag(f"{salt}{at}"))
                        values.append(column)
                    body.append(tags[at])
                if number < len(skeleton):
                    body.append(skeleton[number])
            bodies.append("".join(body))
        size = sum(map(len, tags))
        alone: list[Shared] = []
        together: list[Message] = []
        filled: list[dict[str, str]] = []
        rows = list(zip(*values, strict=True)) if values else [()] * len(members)
        # no character has more than four bytes
        if size + 4 * max(map(len, map("".join, rows)), default=0) <= most_bytes:
            together = members
            filled = [dict(zip(tags, row, strict=True)) for row in rows]
        else:
            for message, row in zip(members, rows, strict=True):
                if size + len("".join(row).encode()) > most_bytes:
                    alone.append(_alone(message))
                else:
                    together.append(message)
                    filled.append(dict(zip(tags, row, strict=True)))
        return alone + [
            Shared(together[start : start + most], bodies[0], bodies[1], filled[start : start + most])
            if len(together) - start > 1
            else _alone(together[start])
            for start in range(0, len(together), most)
        ]


def _bundles(shapes: Sequence[_Columns], most_bytes: int) -> list[_Bundle]:
    """Shapes, largest first, that go together."""
    bundles: list[_Bundle] = []
    for columns in shapes:
        if not any(bundle.take(columns, most_bytes) for bundle in bundles[:4]):
            bundles.append(_Bundle(columns))
    return bundles


def _stacked(parts: Sequence[Sequence[str] | None], columns: Sequence[_Columns]) -> tuple[str, ...]:
    """One column of all messages of a bundle."""
    if len(parts) == 1 and parts[0] is not None:
        return tuple(parts[0])
    return tuple(
        itertools.chain.from_iterable(
            itertools.repeat("", len(one.members)) if part is None else part
            for part, one in zip(parts, columns, strict=True)
        )
    )


def _length(skeletons: Sequence[Sequence[str]]) -> int:
    return sum(len(piece) for skeleton in skeletons for piece in skeleton)


@functools.lru_cache(maxsize=256)
def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Pieces that both have, in order. The same few templates come again and again."""
    if first == second:
        return first
    matches = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return tuple(itertools.chain.from_iterable(first[match.a : match.a + match.size] for match in matches))


def _searched(
    messages: Sequence[Message], tag: Callable[[str], str], most_bytes: int, most: int
) -> list[Shared]:
    """`share` of messages without pieces."""
    groups: list[_Group] = []
    alike: dict[tuple[int, ...], list[_Group]] = {}
    for message in messages:
        # most messages are of a shape that is known by now, and trying is cheaper than counting
        if any(group.take(message) for group in groups[-_SHAPES:]):
            continue
        # messages that are built alike have as many of each
        html, text = message.html, message.text
        key = (html.count("<"), html.count('"'), html.count("\n"), text.count("\n"))
        candidates = alike.setdefault(key, [])
        if not any(group.take(message, widen=True) for group in candidates[-_SHAPES:]):
            groups.append(_Group(message))
            candidates.append(groups[-1])
    return [
        shared
        for group in groups
        for start in range(0, len(group.members), most)
        for shared in group.finish(start, start + most, tag, most_bytes)
    ]


class _Shape:
    """The common parts of texts: `parts[0] value parts[1] value ... parts[-1]`."""

    def __init__(self, text: str, token: re.Pattern[str], least: float = 0.0) -> None:
        self._token, self._least = token, least
        self._tokens: list[str | None] = list(token.findall(text))
        self.parts: list[str] = [text]

    def values(self, text: str) -> list[str] | None:
        """What stands in the gaps of a text; None if the text is not of this shape."""
        parts = self.parts
        if len(parts) == 1:
            return [] if text == parts[0] else None
        if not text.startswith(parts[0]):
            return None
        at = len(parts[0])
        found: list[str] = []
        for part in parts[1:-1]:
            # a search for something long costs its length beforehand, a comparison next to nothing
            beginning = part[:_BEGINNING]
            begin = text.find(beginning, at)
            while begin >= 0 and not text.startswith(part, begin):
                begin = text.find(beginning, begin + 1)
            if begin < 0:
                return None
            found.append(text[at:begin])
            at = begin + len(part)
        end = len(text) - len(parts[-1])
        if end < at or not text.endswith(parts[-1]):
            return None
        found.append(text[at:end])
        return found

    def widened(self, text: str) -> bool:
        """Open gaps where the text differs; False if it is built differently, or too little would be in common."""
        tokens = self._token.findall(text)
        if len(tokens) != len(self._tokens):
            return False
        common = [ours if ours == theirs else None for ours, theirs in zip(self._tokens, tokens, strict=True)]
        if sum(len(token) for token in common if token is not None) < self._least * len(text):
            return False
        self._tokens = common
        runs = [
            "" if is_gap else "".join(token for token in group if token is not None)
            for is_gap, group in itertools.groupby(self._tokens, key=lambda token: token is None)
        ]
        parts = [""] if self._tokens[:1] == [None] else []
        for number, run in enumerate(runs):
            if run and (len(run) >= _SHORTEST or number in (0, len(runs) - 1)):
                parts.append(run)
        if self._tokens[-1:] == [None]:
            parts.append("")
        self.parts = parts
        return True


class _Group:
    def __init__(self, message: Message) -> None:
        self.html, self.text = _Shape(message.html, _HTML, _LEAST), _Shape(message.text, _TEXT)
        # each with its values under the shape of then, which are good as long as the shape is
        self.members: list[tuple[Message, list[str], int]] = [(message, [], 0)]
        self.version = 0

    @property
    def gaps(self) -> int:
        return len(self.html.parts) + len(self.text.parts) - 2

    def take(self, message: Message, *, widen: bool = False) -> bool:
        """Add the message if it is of this shape, or with `widen` if the shape can be made to hold it."""
        values: list[str] = []
        for shape, text in ((self.html, message.html), (self.text, message.text)):
            found = shape.values(text)
            if found is None and widen and shape.widened(text):
                self.version += 1
                found = shape.values(text)
            if found is None:
                return False
            values += found
        self.members.append((message, values, self.version))
        return True

    def finish(self, start: int, stop: int, tag: Callable[[str], str], most_bytes: int) -> list[Shared]:
        """The members from `start` to `stop`: together, but for those that have too much of their own."""
        # nobody can know it beforehand, so no content holds it
        salt = secrets.token_hex(6)
        tags = [tag(f"{salt}{number}") for number in range(self.gaps)]
        size = sum(map(len, tags))
        together: list[Message] = []
        values: list[dict[str, str]] = []
        groups: list[Shared] = []
        for message, known, version in self.members[start:stop]:
            found = known if version == self.version else self._values(message)
            if found is None or size + len("".join(found).encode()) > most_bytes:
                groups.append(_alone(message))
            else:
                together.append(message)
                values.append(dict(zip(tags, found, strict=True)))
        if len(together) == 1:
            groups.append(_alone(together[0]))
        elif together:
            html_gaps = len(self.html.parts) - 1
            html, text = (
                _filled(self.html.parts, tags[:html_gaps]),
                _filled(self.text.parts, tags[html_gaps:]),
            )
            groups.append(Shared(together, html, text, values))
        return groups

    def _values(self, message: Message) -> list[str] | None:
        html, text = self.html.values(message.html), self.text.values(message.text)
        return None if html is None or text is None else html + text


def _alone(message: Message) -> Shared:
    return Shared([message], message.html, message.text, [{}])


def _filled(parts: Sequence[str], tags: Sequence[str]) -> str:
    return "".join(itertools.chain.from_iterable(zip(parts, [*tags, ""], strict=True)))
