"""Calls by which CRMs report changes, read as events: contact.created, contact.updated, deal.closed, task.completed.

They are what triggers fire on. The records themselves come by the CRM's sync, which reads what these calls do not say.
What a CRM reports and has no word of ours is `unknown`; the whole report is kept in `esp_event`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from pydantic import SecretStr

from gateway.settings import GatewaySettings
from senders.providers.base import WebhookReader
from senders.providers.webhooks import (
    WebhookError,
    from_epoch,
    from_iso,
    hmac_base64,
    is_equal,
    is_recent,
    lowered,
    objects,
    parse_json,
    required_key,
    text,
)
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

# what HubSpot decodes in the address before it signs it
_DECODED = {
    "%3A": ":", "%2F": "/", "%3F": "?", "%40": "@", "%21": "!", "%24": "$", "%27": "'", "%28": "(", "%29": ")",
    "%2A": "*", "%2C": ",", "%3B": ";",
}  # fmt: skip
_DECODE = re.compile("|".join(_DECODED), re.IGNORECASE)
_HUBSPOT_OBJECTS = {"0-1": "contact", "0-2": "company", "0-3": "deal", "0-27": "task"}
_HUBSPOT_VERBS = {
    "creation": "created",
    "propertyChange": "updated",
    "deletion": "deleted",
    "privacyDeletion": "erased",
    "restore": "restored",
    "merge": "merged",
    "associationChange": "associated",
}
_PIPEDRIVE_OBJECTS = {"person": "contact", "deal": "deal", "activity": "task", "organization": "company"}
_PIPEDRIVE_VERBS = {"create": "created", "change": "updated", "delete": "deleted"}
_LONGEST_VALUE = 2_000


class HubSpotEvents(WebhookReader):
    """Reads HubSpot's calls: up to 100 events each, in no order, some of them twice.

    Args:
        secret: client secret of the app.
        closed_stages: deal stages that mean closed.
    """

    name = "hubspot"
    signed_headers: ClassVar[tuple[str, ...]] = ("x-hubspot-request-timestamp",)

    def __init__(self, secret: SecretStr | None, closed_stages: frozenset[str]) -> None:
        self._secret, self._closed = secret, closed_stages

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> HubSpotEvents:
        """The reader of the settings.

        Raises:
            SettingsError: the secret is not set.
        """
        assert isinstance(settings, GatewaySettings)
        required_key(settings.hubspot_webhook_secret, "HubSpot", "hubspot_webhook_secret")
        stages = settings.hubspot_closed_stages.replace(",", " ").split()
        return cls(settings.hubspot_webhook_secret, frozenset(stages))

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """Signature v3, which covers address and time; v2 and v1, which private apps are given, cover neither."""
        key = required_key(self._secret, "HubSpot", "hubspot_webhook_secret")
        values = lowered(headers)
        if given := values.get("x-hubspot-signature-v3"):
            stamp = values.get("x-hubspot-request-timestamp", "")
            seconds = stamp[:-3] if stamp.isascii() and stamp.isdigit() else ""
            uri = _DECODE.sub(lambda found: _DECODED[found[0].upper()], url)
            content = b"POST" + uri.encode() + body + stamp.encode()
            return is_recent(seconds, now) and is_equal(hmac_base64(key, content, "sha256"), given)
        given = values.get("x-hubspot-signature", "")
        start = b"POST" + url.encode() if values.get("x-hubspot-signature-version") == "v2" else b""
        return is_equal(hashlib.sha256(key + start + body).hexdigest(), given)

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Rows of `raw.events`."""
        del headers, url
        return [self._row(event, now) for event in objects(parse_json(body, "HubSpot"), "HubSpot")]

    def _row(self, event: dict[str, Any], now: datetime | None) -> dict[str, Any]:
        kind, _, what = text(event.get("subscriptionType")).partition(".")
        if kind == "object":
            kind = _HUBSPOT_OBJECTS.get(text(event.get("objectTypeId")), "")
        name, value = text(event.get("propertyName")), text(event.get("propertyValue"))[:_LONGEST_VALUE]
        type_ = "unknown"
        if kind in _HUBSPOT_OBJECTS.values() and what in _HUBSPOT_VERBS:
            type_ = f"{kind}.{_HUBSPOT_VERBS[what]}"
        if type_ == "deal.updated" and (
            (name == "dealstage" and value in self._closed) or (name == "hs_is_closed" and value == "true")
        ):
            type_ = "deal.closed"
        if type_ == "task.updated" and name == "hs_task_status" and value == "COMPLETED":
            type_ = "task.completed"
        # not the number of the attempt, nor eventId alone, which is not unique
        same = (
            "portalId",
            "eventId",
            "subscriptionType",
            "objectId",
            "propertyName",
            "propertyValue",
            "occurredAt",
        )
        stamp = event.get("occurredAt")
        # a merge may leave a record that is new
        left = text(event.get("newObjectId")) or text(event.get("primaryObjectId"))
        merged = [text(event.get("primaryObjectId")), *map(text, _list(event.get("mergedObjectIds")))]
        return _row(
            self.name,
            type_,
            event,
            identity=json.dumps([event.get(field) for field in same], default=str),
            external_id=text(event.get("objectId")) if kind == "contact" else "",
            occurred_at=from_epoch(stamp / 1000 if isinstance(stamp, int | float) else None, now),
            properties={
                f"{kind}_id" if kind else "object_id": text(event.get("objectId")),
                "property": name,
                "value": value,
                "change_source": text(event.get("changeSource")),
                "merged_into": left,
                "merged": ";".join(number for number in merged if number and number != left),
            },
        )


class PipedriveEvents(WebhookReader):
    """Reads Pipedrive's calls (version 2), one event each. Pipedrive signs nothing: it knows a user and a password.

    Args:
        user, password: what the webhook was given when it was made.
    """

    name = "pipedrive"

    def __init__(self, user: str, password: SecretStr | None) -> None:
        self._user, self._password = user, password

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> PipedriveEvents:
        """The reader of the settings.

        Raises:
            SettingsError: the password is not set, or the user has a colon.
        """
        assert isinstance(settings, GatewaySettings)
        required_key(settings.pipedrive_webhook_password, "Pipedrive", "pipedrive_webhook_password")
        if ":" in settings.pipedrive_webhook_user:
            raise SettingsError("MAILHOUSE_PIPEDRIVE_WEBHOOK_USER has a colon.", fix="Basic auth forbids it.")
        return cls(settings.pipedrive_webhook_user, settings.pipedrive_webhook_password)

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """Whether user and password are right."""
        del body, url, now
        key = required_key(self._password, "Pipedrive", "pipedrive_webhook_password")
        scheme, _, given = lowered(headers).get("authorization", "").partition(" ")
        try:
            pair = base64.b64decode(given.strip(), validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and is_equal(self._user.encode() + b":" + key, pair)

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """One row of `raw.events`."""
        del headers, url
        event = parse_json(body, "Pipedrive")
        if not isinstance(event, dict) or not isinstance(event.get("meta"), dict):
            raise WebhookError("This call of Pipedrive is no event.")
        meta = event["meta"]
        data, before = _dict(event.get("data")), _dict(event.get("previous"))
        kind = _PIPEDRIVE_OBJECTS.get(text(meta.get("entity")), "")
        verb = _PIPEDRIVE_VERBS.get(text(meta.get("action")), "")
        type_ = f"{kind}.{verb}" if kind and verb else "unknown"
        status = text(data.get("status"))
        if kind == "deal" and status in ("won", "lost") and before.get("status") not in (None, status):
            type_ = "deal.closed"
        if kind == "task" and data.get("done") is True and before.get("done") is False:
            type_ = "task.completed"
        number = text(meta.get("entity_id"))
        emails = data.get("emails")
        addresses = [one for one in emails if isinstance(one, dict)] if isinstance(emails, list) else []
        primary = next((one for one in addresses if one.get("primary")), addresses[0] if addresses else {})
        return [
            _row(
                self.name,
                type_,
                event,
                identity=text(meta.get("id")) or json.dumps(event, sort_keys=True, default=str),
                external_id=number if kind == "contact" else text(data.get("person_id")),
                email=text(primary.get("value")) if kind == "contact" else "",
                occurred_at=from_iso(meta.get("timestamp"), now),
                properties={
                    f"{kind}_id" if kind else "object_id": number,
                    "status": status,
                    "previous_status": text(before.get("status")),
                    "change_source": text(meta.get("change_source")),
                },
            )
        ]


#: Name -> what reads its calls.
READERS: Mapping[str, type[HubSpotEvents] | type[PipedriveEvents]] = {
    "hubspot": HubSpotEvents,
    "pipedrive": PipedriveEvents,
}


def _row(
    crm: str,
    type_: str,
    raw: Any,
    *,
    identity: str,
    occurred_at: datetime,
    properties: Mapping[str, str],
    external_id: str = "",
    email: str = "",
) -> dict[str, Any]:
    content = json.dumps(raw, ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:32]
    return {
        "event_id": f"{crm}:{digest}",
        "type": type_,
        "source": crm,
        "email": _storable(email),
        "external_id": _storable(external_id),
        "occurred_at": occurred_at,
        "properties": _storable(json.dumps({name: value for name, value in properties.items() if value})),
        "esp_event": _storable(content),
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _storable(value: str) -> str:
    # lone surrogates, which JSON can spell, are no UTF-8
    return value.encode("utf-8", "replace").decode()
