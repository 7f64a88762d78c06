"""`mailhouse contacts import` as a person runs it: what it shows, what it leaves, how it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from command_line import mailhouse

from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

PROOF = ("--basis", "consent", "--consent-date", "2026-05-31", "--consent-text-version", "form-1")
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def contacts(
    settings: MailhouseSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("MAILHOUSE_HOME", str(settings.home))
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(settings.home / "content"))
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_URL", settings.warehouse.url)
    monkeypatch.chdir(settings.home)

    def run(*args: str) -> tuple[int, str]:
        return mailhouse(monkeypatch, capsys, "contacts", "import", *args)

    return run


def test_an_import_from_beginning_to_end(
    contacts: Command, settings: MailhouseSettings, warehouse: Warehouse
) -> None:
    (settings.home / "people.csv").write_text(
        "E-mail;Vorname;Stufe\na@x.com;Ann;gold\nb@gmial.com;Bob;\nc@x.com;Cat;\n"
    )
    code, said = contacts("people.csv", *PROOF, "--dry-run")
    assert code == 0
    assert "Vorname first_name" in said and "Stufe a property of its own name" in said
    assert "2 new contacts" in said and "1 refused" in said and "perhaps b@gmail.com" in said
    assert "Dry run: nothing was stored." in said
    assert warehouse.value("select count() from raw.crm_records") == 0

    code, said = contacts(
        "people.csv",
        *PROOF,
        "--yes",
        "--report",
        "refused.csv",
        "--save-as",
        "fair",
        "--list",
        "friends",
        "--by",
        "ann",
    )
    assert code == 0
    assert "2 consents (consent)" in said and "2 new on the list friends" in said
    assert (settings.home / "content" / "lists" / "friends.csv").exists()
    assert (settings.home / "content" / "sources" / "fair.yaml").exists()
    assert "b@gmail.com" in (settings.home / "refused.csv").read_text()
    assert warehouse.value("select any(imported_by) from raw.imports where status = 'finished'") == "ann"

    assert contacts("people.csv", *PROOF, "--yes", "--strict")[0] == 1
    code, said = contacts("people.csv", *PROOF, "--yes", "--strict", "--fix-typos")
    assert code == 0 and "1 new contacts" in said and "2 unchanged" in said


def test_nothing_imported_is_no_success(
    contacts: Command, settings: MailhouseSettings, warehouse: Warehouse
) -> None:
    (settings.home / "people.csv").write_text("email\nnobody\n")
    assert contacts("people.csv", "--no-consent", "--yes")[0] == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--basis consent, contract or legitimate_interest; or --no-consent"),
        (("--no-consent", "--basis", "contract"), "exclude each other"),
        (("--no-consent", "--consent-date", "2026-05-31"), "nothing can be said of consent"),
        (("--basis", "consent", "--consent-date", "31.5.2026"), "is no date"),
        (("--basis", "consent", "--consent-date", "2999-01-01"), "lies in the future"),
        (("--basis", "consent"), "--consent-date 2026-05-31"),
        ((*PROOF, "--channel", "fax"), "No consent is kept for channel 'fax'"),
        ((*PROOF, "--source", "My Fair"), "lower case letters"),
        ((*PROOF, "--map", "email"), '--map "Column=field"'),
        ((*PROOF, "--map", "email=mail"), "no field of a contact"),
        ((*PROOF, "--timezone", "Berlin"), "is no time zone"),
        ((*PROOF, "--purpose", "All Things"), "is no name"),
    ],
)
def test_what_is_wrong_is_said_before_a_warehouse_is_needed(
    contacts: Command, settings: MailhouseSettings, args: tuple[str, ...], words: str
) -> None:
    (settings.home / "people.csv").write_text("email\na@x.com\n")
    code, said = contacts("people.csv", *args, "--yes")
    assert code == 2
    assert said.startswith("Error") and words in said
