"""Settings of the CRM connectors."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from warehouse.settings import MailhouseSettings

HubSpotObject = Literal["contacts", "companies", "deals", "tasks"]


class CrmSettings(MailhouseSettings):
    """What `MailhouseSettings` has, and how to reach CRMs.

    Attributes:
        crm_skipped: what is not read though the CRM has it, with commas: `hubspot_tasks,hubspot_deals`.
        crm_sync_seconds: how often CRMs are synced, in seconds; at least a minute, and whole minutes.
        hubspot_token: access token of a HubSpot service key or private app, with the scopes
            `crm.objects.*.read`, to push `.write`, too. Unset means that HubSpot is not used.
        hubspot_base_url: where HubSpot's API answers; https, but for this machine itself.
        hubspot_api_version: version in the paths: a date such as `2026-09`, or `v3`.
        hubspot_properties: more properties to read, by object, as JSON: `{"contacts": ["favourite_colour"]}`.
        hubspot_overlap: seconds before the last reading from which changes are read again: HubSpot's search learns of
            a change a little later than it happens.
        hubspot_calls_per_10_seconds: calls within any 10 seconds, of all processes together; HubSpot allows a private
            app 100 (free, starter) or 190 (professional, enterprise).
        hubspot_searches_per_second: searches within any second; HubSpot allows an account 5.
        hubspot_archived_pause: HubSpot cannot list since a time what was archived: all of it is read. After a reading
            that took so many calls we wait so many times these seconds before the next.
    """

    crm_skipped: Annotated[frozenset[str], NoDecode] = frozenset()
    crm_sync_seconds: int = Field(default=300, ge=60, le=86_400)
    hubspot_token: SecretStr | None = None
    hubspot_base_url: str = "https://api.hubapi.com"
    hubspot_api_version: str = Field(default="2026-09", pattern=r"^(v3|20\d\d-(0[1-9]|1[0-2]))$")
    hubspot_properties: Annotated[dict[HubSpotObject, list[str]], NoDecode] = Field(default_factory=dict)
    hubspot_overlap: float = Field(default=300, ge=0, le=86_400)
    hubspot_calls_per_10_seconds: float = Field(default=100, ge=10)
    hubspot_searches_per_second: float = Field(default=5, gt=0)
    hubspot_archived_pause: float = Field(default=30, ge=0)

    @field_validator("crm_skipped", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return frozenset(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("hubspot_properties", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError:
            raise ValueError('is no JSON such as {"contacts": ["favourite_colour"]}') from None

    @field_validator("hubspot_base_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if not parts.hostname or parts.scheme not in ("https", "http") or parts.query or parts.fragment:
            raise ValueError("is not an https URL")
        if parts.scheme == "http" and not _is_here(parts.hostname):
            raise ValueError("must begin with https://, or the token would be readable on its way")
        return value.rstrip("/")


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
