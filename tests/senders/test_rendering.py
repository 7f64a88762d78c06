"""Templates: what authors may write, what they are told when it is wrong, and what comes out."""

from __future__ import annotations

import email
import email.policy
import re
import socket
from datetime import UTC, date, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from senders.composing import Composer, Envelope, render_batch
from senders.event_context import EVENT_COLUMN, event_context, event_text
from senders.filters import money, number, pluralize
from senders.links import Links
from senders.message import Address
from senders.rendering import PROFILE_COLUMNS, Rendered, RenderError, TemplateError, TemplateLibrary
from senders.tags import product_fields
from senders.templates import HTML

WILD = Path(__file__).parents[3] / "shared/data/mjml_templates"
CONTENT = Path(__file__).parents[2] / "content/templates"
BODY = "<mjml>\n<mj-body>\n<mj-section><mj-column>\n{}\n</mj-column></mj-section></mj-body></mjml>"
CONTEXT: dict[str, Any] = {
    "contact": {"contact_id": 7, "email": "ann@example.com", "first_name": "Ann", "city": None, "orders_count": 2,
                "last_order_at": datetime(2026, 6, 27, 23, 30, tzinfo=UTC), "revenue": Decimal("1234.50")},
    "recommendations": [
        {"product_id": str(n), "name": f"Lamp {n} & shade", "price": Decimal("3.455"), "image_url": "",
         "url": f"https://shop.example/{n}?a=1&b=2", "reason": "popular"}
        for n in (1, 2)
    ],
    "campaign": {"kind": "campaign", "name": "offer", "version": "1", "occurrence": "o", "category": "marketing",
                 "variant": ""},
    "unsubscribe_url": "https://mail.example.com/unsubscribe/t", "preferences_url": "https://mail.example.com/p/t",
    "confirm_url": "https://mail.example.com/confirm/t",
    "postal_address": "1 High Street", "company_name": "Shop", "now": datetime(2026, 6, 28, tzinfo=UTC),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "content" / "templates"
    made.mkdir(parents=True)
    return made


def render(folder: Path, inner: str, subject: str = "", **contact: Any) -> Rendered:
    (folder / "t.mjml").write_text(BODY.format(inner))
    context = {**CONTEXT, "contact": {**CONTEXT["contact"], **contact}}
    return TemplateLibrary.load(folder).template("t", subject=subject).render(context)


def error(folder: Path, inner: str, **more: str) -> str:
    (folder / "t.mjml").write_text(BODY.format(inner))
    with pytest.raises(TemplateError) as caught:
        TemplateLibrary.load(folder).template("t", **more)
    return str(caught.value)


class _Balance(HTMLParser):
    """Fails on a tag that is closed twice or never."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def check_html(html: str) -> None:
    balance = _Balance()
    balance.feed(html)
    balance.close()
    assert not balance.open
    assert "mhtag" not in html
    assert "{{" not in html
    assert "{%" not in html


def test_loops_and_conditions_between_elements(folder: Path) -> None:
    done = render(
        folder,
        """<mj-text>Top</mj-text></mj-column></mj-section>
        {% for product in recommendations %}
        <mj-section>{% if product.price > 3 %}<mj-column>
          <mj-image src="{{ product.image_url | default('https://shop.example/none.png') }}" alt="{{ product.name }}" />
          {% if not loop.first %}<mj-text>Another</mj-text>{% endif %}
          <mj-button href="{{ product.url }}">{{ product.price | money('EUR') }}</mj-button>
        </mj-column>{% endif %}</mj-section>
        {% else %}<mj-section><mj-column><mj-text>Nothing</mj-text></mj-column></mj-section>{% endfor %}
        <mj-section><mj-column><mj-text>End</mj-text>""",
    )
    check_html(done.html)
    assert done.html.count("€3.46</a>") == 2
    assert done.html.count('href="https://shop.example/1?a=1&amp;b=2"') == 1
    assert done.html.count('alt="Lamp 2 &amp; shade"') == 1
    assert done.html.count("Another") == 1
    assert "Nothing" not in done.html
    assert done.text == (
        "Top\n\nLamp 1 & shade\n\n€3.46 (https://shop.example/1?a=1&b=2)\n\nLamp 2 & shade\n\nAnother\n\n"
        "€3.46 (https://shop.example/2?a=1&b=2)\n\nEnd\n"
    )


def test_loops_over_table_rows_keep_the_table(folder: Path) -> None:
    done = render(
        folder,
        "<mj-table>{% for p in recommendations %}<tr><td>{{ p.name }}</td><td>{{ p.price | money }}</td></tr>"
        "{% endfor %}</mj-table>",
    )
    check_html(done.html)
    assert re.search(r"<tbody>(<tr><td>Lamp . &amp; shade</td><td>£3.46</td></tr>){2}</tbody>", done.html)
    assert done.text == "Lamp 1 & shade £3.46\nLamp 2 & shade £3.46\n"


def test_values_are_escaped_in_html_and_not_in_text(folder: Path) -> None:
    name = '<script>alert("x")</script>'
    done = render(
        folder, '<mj-text><a href="https://x.example/{{ contact.first_name }}">{{ contact.first_name }}</a></mj-text>',
        subject="Hi {{ contact.first_name }}", first_name=name,
    )  # fmt: skip
    check_html(done.html)
    assert "<script" not in done.html
    assert done.html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") == 2
    assert name in done.text
    assert done.subject == "Hi " + name


def test_subject_and_preheader_are_one_line(folder: Path) -> None:
    (folder / "t.mjml").write_text(BODY.format("<mj-text>x</mj-text>"))
    template = TemplateLibrary.load(folder).template(
        "t", subject="Hi {{ contact.first_name }}", preheader="For {{ contact.first_name }}"
    )
    done = template.render({**CONTEXT, "contact": {"first_name": "A\r\nBcc: eve@example.com"}})
    assert done.subject == "Hi A Bcc: eve@example.com"
    assert ">For A Bcc: eve@example.com</div>" in done.html


def test_preheader_of_the_campaign_wins(folder: Path) -> None:
    text = BODY.format("<mj-text>{{ contact.frist }}</mj-text>").replace(
        "<mjml>\n", "<mjml>\n<mj-head><mj-preview>own\nwords</mj-preview></mj-head>\n"
    )
    (folder / "t.mjml").write_text(text.replace(".frist", ".first_name"))
    library = TemplateLibrary.load(folder)
    assert "own\nwords" in library.template("t").render(CONTEXT).html
    assert "own" not in library.template("t", preheader="theirs").render(CONTEXT).html
    (folder / "t.mjml").write_text(text)
    with pytest.raises(TemplateError, match=r"t\.mjml:6: unknown"):
        library.template("t", preheader="theirs")


@pytest.mark.parametrize(
    ("inner", "place", "said", "fix"),
    [
        ("<mj-text>{{ contact.frist_name }}</mj-text>", 4, "{{ contact.frist_name }}", "contact.first_name"),
        ("\n<mj-text>\n{{ contcat.first_name }}</mj-text>", 6, "{{ contcat }}", "contact"),
        ("{% for p in recommendations %}<mj-text>{{ p.nam }}</mj-text>{% endfor %}", 4, "p.nam", "p.name"),
        ("<mj-text>{{ recommendations.name }}</mj-text>", 4, "recommendations is a list", "Loop over it"),
        ("<mj-text>{% if contact.ctiy %}x{% endif %}</mj-text>", 4, "contact.ctiy", "contact.city"),
        ("<mj-text>{{ contact['ctiy'] }}</mj-text>", 4, "contact.ctiy", "contact.city"),
        ("<mj-text>{{ contact.city | monney }}</mj-text>", 4, "monney", "money"),
        ("<mj-text>{{ contact.city </mj-text>", 4, "unexpected", "merge tag"),
        ("<mj-text>{% if contact.city %}</mj-text>", 4, "endif", "merge tag"),
        (
            "<mj-text>{% if contact.city %}a</mj-text><mj-text>{% endif %}</mj-text>",
            4,
            "does not end",
            "same element",
        ),
        ("{{ contact.city }}", 4, "holds no text", "mj-text"),
        ("<mj-tekst>x</mj-tekst>", 4, "mj-tekst", "mj-text"),
        ("<mj-text>x</mj-column>", 4, "never closed", "</mj-text>"),
        ("</mj-section>", 4, "closes nothing", "order"),
        ("\n<mj-text><p>x</mj-text>", 5, "not well formed", "Close"),
        ('<mj-text foo="{{ contact.city }}">x</mj-text>', 4, "MJML drops it", "attribute"),
        ('<mj-include path="../../secrets.mjml" />', 4, "leaves", "folder"),
        ('<mj-include path="/etc/passwd" />', 4, "leaves", "folder"),
        (
            '<mj-include path="http://example.com/x.mjml" />',
            4,
            "http://example.com/x.mjml",
            "Nothing is fetched",
        ),
        ('<mj-include path="./_foter.mjml" />', 4, "_foter", "_footer.mjml"),
        ('<mj-include path="t.mjml" />', 4, "includes itself", "include"),
        ('<mj-text>{% include "x" %}</mj-text>', 4, "include", "mj-include"),
        ("<mj-text>{% raw %}x{% endraw %}</mj-text>", 4, "raw", "braces"),
        ("<mj-text>{{ cycler(1) }}</mj-text>", 4, "cycler", "default"),
    ],
)
def test_mistakes_name_place_and_remedy(folder: Path, inner: str, place: int, said: str, fix: str) -> None:
    (folder / "_footer.mjml").write_text("<mj-text>x</mj-text>")
    text = error(folder, inner)
    assert f"content/templates/t.mjml:{place}: " in text
    message, _, hint = text.partition("\n  Fix: ")
    assert said in message
    assert fix in hint


def test_mistakes_in_includes_and_subjects_are_placed(folder: Path) -> None:
    (folder / "_footer.mjml").write_text("<mj-text>\n{{ company_nam }}</mj-text>")
    assert "content/templates/_footer.mjml:2: unknown merge tag {{ company_nam }}" in error(
        folder, '<mj-text>x</mj-text>\n  <mj-include path="./_footer.mjml" />'
    )
    assert "offer.yaml:9: unknown merge tag {{ contact.nick }}" in error(
        folder, "<mj-text>x</mj-text>", subject="{{ contact.nick }}", place="offer.yaml:9"
    )
    (folder / "t.txt").write_text("x\n{{ contact.nick }}")
    assert "t.txt:2: unknown" in error(folder, "<mj-text>x</mj-text>")
    with pytest.raises(TemplateError, match=r"no template 'offr'(.|\n)*Did you mean offer"):
        (folder / "offer.mjml").write_text(BODY.format(""))
        TemplateLibrary.load(folder).template("offr")


def test_check_tells_all_problems(folder: Path) -> None:
    (folder / "a.mjml").write_text(BODY.format("<mj-text>{{ x }} {{ y }}</mj-text>"))
    (folder / "b.mjml").write_text(BODY.format("<mj-texte></mj-texte>"))
    (folder / "c.mjml").write_text(BODY.format("<mj-text>fine</mj-text>"))
    problems = TemplateLibrary.load(folder).check()
    assert [problem.place.rpartition("/")[2] for problem in problems] == ["a.mjml:4", "a.mjml:4", "b.mjml:4"]


def test_defaults_stand_in_for_what_is_missing_or_empty(folder: Path) -> None:
    inner = (
        "<mj-text>{{ contact.city | default('your town') }} {{ contact.nick | default('friend') }}</mj-text>"
    )
    for city in (None, ""):
        assert render(folder, inner, city=city).text == "your town friend\n"
    assert render(folder, inner, city="York").text == "York friend\n"
    assert (
        render(folder, "<mj-text>{{ contact.orders_count | default(9) }}</mj-text>", orders_count=0).text
        == "0\n"
    )


def test_empty_values_fail_that_contact_and_name_the_tag(folder: Path) -> None:
    for tag in (
        "{{ contact.city }}",
        "{{ contact.city | upper }}",
        "{{ contact.city | date }}",
        "{{ contact.city ~ 'x' }}",
    ):
        with pytest.raises(RenderError, match="'city' is empty for this contact"):
            render(folder, f"<mj-text>{tag}</mj-text>")
    assert (
        render(
            folder, "<mj-text>{% if contact.city or contact.city > 3 %}a{% else %}b{% endif %}</mj-text>"
        ).text
        == "b\n"
    )
    with pytest.raises(RenderError, match="money"):
        render(folder, "<mj-text>{{ contact.first_name | money }}</mj-text>")


def test_sandbox(folder: Path) -> None:
    for tag in ("{{ ''.__class__.__mro__ }}", "{{ now.__init__.__globals__ }}", "{{ (1).__class__ }}"):
        with pytest.raises((RenderError, TemplateError)):
            render(folder, f"<mj-text>{tag}</mj-text>")


def test_filters(folder: Path) -> None:
    done = render(
        folder,
        "<mj-text>{{ contact.revenue | money }}, {{ contact.revenue | number(1) }}, "
        "{{ contact.last_order_at | date }}, "
        "{{ contact.last_order_at | date('%H:%M', 'Asia/Tokyo') }}, {{ contact.orders_count }} "
        "order{{ contact.orders_count | pluralize }}, {{ 1 | pluralize('box', 'boxes') }}</mj-text>",
    )
    assert done.text == "£1,234.50, 1,234.5, 27 June 2026, 08:30, 2 orders, box\n"


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["GBP", "EUR", "JPY", "XYZ"]))
def test_money_reads_back(amount: Decimal, currency: str) -> None:
    text = money(amount, currency)
    digits = 0 if currency == "JPY" else 2
    value = Decimal(re.sub(r"[^0-9.]", "", text)) * (-1 if text.startswith("-") else 1)
    assert abs(value - amount) <= Decimal(5).scaleb(-digits - 1)
    assert len(text.partition(".")[2]) == digits
    assert number(amount, 2).replace(",", "") == str(amount + 0) or amount == 0


def test_plural_of_every_count() -> None:
    assert [pluralize(n) for n in (0, 1, 2, "1", Decimal(1), 1.5)] == ["s", "", "s", "", "", "s"]
    assert [pluralize([1] * n, "person", "people") for n in range(3)] == ["people", "person", "people"]
    assert str(date(2026, 1, 1)) == "2026-01-01"


def test_styles_are_inlined_and_nothing_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    text = BODY.format('<mj-text css-class="a"><a href="https://x.example">x</a></mj-text>').replace(
        "<mjml>\n",
        '<mjml><mj-head><mj-font name="F" href="http://127.0.0.1:9/f.css" /><mj-style>.a a { color: #123456 } '
        "@media (max-width: 1px) { .a { color: red } } .a a:hover { color: blue }</mj-style>"
        '<mj-raw><link rel="stylesheet" href="http://127.0.0.1:9/x.css" /></mj-raw></mj-head>\n',
    )
    (folder / "t.mjml").write_text(text)
    html = TemplateLibrary.load(folder).template("t").render(CONTEXT).html
    assert '<a href="https://x.example" style="color: #123456;">' in html
    assert "@media (max-width: 1px)" in html
    assert ":hover" in html
    assert 'href="http://127.0.0.1:9/x.css"' in html


def test_version_changes_with_what_could_change_the_output(folder: Path) -> None:
    (folder / "_f.mjml").write_text("<mj-text>x</mj-text>")
    (folder / "t.mjml").write_text(BODY.format('<mj-include path="_f" />'))
    library = TemplateLibrary.load(folder)
    first = library.template("t", subject="a")
    assert library.template("t", subject="a") is first
    versions = {
        first.version,
        library.template("t", subject="b").version,
        library.template("t", preheader="a").version,
    }
    (folder / "_f.mjml").write_text("<mj-text>y</mj-text>")
    versions.add(library.template("t", subject="a").version)
    (folder / "t.txt").write_text("by hand {{ unsubscribe_url }}")
    by_hand = library.template("t", subject="a")
    assert by_hand.render(CONTEXT).text == "by hand https://mail.example.com/unsubscribe/t\n"
    assert len(versions | {by_hand.version}) == 5


def test_marketing_needs_a_way_out_and_an_address(folder: Path) -> None:
    (folder / "t.mjml").write_text(BODY.format("<mj-text>{{ postal_address }}</mj-text>"))
    library = TemplateLibrary.load(folder)
    with pytest.raises(TemplateError, match="unsubscribe_url"):
        library.template("t").require_marketing()
    (folder / "t.mjml").write_text(
        BODY.format("<mj-text>{{ postal_address }} {{ unsubscribe_url }}</mj-text>")
    )
    library.template("t").require_marketing()
    (folder / "t.txt").write_text("{{ unsubscribe_url }}")
    with pytest.raises(TemplateError, match="postal_address"):
        library.template("t").require_marketing()


@pytest.mark.parametrize(
    ("inner", "is_enough"),
    [
        ("{{ unsubscribe_url }}", True),
        ('<a href="{{ unsubscribe_url }}">x</a>', True),
        ("{% with a = 1 %}{{ unsubscribe_url | default('x') }}{% endwith %}", True),
        ("{% if contact.city %}{{ unsubscribe_url }}{% endif %}", False),
        ("{% for p in recommendations %}{{ unsubscribe_url }}{% endfor %}", False),
        ("{{ unsubscribe_url if contact.city else '' }}", False),
        ("{% set x = unsubscribe_url %}", False),
        ("{% macro x() %}{{ unsubscribe_url }}{% endmacro %}", False),
    ],
)
def test_the_way_out_is_there_for_everybody(folder: Path, inner: str, is_enough: bool) -> None:
    (folder / "t.mjml").write_text(BODY.format(f"<mj-text>{{{{ postal_address }}}} {inner}</mj-text>"))
    template = TemplateLibrary.load(folder).template("t")
    if is_enough:
        template.require_marketing()
    else:
        with pytest.raises(TemplateError, match="only within a condition"):
            template.require_marketing()


@pytest.mark.parametrize("subject", ["Re: your order", "FW: x", "AW : x", "re[2]: x", "TR:x"])
def test_subjects_do_not_pretend(folder: Path, subject: str) -> None:
    (folder / "t.mjml").write_text(
        BODY.format("<mj-text>{{ postal_address }} {{ unsubscribe_url }}</mj-text>")
    )
    library = TemplateLibrary.load(folder)
    with pytest.raises(TemplateError, match="pretends"):
        library.template("t", subject=subject).require_marketing()
    library.template("t", subject="Regarding: " + subject).require_marketing()


@pytest.mark.skipif(not WILD.is_dir(), reason="shared/data/mjml_templates is not on this machine")
def test_templates_from_the_wild(tmp_path: Path) -> None:
    library = TemplateLibrary.load(WILD)
    assert len(library.names()) == 25
    for name in library.names():
        try:
            template = library.template(name)
        except TemplateError:
            # two have merge tags of another system; given defaults they are ours
            text = (WILD / f"{name}.mjml").read_text()
            text = re.sub(r"\{\{\s*(\w+)\s*\}\}", r"{{ \1 | default('x') }}", text)
            (tmp_path / f"{name}.mjml").write_text(text)
            template = TemplateLibrary.load(tmp_path).template(name)
        done = template.render(CONTEXT)
        envelope = Envelope(
            sender=Address("s@example.com"), links=Links(b"k" * 32, "https://m.example"), constants=CONTEXT
        )
        contacts = [CONTEXT["contact"]]
        (raw,) = render_batch(
            Composer(template.source, envelope), contacts, [str(UUID(int=1))], CONTEXT["now"]
        )
        assert isinstance(raw, bytes), (name, raw)
        assert max(map(len, raw.partition(b"\r\n\r\n")[2].split(b"\r\n"))) <= 76
        html = email.message_from_bytes(raw).get_payload()[1].get_payload(decode=True).decode()
        assert html.replace("\r\n", "\n") == done.html.removesuffix("\n") + "\n"
        assert "mhtag" not in done.html
        assert done.html.count("<body") == 1
        assert len(done.text) > 100


@pytest.mark.skipif(not CONTENT.is_dir(), reason="no content")
def test_our_own_templates(tmp_path: Path) -> None:
    library = TemplateLibrary.load(CONTENT)
    assert [str(problem) for problem in library.check()] == []
    for name in library.names():
        template = library.template(name)
        # what confirms a subscription goes out before anybody has subscribed
        if "confirm_url" not in template.names:
            template.require_marketing(name)
        contact = {name: CONTEXT["now"] if name.endswith("_at") else 3 for name in PROFILE_COLUMNS}
        for recommendations in ([], CONTEXT["recommendations"]):
            check_html(
                template.render({**CONTEXT, "contact": contact, "recommendations": recommendations}).html
            )


@pytest.mark.parametrize(
    ("tags", "used", "others"),
    [
        ("{% for p in recommendations %}{{ p.name }} {{ p.price | money }}{% endfor %}", {"name", "price"}, set()),
        ("{% for p in recommendations(n=2) if p.price %}{{ p['name'] }}{% endfor %}", {"name", "price"},
         {"name", "price"}),
        ("{% for p in recommendations[:2] %}{{ p.url ~ 'x' }}{% endfor %}", {"url"}, {"url"}),
        ("{% if recommendations %}{{ recommendations | length }}{% endif %}", set(), set()),
        ("{% for p in recommendations %}{% set x %}{{ p.name }}{% endset %}{{ x }}{% endfor %}", {"name"}, {"name"}),
        ("{% for p in recommendations %}{{ p }}{% endfor %}", None, None),
        ("{% for p in recommendations %}{% set q = p %}{{ q.name }}{% endfor %}", None, None),
        ("{{ recommendations[0].name }}", None, None),
        ("{% for p in recommendations | sort(attribute='price') %}{{ p.name }}{% endfor %}", None, None),
    ],
)  # fmt: skip
def test_fields_of_products_that_a_template_uses(
    tags: str, used: set[str] | None, others: set[str] | None
) -> None:
    assert product_fields(HTML.parse(tags)) == (used, others)


CART = """<mj-text>{{ event.cart.value | default(0) | money }} {{ event.coupon.code | default('no coupon') }}
{% for item in event.items %}{{ item.name }}: {{ item.price | money }}; {% else %}nothing{% endfor %}
{% if event.cart.value > 50 %}free delivery{% endif %} {{ event.type }} {{ event.occurred_at | date }}</mj-text>"""


def text_of(properties: str) -> str:
    given = {"type": "cart.updated", "occurred_at": "2026-06-27T09:00:00+00:00", "properties": properties}
    return event_text(given)


def event_of(properties: str) -> dict[str, Any]:
    return event_context(text_of(properties))


def test_a_trigger_s_template_names_the_event(folder: Path) -> None:
    (folder / "t.mjml").write_text(BODY.format(CART))
    template = TemplateLibrary.load(folder).template("t", subject="{{ event.cart.value }}!", has_event=True)
    properties = (
        '{"cart":{"value":72.50},"items":[{"name":"<b>Lamp</b>","price":12.5},{"name":"Bed","price":60}],'
        '"type":"theirs","note":""}'
    )
    made = template.render({**CONTEXT, "event": event_of(properties)})
    assert made.subject == "72.50!"
    assert "£72.50 no coupon" in made.html and "free delivery cart.updated 27 June 2026" in made.html
    assert "&lt;b&gt;Lamp&lt;/b&gt;: £12.50; Bed: £60.00;" in made.html and "<b>Lamp" not in made.html
    # the same in whole messages, where the event travels with the contact's row
    envelope = Envelope(
        sender=Address("shop@example.com"), constants={}, links=Links(b"k" * 32, "https://mail.example.com")
    )
    contact = {"email": "ann@example.com", EVENT_COLUMN: text_of(properties)}
    [raw] = render_batch(
        Composer(template, envelope), [contact], [str(UUID(int=1))], datetime(2026, 6, 28, tzinfo=UTC)
    )
    assert isinstance(raw, bytes), raw
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed["Subject"] == "72.50!"
    assert "&lt;b&gt;Lamp&lt;/b&gt;: £12.50" in parsed.get_body(("html",)).get_content()


def test_what_an_event_lacks_needs_a_default(folder: Path) -> None:
    (folder / "t.mjml").write_text(BODY.format(CART))
    library = TemplateLibrary.load(folder)
    made = library.template("t", has_event=True).render({**CONTEXT, "event": event_of("{}")})
    assert "£0.00 no coupon" in made.html and "nothing" in made.html and "free" not in made.html
    (folder / "t.mjml").write_text(BODY.format("<mj-text>{{ event.cart.value }}</mj-text>"))
    with pytest.raises(RenderError, match="'cart' does not exist and has no default"):
        library.template("t", has_event=True).render({**CONTEXT, "event": event_of("{}")})


def test_a_campaign_has_no_event(folder: Path) -> None:
    said = error(
        folder,
        "<mj-text>{{ event.cart_value | default(0) }}</mj-text>",
        place="content/campaigns/offer.yaml:9",
    )
    assert "content/templates/t.mjml:4: {{ event }} is the event that fires a trigger" in said
    assert "content/campaigns/offer.yaml:9" in said
    library = TemplateLibrary.load(folder)
    assert library.template("t", has_event=True).source.event_place == "content/templates/t.mjml:4"
    # known by then, and still refused
    assert [one.tag for one in library.check("t", place="content/campaigns/offer.yaml:9")] == ["event"]
    (folder / "u.mjml").write_text(
        BODY.format("{% for event in recommendations %}<mj-text>{{ event.name }}</mj-text>{% endfor %}")
    )
    assert library.template("u").source.event_place == ""
