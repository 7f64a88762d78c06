"""Contacts, companies and deals from HubSpot into `raw.crm_records`, incrementally.

What changed is found by search, sorted by the time of change, from the newest change that is stored, less
an overlap (search learns of changes late). Every page starts at the time where the last one ended (keyset),
never at an offset: an offset skips records when one before it changes meanwhile, and search refuses offsets
beyond 10,000. Where more records than a page holds changed in the same millisecond, as after an import,
that millisecond is read by id. Archived records are no part of search; all of them are listed each time
(HubSpot cannot list since a time), and stored as deleted at the time they were archived.

The cursor lives in the warehouse: pages load in order of time, so that whatever is stored says how far we
came, and a process that dies repeats at most one batch (which loads nothing twice).

Contract: HubSpot's CRM object and search API, date-based paths (`/crm/objects/2026-09/...`) or v3.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import polars as pl
from pydantic import SecretStr

from crm.locks import one_at_a_time
from crm.settings import CrmSettings, HubSpotObject
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError, SettingsError
from warehouse.loads import (
    CONTENT_CHARACTERS,
    UTC_MS,
    LoadResult,
    clear_quarantine,
    load_crm_records,
    quarantine,
)

logger = logging.getLogger(__name__)

SOURCE: Final = "hubspot"
PAGE: Final = 200
"""Records a search returns at most."""
LISTED: Final = 100
"""Records a list returns at most."""
BATCH: Final = 2_000
"""Records of one load."""
ATTEMPTS: Final = 7
"""How often a request is made before we give up; waits grow from half a second to half a minute."""

# reads may be repeated whenever they got no answer
_RETRIED = frozenset({408, 423, 429, 477, 500, 502, 503, 504, 521, 522, 523, 524})
_LONGEST_WAIT = 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_OBJECTS: dict[str, str] = {"contacts": "contact", "companies": "company", "deals": "deal"}
_CHANGED: dict[str, str] = {
    "contacts": "lastmodifieddate",
    "companies": "hs_lastmodifieddate",
    "deals": "hs_lastmodifieddate",
}
_PROPERTIES: dict[str, tuple[str, ...]] = {
    "contacts": (
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
    ),
    "companies": ("name", "domain", "industry", "country", "city", "createdate", "hs_lastmodifieddate"),
    "deals": (
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
    ),
}
# names of DESIGN's contacts for HubSpot's; all others keep their own
_RENAMED: dict[str, str] = {
    "firstname": "first_name",
    "lastname": "last_name",
    "hs_timezone": "timezone",
    "hs_language": "locale",
    "mobilephone": "mobile_phone",
    "createdate": "created_at",
}


class HubSpotError(MailhouseError):
    """HubSpot refused or did not answer; never contains the token."""


class HubSpot:
    """A client of HubSpot's object and search API: paced, patient, read-only.

    Args:
        settings: token, address and version.
        transport: httpx's way out, e.g. `httpx.ASGITransport` of a fake; the network by default.
        sleep: how to wait.

    Raises:
        SettingsError: no token is set.
    """

    def __init__(
        self,
        settings: CrmSettings,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        token = settings.hubspot_token.get_secret_value().strip() if settings.hubspot_token else ""
        # what cannot stand in a header would come back in the library's error, token and all
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingsError(
                "HubSpot has no token." if not token else "The token of HubSpot holds what no token holds.",
                fix="Set MAILHOUSE_HUBSPOT_TOKEN to the access token of a service key (or private app).",
            )
        self._settings = settings
        self._token = SecretStr(token)
        self._sleep = sleep
        self._next_search = 0.0
        self._client = httpx.Client(
            base_url=settings.hubspot_base_url,
            transport=transport,
            timeout=httpx.Timeout(30, connect=10),
            # a redirect would carry the token elsewhere
            follow_redirects=False,
            headers={"accept": "application/json", "user-agent": "mailhouse"},
        )
        self.requests = 0
        """Requests made so far, repeated ones too."""

    def close(self) -> None:
        """Give connections back."""
        self._client.close()

    def __enter__(self) -> HubSpot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self, kind: HubSpotObject, since: datetime) -> Iterator[list[dict[str, Any]]]:
        """Pages of records changed at or after a time, in order of change; a record may come twice.

        Raises:
            HubSpotError: HubSpot refuses, or stays silent.
        """
        field = _CHANGED[kind]
        start = _milliseconds(since)
        while True:
            page, is_more = self._search(kind, [_filter(field, "GTE", start)], field)
            if page:
                yield page
            if not is_more:
                return
            last = max(
                (_milliseconds(at) for record in page if (at := _changed_at(record, kind))), default=start
            )
            if last > start:
                start = last
                continue
            # a full page of one millisecond: keyset by id within it, then go on after it
            highest = 0
            while is_more:
                filters = [_filter(field, "EQ", start), _filter("hs_object_id", "GT", highest)]
                tied, is_more = self._search(kind, filters, "hs_object_id")
                if tied:
                    yield tied
                    highest = max(int(record["id"]) for record in tied)
            start += 1

    def archived(self, kind: HubSpotObject) -> Iterator[list[dict[str, Any]]]:
        """Pages of all archived records.

        Raises:
            HubSpotError: HubSpot refuses, or stays silent.
        """
        after: str | None = None
        while True:
            query = {"archived": "true", "limit": str(LISTED), "properties": ",".join(self._properties(kind))}
            if after is not None:
                query["after"] = after
            answer = self._request("GET", self._path(kind), params=query)
            page = _results(answer, kind)
            if page:
                yield page
            following = _next(answer)
            if following is None or following == after:
                return
            after = following

    def _search(
        self, kind: HubSpotObject, filters: list[dict[str, str]], sort: str
    ) -> tuple[list[dict[str, Any]], bool]:
        """The first page that matches, and whether more would follow."""
        wait = self._next_search - time.monotonic()
        if wait > 0:
            self._sleep(wait)
        self._next_search = time.monotonic() + 1 / self._settings.hubspot_searches_per_second
        body = {
            "filterGroups": [{"filters": filters}],
            "sorts": [{"propertyName": sort, "direction": "ASCENDING"}],
            "properties": list(self._properties(kind)),
            "limit": PAGE,
        }
        answer = self._request("POST", f"{self._path(kind)}/search", body=body)
        page = _results(answer, kind)
        return page, bool(page) and (len(page) >= PAGE or _next(answer) is not None)

    def _properties(self, kind: HubSpotObject) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*_PROPERTIES[kind], *self._settings.hubspot_properties.get(kind, ()))))

    def _path(self, kind: HubSpotObject) -> str:
        version = self._settings.hubspot_api_version
        return f"/crm/v3/objects/{kind}" if version == "v3" else f"/crm/objects/{version}/{kind}"

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One answer, as JSON. Repeats what may be repeated: these are all reads."""
        trouble = ""
        for attempt in range(1, ATTEMPTS + 1):
            self.requests += 1
            try:
                response = self._client.request(
                    method,
                    path,
                    params=params,
                    json=body,
                    headers={"authorization": f"Bearer {self._token.get_secret_value()}"},
                )
            except httpx.TransportError as error:
                trouble = f"does not answer ({type(error).__name__})"
                self._wait(attempt, None, trouble)
                continue
            if response.status_code in _RETRIED:
                said = _said(response)
                if said.get("policyName") == "DAILY":
                    raise HubSpotError(
                        "HubSpot's daily limit of API calls is used up.",
                        fix="Run again tomorrow: it goes on where it stopped. Or raise the account's limit.",
                    )
                trouble = f"answers {response.status_code}"
                self._wait(attempt, response, trouble)
                continue
            if response.status_code != 200:
                raise self._refused(response, path)
            try:
                answer = response.json()
            except (json.JSONDecodeError, UnicodeDecodeError):
                answer = None
            if not isinstance(answer, dict):
                # a proxy's page with status 200: perhaps gone on the next attempt
                trouble = "answers 200, but not with JSON"
                self._wait(attempt, None, trouble)
                continue
            self._spare(response)
            return answer
        raise HubSpotError(
            f"HubSpot {trouble}, {ATTEMPTS} times in a row.",
            fix="See status.hubspot.com and the network; then run again, it goes on where it stopped.",
        )

    def _wait(self, attempt: int, response: httpx.Response | None, trouble: str) -> None:
        if attempt == ATTEMPTS:
            return
        # full jitter, so that several readers do not come back together
        wait = random.uniform(0.25, 1.0) * min(30.0, 0.5 * 2**attempt)
        if response is not None:
            wait = max(wait, 2.0) if response.status_code == 423 else wait
            asked = _seconds(response.headers.get("retry-after"))
            if asked is None and response.status_code == 429:
                interval = _seconds(response.headers.get("x-hubspot-ratelimit-interval-milliseconds"))
                asked = interval / 1000 if interval is not None else None
            wait = max(wait, asked or 0.0)
        logger.info(
            "HubSpot %s; attempt %d follows in %.1f s", trouble, attempt + 1, min(wait, _LONGEST_WAIT)
        )
        self._sleep(min(wait, _LONGEST_WAIT))

    def _spare(self, response: httpx.Response) -> None:
        """Wait for the next interval rather than run into the limit: others share it."""
        remaining = _seconds(response.headers.get("x-hubspot-ratelimit-remaining"))
        interval = _seconds(response.headers.get("x-hubspot-ratelimit-interval-milliseconds"))
        if remaining is not None and remaining < 1 and interval is not None:
            self._sleep(min(interval / 1000, _LONGEST_WAIT))

    def _refused(self, response: httpx.Response, path: str) -> HubSpotError:
        said = _said(response)
        status = response.status_code
        reason = str(said.get("message") or "").replace(self._token.get_secret_value(), "...")[:300]
        trace = f" (correlation id {said['correlationId']})" if said.get("correlationId") else ""
        if status == 401:
            return HubSpotError(
                f"HubSpot does not accept the token{trace}.",
                fix="Set MAILHOUSE_HUBSPOT_TOKEN to a valid token; this one may have expired.",
            )
        if status == 403:
            return HubSpotError(
                f"HubSpot's token may not read {path}: {reason or 'forbidden'}{trace}.",
                fix="Give it the scopes crm.objects.contacts.read, .companies.read and .deals.read.",
            )
        if status == 404:
            return HubSpotError(
                f"HubSpot has no {path}{trace}.",
                fix="Correct MAILHOUSE_HUBSPOT_API_VERSION and MAILHOUSE_HUBSPOT_BASE_URL.",
            )
        return HubSpotError(
            f"HubSpot answers {status} to {path}: {reason or 'no reason given'}{trace}.",
            fix="If it names a property, correct MAILHOUSE_HUBSPOT_PROPERTIES.",
        )


def ingest_hubspot(
    warehouse: Warehouse,
    hubspot: HubSpot,
    kind: HubSpotObject,
    *,
    settings: CrmSettings,
    run_id: str = "",
    on_progress: Callable[[int], None] | None = None,
) -> LoadResult:
    """Load what changed in HubSpot since the last time, and what was archived.

    Args:
        warehouse: where to.
        hubspot: the client.
        kind: contacts, companies or deals.
        settings: for the overlap, and the home folder.
        run_id: who loads.
        on_progress: told how many records have been read.

    Raises:
        HubSpotError: HubSpot refuses or stays silent; what was read before that is loaded.
        WarehouseError: ClickHouse refused.
    """
    name = _OBJECTS[kind]
    place = f"{SOURCE}/{kind}"
    total = LoadResult()
    with one_at_a_time(settings.home, f"{SOURCE}_{kind}"):
        clear_quarantine(warehouse, source=SOURCE, object=name, file=place)
        since = cursor(warehouse, kind)
        since = since - timedelta(seconds=settings.hubspot_overlap) if since is not None else _EPOCH
        for pages, is_deleted in ((hubspot.changed(kind, since), False), (hubspot.archived(kind), True)):
            for records in _batches(pages):
                total += _load(warehouse, records, kind, is_deleted, place, run_id)
                if on_progress is not None:
                    on_progress(total.read)
    return total


def cursor(warehouse: Warehouse, kind: HubSpotObject) -> datetime | None:
    """The newest change that is stored, None if nothing is. Archivings, in no order, do not count."""
    newest = warehouse.frame(
        """
        select max(updated_at) as newest, count() as records from raw.crm_records
        where source = {source:String} and object = {object:String} and not is_deleted
        """,
        {"source": SOURCE, "object": _OBJECTS[kind]},
    )
    return newest["newest"][0] if newest["records"][0] else None


def _batches(pages: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    try:
        for page in pages:
            held += page
            if len(held) >= BATCH:
                yield held
                held = []
    except HubSpotError:
        # what came before the trouble is good, and moves the cursor
        if held:
            yield held
        raise
    if held:
        yield held


def _load(
    warehouse: Warehouse,
    records: list[dict[str, Any]],
    kind: HubSpotObject,
    is_deleted: bool,
    place: str,
    run_id: str,
) -> LoadResult:
    rows: list[tuple[str, datetime, str]] = []
    bad: list[tuple[str, str]] = []
    for record in records:
        try:
            rows.append(_row(record, kind, is_deleted))
        except ValueError as error:
            bad.append((str(error), json.dumps(record, ensure_ascii=True)[:CONTENT_CHARACTERS]))
    if bad:
        frame = pl.DataFrame(bad, schema={"reason": pl.String, "content": pl.String}, orient="row")
        frame = frame.with_columns(file=pl.lit(place), line=pl.lit(0, pl.UInt64))
        quarantine(warehouse, frame, source=SOURCE, object=_OBJECTS[kind], run_id=run_id)
    frame = pl.DataFrame(
        rows, schema={"external_id": pl.String, "updated_at": UTC_MS, "properties": pl.String}, orient="row"
    ).with_columns(
        source=pl.lit(SOURCE),
        object=pl.lit(_OBJECTS[kind]),
        is_deleted=pl.lit(is_deleted),
        file=pl.lit(place),
    )
    loaded = load_crm_records(warehouse, frame, run_id=run_id)
    return loaded + LoadResult(read=len(bad), quarantined=len(bad))


def _row(record: dict[str, Any], kind: HubSpotObject, is_deleted: bool) -> tuple[str, datetime, str]:
    """A record's id, time of change and properties.

    Raises:
        ValueError: it lacks one of them.
    """
    changed = _changed_at(record, kind)
    if changed is None:
        raise ValueError("the record says not when it changed")
    if is_deleted:
        # archiving need not touch the record's own time; as a version it comes after all it had before
        archived = _parsed(record.get("archivedAt"))
        changed = max(changed, archived) if archived is not None else changed
    properties = record.get("properties")
    if not isinstance(properties, dict):
        raise ValueError("the record has no properties")
    named = {_RENAMED.get(key, key): value for key, value in properties.items() if value not in (None, "")}
    text = json.dumps(named, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the record holds half of a surrogate pair") from None
    return str(record["id"]), changed, text


def _results(answer: dict[str, Any], kind: HubSpotObject) -> list[dict[str, Any]]:
    results = answer.get("results")
    if not isinstance(results, list) or not all(isinstance(record, dict) for record in results):
        raise HubSpotError(
            f"HubSpot's answer about {kind} has no list of results.",
            fix="Set MAILHOUSE_HUBSPOT_API_VERSION to a version that this connector knows, e.g. 2026-09.",
        )
    if broken := next((record for record in results if not str(record.get("id", "")).isdigit()), None):
        raise HubSpotError(
            f"HubSpot's answer about {kind} has a record without a numeric id: {str(broken)[:80]}.",
            fix="Set MAILHOUSE_HUBSPOT_API_VERSION to a version that this connector knows, e.g. 2026-09.",
        )
    return results


def _next(answer: dict[str, Any]) -> str | None:
    """The place at which a list goes on, None at its end."""
    paging = answer.get("paging")
    following = paging.get("next") if isinstance(paging, dict) else None
    after = following.get("after") if isinstance(following, dict) else None
    return None if after is None else str(after)


def _changed_at(record: dict[str, Any], kind: HubSpotObject) -> datetime | None:
    """The time that search sorts by, `updatedAt` where the property is missing; None without either."""
    properties = record.get("properties")
    own = properties.get(_CHANGED[kind]) if isinstance(properties, dict) else None
    return _parsed(own) or _parsed(record.get("updatedAt"))


def _parsed(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _filter(name: str, operator: str, value: int) -> dict[str, str]:
    return {"propertyName": name, "operator": operator, "value": str(value)}


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e9 else None


def _said(response: httpx.Response) -> dict[str, Any]:
    try:
        said = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}
