"""What columns of a file of contacts are called, in many languages, and which field each of them is."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from crm.specs import FORMATS
from warehouse.errors import InputError

SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "email": (
        "email", "e-mail", "mail", "email address", "e-mail address", "mail address", "e-mail-adresse",
        "emailadresse",
        "mailadresse", "adresse e-mail", "adresse mail", "adresse électronique", "courriel", "mél", "correo",
        "correo electrónico", "dirección de correo", "indirizzo email", "indirizzo e-mail", "posta elettronica",
        "endereço de e-mail", "correio eletrónico", "e-mailadres", "emailadres", "e-post", "epost", "e-postadress",
        "adres e-mail", "primary email", "contact email", "person email", "subscriber email", "e_mail", "email1",
        "work email",
    ),
    "first_name": (
        "first name", "firstname", "given name", "givenname", "fname", "forename", "vorname", "prénom", "nombre",
        "nome",
        "primer nombre", "voornaam", "förnamn", "fornavn", "imię", "primeiro nome", "contact first name",
    ),
    "last_name": (
        "last name", "lastname", "surname", "family name", "familyname", "lname", "nachname", "familienname",
        "nom", "nom de famille", "apellido", "apellidos", "cognome", "sobrenome", "apelido", "achternaam",
        "efternamn",
        "etternavn", "efternavn", "nazwisko", "contact last name",
    ),
    "country": (
        "country", "country code", "country/region", "countrycode", "land", "ländercode", "pays", "país", "pais",
        "paese",
        "nazione", "kraj", "billing country", "shipping country", "mailing country",
    ),
    "city": (
        "city", "town", "stadt", "ort", "wohnort", "ville", "ciudad", "città", "cidade", "plaats", "woonplaats",
        "stad",
        "miasto", "mailing city", "billing city",
    ),
    "timezone": ("timezone", "time zone", "tz", "zeitzone", "fuseau horaire", "zona horaria", "fuso orario",
        "fuso horário"),
    "locale": (
        "locale", "language", "lang", "preferred language", "sprache", "langue", "idioma", "lingua", "língua", "taal",
        "språk", "język",
    ),
    "phone": (
        "phone", "phone number", "telephone", "tel", "telefon", "telefonnummer", "rufnummer", "téléphone", "teléfono",
        "telefono", "telefone", "telefoon", "telefoonnummer", "numer telefonu", "festnetz", "landline", "work phone",
    ),
    "mobile_phone": (
        "mobile", "mobile phone", "mobilephone", "mobile number", "cell", "cell phone", "cellphone", "handy",
        "handynummer",
        "mobil", "mobiltelefon", "mobilnummer", "portable", "téléphone portable", "móvil", "celular", "cellulare",
        "telemóvel", "mobiel", "komórka", "sms",
    ),
    "push_token": ("push token", "device token", "push_token", "fcm token"),
    "external_id": (
        "external id", "externalid", "customer id", "customerid", "customer number", "contact id", "contactid",
        "user id",
        "userid", "id", "kundennummer", "kunden-nr", "kundennr", "numéro client", "id client", "número de cliente",
        "codice cliente", "klantnummer", "kundnummer", "record id", "subscriber id",
    ),
    "created_at": (
        "created at", "created", "created date", "create date", "date created", "createdate", "signup date",
        "sign up date",
        "registered", "registered at", "registration date", "date added", "member since", "angelegt am",
        "registrierungsdatum", "date de création", "date d'inscription", "fecha de creación", "fecha de alta",
        "data di creazione", "data di iscrizione", "data de criação", "aanmaakdatum",
    ),
    "updated_at": (
        "updated at", "updated", "last modified", "last modified date", "lastmodifieddate", "modified", "last change",
        "geändert am", "date de modification", "fecha de modificación",
    ),
    "consent": (
        "consent", "marketing consent", "email consent", "opt in", "opt-in", "optin", "opted in", "newsletter",
        "subscribed",
        "accepts marketing", "email marketing consent", "einwilligung", "newsletter-einwilligung", "consentement",
        "consentimiento", "consenso", "consentimento", "toestemming", "samtycke", "zgoda",
    ),
    "consent_date": (
        "consent date", "consent timestamp", "consented at", "opt in date", "opt-in date", "opt-in time",
        "optin date",
        "optin time", "opt in time", "confirm time", "subscribed at", "subscription date", "newsletter since",
        "einwilligung am", "einwilligungsdatum", "anmeldedatum", "date de consentement", "fecha de consentimiento",
        "data del consenso", "newslettersince",
    ),
    "consent_text_version": ("consent text", "consent text version", "consent version", "form version",
        "consent form", "text version"),
    "consent_text": ("consent wording", "consent words", "einwilligungstext", "wortlaut der einwilligung"),
    "consent_text_digest": ("consent text sha256", "consent text sha-256", "text digest"),
    "consent_ip": ("consent ip", "opt-in ip", "opt in ip", "optin ip", "confirm ip", "ip", "ip address",
        "ip-adresse"),
    "consent_user_agent": ("consent user agent", "opt-in user agent", "user agent"),
    "consent_page": ("consent page", "consent url", "opt-in url", "opt-in page", "form url", "signup page"),
    "consent_requested_at": ("consent requested at", "double opt-in requested at", "doi requested at"),
    "consent_requested_ip": ("consent requested ip", "double opt-in requested ip", "doi requested ip"),
    "consent_confirmed_at": ("consent confirmed at", "double opt-in confirmed at", "doi confirmed at"),
}  # fmt: skip
"""Fields of an import, and how their columns are called; small and capital letters, accents, spaces, hyphens and the
like make no difference."""

FIELDS: Final = tuple(SPELLINGS)
"""Fields that a column may be."""

_LINES = 200
_SNIFFED = 1 << 20


@dataclass(frozen=True)
class FileHead:
    """What a file is, found out by reading it once.

    Attributes:
        form: csv, parquet or jsonl.
        columns: names of its columns; of JSON Lines, those of the first 200 objects.
        delimiter: of CSV, else None.
        rows: rows, about: a row of CSV may have several lines.
        digest: SHA-256 of its bytes, in hex.
        size: bytes. changed_at: nanoseconds since 1970.
    """

    form: str
    columns: tuple[str, ...]
    delimiter: str | None
    rows: int
    digest: str
    size: int
    changed_at: int


def plain(name: str) -> str:
    """A header without what does not tell names apart: case, accents, spaces and marks."""
    letters = unicodedata.normalize(
        "NFKD", name.replace("ß", "ss").replace("ł", "l").replace("Ł", "l").casefold()
    )
    return re.sub(r"[^0-9a-z\u0370-\uffff]+", "", "".join(c for c in letters if not unicodedata.combining(c)))


_FIELD_OF: Final = {
    plain(spelling): field for field, spellings in SPELLINGS.items() for spelling in spellings
}


def recognised(columns: Sequence[str]) -> dict[str, str]:
    """Field -> column, for columns that a field is known by; of two columns of one field the first has it."""
    found: dict[str, str] = {}
    for column in columns:
        field = column if column in SPELLINGS else _FIELD_OF.get(plain(column))
        # a column with the field's own name goes before one that is only called alike
        if field is not None and (column == field or field not in found):
            found[field] = column
    return found


def read_head(path: Path, *, form: str | None, delimiter: str | None, encoding: str) -> FileHead:
    """Read a file once: what it is, what its columns are, and its digest. Memory: one megabyte.

    Args:
        form: csv, parquet or jsonl; by the file's ending if None.
        delimiter: of CSV; the likeliest of comma, semicolon, tab and bar if None.
        encoding: of CSV and JSON Lines.

    Raises:
        InputError: it cannot be read, its format is unknown, or it has no columns.
    """
    form = form or FORMATS.get(path.suffix.lower())
    if form is None:
        raise InputError(
            f"{path.name} has no known format.",
            fix=f"Let its name end in {', '.join(FORMATS)}, or give --format.",
        )
    digest = hashlib.sha256()
    start, lines = b"", 0
    last = b""
    try:
        with path.open("rb") as handle:
            status = path.stat()
            while part := handle.read(_SNIFFED):
                start = start or part
                digest.update(part)
                lines += part.count(b"\n")
                last = part
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", fix="Name a file that is there.") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder.", fix="Name one file; folders are for content/sources."
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}.", fix="Make it readable."
        ) from None
    if not start:
        raise InputError(f"{path.name} is empty.", fix="Name a file with a row for each contact.")
    lines += not last.endswith(b"\n")
    columns: Sequence[str] = ()
    if form == "parquet":
        if start.startswith(b"PAR1"):
            try:
                metadata = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{path.name} is no whole Parquet file: {str(error)[:200]}", fix="Write the file again."
                ) from None
            columns, lines = metadata.schema_arrow.names, metadata.metadata.num_rows
    else:
        text = _decoded(start, encoding, path.name)
        if form == "csv":
            head, delimiter = _csv_head(text, delimiter, path)
            columns, lines = head, lines - 1
        else:
            columns = _json_names(text)
    return FileHead(
        form, tuple(columns), delimiter if form == "csv" else None, max(lines, 0), digest.hexdigest(), status.st_size,
        status.st_mtime_ns,
    )  # fmt: skip


def _decoded(start: bytes, encoding: str, name: str) -> str:
    try:
        decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)
    except LookupError:
        raise InputError(
            f"{encoding!r} is no encoding.", fix="Write utf-8, cp1252 or another that Python knows."
        ) from None
    try:
        return decoder().decode(start)
    except UnicodeDecodeError as error:
        line = start[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}:{line}: this is not {encoding} text.",
            fix="Save the file as UTF-8, or give --encoding cp1252 for files of older Windows programs.",
        ) from None


def _csv_head(text: str, delimiter: str | None, path: Path) -> tuple[list[str], str]:
    if delimiter is None:
        first = text.partition("\n")[0]
        marks = ("\t", ",", ";", "|") if path.suffix == ".tsv" else (",", ";", "\t", "|")
        # what quotes enclose is no delimiter
        bare = re.sub(r'"[^"]*"', "", first)
        delimiter = max(marks, key=bare.count)
    try:
        header = next(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise InputError(
            f"{path.name}:1: the header cannot be read: {error}.", fix="Save it as CSV with one header line."
        ) from None
    return [name.strip() for name in header], delimiter


def _json_names(text: str) -> list[str]:
    names: dict[str, None] = {}
    for line in text.splitlines()[:_LINES]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
    return list(names)
