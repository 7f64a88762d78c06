"""Settings of the gateway: who may post events, how many, where the stream is kept."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from senders.settings import SenderSettings

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class ApiKey(BaseModel):
    """One key of the event API.

    Attributes:
        hash: `sha256:` and the digest of the key, from `mailhouse gateway key`.
        per_second: events a second over any time; 0 means the setting for all keys.
        burst: events that may come at once after a pause; 0 means two seconds' worth.
    """

    model_config = ConfigDict(extra="forbid")

    hash: str
    per_second: float = Field(default=0.0, ge=0)
    burst: int = Field(default=0, ge=0)

    @field_validator("hash")
    @classmethod
    def _is_hash(cls, value: str) -> str:
        if not _HASH.fullmatch(value):
            raise ValueError("hash is not `sha256:` and 64 hexadecimal digits")
        return value


class GatewaySettings(SenderSettings):
    """What `SenderSettings` has, and the gateway's own.

    Attributes:
        gateway_keys: API keys by name, as JSON: `{"website": "sha256:..."}`, or an object with hash, per_second and
            burst for each. `mailhouse gateway key NAME` makes one. The name is the `source` of events that name none.
        gateway_rate_per_second: events a second that each key may post, where it has no limit of its own; 0: no limit.
        gateway_origins: web pages whose scripts may post events: `https://shop.example`, several with a comma, or `*`.
        gateway_stream: where events wait: `ledger` (beside or in the ledger's database) or `redis` (the server of
            MAILHOUSE_REDIS_URL).
        gateway_stream_limit: events that may wait; beyond it callers are told to come again (429).
        subscribe_link_days: days for which the link that confirms a subscription is good.
        subscribe_per_minute: subscriptions that one caller may ask for in a minute over any time; 0: no limit.
        subscribe_total_per_minute: the same of all callers together.
        hubspot_webhook_secret: client secret of the HubSpot app whose webhooks come to /webhooks/hubspot.
        hubspot_closed_stages: deal stages that mean closed, with commas; pipelines of one's own have their own names.
        pipedrive_webhook_user, pipedrive_webhook_password: Basic auth that Pipedrive's webhooks were given.
        salesforce_webhook_secret: what stands behind `?secret=` in the address that Salesforce calls.
        salesforce_organization_id: the organisation whose outbound messages are taken; empty: any that has the secret.
        salesforce_closed_stages: stages that mean closed, with commas, for reports that do not have `IsClosed`.
    """

    gateway_keys: Annotated[dict[str, ApiKey], NoDecode] = Field(default_factory=dict)
    gateway_rate_per_second: float = Field(default=0.0, ge=0)
    gateway_origins: str = ""
    gateway_stream: str = Field(default="ledger", pattern="^(ledger|redis)$")
    gateway_stream_limit: int = Field(default=200_000, ge=1_000)
    subscribe_link_days: float = Field(default=7.0, gt=0, le=90)
    subscribe_per_minute: float = Field(default=5.0, ge=0)
    subscribe_total_per_minute: float = Field(default=300.0, ge=0)
    hubspot_webhook_secret: SecretStr | None = None
    hubspot_closed_stages: str = "closedwon,closedlost"
    pipedrive_webhook_user: str = "mailhouse"
    pipedrive_webhook_password: SecretStr | None = None
    salesforce_webhook_secret: SecretStr | None = None
    salesforce_organization_id: str = ""
    salesforce_closed_stages: str = "Closed Won,Closed Lost"

    @field_validator("gateway_keys", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value or "{}")
            except ValueError:
                raise ValueError('is no JSON such as {"website": "sha256:..."}') from None
        if not isinstance(value, dict):
            raise ValueError('is no JSON object such as {"website": "sha256:..."}')
        for name in value:
            if not _NAME.fullmatch(str(name)):
                raise ValueError(f"{name!r} is no name of a key: small letters, digits and _, a letter first")
        return {name: {"hash": key} if isinstance(key, str) else key for name, key in value.items()}

    @property
    def origins(self) -> frozenset[str]:
        """Origins whose scripts may post."""
        return frozenset(self.gateway_origins.replace(",", " ").split())
