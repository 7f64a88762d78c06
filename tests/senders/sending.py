"""What the senders' tests share: content, settings, audiences, a plan. Also run as a child process by test_kill."""

from __future__ import annotations

import mailbox
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from senders.ledger import Ledger
from senders.pipeline import SendSummary, send
from senders.plan import SendPlan
from senders.providers import get_provider
from senders.settings import SenderSettings

FOOTER = """<mj-section><mj-column><mj-text>{{ company_name }}, {{ postal_address }}.
<a href="{{ unsubscribe_url }}">Unsubscribe</a></mj-text></mj-column></mj-section>
"""
OFFER = """<mjml>
  <mj-body>
    <mj-section><mj-column>
      <mj-text>Hello {{ contact.first_name | default('there') }}</mj-text>
    </mj-column></mj-section>
    {% for product in recommendations %}
    <mj-section><mj-column>
      <mj-button href="{{ product.url }}">{{ product.name }} for {{ product.price | money }}</mj-button>
    </mj-column></mj-section>
    {% endfor %}
    <mj-include path="./_footer.mjml" />
  </mj-body>
</mjml>
"""


def write_content(folder: Path) -> Path:
    """Templates `offer` and `_footer` in a content folder; returns it."""
    templates = folder / "templates"
    templates.mkdir(parents=True, exist_ok=True)
    (templates / "_footer.mjml").write_text(FOOTER)
    (templates / "offer.mjml").write_text(OFFER)
    return folder


def sender_settings(home: Path, **more: object) -> SenderSettings:
    """Settings that may send marketing mail into `home/maildir`."""
    values: dict[str, object] = {
        "home": home, "content_dir": home / "content", "from_email": "shop@example.com",
        "from_name": "The Shop", "company_name": "Shop Ltd", "postal_address": "1 High Street, York",
    }  # fmt: skip
    return SenderSettings(**{**values, **more})  # pyright: ignore[reportArgumentType]


def plan(**more: object) -> SendPlan:
    """A plan of the campaign `offer`."""
    values: dict[str, object] = {
        "name": "offer", "occurrence": "2026-06-27T09:00:00Z", "template": "offer", "version": "abc",
        "subject": "For {{ contact.first_name | default('you') }}", "segment": "champions", "segment_version": "seg1",
    }  # fmt: skip
    return SendPlan(**{**values, **more})  # pyright: ignore[reportArgumentType]


def audience(
    people: int, *, rows: int = 1000, skip_every: int = 0, domain: str = "example.com"
) -> Iterator[pl.DataFrame]:
    """Contacts 1 to `people`; every `skip_every`th has no consent."""
    for first in range(1, people + 1, rows):
        ids = list(range(first, min(first + rows, people + 1)))
        yield pl.DataFrame(
            {
                "contact_id": ids,
                "email": [f"person{number}@{domain}" for number in ids],
                "skip_reason": ["no_consent" if skip_every and n % skip_every == 0 else "" for n in ids],
                "consent_id": [f"consent-{number}" for number in ids],
                "suppression_event_id": [""] * len(ids),
                "first_name": [None if number % 3 == 0 else f"Zoë {number}" for number in ids],
                "city": ["York"] * len(ids),
                "recommendations": [
                    [{"product_id": "1", "name": f"Lamp {n}", "price": "3.45", "image_url": "", "url": "https://shop.example/1",
                      "reason": "popular"}]
                    for n in ids
                ],
                "recommendation_version": ["model-7"] * len(ids),
            },
            schema_overrides={"first_name": pl.String},
        )  # fmt: skip


def people(number: int) -> pl.DataFrame:
    """An audience that can be reached on every channel."""
    frame = pl.concat(list(audience(number)))
    return frame.with_columns(
        phone=pl.format("+4477009{}", pl.col("contact_id").cast(pl.String).str.zfill(5)),
        push_token=pl.format("token-{}", "contact_id"),
    )


def send_all(settings: SenderSettings, people: int, **more: object) -> SendSummary:
    """Send the plan to an audience through the settings' provider."""
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        return send(
            plan(), audience(people, rows=int(str(more.pop("rows", 1000)))), settings=settings, ledger=ledger,
            provider=provider, **more,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip


def recipients(folder: Path) -> list[str]:
    """Addresses of all messages in a maildir."""
    return [
        str(message["To"]).rpartition("<")[2].rstrip(">") for message in mailbox.Maildir(folder, create=False)
    ]


if __name__ == "__main__":
    home, people, smtp_url = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    workers = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    more: dict[str, object] = {"provider": "smtp", "smtp_url": smtp_url} if smtp_url else {}
    if len(sys.argv) > 5 and sys.argv[5]:
        more["ledger_url"] = sys.argv[5]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    send_all(sender_settings(home, **more), people, rows=250, workers=workers)
