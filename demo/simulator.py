"""DEMO ONLY. Simulated recipients: reads the mail that the demo delivered and makes up what came back.

There is no human behind an `example.com` address, so somebody has to open the mail. This module decides for each
message, from its id alone and so always alike, whether it bounces, is opened, clicked, complained about or
unsubscribed from, and writes those events as JSON Lines for the ordinary ingestion. Every event carries
`"simulated": true`. The shares are assumptions of the demo and say nothing about real mail.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from pathlib import Path

SOURCE = "demo_simulator"
_LINK = re.compile(r'href="(https?://[^"]+)"')


@dataclass(frozen=True)
class Behaviour:
    """Share of delivered messages, 0 to 1, for each thing a recipient may do."""

    hard_bounced: float = 0.012
    soft_bounced: float = 0.015
    opened: float = 0.38
    machine_opened: float = 0.12
    clicked: float = 0.09
    scanner_clicked: float = 0.02
    unsubscribed: float = 0.006
    complained: float = 0.001
    #: mail whose subject has these words is opened and clicked so many times as often: what an experiment is to find
    liked_words: str = "missed you"
    liking: float = 1.8


def simulate(maildir: Path, inbox: Path, *, now: datetime, behaviour: Behaviour | None = None) -> int:
    """Write `inbox/simulated.jsonl` with the events that every message in `maildir` gave rise to.

    Args:
        maildir: folder with delivered mail in `new/`.
        inbox: folder that the `provider_events` source reads.
        now: no event is later than this.
        behaviour: the shares to use.

    Returns:
        How many events were written. The same mail gives the same events, so running it again loads nothing new.
    """
    inbox.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(event, sort_keys=True)
        for path in sorted((maildir / "new").iterdir())
        for event in _events(path, behaviour or Behaviour(), now)
    ]
    partial = inbox / "simulated.jsonl.part"
    partial.write_text("".join(line + "\n" for line in lines))
    partial.rename(inbox / "simulated.jsonl")
    return len(lines)


def _events(path: Path, behaviour: Behaviour, now: datetime) -> Iterator[dict[str, object]]:
    content = path.read_bytes()
    message = BytesHeaderParser(policy=email.policy.default).parsebytes(content)
    message_id = str(message["Message-ID"]).strip("<> ").partition("@")[0]
    recipient = str(message["Delivered-To"]).strip()
    sent_at = message["Date"].datetime
    dice = _Dice(message_id)

    def event(kind: str, after: timedelta, **properties: object) -> dict[str, object]:
        return {
            "event_id": f"{SOURCE}:{message_id}:{kind}:{'machine' if properties.get('is_machine') else 'human'}",
            "type": kind,
            "email": recipient,
            "message_id": message_id,
            "occurred_at": min(sent_at + after, now).isoformat(),
            "properties": {"simulated": True, "provider": "smtp", **properties},
        }

    if dice.roll("hard") < behaviour.hard_bounced:
        yield event("bounced", timedelta(seconds=4), bounce_class="hard", reject_reason="bounced")
        return
    if dice.roll("soft") < behaviour.soft_bounced:
        yield event("bounced", timedelta(minutes=30), bounce_class="soft", reject_reason="timed_out")
        return
    yield event("delivered", timedelta(seconds=3))
    if dice.roll("proxy") < behaviour.machine_opened:
        yield event("opened", timedelta(seconds=20), is_machine=True, user_agent="simulated image proxy")
    if dice.roll("scanner") < behaviour.scanner_clicked and (links := _links(content)):
        yield event(
            "clicked", timedelta(seconds=5), is_machine=True, url=links[0], user_agent="simulated scanner"
        )
    liking = behaviour.liking if behaviour.liked_words in str(message["Subject"]) else 1.0
    if dice.roll("open") >= behaviour.opened * liking:
        return
    opened_after = timedelta(minutes=1 + 900 * dice.roll("when") ** 2)
    yield event("opened", opened_after, is_machine=False)
    if dice.roll("click") < behaviour.clicked / behaviour.opened and (links := _links(content)):
        link = links[int(dice.roll("link") * len(links))]
        yield event("clicked", opened_after + timedelta(seconds=40), is_machine=False, url=link)
    if dice.roll("unsubscribe") < behaviour.unsubscribed / behaviour.opened:
        yield event("unsubscribed", opened_after + timedelta(seconds=90))
    elif dice.roll("complain") < behaviour.complained / behaviour.opened:
        yield event("complained", opened_after + timedelta(seconds=60))


def _links(content: bytes) -> list[str]:
    body = email.message_from_bytes(content, EmailMessage, policy=email.policy.default).get_body(("html",))
    found = _LINK.findall(body.get_content()) if body is not None else []
    return [link for link in found if "/unsubscribe" not in link and "/preferences" not in link]


class _Dice:
    """Numbers in [0, 1) that depend on the message and the question alone."""

    def __init__(self, seed: str) -> None:
        self.seed = seed

    def roll(self, question: str) -> float:
        digest = hashlib.blake2b(f"{self.seed}:{question}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big") / (1 << 56)
