"""The event API, described as OpenAPI 3.1. What it allows is what `gateway.events` takes, rule for rule."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.events import EMAIL, IDENTIFIER, MOST_EVENTS, SOURCE, TYPE
from gateway.segment import ROUTES

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "description": "For programs: invalid, bad_key, rate_limited ..."},
                "message": {"type": "string", "description": "One sentence that names the place."},
                "field": {
                    "type": "string",
                    "description": "The field at fault: `properties.items[2].price`.",
                },
            },
        },
        "refused": {"$ref": "#/components/schemas/Refused"},
        "success": {"const": False},
    },
}
_REFUSED = {
    "type": "array",
    "description": "Events that were not taken; the others were.",
    "items": {
        "type": "object",
        "required": ["index", "field", "message"],
        "properties": {
            "index": {"type": "integer", "minimum": 0, "description": "Place in the batch, from 0."},
            "field": {"type": "string"},
            "message": {"type": "string"},
        },
    },
}
_TEXT = ["string", "null"]  # null is as good as left out
_IDENTIFIER = {"type": _TEXT, "minLength": 1, "maxLength": 200, "pattern": IDENTIFIER}
_HINTS: dict[str, Any] = {
    "email": {"type": _TEXT, "maxLength": 319, "pattern": EMAIL, "description": "The contact's address."},
    "external_id": {**_IDENTIFIER, "description": "The contact's id in `source`: a customer number."},
    "source": {
        "type": _TEXT,
        "pattern": SOURCE,
        "description": "Where ids come from, as in the sources of files; left out: the name of the API key.",
    },
    "anonymous_id": {**_IDENTIFIER, "description": "A visitor who is not known yet."},
}
_SOMEBODY = [{"required": [name]} for name in ("email", "external_id", "anonymous_id")]
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["type"],
    "anyOf": _SOMEBODY,
    "additionalProperties": False,
    "properties": {
        "type": {
            "type": "string",
            "pattern": TYPE,
            "description": "noun.verb: cart.updated, product.viewed, order.placed.",
        },
        "event_id": {
            **_IDENTIFIER,
            "description": "Yours; the same event sent twice counts once by it. Left out: made from what the event "
            "says, if it says `occurred_at`, else at random.",
        },
        "occurred_at": {
            "type": _TEXT,
            "format": "date-time",
            "maxLength": 40,
            "description": "With its zone, from 1970 to a day ahead; left out: now.",
        },
        **_HINTS,
        "properties": {
            "type": ["object", "null"],
            "description": "What else the event says. No key twice, nothing nested more than 16 deep, at most 500 "
            "keys and 32,768 bytes, whole numbers up to 64 bits.",
        },
    },
}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "description": "As Segment's libraries send it; fields that are not named here are kept in `esp_event`.",
    "properties": {
        "messageId": {
            "type": ["string", "integer", "null"],
            "description": "The event's id, with `segment:` before.",
        },
        "userId": {"type": ["string", "integer", "null"], "description": "external_id."},
        "anonymousId": {"type": ["string", "integer", "null"]},
        "timestamp": {"type": ["string", "null"]},
        "sentAt": {"type": ["string", "null"], "description": "Corrects the clock of the device."},
        "event": {"type": ["string", "null"], "description": "Name of a tracked event: 'Product Viewed'."},
        "properties": {"type": ["object", "null"]},
        "traits": {"type": ["object", "null"]},
        "context": {"type": ["object", "null"]},
        "writeKey": {"type": "string", "description": "The key, where a page cannot send headers."},
    },
}
_REFUSALS = {
    "400": "What was sent cannot be read or is not allowed; nothing was stored.",
    "401": "No good API key.",
    "408": "The body did not arrive in time.",
    "413": "Longer than it may be.",
    "415": "Packed in a way that is not read.",
    "429": "More than the key may post, or than can wait; nothing was stored. Retry-After says when to come again.",
    "503": "It could not be stored. Send it again.",
}


def document(base_url: str = "") -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        base_url: where the gateway is reached from outside.
    """
    paths: dict[str, Any] = {
        "/v1/events": {
            "post": _operation(
                "postEvents",
                "Post one event or many. Success means that they are on disk.",
                {
                    "oneOf": [
                        {"$ref": "#/components/schemas/Event"},
                        {
                            "type": "object",
                            "required": ["events"],
                            "additionalProperties": False,
                            "properties": {"events": {"$ref": "#/components/schemas/Events"}},
                        },
                        {"$ref": "#/components/schemas/Events"},
                    ]
                },
                "202",
                {
                    "type": "object",
                    "required": ["accepted", "event_ids", "refused"],
                    "properties": {
                        "accepted": {"type": "integer", "minimum": 1},
                        "event_ids": {
                            "type": "array",
                            "items": {"type": ["string", "null"]},
                            "description": "Ids in the order of the batch; null where an event was refused.",
                        },
                        "refused": {"$ref": "#/components/schemas/Refused"},
                    },
                },
            )
        },
        "/v1/subscribe": {
            "post": _operation(
                "subscribe",
                "Ask for a subscription. It holds once the link in the confirmation mail was used; the answer is the "
                "same whether or not the address is known.",
                {
                    "type": "object",
                    "required": ["email"],
                    "additionalProperties": False,
                    "properties": {
                        "email": {"type": "string", "maxLength": 254, "description": "The address."},
                        "purposes": {
                            "type": ["array", "null"],
                            "minItems": 1,
                            "items": {"type": "string"},
                            "description": "Names in content/preferences.yaml; may be left out if there is one.",
                        },
                        "page": {"type": _TEXT, "description": "Where the form is: part of the proof."},
                        "ip": {"type": _TEXT, "description": "Of the person, if a server calls for them."},
                        "user_agent": {"type": _TEXT, "description": "Of the person, likewise."},
                        "request_id": {
                            **_IDENTIFIER,
                            "description": "The same request sent twice counts once.",
                        },
                    },
                },
                "202",
                {"type": "object", "required": ["accepted"], "properties": {"accepted": {"const": 1}}},
                {"404": "Nobody can subscribe here."},
            )
        },
        "/v1/journeys/{name}/entries": {
            "parameters": [
                {
                    "name": "name",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": SOURCE},
                    "description": "The journey.",
                }
            ],
            "post": _operation(
                "moveContact",
                "Put a contact into a journey, or take it out.",
                {
                    "type": "object",
                    "required": ["request_id"],
                    "anyOf": _SOMEBODY,
                    "additionalProperties": False,
                    "properties": {
                        "request_id": {
                            **_IDENTIFIER,
                            "type": "string",
                            "description": "The same request sent twice counts once.",
                        },
                        "action": {"enum": ["enter", "leave"], "default": "enter"},
                        **_HINTS,
                    },
                },
                "202",
                {
                    "type": "object",
                    "required": ["accepted", "request_id"],
                    "properties": {"accepted": {"const": 1}, "request_id": {"type": "string"}},
                },
                {"404": "No such journey, or no such contact."},
            ),
        },
    }
    success = {
        "type": "object",
        "required": ["success"],
        "properties": {"success": {"const": True}, "refused": {"$ref": "#/components/schemas/Refused"}},
    }
    for name, kind in ROUTES.items():
        if len(name) == 1:
            continue  # shorthands of a library in browsers
        body: dict[str, Any] = {"$ref": "#/components/schemas/Message"}
        if not kind:
            body = {
                "type": "object",
                "required": ["batch"],
                "properties": {
                    "batch": {"type": "array", "minItems": 1, "maxItems": MOST_EVENTS, "items": body},
                    "sentAt": {"type": ["string", "null"]},
                    "writeKey": {"type": "string"},
                },
            }
        paths[f"/v1/{name}"] = {
            "post": _operation(
                f"segment_{name}", f"What Segment's libraries send to {name}.", body, "200", success
            )
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mailhouse events",
            "version": "1",
            "description": "What people did, for triggers, journeys and segments. See docs/gateway.md.",
        },
        "servers": [{"url": base_url.rstrip("/") or "/"}],
        "security": [{"bearer": []}, {"header": []}, {"writeKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "writeKey": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The key as user, no password.",
                },
            },
            "schemas": {
                "Event": _EVENT,
                "Events": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MOST_EVENTS,
                    "items": {"$ref": "#/components/schemas/Event"},
                },
                "Message": _MESSAGE,
                "Refused": _REFUSED,
                "Error": _ERROR,
            },
        },
    }


def document_bytes(base_url: str = "") -> bytes:
    """The document as it is served."""
    return orjson.dumps(document(base_url))


def _operation(
    name: str,
    summary: str,
    body: dict[str, Any],
    status: str,
    success: dict[str, Any],
    more: dict[str, str] | None = None,
) -> dict[str, Any]:
    responses: dict[str, Any] = {
        status: {"description": "Taken.", "content": {"application/json": {"schema": success}}}
    }
    for code, text in {**_REFUSALS, **(more or {})}.items():
        error = {"schema": {"$ref": "#/components/schemas/Error"}}
        responses[code] = {"description": text, "content": {"application/json": error}}
        if code == "429":
            responses[code]["headers"] = {
                "Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}
            }
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": responses,
    }
