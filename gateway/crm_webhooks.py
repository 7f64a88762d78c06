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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar
from xml.parsers import expat

from pydantic import SecretStr

from gateway.settings import GatewaySettings
from senders.providers.base import WebhookReader
from senders.providers.webhooks import (
    WebhookError,
    from_epoch,
    from_iso,
    has_secret,
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
# what makes an event: not the attempt, nor which of several webhooks told it; the two calls of a merge may share an id
_PIPEDRIVE_EVENT = ("id", "entity", "entity_id", "action", "timestamp", "merged_to_id", "merged_from_id")
_SALESFORCE_OBJECTS = {"Contact": "contact", "Account": "company", "Opportunity": "deal", "Task": "task"}
_SALESFORCE_VERBS = {"CREATE": "created", "UPDATE": "updated", "DELETE": "deleted", "UNDELETE": "restored"}
_SALESFORCE_ID = re.compile(r"[A-Za-z0-9]{15}([A-Za-z0-9]{3})?")
_OUTBOUND = "http://soap.sforce.com/2005/09/outbound"
_SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_NOTIFICATIONS = [f"{_SOAP} Envelope", f"{_SOAP} Body", f"{_OUTBOUND} notifications"]
_NOTIFICATION = [*_NOTIFICATIONS, f"{_OUTBOUND} Notification"]
# Salesforce sends 100 at most
_MOST_NOTIFICATIONS = 1_000
_DEEPEST = 50
_ACK = (
    f'<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="{_SOAP}"><soapenv:Body>'
    f'<notificationsResponse xmlns="{_OUTBOUND}"><Ack>true</Ack></notificationsResponse></soapenv:Body>'
    "</soapenv:Envelope>"
).encode()
# by which the CRM's own connector names itself in its calls
_OWN_CLIENT = ";client=mailhouse"
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

    A merge is two calls: the record that is gone (`contact.merged`, with `merged_into`), and the one that stayed
    (`contact.updated`, with `merged_from`); they come in any order. `change_source` is `api` for what programs wrote,
    ours among them, and `user_id` says as whom.

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
        merged_into, merged_from = text(meta.get("merged_to_id")), text(meta.get("merged_from_id"))
        if verb == "deleted" and kind and merged_into:
            type_ = f"{kind}.merged"
        # of a deleted record Pipedrive tells the last state only
        shown = data or before
        return [
            _row(
                self.name,
                type_,
                event,
                identity=json.dumps([meta.get(name) for name in _PIPEDRIVE_EVENT], default=str),
                external_id=number if kind == "contact" else text(shown.get("person_id")),
                email=_primary_address(shown) if kind == "contact" else "",
                occurred_at=from_iso(meta.get("timestamp"), now),
                properties={
                    f"{kind}_id" if kind else "object_id": number,
                    "status": status,
                    "previous_status": text(before.get("status")),
                    "change_source": text(meta.get("change_source")),
                    "user_id": text(meta.get("user_id")),
                    "merged_into": merged_into,
                    "merged_from": merged_from,
                },
            )
        ]


def _primary_address(person: Mapping[str, Any]) -> str:
    emails = person.get("emails")
    addresses = [one for one in emails if isinstance(one, dict)] if isinstance(emails, list) else []
    primary = next((one for one in addresses if one.get("primary")), addresses[0] if addresses else {})
    return text(primary.get("value"))


class SalesforceEvents(WebhookReader):
    """Reads what Salesforce reports in either of two ways, at the same address.

    Outbound messages: SOAP, up to 100 notifications each, at least once, in no order, of the latest data only. Change
    events, as a relay of its event bus posts them: one as JSON, or a list.

    Neither is signed, so the secret is in the address: `/webhooks/salesforce?secret=...`. A message also names its
    organisation. Nothing that comes again has effect twice, however old: a notification has an id, a change event its
    transaction and place in it. What our own connector wrote comes back as a change event, and is left out.

    Args:
        secret: of the address.
        organization: id of the organisation whose messages are taken; '' takes any's.
        closed_stages: stages of opportunities that mean closed, for messages that do not say so themselves.
    """

    name = "salesforce"

    def __init__(self, secret: SecretStr | None, organization: str, closed_stages: frozenset[str]) -> None:
        self._secret, self._organization, self._closed = secret, organization, closed_stages

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> SalesforceEvents:
        """The reader of the settings.

        Raises:
            SettingsError: the secret is not set, or the organisation's id is none.
        """
        assert isinstance(settings, GatewaySettings)
        required_key(settings.salesforce_webhook_secret, "Salesforce", "salesforce_webhook_secret")
        organization = settings.salesforce_organization_id.strip()
        if organization and not (_SALESFORCE_ID.fullmatch(organization) and organization.startswith("00D")):
            raise SettingsError(
                "MAILHOUSE_SALESFORCE_ORGANIZATION_ID is no id of an organisation.",
                fix="Set it to the id under Setup, Company Information: 00D and twelve or fifteen characters.",
            )
        stages = (stage.strip() for stage in settings.salesforce_closed_stages.split(","))
        return cls(settings.salesforce_webhook_secret, organization, frozenset(filter(None, stages)))

    def verify_signature(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> bool:
        """Whether the address has the secret, and a message is of our organisation."""
        del headers, now
        if not has_secret(url, required_key(self._secret, "Salesforce", "salesforce_webhook_secret")):
            return False
        if not self._organization or not _is_xml(body):
            return True
        try:
            # three more characters are a checksum
            return is_equal(self._organization[:15], _Message.of(body).organization[:15])
        except WebhookError:
            # it has the secret; that it cannot be read is told when it is read
            return True

    def acknowledgement(self, body: bytes) -> tuple[bytes, bytes] | None:
        """The answer without which Salesforce sends a message again, for 24 hours."""
        return (_ACK, b"text/xml; charset=utf-8") if _is_xml(body) else None

    def parse_webhook(
        self, body: bytes, headers: Mapping[str, str], *, url: str = "", now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Rows of `raw.events`."""
        del headers, url
        if _is_xml(body):
            message = _Message.of(body)
            return [self._notified(message, one, now) for one in message.notifications]
        said = parse_json(body, "Salesforce")
        events = objects(said if isinstance(said, list) else [said], "Salesforce")
        return [row for event in events for row in self._changed(event, now)]

    def _notified(self, message: _Message, one: _Notification, now: datetime | None) -> dict[str, Any]:
        kind = _SALESFORCE_OBJECTS.get(one.type, "")
        values = one.values
        number = values.get("Id", "")
        made = values.get("CreatedDate", "")
        # a message is the same whatever the rule that sent it watches for; a new record is not yet changed
        is_new = bool(made) and values.get("LastModifiedDate", values.get("SystemModstamp")) == made
        type_ = f"{kind}.{'created' if is_new else 'updated'}" if kind else "unknown"
        if self._is_done(kind, values):
            type_ = "deal.closed" if kind == "deal" else "task.completed"
        stamp = values.get("SystemModstamp") or values.get("LastModifiedDate") or made
        raw = {
            "OrganizationId": message.organization, "ActionId": message.action, "NotificationId": one.id,
            "type": one.type, "sObject": values,
        }  # fmt: skip
        return _row(
            self.name,
            type_,
            raw,
            identity=f"{message.organization}/{one.id}" if one.id else json.dumps(raw, sort_keys=True),
            external_id=_salesforce_contact(kind, number, values),
            email=values.get("Email", "") if kind == "contact" else "",
            occurred_at=from_iso(stamp, now),
            properties={
                f"{kind}_id" if kind else "object_id": number,
                "status": values.get("StageName") or values.get("Status") or "",
                "change_source": "outbound_message",
            },
        )

    def _changed(self, event: dict[str, Any], now: datetime | None) -> Iterator[dict[str, Any]]:
        # as the event bus has it, with and without what it wraps events in
        inner = event.get("data") if isinstance(event.get("data"), dict) else event
        payload = inner.get("payload") if isinstance(inner, dict) else None
        payload = payload if isinstance(payload, dict) else event
        header = payload.get("ChangeEventHeader")
        if not isinstance(header, dict):
            raise WebhookError("This call of Salesforce is no change event.")
        origin = text(header.get("changeOrigin"))
        if origin.lower().endswith(_OWN_CLIENT):
            return
        kind = _SALESFORCE_OBJECTS.get(text(header.get("entityName")), "")
        change = text(header.get("changeType"))
        verb = _SALESFORCE_VERBS.get(change.removeprefix("GAP_"), "")
        values = {name: _plain(value) for name, value in payload.items() if name != "ChangeEventHeader"}
        types = [f"{kind}.{verb}" if kind and verb else "unknown"]
        if verb == "created" and self._is_done(kind, values):
            # entered when it was over already: both happened
            types.append("deal.closed" if kind == "deal" else "task.completed")
        is_about = bool(_changed_fields(header, payload) & {"StageName", "IsClosed", "Status"})
        if verb == "updated" and is_about and self._is_done(kind, values):
            types = ["deal.closed" if kind == "deal" else "task.completed"]
        ids = header.get("recordIds")
        # `003*` stands for all records of an object
        numbers = [number for number in ids if isinstance(number, str)] if isinstance(ids, list) else []
        key = text(header.get("transactionKey"))
        same = [key, header.get("sequenceNumber"), header.get("entityName"), change]
        stamp = header.get("commitTimestamp")
        for number in dict.fromkeys(numbers) or [""]:
            is_one = bool(_SALESFORCE_ID.fullmatch(number))
            for type_ in types if is_one else ["unknown"]:
                yield _row(
                    self.name,
                    type_,
                    event,
                    identity=json.dumps(
                        [*same, number, type_] if key else [event, number, type_], default=str
                    ),
                    external_id=_salesforce_contact(kind, number if is_one else "", values),
                    email=values.get("Email", "") if kind == "contact" and len(numbers) == 1 else "",
                    occurred_at=from_epoch(stamp / 1000 if isinstance(stamp, int | float) else None, now),
                    properties={
                        f"{kind}_id" if kind else "object_id": number,
                        "status": values.get("StageName") or values.get("Status") or "",
                        "change_source": origin,
                        # the event says that something happened, and not what
                        "gap": "true" if change.startswith("GAP_") else "",
                    },
                )

    def _is_done(self, kind: str, values: Mapping[str, str]) -> bool:
        """Whether an opportunity is closed or a task completed, as far as this says."""
        if kind not in ("deal", "task"):
            return False
        if said := values.get("IsClosed"):
            return said == "true"
        return (
            values.get("StageName") in self._closed if kind == "deal" else values.get("Status") == "Completed"
        )


def _salesforce_contact(kind: str, number: str, values: Mapping[str, str]) -> str:
    """The contact that an event is about: itself, a deal's first one, whom a task is for if that is a contact."""
    if kind == "contact":
        return number
    other = values.get("ContactId" if kind == "deal" else "WhoId", "")
    return other if other.startswith("003") and _SALESFORCE_ID.fullmatch(other) else ""


def _changed_fields(header: Mapping[str, Any], payload: Mapping[str, Any]) -> set[str]:
    fields = [name for name in header.get("changedFields") or () if isinstance(name, str)]
    if any(name.startswith("0x") for name in fields):
        # a bitmap over a schema that we do not have; what has not changed is null then
        return {name for name, value in payload.items() if value is not None}
    return set(fields)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else text(value)


@dataclass
class _Notification:
    """One record of an outbound message."""

    id: str = ""
    type: str = ""
    values: dict[str, str] = field(default_factory=dict)


@dataclass
class _Message:
    """An outbound message. The session id that it may hold opens the organisation, and is not kept."""

    organization: str = ""
    action: str = ""
    notifications: list[_Notification] = field(default_factory=list)

    @classmethod
    def of(cls, body: bytes) -> _Message:
        """The message of a call.

        Raises:
            WebhookError: it is none, or declares a document type, and with it perhaps entities.
        """
        message, path, texts = cls(), list[str](), list[list[str]]()

        def start(name: str, attributes: dict[str, str]) -> None:
            path.append(name)
            texts.append([])
            if len(path) > _DEEPEST:
                raise WebhookError("This call of Salesforce is nested too deeply.")
            if path == _NOTIFICATION:
                message.notifications.append(_Notification())
                if len(message.notifications) > _MOST_NOTIFICATIONS:
                    raise WebhookError("This call of Salesforce has too many notifications.")
            elif path == [*_NOTIFICATION, f"{_OUTBOUND} sObject"]:
                message.notifications[-1].type = attributes.get(f"{_INSTANCE} type", "").rpartition(":")[2]

        def end(name: str) -> None:
            content = "".join(texts.pop()).strip()
            if path == [*_NOTIFICATIONS, f"{_OUTBOUND} OrganizationId"]:
                message.organization = content
            elif path == [*_NOTIFICATIONS, f"{_OUTBOUND} ActionId"]:
                message.action = content
            elif path == [*_NOTIFICATION, f"{_OUTBOUND} Id"]:
                message.notifications[-1].id = content
            elif path[:-1] == [*_NOTIFICATION, f"{_OUTBOUND} sObject"] and content:
                message.notifications[-1].values[name.rpartition(" ")[2]] = content
            path.pop()

        def refuse(*_: object) -> None:
            raise WebhookError("This call of Salesforce declares a document type.")

        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler = lambda content: texts[-1].append(content)
        parser.StartDoctypeDeclHandler = refuse
        parser.buffer_text = True
        try:
            parser.Parse(body, True)
        except (expat.ExpatError, ValueError, LookupError):
            raise WebhookError("This call of Salesforce is no XML.") from None
        if not message.notifications:
            raise WebhookError("This call of Salesforce has no notifications.")
        return message


def _is_xml(body: bytes) -> bool:
    # JSON begins with a bracket, after white space at most; everything else has to be read as XML to be refused
    return body.lstrip()[:1] not in (b"{", b"[") and body.strip() != b""


#: Name -> what reads its calls.
READERS: Mapping[str, type[HubSpotEvents] | type[PipedriveEvents] | type[SalesforceEvents]] = {
    "hubspot": HubSpotEvents,
    "pipedrive": PipedriveEvents,
    "salesforce": SalesforceEvents,
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
