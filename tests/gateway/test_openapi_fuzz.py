"""Schemathesis against the document: whatever it makes up, no answer is a failure or one that the document lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from gateway.events import EventError, parse_event
from gateway.keys import make_key
from gateway.openapi import document

KEY, HASH = make_key()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway whose warehouse is away: the stream takes the events all the same."""
    environment = {
        **os.environ, "MAILHOUSE_HOME": str(tmp_path_factory.mktemp("fuzz")), "MAILHOUSE_WAREHOUSE_PORT": "9",
        "MAILHOUSE_GATEWAY_KEYS": json.dumps({"web": HASH}),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    url = process.stdout.readline().strip().rpartition(" ")[2]
    errors: list[str] = []
    # a pipe that nobody reads would stop the gateway when it is full
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or []), daemon=True)
    reader.start()
    yield url
    process.terminate()
    process.wait(30)
    reader.join(10)
    assert "Traceback" not in "".join(errors)


# what is not held against it: a text of the form of a time need not be a time that has been, and the key is given by
# the test
_LENIENT = ("positive_data_acceptance", "ignored_auth", "unsupported_method", "missing_required_header")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"]
)
def test_nothing_made_up_breaks_it(server: str, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{server}/openapi.json")
    lenient = [getattr(checks, name) for name in _LENIENT if hasattr(checks, name)]
    seen: set[int] = set()
    with httpx.Client(base_url=server) as client:
        for found in described.get_all_operations():
            operation = found.ok()
            assert operation is not None
            is_ours = operation.path == "/v1/events"
            excluded = lenient if is_ours else [*lenient, checks.negative_data_rejection]

            def check(case: schemathesis.Case, excluded: list[object]) -> None:
                response = case.call(base_url=server, headers={"Authorization": f"Bearer {KEY}"})
                seen.add(response.status_code)
                if not isinstance(case.body, dict) or "events" in case.body:
                    # of a batch the good events are taken, beside bad ones
                    excluded = [*excluded, checks.negative_data_rejection]
                case.validate_response(response, excluded_checks=excluded)

            cases = given(operation.as_strategy(generation_mode=mode), st.just(excluded))
            examples = settings(
                max_examples=120 if is_ours else 25, suppress_health_check=list(HealthCheck), database=None
            )
            examples(cases(check))()
        assert client.get("/healthz").status_code == 200
    assert 400 in seen and (mode is GenerationMode.NEGATIVE or {200, 202} <= seen)


def test_the_document_and_the_rules_say_the_same() -> None:
    """What the document allows, the parser takes, and the other way round; times and sizes apart."""
    schema = document()["components"]["schemas"]["Event"]
    judge = jsonschema.Draft202012Validator(schema)
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    good = {"type": "a.b", "email": "a@b.c"}
    for change in (
        {}, {"type": "a"}, {"type": "A.b"}, {"type": 1}, {"email": "x"}, {"email": "a@b c"}, {"email": "a\u0000@b.c"},
        {"source": "X"}, {"source": "x_1"}, {"event_id": ""}, {"event_id": "é x"}, {"event_id": " x"},
        {"event_id": "x" * 200}, {"event_id": "x" * 201}, {"external_id": 7}, {"anonymous_id": "\n"}, {"other": 1},
        {"properties": []}, {"properties": {"a": {"b": [1]}}}, {"occurred_at": 5},
        {"occurred_at": "2026-01-01T00:00:00Z"},
        {"source": None, "event_id": None, "properties": None}, {"type": None},
    ):  # fmt: skip
        event = {**good, **change}
        try:
            parse_event(event, "web", now)
            is_taken = True
        except EventError:
            is_taken = False
        assert judge.is_valid(event) == is_taken, event
    assert not judge.is_valid({"type": "a.b"})


@pytest.mark.slow
def test_the_document_is_one(server: str) -> None:
    served = httpx.get(f"{server}/openapi.json").json()
    assert served["openapi"] == "3.1.0"
    assert set(served["paths"]) >= {"/v1/events", "/v1/track", "/v1/batch", "/v1/journeys/{name}/entries"}
    jsonschema.Draft202012Validator.check_schema(served["components"]["schemas"]["Event"])
