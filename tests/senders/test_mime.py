"""The message builder against the standard library's, and against people who try to smuggle headers in."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.headerregistry import Address as StandardAddress
from email.message import EmailMessage

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from senders.message import Address, Message
from senders.mime import address, build, mailbox, one_line, unstructured

_WORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=200).map(one_line)
# longer names take several encoded words, between which Python 3.11's parser sees spaces that are not there
_NAME = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=9).map(one_line)
_BODY = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=2000)
_LOCAL = st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}(\.[a-z0-9+_-]{1,10}){0,2}", fullmatch=True)


def message(**more: object) -> Message:
    values: dict[str, object] = {
        "message_id": "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10", "contact_id": 1,
        "sender": Address("shop@example.com", "The Shop"), "recipient": Address("a@example.org", "Ann"),
        "subject": "Hello", "html": "<p>Hello</p>", "text": "Hello", "sent_at": datetime(2026, 6, 27, 9, tzinfo=UTC),
        "headers": (("List-Unsubscribe", "<https://mail.example.com/unsubscribe/abc>"),
                    ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")),
    }  # fmt: skip
    return Message(**{**values, **more})  # pyright: ignore[reportArgumentType]


def standard(value: Message) -> EmailMessage:
    """The same message by the standard library."""
    made = EmailMessage(policy=email.policy.SMTP)
    for name, who in (("From", value.sender), ("To", value.recipient)):
        local, _, domain = who.email.rpartition("@")
        made[name] = StandardAddress(who.name, local, domain)
    made["Subject"] = value.subject
    made["Message-ID"] = f"<{value.message_id}@example.com>"
    made["Date"] = value.sent_at
    for name, text in value.headers:
        made[name] = text
    made.set_content(value.text, charset="utf-8")
    made.add_alternative(value.html, subtype="html", charset="utf-8")
    return made


def parsed(raw: bytes) -> EmailMessage:
    found = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


@settings(max_examples=120, deadline=None)
@given(subject=_WORDS, name=_NAME, local=_LOCAL, text=_BODY, html=_BODY)
@example(
    subject="=?utf-8?q?not_encoded?=",
    name='O"Neil, Ann \\ (x)',
    local="a",
    text=".\n..\n.x",
    html="From me\n",
)
@example(subject="x" * 900, name="é" * 9, local="a", text="=" * 100, html="\t \n" * 30)
@example(subject="word " * 60 + "end", name="a" * 100, local="a", text="é" * 500, html="x " * 900)
@example(subject="a" + " " * 100 + "b", name="a  b", local="a", text="", html="")
def test_parses_as_the_standard_librarys(subject: str, name: str, local: str, text: str, html: str) -> None:
    value = message(
        subject=subject,
        recipient=Address(f"{local}@example.org", name),
        text=text,
        html=html,
        sender=Address("s@example.com", name),
    )
    raw = build(value)
    assert raw.isascii()
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")
    ours, theirs = parsed(raw), parsed(standard(value).as_bytes())
    assert [field for field in ours if field != "Content-Type"] == [
        *[
            "From",
            "To",
            "Subject",
            "Message-ID",
            "Date",
            "List-Unsubscribe",
            "List-Unsubscribe-Post",
            "MIME-Version",
        ]
    ]
    # what the standard library itself would lose on the way (double spaces in names, what looks encoded) is kept
    assert ours["Subject"] == subject
    assert theirs["Subject"] in (subject, standard(value)["Subject"])
    for field, mail in (("From", "s@example.com"), ("To", f"{local}@example.org")):
        assert [(one.display_name, one.addr_spec) for one in ours[field].addresses] == [(name, mail)]
        assert [one.addr_spec for one in theirs[field].addresses] == [mail]
    for field in ("Message-ID", "Date", "List-Unsubscribe", "List-Unsubscribe-Post"):
        assert ours[field] == theirs[field]
    assert not ours.defects
    for ours_part, theirs_part in zip(ours.iter_parts(), theirs.iter_parts(), strict=True):
        assert isinstance(ours_part, EmailMessage)
        assert isinstance(theirs_part, EmailMessage)
        assert ours_part.get_content_type() == theirs_part.get_content_type()
        assert ours_part.get_content_charset() == theirs_part.get_content_charset()
        assert ours_part.get_content() == theirs_part.get_content()
        assert not ours_part.defects


@pytest.mark.parametrize("bad", ["a\r\nBcc: eve@example.com", "a\nb", "a\x00b", "a\u2028b", "a\x85b"])
def test_no_header_can_be_smuggled_in(bad: str) -> None:
    for value in (
        message(subject=bad), message(recipient=Address("a@example.org", bad)), message(recipient=Address(bad)),
        message(headers=(("List-Id", bad),)), message(headers=((bad, "x"),)), message(message_id=bad),
        message(reply_to=Address(bad)), message(sender=Address("a@" + bad)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"header|address|domain|message id"):
            build(value)
    assert not set("\r\n\x00\u2028\x85") & set(one_line(bad))


def test_what_the_renderer_makes_one_line_goes_through() -> None:
    raw = build(message(subject=one_line("Hello\r\nBcc: eve@example.com")))
    assert parsed(raw)["Bcc"] is None
    assert parsed(raw)["Subject"] == "Hello Bcc: eve@example.com"


def test_addresses() -> None:
    assert mailbox("ann@exämple.com") == "ann@xn--exmple-cua.com"
    assert mailbox("jürgen@example.com") == "jürgen@example.com"
    assert mailbox("a..b@example.jp") == '"a..b"@example.jp'
    for bad in ("", "ann", "@example.com", "ann@", "a b@example.com", "a@b@example.com", "a@-x-.com", "<a@example.com>",
                "a@example..com", "a,b@example.com", "a@" + "x" * 70 + ".com"):  # fmt: skip
        with pytest.raises(ValueError, match="email address"):
            mailbox(bad)
    assert "jürgen@example.com".encode() in build(message(recipient=Address("jürgen@example.com")))


@given(_WORDS.filter(bool))
def test_long_names_decode(name: str) -> None:
    line = address(Address("a@example.org", name), 6)
    phrase, _, rest = line.rpartition("<")
    assert rest == "a@example.org>"
    assert all(len(part) <= 77 for part in line.split("\r\n")) or name.isascii()
    if not name.isascii():
        assert str(make_header(decode_header(phrase.strip()))) == name


def test_encodings_keep_mostly_ascii_readable() -> None:
    assert b"quoted-printable" in build(message(html="<p>caf\u00e9</p>" * 3))
    assert b"base64" in build(message(html="<p>\u4f60\u597d</p>" * 9))


def test_long_words_are_encoded_rather_than_broken() -> None:
    assert max(map(len, unstructured("x" * 2000, 9).split("\r\n"))) <= 76
    assert unstructured("plain words", 9) == "plain words"
