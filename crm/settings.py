"""Settings of the CRM connectors."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from warehouse.settings import MailhouseSettings

HubSpotObject = Literal["contacts", "companies", "deals", "tasks"]
SalesforceObject = Literal["Contact", "Account", "Opportunity", "Task"]
_SALESFORCE_FIELD = re.compile(r"([a-z][a-z0-9_]*=)?[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*")


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
        pipedrive_token: API token of a Pipedrive user who sees all records. Instead of it, of an app:
            pipedrive_client_id, pipedrive_client_secret, pipedrive_refresh_token.
        pipedrive_base_url, pipedrive_oauth_url: where Pipedrive's API and its sign-in answer.
        pipedrive_calls_per_2_seconds: calls within any 2 seconds, of all processes together; Pipedrive allows an API
            token 20, 40, 100 or 120 with the plan, an app four times as many.
        pipedrive_overlap: seconds before the newest change that was read from which reading starts again.
        sql_urls: databases that `content/sources/*.yaml` may name, as JSON:
            `{"erp": "postgresql+psycopg://user:password@host/database"}`.
        salesforce_client_id: consumer key of a connected app. Unset means that Salesforce is not used. How we prove
            who we are follows from what else is set, exactly one of: `salesforce_private_key` or
            `salesforce_private_key_file` (JWT bearer, with `salesforce_username`), `salesforce_refresh_token` (with
            the secret, if the app asks for it), or `salesforce_client_secret` alone (client credentials).
        salesforce_login_url: where tokens are given: the organisation's own domain
            (`https://example.my.salesforce.com`), which client credentials need; https, but for this machine itself.
        salesforce_audience: whom a JWT is for; by default it follows from the login URL.
        salesforce_api_version: version in the paths.
        salesforce_properties: more fields to read, by object, as JSON: `{"Contact": ["Level__c",
            "locale=Language__c"]}`. One with a name of ours before it is read and written under that name.
        salesforce_overlap: seconds before the newest change read from which reading starts again: a record is
            stamped when its transaction begins, and seen when that ends.
        salesforce_bulk_from: records from which on the first load uses Bulk API 2.0; 0: always.
        salesforce_daily_share: part of the organisation's calls in 24 hours, used by anyone, from which on we make
            none, so that others may.
        salesforce_last_name: last name of contacts that we make and whose own we do not know, since Salesforce wants
            one; it is never read as a name.
        salesforce_permission_set: permission set by which `mailhouse crm setup` shows our fields to our user.
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
    pipedrive_token: SecretStr | None = None
    pipedrive_client_id: str = ""
    pipedrive_client_secret: SecretStr | None = None
    pipedrive_refresh_token: SecretStr | None = None
    pipedrive_base_url: str = "https://api.pipedrive.com"
    pipedrive_oauth_url: str = "https://oauth.pipedrive.com"
    pipedrive_calls_per_2_seconds: float = Field(default=20, ge=2)
    pipedrive_overlap: float = Field(default=60, ge=0, le=86_400)
    sql_urls: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)

    @field_validator("crm_skipped", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return frozenset(value.replace(",", " ").split()) if isinstance(value, str) else value

    salesforce_client_id: str = ""
    salesforce_client_secret: SecretStr | None = None
    salesforce_refresh_token: SecretStr | None = None
    salesforce_username: str = ""
    salesforce_private_key: SecretStr | None = None
    salesforce_private_key_file: Path | None = None
    salesforce_login_url: str = "https://login.salesforce.com"
    salesforce_audience: str = ""
    salesforce_api_version: str = Field(default="63.0", pattern=r"^[4-9]\d\.0$")
    salesforce_properties: Annotated[dict[SalesforceObject, list[str]], NoDecode] = Field(
        default_factory=dict
    )
    salesforce_overlap: float = Field(default=300, ge=30, le=86_400)
    salesforce_bulk_from: int = Field(default=20_000, ge=0)
    salesforce_daily_share: float = Field(default=0.8, gt=0, le=1)
    salesforce_last_name: str = Field(default="[not provided]", min_length=1, max_length=80)
    salesforce_permission_set: str = Field(default="Mailhouse", pattern=r"^[A-Za-z][A-Za-z0-9_]{0,79}$")

    @field_validator("hubspot_properties", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError:
            raise ValueError('is no JSON such as {"contacts": ["favourite_colour"]}') from None

    @field_validator("salesforce_properties", mode="before")
    @classmethod
    def _salesforce_fields(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value or "{}")
            except ValueError:
                raise ValueError('is no JSON such as {"Contact": ["Level__c"]}') from None
        names = [name for names in value.values() for name in names] if isinstance(value, dict) else []
        if wrong := next((name for name in names if not _SALESFORCE_FIELD.fullmatch(str(name))), None):
            raise ValueError(f"{str(wrong)[:60]!r} is no field such as Level__c or locale=Language__c")
        return value

    @field_validator("sql_urls", mode="before")
    @classmethod
    def _databases(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            urls = json.loads(value or "{}")
        except ValueError:
            urls = None
        if not isinstance(urls, dict) or not all(isinstance(url, str) for url in urls.values()):
            # never the value itself, which holds passwords
            raise ValueError('is no JSON such as {"erp": "postgresql+psycopg://user:password@host/database"}')
        return urls

    @field_validator("hubspot_base_url", "pipedrive_base_url", "pipedrive_oauth_url", "salesforce_login_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if not parts.hostname or parts.scheme not in ("https", "http") or parts.query or parts.fragment:
            raise ValueError("is not an https URL")
        if parts.scheme == "http" and not is_here(parts.hostname):
            raise ValueError("must begin with https://, or the token would be readable on its way")
        return value.rstrip("/")


def is_here(host: str) -> bool:
    """Whether a host name means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
