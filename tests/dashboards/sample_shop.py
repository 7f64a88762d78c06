"""A shop with a year of made-up customers, orders and mail, enough for every dashboard to have something to show.

Everything follows from one seed. The shares are plausible, no more: what matters is that bounces, complaints, machines,
variants, skipped messages, several mailbox providers and a bad week are all among it.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from campaigns.identity import message_ids, occurrence_key
from campaigns.journey_state import define_tables
from warehouse.client import Warehouse
from warehouse.loads import load_consents, load_crm_records, load_events

CONTACTS = 1_500
WEEKS = 26
DOMAINS = {"gmail.com": 0.42, "outlook.com": 0.2, "yahoo.com": 0.12, "icloud.com": 0.11, "example.org": 0.15}
COUNTRIES = {"United Kingdom": 0.62, "France": 0.16, "Germany": 0.14, "Spain": 0.08}
LINKS = ("/new-arrivals", "/sale", "/pots/blue", "/lamps/brass", "/journal/how-we-glaze")
SKIPS = ("suppressed", "no_consent", "frequency_cap")
FROM = {"weekly_news": "news@mail.pots.example", "win_back": "news@mail.pots.example"}


class SampleShop:
    """Loads the shop into raw tables: first `load_people`, and once they have contact ids, `load_mail`."""

    def __init__(self, warehouse: Warehouse, now: datetime, seed: int = 20261124) -> None:
        self.warehouse = warehouse
        self.now = now.replace(microsecond=0)
        self.random = np.random.default_rng(seed)
        self.start = self.now - timedelta(days=365)
        self.joined = np.sort(self.random.uniform(0, 350, CONTACTS))
        # whoever opens buys, too
        self.interest = self.random.beta(1.6, 2.6, CONTACTS)
        # a third drift away: from then on they neither open nor buy
        drifts = self.random.random(CONTACTS) < 0.35
        self.gone = np.where(drifts, self.joined + self.random.exponential(90, CONTACTS), 1_000.0)
        domains = self.random.choice(list(DOMAINS), CONTACTS, p=list(DOMAINS.values()))
        self.emails = [f"customer-{number}@{domain}" for number, domain in enumerate(domains)]
        self.countries = self.random.choice(list(COUNTRIES), CONTACTS, p=list(COUNTRIES.values()))
        self.events: list[dict[str, Any]] = []
        self.orders_count = 0

    def load_people(self) -> None:
        """CRM records, consents, orders and visits."""
        joined = [self._at(day) for day in self.joined]
        records = [
            {
                "source": "shop",
                "object": "contact",
                "external_id": str(number),
                "updated_at": joined[number],
                "properties": json.dumps({"email": email, "country": self.countries[number]}),
            }
            for number, email in enumerate(self.emails)
        ]
        load_crm_records(self.warehouse, pl.DataFrame(records))
        consents = [
            {
                "consent_id": f"consent-{number}",
                "source": "shop",
                "email": email,
                "channel": "email",
                "purpose": "marketing",
                "is_granted": bool(self.random.random() < 0.93),
                "basis": "opt_in",
                "occurred_at": joined[number],
            }
            for number, email in enumerate(self.emails)
        ]
        load_consents(self.warehouse, pl.DataFrame(consents))
        for number in range(CONTACTS):
            self._visits(number)
            day = self.joined[number] + self.random.exponential(6)
            while (
                day < min(364, self.gone[number])
                and self.random.random() < 0.55 + 0.35 * self.interest[number]
            ):
                self._order(number, self._at(day))
                day += 12 + self.random.exponential(70 * (1.2 - self.interest[number]))
        self._flush()

    def load_mail(self, contact_ids: dict[str, int]) -> None:
        """Messages of a newsletter, campaigns, a journey and a trigger, and what became of them."""
        rows: list[dict[str, Any]] = []
        for week in range(WEEKS):
            sent = 365 - 7 * (WEEKS - week) + 0.4
            known = np.flatnonzero(self.joined < sent)
            variants = ("short_subject", "long_subject") if week % 3 == 0 else ("",)
            readers = known[self.random.random(known.size) < 0.8]
            rows += self._send("campaign", "weekly_news", readers, sent, "engaged", variants, contact_ids)
            others = known[self.random.random(known.size) < 0.12]
            rows += self._send("campaign", "win_back", others, sent + 1, "at_risk", ("",), contact_ids)
            if week % 4 == 1:
                best = known[self.interest[known] > 0.6]
                rows += self._send(
                    "campaign", "thank_champions", best, sent + 2, "champions", ("",), contact_ids
                )
            fresh = known[(self.joined[known] > sent - 7)]
            rows += self._send("journey", "welcome.hello", fresh, sent + 0.5, "", ("",), contact_ids)
            carts = known[self.random.random(known.size) < 0.03]
            rows += self._send("trigger", "cart_abandoned", carts, sent + 3, "", ("",), contact_ids)
        self._load_goals()
        self._load_moves(list(contact_ids.values()))
        frame = pl.DataFrame(rows, infer_schema_length=None)
        self.warehouse.insert("raw.messages", frame.with_columns(pl.col("sequence").cast(pl.UInt32)))
        self._flush()

    def _load_goals(self) -> None:
        """What the campaigns' files say that they are for."""
        rows = [
            {"kind": "campaign", "name": name, "version": "1", "channel": "email", "category": "marketing",
             "goal_event": "order.placed", "goal_within_seconds": days * 86_400}
            for name, days in (("weekly_news", 7), ("win_back", 30), ("thank_champions", 14))
        ]  # fmt: skip
        self.warehouse.insert(
            "raw.campaigns", pl.DataFrame(rows).with_columns(pl.col("goal_within_seconds").cast(pl.UInt32))
        )

    def _load_moves(self, contact_ids: list[int]) -> None:
        """What the journey did, for the last weeks: some came in, some are done, one reached the goal."""
        define_tables(self.warehouse)
        moves: list[dict[str, Any]] = []
        for place, contact in enumerate(contact_ids[:60]):
            common = {"tick": 1, "journey": "welcome", "contact_id": contact, "entry": 1, "version": "v1"}
            at = self._at(330 + place % 30)
            moves.append({**common, "sequence": 1, "outcome": "entered", "step": "hello", "entered_at": at})
            if place % 3:
                ending = "goal" if place % 7 == 0 else "finished"
                end = {"previous_step": "hello", "outcome": "sent", "ending": ending}
                moves.append({**common, **end, "sequence": 2, "entered_at": at + timedelta(hours=4)})
        frame = pl.DataFrame(moves, infer_schema_length=None).with_columns(
            pl.col("previous_step", "step", "ending").fill_null("")
        )
        self.warehouse.insert("campaigns.journey_moves", frame)
        self.warehouse.execute("insert into campaigns.journey_ticks (journey, tick) values ('welcome', 1)")

    def _at(self, day: float) -> datetime:
        return self.start + timedelta(seconds=int(float(day) * 86_400))

    def _visits(self, number: int) -> None:
        for count in range(int(self.random.poisson(4 * self.interest[number]))):
            day = self.random.uniform(self.joined[number], 364.9)
            if day > self.gone[number]:
                continue
            kind = ("page.viewed", "product.viewed", "cart.updated")[
                int(self.random.choice(3, p=[0.5, 0.35, 0.15]))
            ]
            self.events.append(
                {
                    "event_id": f"visit-{number}-{count}",
                    "type": kind,
                    "source": "web",
                    "email": self.emails[number],
                    "occurred_at": self._at(day),
                    "properties": json.dumps({"url": f"https://pots.example{LINKS[count % len(LINKS)]}"}),
                }
            )

    def _order(self, number: int, at: datetime) -> None:
        self.orders_count += 1
        order_id = f"N{self.orders_count:06}"
        items = [
            {
                "line_number": line + 1,
                "product_id": f"P{int(self.random.integers(1, 40)):03}",
                "name": "Pot",
                "quantity": int(self.random.integers(1, 5)),
                "unit_price": f"{self.random.gamma(3, 6) + 2:.2f}",
            }
            for line in range(int(self.random.integers(1, 4)))
        ]
        properties = {
            "order_id": order_id, "currency": "GBP", "country": self.countries[number], "items": items,
        }  # fmt: skip
        self.events.append(
            {
                "event_id": f"shop:order:{order_id}",
                "type": "order.placed",
                "source": "shop",
                "email": self.emails[number],
                "occurred_at": min(at, self.now),
                "properties": json.dumps(properties),
            }
        )

    def _send(
        self,
        kind: str,
        name: str,
        people: np.ndarray,
        day: float,
        segment: str,
        variants: tuple[str, ...],
        contact_ids: dict[str, int],
    ) -> list[dict[str, Any]]:
        at = self._at(day)
        if at > self.now - timedelta(hours=1):
            return []
        occurrence = occurrence_key(at)
        ids = message_ids(kind, name, [contact_ids[self.emails[number]] for number in people], occurrence)
        rows: list[dict[str, Any]] = []
        for number, message_id in zip(people, ids, strict=True):
            variant = variants[int(self.random.integers(len(variants)))]
            is_skipped = self.random.random() < 0.05
            rows.append(
                {
                    "message_id": message_id,
                    "sequence": 1,
                    "status": "skipped" if is_skipped else "sent",
                    "reason": SKIPS[int(self.random.integers(len(SKIPS)))] if is_skipped else "",
                    "kind": kind,
                    "name": name,
                    "version": "1",
                    "occurrence": occurrence,
                    "contact_id": contact_ids[self.emails[number]],
                    "email": self.emails[number],
                    "channel": "email",
                    "provider": "smtp" if kind == "campaign" else "sendgrid",
                    "category": "marketing",
                    "template": name.replace("/", "_"),
                    "template_version": "1",
                    "segment": segment,
                    "segment_version": "1" if segment else "",
                    "experiment": "subject_length" if variant else "",
                    "variant": variant,
                    "subject": "",
                    "provider_message_id": "",
                    "provider_reply": "",
                    "changed_at": at,
                    "details": json.dumps({"from_email": FROM.get(name, "hello@pots.example")}),
                }
            )
            if not is_skipped:
                self._answer(number, message_id, at, name, day, variant)
        return rows

    def _answer(
        self, number: int, message_id: str, at: datetime, name: str, day: float, variant: str
    ) -> None:
        email, interest = self.emails[number], self.interest[number]
        is_bad_week = name == "win_back" and 300 < day < 320

        def happens(share: float) -> bool:
            return bool(self.random.random() < share)

        def event(kind: str, minutes: float, **properties: Any) -> None:
            machine = "machine" if properties.get("is_machine") else "human"
            self.events.append(
                {
                    "event_id": f"{message_id}:{kind}:{machine}",
                    "type": kind,
                    "source": "provider_events",
                    "email": email,
                    "message_id": message_id,
                    "occurred_at": min(at + timedelta(minutes=minutes), self.now),
                    "properties": json.dumps(properties),
                }
            )

        if happens(0.03 if is_bad_week else 0.006):
            event("bounced", 0.1, bounce_class="hard", reject_reason="bounced")
            return
        if happens(0.02 if email.endswith("yahoo.com") else 0.008):
            event("bounced", 40, bounce_class="soft", reject_reason="timed_out")
            return
        event("delivered", 0.1)
        if happens(0.5 if email.endswith("icloud.com") else 0.08):
            event("opened", 0.6, is_machine=True, user_agent="image proxy")
        if happens(0.12 if email.endswith("outlook.com") else 0.01):
            event(
                "clicked", 0.3, is_machine=True, url=f"https://pots.example{LINKS[0]}", user_agent="scanner"
            )
        if happens(0.004 if is_bad_week else 0.0007):
            event("complained", 300)
            return
        lift = 1.25 if variant == "short_subject" else 1.0
        if day > self.gone[number] or not happens(min(0.95, (0.15 + 0.7 * interest) * lift)):
            return
        opened = float(self.random.exponential(240))
        event("opened", opened, is_machine=False)
        if happens(0.004):
            event("unsubscribed", opened + 2)
        elif happens(0.06 + 0.3 * interest):
            link = LINKS[int(self.random.choice(len(LINKS), p=[0.35, 0.3, 0.15, 0.12, 0.08]))]
            event(
                "clicked", opened + 1, is_machine=False, url=f"https://pots.example{link}?utm_campaign={name}"
            )
            if happens(0.1 + 0.15 * interest):
                self._order(number, at + timedelta(minutes=opened + float(self.random.exponential(600))))

    def _flush(self) -> None:
        load_events(self.warehouse, pl.DataFrame(self.events, infer_schema_length=None))
        self.events.clear()
