"""Who was erased and must not come back: keyed hashes of what names a person, and the filter that loads apply.

Whoever is erased leaves nothing that could be read, but something that can be recognised: HMAC-SHA256 (RFC 2104, FIPS
180-4) of each address, number and id, under a key that is not in the warehouse (MAILHOUSE_ERASURE_KEY, or the file
`erasure_key` in the home folder). Without the key the hashes say nothing, even to somebody who guesses addresses; and
without the key nobody can be refused, so a warehouse with erasures and another key is an error.

A row counts as an erased person's if its email or its record (source and external id) is, or a telephone number in its
properties; if it has none of these, by its visitor id or the message that it is about.

`raw.erasures` is read again once in `REFRESH_SECONDS`: that long a process may go on loading somebody after they were
erased, for which an erasure waits.
"""

from __future__ import annotations

import hmac
import re
import threading
import time
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
import polars as pl

from warehouse.errors import SettingsError, WarehouseError
from warehouse.settings import MailhouseSettings

if TYPE_CHECKING:
    from warehouse.client import Warehouse

KINDS: Final = ("email", "phone", "record", "anonymous_id", "message_id", "contact_id", "push_token")
"""What names a person. A record is `record_key(source, external_id)`, a visitor `record_key(source, anonymous_id)`."""
REFRESH_SECONDS: Final = 1.0
PHONE_PROPERTIES: Final = ("mobile_phone", "mobilephone", "MobilePhone", "phone", "Phone")
EMAIL_PROPERTIES: Final = ("email", "Email")

_ADDRESS = re.compile(r"[^\s\"'<>,;:()\[\]\\]+@[^\s\"'<>,;:()\[\]\\]+")
_UNKNOWN_TABLE, _UNKNOWN_DATABASE = 60, 81
_NO_DIGITS = re.compile(r"[^0-9]")


def normalised_email(text: str) -> str:
    """An address as identity knows it: trimmed, lower case."""
    return text.strip(" \t\r\n").lower()


def normalised_phone(text: str) -> str:
    """A telephone number without what people put between digits; `00` and `+` before a country code are the same."""
    digits = _NO_DIGITS.sub("", text)
    return digits.removeprefix("00")


def record_key(source: str, external_id: str) -> str:
    """What names a record of a source, as one text."""
    return f"{source}\x1f{external_id}"


def keyed_hash(key: bytes, kind: str, value: str) -> str:
    """The hash of one name of a person, 64 hexadecimal digits.

    Args:
        kind: of `KINDS`: the same text as an address and as a number has two hashes.
        value: normalised.
    """
    return hmac.digest(key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256").hex()


def key_fingerprint(key: bytes) -> str:
    """Tells keys apart and says nothing about them; stands beside each hash."""
    return keyed_hash(key, "key", "mailhouse erasures")[:16]


@dataclass(frozen=True)
class Erased:
    """Hashes of all who are erased and were not readmitted.

    Attributes:
        hashes: from kinds to hashes.
        key: under which they were made.
    """

    hashes: dict[str, frozenset[str]] = field(default_factory=dict)
    key: bytes = b""

    def __bool__(self) -> bool:
        return any(self.hashes.values())

    def has(self, kind: str, value: str) -> bool:
        """Whether a normalised name is an erased person's."""
        known = self.hashes.get(kind)
        return bool(known) and bool(value) and keyed_hash(self.key, kind, value) in known

    def among(self, kind: str, values: Iterable[str]) -> set[str]:
        """Which of these normalised names are erased people's."""
        known = self.hashes.get(kind)
        if not known:
            return set()
        return {one for one in values if one and keyed_hash(self.key, kind, one) in known}


@dataclass
class _Memo:
    lock: threading.Lock = field(default_factory=threading.Lock)
    asked_at: float = -1e9
    state: tuple[Any, ...] = ()
    erased: Erased = field(default_factory=Erased)


_memos: weakref.WeakKeyDictionary[Warehouse, _Memo] = weakref.WeakKeyDictionary()
_memos_lock = threading.Lock()


def erased_people(warehouse: Warehouse, *, max_age: float = REFRESH_SECONDS) -> Erased:
    """Who is erased, as of `max_age` seconds ago at most.

    Raises:
        SettingsError: the erasures were made under another key than ours: nobody could be refused.
        WarehouseError: the warehouse does not answer.
    """
    with _memos_lock:
        memo = _memos.setdefault(warehouse, _Memo())
    if time.monotonic() - memo.asked_at < max_age:
        # also while another thread asks anew
        return memo.erased
    with memo.lock:
        now = time.monotonic()
        if now - memo.asked_at < max_age:
            return memo.erased
        try:
            facts = warehouse.frame("select count() as rows, max(recorded_at) as newest from raw.erasures")
        except WarehouseError as error:
            # raw tables that were never brought up to date hold no erasure
            if error.code not in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
                raise
            state: tuple[Any, ...] = (0, None)
        else:
            state = facts.row(0)
        if state != memo.state:
            memo.erased = _read(warehouse) if state[0] else Erased()
            memo.state = state
        memo.asked_at = now
        return memo.erased


def _read(warehouse: Warehouse) -> Erased:
    settings = warehouse.settings or MailhouseSettings.load()
    key = settings.erasure_secret()
    rows = warehouse.frame(
        """
        select kind::String as kind, hash, argMax(key_id::String, recorded_at) as key_id
        from raw.erasures group by kind, hash having not argMax(is_readmitted, recorded_at)
        """
    )
    if rows.height and set(rows["key_id"].to_list()) != {key_fingerprint(key)}:
        raise SettingsError(
            "People were erased under another key than MAILHOUSE_ERASURE_KEY (or the file erasure_key in the home "
            "folder), so nobody could tell who must not come back. Nothing is loaded.",
            fix="Put the key back with which they were erased: copy the file, or set MAILHOUSE_ERASURE_KEY.",
        )
    parts = rows.partition_by("kind", as_dict=True)
    return Erased({str(kind): frozenset(part["hash"].to_list()) for (kind,), part in parts.items()}, key)


def without_erased(warehouse: Warehouse, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that are about nobody who was erased; nothing is kept of the others.

    Args:
        rows: any of `source`, `external_id`, `email`, `anonymous_id`, `message_id` and `properties` (JSON text); with
            `object`, rows are CRM records, of which `external_id` names people in contacts alone.
    """
    erased = erased_people(warehouse)
    return rows if not erased or rows.is_empty() else rows.filter(~_is_erased(erased, rows))


def _is_erased(erased: Erased, rows: pl.DataFrame) -> pl.Series:
    columns = rows.columns
    no = pl.Series([False]).new_from_index(0, rows.height)
    by_email = by_record = by_text = by_hint = no
    named = no
    if "email" in columns:
        emails = rows["email"].fill_null("").str.strip_chars(" \t\r\n").str.to_lowercase()
        by_email = _among(erased, "email", emails)
        named = named | (emails != "")
    if {"source", "external_id"} <= set(columns):
        external = rows["external_id"].fill_null("")
        if erased.hashes.get("record"):
            keys = rows.select(
                pl.concat_str(
                    pl.col("source").fill_null(""), pl.lit("\x1f"), pl.col("external_id").fill_null("")
                )
            ).to_series()
            is_person = external != ""
            if "object" in columns:
                is_person = is_person & (rows["object"] == "contact").fill_null(False)
            by_record = _among(erased, "record", keys) & is_person
        named = named | (external != "")
    if "properties" in columns and (erased.hashes.get("phone") or erased.hashes.get("email")):
        by_text = _by_properties(erased, rows["properties"])
    for kind, column in (("anonymous_id", "anonymous_id"), ("message_id", "message_id")):
        if column not in columns or not erased.hashes.get(kind):
            continue
        values = rows[column].fill_null("")
        if kind == "anonymous_id":
            found = _among(
                erased, kind, rows.select(pl.concat_str("source", pl.lit("\x1f"), "anonymous_id")).to_series()
            )
            # whoever else uses the same device is somebody else
            found = found & ~named & (values != "")
        else:
            found = _among(erased, kind, values)
        by_hint = by_hint | found
    return by_email | by_record | by_text | by_hint


def _among(erased: Erased, kind: str, values: pl.Series) -> pl.Series:
    found = erased.among(kind, values.unique().to_list()) if erased.hashes.get(kind) else set[str]()
    return values.is_in(pl.Series(list(found), dtype=pl.String()).implode())


def _by_properties(erased: Erased, texts: pl.Series) -> pl.Series:
    """Rows whose properties hold an address or a number of an erased person where such things stand."""
    wanted = [("email", EMAIL_PROPERTIES, normalised_email), ("phone", PHONE_PROPERTIES, normalised_phone)]
    wanted = [one for one in wanted if erased.hashes.get(one[0])]
    names = [f'"{name}"' for _, properties, _ in wanted for name in properties]
    worth = texts.fill_null("").str.contains_any(names)
    found = [False] * len(texts)
    for place in worth.arg_true().to_list():
        try:
            said = orjson.loads(texts[place])
        except orjson.JSONDecodeError:
            continue
        if not isinstance(said, dict):
            continue
        found[place] = any(
            erased.has(kind, normalise(str(said[name])))
            for kind, properties, normalise in wanted
            for name in properties
            if said.get(name)
        )
    return pl.Series(found, dtype=pl.Boolean())


def mentions_erased(warehouse: Warehouse, texts: Collection[str]) -> list[bool]:
    """Whether texts that nobody could read as rows hold an address of somebody who was erased."""
    erased = erased_people(warehouse)
    if not erased.hashes.get("email"):
        return [False] * len(texts)
    return [
        any(erased.has("email", normalised_email(one.strip("."))) for one in _ADDRESS.findall(text or ""))
        for text in texts
    ]
