"""The campaigns and templates that come with Mailhouse: valid, and fit for every contact."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from campaigns.specs import check_references, is_due, load_campaigns
from campaigns.triggers import check_references as check_triggers
from campaigns.triggers import load_triggers
from senders.rendering import PROFILE_COLUMNS, TemplateLibrary
from warehouse.settings import PROJECT_ROOT

CONTENT = PROJECT_ROOT / "content"
SEGMENTS = [
    "champions", "loyal_customers", "at_risk", "hibernating", "new_customers", "never_opened", "engaged",
    "big_spenders",
]  # fmt: skip
SPECS = load_campaigns(CONTENT)
TRIGGERS = load_triggers(CONTENT)
SENDING = {**SPECS, **{name: spec for name, spec in TRIGGERS.items() if spec.send}}
NOTHING = dict.fromkeys(PROFILE_COLUMNS) | {
    "email": "a@example.com",
    "orders_count": 1,
    "messages_sent_count": 3,
}
EVERYTHING = NOTHING | {
    "first_name": "Zoë <b>",
    "first_order_at": datetime(2011, 5, 1, tzinfo=UTC),
    "last_order_at": datetime(2011, 6, 1, tzinfo=UTC),
    "orders_count": 1_234,
}
PRODUCTS = [
    {"product_id": "1", "name": "RED MUG & SAUCER", "price": Decimal("2.50"), "image_url": "", "url": "",
     "reason": "popular"},
    {"product_id": "2", "name": "Blue mug", "price": None, "image_url": "https://example.com/2.png",
     "url": "https://example.com/2?a=1&b=2", "reason": "bought_together"},
]  # fmt: skip


@pytest.fixture(scope="module")
def library() -> TemplateLibrary:
    return TemplateLibrary.load(CONTENT / "templates")


def test_campaigns_name_what_exists(library):
    assert {"win_back", "second_order", "thank_champions", "still_interested"} <= set(SPECS)
    check_references(SPECS, library.names(), SEGMENTS, PROFILE_COLUMNS)
    check_triggers(TRIGGERS, library.names(), SEGMENTS, PROFILE_COLUMNS, provider="smtp")
    assert {"cart_abandoned", "welcome", "losing_interest"} <= set(TRIGGERS)
    unused = set(library.names()) - {spec.send.template for spec in SENDING.values() if spec.send}
    assert not unused


def test_the_demo_finds_campaigns_due():
    demo = datetime(2011, 6, 27, 9, 30, tzinfo=UTC)
    due = {name for name, spec in SPECS.items() if is_due(spec, demo)}
    assert due == {"win_back", "second_order", "thank_champions"}


@pytest.mark.parametrize("name", SENDING)
@pytest.mark.parametrize("contact", [NOTHING, EVERYTHING], ids=["nothing", "everything"])
@pytest.mark.parametrize("products", [[], PRODUCTS], ids=["none", "two"])
def test_every_contact_gets_a_whole_message(library, name, contact, products):
    send = SENDING[name].send
    assert send is not None
    template = library.template(send.template, subject=send.subject, preheader=send.preheader or "")
    is_marketing = send.category == "marketing"
    if is_marketing:
        template.require_marketing()
    rendered = template.render(
        {
            "contact": contact,
            "recommendations": products,
            "campaign": {"name": name},
            "unsubscribe_url": "https://example.com/u/abc",
            "preferences_url": "",
            "confirm_url": "https://example.com/confirm/abc",
            "postal_address": "1 Example Street, Exampleton",
            "company_name": "Example Gifts",
            "now": datetime(2011, 6, 27, tzinfo=UTC),
        }
    )
    assert rendered.subject and rendered.preheader
    for part in (rendered.html, rendered.text):
        assert ("https://example.com/u/abc" if is_marketing else "https://example.com/confirm/abc") in part
        assert "1 Example Street, Exampleton" in part
        assert "None" not in part and "{{" not in part and "{%" not in part
    assert '<html lang="en"' in rendered.html
    assert "prefers-color-scheme: dark" in rendered.html
    assert "<b>" not in rendered.html
    images = rendered.html.count("<img")
    assert images == rendered.html.count("alt=") == (1 if products and send.recommendations else 0)
    if products and send.recommendations:
        assert "Red mug &amp; saucer" in rendered.html and "£2.50" in rendered.html
        assert rendered.html.count("<tbody") == rendered.html.count("</tbody>")


def test_texts_contrast_with_their_background():
    """WCAG 2.2, 1.4.3: at least 4.5 to 1, in both colour schemes."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text = "".join(path.read_text() for path in Path(CONTENT / "templates").glob("_*.mjml"))
    pairs = [
        ("#2b2a28", "#ffffff"), ("#2b2a28", "#f6f3ee"), ("#5c5954", "#ffffff"), ("#5c5954", "#f6f3ee"),
        ("#7a2e3a", "#ffffff"), ("#f3efe8", "#2a2826"), ("#f3efe8", "#1c1b1a"), ("#f0b7c0", "#2a2826"),
        ("#f0b7c0", "#1c1b1a"), ("#c9c3b9", "#2a2826"), ("#c9c3b9", "#1c1b1a"),
    ]  # fmt: skip
    for front, back in pairs:
        assert front in text and back in text
        brighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, (front, back)
