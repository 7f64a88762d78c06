"""Pipedrive: people, organisations, deals and activities, both ways.

Reading. Lists of API v2 are read in order of `update_time`, page by page, and taken up again at the time they came to.
Pipedrive's times are whole seconds, which has a trap: a record that is changed twice in one second has two versions of
the same time, and the second would be taken for the first. Therefore a second is read only when it is over, by
Pipedrive's clock (the `Date` of its answers), never by ours; what is younger is waited for once, a few seconds.

Lists of v2 leave out what was deleted, but for deals. People, organisations and activities that were deleted are
found by `/v1/recents`, which shows them as inactive, and each is looked up once more before it is believed. A merge
deletes one of two records; `merge_what_id` there names the other, and the webhooks say so, too (`merged`). A deleted
record is a version a millisecond younger than its last change: Pipedrive need not touch the time when it deletes.

Writing. Pipedrive has neither upsert nor idempotency keys. Records are looked up by a hundred, compared, and changed
one by one, only where they differ; an unknown one is searched by its address and among those just added, which search
does not know yet. After a lost answer we look again rather than create again.

Contract: Pipedrive's OpenAPI documents of v1 and v2 of August 2026.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
import re
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final, Self

import httpx
import pyarrow as pa
from pydantic import SecretStr

from crm.base import (
    FIELDS,
    Capabilities,
    Change,
    CrmError,
    CrmRefusedError,
    CrmUnavailableError,
    CustomField,
    Kind,
    Pulled,
    Pushed,
    PushStatus,
    Removed,
    Row,
    Scalar,
    SetUp,
    require,
    table_of,
    utc_time,
)
from crm.http import (
    LONGEST_WAIT,
    RETRIED,
    Again,
    HttpConnector,
    NoPace,
    Pace,
    is_header_text,
    objects_of,
    seconds,
)
from crm.pacing import allowance
from crm.settings import CrmSettings
from warehouse.errors import SettingsError

logger = logging.getLogger(__name__)

PAGE: Final = 500
"""Records of a list, at most."""
BATCH: Final = 5_000
"""Records of a yielded batch, about."""
IDS: Final = 100
"""Records looked up by one call, at most."""
SETTLED: Final = timedelta(seconds=2)
"""How long a second must be over before its records are read."""
KEPT: Final = timedelta(days=30)
"""How long Pipedrive remembers what was deleted."""
NEW: Final = timedelta(minutes=15)
"""How far back people are listed before one is created: search learns of new ones a little later."""

# tokens of the daily budget (x-token-cost of the OpenAPI documents)
_GET, _DELETE, _LIST, _WRITE, _SEARCH = 1, 3, 10, 5, 20
_WINDOW = 2.0  # seconds of the burst limit
_SEARCHES = 10  # a window, on every plan
_SHARE = 0.9  # of what a window allows: others use the token, too
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(milliseconds=1)
_SHIELD_WAIT = LONGEST_WAIT
_OUR_LABEL = re.compile(r"\((mailhouse_[a-z0-9_]+)\)\s*$")
_VARCHAR = 255

_PATHS: dict[Kind, str] = {
    "contact": "persons",
    "company": "organizations",
    "deal": "deals",
    "task": "activities",
}
_RECENT: dict[Kind, str] = {"contact": "person", "company": "organization", "task": "activity"}
_FIELDS_OF: dict[Kind, str] = {
    "contact": "personFields",
    "company": "organizationFields",
    "deal": "dealFields",
}
_TYPES: dict[str, tuple[str, frozenset[str]]] = {
    "text": ("varchar", frozenset({"varchar", "varchar_auto", "text"})),
    "list": ("text", frozenset({"text"})),
    "number": ("double", frozenset({"double"})),
    # the nearest that Pipedrive has; people can filter by it
    "datetime": ("date", frozenset({"date"})),
    "boolean": ("enum", frozenset({"enum"})),
    "choice": ("enum", frozenset({"enum"})),
}
_YES_NO = {"true": "yes", "false": "no"}
_LABEL_IT = "label a custom field so"
# what people have without custom fields
_OWN_FIELDS = frozenset({"email", "phone", "mobile_phone", "first_name", "last_name"})
# what custom fields must not be mistaken for
_OWN_NAMES = frozenset(
    {"id", "name", "email", "emails", "phone", "phones", "mobile_phone", "first_name", "last_name", "created_at",
     "add_time", "update_time", "owner_id", "org_id", "person_id", "title", "status", "value", "currency", "address",
     "postal_address", "merged_into", "is_deleted", "is_archived", "custom_fields"}
)  # fmt: skip


class PipedriveAnswerError(CrmRefusedError):
    """Pipedrive refuses one request.

    Attributes:
        status: HTTP's.
        reason: Pipedrive's words.
        code: Pipedrive's word for it, such as `feature_capping_deals_limit`; '' if there is none.
    """

    def __init__(self, message: str, *, fix: str, status: int, reason: str, code: str) -> None:
        super().__init__(message, fix=fix)
        self.status, self.reason, self.code = status, reason, code


@dataclass(frozen=True, slots=True)
class _Stream:
    """One of the lists that make up a kind's records."""

    name: str
    path: str
    cost: int = _LIST
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_gone: bool = False


def _streams(kind: Kind) -> tuple[_Stream, ...]:
    path = f"/api/v2/{_PATHS[kind]}"
    labels = {} if kind == "task" else {"include_option_labels": "true"}
    streams = [_Stream("changed", path, parameters=labels)]
    if kind == "deal":
        # a deal that is archived while we read is in the second list, as that is read later
        streams.append(_Stream("archived", f"{path}/archived", cost=20))
        streams.append(_Stream("gone", path, parameters={**labels, "status": "deleted"}, is_gone=True))
    return tuple(streams)


@dataclass
class _Position:
    """How far a list was read.

    Attributes:
        since: what `updated_since` was; '' if all was asked for.
        following: Pipedrive's marker of the next page of that list; '' at the first.
        seen: time of the newest record that was yielded.
    """

    since: str = ""
    following: str = ""
    seen: str = ""


class Burst:
    """Spreads calls over windows of two seconds, as many as the plan allows, and spends the allowances.

    The plan is read from `x-ratelimit-limit`, which need not be there; until then the smallest plan is assumed.

    Args:
        pace: tokens that calls cost.
        calls: how many there may be.
        sleep, clock: how to wait, and a clock that never goes back, in seconds.
    """

    def __init__(
        self, pace: Pace, calls: Pace, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._pace, self._shared, self._sleep, self._clock = pace, calls, sleep, clock
        self._limit = 20
        self._now = clock()
        self._not_before = 0.0
        self._calls: deque[float] = deque()
        self._searches: deque[float] = deque()
        self.is_search = False

    def take(self, cost: float = 1) -> None:
        """Wait until a call fits into the window."""
        self._until(self._not_before)
        windows = [(self._calls, max(1, int(self._limit * _SHARE)))]
        if self.is_search:
            windows.append((self._searches, max(1, int(_SEARCHES * _SHARE))))
        for made, most in windows:
            if len(made) >= most:
                self._until(made[-most] + _WINDOW)
        for made, _ in windows:
            made.append(self._now)
            while made and made[0] + _WINDOW <= self._now:
                made.popleft()
        self._shared.take()
        self._pace.take(cost)

    def observe(self, headers: httpx.Headers) -> None:
        """Learn from an answer."""
        limit, left = seconds(headers.get("x-ratelimit-limit")), seconds(headers.get("x-ratelimit-remaining"))
        # the limit of search is another one
        if limit and not self.is_search:
            self._limit = int(limit)
        if left is not None and left < 1:
            wait = min(seconds(headers.get("x-ratelimit-reset")) or _WINDOW, 10.0)
            self._not_before = max(self._clock(), self._now) + wait

    def _until(self, moment: float) -> None:
        self._now = max(self._clock(), self._now)
        if moment > self._now:
            self._sleep(moment - self._now)
            # a sleep that is no real one does not move the clock
            self._now = max(self._clock(), moment)


class Pipedrive(HttpConnector):
    """One Pipedrive company.

    Args:
        settings: how to get in: an API token, or client id, client secret and refresh token of an app.
        pace: an allowance of tokens (a look-up costs 1, a list 10, a change 5, a search 20) beside that of calls.
        calls, searches: allowances of calls and of searches that are shared with other processes.
        transport, sleep: as in `HttpConnector`.
        clock: never goes back, in seconds.

    Raises:
        SettingsError: the settings do not say how to get in.
    """

    name: ClassVar[str] = "pipedrive"
    title: ClassVar[str] = "Pipedrive"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds=frozenset({"contact", "company", "deal", "task"}),
        pushes=frozenset({"contact", "task"}),
        erases=frozenset({"contact"}),
        can_set_up=True,
        tells_deletes=True,
        tells_merges=True,
        has_webhooks=True,
        looks_up=True,
        has_whole_seconds=True,
        most_per_push=1,
    )

    def __init__(
        self,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        calls: Pace | None = None,
        searches: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = _secret(settings.pipedrive_token, "pipedrive_token")
        self._client_id = settings.pipedrive_client_id.strip()
        self._client_secret = _secret(settings.pipedrive_client_secret, "pipedrive_client_secret")
        self._refresh_token = _secret(settings.pipedrive_refresh_token, "pipedrive_refresh_token")
        if not self._token and not (self._client_id and self._client_secret and self._refresh_token):
            raise SettingsError(
                "Pipedrive needs an API token, or all three of client id, client secret and refresh token.",
                fix="Set MAILHOUSE_PIPEDRIVE_TOKEN, or MAILHOUSE_PIPEDRIVE_CLIENT_ID, "
                "MAILHOUSE_PIPEDRIVE_CLIENT_SECRET and MAILHOUSE_PIPEDRIVE_REFRESH_TOKEN.",
            )
        self._burst = Burst(pace or NoPace(), calls or NoPace(), sleep, clock)
        self._searches = searches
        super().__init__(settings.pipedrive_base_url, pace=self._burst, transport=transport, sleep=sleep)
        self._oauth_url = settings.pipedrive_oauth_url
        self._overlap = timedelta(seconds=settings.pipedrive_overlap)
        self._clock = clock
        self._access = ""
        self._access_until = 0.0
        self._is_renewed = False
        self._server_now = datetime.now(UTC)
        self._custom: dict[Kind, _CustomFields] = {}
        self._strange: set[str] = set()

    @classmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        """Whether anything of the settings says that Pipedrive is to be used."""
        return bool(
            settings.pipedrive_token or settings.pipedrive_refresh_token or settings.pipedrive_client_secret
        )

    @classmethod
    def from_settings(
        cls,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """See `Connector.from_settings`; without a pace, calls and searches are shared with other processes.

        Raises:
            SettingsError: they do not say how to get in.
        """
        if pace is not None:
            return cls(settings, pace=pace, transport=transport, sleep=sleep)
        calls = allowance(
            settings, cls.name, calls=settings.pipedrive_calls_per_2_seconds, seconds=_WINDOW, sleep=sleep
        )
        searches = allowance(settings, f"{cls.name}_search", calls=_SEARCHES, seconds=_WINDOW, sleep=sleep)
        return cls(settings, calls=calls, searches=searches, transport=transport, sleep=sleep)

    # Getting in, and what answers mean

    def authorise(self) -> Mapping[str, str]:
        """The API token, or the app's access token, made or renewed where it is about to end."""
        if self._token:
            return {"x-api-token": self._token}
        if not self._access or self._clock() >= self._access_until:
            self._get_access()
        return {"authorization": f"Bearer {self._access}"}

    def renew(self) -> None:
        """Get another access token: Pipedrive did not take the last one."""
        self._get_access()
        self._is_renewed = True

    def _get_access(self) -> None:
        for attempt in range(1, 4):
            self.usage.add("token")
            try:
                answer = self._client.post(
                    f"{self._oauth_url}/oauth/token",
                    data={"grant_type": "refresh_token", "refresh_token": self._refresh_token},
                    auth=httpx.BasicAuth(self._client_id, self._client_secret),
                )
            except httpx.TransportError:
                self._sleep(attempt)
                continue
            said = _object(answer)
            if answer.status_code == 200 and said.get("access_token"):
                self._access = str(said["access_token"])
                # five minutes before it ends, as no call takes longer
                self._access_until = self._clock() + max(60.0, float(said.get("expires_in") or 3600) - 300)
                self._refresh_token = str(said.get("refresh_token") or self._refresh_token)
                return
            if answer.status_code in (400, 401, 403):
                raise CrmRefusedError(
                    f"Pipedrive gives no access token: {self._clean(said.get('error') or answer.status_code)}.",
                    fix="Install the app again and set MAILHOUSE_PIPEDRIVE_REFRESH_TOKEN to the new refresh token; "
                    "it ends after 60 days without use. Check client id and client secret, too.",
                )
            self._sleep(attempt)
        raise CrmUnavailableError(
            "Pipedrive gives no access token: its sign-in does not answer.",
            fix="See its status page and the network; then run again, it goes on where it stopped.",
        )

    def judge(self, response: httpx.Response, what: str) -> Again | None:
        """See `HttpConnector.judge`: a 403 with a page is Cloudflare's, who wants us to slow down."""
        self._burst.observe(response.headers)
        if (date := _http_date(response.headers.get("date"))) is not None:
            self._server_now = date
        status, said = response.status_code, _object(response)
        if status in (200, 201) and said.get("success") is True:
            self._is_renewed = False
            return None
        if status == 429:
            self._spent(response, said)
            wait = seconds(response.headers.get("retry-after")) or seconds(
                response.headers.get("x-ratelimit-reset")
            )
            return Again("wants us to slow down (429)", wait=max(_WINDOW, min(wait or 0.0, 10.0)))
        if not said and status == 403:
            return Again("is shielded from us by Cloudflare (403)", wait=_SHIELD_WAIT)
        if status in RETRIED or status >= 520 or (status < 300 and not said):
            return Again(f"answers {status}" + ("" if status >= 300 else ", but not with JSON"))
        if status == 401 and not self._token and not self._is_renewed:
            return Again("does not accept the access token", is_unauthorised=True)
        raise self._refused(response, said, what)

    def _spent(self, response: httpx.Response, said: Mapping[str, Any]) -> None:
        left = seconds(response.headers.get("x-daily-ratelimit-token-remaining"))
        if left is None:
            left = seconds(response.headers.get("x-daily-requests-left"))
        text = f"{said.get('error', '')} {said.get('error_info', '')} {said.get('code', '')}".lower()
        long = (seconds(response.headers.get("retry-after")) or 0.0) > 600
        if (left is not None and left < 1) or "daily" in text or "budget" in text or long:
            raise CrmUnavailableError(
                "Pipedrive's daily budget of API tokens is used up, for all that use this account.",
                fix="Run again tomorrow: it goes on where it stopped. Or buy more API tokens.",
            )

    def _refused(self, response: httpx.Response, said: Mapping[str, Any], what: str) -> PipedriveAnswerError:
        status = response.status_code
        code = str(said.get("code") or "")
        reason = self._clean(said.get("error") or said.get("message") or "no reason given")
        if said.get("error_info"):
            reason = f"{reason} ({self._clean(said['error_info'])})"
        if status == 401:
            message = "Pipedrive does not accept the token."
            fix = "Set MAILHOUSE_PIPEDRIVE_TOKEN to the user's token of today, or install the app again."
        elif status in (402, 403):
            message = f"Pipedrive refuses {what}: {reason}."
            fix = "Give the user API access, or the app the scopes contacts:full, deals:read, activities:full, " \
                "recents:read, contact-fields:full and users:read."  # fmt: skip
        elif status in (404, 410):
            message = f"Pipedrive has no such thing on {what}: {reason}."
            fix = "If it is a whole list, correct MAILHOUSE_PIPEDRIVE_BASE_URL."
        else:
            message = f"Pipedrive answers {status} to {what}: {reason}."
            fix = "Correct what it names, in Pipedrive or in content/crm.yaml."
        return PipedriveAnswerError(message, fix=fix, status=status, reason=reason, code=code)

    def _clean(self, value: object) -> str:
        text = str(value)
        for secret in (self._token, self._client_secret, self._refresh_token, self._access):
            if secret:
                text = text.replace(secret, "...")
        return text[:300]

    def _ask(
        self,
        method: str,
        path: str,
        what: str,
        *,
        cost: int,
        parameters: Mapping[str, str] | None = None,
        body: Any = None,
        is_safe: bool = True,
    ) -> dict[str, Any]:
        self._burst.is_search = path.endswith("/search")
        response = self.request(
            method,
            path,
            what=what,
            params=parameters,
            body=body,
            cost=cost,
            pace=self._searches if self._burst.is_search else None,
            is_safe=is_safe,
        )
        return response.json()

    def check(self) -> str:
        """See `Connector.check`."""
        user = _dict(self._ask("GET", "/v1/users/me", "look-up of our user", cost=2).get("data"))
        return f"{_text(user.get('company_name'))}, as {_text(user.get('name'))}".strip(", ")

    # Reading

    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        """See `Connector.pull`. The cursor holds how far each list was read.

        A load from scratch (`since` None) does not look for people, organisations and activities that were deleted
        before it began.
        """
        require(self, pull=kind)
        positions = _positions(since)
        rows: list[Row] = []
        try:
            for stream in _streams(kind):
                for records in self._changed(stream, positions.setdefault(stream.name, _Position())):
                    if kind in _RECENT and "gone" not in positions:
                        # from the first answer on, so that what is deleted during a long load is found
                        positions["gone"] = _Position(since=_rfc3339(self._server_now - SETTLED))
                    rows += [self._row(kind, record, is_gone=stream.is_gone) for record in records]
                    if len(rows) >= BATCH:
                        yield _pulled(rows, positions)
                        rows = []
            if kind in _RECENT:
                for gone in self._gone(kind, positions["gone"]):
                    rows += gone
                    if len(rows) >= BATCH:
                        yield _pulled(rows, positions)
                        rows = []
        except CrmError:
            # what came before the trouble is good
            if rows:
                yield _pulled(rows, positions)
            raise
        yield _pulled(rows, positions)

    def _changed(self, stream: _Stream, position: _Position) -> Iterator[list[dict[str, Any]]]:
        """Pages of one list, in order of time; the position is moved before each is handed over."""
        has_waited = False
        while True:
            parameters = {
                "sort_by": "update_time",
                "sort_direction": "asc",
                "limit": str(PAGE),
                **stream.parameters,
            }
            if position.since:
                parameters["updated_since"] = position.since
            if position.following:
                parameters["cursor"] = position.following
            try:
                answer = self._ask(
                    "GET",
                    stream.path,
                    f"list of {stream.name} records",
                    cost=stream.cost,
                    parameters=parameters,
                )
            except PipedriveAnswerError as error:
                if not position.following or error.status not in (400, 404, 422):
                    raise
                # a marker that Pipedrive does not take any more: go on by time
                position.since, position.following = position.seen or position.since, ""
                continue
            page = _records(answer)
            horizon = self._server_now - SETTLED
            over = [record for record in page if _changed_at(record) < horizon]
            times = [_changed_at(record) for record in over]
            if times and max(times) > _EPOCH:
                position.seen = max(position.seen, _rfc3339(max(times)))
            following = _following(answer)
            if len(over) == len(page) and following and following != position.following:
                position.following = following
                yield over
                continue
            is_more = len(over) < len(page) and not has_waited
            position.following = ""
            if is_more:
                # some are of seconds that are not over: wait for these, once
                has_waited = True
                position.since = position.seen or position.since
            elif position.seen:
                position.since = _rfc3339(_parsed(position.seen) - self._overlap)
            yield over
            if not is_more:
                return
            youngest = max(_changed_at(record) for record in page)
            wait = (youngest - self._server_now + SETTLED).total_seconds() + 1
            self._sleep(min(max(wait, 1.0), 10.0))

    def _gone(self, kind: Kind, position: _Position) -> Iterator[list[Row]]:
        """Batches of what was deleted since, each looked up before it is believed."""
        if self._server_now - _parsed(position.since) > KEPT:
            logger.warning(
                "Pipedrive was last asked for deleted %s more than %d days ago; it does not remember them that long.",
                _PATHS[kind],
                KEPT.days,
            )
        start = 0
        while True:
            # the parameter's own second may or may not belong to the answer
            asked = _parsed(position.since) - timedelta(seconds=1)
            answer = self._ask(
                "GET",
                "/v1/recents",
                "list of deleted records",
                cost=20,
                parameters={
                    "since_timestamp": asked.strftime("%Y-%m-%d %H:%M:%S"),
                    "items": _RECENT[kind],
                    "limit": str(PAGE),
                    "start": str(start),
                },
            )
            page = _records(answer)
            more = _dict(answer.get("additional_data"))
            is_more = bool(page) and _dict(more.get("pagination")).get("more_items_in_collection") is True
            last = _parsed_or_none(more.get("last_timestamp_on_page")) or _parsed(position.since)
            rows = self._believed(kind, page, last)
            if page:
                position.seen = max(position.seen, _rfc3339(min(last, self._server_now - SETTLED)))
            if not is_more:
                if position.seen:
                    position.since = _rfc3339(_parsed(position.seen) - self._overlap)
            elif position.seen > position.since:
                # by time rather than by offset: an offset skips what moves up behind it
                position.since, start = position.seen, 0
            else:
                start += len(page)
            yield rows
            if not is_more:
                return

    def _believed(self, kind: Kind, page: Sequence[dict[str, Any]], last: datetime) -> list[Row]:
        suspects: dict[str, tuple[datetime, str]] = {}
        for item in page:
            record, number = _dict(item.get("data")), _number(item)
            at = _parsed_or_none(record.get("update_time")) or last
            other = str(record.get("merge_what_id") or "")
            if not record or record.get("active_flag") is False or record.get("is_deleted") is True:
                into = other if other != number else suspects.get(number, (at, ""))[1]
                suspects[number] = (at, into)
            elif other and other != number:
                # the one that stayed names the other
                suspects[other] = (suspects.get(other, (at, ""))[0], number)
        alive: set[str] = set()
        numbers = sorted(suspects, key=int)
        for index in range(0, len(numbers), IDS):
            alive |= set(self._look_up(kind, numbers[index : index + IDS]))
        return [
            # a deletion that turns out to be a merge is a version of its own
            Row(number, at + (2 * _TICK if into else _TICK), True, into, "{}")
            for number, (at, into) in suspects.items()
            if number not in alive
        ]

    def look_up(self, kind: Kind, ids: Sequence[str]) -> Pulled:
        """See `Connector.look_up`. Into whom a record was merged is not told here, but by webhooks and `pull`.

        A record whose second is not over may still change within it: it is a version a moment older.
        """
        require(self, pull=kind)
        numbers = [number for number in dict.fromkeys(ids) if number.isdigit()]
        rows: list[Row] = []
        for index in range(0, len(numbers), IDS):
            part = numbers[index : index + IDS]
            found = self._look_up(kind, part)
            settled = self._server_now - SETTLED
            rows += [
                row if row.updated_at <= settled else row._replace(updated_at=row.updated_at - _TICK)
                for row in (self._row(kind, record, is_gone=False) for record in found.values())
            ]
            # when it was deleted is not told: a moment that is over, so that no later version has its time
            at = (self._server_now - SETTLED).replace(microsecond=0) + _TICK
            rows += [Row(number, at, True, "", "{}") for number in part if number not in found]
        return Pulled(table_of(rows), "")

    def merged(self, merges: Sequence[tuple[str, datetime, str]]) -> pa.Table:
        """See `Connector.merged`: the version that `pull` would make of the same merge."""
        return table_of(
            [
                Row(number, at.astimezone(UTC).replace(microsecond=0) + 2 * _TICK, True, into, "{}")
                for number, at, into in merges
            ]
        )

    def _look_up(self, kind: Kind, numbers: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Records that are there, by id; at most `IDS`."""
        wanted = [number for number in numbers if number.isdigit()]
        if not wanted:
            return {}
        if len(wanted) == 1:
            found = [self._get(kind, wanted[0])]
        else:
            found = self._listed(f"/api/v2/{_PATHS[kind]}", _LIST, wanted)
        if kind == "deal" and len(wanted) > 1:
            # the list leaves archived ones out
            left = sorted(set(wanted) - {_number(record) for record in found}, key=int)
            found += self._listed("/api/v2/deals/archived", 20, left) if left else []
        return {
            _number(record): record for record in found if record and record.get("is_deleted") is not True
        }

    def _listed(self, path: str, cost: int, numbers: Sequence[str]) -> list[dict[str, Any]]:
        parameters = {"ids": ",".join(numbers), "limit": str(IDS)}
        return _records(self._ask("GET", path, "look-up of records", cost=cost, parameters=parameters))

    def _get(self, kind: Kind, number: str) -> dict[str, Any]:
        try:
            answer = self._ask("GET", f"/api/v2/{_PATHS[kind]}/{number}", "look-up of a record", cost=_GET)
        except PipedriveAnswerError as error:
            if error.status not in (404, 410):
                raise
            return {}
        return _dict(answer.get("data"))

    def _row(self, kind: Kind, record: dict[str, Any], *, is_gone: bool) -> Row:
        at = _changed_at(record)
        if is_gone or record.get("is_deleted") is True:
            return Row(_number(record), at + _TICK, True, "", "{}")
        named = {name: value for name, value in record.items() if name != "custom_fields"}
        given = {
            key: value for key, value in _dict(record.get("custom_fields")).items() if not _is_empty(value)
        }
        if given:
            known = self._known(kind, given)
            for key, value in given.items():
                one = known.get(key)
                named[one.name if one else key] = _shown(value, one.labels if one else {})
        if kind == "contact":
            named |= _person(record, named)
            named["created_at"] = named.pop("add_time", None)
        named = {name: value for name, value in named.items() if not _is_empty(value)}
        text = json.dumps(named, ensure_ascii=False, separators=(",", ":"))
        # half of a surrogate pair, which JSON can spell, is no UTF-8
        return Row(_number(record), at, False, "", text.encode("utf-8", "replace").decode())

    def _known(self, kind: Kind, keys: Iterable[str]) -> Mapping[str, _Known]:
        """Custom fields by Pipedrive's keys; those that were made since we looked are looked up, once."""
        if kind not in _FIELDS_OF:
            return {}
        known = self._fields(kind)
        unknown = set(keys) - known.by_key.keys() - self._strange
        if unknown:
            self._strange |= unknown
            known = self._fields(kind, is_fresh=True)
        return known.by_key

    def _fields(self, kind: Kind, *, is_fresh: bool = False) -> _CustomFields:
        if is_fresh or kind not in self._custom:
            found: list[dict[str, Any]] = []
            cursor = ""
            while True:
                parameters = {"limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
                answer = self._ask(
                    "GET",
                    f"/api/v2/{_FIELDS_OF[kind]}",
                    "list of fields",
                    cost=_LIST,
                    parameters=parameters,
                )
                found += objects_of(answer.get("data"))
                following = _following(answer)
                if not following or following == cursor:
                    break
                cursor = following
            self._custom[kind] = _CustomFields(found)
        return self._custom[kind]

    # Custom fields

    def set_up(self, fields: Sequence[CustomField]) -> SetUp:
        """See `Connector.set_up`. The field's label ends with its name in brackets, by which it is known again.

        People may rename what stands before the brackets. Choices that a field lacks are added to it.
        """
        known = self._fields("contact", is_fresh=True)
        made: list[str] = []
        kept: list[str] = []
        for one in fields:
            type_, able = _TYPES[one.type]
            labels = list(_YES_NO.values()) if one.type == "boolean" else list(one.options)
            there = known.by_name.get(one.name)
            if there is not None and there.type not in able:
                raise CrmRefusedError(
                    f"Pipedrive has a field {there.label!r} of type {there.type}; {one.name} needs {type_}.",
                    fix="Rename or delete that field in Pipedrive's settings (Data fields, Person), then run again.",
                )
            if there is None:
                self._make_field(one, type_, labels)
                made.append(one.name)
                continue
            kept.append(one.name)
            missing = [label for label in labels if label.casefold() not in there.options]
            if missing:
                self._ask(
                    "POST",
                    f"/api/v2/personFields/{there.key}/options",
                    "making of options",
                    cost=_WRITE,
                    body=[{"label": label} for label in missing],
                    is_safe=False,
                )
        self._custom.pop("contact", None)
        return SetUp(tuple(made), tuple(kept))

    def _make_field(self, one: CustomField, type_: str, labels: Sequence[str]) -> None:
        body: dict[str, Any] = {"field_name": _label(one), "field_type": type_}
        if type_ == "enum":
            body["options"] = [{"label": label} for label in labels]
        try:
            self._ask(
                "POST", "/api/v2/personFields", "making of a field", cost=_WRITE, body=body, is_safe=False
            )
        except CrmUnavailableError:
            # perhaps it was made, and only the answer was lost
            if one.name not in self._fields("contact", is_fresh=True).by_name:
                raise

    # Writing

    def unwritable(self, names: Sequence[str]) -> Mapping[str, str]:
        """See `Connector.unwritable`. Asks for the custom fields, unless they are known."""
        wanted = [name for name in names if name not in _OWN_FIELDS]
        known = self._fields("contact").by_name if wanted else {}
        return {name: f"{_LABEL_IT} in Pipedrive" for name in wanted if name not in known}

    def push(self, kind: Kind, changes: Sequence[Change]) -> list[Pushed]:
        """See `Connector.push`.

        A contact's fields: email, phone, mobile_phone, first_name, last_name (Pipedrive keeps one name and divides it
        itself), and custom fields by our name or by their label in lower case with _ (`country` is a field labelled
        Country). A task's: `subject`, `note`, `due_at`, `is_done`, `type`, `owner` (address, name or id of a user),
        `deal_id`, and the contact that it is about, by `contact_id` (Pipedrive's) or `email`.
        """
        require(self, push=kind)
        pushing = _Pushing(self)
        results: list[Pushed] = []
        has_written = False
        for start in range(0, len(changes), IDS):
            chunk = changes[start : start + IDS]
            try:
                pushing.read(kind, {change.external_id for change in chunk if change.external_id})
            except CrmError as error:
                if not has_written:
                    raise
                results += [_failed(change, error) for change in changes[len(results) :]]
                return results
            for change in chunk:
                try:
                    result = pushing.contact(change) if kind == "contact" else pushing.task(change)
                except (CrmUnavailableError, CrmRefusedError) as error:
                    if not has_written:
                        raise
                    results += [_failed(rest, error) for rest in changes[len(results) :]]
                    return results
                has_written = has_written or result.status in ("written", "created")
                results.append(result)
        return results

    def erase(self, kind: Kind, ids: Sequence[str]) -> list[Removed]:
        """See `Connector.erase`. Pipedrive keeps a deleted person for 30 days, then deletes it for good."""
        require(self, erase=kind)
        results = {number: self._erase(number) for number in dict.fromkeys(ids)}
        return [results[number] for number in ids]

    def _erase(self, number: str) -> Removed:
        if not number.isdigit():
            return Removed(number, "gone")
        try:
            self._ask("DELETE", f"/api/v2/persons/{number}", "deletion of a person", cost=_DELETE)
        except PipedriveAnswerError as error:
            if error.status in (404, 410):
                return Removed(number, "gone")
            if error.status not in (400, 409, 422):
                raise
            return Removed(number, "refused", error.reason)
        return Removed(number, "erased")


class _Pushing:
    """One `push`: what was read and made during it."""

    def __init__(self, crm: Pipedrive) -> None:
        self._crm = crm
        self._records: dict[str, dict[str, Any]] = {}
        self._ours: set[str] = set()
        self._by_email: dict[str, str] = {}
        self._new: dict[str, str] | None = None
        self._users: dict[str, int] | None = None

    def read(self, kind: Kind, numbers: set[str]) -> None:
        """Look up the records of the next changes."""
        self._records |= self._crm._look_up(kind, sorted(numbers - self._ours))

    # Contacts

    def contact(self, change: Change) -> Pushed:
        """Write one change of a person."""
        number = change.external_id
        if not number:
            email = str(change.fields.get("email") or "").strip()
            if "@" not in email:
                return _result(
                    change, "invalid", reason="without an id a contact needs an address to be found by"
                )
            number = self._find(email)
            if number and number not in self._records:
                self.read("contact", {number})
            if not number or number not in self._records:
                return self._create(change, email)
        record = self._records.get(number)
        if record is None:
            return _result(change, "gone", number, reason="Pipedrive does not have this person any more")
        if (
            not change.fields.keys().isdisjoint({"email", "phone", "mobile_phone"})
            and number not in self._ours
        ):
            # lists are written whole: what was added to them meanwhile would be lost
            record = self._crm._get("contact", number)
            if not record or record.get("is_deleted") is True:
                return _result(change, "gone", number, reason="Pipedrive does not have this person any more")
        at = _changed_at(record)
        known = change.known_updated_at
        if (
            known is not None
            and number not in self._ours
            and at > known.astimezone(UTC).replace(microsecond=0)
        ):
            return _result(change, "conflict", number, at, "the person has changed since")
        try:
            body = self._body(change.fields, record)
        except ValueError as error:
            return _result(change, "invalid", number, reason=str(error))
        if not body:
            return _result(change, "written", number, at)
        try:
            answer = self._crm._ask(
                "PATCH", f"/api/v2/persons/{number}", "change of a person", cost=_WRITE, body=body
            )
        except PipedriveAnswerError as error:
            return _judged(change, number, error)
        return self._written(change, "written", _dict(answer.get("data")), number)

    def _written(
        self, change: Change, status: PushStatus, record: dict[str, Any], number: str = ""
    ) -> Pushed:
        number = _number(record) if record.get("id") is not None else number
        self._records[number] = record
        self._ours.add(number)
        self._by_email |= {address.casefold(): number for address in _addresses(record)}
        at = _changed_at(record)
        return _result(change, status, number, at if at > _EPOCH else None)

    def _find(self, email: str) -> str:
        """Id of the person with an address, '' if there is none; of several the oldest."""
        low = email.casefold()
        if low in self._by_email:
            return self._by_email[low]
        answer = self._crm._ask(
            "GET",
            "/api/v2/persons/search",
            "search of a person",
            cost=_SEARCH,
            parameters={"term": email, "fields": "email", "exact_match": "true", "limit": str(IDS)},
        )
        items = [_dict(found.get("item")) for found in objects_of(_dict(answer.get("data")).get("items"))]
        numbers = [
            _number(item)
            for item in items
            if low in {str(one).casefold() for one in item.get("emails") or ()}
        ]
        # a person who was added a moment ago is not in the index of search
        number = min(numbers, key=int) if numbers else self._added().get(low, "")
        if number:
            self._by_email[low] = number
        return number

    def _added(self, *, is_fresh: bool = False) -> dict[str, str]:
        """Addresses of people that were added or changed of late, listed once a push."""
        if self._new is None or is_fresh:
            self._new = {}
            since = _rfc3339(self._crm._server_now - NEW)
            parameters = {"sort_by": "update_time", "limit": str(PAGE), "updated_since": since}
            cursor = ""
            while True:
                answer = self._crm._ask(
                    "GET",
                    "/api/v2/persons",
                    "list of new people",
                    cost=_LIST,
                    parameters=parameters | ({"cursor": cursor} if cursor else {}),
                )
                for record in _records(answer):
                    for address in _addresses(record):
                        self._new.setdefault(address.casefold(), _number(record))
                following = _following(answer)
                if not following or following == cursor:
                    break
                cursor = following
        return self._new

    def _create(self, change: Change, email: str) -> Pushed:
        try:
            body = self._body(change.fields, {})
        except ValueError as error:
            return _result(change, "invalid", reason=str(error))
        body.setdefault("name", email)
        try:
            answer = self._crm._ask(
                "POST", "/api/v2/persons", "making of a person", cost=_WRITE, body=body, is_safe=False
            )
        except PipedriveAnswerError as error:
            return _judged(change, "", error)
        except CrmUnavailableError as error:
            # whether it was made is not known; the list, unlike search, knows at once
            number = self._added(is_fresh=True).get(email.casefold(), "")
            if not number:
                return _failed(change, error)
            self.read("contact", {number})
            return self._written(change, "created", self._records.get(number, {}), number)
        return self._written(change, "created", _dict(answer.get("data")))

    def _body(self, fields: Mapping[str, Scalar], record: Mapping[str, Any]) -> dict[str, Any]:
        """What differs from the record, as Pipedrive takes it.

        Raises:
            ValueError: Pipedrive will never take it.
        """
        body: dict[str, Any] = {}
        custom: dict[str, Any] = {}
        for name, value in fields.items():
            if name == "email":
                _differing(body, "emails", _with_email(record, _text(value)), _entries(record, "emails"))
            elif name in ("phone", "mobile_phone"):
                before = body.get("phones", _entries(record, "phones"))
                after = _with_phone(before, _text(value), is_mobile=name == "mobile_phone")
                _differing(body, "phones", after, _entries(record, "phones"))
            elif name in ("first_name", "last_name"):
                continue
            elif name == "created_at":
                raise ValueError("created_at is Pipedrive's own and cannot be written")
            else:
                known = self._crm._fields("contact").by_name.get(name)
                if known is None:
                    hint = _LABEL_IT if name in FIELDS else "run `mailhouse crm setup`"
                    raise ValueError(f"Pipedrive's people have no field {name}: {hint}")
                written = known.written(name, value)
                if written != _dict(record.get("custom_fields")).get(known.key):
                    custom[known.key] = written
        if "first_name" in fields or "last_name" in fields:
            parts = [_text(fields.get(part, record.get(part))) for part in ("first_name", "last_name")]
            full = " ".join(part for part in parts if part)
            if not full and record:
                raise ValueError("a person in Pipedrive cannot be without a name")
            if full and parts != [_text(record.get(part)) for part in ("first_name", "last_name")]:
                body["name"] = full
        if custom:
            body["custom_fields"] = custom
        return body

    # Tasks

    def task(self, change: Change) -> Pushed:
        """Write one task; a new one is looked for first, among those of its contact, by a mark in its note."""
        mark = f"mailhouse:{hashlib.sha256(change.key.encode()).hexdigest()[:20]}"
        fields, number = change.fields, change.external_id
        try:
            person = self._person(fields)
            body = self._activity(fields, mark, person)
        except ValueError as error:
            return _result(change, "invalid", number, reason=str(error))
        if not number:
            if not person:
                return _result(
                    change, "invalid", reason="a task needs the contact it is about, one that Pipedrive has"
                )
            if not body.get("subject"):
                return _result(change, "invalid", reason="a task needs a subject")
            found = self._marked(person, mark)
            if found is None:
                return self._create_task(change, body, person, mark)
            number = _number(found)
            self._records[number] = found
        record = self._records.get(number)
        if record is None:
            return _result(change, "gone", number, reason="Pipedrive does not have this activity any more")
        at, known = _changed_at(record), change.known_updated_at
        if (
            known is not None
            and number not in self._ours
            and at > known.astimezone(UTC).replace(microsecond=0)
        ):
            return _result(change, "conflict", number, at, "the activity has changed since")
        if not change.external_id:
            # it was made before, and may have been worked on since
            return _result(change, "written", number, at)
        differing = {name: value for name, value in body.items() if record.get(name) != value}
        if differing.keys() <= {"participants"}:
            return _result(change, "written", number, at)
        try:
            answer = self._crm._ask(
                "PATCH", f"/api/v2/activities/{number}", "change of an activity", cost=_WRITE, body=differing
            )
        except PipedriveAnswerError as error:
            return _judged(change, number, error)
        return self._written(change, "written", _dict(answer.get("data")), number)

    def _person(self, fields: Mapping[str, Scalar]) -> str:
        number = _text(fields.get("contact_id"))
        if number:
            if not number.isdigit():
                raise ValueError(f"contact_id {number!r} is no id of Pipedrive's")
            return number
        email = _text(fields.get("email"))
        return self._find(email) if "@" in email else ""

    def _activity(self, fields: Mapping[str, Scalar], mark: str, person: str) -> dict[str, Any]:
        body: dict[str, Any] = {}
        for name, value in fields.items():
            if name in ("contact_id", "email"):
                continue
            if name == "subject":
                body["subject"] = _text(value)
            elif name == "note":
                body["note"] = html.escape(_text(value)).replace("\n", "<br>")
            elif name == "due_at":
                moment = _moment(name, value)
                body["due_date"] = moment.strftime("%Y-%m-%d") if moment else None
                body["due_time"] = moment.strftime("%H:%M:%S") if moment else None
            elif name == "is_done":
                body["done"] = bool(value)
            elif name == "type":
                body["type"] = _text(value) or "task"
            elif name == "owner":
                if owner := _text(value):
                    body["owner_id"] = self._owner(owner)
            elif name == "deal_id":
                body["deal_id"] = int(_text(value)) if _text(value).isdigit() else None
            else:
                raise ValueError(f"an activity in Pipedrive has no field {name}")
        if person:
            body["participants"] = [{"person_id": int(person), "primary": True}]
        if "note" in body or "subject" in body:
            note = body.get("note", "")
            body["note"] = f"{note}<br><small>{mark}</small>" if note else f"<small>{mark}</small>"
        return body

    def _owner(self, name: str) -> int:
        if name.isdigit():
            return int(name)
        if self._users is None:
            answer = self._crm._ask("GET", "/v1/users", "list of users", cost=20)
            self._users = {}
            for user in objects_of(answer.get("data")):
                if user.get("active_flag") is False:
                    continue
                for word in (user.get("email"), user.get("name")):
                    if word:
                        self._users.setdefault(str(word).casefold(), int(_number(user)))
        if name.casefold() not in self._users:
            raise ValueError(f"Pipedrive has no active user {name!r}; write the address or the name of one")
        return self._users[name.casefold()]

    def _marked(self, person: str, mark: str) -> dict[str, Any] | None:
        parameters = {
            "person_id": person,
            "sort_by": "add_time",
            "sort_direction": "desc",
            "limit": str(PAGE),
        }
        cursor = ""
        while True:
            answer = self._crm._ask(
                "GET",
                "/api/v2/activities",
                "list of a person's activities",
                cost=_LIST,
                parameters=parameters | ({"cursor": cursor} if cursor else {}),
            )
            for record in _records(answer):
                if mark in str(record.get("note") or ""):
                    return record
            following = _following(answer)
            if not following or following == cursor:
                return None
            cursor = following

    def _create_task(self, change: Change, body: dict[str, Any], person: str, mark: str) -> Pushed:
        body.setdefault("type", "task")
        try:
            answer = self._crm._ask(
                "POST", "/api/v2/activities", "making of an activity", cost=_WRITE, body=body, is_safe=False
            )
        except PipedriveAnswerError as error:
            return _judged(change, "", error)
        except CrmUnavailableError as error:
            found = self._marked(person, mark)
            return _failed(change, error) if found is None else self._written(change, "created", found)
        return self._written(change, "created", _dict(answer.get("data")))


@dataclass(frozen=True)
class _Known:
    """A custom field of Pipedrive's, under our name; `options` from labels in lower case to ids, `labels` back."""

    key: str
    name: str
    label: str
    type: str
    options: Mapping[str, int]
    labels: Mapping[int, str]

    def written(self, name: str, value: Scalar) -> Any:
        """A value as API v2 takes it.

        Raises:
            ValueError: the field cannot hold it.
        """
        if value is None or value == "":
            return None
        match self.type:
            case "varchar" | "varchar_auto" | "phone":
                text = _text(value)
                if len(text) > _VARCHAR:
                    raise ValueError(f"{name} is longer than {_VARCHAR} characters")
                return text
            case "text":
                return _text(value)
            case "double" | "int":
                try:
                    number = float(value)
                except ValueError:
                    raise ValueError(f"{name} is no number: {_text(value)[:40]!r}") from None
                return int(number) if number.is_integer() else number
            case "date":
                moment = _moment(name, value)
                return moment.strftime("%Y-%m-%d") if moment else None
            case "boolean":
                return bool(value)
            case "enum":
                return self._option(name, _text(value))
            case "set":
                return [
                    self._option(name, part.strip()) for part in _text(value).split(";") if part.strip()
                ] or None
            case _:
                raise ValueError(f"{name} is of a type that is not written: {self.type}")

    def _option(self, name: str, label: str) -> int:
        number = self.options.get(label.casefold(), self.options.get(_YES_NO.get(label.casefold(), "")))
        if number is None:
            raise ValueError(f"{name} has no option {label[:40]!r} in Pipedrive; run `mailhouse crm setup`")
        return number


class _CustomFields:
    """Custom fields of one kind of record, by Pipedrive's key and by our name."""

    def __init__(self, found: Iterable[Mapping[str, Any]]) -> None:
        self.by_key: dict[str, _Known] = {}
        self.by_name: dict[str, _Known] = {}
        for one in found:
            if one.get("is_custom_field") is not True:
                continue
            key, label = str(one.get("field_code")), str(one.get("field_name"))
            ours = _OUR_LABEL.search(label)
            name = ours[1] if ours else _slug(label)
            if not name or name in _OWN_NAMES or name in self.by_name:
                name = f"{name or 'field'}_{key[:8]}"
            labels = {
                int(option["id"]): str(option.get("label"))
                for option in objects_of(one.get("options"))
                if str(option.get("id", "")).isdigit()
            }
            options = {text.casefold(): number for number, text in labels.items()}
            self.by_key[key] = self.by_name[name] = _Known(
                key, name, label, str(one.get("field_type")), options, labels
            )


def _pulled(rows: Sequence[Row], positions: Mapping[str, _Position]) -> Pulled:
    said = {
        name: {key: value for key in ("since", "following", "seen") if (value := getattr(position, key))}
        for name, position in positions.items()
    }
    return Pulled(table_of(rows), json.dumps(said))


def _positions(cursor: str | None) -> dict[str, _Position]:
    if cursor is None:
        return {}
    try:
        said = json.loads(cursor)
        return {str(name): _Position(**position) for name, position in said.items()}
    except (ValueError, TypeError, AttributeError):
        raise CrmError(
            f"Pipedrive's cursor cannot be read: {cursor[:80]!r}.",
            fix="Delete its row in raw.crm_cursors: all records are read once more, and load once.",
        ) from None


# Records


def _records(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = objects_of(answer.get("data"))
    if broken := next((record for record in records if not str(record.get("id", "")).isdigit()), None):
        raise CrmError(
            f"Pipedrive's list has a record without an id: {sorted(broken)[:5]}.",
            fix="Correct MAILHOUSE_PIPEDRIVE_BASE_URL, or ask for a newer version of Mailhouse.",
        )
    return records


def _following(answer: Mapping[str, Any]) -> str:
    return str(_dict(answer.get("additional_data")).get("next_cursor") or "")


def _number(record: Mapping[str, Any]) -> str:
    return str(record["id"])


def _changed_at(record: Mapping[str, Any]) -> datetime:
    """When a record last changed, or was added; 1970 if it says neither."""
    for name in ("update_time", "add_time"):
        if (moment := _parsed_or_none(record.get(name))) is not None:
            return moment
    return _EPOCH


def _person(record: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Our names for what a person's lists and address hold."""
    address = _dict(record.get("postal_address"))
    emails, phones = _entries(record, "emails"), _entries(record, "phones")
    mobile = next((one for one in phones if str(one.get("label")).casefold() == "mobile"), {})
    landline = [one for one in phones if one is not mobile]
    return {
        "email": _primary(emails),
        "phone": _primary(landline),
        "mobile_phone": _text(mobile.get("value")),
        "country": named.get("country") or address.get("country"),
        "city": named.get("city") or address.get("locality"),
    }


def _entries(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for one in objects_of(record.get(name)) if _text(one.get("value"))]


def _primary(entries: Sequence[Mapping[str, Any]]) -> str:
    first = next((one for one in entries if one.get("primary")), entries[0] if entries else {})
    return _text(first.get("value"))


def _addresses(record: Mapping[str, Any]) -> list[str]:
    return [_text(one.get("value")) for one in _entries(record, "emails")]


def _with_email(record: Mapping[str, Any], email: str) -> list[dict[str, Any]]:
    """The list of addresses after the primary one has become another, or none."""
    entries = _entries(record, "emails")
    same = next((one for one in entries if _text(one.get("value")).casefold() == email.casefold()), None)
    if email and same is not None:
        return [
            {**one, "value": email, "primary": True} if one is same else {**one, "primary": False}
            for one in entries
        ]
    primary = next((one for one in entries if one.get("primary")), entries[0] if entries else None)
    others = [one for one in entries if one is not primary]
    if not email:
        return [{**one, "primary": index == 0} for index, one in enumerate(others)]
    label = str((primary or {}).get("label") or "work")
    return [{"value": email, "primary": True, "label": label}, *({**one, "primary": False} for one in others)]


def _with_phone(entries: Sequence[dict[str, Any]], phone: str, *, is_mobile: bool) -> list[dict[str, Any]]:
    """The list of numbers after the mobile one, or the first of the others, has become another, or none."""
    ours = [one for one in entries if (str(one.get("label")).casefold() == "mobile") == is_mobile]
    first = next((one for one in ours if one.get("primary")), ours[0] if ours else None)
    after: list[dict[str, Any]] = []
    for one in entries:
        if one is not first:
            after.append(one)
        elif phone:
            after.append({**one, "value": phone})
    if phone and first is None:
        after.append({"value": phone, "primary": not entries, "label": "mobile" if is_mobile else "work"})
    if after and not any(one.get("primary") for one in after):
        after[0] = {**after[0], "primary": True}
    return after


def _differing(body: dict[str, Any], name: str, after: Any, before: Any) -> None:
    if after != before:
        body[name] = after
    else:
        body.pop(name, None)


def _shown(value: Any, labels: Mapping[int, str]) -> Any:
    """A custom field's value as people see it: labels of options, `;` between several.

    Lists give labels beside ids if they are asked to; that of archived deals cannot, and gives ids.
    """
    if isinstance(value, dict) and "label" in value:
        return value["label"]
    if isinstance(value, list):
        return ";".join(str(_shown(part, labels)) for part in value)
    return labels.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _label(one: CustomField) -> str:
    if _slug(one.label) == one.name:
        return one.label
    return f"{one.label} ({one.name})" if one.name.startswith("mailhouse_") else one.name


def _slug(label: str) -> str:
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


# Results


def _result(
    change: Change, status: PushStatus, number: str = "", at: datetime | None = None, reason: str = ""
) -> Pushed:
    return Pushed(change.key, status, number or change.external_id, at, reason)


def _failed(change: Change, error: CrmError) -> Pushed:
    return _result(change, "failed", reason=error.message)


def _judged(change: Change, number: str, error: PipedriveAnswerError) -> Pushed:
    """What a refusal means for one change.

    Raises:
        PipedriveAnswerError: it is about the account, not about the change.
    """
    if error.status in (404, 410) and number:
        return _result(change, "gone", number, reason=error.reason)
    if error.code.startswith("feature_capping"):
        return _result(change, "failed", number, reason=error.reason)
    if error.status in (400, 409, 413, 422):
        return _result(change, "invalid", number, reason=error.reason)
    raise error


# Values


def _secret(value: SecretStr | None, name: str) -> str:
    text = value.get_secret_value().strip() if value is not None else ""
    if text and not is_header_text(text):
        raise SettingsError(
            f"Pipedrive's {name.removeprefix('pipedrive_')} is none: it has spaces or other strange characters.",
            fix=f"Set MAILHOUSE_{name.upper()} to it as Pipedrive shows it.",
        )
    return text


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        return _dict(response.json())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value).strip()


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _rfc3339(moment: datetime) -> str:
    # with milliseconds Pipedrive answers 400
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parsed(text: str) -> datetime:
    moment = _parsed_or_none(text)
    if moment is None:
        raise CrmError(
            f"Pipedrive's cursor has no time: {text[:40]!r}.",
            fix="Delete its row in raw.crm_cursors: all records are read once more, and load once.",
        )
    return moment


def _parsed_or_none(value: object) -> datetime | None:
    # v1 writes times of UTC without a zone
    moment = utc_time(value)
    return moment.replace(microsecond=0) if moment is not None else None


def _moment(name: str, value: Scalar) -> datetime | None:
    if value is None or value == "":
        return None
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{name} is no ISO 8601 time: {str(value)[:40]!r}") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _http_date(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
