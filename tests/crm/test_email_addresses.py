"""Rules for addresses over columns say of each what plain Python says of one."""

from __future__ import annotations

import re
import unicodedata

import idna
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from crm.addresses import PROVIDERS, ROLES, SPECIAL_TOPS, UNATTENDED, AddressJudge, judge_domain
from warehouse.addresses import SPACES

ATEXT = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+/=?^_`{|}~-")


def reference(text: str) -> str | None:
    """The address as it is stored, None if it is none: syntax alone, one address at a time."""
    text = unicodedata.normalize("NFC", text.strip(SPACES)).lower()
    if text.count("@") != 1:
        return None
    local, domain = text.split("@")
    atoms = local.split(".")
    if not all(atom and all(is_atext(letter) for letter in atom) for atom in atoms):
        return None
    if len(local.encode()) > 64:
        return None
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True, std3_rules=True).decode()
        except (idna.IDNAError, UnicodeError):
            return None
    elif any(label.startswith("xn--") for label in domain.split(".")):
        try:
            idna.decode(domain)
        except (idna.IDNAError, UnicodeError):
            return None
    labels = domain.split(".")
    if len(labels) < 2 or len(domain) > 253 or labels[-1] in SPECIAL_TOPS:
        return None
    for label in labels:
        if not 1 <= len(label) <= 63 or label[0] == "-" or label[-1] == "-":
            return None
        if not all(letter in "abcdefghijklmnopqrstuvwxyz0123456789-" for letter in label):
            return None
    top = labels[-1]
    if not (top.startswith("xn--") or (top.isalpha() and len(top) >= 2)):
        return None
    return f"{local}@{domain}" if len(f"{local}@{domain}".encode()) <= 254 else None


def is_atext(letter: str) -> bool:
    return letter in ATEXT or (not letter.isascii() and unicodedata.category(letter)[0] in "LMN")


letters = st.sampled_from("aAbz09.-_+@,; \tßéİÅ中ñ\u200b\u00a0'\"()!#<>")
labels = st.one_of(
    st.text(st.sampled_from("abz09-"), min_size=1, max_size=4),
    st.sampled_from(
        ["gmail", "xn--mnchen-3ya", "xn--", "münchen", "ß", "日本", "a" * 63, "a" * 64, "-a", "a-"]
    ),
)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
tops = st.sampled_from(["com", "de", "c", "local", "xn--p1ai", "рф", "c0m", "photography"])
addresses = st.one_of(
    st.text(letters, max_size=12),
    st.builds(
        lambda local, domain, top: f"{local}@{domain}.{top}",
        st.one_of(st.text(letters, max_size=8), st.just("a" * 64), st.just("a" * 65), st.just("é" * 33)),
        domains,
        tops,
    ),
    st.builds(
        lambda name, rest: f"a@{name}{rest}", st.sampled_from(sorted(PROVIDERS)), st.text(letters, max_size=5)
    ),
)


def judged(texts: list[str | None], **options: object) -> pl.DataFrame:
    return AddressJudge(**options).judge(pl.Series(texts, dtype=pl.String))  # pyright: ignore[reportArgumentType]


@budget(max_examples=25)
@given(st.lists(addresses, min_size=1, max_size=60))
def test_syntax_is_that_of_the_reference(texts: list[str]) -> None:
    verdict = judged(list(texts), role_accounts="keep", disposable="keep")
    for text, row in zip(texts, verdict.iter_rows(named=True), strict=True):
        stored = reference(text)
        if not text.strip(SPACES):
            assert (row["email"], row["code"]) == (None, None), text
        elif stored is None:
            assert (row["email"], row["code"]) == (None, "syntax"), text
            assert row["said"], text
        elif row["code"] is None:
            assert row["email"] == stored, text
        else:
            # an address, but not one to be taken
            assert row["code"] in ("typo", "unattended"), (text, row)


@budget(max_examples=10)
@given(st.lists(addresses, min_size=1, max_size=60))
def test_what_is_taken_is_taken_again_as_it_is(texts: list[str]) -> None:
    verdict = judged(list(texts), is_correcting=True, role_accounts="keep")
    taken = verdict["email"].drop_nulls()
    again = judged(taken.to_list(), role_accounts="keep")
    assert again["email"].to_list() == taken.to_list()
    assert not again["is_corrected"].any()


@budget(max_examples=10)
@given(st.lists(addresses, min_size=1, max_size=60))
def test_a_suggestion_is_an_address_and_taken_only_if_asked_for(texts: list[str]) -> None:
    cautious, correcting = judged(list(texts)), judged(list(texts), is_correcting=True)
    for before, after in zip(cautious.iter_rows(named=True), correcting.iter_rows(named=True), strict=True):
        if before["suggestion"] is None:
            assert before == after
            continue
        assert before["code"] in ("typo", "syntax")
        assert before["email"] is None
        assert reference(before["suggestion"]) == before["suggestion"]
        assert after["email"] in (before["suggestion"], None)
        assert after["is_corrected"] == (after["email"] is not None)


@pytest.mark.parametrize(
    ("text", "code", "suggestion"),
    [
        ("bob@gmial.com", "typo", "bob@gmail.com"),
        ("bob@gmail.con", "typo", "bob@gmail.com"),
        ("bob@gmal.con", "typo", "bob@gmail.com"),
        ("bob@hotmial.co.uk", "typo", "bob@hotmail.co.uk"),
        ("bob@outlook.co", "typo", "bob@outlook.com"),
        ("bob@firma.con", "typo", "bob@firma.com"),
        ("bob@aol.co", "typo", "bob@aol.com"),
        ("Bob <bob@firma.de>", "syntax", "bob@firma.de"),
        ("mailto:bob@firma.de", "syntax", "bob@firma.de"),
        ("bob(at)firma.de", "syntax", "bob@firma.de"),
        ("bob@firma,de", "syntax", "bob@firma.de"),
        ("bob @firma.de.", "syntax", "bob@firma.de"),
        ("bob@@gmial,com", "syntax", "bob@gmail.com"),
        # of two words nobody knows which was meant
        ("bob smith@firma.de", "syntax", None),
        ("bob", "syntax", None),
        ("bob@firma.local", "syntax", None),
        ("no-reply@firma.de", "unattended", None),
        ("x@mailinator.com", "disposable", None),
        ("x@mail.mailinator.com", "disposable", None),
        ("Info@firma.de", "role_account", None),
        ("sales+2026@firma.de", "role_account", None),
    ],
)
def test_what_is_refused_and_what_was_meant(text: str, code: str, suggestion: str | None) -> None:
    row = judged([text]).row(0, named=True)
    assert (row["email"], row["code"], row["suggestion"]) == (None, code, suggestion)


@pytest.mark.parametrize(
    ("text", "email"),
    [
        (" Bob@Firma.DE\u200b", "bob@firma.de"),
        ("jörg@MÜNCHEN.de", "jörg@xn--mnchen-3ya.de"),
        ("o'brien+news@x.co", "o'brien+news@x.co"),
        ("a@mail.com", "a@mail.com"),
        ("a@email.com", "a@email.com"),
        ("a@gmx.de", "a@gmx.de"),
        ("a@gail.com", "a@gail.com"),
        ("a@yahoo.co.in", "a@yahoo.co.in"),
        ("a@company.co", "a@company.co"),
        ("informal@firma.de", "informal@firma.de"),
    ],
)
def test_what_is_taken(text: str, email: str) -> None:
    row = judged([text]).row(0, named=True)
    assert (row["email"], row["code"], row["is_role"]) == (email, None, False)


def test_no_provider_is_a_slip_of_another() -> None:
    for name, homes in PROVIDERS.items():
        for home in homes:
            found = judge_domain(f"{name}.{home}")
            assert (found.meant, found.is_disposable, found.said) == ("", False, "")


def test_policies_keep_what_they_are_told_to_keep() -> None:
    kept = judged(
        ["info@firma.de", "x@mailinator.com", "noreply@firma.de"], role_accounts="keep", disposable="keep"
    )
    assert kept["email"].to_list() == ["info@firma.de", "x@mailinator.com", None]
    assert kept["is_role"].to_list() == [True, False, False]
    assert not ROLES & UNATTENDED


def test_domains_that_take_no_mail_are_asked_for_once_each_and_refused() -> None:
    asked: list[str] = []

    def problems(domains: object) -> dict[str, str]:
        assert isinstance(domains, list)
        asked.extend(domains)
        return {"deaf.com": "there is no such domain"}

    found = judged(["a@deaf.com", "b@deaf.com", "c@x.com", "d@-.com", "e@gmial.com"], problems=problems)
    assert found["code"].to_list() == ["no_mail", "no_mail", None, "syntax", "typo"]
    assert sorted(asked) == ["deaf.com", "gmial.com", "x.com"]
    assert re.search("no such domain", found["said"][0])
