"""Imports of files of contacts: each row is loaded once or told of, consent is never loosened, nothing is half done."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from jinja2 import Environment

from crm import columns as read
from crm import importing
from crm.files import ingest_files
from crm.importing import (
    ConsentBasis,
    ImportOptions,
    ImportReport,
    plan_import,
    run_import,
    save_source,
)
from crm.specs import load_source
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.errors import InputError
from warehouse.schema import migrate
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

NOW = datetime(2026, 6, 27, 9, 30, tzinfo=UTC)
CONSENT = ConsentBasis("consent", text_version="form-1", given_at=datetime(2026, 6, 1, tzinfo=UTC))


class Place:
    """A folder with files, a content folder and the warehouse."""

    def __init__(self, root: Path, warehouse: Warehouse) -> None:
        self.root, self.warehouse = root, warehouse
        self.content = root / "content"

    def write(self, text: str, name: str = "people.csv") -> Path:
        path = self.root / name
        path.write_text(textwrap.dedent(text))
        return path

    def load(
        self, text: str | Path, *, mapping: dict[str, str] | None = None, now: datetime = NOW, **options: Any
    ) -> ImportReport:
        path = text if isinstance(text, Path) else self.write(text)
        chosen = ("is_dry", "report_path", "problems")
        run = {name: options.pop(name) for name in chosen if name in options}
        plan = plan_import(path, ImportOptions(imported_by="ann", **options), mapping)
        return run_import(self.warehouse, plan, home=self.root, content_dir=self.content, now=now, **run)

    def contacts(self) -> dict[str, dict[str, Any]]:
        rows = self.warehouse.frame(
            "select external_id, toString(properties) from raw.crm_records order by updated_at, loaded_at"
        ).rows()
        return {name: json.loads(text) for name, text in rows}

    def consents(self) -> list[tuple[Any, ...]]:
        return self.warehouse.frame(
            "select email, channel::String, is_granted, basis::String, text_version, ip from raw.consents order by all"
        ).rows()

    def count(self, table: str) -> int:
        return self.warehouse.value(f"select count() from raw.{table}")


@pytest.fixture
def place(tmp_path: Path, warehouse: Warehouse) -> Place:
    return Place(tmp_path, warehouse)


def outcome(report: ImportReport) -> tuple[int, ...]:
    return (report.rows, report.new, report.changed, report.unchanged, report.repeated, report.refused_rows)


def sheet(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as handle:
        return [
            (row["line"], row["outcome"], row["reason"], row["suggestion"]) for row in csv.DictReader(handle)
        ]


MIXED = """\
    Kundennr;E-mail;Vorname;Handy;Land;Sprache;Zeitzone;Einwilligung;Stufe
    1;Anna@Gmail.com;Anna;0049 151 23456789;DE;Deutsch;europe/berlin;ja;gold
    2;bob@gmial.com;Bob;;;;;ja;
    3;info@firma.de;;;;;;ja;
    4;ANNA@gmail.com;Anna;;;;;ja;
    1;carl@firma.de;Carl;;;;;ja;
    5;dora@firma.de;Dora;0151 1234;Atlantis 7;klingon;CEST?;nein;silver
    6;eva@firma.de;Eva;;;;;;
    7;fred@firma.de;Fred;;;;;vielleicht;
    8;;Gus;+44 7700 900123;;;;ja;
    ;;;;;;;;
    9;too;few
"""


def test_every_row_is_taken_or_told_of(place: Place) -> None:
    report = place.load(MIXED, consent=CONSENT, report_path=place.root / "refused.csv")
    assert outcome(report) == (11, 4, 0, 0, 2, 5)
    assert report.refused == {"typo": 1, "role_account": 1, "consent": 1, "missing": 1, "malformed": 1}
    assert report.notes == {"phone": 1, "country": 1, "locale": 1, "timezone": 1}
    assert (report.consents, report.withdrawals) == (1, 1)
    assert place.contacts() == {
        "1": {"email": "anna@gmail.com", "first_name": "Anna", "mobile_phone": "+4915123456789", "country": "DE",
              "locale": "de", "timezone": "Europe/Berlin", "Stufe": "gold"},
        "5": {"email": "dora@firma.de", "first_name": "Dora", "mobile_phone": "0151 1234", "Stufe": "silver"},
        "6": {"email": "eva@firma.de", "first_name": "Eva"},
        "8": {"first_name": "Gus", "mobile_phone": "+447700900123"},
    }  # fmt: skip
    assert place.consents() == [
        ("anna@gmail.com", "email", True, "consent", "form-1", ""),
        ("dora@firma.de", "email", False, "consent", "form-1", ""),
    ]
    assert sorted(sheet(place.root / "refused.csv")) == sorted(
        [
            ("3", "refused", "typo", "bob@gmail.com"), ("4", "refused", "role_account", ""),
            ("5", "repeated", "repeated", ""), ("6", "repeated", "repeated", ""), ("7", "noted", "phone", ""),
            ("7", "noted", "country", ""), ("7", "noted", "locale", ""), ("7", "noted", "timezone", ""),
            ("9", "refused", "consent", ""), ("11", "refused", "missing", ""), ("12", "refused", "malformed", ""),
        ]
    )  # fmt: skip
    quarantined = place.warehouse.frame(
        "select line, source::String, object::String from raw.quarantined_rows order by line"
    )
    assert quarantined.rows() == [(line, "import", "contact") for line in (3, 4, 9, 11, 12)]


def test_the_proof_of_consent_names_file_line_and_who(place: Place) -> None:
    place.load("email,opt in,consent ip\na@x.com,no,\nb@x.com,yes,192.0.2.7\n", consent=CONSENT)
    rows = place.warehouse.frame(
        "select toString(properties) as proof, ip, occurred_at, run_id from raw.consents where is_granted"
    ).row(0, named=True)
    proof = json.loads(rows["proof"])
    assert (proof["file"], proof["line"], proof["imported_by"]) == ("people.csv", 3, "ann")
    assert re.fullmatch("[0-9a-f]{64}", proof["file_sha256"])
    assert proof["import_id"] == rows["run_id"]
    assert rows["ip"] == "192.0.2.7"
    assert rows["occurred_at"].replace(tzinfo=UTC) == CONSENT.given_at


def test_the_same_file_again_adds_nothing_and_a_changed_one_what_changed(place: Place) -> None:
    first = place.load("email,city\na@x.com,Bonn\nb@x.com,Köln\n", consent=CONSENT)
    again = place.load(
        "email,city\na@x.com,Bonn\nb@x.com,Köln\n", consent=CONSENT, now=NOW + timedelta(days=1)
    )
    assert outcome(first) == outcome(again) == (2, 2, 0, 0, 0, 0)
    assert (first.first_started_at, again.first_started_at) == (None, NOW)
    assert (place.count("crm_records"), place.count("consents")) == (2, 2)
    later = place.load(
        "email,city\na@x.com,Bonn\nb@x.com,Bonn\nc@x.com,Ulm\n", consent=CONSENT, now=NOW + timedelta(days=2)
    )
    assert outcome(later) == (3, 1, 1, 1, 0, 0)
    # the old file does not bring the old city back
    place.load("email,city\na@x.com,Bonn\nb@x.com,Köln\n", consent=CONSENT, now=NOW + timedelta(days=3))
    assert place.contacts()["b@x.com"]["city"] == "Bonn"
    log = place.warehouse.frame(
        "select status::String, rows, new, changed, unchanged, imported_by, basis::String from raw.imports"
        " order by changed_at, loaded_at"
    ).rows()
    assert log[:2] == [("started", 0, 0, 0, 0, "ann", "consent"), ("finished", 2, 2, 0, 0, "ann", "consent")]
    assert ("finished", 3, 1, 1, 1, "ann", "consent") in log


def test_a_dry_run_says_the_same_and_stores_nothing(place: Place) -> None:
    place.load("email,city\na@x.com,Bonn\nb@x.com,Köln\n", consent=CONSENT)
    before = [place.count(name) for name in ("crm_records", "consents", "quarantined_rows", "imports")]
    text = "email,city\na@x.com,Bonn\nb@x.com,Ulm\nc@x.com,Ulm\nnone,Ulm\n"
    dry = place.load(text, consent=CONSENT, is_dry=True, list="friends", now=NOW + timedelta(days=1))
    assert [
        place.count(name) for name in ("crm_records", "consents", "quarantined_rows", "imports")
    ] == before
    assert not (place.content / "lists").exists()
    real = place.load(text, consent=CONSENT, list="friends", now=NOW + timedelta(days=1))
    assert outcome(dry) == outcome(real) == (4, 1, 1, 1, 0, 1)
    assert (dry.consents, dry.refused) == (real.consents, real.refused)


@pytest.mark.parametrize("kind", ["consent", "unsubscribed", "complained", "bounced", "pause"])
def test_who_said_no_gets_no_consent_from_a_file(place: Place, kind: str) -> None:
    """The person's data is taken, what they decided stands, however new the file says the consent is."""
    if kind in ("consent", "pause"):
        proof = {"paused_until": "2026-12-01T00:00:00Z"} if kind == "pause" else {}
        place.warehouse.insert(
            "raw.consents",
            pl.DataFrame(
                {"consent_id": "c1", "source": "web", "email": "Ann@X.com ", "external_id": "", "channel": "email",
                 "purpose": "marketing", "is_granted": False, "basis": "pause" if kind == "pause" else "consent",
                 "text_version": "", "ip": "", "occurred_at": NOW - timedelta(days=60), "properties": json.dumps(proof)}
            ),
        )  # fmt: skip
    else:
        place.warehouse.insert(
            "raw.events",
            pl.DataFrame(
                {"event_id": "e1", "type": kind, "source": "esp", "email": "Ann@X.com", "external_id": "",
                 "anonymous_id": "", "message_id": "", "occurred_at": NOW - timedelta(days=60), "received_at": NOW,
                 "properties": json.dumps({"bounce_class": "hard"}), "esp_event": ""}
            ),
        )  # fmt: skip
    report = place.load("email\nann@x.com\nbob@x.com\n", consent=CONSENT)
    assert outcome(report) == (2, 2, 0, 0, 0, 0)
    assert report.protected == {"withdrawn" if kind in ("consent", "pause") else kind: 1}
    assert [row[0] for row in place.consents() if row[2]] == ["bob@x.com"]
    # what a pause held back stands again when it is over
    after = place.load("email\nann@x.com\n", consent=CONSENT, now=NOW + timedelta(days=300))
    assert after.consents == (1 if kind == "pause" else 0)


def test_who_signed_up_again_may_consent(place: Place) -> None:
    for number, kind in enumerate(("unsubscribed", "subscribed")):
        place.warehouse.insert(
            "raw.events",
            pl.DataFrame(
                {"event_id": str(number), "type": kind, "source": "esp", "email": "ann@x.com", "external_id": "",
                 "anonymous_id": "", "message_id": "", "occurred_at": NOW - timedelta(days=60 - number),
                 "received_at": NOW, "properties": "{}", "esp_event": ""}
            ),
        )  # fmt: skip
    assert place.load("email\nann@x.com\n", consent=CONSENT).consents == 1


def test_a_soft_bounce_and_a_stop_by_text_message_are_no_stop_of_mail(place: Place) -> None:
    for number, (kind, said) in enumerate(
        (("bounced", {"bounce_class": "soft"}), ("unsubscribed", {"phone": "+447700900123"}))
    ):
        place.warehouse.insert(
            "raw.events",
            pl.DataFrame(
                {"event_id": str(number), "type": kind, "source": "esp", "email": "ann@x.com", "external_id": "",
                 "anonymous_id": "", "message_id": "", "occurred_at": NOW, "received_at": NOW,
                 "properties": json.dumps(said), "esp_event": ""}
            ),
        )  # fmt: skip
    assert place.load("email\nann@x.com\n", consent=CONSENT).consents == 1


def test_consent_needs_a_basis_with_proof(place: Place) -> None:
    path = place.write(
        "email,when,form\na@x.com,2026-05-01,f2\nb@x.com,,f2\nc@x.com,2026-05-01,\nd@x.com,2027-01-01,f2\n"
    )
    with pytest.raises(InputError, match="when the contacts consented"):
        place.load(path, consent=ConsentBasis("consent", text_version="f1"))
    with pytest.raises(InputError, match="which wording"):
        place.load(path, consent=ConsentBasis("consent", given_at=NOW))
    columns = {"when": "consent_date", "form": "consent_text_version"}
    report = place.load(path, consent=ConsentBasis("consent"), mapping=columns)
    assert outcome(report) == (4, 1, 0, 0, 0, 3)
    assert report.refused == {"consent": 3}
    # on other grounds than consent nobody has to prove that they agreed
    report = place.load(path, consent=ConsentBasis("contract", channels=("email", "sms")), mapping=columns)
    assert (report.taken, report.consents, report.refused) == (3, 3, {"consent": 1})


PROOF = """\
    email,am,Wording,Agent,Form,Asked,Asked from,Confirmed,IP
    a@x.com,2026-05-01,Send me news.,Firefox 7,https://x.com/sign-up,2026-04-30T10:00:00Z,192.0.2.1,2026-05-01T10:00:00Z,192.0.2.2
    b@x.com,2026-05-01,Send me news.,,,,,,
    c@x.com,2026-05-01,,,,,,,
    d@x.com,2026-05-01,Send me more.,,,soon,,,
    e@x.com,2026-05-01,Send me more.,,,,,2027-01-01T00:00:00Z,
"""
PROOF_COLUMNS = {
    "am": "consent_date", "Wording": "consent_text", "Agent": "consent_user_agent", "Form": "consent_page",
    "Asked": "consent_requested_at", "Asked from": "consent_requested_ip", "Confirmed": "consent_confirmed_at",
}  # fmt: skip


def proofs(place: Place) -> list[tuple[Any, ...]]:
    return place.warehouse.frame(
        """
        select email, text_version, text_digest, ip, user_agent, page, toString(requested_at), requested_ip,
            toString(confirmed_at), recorded_by from raw.consents order by email, loaded_at
        """
    ).rows()


def test_columns_prove_a_consent(place: Place) -> None:
    report = place.load(PROOF, consent=ConsentBasis("consent"), mapping=PROOF_COLUMNS, source="fair")
    assert (report.consents, report.refused) == (2, {"consent": 3})
    digest = hashlib.sha256(b"Send me news.").hexdigest()
    version = f"fair-{digest[:8]}"
    wanted = [
        ("a@x.com", version, digest, "192.0.2.2", "Firefox 7", "https://x.com/sign-up", "2026-04-30 10:00:00.000",
         "192.0.2.1", "2026-05-01 10:00:00.000", "ann"),
        ("b@x.com", version, digest, "", "", "", None, "", None, "ann"),
    ]  # fmt: skip
    assert proofs(place) == wanted
    texts = (
        "select text_digest, text_version, purpose::String, channel::String, content from raw.consent_texts"
    )
    assert place.warehouse.frame(texts).rows() == [(digest, version, "marketing", "email", "Send me news.")]
    # again: nothing is stored twice, a text neither
    place.load(PROOF, consent=ConsentBasis("consent"), mapping=PROOF_COLUMNS, source="fair")
    assert proofs(place) == wanted
    assert place.count("consent_texts") == 1
    # a file of the same kind says the same as a source
    plan = plan_import(
        place.write(PROOF.replace("@x", "@y")),
        ImportOptions(consent=ConsentBasis("consent"), source="fair"),
        PROOF_COLUMNS,
    )
    save_source(plan, "later", place.content)
    inbox = place.root / "inbox" / "later"
    inbox.mkdir(parents=True)
    plan.path.rename(inbox / "people.csv")
    ingest_files(
        place.warehouse, load_source(place.content / "sources" / "later.yaml"), base_dir=place.root, now=NOW
    )
    found = [row for row in proofs(place) if row[0] in ("a@y.com", "b@y.com")]
    assert found == [(mail.replace("@x", "@y"), *rest[:-1], "") for mail, *rest in wanted]
    assert place.warehouse.value("select count() from raw.consent_texts where content = 'Send me news.'") == 1


def test_a_digest_may_stand_for_the_words(place: Place) -> None:
    digest = hashlib.sha256(b"Send me news.").hexdigest()
    text = f"email,consent_text_digest\na@x.com,{digest.upper()}\nb@x.com,abc\nc@x.com,\n"
    report = place.load(text, consent=CONSENT)
    assert (report.consents, report.refused) == (2, {"consent": 1})
    assert [(row[0], row[1], row[2]) for row in proofs(place)] == [
        ("a@x.com", "form-1", digest),
        ("c@x.com", "form-1", ""),
    ]


def test_without_consent_nothing_is_said_of_it(place: Place) -> None:
    report = place.load("email,newsletter\na@x.com,yes\ninfo@x.com,yes\n")
    assert outcome(report) == (2, 2, 0, 0, 0, 0)
    assert report.notes == {"role_account": 1}
    assert place.consents() == []
    assert place.contacts()["info@x.com"] == {
        "email": "info@x.com",
        "is_role_account": True,
        "newsletter": "yes",
    }
    with pytest.raises(InputError, match="without consent"):
        place.load("email,newsletter\na@x.com,yes\n", mapping={"newsletter": "consent"})


def test_consent_by_text_message_needs_a_number(place: Place) -> None:
    text = "email,mobile\na@x.com,+44 7700 900123\nb@x.com,07700 900123\nc@x.com,\n"
    both = ConsentBasis("consent", channels=("email", "sms"), text_version="f1", given_at=CONSENT.given_at)
    place.load(text, consent=both)
    assert [(row[0], row[1]) for row in place.consents()] == [
        ("a@x.com", "email"), ("a@x.com", "sms"), ("b@x.com", "email"), ("c@x.com", "email"),
    ]  # fmt: skip


def test_parquet_and_json_lines_keep_types_and_say_the_same(place: Place) -> None:
    rows = [
        {"id": 1, "email": "A@x.com", "score": 2.5, "is_vip": True, "joined": "2026-01-02T10:00:00"},
        {"id": 2, "email": "b@gmial.com", "score": 1.0, "is_vip": False, "joined": "2026-01-03T10:00:00Z"},
        {"id": 3, "email": "c@x.com", "score": 3.5, "is_vip": False, "joined": "nonsense"},
    ]
    pl.DataFrame(rows).write_parquet(place.root / "people.parquet")
    (place.root / "people.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    wanted = {"email": "a@x.com", "created_at": "2026-01-02T09:00:00.000Z", "score": 2.5, "is_vip": True}
    for name in ("people.parquet", "people.jsonl"):
        place.warehouse.execute("truncate table raw.crm_records")
        report = place.load(place.root / name, mapping={"joined": "created_at"}, timezone="Europe/Berlin")
        assert outcome(report) == (3, 1, 0, 0, 0, 2), name
        assert report.refused == {"typo": 1, "time": 1}
        assert place.contacts() == {"1": wanted}, name


def test_times_of_other_formats(place: Place) -> None:
    text = "email,Registered\na@x.com,31.05.2026\nb@x.com,2026-05-31\n"
    report = place.load(text, time_format="%d.%m.%Y", timezone="Europe/Berlin")
    # a day without a clock is no time to `strptime`, so it is told of, not guessed
    assert report.taken + report.refused["time"] == 2
    assert report.taken == 1
    assert place.contacts()["a@x.com"]["created_at"] == "2026-05-30T22:00:00.000Z"


def test_a_list_grows_by_who_is_not_on_it(place: Place) -> None:
    path = place.content / "lists" / "friends.csv"
    path.parent.mkdir(parents=True)
    path.write_text("note,email\nold friend,B@x.com")
    report = place.load("email\na@x.com\nb@x.com\nnone\n", list="friends")
    assert report.listed == 1
    assert path.read_text() == "note,email\nold friend,B@x.com\n,a@x.com\n"
    assert place.load("email\na@x.com\nb@x.com\nnone\n", list="friends").listed == 0
    fresh = place.load("customer id,email\n7,z@x.com\n8,\n", mapping={}, list="others")
    assert fresh.listed == 2
    assert (path.parent / "others.csv").read_text() == "email,external_id,source\nz@x.com,,\n,8,import\n"
    path.write_text("external_id\n4\n")
    with pytest.raises(InputError, match="no column email"):
        place.load("email\nq@x.com\n", list="friends")


def test_a_saved_source_reads_the_same_contacts(place: Place) -> None:
    text = (
        "Kundennr;E-mail;Vorname;Newsletter;Seit;Notiz\n1;a@x.com;Ann;ja;01.05.2026 10:00;x\n"
        "2;b@x.com;Bob;nein;01.05.2026 10:00;y\n"
    )
    consent = ConsentBasis("consent", text_version="f1")
    options: dict[str, Any] = {
        "source": "fair", "consent": consent, "time_format": "%d.%m.%Y %H:%M", "ignore": ("Notiz",),
    }  # fmt: skip
    place.load(text, mapping={"Seit": "consent_date"}, **options)
    contacts, consents = place.contacts(), place.consents()
    plan = plan_import(place.write(text), ImportOptions(**options), {"Seit": "consent_date"})
    path = save_source(plan, "fair_visitors", place.content)
    with pytest.raises(InputError, match="already"):
        save_source(plan, "fair_visitors", place.content)
    inbox = place.root / "inbox" / "fair_visitors"
    inbox.mkdir(parents=True)
    (inbox / "june.csv").write_text(text)
    for table in ("crm_records", "consents"):
        place.warehouse.execute(f"truncate table raw.{table}")
    ingest_files(place.warehouse, load_source(path), base_dir=place.root, now=NOW)
    assert (place.contacts(), place.consents()) == (contacts, consents)


@pytest.mark.parametrize(
    ("text", "mapping", "options", "said"),
    [
        ("name,city\nAnn,Bonn\n", {}, {}, "no column is known to hold addresses"),
        ("email\na@x.com\n", {"mail": "email"}, {}, "has no column 'mail'"),
        ("email\na@x.com\n", {"email": "e_mail"}, {}, "'e_mail' is no field"),
        ("a,b\nx,y\n", {"a": "email", "b": "email"}, {}, "both mapped to email"),
        ("email,email.x\na@x.com,1\n", {}, {}, "clashes"),
        ("email,city,town\na@x.com,Bonn,Ulm\n", {"town": "city", "city": ""}, {}, "clashes"),
    ],
)  # fmt: skip
def test_what_makes_no_import_is_said_before_anything_is_stored(
    place: Place, text: str, mapping: dict[str, str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        place.load(text, mapping=mapping, **options)
    assert place.count("imports") == 0


def test_cells_that_spreadsheets_would_run_are_text_in_the_report(place: Place) -> None:
    place.load('email\n"=HYPERLINK(""http://x"")"\n', report_path=place.root / "refused.csv")
    with (place.root / "refused.csv").open(newline="") as handle:
        row = next(csv.DictReader(handle))
    assert not any(
        row[name].startswith(("=", "+", "-", "@")) for name in ("message", "suggestion", "content")
    )


people = st.lists(
    st.tuples(
        st.sampled_from(["", "1", "2", "3"]),
        st.sampled_from(["", "a@x.com", "A@X.com", "b@x.com", "c@gmial.com", "nobody", "info@x.com"]),
        st.sampled_from(["", "Bonn", "Ulm"]),
    ),
    min_size=1,
    max_size=8,
)


@budget(max_examples=5)
@given(st.lists(people, min_size=1, max_size=3), st.integers(min_value=1, max_value=4))
def test_rows_add_up_whatever_is_in_the_files(
    tmp_path_factory: pytest.TempPathFactory,
    warehouse: Warehouse,
    imports: list[list[tuple[str, str, str]]],
    chunk: int,
) -> None:
    for table in ("crm_records", "consents", "imports", "quarantined_rows"):
        warehouse.execute(f"truncate table raw.{table}")
    place = Place(tmp_path_factory.mktemp("imports"), warehouse)
    with pytest.MonkeyPatch.context() as patch:
        # so that batches and chunks end everywhere
        patch.setattr(importing, "LOAD_ROWS", chunk)
        patch.setattr(importing, "read_chunks", _in_chunks_of(chunk))
        for day, rows in enumerate(imports):
            text = "id,email,city\n" + "".join(",".join(row) + "\n" for row in rows)
            report = place.load(text, consent=CONSENT, now=NOW + timedelta(days=day))
            assert report.rows == len(rows) == report.taken + report.repeated + report.refused_rows
            expected = _expected(rows)
            assert report.taken == len(expected)
            now = place.contacts()
            assert {key: now[key] for key in expected} == expected
    assert {row[0] for row in place.consents() if row[2]} <= {"a@x.com", "b@x.com", ""}
    stored = warehouse.frame("select external_id, updated_at from raw.crm_records")
    assert stored.height == stored.unique().height


def _in_chunks_of(rows: int) -> Callable[..., Any]:
    from crm.readers import read_chunks

    return lambda *arguments, **options: read_chunks(*arguments, **options, rows=rows)


def _expected(rows: list[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Contacts that a file holds, one row after the other."""
    found: dict[str, dict[str, str]] = {}
    ids: set[str] = set()
    emails: set[str] = set()
    for number, address, city in rows:
        email = address.lower()
        if email in ("c@gmial.com", "nobody", "info@x.com"):
            continue
        key = number or email
        if not key or key in ids:
            continue
        ids.add(key)
        if email and email in emails:
            continue
        emails |= {email} - {""}
        found[key] = {name: value for name, value in (("email", email), ("city", city)) if value}
    return found


NUMBERS = [
    "+44 20 7946 0018", "+44 (0)20 7946 0018", "0044 7700 900123", "07700 900123", "(415) 555-0123",
    "+1 415 555 0123", "+1 (415) 555-2671", "+1 415 155 2671", "+39 06 1234567", "+39 (0)6 1234567",
    "+49 151/23456789", "+49-151-23456789", "+7 912 345 67 89", "+7 912 345 67", "+999 123456789",
    "+800 1234 5678", "+44\u00a020\u00a079460018", "+44\u201120 7946 0018", "+353 1 234 5678", "+210 1234567",
    "+4420", "+44 20 7946 0018 x12", "+44 20 7946 0018 ext", "tel:+442079460018", "++442079460018", "00 00",
    "", "+", "+4915123456789012345", "+852 1234 5678", "+886 2 1234 5678", "+1 809 555 2671", "12",
    "+٤٤ 20 7946 0018",
]  # fmt: skip


@budget(max_examples=10)
@given(st.lists(st.text(st.sampled_from("+0123456789()-. /\u00a0x"), max_size=18), max_size=40))
def test_numbers_are_read_as_the_warehouse_reads_them(warehouse: Warehouse, more: list[str]) -> None:
    macros = Environment(autoescape=False).from_string(
        (PROJECT_ROOT / "dbt_project" / "macros" / "addresses.sql").read_text()
    )
    number = macros.module.e164("text")  # pyright: ignore[reportAttributeAccessIssue]
    texts = pl.DataFrame({"text": [*NUMBERS, *more, *(f"+44{text}" for text in more)]})
    theirs = warehouse.frame(f"select {number} as number from given", external={"given": texts})["number"]
    ours = texts.select(read.e164(pl.col("text"))).to_series()
    assert ours.to_list() == theirs.to_list()
    assert 5 < ours.null_count() < len(ours) - 5


@pytest.mark.slow
def test_an_import_that_is_killed_goes_on_and_doubles_nothing(tmp_path: Path) -> None:
    settings = MailhouseSettings(home=tmp_path, warehouse_port=launcher.free_port())
    path = tmp_path / "people.csv"
    path.write_text(
        "email,city\n" + "".join(f"p{number}@firma{number % 977}.com,Bonn\n" for number in range(150_000))
    )
    script = """
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from crm import importing
        from crm.importing import ConsentBasis, ImportOptions, plan_import, run_import
        from warehouse.client import Warehouse
        from warehouse.settings import MailhouseSettings
        importing.LOAD_ROWS = 30_000
        home = Path(sys.argv[1])
        settings = MailhouseSettings(home=home, warehouse_port=int(sys.argv[2]))
        consent = ConsentBasis("consent", text_version="f1", given_at=datetime(2026, 6, 1, tzinfo=UTC))
        plan = plan_import(home / "people.csv", ImportOptions(consent=consent))
        with Warehouse.connect(settings) as warehouse:
            print(run_import(warehouse, plan, home=home, content_dir=home, now=datetime.now(UTC)).new, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(settings.warehouse_port)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    with launcher.start(settings), Warehouse.connect(settings) as warehouse:
        migrate(warehouse)
        for enough in (1, 60_000):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
            while warehouse.value("select count() from raw.crm_records") < enough and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
        between = warehouse.value("select count() from raw.crm_records")
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert finished.stdout.strip() == "150000", finished.stderr
        assert 0 < between < 150_000
        for table, key in (("crm_records", "external_id, updated_at"), ("consents", "consent_id")):
            total, different = warehouse.frame(f"select count(), uniqExact({key}) from raw.{table}").row(0)
            assert (total, different) == (150_000, 150_000), table
        statuses = warehouse.frame(
            "select status::String, uniqExact(import_id) from raw.imports group by status"
        ).rows()
        assert sorted(statuses) == [("finished", 1), ("started", 1)]
