"""What a provider cannot do is said before anything is sent, by one function for campaigns' files and for sending."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sending import audience, people, plan, sender_settings, write_content

from campaigns.permissions import ADDRESS_COLUMNS
from campaigns.specs import check_references, load_campaigns
from senders.ledger import Ledger
from senders.message import Address, Message
from senders.pipeline import require_attachable, send
from senders.providers import PROVIDERS, get_capabilities, get_provider
from senders.providers.base import Capabilities, Needs, require_capabilities, unmet_needs
from senders.providers.batching import share
from senders.providers.maildir import MaildirProvider
from senders.rendering import TemplateLibrary
from senders.templates import Template, TemplateSource
from warehouse.errors import InputError, SettingsError

ABLE = Capabilities(
    can_attach=True,
    can_invite=True,
    can_track=True,
    longest_hold=timedelta(hours=72),
    can_cancel=True,
    has_list_unsubscribe=True,
)
NEEDS = Needs(
    category="marketing", has_attachments=True, is_tracked=True, hold=timedelta(hours=1), is_cancellable=True
)


@pytest.mark.parametrize(
    ("change", "needs", "words"),
    [
        ({"channel": "sms"}, NEEDS, "sends sms, not email"),
        ({"has_list_unsubscribe": False}, NEEDS, "List-Unsubscribe"),
        ({"can_attach": False}, NEEDS, "no attachments"),
        ({"can_invite": False}, replace(NEEDS, has_invitation=True), "ask for an answer"),
        ({"can_track": False}, NEEDS, "no opens and clicks"),
        ({"longest_hold": timedelta(0)}, NEEDS, "cannot hold"),
        ({"longest_hold": timedelta(minutes=5)}, NEEDS, "0:05:00 at most, not 1:00:00"),
        ({"can_cancel": False}, NEEDS, "cannot cancel"),
        ({}, replace(NEEDS, hold=timedelta(0)), "no hold is given"),
        ({"channel": "chat"}, replace(NEEDS, channel="chat"), "consent for chat is not kept"),
    ],
)
def test_each_thing_that_is_lacking_is_named(change: dict[str, object], needs: Needs, words: str) -> None:
    assert unmet_needs(ABLE, NEEDS) == []
    lacking = replace(ABLE, **change)  # pyright: ignore[reportArgumentType]
    assert len(unmet_needs(lacking, needs)) == 1
    with pytest.raises(SettingsError, match=words) as raised:
        require_capabilities("p", lacking, needs, place="content/campaigns/x.yaml:3")
    assert str(raised.value).startswith("content/campaigns/x.yaml:3: Provider p ")


def test_sending_refuses_before_anything_is_claimed(tmp_path: Path) -> None:
    write_content(tmp_path / "content")
    settings = sender_settings(tmp_path)
    with Ledger.open(settings) as ledger, MaildirProvider(settings.maildir) as provider:
        for more, words in (
            ({"is_tracked": True}, "provider_tracking"),
            ({"hold": timedelta(hours=1)}, "hold"),
            ({"is_cancellable": True}, "cancel"),
            ({"channel": "sms", "category": "transactional"}, "sends email, not sms"),
        ):
            with pytest.raises(SettingsError, match=words):
                send(plan(**more), audience(3), settings=settings, ledger=ledger, provider=provider)
        assert not ledger.counts("campaign", "offer", "2026-06-27T09:00:00Z")


def test_a_channel_without_its_column_is_refused(tmp_path: Path) -> None:
    write_content(tmp_path / "content")
    settings = sender_settings(
        tmp_path, provider="twilio", twilio_account="AC1", twilio_token="t", twilio_from="MG1",
        base_url="https://m.example",
    )  # fmt: skip
    with Ledger.open(settings) as ledger, get_provider(settings) as provider:
        with pytest.raises(InputError, match="phone"):
            send(
                plan(channel="sms", category="transactional"), audience(3), settings=settings, ledger=ledger,
                provider=provider,
            )  # fmt: skip
        assert not ledger.counts("campaign", "offer", "2026-06-27T09:00:00Z")
    assert set(ADDRESS_COLUMNS.values()) <= set(people(1).columns)


def test_an_invitation_needs_a_provider_that_keeps_its_method(tmp_path: Path) -> None:
    content = write_content(tmp_path / "content")
    (content / "attachments").mkdir()
    event = (
        "BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:x\nMETHOD:{}\nBEGIN:VEVENT\nUID:1\nDTSTAMP:20260101T000000Z\n"
        "DTSTART:20260201T000000Z\nEND:VEVENT\nEND:VCALENDAR\n"
    )
    for method, is_refused in (("REQUEST", True), ("PUBLISH", False)):
        (content / "attachments/date.ics").write_text(event.format(method))
        library = TemplateLibrary.load(content / "templates", people(1).columns)
        template = library.template("offer", subject="s", attachments=("date.ics",))
        for name, refuses in (("sendgrid", is_refused), ("mandrill", is_refused), ("smtp", False)):
            asked = (plan(attachments=("date.ics",)), template, name, get_capabilities(name))
            if refuses:
                with pytest.raises(SettingsError, match="ask for an answer"):
                    require_attachable(*asked)
            else:
                require_attachable(*asked)


CAMPAIGN = """campaign: win_back
audience: {segment: champions}
schedule: {at: 2026-06-27T09:00:00Z}
send:
  template: offer
  category: marketing
  subject: For you
"""


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ("  provider: sendgird\n", 8, "There is no provider 'sendgird'"),
        ("  provider: bombbomb\n", 8, "Provider bombbomb sends video, not email"),
        ("  channel: video\n  provider: bombbomb\n", 9, "cannot send marketing"),
        ("  channel: chat\n  provider: slack\n", 9, "consent for chat is not kept"),
        ("  channel: sms\n  provider: twilio\n", 0, ""),
        ("  channel: push\n  provider: fcm\n", 0, ""),
        ("  channel: sms\n  provider: fcm\n", 9, "Provider fcm sends push, not sms"),
        ("  provider: sendgrid\n  hold: 96h\n", 8, "holds messages back for 3 days"),
        (
            "  channel: journey\n  provider: mailchimp\n  attachments: [terms.pdf]\n",
            9,
            "Provider mailchimp takes no attach",
        ),
        ("  provider: mandrill\n  attachments: [terms.pdf]\n", 0, ""),
        ("  provider: sendgrid\n  cancellable: true\n", 8, "no hold is given"),
        ("  provider_tracking: true\n", 4, "Provider maildir counts no opens"),
        ("  provider: sendgrid\n  provider_tracking: true\n  hold: 1h\n  cancellable: true\n", 0, ""),
        ("  attachments: [terms.pdf]\n", 0, ""),
        ("  provider: smtp\n  attachments: [terms.pdf]\n", 0, ""),
        ("  channel: journey\n  provider: mailchimp\n", 0, ""),
    ],
)
def test_a_campaigns_file_is_held_to_its_provider(lines: str, place: int, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "campaigns"
    folder.mkdir()
    (folder / "win_back.yaml").write_text(CAMPAIGN + lines)
    specs = load_campaigns(tmp_path)
    if not words:
        check_references(specs, ["offer"], ["champions"], provider="maildir")
        return
    with pytest.raises(InputError) as raised:
        check_references(specs, ["offer"], ["champions"], provider="maildir")
    assert words in raised.value.message
    assert f"win_back.yaml:{place}:" in raised.value.message


def test_every_provider_says_what_it_can_do_without_being_set_up() -> None:
    for name in PROVIDERS:
        capabilities = get_capabilities(name)
        assert capabilities.dispatch_window >= capabilities.most_per_call or capabilities.most_per_call == 1
        assert not capabilities.can_cancel or capabilities.longest_hold


# many personal messages in one call

NAMES = st.text(alphabet=st.sampled_from('ab<>&" \n/=é-0{}$%|*'), max_size=12)


@given(
    st.lists(st.tuples(NAMES, NAMES, st.integers(0, 3), st.booleans()), min_size=1, max_size=25),
    st.integers(40, 400),
    st.integers(1, 9),
)
def test_filling_in_what_differs_gives_every_message_back(
    people: list[tuple[str, str, int, bool]], most_bytes: int, most: int
) -> None:
    messages = [
        Message(
            f"id-{number}", number, Address("s@example.com"), Address(f"p{number}@example.com"), "subject",
            f"<html><p>Hello {name}</p>" + f"<a href=\"{link}\">go</a>" * count + ("<b>vip</b>" if is_vip else "")
            + "<p>Yours, the shop, with a long common ending</p></html>",
            f"Hello {name}\n" + f"{link}\n" * count + "Yours", datetime(2026, 1, 1, tzinfo=UTC),
        )
        for number, (name, link, count, is_vip) in enumerate(people)
    ]  # fmt: skip
    groups = share(messages, tag=lambda name: f"-mh{name}-", most_bytes=most_bytes, most=most)
    seen: list[str] = []
    for group in groups:
        assert 1 <= len(group.messages) <= most
        assert len({tuple(values) for values in group.values}) == 1, "one set of tags a group"
        for message, values in zip(group.messages, group.values, strict=True):
            html, text = group.html, group.text
            for tag, value in values.items():
                assert html.count(tag) + text.count(tag) == 1
                html, text = html.replace(tag, value), text.replace(tag, value)
            assert (html, text) == (message.html, message.text)
            assert len("".join([*values, *values.values()]).encode()) <= most_bytes
            seen.append(message.message_id)
    assert sorted(seen) == sorted(message.message_id for message in messages)


def test_messages_of_one_template_travel_together() -> None:
    page = (
        "<html>"
        + '<p class="x">common words</p>' * 200
        + '<p>Hello {}</p><a href="https://x.example/{}">go</a></html>'
    )
    messages = [
        Message(
            f"id-{n}", n, Address("s@example.com"), Address(f"p{n}@example.com"), "s",
            page.format(f"Person {n}" if n % 3 else "there", n), f"Hello {n}\nBye", datetime(2026, 1, 1, tzinfo=UTC),
        )
        for n in range(300)
    ]  # fmt: skip
    (group,) = share(messages, tag=lambda name: f"-mh{name}-", most_bytes=9500)
    assert len(group.messages) == 300
    assert max(len("".join(values.values())) for values in group.values) < 100, "what is common is sent once"


@given(
    st.lists(st.tuples(NAMES, NAMES, st.integers(0, 3), st.booleans()), min_size=1, max_size=25),
    st.integers(40, 600),
    st.integers(1, 9),
)
def test_pieces_of_a_template_give_every_message_back(
    people: list[tuple[str, str, int, bool]], most_bytes: int, most: int
) -> None:
    """What a provider is given of messages in pieces is, filled in, what it is given of them whole."""
    template = Template(
        TemplateSource(
            "t", "v",
            "<html><p>Hello {{ contact.name }}, {{ contact.name }}</p>{% for one in recommendations %}"
            '<a href="{{ one.link }}">go</a>{% endfor %}{% if contact.is_vip %}<b>vip {{ contact.name }}</b>{% endif %}'
            "<p>Yours, the shop, with a long common ending</p></html>",
            "\nHello {{ contact.name | default('you') }}\n\n"
            "{% for one in recommendations %}{{ one.link }}\n{% endfor %}Bye ",
            "subject", "", None, frozenset(), frozenset(), frozenset(),
        )
    )  # fmt: skip
    whole: list[Message] = []
    for number, (name, link, count, is_vip) in enumerate(people):
        contact = {"name": name or "Zoë", "is_vip": is_vip}
        made = template.render(
            {"contact": contact, "recommendations": [{"link": link or "-"}] * count, "locale": ""}
        )
        assert ("".join(made.html_pieces), "".join(made.text_pieces)) == (made.html, made.text)
        whole.append(
            Message(
                f"id-{number}", number, Address("s@example.com"), Address(f"p{number}@example.com"), "subject",
                made.html, made.text, datetime(2026, 1, 1, tzinfo=UTC), pieces=(made.html_pieces, made.text_pieces),
            )
        )  # fmt: skip
    groups = share(whole, tag=lambda name: f"-mh{name}-", most_bytes=most_bytes, most=most)
    seen: list[str] = []
    for group in groups:
        assert 1 <= len(group.messages) <= most
        assert len({tuple(values) for values in group.values}) == 1, "one set of tags a group"
        for message, values in zip(group.messages, group.values, strict=True):
            html, text = group.html, group.text
            for tag, value in values.items():
                assert tag in html or tag in text
                html, text = html.replace(tag, value), text.replace(tag, value)
            assert (html, text) == (message.html, message.text)
            assert len("".join([*values, *values.values()]).encode()) <= most_bytes
            seen.append(message.message_id)
    assert sorted(seen) == sorted(message.message_id for message in whole)


def test_messages_in_pieces_travel_together_and_say_each_value_once() -> None:
    template = Template(
        TemplateSource(
            "t", "v", "<p>common words</p>" * 200 + "{% if contact.city %}<p>Fine in {{ contact.city }}</p>{% endif %}"
            + "<p>{{ contact.name }}, {{ contact.name }}</p>", "{{ contact.name }}\nBye", "s", "", None,
            frozenset(), frozenset(), frozenset(),
        )
    )  # fmt: skip
    messages: list[Message] = []
    for n in range(300):
        contact = {"name": f"Person {n}", "city": "York" if n % 3 else ""}
        made = template.render({"contact": contact, "recommendations": [], "locale": ""})
        messages.append(
            Message(
                f"id-{n}", n, Address("s@example.com"), Address(f"p{n}@example.com"), "s", made.html, made.text,
                datetime(2026, 1, 1, tzinfo=UTC), pieces=(made.html_pieces, made.text_pieces),
            )
        )  # fmt: skip
    (group,) = share(messages, tag=lambda name: f"-mh{name}-", most_bytes=9500)
    assert len(group.messages) == 300
    assert {len(values) for values in group.values} == {2}, (
        "the block of a city, and the name in all its places"
    )
