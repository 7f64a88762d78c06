"""Retries, links and settings: the small rules."""

from __future__ import annotations

import stat
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from senders.links import Links
from senders.loopback import is_loopback
from senders.retries import RetryPolicy, is_retryable, parse_retry_after
from senders.settings import SenderSettings
from senders.unsubscribe import PURPOSES, make_token, verify_token
from warehouse.errors import SettingsError

KEY = b"a secret of at least sixteen bytes"
ID = "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"


def test_retries_are_bounded_and_patient() -> None:
    policy = RetryPolicy(attempts=4, first=1.0, longest=3.0, patience=60.0)
    for tries, longest in ((1, 1.0), (2, 2.0), (3, 3.0)):
        waits = [policy.wait(tries) for _ in range(50)]
        assert all(wait is not None and 0 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 10, "no jitter"
    assert policy.wait(4) is None
    asked = policy.wait(1, retry_after=20.0)
    assert asked is not None
    assert 20.0 <= asked <= 21.0
    assert policy.wait(1, retry_after=61.0) is None


def test_http_answers_that_may_be_repeated() -> None:
    assert [code for code in (200, 400, 408, 413, 429, 500, 502, 503, 504) if is_retryable(code)] == [
        408,
        429,
        503,
    ]
    now = datetime(2026, 6, 27, 9, tzinfo=UTC)
    assert parse_retry_after("120") == 120.0
    assert parse_retry_after("Sat, 27 Jun 2026 09:00:30 GMT", now) == 30.0
    assert parse_retry_after("Sat, 27 Jun 2026 08:00:00 GMT", now) == 0.0
    assert parse_retry_after("soon") is None
    assert parse_retry_after("-5") is None


@given(st.uuids(), st.sampled_from(PURPOSES))
def test_tokens_read_back_for_their_purpose_only(message: uuid.UUID, purpose: str) -> None:
    token = make_token(KEY, str(message), purpose)
    assert verify_token(KEY, token, purpose) == str(message)
    assert len(token) == 43
    assert all(verify_token(KEY, token, other) is None for other in PURPOSES if other != purpose)
    assert verify_token(KEY + b"x", token, purpose) is None


@given(st.integers(0, 42), st.characters(codec="ascii"))
def test_a_changed_token_is_worth_nothing(position: int, character: str) -> None:
    token = make_token(KEY, ID)
    forged = token[:position] + character + token[position + 1 :]
    assert (verify_token(KEY, forged) == ID) == (forged == token)


@given(st.text(max_size=60))
def test_any_text_is_refused_without_failing(text: str) -> None:
    assert verify_token(KEY, text) is None


def test_links_name_nobody() -> None:
    url = Links(KEY, "https://mail.example.com/").unsubscribe(ID)
    assert url == f"https://mail.example.com/unsubscribe/{make_token(KEY, ID)}"
    assert (
        Links(KEY, "https://mail.example.com")
        .preferences(ID)
        .startswith("https://mail.example.com/preferences/")
    )


def test_the_key_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    settings = SenderSettings(home=tmp_path / "new")
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(settings.signing_key())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 1
    assert len(keys[0]) == 64
    file = tmp_path / "new" / "secret_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [found.name for found in (tmp_path / "new").iterdir()] == ["secret_key"]
    assert SenderSettings(home=tmp_path / "new").signing_key() == keys[0]
    file.write_text("")
    with pytest.raises(SettingsError, match="holds no key"):
        settings.signing_key()
    with pytest.raises(SettingsError, match="shorter") as caught:
        SenderSettings(home=tmp_path, secret_key="tooshort").signing_key()  # pyright: ignore[reportArgumentType]
    assert "tooshort" not in str(caught.value)


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "LOCALHOST."))
    assert not any(
        is_loopback(host) for host in ("example.com", "10.0.0.1", "localhost.example.com", "0.0.0.0", "")
    )
