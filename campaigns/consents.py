"""The log of consents: what somebody agreed to and withdrew, what proves it, and adding to it by hand.

`raw.consents` is only ever added to. What counts is the newest row of a purpose and channel (`marts.consents`); the
rows before it stay, with the words that were shown (`raw.consent_texts`).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import polars as pl

from campaigns.permissions import CHANNELS, MARKETING_CHANNELS, reach_parameters
from campaigns.purposes import ConsentText
from campaigns.siphash import normalised_email
from warehouse.actor import own_name
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.loads import CONSENT_COLUMNS, load_consent_texts, load_consents
from warehouse.yaml_specs import nearest

BASES: Final[Mapping[str, str]] = {
    "consent": "they said yes: a form, a signed paper, a recorded call",
    "double_opt_in": "they said yes, and confirmed by a link in a mail",
    "soft_opt_in": "customers, told about similar products when they bought (ePrivacy 13(2))",
    "legitimate_interest": "no consent: an interest of ours that was weighed (GDPR 6(1)(f))",
    "contract": "needed for a contract with them (GDPR 6(1)(b))",
}
"""What a grant may stand on, in words."""
WITHDRAWAL: Final = "withdrawal"
"""The basis of a row that takes consent back."""
LONGEST_AGENT: Final = 500
"""Characters of a user agent that are kept."""

_UNKNOWN_TABLE, _UNKNOWN_DATABASE = 60, 81


@dataclass(frozen=True)
class Proof:
    """What shows that somebody decided something.

    Attributes:
        text: the words that were shown; None if they are not known.
        ip, user_agent: of who decided.
        page: the form or page on which it was, or the paper.
        requested_at, requested_ip: of a double opt-in's request.
        confirmed_at: when its link was used.
        recorded_by: who wrote it down: a user, an API key, the gateway.
        more: what else is known, for `properties`.
    """

    text: ConsentText | None = None
    ip: str = ""
    user_agent: str = ""
    page: str = ""
    requested_at: datetime | None = None
    requested_ip: str = ""
    confirmed_at: datetime | None = None
    recorded_by: str = ""
    more: Mapping[str, Any] | None = None

    def columns(self) -> dict[str, Any]:
        """As columns of `raw.consents`."""
        return {
            "text_version": self.text.version if self.text else "",
            "text_digest": self.text.digest if self.text else "",
            "ip": self.ip,
            "user_agent": self.user_agent[:LONGEST_AGENT].replace("\0", ""),
            "page": self.page,
            "requested_at": self.requested_at,
            "requested_ip": self.requested_ip,
            "confirmed_at": self.confirmed_at,
            "recorded_by": self.recorded_by,
            "properties": orjson.dumps(dict(self.more or {})).decode(),
        }


def consent_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as `load_consents` takes them."""
    return pl.DataFrame(
        list(rows),
        schema_overrides={
            name: dtype for name, dtype in CONSENT_COLUMNS.items() if name.endswith("_at")
        },
    )  # fmt: skip


def record_texts(warehouse: Warehouse, texts: Iterable[ConsentText], now: datetime) -> int:
    """Keep the words of texts that are not kept yet; returns how many those were.

    Raises:
        WarehouseError: it does not answer, or its raw tables have not been made.
    """
    rows = [(one.purpose, one.channel, one.version, one.digest, one.content) for one in texts]
    names = ("purpose", "channel", "text_version", "text_digest", "content")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return load_consent_texts(warehouse, frame, now)


def consents_of(
    warehouse: Warehouse, channel: str, purpose: str | None, contact_ids: Collection[int]
) -> dict[int, tuple[str, bool]]:
    """The consent of contacts to one purpose on one channel, as `marts.consents` has it this moment.

    Returns:
        From contact_id to the row that decided and whether it grants; who has decided nothing is left out.

    Raises:
        WarehouseError: it does not answer, or the marts have not been built.
    """
    rows = warehouse.frame(
        """
        select contact_id, argMax(consent_id, occurred_at) as consent_id, argMax(is_granted, occurred_at) as is_granted
        from marts.consents
        where channel = {channel:String} and purpose = {purpose:String} and contact_id in (select contact_id from asked)
        group by contact_id
        """,
        reach_parameters(channel, purpose),
        external={
            "asked": pl.DataFrame({"contact_id": sorted(contact_ids)}, schema={"contact_id": pl.Int64})
        },
    )
    return {contact: (consent_id, bool(is_granted)) for contact, consent_id, is_granted in rows.iter_rows()}


def consent_log(warehouse: Warehouse, *, contact_id: int = 0, email: str = "") -> list[dict[str, Any]]:
    """All that a person has decided, newest first: columns of `raw.consents`, `text` (the words) and `is_current`.

    A person is found by contact_id with all addresses that identity knows of, or by one address alone.

    Raises:
        InputError: neither contact nor address is given.
        WarehouseError: it does not answer; with a contact_id, also if the models have not been built.
    """
    if bool(contact_id) == bool(email.strip()):
        raise InputError("Say whose consents to show.", fix="Give either --contact ID or --email ADDRESS.")
    if contact_id:
        whose = """
            lower(trim(email)) in (
                select identifier from intermediate.int_contacts__identified
                where contact_id = {contact_id:Int64} and kind = 'email'
            ) or (source, external_id) in (
                select source, identifier from intermediate.int_contacts__identified
                where contact_id = {contact_id:Int64} and kind = 'record'
            )
        """
    else:
        whose = "lower(trim(email)) = {email:String}"
    rows = warehouse.frame(
        f"""
        select consent_id, source, email, external_id, channel, purpose, is_granted, basis, text_version, text_digest,
            texts.content as text, ip, user_agent, page, requested_at, requested_ip, confirmed_at, recorded_by,
            occurred_at, loaded_at, toJSONString(properties) as properties
        from (
            select * from raw.consents where {whose} limit 1 by consent_id
        ) as consents
        left join (
            select text_digest, any(content) as content from raw.consent_texts group by text_digest
        ) as texts on texts.text_digest = consents.text_digest and consents.text_digest != ''
        order by occurred_at desc, is_granted, loaded_at desc, consent_id desc
        settings join_use_nulls = 0
        """,  # noqa: S608 - `whose` is one of the two above
        {"contact_id": contact_id, "email": normalised_email(email)},
    ).to_dicts()
    seen: set[tuple[str, str]] = set()
    for row in rows:
        pair = row["purpose"], row["channel"]
        row["is_current"] = pair not in seen
        seen.add(pair)
        row["properties"] = orjson.loads(row["properties"] or "{}")
        if not row["text"]:
            # rows of before texts were kept carry what the page said
            said = (row["properties"].get(name) for name in ("title", "description"))
            row["text"] = "\n".join(str(one) for one in said if one)
    return rows


def record_consent(
    warehouse: Warehouse,
    *,
    email: str,
    channel: str,
    purpose: str,
    is_granted: bool,
    basis: str,
    now: datetime,
    occurred_at: datetime | None = None,
    source: str = "manual",
    proof: Proof | None = None,
    purposes: Collection[str] = (),
) -> str:
    """Add what somebody decided by phone, on paper or elsewhere; the same again is one row. Returns its consent_id.

    Args:
        basis: one of `BASES` for a grant; a withdrawal needs none.
        occurred_at: when they decided; left out, now.
        purposes: those that there are; empty lets any name pass.

    Raises:
        InputError: what is wrong, and what is allowed.
        WarehouseError: it is not stored.
    """
    address = normalised_email(email)
    moment = occurred_at or now
    _check(address, channel, purpose, purposes)
    if is_granted and basis not in BASES:
        raise InputError(
            f"A consent needs a basis, and {basis!r} is none." if basis else "A consent needs a basis.",
            fix=nearest(basis, sorted(BASES)),
        )
    if not is_granted:
        basis = basis or WITHDRAWAL
    if moment.tzinfo is None:
        raise InputError(f"{moment} has no time zone.", fix="Write it like 2026-06-01T14:30:00+02:00.")
    if moment > now:
        raise InputError("That is not over yet: nobody has decided in the future.", fix="Correct the time.")
    if proof is not None and proof.ip:
        try:
            ipaddress.ip_address(proof.ip)
        except ValueError:
            raise InputError(
                f"{proof.ip!r} is no IP address.", fix="Write it like 192.0.2.7, or leave it out."
            ) from None
    proof = proof or Proof(recorded_by=own_name())
    parts = (source, address, channel, purpose, str(is_granted), basis, moment.isoformat(), proof.page)
    consent_id = f"{source}:{hashlib.sha256(chr(31).join(parts).encode()).hexdigest()[:32]}"
    if proof.text is not None:
        record_texts(warehouse, [proof.text], now)
    result = load_consents(
        warehouse,
        consent_frame(
            [
                {
                    "consent_id": consent_id, "source": source, "email": address, "channel": channel,
                    "purpose": purpose, "is_granted": is_granted, "basis": basis, "occurred_at": moment,
                    **proof.columns(),
                }
            ]
        ),
        run_id="consent record",
    )  # fmt: skip
    if result.quarantined:
        raise WarehouseError("The warehouse could not store the consent.", fix="See raw.quarantined_rows.")
    return consent_id


def _check(address: str, channel: str, purpose: str, purposes: Collection[str]) -> None:
    if not CHANNELS["email"].is_address(address):
        raise InputError(f"{address!r} is no mail address.", fix="Write it like ann@example.com.")
    if channel not in MARKETING_CHANNELS:
        raise InputError(
            f"There is no consent for channel {channel!r}.", fix=nearest(channel, MARKETING_CHANNELS)
        )
    if purposes and purpose not in purposes:
        raise InputError(
            f"There is no purpose {purpose!r} in content/preferences.yaml.",
            fix=nearest(purpose, sorted(purposes)),
        )
