"""Our signatures, verified by somebody else's verifier."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from senders.composing import Composer, Envelope, render_batch
from senders.dkim import DkimKey, DkimSigner, canonical_body, canonical_fields
from senders.links import Links
from senders.message import Address, Message
from senders.rendering import TemplateSource
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

dkim = pytest.importorskip("dkim", reason="dkimpy is not installed: uv sync --group dev")
pytest.importorskip(
    "nacl", reason="pynacl, which dkimpy needs for Ed25519, is not installed: uv sync --group dev"
)
ID = "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"


def pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


RSA = DkimKey("r1", pem(rsa.generate_private_key(65537, 2048)))
ED25519 = DkimKey("e1", pem(ed25519.Ed25519PrivateKey.generate()))
SIGNER = DkimSigner("example.com", (RSA, ED25519))
RECORDS = {
    f"{key.selector}._domainkey.example.com.".encode(): key.record().encode() for key in (RSA, ED25519)
}


def verified(raw: bytes) -> list[bool]:
    """Whether each signature is good, as dkimpy sees it."""
    checker = dkim.DKIM(raw, minkey=1024)
    count = raw.partition(b"\r\n\r\n")[0].count(b"DKIM-Signature:")
    found: list[bool] = []
    for at in range(count):
        try:
            found.append(checker.verify(idx=at, dnsfunc=lambda name, timeout=5: RECORDS[name]))
        except dkim.ValidationError:
            found.append(False)
    return found


def message(**more: Any) -> Message:
    values: dict[str, Any] = {
        "message_id": ID, "contact_id": 1, "sender": Address("s@example.com", "Zoë"), "subject": "é" * 60,
        "recipient": Address("a@example.org"), "html": "<p>Hello</p>  \n\n", "text": "Hello", "signer": SIGNER,
        "sent_at": datetime(2026, 6, 27, 9, tzinfo=UTC),
        "headers": (("List-Unsubscribe", "<https://m.example/u>"), ("List-Id", "<x.example.com>")),
    }  # fmt: skip
    return Message(**{**values, **more})


def test_both_algorithms_verify_and_survive_a_pickle() -> None:
    raw = message().raw
    assert verified(raw) == [True, True]
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    again = pickle.loads(pickle.dumps(SIGNER)).sign(message(signer=None).raw)
    assert verified(again) == [True, True]


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=300),
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=100).map(str.strip),
)
def test_whatever_is_in_it(text: str, subject: str) -> None:
    assert verified(message(text=text, html=text, subject=subject).raw) == [True, True]


def test_whoever_changes_it_breaks_it() -> None:
    raw = message().raw
    for old, new in (
        (b"Hello", b"Hallo"), (b"From: ", b"From: eve@example.com\r\nFrom: "), (b"To: ", b"Cc: x@example.org\r\nTo: "),
        (b"\r\nSubject: ", b"\r\nSubject: x\r\nSubject: "), (b"https://m.example/u", b"https://evil.example/u"),
    ):  # fmt: skip
        changed = raw.replace(old, new, 1)
        assert changed != raw
        assert verified(changed) == ([True, True] if new.startswith(b"Cc") else [False, False]), new
    # what relaxed allows
    assert verified(raw.replace(b"Subject: ", b"SUBJECT:   ", 1) + b"\r\n\r\n") == [True, True]


def test_composed_messages_are_signed() -> None:
    source = TemplateSource(
        "t", "v", "<p>{{ contact.city }}</p>", "{{ contact.city }}  \t x", "Hi", "", None, frozenset(), frozenset(),
        frozenset(),
    )  # fmt: skip
    envelope = Envelope(
        sender=Address("s@example.com"),
        links=Links(b"k" * 32, "https://m.example"),
        constants={},
        signer=SIGNER,
    )
    contacts = [{"email": "a@example.org", "city": city} for city in ("York", "a  b \t\n\n ", "é" * 99)]
    ids = [f"{n:08x}{ID[8:]}" for n in range(3)]
    made = Composer(source, pickle.loads(pickle.dumps(envelope)))
    for raw in render_batch(made, contacts, ids, datetime(2026, 6, 27, tzinfo=UTC)):
        assert isinstance(raw, bytes)
        assert verified(raw) == [True, True]
        body = raw.partition(b"\r\n\r\n")[2]
        assert canonical_body(body) == body
        assert b"list-unsubscribe:list-unsubscribe-post" in raw.replace(b"\r\n ", b"")
    assert "PRIVATE" not in repr(envelope) + repr(SIGNER)


@given(st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b"a", b"\r\n\r\n", b"b  c", b" \r\n"]), max_size=20))
def test_bodies_are_brought_into_the_form_that_others_bring_them(parts: list[bytes]) -> None:
    body = b"".join(parts) + b"\r\n"
    assert canonical_body(body) == dkim.canonicalization.Relaxed.canonicalize_body(body)


def test_fields_keep_their_order() -> None:
    assert canonical_fields(b"A : x \t y\r\n\tz \r\nb:1\r\na:2") == {
        b"a": [b"a:x y z", b"a:2"],
        b"b": [b"b:1"],
    }


def test_settings(tmp_path: Any) -> None:
    path = tmp_path / "dkim.pem"
    path.write_text(RSA.pem)
    made = SenderSettings(
        dkim_key=str(path),
        dkim_selector="r1",
        dkim_second_key=ED25519.pem.replace("\n", "\\n"),
        dkim_second_selector="e1",
    )  # pyright: ignore[reportArgumentType]
    signer = DkimSigner.from_settings(made, "shop@Example.com")
    assert signer is not None
    assert [key.algorithm for key in signer.keys] == ["rsa-sha256", "ed25519-sha256"]
    assert verified(signer.sign(message(signer=None).raw)) == [True, True]
    assert DkimSigner.from_settings(SenderSettings(), "shop@example.com") is None
    above = made.model_copy(update={"dkim_domain": "example.com"})
    found = DkimSigner.from_settings(above, "s@news.example.com")
    assert found is not None
    assert found.domain == "example.com"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dkim_selector": ""}, "MAILHOUSE_DKIM_SELECTOR '' is no selector"),
        ({"dkim_selector": "a b"}, "no selector"),
        ({"dkim_domain": "other.example"}, "would sign for other.example, but mail comes from example.com"),
        ({"dkim_key": "/nowhere/key.pem"}, "neither a key nor a file"),
        (
            {"dkim_key": "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----"},
            "no unencrypted private key",
        ),
        ({"dkim_key": pem(rsa.generate_private_key(65537, 1024))}, "1024 bits"),
        ({"dkim_key": pem(ec.generate_private_key(ec.SECP256R1()))}, "neither RSA nor Ed25519"),
    ],
)
def test_what_cannot_sign_is_said(change: dict[str, Any], message: str) -> None:
    made = SenderSettings(**{"dkim_key": RSA.pem, "dkim_selector": "r1", **change})
    with pytest.raises(SettingsError, match=message) as caught:
        DkimSigner.from_settings(made, "s@example.com")
    assert "secret" not in str(caught.value).replace("MAILHOUSE", "")
