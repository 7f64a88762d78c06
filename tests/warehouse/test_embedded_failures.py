"""A statement that fails leaves nothing behind: neither in the next answer nor in the session."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from warehouse.settings import MailhouseSettings

FAILING = {
    "before it ran": "select nope from numbers(3)",
    "on its first row": "select throwIf(number = 0) from numbers(3)",
    "after blocks were written": "select number, throwIf(number = 900000) from numbers(1000000)",
    "on a value": "select toDate(toString(number) || 'x') from numbers(3)",
}
FORMATS = (
    "Arrow",
    "ArrowStream",
    "Native",
    "TabSeparated",
    "CSV",
    "JSONCompactEachRow",
    "JSONEachRow",
    "Parquet",
    "RowBinary",
)


@pytest.fixture(scope="module")
def client(warehouse_server: MailhouseSettings) -> Iterator[httpx.Client]:
    """One for all: making one costs more than the queries."""
    with httpx.Client(base_url=warehouse_server.warehouse.url, timeout=30) as opened:
        yield opened


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("session", [None, "one"])
def test_the_answer_after_a_failure_is_whole_and_alone(
    client: httpx.Client, failing: str, session: str | None
) -> None:
    common = {"session_id": session} if session else {}

    def ask(sql: str, output_format: str) -> bytes:
        try:
            return client.post("/", params={**common, "default_format": output_format}, content=sql).content
        except httpx.RemoteProtocolError:
            return b"broken off"  # a streamed answer that fails half way ends so, as a server's does

    for output_format in FORMATS:
        good = ask("select number from numbers(5)", output_format)
        for failed_format in (output_format, "Arrow", "TabSeparated"):
            ask(failing, failed_format)
            for _ in range(2):
                assert ask("select number from numbers(5)", output_format) == good, (
                    output_format,
                    failed_format,
                )
