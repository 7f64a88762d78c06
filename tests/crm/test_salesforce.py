"""Salesforce's records arrive completely and come back written once, whatever it does meanwhile."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from salesforce_fake import (
    CLIENT_ID,
    CLIENT_SECRET,
    INSTANCE,
    LOGIN,
    REFRESH_TOKEN,
    FakeSalesforce,
    error,
)

import crm.salesforce
from crm.base import (
    FIELDS,
    PULLED,
    Change,
    CrmNotSupportedError,
    CrmRefusedError,
    CrmUnavailableError,
    CustomField,
    Kind,
    Pushed,
)
from crm.salesforce import Salesforce
from crm.salesforce_login import forget_sessions
from crm.salesforce_records import api_name, our_name
from crm.settings import CrmSettings
from warehouse.errors import SettingsError
from warehouse.settings import MailhouseSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
CONTRACT = json.loads((Path(__file__).parent / "salesforce_contract.json").read_text())["calls"]
# not in the contract's pages
ELSEWHERE = re.compile(
    r"/services/data/v63\.0/(sobjects/(Contact|Task)/describe|tooling/sobjects/CustomField|jobs/query/\w+)"
)
SCORE = CustomField("mailhouse_engagement_score", "Engagement score", "number", "How much they read.")


def holds_to_contract(request: httpx.Request) -> None:
    """Fail on a call that Salesforce's pages do not allow."""
    path = request.url.path
    if ELSEWHERE.fullmatch(path) and request.method == ("POST" if "tooling" in path else "GET"):
        return
    for name, call in CONTRACT.items():
        method, _, template = name.partition(" ")
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if method != request.method or not re.fullmatch(pattern, path):
            continue
        values = dict(zip(re.findall(r"\{(\w+)\}", template), _parts(template, path), strict=True))
        for one in call.get("parameters", ()):
            given_ = {"query": request.url.params, "header": request.headers, "path": values}[one["in"]]
            value = given_.get(one["name"])
            assert value is not None or not one.get("required"), one
            if value is not None:
                of_type = {"integer": int, "boolean": json.loads}
                value = of_type.get(one["schema"].get("type"), str)(value)
                Draft202012Validator(one["schema"]).validate(value)
        known = {one["name"] for one in call.get("parameters", ()) if one["in"] == "query"}
        assert set(request.url.params) <= known, (name, set(request.url.params) - known)
        bodies = call.get("body")
        if not bodies:
            assert not request.content, name
            return
        type_ = request.headers["content-type"].partition(";")[0]
        text = request.content.decode()
        form = {name: values[0] for name, values in parse_qs(text).items()}
        body = json.loads(text) if type_ == "application/json" else form if "form" in type_ else text
        Draft202012Validator(bodies[type_]).validate(body)
        return
    raise AssertionError(f"no such call: {request.method} {path}")


def _parts(template: str, path: str) -> list[str]:
    pairs = zip(template.split("/"), path.split("/"), strict=True)
    return [there for here, there in pairs if here.startswith("{")]


class Account:
    """A fake, settings that reach it, and how long its clients would have waited."""

    def __init__(self, fake: FakeSalesforce, **settings: Any) -> None:
        self.fake = fake
        fake.check = holds_to_contract
        self.waits: list[float] = []
        self.values: dict[str, Any] = {
            "salesforce_client_id": CLIENT_ID,
            "salesforce_client_secret": CLIENT_SECRET,
            "salesforce_login_url": LOGIN,
            "salesforce_overlap": 60,
            **settings,
        }
        # reading the environment takes longer than the tests
        self._settings: dict[str, CrmSettings] = {}

    def connect(self, **changes: Any) -> Salesforce:
        name = repr(sorted(changes.items()))
        known = self._settings.get(name) or CrmSettings.model_validate({**self.values, **changes})
        self._settings[name] = known
        return Salesforce.from_settings(
            known, transport=httpx.MockTransport(self.fake), sleep=self.waits.append
        )

    def pull(
        self, kind: Kind = "contact", since: str | None = None, *, batches: int | None = None, **changes: Any
    ) -> tuple[list[dict[str, Any]], str | None]:
        """All rows of so many batches, and the cursor after them."""
        rows: list[dict[str, Any]] = []
        with self.connect(**changes) as connector:
            for number, batch in enumerate(connector.pull(kind, since), 1):
                assert batch.rows.schema == PULLED
                rows += batch.rows.to_pylist()
                since = batch.cursor
                if number == batches:
                    break
        for row in rows:
            row["properties"] = json.loads(row["properties"])
        return rows, since

    def push(self, *changes: Change, kind: Kind = "contact", **settings: Any) -> list[Pushed]:
        with self.connect(**settings) as connector:
            results = connector.push(kind, changes)
        assert [result.key for result in results] == [change.key for change in changes]
        return results

    def set_up(self) -> None:
        self.fake.custom("Contact", "Mailhouse_Key__c", is_external_id=True)
        self.fake.custom("Task", "Mailhouse_Key__c", is_external_id=True)
        self.fake.custom("Contact", "Mailhouse_Engagement_Score__c", "double")

    def fill(self, count: int, *, step: float = 1) -> list[str]:
        return [
            self.fake.put(
                stamp=START + timedelta(seconds=index * step), Email=f"p{index}@example.com", LastName="Pat"
            )
            for index in range(count)
        ]


@pytest.fixture
def org() -> Iterator[Account]:
    forget_sessions()
    yield Account(FakeSalesforce(now=START + timedelta(days=30)))
    forget_sessions()


# reading


def test_records_arrive_under_our_names(org: Account) -> None:
    org.fake.custom("Contact", "Language__c")
    org.fake.custom("Contact", "Mailhouse_Engagement_Score__c", "double")
    account = org.fake.put("Account", Name="Example Ltd", Website="https://example.com")
    number = org.fake.put(
        stamp=START,
        Email="Ann@example.com",
        FirstName="Ann",
        LastName="Ö",
        MailingCity="Graz",
        AccountId=account,
        Language__c="de-at",
        Mailhouse_Engagement_Score__c=12.5,
    )
    unnamed = org.fake.put(
        stamp=START + timedelta(seconds=1), Email="b@example.com", LastName="[not provided]"
    )
    fields = ["locale=Language__c", "Mailhouse_Engagement_Score__c", "Account.Name"]
    for bulk_from in (20_000, 0):
        rows, _ = org.pull(salesforce_properties={"Contact": fields}, salesforce_bulk_from=bulk_from)
        first, second = sorted(rows, key=lambda row: row["external_id"])
        assert first == {
            "external_id": number,
            "updated_at": START,
            "is_deleted": False,
            "merged_into": "",
            "properties": {
                "email": "Ann@example.com",
                "first_name": "Ann",
                "last_name": "Ö",
                "city": "Graz",
                "created_at": "2026-01-01T00:00:00.000Z",
                "AccountId": account,
                "HasOptedOutOfEmail": "false",
                "locale": "de-at",
                "mailhouse_engagement_score": "12.5",
                "Account.Name": "Example Ltd",
            },
        }
        assert second["external_id"] == unnamed
        assert "last_name" not in second["properties"]


@pytest.mark.parametrize("bulk_from", [0, 20_000])
def test_companies_deals_and_tasks(org: Account, bulk_from: int) -> None:
    company = org.fake.put("Account", Name="Example Ltd", stamp=START)
    other = org.fake.put("Account", Name="Example Limited", stamp=START)
    org.fake.delete(other, merged_into=company, sobject="Account")
    deal = org.fake.put(
        "Opportunity",
        Name="Lamps",
        StageName="Closed Won",
        IsClosed=True,
        IsWon=True,
        Amount=12.5,
        stamp=START,
    )
    task = org.fake.put("Task", Subject="Call", Status="Completed", IsClosed=True, WhoId="003x", stamp=START)
    found = {
        kind: {row["external_id"]: row for row in org.pull(kind, salesforce_bulk_from=bulk_from)[0]}
        for kind in ("company", "deal", "task")
    }
    assert (found["company"][other]["is_deleted"], found["company"][other]["merged_into"]) == (True, company)
    assert found["company"][company]["merged_into"] == ""
    assert found["deal"][deal]["properties"] == {
        "Name": "Lamps",
        "StageName": "Closed Won",
        "IsClosed": "true",
        "IsWon": "true",
        "Amount": "12.5",
        "CreatedDate": "2026-01-01T00:00:00.000Z",
    }
    assert found["task"][task]["properties"]["WhoId"] == "003x"


@pytest.mark.parametrize("count", [0, 1, 2_000, 2_001])
def test_pages_of_2000_cost_the_least_calls(org: Account, count: int) -> None:
    org.fill(count)
    rows, cursor = org.pull()
    assert len({row["external_id"] for row in rows}) == len(rows) == count
    # one to log in, one to count
    assert len(org.fake.calls) == 2 + count // 2_000 + 1
    assert cursor is not None
    org.fake.now += timedelta(minutes=5)
    again, following = org.pull(since=cursor)
    # the overlap is read again, and no more
    assert len(again) == min(count, 61)
    assert json.loads(following or "") == json.loads(cursor) or count == 0


def test_many_changed_in_the_same_second(org: Account) -> None:
    org.fill(2_500, step=0)
    rows, _ = org.pull()
    assert len({row["external_id"] for row in rows}) == len(rows) == 2_500


def test_a_server_that_cuts_pages_short_is_followed(org: Account) -> None:
    org.fake.page = 700
    org.fill(2_500)
    rows, _ = org.pull()
    assert len({row["external_id"] for row in rows}) == len(rows) == 2_500
    assert not [call for call in org.fake.calls if "01g" in call.url.path], "a page of an old result was read"


def test_deleted_and_merged_records_are_followed(org: Account) -> None:
    one, two, three = org.fill(3)
    rows, cursor = org.pull()
    assert not any(row["is_deleted"] for row in rows)
    org.fake.now += timedelta(hours=1)
    org.fake.delete(one)
    org.fake.delete(two, merged_into=three)
    rows, _ = org.pull(since=cursor)
    last = {row["external_id"]: (row["is_deleted"], row["merged_into"]) for row in rows}
    assert last == {one: (True, ""), two: (True, three), three: (False, "")}


def test_a_query_that_takes_too_long_is_made_smaller(org: Account) -> None:
    org.fill(1_200)
    slow = {"count": 0}

    def before(request: httpx.Request) -> None:
        limit = re.search(r"LIMIT (\d+)", request.url.params.get("q", ""))
        if limit and int(limit[1]) > 500:
            slow["count"] += 1
            org.fake.failures.append(
                error(400, "QUERY_TIMEOUT", "Your query request was running for too long.")
            )

    org.fake.before = before
    rows, _ = org.pull()
    assert len({row["external_id"] for row in rows}) == 1_200
    assert slow["count"] == 1
    org.fake.before = lambda request: org.fake.failures.append(error(400, "QUERY_TIMEOUT", "too long"))
    with pytest.raises(CrmUnavailableError, match="too long"):
        list(org.connect().pull("contact", '{"until":"2026-01-01T00:00:00.000Z"}'))


def test_a_field_that_is_hidden_is_left_out_and_one_that_was_asked_for_is_an_error(
    org: Account, caplog: pytest.LogCaptureFixture
) -> None:
    org.fill(3)
    org.fake.fields["Contact"]["HasOptedOutOfEmail"].is_visible = False
    for bulk_from in (0, 20_000):
        rows, _ = org.pull(salesforce_bulk_from=bulk_from)
        assert len(rows) == 3
    assert "Contact.HasOptedOutOfEmail" in caplog.text
    for bulk_from in (0, 20_000):
        with pytest.raises(CrmRefusedError, match="Level__c") as refused:
            org.pull(salesforce_properties={"Contact": ["Level__c"]}, salesforce_bulk_from=bulk_from)
        assert "MAILHOUSE_SALESFORCE_PROPERTIES" in refused.value.fix
    org.fake.fields["Contact"]["Email"].is_visible = False
    with pytest.raises(CrmRefusedError, match="'Email'"):
        org.pull()


@pytest.mark.parametrize("has_headers", [True, False])
def test_a_large_first_load_is_a_job(
    org: Account, monkeypatch: pytest.MonkeyPatch, has_headers: bool
) -> None:
    monkeypatch.setattr(crm.salesforce, "BULK_ROWS", 500)
    org.fake.has_headers = has_headers
    numbers = org.fill(2_250)
    org.fake.put(id=numbers[3], Email='comma,"quote"\nline@example.com', LastName="Ö", stamp=START)
    org.fake.delete(numbers[0], merged_into=numbers[1])
    rows, cursor = org.pull(salesforce_bulk_from=2_000)
    assert len({row["external_id"] for row in rows}) == len(rows) == 2_250
    by_id = {row["external_id"]: row for row in rows}
    assert by_id[numbers[3]]["properties"]["email"] == 'comma,"quote"\nline@example.com'
    assert by_id[numbers[0]]["merged_into"] == numbers[1]
    # log in, count, start, two questions whether it is done, five parts
    assert len(org.fake.calls) == 10
    assert json.loads(cursor or "") == {"until": "2026-01-31T00:00:00.000Z"}


def test_a_load_in_bulk_goes_on_after_a_kill_at_any_batch(
    org: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crm.salesforce, "BULK_ROWS", 100)
    numbers = set(org.fill(450))
    for killed_after in range(1, 7):
        rows, cursor = org.pull(salesforce_bulk_from=0, batches=killed_after)
        jobs = len(org.fake.jobs)
        rest, cursor = org.pull(since=cursor, salesforce_bulk_from=0)
        assert len(org.fake.jobs) == jobs, "the job was not found again"
        assert {row["external_id"] for row in rows + rest} == numbers
        if killed_after < 6:
            assert len(rows) + len(rest) == 450, "a part was read twice"
        assert "until" in (cursor or "")


@pytest.mark.parametrize("what", ["gone", "failed", "expired"])
def test_a_job_that_is_gone_is_begun_anew(org: Account, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(crm.salesforce, "BULK_ROWS", 100)
    numbers = set(org.fill(250))
    _, cursor = org.pull(salesforce_bulk_from=0, batches=2)
    ((number, job),) = org.fake.jobs.items()
    if what == "gone":
        del org.fake.jobs[number]
    elif what == "failed":
        job.state, job.trouble = "Aborted", "somebody aborted it"
    else:

        def before(request: httpx.Request) -> None:
            if request.url.path.endswith(f"{number}/results"):
                org.fake.failures.append(error(404, "NOT_FOUND", "the results have expired"))

        org.fake.before = before
    rows, cursor = org.pull(since=cursor, salesforce_bulk_from=0)
    assert {row["external_id"] for row in rows} == numbers
    assert "until" in (cursor or "")


def test_a_job_that_fails_is_told(org: Account) -> None:
    org.fill(1)
    original = org.fake._job

    def fail(number: str) -> httpx.Response:
        org.fake.jobs[number].trouble = "InternalServerError : boom"
        return original(number)

    org.fake._job = fail  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(CrmRefusedError, match="boom"):
        org.pull(salesforce_bulk_from=0)


@pytest.mark.parametrize(
    "cursor", ["", "{}", "[]", "7", '{"at":"2026-01-01"}', '{"at":"2026-01-01","id":"\' OR"}']
)
def test_a_cursor_that_is_none_is_refused(org: Account, cursor: str) -> None:
    with pytest.raises(CrmRefusedError, match="no place"):
        org.pull(since=cursor)


def test_records_loaded_before_there_were_cursors(org: Account) -> None:
    org.fill(300)
    cursor = org.connect().resume_after("contact", START + timedelta(seconds=200))
    rows, _ = org.pull(since=cursor)
    assert len(rows) == 300 - 200 + 60


def test_single_records_are_looked_up(org: Account) -> None:
    numbers = org.fill(5)
    org.fake.fields["Contact"]["LeadSource"].is_visible = False
    org.fake.delete(numbers[0])
    org.fake.delete(numbers[1], merged_into=numbers[2])
    with org.connect() as connector:
        found = connector.look_up("contact", [numbers[0], numbers[1], numbers[3], "003000000009999AAA", "x"])
        assert connector.look_up("contact", []).rows.num_rows == 0
    assert found.cursor == ""
    rows = {row["external_id"]: (row["is_deleted"], row["merged_into"]) for row in found.rows.to_pylist()}
    assert rows == {
        numbers[0]: (True, ""), numbers[1]: (True, numbers[2]), numbers[2]: (False, ""), numbers[3]: (False, ""),
        "003000000009999AAA": (True, ""), "x": (True, ""),
    }  # fmt: skip


edits = st.lists(
    st.tuples(
        st.sampled_from(["edit", "edit", "make", "delete", "merge", "slow", "wait"]),
        st.integers(0, 30),
        st.integers(0, 50),
    ),
    max_size=6,
)


@settings(max_examples=30)
@given(
    start=st.integers(0, 30),
    steps=st.lists(st.tuples(edits, st.booleans(), st.integers(1, 4)), min_size=1, max_size=8),
    pause=st.integers(0, 30),
    bulk=st.booleans(),
)
def test_no_record_is_missed_whatever_happens_meanwhile(
    start: int, steps: list[tuple[list[tuple[str, int, int]], bool, int]], pause: int, bulk: bool
) -> None:
    """Edits between any two calls, transactions that end late, and kills: the last version of all records arrives."""
    forget_sessions()
    org = Account(FakeSalesforce(now=START + timedelta(days=1)), salesforce_bulk_from=0 if bulk else 20_000)
    fake, pages, known = org.fake, 5, dict[str, dict[datetime, tuple[bool, str, str]]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crm.salesforce, "PAGE", pages)
        patch.setattr(crm.salesforce, "BULK_ROWS", pages)
        numbers = [
            fake.put(stamp=START + timedelta(seconds=index // 3), LastName="A") for index in range(start)
        ]
        queue = [batch for batch, _, _ in steps]

        def act(what: str, which: int, late: int) -> None:
            alive = [number for number in numbers if not fake.records["Contact"][number].is_deleted]
            if what == "wait":
                fake.now += timedelta(seconds=late)
            elif what == "make" or not alive:
                numbers.append(fake.put(LastName="New", seen_after=late if what == "slow" else 0))
            elif what == "edit":
                fake.put(id=alive[which % len(alive)], LastName=f"Edited {len(fake.calls)} {which}")
            elif what == "slow":
                # a new record whose transaction ends later: others are stamped and seen before it
                numbers.append(fake.put(LastName="Slow", seen_after=late))
            elif what == "delete":
                fake.delete(alive[which % len(alive)])
            elif len(alive) > 1:
                fake.delete(alive[which % len(alive)], merged_into=alive[(which + 1) % len(alive)])

        def before(request: httpx.Request) -> None:
            if "/services/data" in request.url.path and queue:
                for one in queue.pop(0):
                    act(*one)

        fake.before = before
        cursor: str | None = None

        def store(rows: list[dict[str, Any]]) -> None:
            # as the warehouse does: a version that is there stays as it is
            for row in rows:
                last_name = row["properties"]["last_name"]
                version = (row["is_deleted"], row["merged_into"], last_name)
                known.setdefault(row["external_id"], {}).setdefault(row["updated_at"], version)

        for _, is_killed, batches in steps:
            rows, cursor = org.pull(since=cursor, batches=batches if is_killed else None)
            store(rows)
            fake.now += timedelta(seconds=pause)
        fake.before = lambda request: None
        # all transactions are over; what is on its way arrives
        fake.now += timedelta(seconds=60)
        for _ in range(2):
            rows, cursor = org.pull(since=cursor)
            store(rows)
    expected = {
        number: (
            record.is_deleted,
            record.fields.get("MasterRecordId", ""),
            record.fields["LastName"],
        )
        for number, record in fake.records["Contact"].items()
    }
    assert {number: versions[max(versions)] for number, versions in known.items()} == expected


def test_a_reading_that_takes_longer_than_the_overlap(org: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on its way when it began is behind the newest stamp by more than an overlap when it ends."""
    monkeypatch.setattr(crm.salesforce, "PAGE", 5)
    org.connect().check()
    org.fake.now = START + timedelta(seconds=30)
    org.fill(20)
    late = org.fake.put(stamp=START + timedelta(seconds=2), seen_after=55, LastName="Late")

    def before(request: httpx.Request) -> None:
        if org.fake.count("queryAll") in (2, 3, 4):
            org.fake.now += timedelta(seconds=40)
            org.fake.put(LastName="New")

    org.fake.before = before
    rows, cursor = org.pull(since='{"until":"2026-01-01T00:00:00.000Z"}')
    assert len(rows) == 23 and late not in {row["external_id"] for row in rows}
    again, _ = org.pull(since=cursor)
    assert late in {row["external_id"] for row in again}


# logging in, limits, failures


def test_a_session_is_kept_in_the_process_and_renewed_once(org: Account) -> None:
    org.fill(1)
    org.pull()
    org.pull()
    assert len(org.fake.logins) == 1
    org.fake.expire()
    org.pull()
    assert len(org.fake.logins) == 2
    org.fake.before = lambda request: org.fake.expire() if "data" in request.url.path else None
    with pytest.raises(CrmRefusedError, match="just given") as refused:
        org.pull()
    assert "API Enabled" in refused.value.fix
    assert len(org.fake.logins) == 3


def test_all_ways_to_log_in(org: Account, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    (tmp_path / "key.pem").write_text(pem)
    off = {"salesforce_client_secret": None}
    org.pull()
    org.pull(salesforce_refresh_token=REFRESH_TOKEN)
    org.pull(salesforce_refresh_token=REFRESH_TOKEN, **off)
    jwt = {"salesforce_username": "sync@acme.example", **off}
    org.pull(salesforce_private_key_file=tmp_path / "key.pem", **jwt)
    forget_sessions()
    org.pull(
        salesforce_private_key=pem.replace("\n", "\\n"),
        salesforce_audience="https://test.salesforce.com",
        **jwt,
    )
    forms = org.fake.logins
    assert forms[0] == {
        "grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET,
    }  # fmt: skip
    assert forms[1]["client_secret"] == CLIENT_SECRET and "client_secret" not in forms[2]
    assert forms[2]["refresh_token"] == REFRESH_TOKEN
    for form, audience in ((forms[3], LOGIN), (forms[4], "https://test.salesforce.com")):
        head, claims, signature = form["assertion"].split(".")
        key.public_key().verify(_decoded(signature), f"{head}.{claims}".encode(), PKCS1v15(), hashes.SHA256())
        said = json.loads(_decoded(claims))
        assert (said["iss"], said["sub"], said["aud"]) == (CLIENT_ID, "sync@acme.example", audience)
        assert 0 < said["exp"] - datetime.now(UTC).timestamp() <= 300
        assert json.loads(_decoded(head)) == {"alg": "RS256"}


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"salesforce_client_id": ""}, "SALESFORCE_CLIENT_ID"),
        ({"salesforce_client_secret": None}, "CLIENT_SECRET"),
        ({"salesforce_private_key": "x", "salesforce_refresh_token": "y"}, "REFRESH_TOKEN"),
        ({"salesforce_private_key": "x"}, "USERNAME"),
        ({"salesforce_private_key": "x", "salesforce_username": "u"}, "PRIVATE_KEY"),
        ({"salesforce_private_key": "x", "salesforce_private_key_file": "/x"}, "PRIVATE_KEY_FILE"),
        ({"salesforce_private_key_file": "/nowhere/key.pem"}, "PRIVATE_KEY_FILE"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_asked(
    org: Account, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(SettingsError) as wrong:
        org.connect(**changes)
    assert word in str(wrong.value)
    assert not org.fake.calls
    assert Salesforce.is_configured(CrmSettings.model_validate(org.values))
    assert not Salesforce.is_configured(CrmSettings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("login_url", "http://login.salesforce.com"), ("properties", "Level__c"), ("properties", '{"Lead": ["X__c"]}'),
        ("properties", '{"Contact": ["Id FROM User"]}'), ("api_version", "v63"), ("daily_share", "0"),
    ],
)  # fmt: skip
def test_wrong_settings_name_their_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    variable = f"MAILHOUSE_SALESFORCE_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        CrmSettings.load()


@pytest.mark.parametrize("url", ["http://acme.example", "ftp://127.0.0.1", "", "https://", "//acme.example"])
def test_calls_go_only_where_nobody_listens(org: Account, url: str) -> None:
    org.fake.login_answer = {"instance_url": url}
    with pytest.raises(CrmRefusedError):
        org.pull()
    assert {call.url.path for call in org.fake.calls} == {"/services/oauth2/token"}


def test_a_failure_that_passes_is_waited_out(org: Account) -> None:
    org.fill(3)
    org.fake.failures += [
        httpx.ConnectError("refused"), httpx.Response(503), httpx.Response(400, json={"error": "unknown_error"}), None,
        httpx.ReadTimeout("slow"), httpx.Response(500, text="<html>"), error(503, "SERVER_UNAVAILABLE", "busy"),
        httpx.Response(502), error(403, "REQUEST_LIMIT_EXCEEDED", "ConcurrentPerOrgLongTxn Limit exceeded."), None,
    ]  # fmt: skip
    rows, _ = org.pull()
    assert len(rows) == 3
    assert len(org.waits) == 8
    assert org.waits[-1] >= 5


def test_the_daily_limit_is_not_waited_for_and_a_part_is_left_to_others(org: Account) -> None:
    org.fill(10)
    org.fake.used = org.fake.most
    with pytest.raises(CrmUnavailableError, match="24 hours") as limited:
        org.pull()
    assert not org.waits
    assert "where it stopped" in limited.value.fix
    # not used up, but what is left is others'
    org.fake.used = 79_999
    with org.connect() as connector:
        assert len(list(connector.pull("contact", '{"until":"2026-01-01T00:00:00.000Z"}'))) == 1
        calls = len(org.fake.calls)
        with pytest.raises(CrmUnavailableError, match="left to others") as limited:
            connector.push("contact", [Change("k", "003000000000001AAA", {"city": "Graz"})])
        assert "MAILHOUSE_SALESFORCE_DAILY_SHARE" in limited.value.fix
    assert len(org.fake.calls) == calls


def test_what_came_before_the_trouble_is_kept(org: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crm.salesforce, "PAGE", 200)
    numbers = set(org.fill(500))
    rows: list[str] = []
    cursor = None
    with org.connect() as connector, pytest.raises(CrmUnavailableError):
        for batch in connector.pull("contact", None):
            rows += batch.rows["external_id"].to_pylist()
            cursor = batch.cursor
            if len(rows) == 400:
                org.fake.failures += [httpx.ConnectError("gone")] * 7
    rest, _ = org.pull(since=cursor)
    assert len(rows) == 400 and len(rest) == 100
    assert {*rows, *(row["external_id"] for row in rest)} == numbers


@pytest.mark.parametrize(
    ("answer", "word", "fix"),
    [
        (error(403, "API_DISABLED_FOR_ORG", "no API"), "API_DISABLED_FOR_ORG", "rights"),
        (error(400, "INVALID_TYPE", "sObject type 'Contact' is not supported."), "INVALID_TYPE", "rights"),
        (error(404, "NOT_FOUND", "no"), "404", "API_VERSION"),
        (httpx.Response(302, headers={"location": "https://evil.example"}), "302", ""),
        (httpx.Response(403, text="<html>blocked"), "no reason given", "rights"),
        (httpx.Response(200, text="<html>"), "JSON", "address"),
        (httpx.Response(200, json={"records": 7}), "no list of records", "API_VERSION"),
        (httpx.Response(200, json={"records": [{"Id": "003000000000001AAA"}]}), "without Id or", "API_VERSION"),
    ],
)  # fmt: skip
def test_refusals_are_explained_at_once(org: Account, answer: httpx.Response, word: str, fix: str) -> None:
    org.fake.failures += [None, answer]
    with pytest.raises(Exception, match=re.escape(word)) as refused:
        org.pull(since='{"until":"2026-01-01T00:00:00.000Z"}')
    assert fix in str(refused.value)
    assert not org.waits


def test_secrets_are_never_told(org: Account, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    told: list[str] = []
    for way in (
        {"salesforce_client_secret": "wrong-client-secret"},
        {"salesforce_refresh_token": "wrong-refresh-token"},
    ):
        with pytest.raises(CrmRefusedError) as refused:
            org.pull(**way)
        told.append(str(refused.value))
    with org.connect() as connector:
        org.fill(1)
        list(connector.pull("contact", None))
        told += [repr(connector), str(vars(connector)), connector.check()]
        (token,) = org.fake.tokens
        org.fake.failures.append(error(403, "FORBIDDEN", f"Bearer {token} may not"))
        with pytest.raises(CrmRefusedError) as refused:
            connector.check()
        told.append(str(refused.value))
        org.fake.put(Email="ann@example.com", LastName="A")
        connector.push("contact", [Change("k", "", {"email": "ann@example.com", "city": "Graz"})])
    jwt = {"salesforce_private_key": pem, "salesforce_username": "u", "salesforce_client_secret": None}
    told.append(str(vars(org.connect(**jwt))))
    text = "\n".join(told) + caplog.text
    for secret in (CLIENT_SECRET, "wrong-client-secret", "wrong-refresh-token", token, pem.splitlines()[1]):
        assert secret not in text
    assert "ann@example.com" not in caplog.text, "addresses of searches name people"


def test_the_account_is_told(org: Account) -> None:
    assert org.connect().check() == f"{INSTANCE}, 99999 of 100000 calls left in 24 hours"


# writing


def test_contacts_are_written_in_batches_of_200(org: Account) -> None:
    org.set_up()
    numbers = org.fill(500)
    changes = [
        Change(f"k{index}", number, {"mailhouse_engagement_score": index, "city": None, "first_name": "Pat"})
        for index, number in enumerate(numbers)
    ]
    results = org.push(*changes)
    assert {result.status for result in results} == {"written"}
    assert [result.external_id for result in results] == numbers
    assert org.fake.value(numbers[7], "Mailhouse_Engagement_Score__c") == 7
    assert org.fake.value(numbers[7], "FirstName") == "Pat"
    # read 400 and 100, written 200, 200 and 100
    assert (org.fake.count("queryAll"), org.fake.count("composite")) == (2, 3)
    call = next(call for call in org.fake.calls if "composite" in call.url.path)
    assert call.headers["sforce-call-options"] == "client=mailhouse"
    assert json.loads(call.content)["allOrNone"] is False


def test_a_newer_version_is_a_conflict(org: Account) -> None:
    org.set_up()
    one, two, three = org.fill(3)
    seen = {number: org.fake.records["Contact"][number].stamp for number in (one, two, three)}
    org.fake.put(id=two, FirstName="Theirs")
    results = org.push(
        Change("a", one, {"first_name": "Ours"}, seen[one]),
        Change("b", two, {"first_name": "Ours"}, seen[two]),
        Change("c", three, {"first_name": "Ours"}),
        # the second change to a record is not a conflict with our first
        Change("d", one, {"last_name": "Ours"}, seen[one]),
    )
    assert [result.status for result in results] == ["written", "conflict", "written", "written"]
    assert results[1].updated_at == org.fake.records["Contact"][two].stamp
    assert org.fake.value(two, "FirstName") == "Theirs"
    assert (org.fake.value(one, "FirstName"), org.fake.value(one, "LastName")) == ("Ours", "Ours")


def test_deleted_merged_and_unknown_records_are_gone(org: Account) -> None:
    org.set_up()
    one, two, three = org.fill(3)
    org.fake.delete(one)
    org.fake.delete(two, merged_into=three)
    results = org.push(
        *(Change(number, number, {"city": "Graz"}) for number in (one, two, "003000000009999AAA", "nonsense"))
    )
    assert [(result.status, result.external_id) for result in results] == [
        ("gone", one), ("gone", three), ("gone", "003000000009999AAA"), ("invalid", "nonsense"),
    ]  # fmt: skip
    assert f"merged into {three}" in results[1].reason
    assert not org.fake.count("composite")


def test_what_is_wrong_with_one_is_no_trouble_to_others(org: Account) -> None:
    org.set_up()
    org.fake.custom("Contact", "Level__c")
    numbers = org.fill(8)
    org.fake.locked.update({numbers[4]: 2, numbers[5]: 99})
    fields: list[dict[str, Any]] = [
        {"city": "Graz"}, {"email": "nonsense"}, {"first_name": "x" * 41}, {"mailhouse_engagement_score": "high"},
        {"city": "Graz"}, {"city": "Graz"}, {"locale": "de"}, {"Level__c": "gold", "city": "Graz"},
    ]  # fmt: skip
    results = org.push(*(Change(n, n, values) for n, values in zip(numbers, fields, strict=True)))
    assert [result.status for result in results] == [
        "written", "invalid", "invalid", "invalid", "written", "failed", "invalid", "written",
    ]  # fmt: skip
    reasons = [result.reason for result in results]
    assert "INVALID_EMAIL_ADDRESS" in reasons[1] and "STRING_TOO_LONG" in reasons[2] and "high" in reasons[3]
    assert "UNABLE_TO_LOCK_ROW" in reasons[5] and "locale" in reasons[6]
    assert [org.fake.value(number, "MailingCity") for number in numbers] == [
        "Graz", None, None, None, "Graz", None, None, "Graz",
    ]  # fmt: skip
    assert org.fake.value(numbers[7], "Level__c") == "gold"
    assert len(org.waits) == 4
    # mapped by a setting, it has a field to go to
    org.fake.custom("Contact", "Language__c")
    settings = {"salesforce_properties": {"Contact": ["locale=Language__c"]}}
    assert org.push(Change("k", numbers[6], {"locale": "de"}), **settings)[0].status == "written"
    assert org.fake.value(numbers[6], "Language__c") == "de"
    # asked before, it says so
    assert org.connect().unwritable(FIELDS).keys() == {"timezone", "locale", "push_token", "created_at"}
    assert "locale" not in org.connect(**settings).unwritable(FIELDS)


def test_a_batch_refused_for_every_value_ends(org: Account) -> None:
    org.set_up()
    numbers = org.fill(200)
    results = org.push(*(Change(n, n, {"mailhouse_engagement_score": "high"}) for n in numbers))
    assert {result.status for result in results} <= {"invalid", "failed"}
    assert org.fake.count("composite") <= 45


def test_a_field_of_theirs_that_is_missing_spoils_only_changes_that_have_it(org: Account) -> None:
    org.set_up()
    one, two = org.fill(2)
    results = org.push(Change("a", one, {"Level__c": "gold"}), Change("b", two, {"city": "Graz"}))
    assert [result.status for result in results] == ["failed", "written"]
    assert "Level__c" in results[0].reason


def test_fields_that_are_not_set_up_are_an_error_that_says_so(org: Account) -> None:
    (number,) = org.fill(1)
    with pytest.raises(CrmRefusedError) as refused:
        org.push(Change("k", number, {"mailhouse_engagement_score": 1}))
    assert "mailhouse crm setup" in refused.value.fix
    with pytest.raises(CrmRefusedError) as refused:
        org.push(Change("k", "", {"email": "new@example.com"}))
    assert "mailhouse crm setup" in refused.value.fix
    with pytest.raises(CrmRefusedError) as refused:
        org.push(Change("k", "", {"subject": "Call"}), kind="task")
    with pytest.raises(CrmNotSupportedError):
        org.push(Change("k", "", {}), kind="deal")


def test_an_unknown_contact_is_found_by_email_or_made_once(org: Account) -> None:
    org.set_up()
    (known,) = org.fill(1)
    twice = [org.fake.put(Email="twice@example.com", LastName="T") for _ in range(2)]
    gone = org.fake.put(Email="gone@example.com", LastName="G")
    org.fake.delete(gone)
    changes = [
        Change("a", "", {"email": "P0@example.com ", "city": "Graz"}),
        Change("b", "", {"email": "new@example.com", "city": "Linz"}),
        Change("c", "", {"email": "twice@example.com", "city": "Wien"}),
        Change("d", "", {"city": "nowhere"}),
        Change("e", "", {"email": "o'brien\\@example.com", "last_name": "O'Brien"}),
        Change("f", "", {"email": "NEW@example.com", "first_name": "Nina"}),
        Change("g", "", {"email": "gone@example.com"}),
        Change("h", known, {"first_name": "By id"}),
    ]
    results = org.push(*changes)
    assert [result.status for result in results] == [
        "written", "created", "invalid", "invalid", "created", "written", "created", "written",
    ]  # fmt: skip
    assert results[0].external_id == known
    assert all(number in results[2].reason for number in twice)
    assert results[5].external_id == results[1].external_id
    made = org.fake.records["Contact"][results[1].external_id].fields
    assert (made["LastName"], made["FirstName"], made["MailingCity"]) == ("[not provided]", "Nina", "Linz")
    assert org.fake.value(results[4].external_id, "LastName") == "O'Brien"
    count = len(org.fake.records["Contact"])
    again = org.push(*changes)
    assert {result.status for result in again} == {"written", "invalid"}
    assert [result.external_id for result in again] == [result.external_id for result in results]
    assert len(org.fake.records["Contact"]) == count


def test_an_answer_that_is_lost_makes_no_second_contact(org: Account) -> None:
    org.set_up()
    org.fake.before = lambda request: (
        org.fake.after.append(httpx.ReadTimeout("lost"))
        if "composite" in request.url.path and not org.fake.records["Contact"]
        else None
    )
    (result,) = org.push(Change("k", "", {"email": "new@example.com"}))
    assert result.status == "written"
    assert len(org.fake.records["Contact"]) == 1


def test_whoever_had_an_address_before_is_not_overwritten(org: Account) -> None:
    org.set_up()
    (first,) = org.push(Change("a", "", {"email": "sales@example.com", "last_name": "Old"}))
    org.fake.put(id=first.external_id, Email="moved@example.com")
    for _ in range(2):
        (second,) = org.push(Change("b", "", {"email": "sales@example.com", "last_name": "New"}))
        assert second.external_id != first.external_id
    (third,) = org.push(Change("c", "", {"email": "moved@example.com", "city": "Graz"}))
    assert third.external_id == first.external_id
    assert org.fake.value(first.external_id, "LastName") == "Old"
    assert len(org.fake.records["Contact"]) == 2


def test_trouble_after_something_was_written_is_told_change_by_change(org: Account) -> None:
    org.set_up()
    numbers = org.fill(700)
    changes = [Change(number, number, {"city": "Graz"}) for number in numbers]

    def before(request: httpx.Request) -> None:
        if org.fake.count("composite") > 1 and "composite" in request.url.path:
            org.fake.failures.append(httpx.ConnectError("gone"))

    org.fake.before = before
    results = org.push(*changes)
    assert [result.status for result in results] == ["written"] * 200 + ["failed"] * 500
    assert "does not answer" in results[-1].reason
    org.fake.calls.clear()
    org.fake.before = lambda request: org.fake.failures.append(httpx.ConnectError("gone"))
    with pytest.raises(CrmUnavailableError):
        org.push(*changes)


def test_many_changes_are_a_job(org: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assert crm.salesforce.BULK_FROM == 2_000
    monkeypatch.setattr(crm.salesforce, "BULK_FROM", 100)
    monkeypatch.setattr(crm.salesforce, "_JOB_ROWS", 200)
    org.set_up()
    numbers = org.fill(250)
    org.fake.put(id=numbers[1], MailingCity="Graz", MobilePhone="+43 1")
    org.fake.delete(numbers[9])
    org.fake.locked.update({numbers[2]: 1})
    fields: dict[int, dict[str, Any]] = {
        1: {"city": None, "first_name": 'a "b", c\nd'}, 3: {"email": "nonsense"}, 4: {"last_name": "#N/A"},
    }  # fmt: skip
    changes = [
        Change(number, number, fields.get(index, {"mailhouse_engagement_score": index}))
        for index, number in enumerate(numbers)
    ]
    new = [Change(f"n{index}", "", {"email": f"n{index}@example.com"}) for index in range(150)]
    results = org.push(*changes, *new)
    odd = {index: (r.status, r.reason) for index, r in enumerate(results[:250]) if r.status != "written"}
    assert {index: status for index, (status, _) in odd.items()} == {3: "invalid", 9: "gone"}
    assert "INVALID_EMAIL_ADDRESS" in odd[3][1]
    assert {result.status for result in results[250:]} == {"created"}
    assert results[250].external_id in org.fake.records["Contact"]
    assert org.fake.value(numbers[1], "MailingCity") is None
    assert org.fake.value(numbers[1], "MobilePhone") == "+43 1", "a cell without anything emptied a field"
    assert org.fake.value(numbers[1], "FirstName") == 'a "b", c\nd'
    assert org.fake.value(numbers[4], "LastName") == "#N/A"
    assert org.fake.value(numbers[2], "Mailhouse_Engagement_Score__c") == 2
    assert len(org.fake.jobs) == 3
    count = len(org.fake.records["Contact"])
    again = org.push(*new)
    assert {result.status for result in again} == {"written"} and len(org.fake.records["Contact"]) == count


def test_a_job_that_stops_half_way_says_what_it_did_not_do(
    org: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crm.salesforce, "BULK_FROM", 100)
    org.set_up()
    numbers = org.fill(150)
    changes = [
        Change(number, number, {"first_name": "stop" if index == 120 else "go"})
        for index, number in enumerate(numbers)
    ]
    results = org.push(*changes)
    assert [result.status for result in results] == ["written"] * 120 + ["failed"] * 30
    assert "did not come to it" in results[-1].reason


def test_a_job_that_cannot_be_filled_is_aborted(org: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crm.salesforce, "BULK_FROM", 100)
    org.set_up()
    numbers = org.fill(150)

    def before(request: httpx.Request) -> None:
        if request.method == "PUT":
            org.fake.failures.append(httpx.WriteTimeout("slow"))

    org.fake.before = before
    with pytest.raises(CrmUnavailableError):
        org.push(*(Change(number, number, {"city": "Graz"}) for number in numbers))
    (job,) = org.fake.jobs.values()
    assert job.state == "Aborted"
    assert not any(org.fake.value(number, "MailingCity") for number in numbers)


def test_tasks_are_made_once(org: Account) -> None:
    org.set_up()
    (who,) = org.fill(1)
    changes = [
        Change("crm.task_requested:7", "", {
            "subject": "Ring them", "note": "They looked at lamps.", "type": "Call",
            "due_at": "2026-02-03T23:30:00+01:00", "contact_id": who, "owner": "005000000000002AAA", "is_done": False,
        }),
        Change("crm.task_requested:8", "", {"subject": "Ring", "contact_id": "003000000009999AAA"}),
        Change("crm.task_requested:9", "", {"subject": "Ring", "due_at": "soon"}),
        Change("crm.task_requested:10", "", {"subject": "Rang", "is_done": True}),
    ]  # fmt: skip
    results = org.push(*changes, kind="task")
    assert [result.status for result in results] == ["created", "invalid", "invalid", "created"]
    task = org.fake.records["Task"][results[0].external_id].fields
    assert (task["Subject"], task["ActivityDate"], task["WhoId"], task["Status"]) == (
        "Ring them", "2026-02-03", who, "Not Started",
    )  # fmt: skip
    assert org.fake.value(results[3].external_id, "Status", "Task") == "Completed"
    # somebody has done it, and it is not opened again
    org.fake.put("Task", id=results[0].external_id, Status="Completed")
    again = org.push(*changes, kind="task")
    assert [result.status for result in again] == ["written", "invalid", "invalid", "written"]
    assert len(org.fake.records["Task"]) == 2
    assert org.fake.value(results[0].external_id, "Status", "Task") == "Completed"
    (result,) = org.push(Change("x", results[0].external_id, {"is_done": False}), kind="task")
    assert result.status == "written"
    assert org.fake.value(results[0].external_id, "Status", "Task") == "Not Started"


def test_a_task_finds_its_contact_and_its_owner_by_name(org: Account) -> None:
    org.set_up()
    (who,) = org.fill(1)
    deal = org.fake.put("Opportunity", Name="Lamps")
    ann = org.fake.put(
        "User", Username="ann@acme.example", Email="a@acme.example", Name="Ann A.", IsActive=True
    )
    for _ in range(2):
        org.fake.put("User", Username="b@x.example", Email="team@acme.example", Name="Team", IsActive=True)
    org.fake.put("User", Username="old@acme.example", Email="old@acme.example", Name="Old", IsActive=False)
    about = {"subject": "Ring", "email": "P0@example.com", "deal_id": deal}
    owners = ["ann@acme.example", "A@acme.example", "Ann A.", None, "Team", "old@acme.example"]
    results = org.push(
        *(Change(f"k{number}", "", {**about, "owner": owner}) for number, owner in enumerate(owners)),
        Change("nobody", "", {"subject": "Ring", "email": "nobody@example.com"}),
        kind="task",
    )
    assert [result.status for result in results] == ["created"] * 4 + ["invalid"] * 2 + ["failed"]
    tasks = [org.fake.records["Task"][result.external_id].fields for result in results[:4]]
    assert [task.get("OwnerId") for task in tasks] == [ann, ann, ann, None]
    assert {(task["WhoId"], task["WhatId"]) for task in tasks} == {(who, deal)}
    assert "2 active users" in results[4].reason and "no active users" in results[5].reason
    assert "nobody@example.com" in results[6].reason


def test_an_external_id_that_several_have_is_invalid(org: Account) -> None:
    org.set_up()
    (first,) = org.push(Change("k", "", {"subject": "Call"}), kind="task")
    key = org.fake.value(first.external_id, "Mailhouse_Key__c", "Task")
    org.fake.put("Task", Subject="Copied", Mailhouse_Key__c=key)
    (again,) = org.push(Change("k", "", {"subject": "Call"}), kind="task")
    assert again.status == "invalid"
    assert first.external_id in again.reason


# custom fields


def test_fields_are_made_and_shown(org: Account) -> None:
    fields = [
        SCORE,
        CustomField("mailhouse_rfm_segment", "RFM segment", "choice", options=("Champions", "Lost")),
        CustomField("mailhouse_last_open_at", "Last open", "datetime"),
        CustomField("mailhouse_segments", "Segments", "list"),
        CustomField("mailhouse_is_reader", "Reads", "boolean"),
        CustomField("mailhouse_favourite", "Favourite", "text"),
    ]
    org.fake.custom("Contact", "Mailhouse_Last_Open_At__c", "datetime")
    with org.connect() as connector:
        done = connector.set_up(fields)
        assert done.kept == ("mailhouse_last_open_at",)
        assert set(done.made) == {one.name for one in fields} - {"mailhouse_last_open_at"} | {"mailhouse_key"}
        (number,) = org.fill(1)
        # hidden from all when they were made, and shown since
        results = connector.push(
            "contact",
            [
                Change("a", number, {"mailhouse_engagement_score": 1.5, "mailhouse_is_reader": True}),
                Change("b", "", {"email": "new@example.com", "mailhouse_segments": "one;two"}),
            ],
        )
        assert [result.status for result in results] == ["written", "created"]
        assert connector.push("task", [Change("c", "", {"subject": "Call"})])[0].status == "created"
        assert len(org.fake.records["FieldPermissions"]) == 8
        assert len(org.fake.records["PermissionSetAssignment"]) == 1
        before = len(org.fake.calls)
        again = connector.set_up(fields)
        assert again.made == () and len(again.kept) == 7
        assert not [call for call in org.fake.calls[before:] if call.method != "GET"]


def test_a_field_that_is_hidden_is_shown_and_not_made_again(org: Account) -> None:
    org.set_up()
    org.fake.fields["Contact"]["Mailhouse_Engagement_Score__c"].is_visible = False
    with org.connect() as connector:
        assert connector.set_up([SCORE]).kept == ("mailhouse_engagement_score", "mailhouse_key")
    assert org.fake.fields["Contact"]["Mailhouse_Engagement_Score__c"].is_visible


def test_a_field_of_another_type_stops_before_anything_is_made(org: Account) -> None:
    org.fake.custom("Contact", "Mailhouse_Engagement_Score__c", "string")
    other = CustomField("mailhouse_favourite", "Favourite", "text")
    with org.connect() as connector:
        with pytest.raises(CrmRefusedError, match=r"Mailhouse_Engagement_Score__c is a string, not a number"):
            connector.set_up([other, SCORE])
        with pytest.raises(CrmRefusedError, match="no name"):
            connector.set_up([CustomField("mailhouse__x", "x", "text")])
        with pytest.raises(CrmRefusedError, match="no name"):
            connector.set_up([CustomField("mailhouse_" + "x" * 31, "x", "text")])
    assert not org.fake.count("tooling")


@given(st.lists(st.text("abz019", min_size=1, max_size=5), min_size=1, max_size=4))
def test_names_go_there_and_back(words: list[str]) -> None:
    name = "_".join(["mailhouse", *words])
    assert our_name(api_name(name)) == name


def test_names_of_others_stay() -> None:
    assert api_name("mailhouse_engagement_score") == "Mailhouse_Engagement_Score__c"
    assert our_name("Level__c") == "Level__c" and our_name("LeadSource") == "LeadSource"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILHOUSE_SALESFORCE_CLIENT_ID", "id")
    monkeypatch.setenv("MAILHOUSE_SALESFORCE_PROPERTIES", '{"Contact": ["locale=Language__c"]}')
    settings = CrmSettings.load()
    assert isinstance(settings, MailhouseSettings)
    assert settings.salesforce_properties == {"Contact": ["locale=Language__c"]}
    assert settings.salesforce_login_url == "https://login.salesforce.com"
