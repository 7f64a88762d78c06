"""Templates in several languages, their filters, heads, attachments and pictures."""

from __future__ import annotations

import email
import email.policy
import pickle
from datetime import UTC, date, datetime
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mailhouse.cli import app
from senders.assets import Assets, PublishError, publish
from senders.attachments import LARGEST, load_attachments
from senders.composing import Composer, Envelope, render_batch
from senders.filters import FilterError, format_date, money, number, plural
from senders.links import Links
from senders.localisation import fallbacks, normalised
from senders.message import Address, Message
from senders.mime import build
from senders.rendering import Rendered, Template, TemplateError, TemplateLibrary

BODY = "<mjml>\n<mj-body><mj-section><mj-column>\n<mj-text>{}</mj-text></mj-column></mj-section></mj-body></mjml>"
ID = "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"
NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
PRODUCTS = [{"name": f"Lamp {n}", "price": n} for n in range(6)]
EVENT = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Shop//Sale//EN
METHOD:PUBLISH
BEGIN:VEVENT
UID:sale-2026@example.com
DTSTAMP:20260601T000000Z
DTSTART:20260627T090000Z
SUMMARY:Sale
END:VEVENT
END:VCALENDAR
"""


@pytest.fixture
def content(tmp_path: Path) -> Path:
    made = tmp_path / "content"
    for name in ("templates", "attachments", "assets/img"):
        (made / name).mkdir(parents=True)
    return made


def write(content: Path, name: str, inner: str, head: str = "") -> None:
    text = (f"---\n{head}\n---\n" if head else "") + BODY.format(inner)
    (content / "templates" / f"{name}.mjml").write_text(text)


def load(content: Path, **more: Any) -> Template:
    return TemplateLibrary.load(content / "templates").template("offer", **more)


def context(**contact: Any) -> dict[str, Any]:
    return {"contact": contact, "recommendations": [], "now": NOW}


def raw(template: Template, **contact: Any) -> bytes:
    envelope = Envelope(
        sender=Address("s@example.com"), links=Links(b"k" * 32, "https://m.example"), constants={}
    )
    made = Composer(pickle.loads(pickle.dumps(template.source)), envelope)
    (done,) = render_batch(
        made, [{"email": "a@example.org", **contact}], [ID], NOW, recommendations=[PRODUCTS]
    )
    assert isinstance(done, bytes), done
    return done


@pytest.mark.parametrize(
    ("locale", "text"),
    [
        ("de", "Hallo"), ("de_DE", "Hallo"), ("de-at", "Servus"), ("de_AT.UTF-8", "Servus"), ("fr", "Hello"),
        (None, "Hello"), ("", "Hello"), ("nonsense!", "Hello"), ("pt-br", "Hello"), (7, "Hello"),
    ],
)  # fmt: skip
def test_everybody_gets_the_nearest_language(content: Path, locale: object, text: str) -> None:
    for name, word in (("offer", "Hello"), ("offer.de", "Hallo"), ("offer.de_AT", "Servus")):
        write(content, name, word)
    library = TemplateLibrary.load(content / "templates")
    assert library.names() == ["offer"]
    template = library.template("offer")
    assert template.render(context(locale=locale)).text == text + "\n"
    assert template.columns == {"locale"}
    assert f"\r\n\r\n{text}\r\n".encode() in raw(template, locale=locale)


def test_a_translation_has_its_own_subject_and_changes_the_version(content: Path) -> None:
    write(content, "offer", "Hello")
    alone = load(content, subject="For you", preheader="Now")
    write(content, "offer.de", "Hallo", "subject: Für {{ contact.first_name | default('Sie') }}")
    both = load(content, subject="For you", preheader="Now")
    assert alone.version != both.version
    done = [both.render(context(locale=locale)) for locale in ("en", "de")]
    assert [(one.subject, one.preheader) for one in done] == [("For you", "Now"), ("Für Sie", "Now")]
    assert (
        email.message_from_bytes(raw(both, locale="de"), policy=email.policy.default)["Subject"] == "Für Sie"
    )
    assert "first_name" in (both.columns or ())


def test_marketing_needs_a_way_out_in_every_language(content: Path) -> None:
    write(content, "offer", "{{ unsubscribe_url }} {{ postal_address }}")
    write(content, "offer.de", "{{ postal_address }}")
    with pytest.raises(TemplateError, match=r"offer in de: marketing mail needs .. unsubscribe_url"):
        load(content).require_marketing()


@pytest.mark.parametrize(
    ("name", "inner", "head", "message"),
    [
        ("offer.german", "x", "", r"offer.german.mjml: 'german' is no locale"),
        ("offer.de", "{{ contact.frist_name }}", "subject: x", r"offer.de.mjml:6: unknown merge tag"),
        ("offer", "x", "subjet: x", r"offer.mjml:2: subjet: is no key here.(.|\n)*Did you mean subject"),
        ("offer", "x", "a: b\nsubject: [x]", r"offer.mjml:\d: "),
        ("offer", "x", "subject: {{ contact.city }}", r"offer.mjml:\d: "),
        (
            "offer",
            "x",
            "attachments: [terms.pdf]",
            r"there is no attachment 'terms.pdf'(.|\n)*Did you mean term.pdf",
        ),
        ("offer", "x", "attachments: [../templates/offer.mjml]", r"leaves attachments/"),
        ("offer", "x", "attachments: [run.exe]", r"mailboxes refuse"),
        ("offer", "x", "attachments: [bad.ics]", r"no calendar file \(RFC 5545\): it has no UID"),
        (
            "offer",
            "<img src='asset:img/lgo.png' />",
            "",
            r"offer.mjml:3: there is no asset(.|\n)*img/logo.png",
        ),
        ("offer", "<img src='asset:img/logo.png' />", "", r"MAILHOUSE_ASSETS_URL is not set"),
    ],
)
def test_mistakes_are_found_when_it_is_loaded(
    content: Path, name: str, inner: str, head: str, message: str
) -> None:
    write(content, "offer", "x")
    (content / "attachments/term.pdf").write_bytes(b"%PDF")
    (content / "attachments/run.exe").write_bytes(b"MZ")
    (content / "attachments/bad.ics").write_text(EVENT.replace("UID", "X-UID"))
    (content / "assets/img/logo.png").write_bytes(b"PNG")
    write(content, name, inner, head)
    with pytest.raises(TemplateError, match=message):
        load(content)
    assert TemplateLibrary.load(content / "templates").check()


def test_filters_write_as_the_language_does(content: Path) -> None:
    inner = (
        "{{ contact.revenue | money('EUR') }} {{ contact.revenue | number(1) }} {{ contact.last_order_at | date }} "
        "{{ contact.last_order_at | date('%-d. %B', 'Asia/Tokyo') }} {{ contact.last_order_at | date('short') }} "
        "{{ contact.orders_count | plural(one='Ding', other='Dinge') }}"
    )
    write(content, "offer", inner)
    write(content, "offer.de", inner)
    template = load(content)
    contact = {
        "revenue": Decimal("1234.5"), "last_order_at": datetime(2026, 3, 1, 23, tzinfo=UTC), "orders_count": 1,
    }  # fmt: skip
    done = {locale: template.render(context(**contact, locale=locale)).text for locale in ("", "de")}
    assert done == {
        "": "€1,234.50 1,234.5 1 March 2026 2. March 01/03/2026 Ding\n",
        "de": "1.234,50\u00a0€ 1.234,5 1. März 2026 2. März 01.03.26 Ding\n",
    }
    assert "2. M=C3=A4rz" in raw(template, **contact, locale="de").decode().replace("=\r\n", "")


def test_filters_by_themselves() -> None:
    assert money(-1, "JPY", locale="ja").replace("￥", "¥") == "-¥1"
    assert money("2.345", "EUR", locale="fr") == "2,35\u00a0€"
    assert money(2, "EUR", 0, locale="en_US") == "€2"
    assert number(1234.5, 0, locale="de_CH") == "1’235"
    assert format_date(date(2026, 6, 27), "%-d %B", locale="ru") == "27 июня"
    assert format_date("2026-06-27", "full", locale="fr") == "samedi 27 juin 2026"
    forms = {"one": "товар", "few": "товара", "many": "товаров", "other": "товара"}
    assert [plural(n, locale="ru", **forms) for n in (1, 3, 5, 21)] == ["товар", "товара", "товаров", "товар"]
    assert plural([1, 2], one="x", other="y") == "y"
    with pytest.raises(FilterError, match="other"):
        plural(1, one="x")
    # the same instant in two zones is two dates
    instant = datetime(2026, 6, 27, 23, tzinfo=UTC)
    assert [format_date(instant, "short", zone, locale="de") for zone in ("UTC", "Asia/Tokyo")] == [
        "27.06.26",
        "28.06.26",
    ]


@given(st.text(max_size=12))
def test_any_text_is_some_locale_or_none(text: str) -> None:
    assert all(normalised(one) == one for one in fallbacks(text))
    assert bool(fallbacks(text)) == bool(normalised(text))


def test_recommendations_as_a_call(content: Path) -> None:
    inner = (
        "{% for p in recommendations(n=2, skip=1) %}{{ p.name }};{% endfor %}{{ recommendations() | length }}"
    )
    write(content, "offer", inner)
    template = load(content)
    assert b"Lamp 1=\r\n;=\r\nLamp 2=\r\n;=\r\n6\r\n" in raw(template)
    write(content, "offer", "{% for p in recommendations(n=2) %}{{ p.nam }}{% endfor %}")
    with pytest.raises(TemplateError, match=r"p\.nam(.|\n)*p\.name"):
        load(content)


def test_attachments_go_with_the_message(content: Path) -> None:
    (content / "attachments/sale.ics").write_text(EVENT)
    (content / "attachments/Zürich.pdf").write_bytes(bytes(range(256)) * 9)
    (content / "attachments/notes.txt").write_text("é")
    write(content, "offer", "Hello", "attachments: [sale.ics, notes.txt]")
    template = load(content, attachments=["Zürich.pdf", "sale.ics"])
    done = raw(template)
    assert all(len(line) <= 78 for line in done.partition(b"\r\n\r\n")[2].split(b"\r\n"))
    sent = email.message_from_bytes(done, policy=email.policy.default)
    assert isinstance(sent, EmailMessage)
    assert sent.get_content_type() == "multipart/mixed"
    body, *files = sent.iter_parts()
    assert body.get_content_type() == "multipart/alternative"
    found = {part.get_filename(): part for part in files if isinstance(part, EmailMessage)}
    assert list(found) == ["Zürich.pdf", "sale.ics", "notes.txt"]
    assert found["Zürich.pdf"].get_content() == bytes(range(256)) * 9
    assert found["sale.ics"].get_content() == EVENT.replace("\n", "\r\n")
    assert found["sale.ics"]["Content-Type"].params == {"charset": "utf-8", "method": "PUBLISH"}
    assert found["notes.txt"].get_content() == "é"
    rendered: Rendered = template.render(context())
    message = Message(
        message_id=ID, contact_id=1, sender=Address("s@example.com"), recipient=Address("a@example.org"), subject="",
        html=rendered.html, text=rendered.text, sent_at=NOW, attachments=template.source.attachments,
    )  # fmt: skip
    assert build(message).partition(b"MIME-Version")[2].count(b"=_mailhouse_mixed") == 6
    before = template.version
    (content / "attachments/notes.txt").write_text("è")
    assert load(content, attachments=["Zürich.pdf", "sale.ics"]).version != before


def test_attachments_have_a_limit(content: Path) -> None:
    with (content / "attachments/large.bin").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(TemplateError, match="at most 7 MB"):
        load_attachments(["large.bin"], content / "attachments", "here")


def test_assets_are_published_under_their_content(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content / "assets/img/logo é.png").write_bytes(b"one")
    (content / "assets/top.css").write_bytes(b"two")
    (content / "assets/.hidden").write_bytes(b"x")
    assets = Assets(content / "assets", "https://cdn.example.com/mail/")
    store = tmp_path / "store"
    new, kept = publish(assets, str(store))
    assert (len(new), kept) == (2, 0)
    assert publish(assets, store.as_uri()) == ([], 2)
    assert {path.read_bytes() for path in store.rglob("*") if path.is_file()} == {b"one", b"two"}
    address = assets.address("img/logo é.png", "here")
    assert address == f"https://cdn.example.com/mail/{new[0].replace(' ', '%20').replace('é', '%C3%A9')}"
    (content / "assets/top.css").write_bytes(b"three")
    assert publish(assets, str(store))[1] == 1
    assert {path.read_bytes() for path in store.rglob("*") if path.is_file()} == {b"one", b"two", b"three"}

    write(
        content,
        "offer",
        '<img src="asset:top.css" /> <a style="background: url(asset:top.css)" href="asset:top.css">x</a>',
    )
    library = TemplateLibrary.load(content / "templates", assets_url="https://cdn.example.com/mail")
    assert library.template("offer").render(context()).html.count(assets.address("top.css", "")) == 3

    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(content))
    monkeypatch.setenv("MAILHOUSE_ASSETS_STORE", str(tmp_path / "other"))
    done = CliRunner().invoke(app, ["assets", "publish"])
    assert done.exit_code == 0
    assert "2 published, 0 there already." in done.output
    for bad in ("nowhere://x", str(content / "assets/top.css")):
        with pytest.raises(PublishError):
            publish(assets, bad)
