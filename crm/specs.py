"""What people write in `content/sources/*.yaml`: which files there are, and which column means what.

`docs/sources.md` is the reference.
"""

from __future__ import annotations

import codecs
import re
import string
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from zoneinfo import available_timezones

from pydantic import Field, PrivateAttr, field_validator, model_validator

from warehouse.errors import InputError
from warehouse.yaml_specs import Problem, Spec, load_spec, nearest, problems_error, read_document, shown_path

Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]{0,62}$", description="lower case letters, digits and _, e.g. online_shop."
    ),
]
Word = Annotated[str, Field(min_length=1)]


def check_name(what: str, name: str) -> None:
    """Refuse a name that no source may have.

    Raises:
        InputError: it has other characters.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise InputError(
            f"{what} {name!r} is no name.", fix="Write lower case letters, digits and _, e.g. fair_2026."
        )


FORMATS: dict[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""Formats by the end of a file's name."""

_TIME_CODES = frozenset("YymdeHIMSpPzbBhjTFRDfAa%Z")


class Value(Spec):
    """Where a field's value comes from: a column (also written as its bare name), a template, or a constant.

    Attributes:
        column: name of the column. template: text with columns in braces:
        `customer-{CustomerID}@example.com`; nothing if one of them is empty. value: the same for every row.
    """

    column: Word | None = Field(default=None, description="the name of a column of the file.")
    template: Word | None = Field(
        default=None, description="text with columns in braces, e.g. {first} {last}."
    )
    value: str | bool | int | float | None = Field(
        default=None, description="a constant, the same for every row."
    )

    _is_moment: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: Any) -> Any:
        if isinstance(given, (str, int, float)) and not isinstance(given, bool):
            return {"column": str(given)}
        if isinstance(given, bool) or given is None:
            raise ValueError("names no column; write `name: Column`, or {value: ...} for a constant")
        return given

    @model_validator(mode="after")
    def _one(self) -> Value:
        given = [name for name in ("column", "template", "value") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of column, template and value")
        if self.template is not None:
            try:
                parts = list(string.Formatter().parse(self.template))
            except ValueError:
                raise ValueError(
                    "has a brace too many or too few; write {Column}, and {{ for a brace"
                ) from None
            if any(
                name == "" or spec or conversion for _, name, spec, conversion in parts if name is not None
            ):
                raise ValueError("may hold column names in braces only; write {Column}")
            if not any(name for _, name, _, _ in parts):
                raise ValueError("names no column in braces; write {value: ...} for a constant")
        return self

    @property
    def columns(self) -> list[str]:
        """Columns it reads."""
        if self.column is not None:
            return [self.column]
        if self.template is not None:
            return [name for _, name, _, _ in string.Formatter().parse(self.template) if name]
        return []


class Moment(Value):
    """A time: as `Value`, and how to read it. Without `format`, ISO 8601.

    Attributes:
        format: `strftime` codes, e.g. `%d/%m/%Y %H:%M`.
        timezone: IANA name of the zone of times that do not say theirs.
    """

    format: Word | None = Field(default=None, description="strftime codes, e.g. %d/%m/%Y %H:%M.")
    timezone: str | None = Field(default=None, description="a zone such as UTC or Europe/London.")

    _is_moment: ClassVar[bool] = True

    @field_validator("format")
    @classmethod
    def _codes(cls, value: str | None) -> str | None:
        if value is None:
            return value
        codes = re.findall(r"%[-_0]?(?:\.?\d?)([A-Za-z%])", value)
        if strange := [code for code in codes if code not in _TIME_CODES]:
            raise ValueError(f"has no code %{strange[0]}; use %Y %y %m %d %H %I %M %S %p %f %z %b")
        if not set(codes) & set("YyFD"):
            raise ValueError("names no year; write strftime codes such as %d/%m/%Y %H:%M")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str | None) -> str | None:
        if value is not None and value not in available_timezones():
            near = nearest(value, sorted(available_timezones()), shown=0).partition(" Allowed")[0]
            raise ValueError(
                f"is no time zone: {value!r}\n{near} Write an IANA name such as Europe/London.".strip()
            )
        return value

    @model_validator(mode="after")
    def _known_zone(self) -> Moment:
        if self.format is not None and "%z" not in self.format and self.timezone is None:
            raise ValueError(f"reads times without a zone; add timezone: to {{column: {self.column}, ...}}")
        return self


class Rule(Spec):
    """A test of one column: it starts with a text, or equals one of several.

    Attributes:
        column: name of the column.
        starts_with: the text that it starts with.
        equals: a value, or several.
    """

    column: Word
    starts_with: Word | None = None
    equals: list[str] | None = None

    @field_validator("equals", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        return [str(item).lower() if isinstance(item, bool) else str(item) for item in values]

    @model_validator(mode="after")
    def _one(self) -> Rule:
        if (self.starts_with is None) == (self.equals is None):
            raise ValueError("needs exactly one of starts_with and equals")
        return self


class Columns(Spec):
    """A mapping from fields to columns; fields are those of the class."""

    def mapped(self) -> dict[str, Value]:
        """Fields that are mapped, in the order of the class."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class ContactColumns(Columns):
    """Fields of a contact. `updated_at` says when a row changed; without it, versions go by content."""

    external_id: Value
    email: Value
    first_name: Value | None = None
    last_name: Value | None = None
    country: Value | None = None
    city: Value | None = None
    timezone: Value | None = None
    locale: Value | None = None
    phone: Value | None = None
    mobile_phone: Value | None = None
    push_token: Value | None = None
    created_at: Moment | None = None
    updated_at: Moment | None = None
    is_deleted: Value | None = None


class OrderColumns(Columns):
    """Fields of one line of an order."""

    order_id: Value
    occurred_at: Moment
    product_id: Value
    quantity: Value
    unit_price: Value
    currency: Value
    external_id: Value | None = None
    email: Value | None = None
    name: Value | None = None
    country: Value | None = None


class EventColumns(Columns):
    """Fields of an event; `properties` and `esp_event` hold JSON text."""

    event_id: Value
    type: Value
    occurred_at: Moment
    email: Value | None = None
    external_id: Value | None = None
    anonymous_id: Value | None = None
    message_id: Value | None = None
    received_at: Moment | None = None
    source: Value | None = None
    properties: Value | None = None
    esp_event: Value | None = None


class ProductColumns(Columns):
    """Fields of a product. Without `updated_at`, versions go by content."""

    product_id: Value
    name: Value
    price: Value
    category: Value | None = None
    image_url: Value | None = None
    url: Value | None = None
    is_available: Value | None = None
    updated_at: Moment | None = None


class ConsentProof(Columns):
    """What proves a consent. `text` is the words themselves: their SHA-256 is kept with it, they themselves once."""

    text_version: Value | None = None
    text: Value | None = None
    text_digest: Value | None = None
    ip: Value | None = None
    user_agent: Value | None = None
    page: Value | None = None
    requested_at: Moment | None = None
    requested_ip: Value | None = None
    confirmed_at: Moment | None = None
    recorded_by: Value | None = None


class ConsentColumns(ConsentProof):
    """Fields of a consent change; `consent_id` is derived from the others if it is not mapped."""

    external_id: Value | None = None
    email: Value | None = None
    channel: Value
    purpose: Value
    basis: Value
    occurred_at: Moment
    is_granted: Value
    consent_id: Value | None = None

    @model_validator(mode="after")
    def _whose(self) -> ConsentColumns:
        if self.external_id is None and self.email is None:
            raise ValueError("says not whose consent it is; map external_id, email, or both")
        return self


class ContactConsent(ConsentProof):
    """A consent that a contact's row carries. No consent is read where `is_granted` is empty."""

    channel: Value = Value(value="email")
    purpose: Value
    basis: Value
    occurred_at: Moment
    is_granted: Value


class FileSource(Spec):
    """One file of `content/sources`: which files there are to read, and how.

    Attributes:
        name: the YAML file's name.
        source: where the rows come from; sources that share it share external ids.
        object: what a row is.
        files: file, folder or glob, or several.
        relative_to: what relative paths start from: the home folder, or the content folder.
        format: how to read files; by the end of their names if not given.
        is_optional: whether it is right that no file is there.
        delimiter, encoding: of CSV files.
        ignore: columns to leave out of `properties`.
    """

    name: Name
    source: Name
    object: Literal["contacts", "orders", "events", "products", "consents"]
    description: str = ""
    files: list[Word] = Field(min_length=1, description="a file, a folder or a glob such as inbox/*.csv.")
    relative_to: Literal["home", "content"] = "home"
    format: Literal["csv", "parquet", "jsonl"] | None = None
    is_optional: bool = False
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="one character, e.g. ; or a tab."
    )
    encoding: str = "utf-8"
    ignore: list[str] = Field(default_factory=list)

    _content_dir: Path = PrivateAttr(Path())

    @field_validator("files", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("encoding")
    @classmethod
    def _text(cls, value: str) -> str:
        try:
            found = codecs.lookup(value)
            ends = "a\n".encode(found.name)
        except (LookupError, UnicodeError):
            raise ValueError(
                f"is no encoding: {value!r}; write utf-8, cp1252 or another that Python knows"
            ) from None
        if ends != b"a\n":
            raise ValueError(f"cannot be {value}; save the file as UTF-8")
        return found.name

    @property
    def mapping(self) -> Columns | None:
        """The column mapping, None where files already have the shape of the raw table."""
        return getattr(self, "columns", None)

    @property
    def content_dir(self) -> Path:
        """The content folder that the source was read from."""
        return self._content_dir


class ContactsSource(FileSource):
    """Contacts: one row a person."""

    columns: ContactColumns
    consents: list[ContactConsent] = Field(default_factory=list)


class OrdersSource(FileSource):
    """Orders: one row a line of an order. `cancelled` tells the lines of cancellations."""

    columns: OrderColumns
    cancelled: Rule | None = None


class EventsSource(FileSource):
    """Events: one row an event; without `columns`, JSON Lines in the shape of `raw.events`."""

    columns: EventColumns | None = None


class ProductsSource(FileSource):
    """Products: one row a product."""

    columns: ProductColumns


class ConsentsSource(FileSource):
    """Consent changes: one row a change."""

    columns: ConsentColumns


SOURCES: dict[str, type[FileSource]] = {
    "contacts": ContactsSource,
    "orders": OrdersSource,
    "events": EventsSource,
    "products": ProductsSource,
    "consents": ConsentsSource,
}


def load_sources(content_dir: Path) -> dict[str, FileSource]:
    """Read `content_dir/sources/*.yaml`; from names, in order, to sources. A missing folder holds none.

    Those about databases are read by `crm.sql_specs.load_sql_sources`.

    Raises:
        InputError: lists the mistakes of all files, each with its line and what is allowed.
    """
    folder = content_dir / "sources"
    sources: dict[str, FileSource] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.y*ml")) if folder.is_dir() else []:
        try:
            if not is_database(path):
                sources[path.stem] = load_source(path)
        except InputError as error:
            problems.append(Problem("", error.message, error.fix))
    if problems:
        raise problems_error(problems)
    return sources


def is_database(path: Path) -> bool:
    """Whether a source is about a database: it says `database:`.

    Raises:
        InputError: it is no YAML.
    """
    return path.suffix == ".yaml" and "database" in read_document(path).values


def load_source(path: Path) -> FileSource:
    """Read one source; its class follows from `object`.

    Raises:
        InputError: names file, line, key and what is allowed.
    """
    if path.suffix != ".yaml":
        raise InputError(f"{shown_path(path)} would be overlooked.", fix=f"Rename it to {path.stem}.yaml.")
    kind = read_document(path).values.get("object")
    model = SOURCES.get(kind, FileSource) if isinstance(kind, str) else FileSource
    source = load_spec(path, model, name_key="name")
    source._content_dir = path.resolve().parent.parent
    return source
