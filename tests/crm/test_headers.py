"""Headers in many languages, and what a file is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm.headers import SPELLINGS, plain, read_head, recognised
from crm.values import country, locale, timezone
from warehouse.errors import InputError


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (["E-Mail-Adresse", "VORNAME", "Nachname", "Handy-Nr."], {"email", "first_name", "last_name"}),
        (["Prénom", "Nom", "Adresse e-mail", "Téléphone"], {"first_name", "last_name", "email", "phone"}),
        (["Correo electrónico", "Apellidos", "País", "Móvil"], {"email", "last_name", "country", "mobile_phone"}),
        (["EMAIL_ADDRESS", "FNAME", "LNAME", "OPTIN_TIME", "CONFIRM_IP"],
         {"email", "first_name", "last_name", "consent_date", "consent_ip"}),
        (["Imię", "Adres e-mail", "Zgoda"], {"first_name", "email", "consent"}),
        (["Interests", "Score"], set()),
    ],
)  # fmt: skip
def test_columns_are_recognised(columns: list[str], fields: set[str]) -> None:
    assert recognised(columns).keys() == fields


def test_no_spelling_means_two_fields() -> None:
    seen: dict[str, str] = {}
    for field, spellings in SPELLINGS.items():
        assert plain(field) in {plain(one) for one in (*spellings, field)}
        for spelling in spellings:
            assert seen.setdefault(plain(spelling), field) == field, spelling


def test_a_columns_own_name_goes_before_one_that_is_called_alike() -> None:
    assert recognised(["Mail", "email"]) == {"email": "email"}
    assert recognised(["Mail", "E-Mail"]) == {"email": "Mail"}


@given(st.sampled_from([",", ";", "\t", "|"]), st.booleans())
def test_the_delimiter_is_found(tmp_path: Path, mark: str, is_quoted: bool) -> None:
    name = '"Name; first, or both"' if is_quoted else "Name"
    path = tmp_path / "people.csv"
    path.write_text(f"{name}{mark}E-mail{mark}City\nAnn{mark}a@x.com{mark}Bonn\n", encoding="utf-8-sig")
    head = read_head(path, form=None, delimiter=None, encoding="utf-8")
    assert (head.delimiter, head.columns[1:], head.rows) == (mark, ("E-mail", "City"), 1)


def test_heads_of_other_formats(tmp_path: Path) -> None:
    pl.DataFrame({"email": ["a@x.com", "b@x.com"]}).write_parquet(tmp_path / "people.parquet")
    (tmp_path / "people.jsonl").write_text('{"email": "a@x.com"}\n{"mail": "b@x.com", "city": "Bonn"}')
    heads = [
        read_head(tmp_path / name, form=None, delimiter=None, encoding="utf-8")
        for name in ("people.parquet", "people.jsonl")
    ]
    assert [(head.form, head.rows, head.columns) for head in heads] == [
        ("parquet", 2, ("email",)),
        ("jsonl", 2, ("email", "mail", "city")),
    ]
    assert len({head.digest for head in heads}) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("people.csv", b"", "is empty"),
        ("people.xlsx", b"PK", "no known format"),
        ("people.csv", "Vorname;Stra\u00dfe\n".encode("cp1252"), "this is not utf-8 text"),
        ("people.parquet", b"PAR1 and no more", "no whole Parquet file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_head(tmp_path / name, form=None, delimiter=None, encoding="utf-8")


def test_values_are_made_usable_or_left_out() -> None:
    assert [country(text) for text in ("de", "UK", "United Kingdom", "XX", "n/a", "12345", "-")] == [
        "DE", "GB", "United Kingdom", "", "", "", "",
    ]  # fmt: skip
    assert [locale(text) for text in ("de", "de_AT", "pt-br", "Deutsch", "german", "Français", "klingon", "")] == [
        "de", "de-AT", "pt-BR", "de", "de", "fr", "", "",
    ]  # fmt: skip
    assert [timezone(text) for text in ("Europe/Berlin", "europe/berlin", "CEST?", "GMT+1")] == [
        "Europe/Berlin", "Europe/Berlin", "", "",
    ]  # fmt: skip
