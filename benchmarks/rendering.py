"""What a message costs from template to bytes: python benchmarks/rendering.py [--messages 10000].

The newsletter of `benchmarks.sending`, filled in for different people: through `senders.composing` (what sends use) and
through `senders.rendering` with `senders.mime` (previews, and what the first is tested against).
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.lib.newsletter import write_content
from senders.composing import Composer, Envelope, keep_heap, render_batch
from senders.dkim import DkimKey, DkimSigner
from senders.links import Links
from senders.message import Address, Message
from senders.mime import build
from senders.rendering import PROFILE_COLUMNS, Template, TemplateLibrary

_BATCH = 100
NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)


def _pem(key: RSAPrivateKey | Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def contacts(number: int) -> list[dict[str, Any]]:
    """People who differ as people do."""
    return [
        {
            "contact_id": at, "email": f"person{at}@example.com", "locale": "en-GB",
            "first_name": ("Anna", "Jürgen", "Zoë", "O'Neil & Co", None)[at % 5], "last_name": f"Surname{at % 900}",
            "country": f"Country {at % 40}", "city": f"Town {at % 500}" if at % 6 else None,
            "rfm_segment": f"segment_{at % 8}", "engagement_band": ("hot", "warm", "cold")[at % 3],
            "orders_count": at % 9, "items_count": at % 13, "days_since_last_order": at % 300,
            "revenue": Decimal(at % 100_000) / 100,
        }
        for at in range(number)
    ]  # fmt: skip


def products(number: int) -> list[list[dict[str, Any]]]:
    """Six of five hundred products a person."""
    made = [
        {
            "product_id": str(at), "name": f"Lamp {at} & shade", "price": Decimal(at * 100 + 99) / 100,
            "reason": "popular",
            "image_url": f"https://cdn.example.com/p/{at}.jpg", "url": f"https://shop.example.com/p/{at}?a=1&b=2",
        }
        for at in range(500)
    ]  # fmt: skip
    return [[made[(at * step) % 500] for step in range(1, 7)] for at in range(number)]


def measure(work: Callable[[], object], messages: int, rounds: int) -> float:
    """CPU microseconds a message, median of the rounds."""
    times: list[float] = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        times.append((time.process_time() - begun) / messages * 1e6)
    return statistics.median(times)


def reference(
    template: Template, composer: Composer, people: list[dict[str, Any]], items: list[Any], ids: list[str]
) -> list[bytes]:
    """The same messages by rendering to text and encoding the whole."""
    done: list[bytes] = []
    for contact, goods, message_id in zip(people, items, ids, strict=True):
        context = composer.context(contact, goods, message_id, NOW)
        rendered = template.render(context)
        done.append(
            build(
                Message(
                    message_id=message_id, contact_id=contact["contact_id"], sender=composer.envelope.sender,
                    recipient=Address(contact["email"], contact["last_name"]),
                    subject=rendered.subject, html=rendered.html, text=rendered.text, sent_at=NOW,
                    headers=(("List-Unsubscribe", f"<{context['unsubscribe_url']}>"),
                             ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")),
                )
            )
        )  # fmt: skip
    return done


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_heap()
    number = options.messages
    with tempfile.TemporaryDirectory() as name:
        write_content(Path(name) / "content")
        columns = (*PROFILE_COLUMNS, "engagement_band")
        template = TemplateLibrary.load(Path(name) / "content" / "templates", columns).template(
            "newsletter", subject="{{ contact.first_name | default('Hello') }}, six things for you"
        )
    envelope = Envelope(
        sender=Address("shop@example.com", "The Shop"), links=Links(b"k" * 32, "https://mail.example.com"),
        constants={"campaign": {"name": "offer"}, "company_name": "Shop Ltd", "postal_address": "1 High Street"},
    )  # fmt: skip
    composer = Composer(template.source, envelope)
    people, items = contacts(number), products(number)
    ids = [str(uuid.UUID(int=at)) for at in range(number)]
    few = max(1, number // 20)
    example = render_batch(composer, people[:1], ids[:1], NOW, recommendations=items[:1])[0]
    assert isinstance(example, bytes)
    print(f"one message: {len(example):,} bytes; {number:,} messages, median of {options.rounds} rounds")

    def in_batches() -> None:
        for at in range(0, number, _BATCH):
            part = slice(at, at + _BATCH)
            render_batch(composer, people[part], ids[part], NOW, recommendations=items[part])

    fast = measure(in_batches, number, options.rounds)
    slow = measure(
        lambda: reference(template, composer, people[:few], items[:few], ids[:few]), few, options.rounds
    )
    signed: list[tuple[str, float]] = []
    for name, key in (
        ("RSA 2048", generate_private_key(65537, 2048)),
        ("Ed25519", Ed25519PrivateKey.generate()),
    ):
        signer = DkimSigner("example.com", (DkimKey("selector", _pem(key)),))
        signed.append((name, measure(partial(signer.sign, example, is_relaxed=True), 1, 50)))
    print(f"{'senders.composing':<40} {fast:8.1f} CPU microseconds a message")
    print(f"{'senders.rendering and senders.mime':<40} {slow:8.1f}")
    for name, cost in signed:
        print(f"{f'DKIM, {name}, beside that':<40} {cost:8.1f}")


if __name__ == "__main__":
    main()
