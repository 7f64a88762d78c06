"""Composed messages against the standard library's, and against the same template rendered to text."""

from __future__ import annotations

import email
import email.policy
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from email.message import EmailMessage
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sending import audience, plan, sender_settings, write_content

from campaigns.identity import message_ids
from senders.composing import Composer, Envelope, RecipientError, render_batch
from senders.dkim import canonical_body
from senders.ledger import Ledger
from senders.links import Links, Tracking
from senders.message import Address, Message
from senders.mime import build, quoted
from senders.pieces import Ready, Stem
from senders.pipeline import send
from senders.providers import get_provider
from senders.rendering import RenderError, Template, TemplateLibrary, TemplateSource, make_environment
from senders.tracking import tracking_of
from senders.wire import WirePart, wire_environment

LINKS = Links(b"k" * 32, "https://mail.example.com")
NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
ID = "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"
TEMPLATE = """<mjml><mj-body>
<mj-section><mj-column>
<mj-text>Hello {{ contact.first_name | default('there') }} {{ contact.city | default('') }},</mj-text>
{% set town = contact.city | default('nowhere') %}
{% if contact.orders_count %}<mj-text>{{ contact.orders_count }} orders, {{ contact.revenue | money }}
from {{ town | upper }}</mj-text>{% elif contact.country %}<mj-text>From {{ contact.country }}.</mj-text>
{% else %}<mj-text>.</mj-text>{% endif %}
{% for product in recommendations %}
<mj-text>{{ loop.index }}. <a href="{{ product.url }}">{{ product.name }}</a>
{% if not loop.last %};{% endif %}</mj-text>
<mj-button href="{{ product.url }}">{{ product.name ~ '!' }}</mj-button>
{% else %}<mj-text>Nothing – ça va…</mj-text>{% endfor %}
<mj-text>{% macro shown(thing) %}<b>{{ thing }}</b>{% endmacro %}{{ shown(contact.city | default('?')) }}
{% set block %}<i>{{ town }}</i>{% endset %}{{ block }}{% filter upper %}{{ town }}{% endfilter %}
{% macro twice() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call twice() %}&amp;{{ town }}{% endcall %}
{% for part in [[town], [1, 2]] recursive %}{{ loop(part) if part is iterable and part is not string else part }}
{% endfor %}{% with a = town %}{{ a }}{% endwith %}</mj-text>
<mj-text>{{ company_name }}, {{ postal_address }} <a href="{{ unsubscribe_url }}">Unsubscribe</a></mj-text>
</mj-column></mj-section></mj-body></mjml>"""
BY_HAND = """  Hello {{ contact.first_name | default('') }}

   {% if contact.city %}
{{ contact.city }}
   {% endif %}

{% for product in recommendations %}

 {{ product.name }}
{% endfor %}
{{ unsubscribe_url }} {{ postal_address }}

"""
VALUE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=300) | st.sampled_from(
    ["", " ", ".", "..", ".\n.", "From me", "\nFrom me", "a=b", "=3D", "x" * 500, "é" * 200, "日本 " * 40, "a \n b\t\n",
     "<b>&'\"</b>", "{{ x }}", "\n\n\n", " \n \n \n ", "\u00a0", "\u2003x\u2003", "\u2028",
     "=\n=", "x" * 71, "x" * 70 + "."]
)  # fmt: skip
LONG_LINES = st.lists(VALUE, max_size=4).map("".join)
CONTACT = st.fixed_dictionaries(
    {
        "first_name": st.none() | VALUE, "last_name": st.none() | VALUE, "city": st.none() | LONG_LINES,
        "country": st.none() | VALUE, "orders_count": st.none() | st.integers(-5, 10**9),
        "revenue": st.decimals(-(10**6), 10**6, places=2), "email": st.just("ann@example.org"),
    }
)  # fmt: skip
WEB = st.text("ab/.?&=é<'", max_size=80).map("https://shop.example/{}".format)
PRODUCTS = st.lists(
    st.fixed_dictionaries({"name": VALUE.filter(bool), "url": VALUE.filter(bool) | WEB, "price": st.just(1)}),
    max_size=3,
)  # fmt: skip


def load(folder: Path, template: str = TEMPLATE, by_hand: str = "", **more: Any) -> Template:
    """The template, also through a pickle, as a worker process gets it."""
    (folder / "offer.mjml").write_text(template)
    if by_hand:
        (folder / "offer.txt").write_text(by_hand)
    made = TemplateLibrary.load(folder).template("offer", **more)
    source = pickle.loads(pickle.dumps(made.source))
    assert isinstance(source, TemplateSource)
    return Template(source)


def composer(template: Template, **more: Any) -> Composer:
    values: dict[str, Any] = {
        "sender": Address("shop@example.com", "Zoë's Shop"), "links": LINKS, "reply_to": Address("help@example.com"),
        "constants": {"campaign": {"name": "offer"}, "company_name": "Shop & Co", "postal_address": "1 High Street"},
        "headers": (("List-Id", "<offer.example.com>"),),
    }  # fmt: skip
    return Composer(template.source, pickle.loads(pickle.dumps(Envelope(**{**values, **more}))))


def parsed(raw: bytes) -> EmailMessage:
    found = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


def bodies(message: EmailMessage) -> tuple[str, str]:
    text, html = (
        part.get_content().replace("\r\n", "\n")
        for part in message.iter_parts()
        if isinstance(part, EmailMessage)
    )
    return text, html


def check_against_slow_path(made: Composer, contact: dict[str, Any], products: list[dict[str, Any]]) -> None:
    context = made.context(contact, products, ID, NOW)
    try:
        rendered = made.template.render(context)
    except RenderError as error:
        (failed,) = render_batch(made, [contact], [ID], NOW, recommendations=[products])
        assert isinstance(failed, RenderError)
        assert str(failed) == str(error)
        return
    subjects: list[str] = []
    (raw,) = render_batch(made, [contact], [ID], NOW, recommendations=[products], subjects=subjects)
    assert isinstance(raw, bytes)
    assert subjects == [rendered.subject]
    lines = raw.split(b"\r\n")
    assert b"\n" not in b"".join(lines)
    assert b"\r" not in b"".join(lines)
    assert max(map(len, lines)) <= 998
    _, _, body = raw.partition(b"\r\n\r\n")
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert not re.search(rb"^(\.|From )", body, re.MULTILINE)
    assert canonical_body(body) == body
    ours = parsed(raw)
    reference = parsed(
        build(
            Message(
                message_id=ID, contact_id=1, sender=made.envelope.sender, subject=rendered.subject, sent_at=NOW,
                html=rendered.html, text=rendered.text, reply_to=made.envelope.reply_to,
                recipient=Address(contact["email"], str(ours["To"].addresses[0].display_name)),
                headers=(*made.envelope.headers, ("List-Unsubscribe", f"<{context['unsubscribe_url']}>"),
                         ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")),
            )
        )
    )  # fmt: skip
    assert sorted(ours.keys()) == sorted(reference.keys())
    for name in ours:
        if name != "To":
            assert ours[name] == reference[name]
    assert ours["Subject"] == rendered.subject
    assert bodies(ours) == bodies(reference)
    # and as the standard library writes the same two bodies
    standard = EmailMessage(policy=email.policy.SMTP)
    standard.set_content(rendered.text, charset="utf-8", cte="base64")
    standard.add_alternative(rendered.html, subtype="html", charset="utf-8", cte="base64")
    assert [text.rstrip("\n") for text in bodies(ours)] == [
        text.rstrip("\n") for text in bodies(parsed(standard.as_bytes()))
    ]
    assert not ours.defects


@pytest.fixture(scope="module")
def composers(tmp_path_factory: pytest.TempPathFactory) -> list[Composer]:
    folder = tmp_path_factory.mktemp("templates")
    subject = "For {{ contact.first_name | default('you') }}"
    utm = Tracking(clicks=True, opens=True, utm={"source": "mail", "campaign": "offer"})
    return [
        composer(load(folder, subject=subject)),
        composer(load(folder, subject=subject, preheader="{{ contact.city | default('Hi') }}")),
        composer(load(folder, subject="{{ preheader }}", preheader="x", tracking=utm, links=LINKS)),
        composer(load(folder, TEMPLATE.replace("Nothing", "Ничего нет, но будет" * 60), subject=subject)),
        composer(load(folder, by_hand=BY_HAND, subject=subject)),
    ]


@settings(max_examples=60, deadline=None)
@given(contact=CONTACT, products=PRODUCTS, number=st.integers(0, 4))
@example(
    contact={"first_name": None, "last_name": None, "city": "\n \n \nx", "country": None, "orders_count": None,
             "revenue": Decimal(1), "email": "a@example.org"},
    products=[{"name": "\n\n", "url": " ", "price": 1}, {"name": " \n ", "url": "http://x", "price": 1}],
    number=4,
)  # fmt: skip
def test_composed_is_what_rendered_and_built_would_be(
    composers: list[Composer], contact: dict[str, Any], products: list[dict[str, Any]], number: int
) -> None:
    check_against_slow_path(composers[number], contact, products)


@given(st.lists(LONG_LINES, max_size=6))
def test_pieces_decode_to_their_texts(values: list[str]) -> None:
    raw = b"".join(map(quoted, values)) + b"\r\n"
    part = email.message_from_bytes(
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'
        + raw,
        policy=email.policy.default,
    )
    assert isinstance(part, EmailMessage)
    decoded = part.get_payload(decode=True)
    assert isinstance(decoded, bytes)
    assert decoded.decode().replace("\r\n", "\n") == "".join(values) + "\n"
    assert all(len(line) <= 76 for line in raw.split(b"\r\n"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "\n", " ", "\u00a0", ".", "\t", "\n\n", " \n", "b\n \n"]), max_size=15))
def test_blank_lines_are_joined_as_in_text(values: list[str]) -> None:
    source = "".join(value if n % 3 else f"{{{{ v[{n}] }}}}" for n, value in enumerate(values))
    source = source.replace("a\n", "a\n{% if true %}\n{% endif %}")
    environment = make_environment(autoescape=False)
    text = environment.from_string(source).render(v=values)
    text = re.sub(r"\n[ \n]*\n[ \n]*\n", "\n\n", text).strip() + "\n"
    out: list[bytes] = []
    part = WirePart(wire_environment(environment), source, lambda _: text, is_trimmed=True)
    part.write({"v": values}, out)
    decoded = email.message_from_bytes(b"".join(out)).get_payload(decode=True)
    assert isinstance(decoded, bytes)
    assert decoded.decode().replace("\r\n", "\n") == text


def test_columns_and_rows_give_the_same(composers: list[Composer]) -> None:
    rows = [
        {"email": f"p{n}@example.org", "first_name": name, "last_name": None, "city": "York", "country": "UK",
         "orders_count": n, "revenue": Decimal(n)}
        for n, name in enumerate(["Ann", None, "Zoë"])
    ]  # fmt: skip
    ids = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    by_rows = render_batch(composers[0], rows, ids, NOW)
    assert by_rows == render_batch(composers[0], columns, ids, NOW)
    raw = by_rows[2]
    assert isinstance(raw, bytes)
    message = parsed(raw)
    assert message["To"] == "Zoë <p2@example.org>"
    assert message["Message-ID"] == f"<{ids[2]}@example.com>"
    assert message["List-Unsubscribe"] == f"<{LINKS.unsubscribe(ids[2])}>"


def test_one_bad_contact_leaves_the_others_alone(tmp_path: Path) -> None:
    made = composer(load(tmp_path, TEMPLATE.replace("contact.city | default('nowhere')", "contact.city")))
    row = {"email": "a@example.org", "city": "York", "revenue": 1}
    bad = [{**row, "city": None}, {**row, "email": "no address"}, {**row, "email": None}, {**row, "orders_count": "x",
           "revenue": "much"}]  # fmt: skip
    subjects: list[str] = []
    done = render_batch(made, [row, *bad, row], [ID] * 6, NOW, subjects=subjects)
    assert [type(one) for one in done] == [
        bytes, RenderError, RecipientError, RecipientError, RenderError, bytes,
    ]  # fmt: skip
    assert "'city' is empty for this contact" in str(done[1])
    assert "money" in str(done[4])
    assert "no address" not in str(done[2])
    assert len(subjects) == 6


def test_values_are_never_mistaken_for_one_another(tmp_path: Path) -> None:
    """Equal keys of different types (1, True, 1.0, Decimal) print differently, and markup is not escaped."""
    made = composer(load(tmp_path, TEMPLATE, "{{ contact.city }} {{ unsubscribe_url }} {{ postal_address }}"))
    for value in (1, True, 1.0, Decimal("1.00"), "1", "<b>", date(2026, 1, 1), [1], False, 0):
        check_against_slow_path(made, {"email": "a@example.org", "city": value, "revenue": 1}, [])


def test_templates_may_not_leave_the_sandbox(tmp_path: Path) -> None:
    for tag in ("{{ ''.__class__ }}", "{{ now.replace.__self__ }}", "{{ contact.city.__class__.__mro__ }}",
                "{{ now.__init__.__globals__ }}", "{{ range(10**9) | list }}"):  # fmt: skip
        made = composer(load(tmp_path, f"<mjml><mj-body><mj-section><mj-column><mj-text>{tag}</mj-text></mj-column>"
                                       "</mj-section></mj-body></mjml>", "x"))  # fmt: skip
        (failed,) = render_batch(made, [{"email": "a@example.org", "city": "York"}], [ID], NOW)
        assert isinstance(failed, RenderError), tag


def test_what_cannot_be_compiled_beforehand_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mailhouse")
    composer(load(tmp_path))
    assert not caplog.messages
    composer(load(tmp_path, by_hand="Привет и спасибо, {{ contact.first_name }}"))
    (said,) = caplog.messages
    assert said.startswith("offer: the text part is mostly not ASCII")


def test_a_template_that_goes_as_base64_finds_its_products(tmp_path: Path) -> None:
    story = "Долго до того, как первая лампа была зажжена в мастерской, кто-то решил, для чего она. " * 60
    made = composer(
        load(tmp_path, TEMPLATE.replace("Nothing", story), "{{ unsubscribe_url }} {{ postal_address }}")
    )
    assert not made.template.wire_parts[1].is_precompiled
    products = [{"name": "Лампа", "url": "https://shop.example/1", "price": Decimal("3.50")}]
    check_against_slow_path(made, {"email": "ann@example.org", "revenue": Decimal(1)}, products)
    (raw,) = render_batch(
        made, [{"email": "ann@example.org", "revenue": Decimal(1)}], [ID], NOW, recommendations=[products]
    )
    assert isinstance(raw, bytes)
    assert "Лампа" in bodies(parsed(raw))[1]


@given(
    st.text("abcF./ -", max_size=200), st.text("AZaz09-_F", min_size=43, max_size=43),
    st.sampled_from(["", "/", ".gif"]),
)  # fmt: skip
def test_links_are_encoded_as_any_text(begin: str, token: str, end: str) -> None:
    made, plain = Stem(begin, 43, end).ready(token.encode()), Ready(begin + token + end)
    assert (made, made.encoded) == (plain, plain.encoded)


def test_the_same_product_is_kept_and_others_never_mistaken_for_it(tmp_path: Path) -> None:
    made = composer(load(tmp_path))
    goods = [
        {"name": name, "url": "https://x.example", "price": price}
        for name, price in [("Lamp", 1), ("Lamp", 2), ("Lamp & Co", 1), ("Lamp", 1)]
    ]
    for one in [*goods, {**goods[0], "price": True}, {**goods[0], "price": Decimal("1.00")}]:
        check_against_slow_path(made, {"email": "ann@example.org", "revenue": Decimal(1)}, [one])


def test_a_worker_process_makes_the_same(tmp_path: Path) -> None:
    template = load(tmp_path, subject="For {{ contact.first_name | default('you') }}")
    envelope = Envelope(sender=Address("s@example.com"), links=LINKS, constants={"company_name": "Shop"})
    rows = [{"email": f"p{n}@example.org", "city": "York", "revenue": n} for n in range(3)]
    ids = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        elsewhere = pool.submit(work, template.source, envelope, rows, ids).result(timeout=60)
    assert elsewhere == work(template.source, envelope, rows, ids)
    assert all(isinstance(one, bytes) for one in elsewhere)


def work(
    source: TemplateSource, envelope: Envelope, rows: list[dict[str, Any]], ids: list[str]
) -> list[bytes | RenderError]:
    """What a worker process does."""
    constants = {**envelope.constants, "postal_address": "1 High Street"}
    return render_batch(Composer(source, replace(envelope, constants=constants)), rows, ids, NOW)


def test_the_key_is_not_shown(composers: list[Composer]) -> None:
    envelope = composers[0].envelope
    assert "kkkk" not in repr(envelope) + repr(LINKS.__dict__)


@pytest.mark.parametrize("category", ["marketing", "transactional"])
def test_an_envelope_of_a_plan_is_what_the_pipeline_sends(tmp_path: Path, category: str) -> None:
    content = write_content(tmp_path / "content")
    made = sender_settings(tmp_path, track_clicks="marketing", utm_source="mail")
    what = plan(category=category, reply_to="help@example.com", preheader="Soon")
    with Ledger.open(made) as ledger, get_provider(made) as provider:
        summary = send(what, audience(3), settings=made, ledger=ledger, provider=provider)
    assert summary.sent == 3
    delivered = [parsed(path.read_bytes()) for path in (tmp_path / "maildir/new").iterdir()]
    sent = {str(message["Message-ID"]): message for message in delivered}
    frame = next(audience(3))
    template = TemplateLibrary.load(content / "templates").template(
        "offer", subject=what.subject, preheader=what.preheader, tracking=tracking_of(what, made),
        links=Links(made.signing_key(), made.base_url),
    )  # fmt: skip
    columns = {name: frame[name].to_list() for name in ("contact_id", "email", "first_name", "city")}
    ids = message_ids("campaign", what.name, columns["contact_id"], what.occurrence)
    done = render_batch(
        Composer(template.source, Envelope.of(what, made)), columns, ids, NOW,
        recommendations=frame["recommendations"].to_list(),
    )  # fmt: skip
    for raw in done:
        assert isinstance(raw, bytes)
        ours = parsed(raw)
        theirs = sent[str(ours["Message-ID"])]
        fields = [
            {name: str(value) for name, value in one.items() if name != "Date"} for one in (ours, theirs)
        ]
        assert fields[0] == fields[1]
        assert bodies(ours) == bodies(theirs)
