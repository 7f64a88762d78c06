"""YAML files that people write, read so that every mistake gets its place and its remedy.

A spec is a class derived from `Spec`; `load_spec` reads one file into it. Keys that the class does not have,
keys written twice, wrong types and wrong values raise `InputError`, whose message names file, line, key and
whose `fix` names what is allowed and the nearest right spelling. YAML is read as 1.2 without tags: `no` is a
word, a time stays as it was written until a field of type `datetime` reads it.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, PrivateAttr, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from warehouse.errors import InputError

SpecModel = TypeVar("SpecModel", bound=BaseModel)

Location = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_LARGEST = 1_000_000  # bytes; a spec is a page of text, anything larger is a mistaken path
_DEEPEST = 50


@dataclass(frozen=True)
class Problem:
    """One mistake in one file.

    Attributes:
        place: `file:line`.
        what: what is wrong, naming the key.
        hint: how to mend it; may be empty.
    """

    place: str
    what: str
    hint: str = ""


@dataclass(frozen=True)
class Document:
    """A YAML file as plain Python values, with the line of every key.

    Attributes:
        path: the file.
        values: the top-level mapping; keys are strings.
        lines: from a location such as `('send', 'template')` to its line, counted from 1.
        text: the file as it stands.
    """

    path: Path
    values: dict[str, Any]
    lines: Mapping[Location, int]
    text: str

    def place(self, *location: str | int) -> str:
        """`file:line` of a location, or of the nearest thing around it that is in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{shown_path(self.path)}:{self.lines.get(location, 1)}"


class Spec(BaseModel):
    """Base of what people write in YAML: unknown keys raise, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    _document: Document | None = PrivateAttr(None)

    @property
    def document(self) -> Document | None:
        """The file this was read from, None if it was made in code."""
        return self._document

    def place(self, *location: str | int) -> str:
        """`file:line` of a key, for errors found after reading; the class's name if there is no file."""
        return self._document.place(*location) if self._document else type(self).__name__

    def line_place(self, line: int, *location: str | int) -> str:
        """`file:line` of a line, counted from 1, of the text that a key holds."""
        place = self.place(*location)
        if self._document is None:
            return place
        file, _, number = place.rpartition(":")
        first = int(number)
        # only a literal block keeps its lines; other styles fold them, and the key's line is all that is sure
        if re.search(r"[|][+-]?\d*\s*(#.*)?$", self._document.text.splitlines()[first - 1]):
            return f"{file}:{first + line}"
        return place


def load_spec(path: Path, model: type[SpecModel], *, name_key: str | None = None) -> SpecModel:
    """Read one YAML file into a spec.

    Args:
        path: the file, UTF-8.
        model: the spec's class; derive it, and what it nests, from `Spec`.
        name_key: a top-level key whose value must equal the file's name without `.yaml`.

    Raises:
        InputError: the file is missing, is no YAML, or does not fit the class.
    """
    document = read_document(path)
    spec, problems = _validated(document, model, name_key)
    if spec is None or problems:
        raise problems_error(problems)
    return spec


def load_specs(folder: Path, model: type[SpecModel], *, name_key: str) -> dict[str, SpecModel]:
    """Read every `*.yaml` of a folder; from names, in order, to specs. A missing folder holds none.

    Raises:
        InputError: lists the mistakes of all files at once.
    """
    specs: dict[str, SpecModel] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.y*ml")) if folder.is_dir() else []:
        if path.suffix != ".yaml":
            problems.append(
                Problem(
                    f"{shown_path(path)}:1",
                    "it would be overlooked.",
                    f"Rename it to {path.stem}.yaml.",
                )
            )
            continue
        try:
            document = read_document(path)
        except InputError as error:
            problems.append(Problem("", error.message, error.fix))
            continue
        spec, found = _validated(document, model, name_key)
        problems.extend(found)
        if spec is not None:
            specs[path.stem] = spec
    if problems:
        raise problems_error(problems)
    return specs


def problems_error(problems: Sequence[Problem]) -> InputError:
    """One error for one or several mistakes: a line each."""
    lines = [f"{problem.place}: {problem.what}" if problem.place else problem.what for problem in problems]
    if len(problems) == 1:
        return InputError(lines[0], fix=problems[0].hint)
    return InputError(
        "\n".join(f"{line} {problem.hint}".rstrip() for line, problem in zip(lines, problems, strict=True)),
        fix=f"Correct these {len(problems)} places.",
    )


def nearest(name: str, allowed: Iterable[str], *, shown: int = 30) -> str:
    """A sentence with the nearest right name, if one is near, and what is allowed."""
    names = list(allowed)
    if not names:
        return ""
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    listed = ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
    return (f"Did you mean {by_lower[close[0]]}? " if close else "") + f"Allowed: {listed}."


Found = TypeVar("Found")


def named(known: Mapping[str, Found], name: str, what: str, place: str, *, fix: str) -> Found:
    """The one of that name.

    Args:
        known: all, by name.
        name: which one.
        what: what it is, for the message: `campaign`.
        place: where they are: `content/campaigns`.
        fix: what to do where there is none at all.

    Raises:
        InputError: there is none of that name; names the nearest.
    """
    if name not in known:
        raise InputError(f"There is no {what} {name!r} in {place}.", fix=nearest(name, known) or fix)
    return known[name]


def shown_path(path: Path) -> str:
    """A path as people want to read it: relative where it lies below the working directory."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")


def parse_duration(value: object) -> timedelta:
    """Read a duration such as `90s`, `30m`, `24h`, `7d`, `2w` or `1h 30m`.

    Raises:
        ValueError: it is none, or it is zero.
    """
    if isinstance(value, timedelta):
        return value
    text = value.strip() if isinstance(value, str) else ""
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError("is no duration; write a number and a unit, such as 30m, 24h, 7d or 2w")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= 3650 * 86400:
        raise ValueError("must be longer than nothing and at most ten years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads back: `7d`, `36h`, `90s`."""
    milliseconds = duration // timedelta(milliseconds=1)
    for unit in ("d", "h", "m", "s"):
        size = int(_UNITS[unit] * 1000)
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]
"""A field type: `7d` in the file, `timedelta` in code."""


# Reading


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping; see the module for what is refused.

    Raises:
        InputError: names file and line.
    """
    shown = shown_path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist.", fix="Correct the name, or write the file.") from None
    except OSError as error:
        raise InputError(
            f"{shown} cannot be read: {error.strerror}.", fix="Make it a readable file."
        ) from None
    if len(raw) > _LARGEST:
        raise InputError(f"{shown} has {len(raw):,} bytes; at most {_LARGEST:,} are read.", fix="Shorten it.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{shown}:{line}: this is not UTF-8.", fix="Save the file as UTF-8.") from None
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)  # pyright: ignore[reportUnknownMemberType]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{shown}:{line}: this is not YAML: {what}.", fix=_syntax_hint(text, line)) from None
    except RecursionError:
        raise InputError(f"{shown}:1: this nests too deeply.", fix="Write it with fewer levels.") from None
    except YAMLError as error:
        what = str(error).splitlines()[0]
        raise InputError(
            f"{shown}:1: this is not YAML: {what}.", fix="Remove what is not plain text."
        ) from None
    if not isinstance(node, MappingNode):
        raise InputError(
            f"{shown}:1: the file {'is empty' if node is None else 'does not hold keys and values'}.",
            fix="Write it as lines of `key: value`.",
        )
    lines: dict[Location, int] = {(): node.start_mark.line + 1}
    reader = _Reader(shown, lines)
    values = reader.value(node, ())
    if reader.problems:
        raise problems_error(reader.problems)
    return Document(path, values, lines, text)


def _syntax_hint(text: str, line: int) -> str:
    around = text.splitlines()[max(0, line - 2) : line]
    if any("\t" in row for row in around):
        return "Indent with spaces; YAML allows no tabs."
    if any(row.count(": ") > 1 and "{" not in row for row in around):
        return "Put quotes around a value that holds a colon."
    if any("{{" in row or "{%" in row for row in around):
        return "Put quotes around a value that holds { or }."
    return "Check quotes, brackets and indentation on this line and the one before."


class _Reader:
    """Turns composed nodes into plain values and notes lines; collects what it refuses in `problems`."""

    def __init__(self, shown: str, lines: dict[Location, int]) -> None:
        self.shown = shown
        self.lines = lines
        self.problems: list[Problem] = []
        self._count = 0

    def value(self, node: Node, location: Location) -> Any:
        self._count += 1
        if len(location) > _DEEPEST or self._count > 20_000:
            # aliases of aliases multiply; and an alias may contain itself
            here = location[:3]
            self._refuse(
                node, here, "this nests or repeats too much.", "Write it out without aliases (*name)."
            )
            return None
        if not isinstance(node, ScalarNode) and str(node.tag) not in (f"{_TAG}map", f"{_TAG}seq"):
            self._refuse(node, location, f"tags such as {node.tag} are not read.", "Remove the tag.")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, location)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.lines.setdefault((*location, index), item.start_mark.line + 1)
                items.append(self.value(item, (*location, index)))
                if self.problems and self._count > 20_000:
                    break
            return items
        return self._scalar(node, location)

    def _mapping(self, node: MappingNode, location: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._refuse(key_node, location, "a key must be a word.", "Write it as `key: value`.")
                continue
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            here = (*location, key)
            if key in values:
                self.problems.append(
                    Problem(
                        f"{self.shown}:{line}",
                        f"{shown_location(here)} is written twice, first on line {self.lines[here]}.",
                        "Keep one of them.",
                    )
                )
                continue
            self.lines[here] = line
            values[key] = self.value(value_node, here)
            if self.problems and self._count > 20_000:
                break
        return values

    def _scalar(self, node: Node, location: Location) -> Any:
        text, tag = str(node.value), str(node.tag)
        if not tag.startswith(_TAG):
            self._refuse(node, location, f"tags such as {tag} are not read.", "Remove the tag.")
            return None
        kind = tag.removeprefix(_TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                return (
                    int(text.replace("_", ""), 0)
                    if text.lstrip("+-")[:2].lower() in ("0x", "0o")
                    else int(text)
                )
            if kind == "float":
                lowered = text.lower().replace("_", "")
                return float(lowered.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self._refuse(node, location, f"{text!r} is no number.", "Write a number, or quote it.")
            return None
        if kind in ("str", "timestamp", "value", "merge"):
            return text
        self._refuse(node, location, f"tags such as !!{kind} are not read.", "Remove the tag.")
        return None

    def _refuse(self, node: Node, location: Location, what: str, hint: str) -> None:
        name = f"{shown_location(location)}: " if location else ""
        self.problems.append(Problem(f"{self.shown}:{node.start_mark.line + 1}", name + what, hint))


# Validating


def shown_location(location: Location) -> str:
    """A location as people write it: `send.template`, `steps[2].wait`."""
    text = ""
    for part in location:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _validated(
    document: Document, model: type[SpecModel], name_key: str | None
) -> tuple[SpecModel | None, list[Problem]]:
    spec: SpecModel | None = None
    problems: list[Problem] = []
    try:
        spec = model.model_validate(document.values)
    except ValidationError as error:
        details = _without_misspelt(error.errors(include_url=False))
        # mistakes in the order of the file read better than in the order of the class
        problems = sorted(
            (_problem(document, model, detail) for detail in details),
            key=lambda problem: int(problem.place.rpartition(":")[2]),
        )
    if isinstance(spec, Spec):
        spec._document = document
    name = document.values.get(name_key) if name_key else None
    if name_key and isinstance(name, str) and name != document.path.stem:
        problems.append(
            Problem(
                document.place(name_key),
                f"{name_key} is {name!r}, but the file is {document.path.name}.",
                f"Write {name_key}: {document.path.stem}, or rename the file to {name}.yaml.",
            )
        )
    return spec, problems


def _without_misspelt(details: Sequence[Any]) -> list[Any]:
    """Drop 'missing' where a key beside it is evidently that one misspelt: it has a message of its own."""
    unknown = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
    return [
        detail
        for detail in details
        if detail["type"] != "missing"
        or not any(
            location[:-1] == detail["loc"][:-1]
            and difflib.get_close_matches(str(location[-1]).lower(), [str(detail["loc"][-1])], cutoff=0.6)
            for location in unknown
        )
    ]


def _problem(document: Document, model: type[BaseModel], detail: Any) -> Problem:
    location: Location = tuple(detail["loc"])
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    key = shown_location(location)
    parent = _model_at(model, location[:-1])
    keys = _keys(parent) if parent else []
    place = document.place(*location)
    if kind == "extra_forbidden":
        return Problem(place, f"{key} is no key here.", nearest(str(location[-1]), keys))
    if kind == "missing":
        return Problem(
            document.place(*location[:-1]), f"{key} is missing.", _wanted(parent, str(location[-1]))
        )
    if kind in ("literal_error", "enum"):
        allowed = [word.strip().strip("'") for word in re.split(r", | or ", str(context.get("expected", "")))]
        return Problem(place, f"{key} cannot be {_shown(value)}.", nearest(str(value), allowed))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        inner = _model_at(model, location)
        wanted = f" Keys: {', '.join(_keys(inner))}." if inner else ""
        return Problem(
            place, f"{key or 'the file'} must hold keys and values.", f"Write key: value pairs.{wanted}"
        )
    if kind == "value_error":
        message = str(context.get("error", detail["msg"]))
        what, _, hint = message.partition("\n")
        what, sep, more = what.partition("; ")
        return Problem(
            place, f"{key} {what}.".lstrip() if key else f"{what}.", hint or (_sentence(more) if sep else "")
        )
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return Problem(place, f"{key}: {message}.", _wanted(parent, str(location[-1])) if location else "")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _wanted(parent: type[BaseModel] | None, key: str) -> str:
    field = next(
        (f for name, f in (parent.model_fields if parent else {}).items() if (f.alias or name) == key), None
    )
    return (
        f"{key}: {field.description}."
        if field is not None and field.description
        else f"Add or correct {key}."
    )


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The class that the mapping at a location is read into, None if it is none."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields
            name = next((name for name, field in fields.items() if part in (name, field.alias)), None)
            if name is None:
                return None
            current = _unwrapped(fields[name].annotation)
        elif get_origin(current) in (list, tuple, set, frozenset, Sequence):
            current = _unwrapped(get_args(current)[0])
        elif get_origin(current) in (dict, Mapping):
            current = _unwrapped(get_args(current)[1])
        else:
            return None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _unwrapped(annotation: Any) -> Any:
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            inner = [arg for arg in get_args(annotation) if arg is not type(None)]
            if len(inner) != 1:
                return None
            annotation = inner[0]
        else:
            return annotation
