"""HubSpot's words for ours: objects, properties, times, time zones, refusals."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from crm.base import CrmRefusedError, Kind, utc_time

CHANGED: Final[Mapping[Kind, str]] = {
    "contact": "lastmodifieddate",
    "company": "hs_lastmodifieddate",
    "deal": "hs_lastmodifieddate",
    "task": "hs_lastmodifieddate",
}
"""The property that search knows the time of a change by."""
MERGED: Final = ("hs_merged_object_ids", "hs_calculated_merged_vids")
"""Properties that name the records which were merged into one: all of them, and of contacts those of old."""
READ: Final[Mapping[Kind, tuple[str, ...]]] = {
    "contact": (
        "email",
        "firstname",
        "lastname",
        "country",
        "city",
        "hs_timezone",
        "hs_language",
        "phone",
        "mobilephone",
        "createdate",
        "lastmodifieddate",
        "lifecyclestage",
        "associatedcompanyid",
        "hs_additional_emails",
        *MERGED,
    ),
    "company": (
        "name", "domain", "industry", "country", "city", "createdate", "hs_lastmodifieddate", "hs_merged_object_ids",
    ),
    "deal": (
        "dealname",
        "dealstage",
        "pipeline",
        "amount",
        "deal_currency_code",
        "closedate",
        "hs_is_closed",
        "hs_is_closed_won",
        "createdate",
        "hs_lastmodifieddate",
        "hs_merged_object_ids",
    ),
    "task": (
        "hs_task_subject",
        "hs_task_body",
        "hs_task_status",
        "hs_task_priority",
        "hs_task_type",
        "hs_timestamp",
        "hs_task_completion_date",
        "hubspot_owner_id",
        "hs_createdate",
        "hs_lastmodifieddate",
    ),
}  # fmt: skip
"""Properties that are read of each object; the settings name more."""
RENAMED: Final[Mapping[str, str]] = {
    "firstname": "first_name",
    "lastname": "last_name",
    "hs_timezone": "timezone",
    "hs_language": "locale",
    "mobilephone": "mobile_phone",
    "createdate": "created_at",
}
"""Our names for HubSpot's; all others keep their own."""
TASK_KEY: Final = "mailhouse_key"
"""A task's property with unique values: by it a task is found that was made before."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class HubSpotRefusalError(CrmRefusedError):
    """An answer that is a refusal.

    Attributes:
        status: of the answer.
        said: its JSON, {} if it is none.
    """

    def __init__(self, message: str, *, fix: str, status: int, said: dict[str, Any]) -> None:
        super().__init__(message, fix=fix)
        self.status, self.said = status, said

    @property
    def is_about_path(self) -> bool:
        """Whether it is the address that is wrong, not what it was asked."""
        return self.status == 404 and self.said.get("category") != "OBJECT_NOT_FOUND"


def milliseconds(moment: datetime) -> int:
    """Since 1970."""
    return (moment - _EPOCH) // _MILLISECOND


def from_milliseconds(number: int) -> datetime:
    """A time in UTC."""
    return _EPOCH + _MILLISECOND * number


def changed_at(record: Mapping[str, Any], kind: Kind) -> datetime | None:
    """The time that search sorts by, `updatedAt` where the property is missing; None without either."""
    properties = record.get("properties")
    own = properties.get(CHANGED[kind]) if isinstance(properties, dict) else None
    return utc_time(own) or utc_time(record.get("updatedAt"))


def merged_ids(record: Mapping[str, Any]) -> set[str]:
    """Ids of the records that were merged into this one."""
    properties = record.get("properties")
    if not isinstance(properties, dict):
        return set()
    found: set[str] = set()
    for name in MERGED:
        if text := properties.get(name):
            # of contacts of old each with the time of the merge: `id:milliseconds`
            found |= {part.partition(":")[0].strip() for part in str(text).split(";")}
    return {number for number in found if number.isdigit()} - {str(record.get("id"))}


@cache
def _zones() -> dict[str, str]:
    return {hubspot_zone(name): name for name in sorted(zoneinfo.available_timezones())}


def hubspot_zone(name: str) -> str:
    """HubSpot's value for a time zone: `europe_slash_berlin` for Europe/Berlin."""
    return name.lower().replace("/", "_slash_").replace("-", "_hyphen_").replace("+", "_plus_")


def zone_of(value: str) -> str:
    """The time zone that a value of HubSpot's means; the value itself if it means none that we know."""
    return _zones().get(value.lower(), value)
