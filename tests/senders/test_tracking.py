"""Tracked links: what a template's links become, and what the gateway makes of them."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import UTC, datetime
from email.message import EmailMessage
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from senders.composing import Composer, Envelope, render_batch
from senders.links import Links, Tracking, with_parameters
from senders.message import Address
from senders.pieces import Ready
from senders.plan import SendPlan
from senders.rendering import Template, TemplateLibrary
from senders.settings import SenderSettings
from senders.tracking import tracking_of

LINKS = Links(b"k" * 32, "https://mail.example.com/")
ID = "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"
NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
TEMPLATE = """<mjml><mj-head><mj-raw><link href="https://fonts.example/f.css" /></mj-raw></mj-head>
<mj-body><mj-section><mj-column>
<mj-button href="https://shop.example/sale?a=1&amp;b=2#top">Sale</mj-button>
<mj-text><a class="x" href='https://shop.example/é'>é</a> <a href="mailto:help@example.com">Help</a>
<a href="#top">Up</a> <a href="{{ unsubscribe_url }}">Out</a> <a href="{{ preferences_url }}">Less</a>
<a href="https://shop.example/{{ contact.city | default('nowhere') }}?x=&quot;">Town</a></mj-text>
{% for product in recommendations %}<mj-button href="{{ product.url }}">{{ product.name }}</mj-button>{% endfor %}
<mj-text>{{ postal_address }}
<a href="{% if contact.city %}https://a.example{% else %}https://b.example{% endif %}">c</a></mj-text>
</mj-column></mj-section></mj-body></mjml>"""
PRODUCTS = [
    {"name": "Lamp", "url": "https://shop.example/1?a=1&b=2"}, {"name": "None", "url": "no link"},
    {"name": "Own", "url": "https://shop.example/2?utm_source=shop"},
]  # fmt: skip


def template(folder: Path, tracking: Tracking) -> Template:
    (folder / "offer.mjml").write_text(TEMPLATE)
    return TemplateLibrary.load(folder).template("offer", subject="x", tracking=tracking, links=LINKS)


def message(made: Template, number: int = 0) -> tuple[str, str]:
    """Text and HTML of a message."""
    envelope = Envelope(
        sender=Address("shop@example.com"), links=LINKS, constants={"postal_address": "1 High Street"}
    )
    ids = [f"{number:08x}{ID[8:]}"]
    contact = {"email": "a@example.org", "city": "York"}
    (raw,) = render_batch(Composer(made.source, envelope), [contact], ids, NOW, recommendations=[PRODUCTS])
    assert isinstance(raw, bytes), raw
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    text, html = (part.get_content() for part in parsed.iter_parts() if isinstance(part, EmailMessage))
    return text.replace("\r\n", "\n"), html.replace("\r\n", "\n")


def hrefs(html: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'<a\b[^>]*\shref="([^"]*)"', html)]


def test_clicks_lead_through_the_gateway(tmp_path: Path) -> None:
    made = template(tmp_path, Tracking(clicks=True, opens=True, utm={"source": "mail", "campaign": "a b"}))
    text, html = message(made)
    utm = "utm_source=mail&utm_campaign=a%20b"
    found = []
    for href in hrefs(html):
        if href.startswith("https://mail.example.com/c/"):
            click = LINKS.resolve(href.removeprefix("https://mail.example.com/c/"))
            assert click is not None, href
            assert click.message_id == "00000000" + ID[8:]
            found.append((click.index, click.url))
        else:
            found.append((0, href))
    assert found == [
        (1, f"https://shop.example/sale?a=1&b=2&{utm}#top"), (2, f"https://shop.example/é?{utm}"),
        (0, "mailto:help@example.com"), (0, "#top"), (0, LINKS.unsubscribe("00000000" + ID[8:])),
        (0, LINKS.preferences("00000000" + ID[8:])), (3, f'https://shop.example/York?x="&{utm}'),
        (4, f"https://shop.example/1?a=1&b=2&{utm}"), (0, "no link"),
        (4, "https://shop.example/2?utm_source=shop&utm_campaign=a%20b"), (0, "https://a.example"),
    ]  # fmt: skip
    pixel = re.search(
        r'<img src="https://mail\.example\.com/o/([^"]*)\.gif"[^>]*></body>', html.replace(" />", ">")
    )
    assert pixel
    assert LINKS.opened(pixel[1]) == "00000000" + ID[8:]
    # the text part is for reading: the real address, with the same parameters
    assert f"Sale (https://shop.example/sale?a=1&b=2&{utm}#top)" in text
    assert f"Lamp (https://shop.example/1?a=1&b=2&{utm})" in text
    assert "mail.example.com/c/" not in text
    assert 'href="https://fonts.example/f.css"' in html


def test_what_is_off_stays_out(tmp_path: Path) -> None:
    plain = template(tmp_path, Tracking())
    clicks = template(tmp_path, Tracking(clicks=True))
    utm = template(tmp_path, Tracking(utm={"source": "mail"}))
    assert len({plain.version, clicks.version, utm.version}) == 3
    assert "/c/" not in message(plain)[1] + message(utm)[1]
    assert "/o/" not in message(plain)[1] + message(clicks)[1]
    assert "utm_" not in (message(plain)[1] + message(clicks)[1]).replace("utm_source=shop", "")
    assert "https://shop.example/1?a=1&b=2&utm_source=mail" in hrefs(message(utm)[1])
    assert message(clicks, 1)[1] != message(clicks, 2)[1]


def test_campaign_over_settings_over_nothing() -> None:
    plan = SendPlan(name="offer", occurrence="o", template="offer", subject="x")
    assert not tracking_of(plan, SenderSettings()).is_on
    settings = SenderSettings(
        track_clicks="marketing", track_opens="transactional, marketing", utm_source="mail"
    )
    assert tracking_of(plan, settings) == Tracking(
        True, True, {"source": "mail", "medium": "email", "campaign": "offer"}
    )
    assert tracking_of(SendPlan(**{**vars(plan), "category": "transactional"}), settings).clicks is False
    mine = SendPlan(**{**vars(plan), "track_clicks": False, "utm": {"source": "x"}})
    assert tracking_of(mine, settings) == Tracking(False, True, {"source": "x"})
    with pytest.raises(ValueError, match="is no category"):
        SenderSettings(track_clicks="markting")


@given(st.integers(1, 9999), st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200))
def test_only_our_own_links_resolve(index: int, rest: str) -> None:
    url = f"https://shop.example/{rest}"
    start, _ = LINKS.tracked(ID)
    path = (start + LINKS.target(index, url)).removeprefix("https://mail.example.com/c/")
    click = LINKS.resolve(path)
    assert click is not None
    assert (click.message_id, click.index, click.url) == (ID, index, url)
    for at in (5, 45, len(path) - 5):
        changed = path[:at] + ("A" if path[at] != "A" else "B") + path[at + 1 :]
        assert LINKS.resolve(changed) is None or changed == path


def test_links_that_are_too_long_for_a_detour_stay(tmp_path: Path) -> None:
    made = template(tmp_path, Tracking(clicks=True))
    url = "https://shop.example/" + "é" * 1600
    context = {
        "contact": {"city": "York"}, "recommendations": [{"name": "Lamp", "url": url}], "now": NOW,
        **dict.fromkeys(("unsubscribe_url", "preferences_url", "postal_address", "open_url"), "x"),
        "click_url": Ready("https://mail.example.com/c/t/"), "_links": LINKS, "_tracking": made.source.tracking,
    }  # fmt: skip
    assert url in hrefs(made.render(context).html)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example", "https://a.example?utm_source=x"),
        ("https://a.example/?", "https://a.example/?utm_source=x"),
        ("https://a.example/?a=1#f?g", "https://a.example/?a=1&utm_source=x#f?g"),
        ("https://a.example/?utm_source=own", "https://a.example/?utm_source=own"),
    ],
)
def test_parameters_go_before_the_fragment(url: str, expected: str) -> None:
    assert with_parameters(url, (("utm_source", "x"),)) == expected
