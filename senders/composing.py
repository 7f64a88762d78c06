"""From a template and a batch of contacts to the bytes of whole messages, as fast as Python can.

A `Composer` is made once a process and send, from two things that can be pickled: a `TemplateSource` and an `Envelope`.
Headers that all messages share are encoded then, and so is what is constant in the template (`senders.wire`).
What it writes parses, field for field, as what `senders.mime.build` makes of the same message.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from senders.event_context import EVENT_COLUMN, event_context
from senders.links import Links
from senders.message import Address
from senders.mime import (
    BOUNDARY,
    ascii_domain,
    body_ends,
    header_date,
    header_lines,
    mailbox,
    one_line,
    unstructured,
)
from senders.mime import address as header_address
from senders.rows import Rows, columns_of, items_of
from senders.tags import Pair, Product, Shelf
from senders.templates import (
    GLOBALS,
    RENDER_ERRORS,
    Recommendations,
    RenderError,
    Template,
    TemplateSource,
    render_error,
)
from senders.tracking import MessageLinks
from warehouse.errors import SettingsError

if TYPE_CHECKING:
    from senders.dkim import DkimSigner
    from senders.plan import SendPlan
    from senders.settings import SenderSettings

__all__ = ["Batch", "Composer", "Envelope", "RecipientError", "keep_heap", "render_batch", "render_rows"]

_log = logging.getLogger("mailhouse.composing")
_KEPT_HEADINGS = 4096
_PLAIN_VALUES = frozenset({str, type(None)})
_HTML_BOUNDARY = b"\r\n--%b\r\n" % BOUNDARY.encode()


class RecipientError(RenderError):
    """The contact has no address that mail can go to; the text does not repeat it."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What all messages of one send have in common. Can be pickled; holds the signing key, so never log it.

    Attributes:
        constants: names of the context that are the same for everybody: campaign (its `variant` may be empty),
            postal_address, company_name.
        links: makes the signed links.
        is_marketing: whether each message says in its header how to unsubscribe (RFC 8058).
        headers: further header fields, the same for everybody, unfolded ASCII.
        signer: signs each message; None where the provider does, or nobody.
    """

    sender: Address
    constants: Mapping[str, Any]
    links: Links = field(repr=False)
    is_marketing: bool = True
    reply_to: Address | None = None
    headers: tuple[tuple[str, str], ...] = ()
    signer: DkimSigner | None = None

    @classmethod
    def of(cls, plan: SendPlan, settings: SenderSettings) -> Envelope:
        """The envelope of a plan's messages, as the settings have it.

        Raises:
            SettingsError: the sender's address or a DKIM key cannot be used.
        """
        sender = sender_of(plan, settings)
        return cls(
            sender=sender,
            constants=constants_of(plan, settings),
            links=Links(settings.signing_key(), settings.base_url),
            is_marketing=plan.category == "marketing",
            reply_to=Address(plan.reply_to) if plan.reply_to else None,
            headers=identity_headers(plan, sender),
            signer=signer_of(settings, sender.email),
        )


def signer_of(settings: SenderSettings, sender: str) -> DkimSigner | None:
    """The signer of the settings, see `DkimSigner.from_settings`; None if they name no key."""
    if settings.dkim_key is None and settings.dkim_second_key is None:
        # whoever does not sign need not import what signs
        return None
    from senders.dkim import DkimSigner

    return DkimSigner.from_settings(settings, sender)


def constants_of(plan: SendPlan, settings: SenderSettings) -> dict[str, Any]:
    """What merge tags may name that is the same for everybody."""
    return {
        "campaign": {
            "kind": plan.kind, "name": plan.name, "version": plan.version, "occurrence": plan.occurrence,
            "category": plan.category, "variant": plan.variant,
        },
        "postal_address": settings.postal_address,
        "company_name": settings.company_name,
    }  # fmt: skip


def sender_of(plan: SendPlan, settings: SenderSettings) -> Address:
    """Whom messages come from: the campaign's sender, else the settings'.

    Raises:
        SettingsError: the address cannot be used.
    """
    sender = Address(plan.from_email or settings.from_email, one_line(plan.from_name or settings.from_name))
    try:
        mailbox(sender.email)
    except ValueError as error:
        raise SettingsError(
            f"The sender address {sender.email!r} cannot be used: {error}.",
            fix="Correct MAILHOUSE_FROM_EMAIL, or `from_email` in the campaign.",
        ) from None
    return sender


def identity_headers(plan: SendPlan, sender: Address) -> tuple[tuple[str, str], ...]:
    """What mailbox providers tell mailings apart by: List-Id (RFC 2919) for marketing, Gmail's Feedback-ID for all."""
    label = "".join(c if c.isalnum() and c.isascii() else "-" for c in plan.name).strip("-") or plan.kind
    feedback = ("Feedback-ID", f"{label}:{plan.category}:{plan.kind}:mailhouse")
    if plan.category != "marketing":
        return (feedback,)
    return (("List-Id", f"<{label}.{ascii_domain(sender.email.rpartition('@')[2])}>"), feedback)


class Composer:
    """Writes the messages of one send.

    Raises:
        ValueError: a header of the envelope cannot be written.
    """

    def __init__(self, source: TemplateSource | Template, envelope: Envelope) -> None:
        self.template = source if isinstance(source, Template) else Template(source)
        self.envelope = envelope
        # the header needs it whatever the template says
        self._names = self.template.names | ({"unsubscribe_url"} if envelope.is_marketing else set())
        self._links = MessageLinks(envelope.links, self.template.source.tracking, self._names)
        self._shelves: dict[tuple[Any, ...], Shelf] = {}
        self._headings: dict[tuple[Any, ...], tuple[str, str, bytes]] = {}
        self._constants = {
            **GLOBALS, "preheader": "", **envelope.constants, **self._links.constants,
            "campaign": {"variant": "", **envelope.constants.get("campaign", {})},
        }  # fmt: skip
        domain = ascii_domain(envelope.sender.email.rpartition("@")[2])
        self._from = f"From: {header_address(envelope.sender, 6)}\r\nTo: ".encode()
        self._after_id = f"@{domain}>\r\n".encode()
        shared = list(envelope.headers)
        lines = header_lines(shared)
        if envelope.reply_to is not None:
            lines.insert(0, f"Reply-To: {header_address(envelope.reply_to, 10)}")
        lines += ["MIME-Version: 1.0", ""]
        self._shared = "\r\n".join(lines).encode()
        self._attached = {
            one.locale: body_ends(one.attachments)
            for one in (self.template.source, *self.template.source.translations)
        }
        # compiled now: whoever measures or forks wants it done
        for locale in self._attached:
            for kind, part in zip(("text", "HTML"), self.template.in_locale(locale).wire_parts, strict=True):
                if not part.is_precompiled:
                    _log.info(
                        "%s%s: the %s part is mostly not ASCII: it goes as base64 and is made whole for each message",
                        self.template.name, f" in {locale}" if locale else "", kind,
                    )  # fmt: skip

    def context(
        self,
        contact: Mapping[str, Any],
        recommendations: Sequence[Any],
        message_id: str,
        now: datetime,
        variant: str = "",
    ) -> dict[str, Any]:
        """What merge tags of one message may name; the event is in the contact's `EVENT_COLUMN`."""
        context = {
            **self._constants, **self._links.of(message_id),
            "contact": contact, "recommendations": Recommendations(recommendations), "now": now,
        }  # fmt: skip
        if "event" in self._names:
            context["event"] = event_context(contact.get(EVENT_COLUMN))
        if variant and not context["campaign"]["variant"]:
            context["campaign"] = {**context["campaign"], "variant": variant}
        return context

    def compose(self, context: dict[str, Any], message_id: str, sent_at: datetime) -> bytes:
        """One message, header and all, with CRLF line ends; see `composed`."""
        return self.composed(context, message_id, sent_at)[0]

    def composed(
        self,
        context: dict[str, Any],
        message_id: str,
        sent_at: datetime,
        pairs: Sequence[Pair] | None = None,
    ) -> tuple[bytes, str]:
        """One message, header and all, with CRLF line ends, and its subject.

        Args:
            context: from `context`, with a contact that has `email`, and `first_name` and `last_name` if known; gets
                `preheader`.
            pairs: what the template's `tags.of_contact` print of this contact; see `senders.wire.WirePart.write`.

        Raises:
            RecipientError: the contact's address cannot be used.
            RenderError: something is missing for this contact, or does not fit a filter.
        """
        contact = context["contact"]
        template = self.template.in_locale(contact.get("locale"))
        locale = context["locale"] = template.source.locale
        try:
            recipient = header_address(Address(contact["email"] or "", name_of(contact)), 4)
        except ValueError as error:
            raise RecipientError(str(error)) from None
        attached = self._attached[locale]
        try:
            subject, context["preheader"], heading = self._heading(template, context)
            out = [
                self._from, recipient.encode(), b"\r\nSubject: ", heading,
                b"\r\nMessage-ID: <", message_id.encode("ascii"), self._after_id, header_date(sent_at),
            ]  # fmt: skip
            if self.envelope.is_marketing:
                out.append(
                    b"List-Unsubscribe: <%b>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
                    % context["unsubscribe_url"].encode("ascii")
                )
            text, html = template.wire_parts
            out += (self._shared, attached[0])
            text.write(context, out, pairs)
            out.append(_HTML_BOUNDARY)
            html.write(context, out, pairs)
        except RENDER_ERRORS as error:
            raise render_error(error) from error
        out.append(attached[1])
        raw = b"".join(out)
        if self.envelope.signer is None:
            return raw, subject
        # our quoted-printable and base64 are in that form; file names may not be
        return self.envelope.signer.sign(raw, is_relaxed=not template.source.attachments), subject

    def products(self, template: Template, rows: Rows) -> list[Sequence[Product]]:
        """The products of each row, with what the tags of this translation print of them."""
        if not rows.counts:
            return [()] * rows.height
        source = template.source
        key = (source.locale, *((name, column.kind) for name, column in rows.items.items()))
        shelf = self._shelves.get(key)
        if shelf is None:
            links, parameters = self.envelope.links, source.tracking.parameters
            shelf = self._shelves[key] = Shelf(
                template.tags, rows.items, source.locale,
                lambda index, url: links.target_with(index, url, parameters) if source.tracking.clicks else None,
            )  # fmt: skip
        made = iter(shelf.products(rows.items, sum(rows.counts)))
        return [tuple(itertools.islice(made, count)) for count in rows.counts]

    def _heading(self, template: Template, context: dict[str, Any]) -> tuple[str, str, bytes]:
        """Subject, preheader, and the subject as its header has it: once for all whose fields in it are the same."""
        fields = template.heading_fields
        if fields is None:
            subject, preheader = template.heading(context)
            return subject, preheader, unstructured(subject, 9).encode()
        get = context["contact"].get
        values = tuple([get(name) for name in fields])
        # 1, True and Decimal('1.00') are one key and print differently
        if not _PLAIN_VALUES.issuperset(map(type, values)):
            subject, preheader = template.heading(context)
            return subject, preheader, unstructured(subject, 9).encode()
        key = (template.source.locale, *values)
        known = self._headings.get(key)
        if known is None:
            subject, preheader = template.heading(context)
            if len(self._headings) >= _KEPT_HEADINGS:
                self._headings.clear()
            known = self._headings[key] = (subject, preheader, unstructured(subject, 9).encode())
        return known


def name_of(contact: Mapping[str, Any]) -> str:
    """A contact's name as one line of a header."""
    first, last = contact.get("first_name"), contact.get("last_name")
    return one_line(f"{first} {last}" if first and last else str(first or last or ""))


def keep_heap(size: int = 256 << 20) -> bool:
    """Have glibc keep freed memory up to a size for this process, for workers that compose.

    Messages of 40 KB are made and freed by the hundred. By default glibc gives such memory back to the system at once
    and asks for it again, a page fault every 4 KB: a quarter of the whole cost of a message.

    Args:
        size: bytes that are kept at most, and by which the heap grows an eighth at a time.

    Returns:
        Whether this C library could be told so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h
    return bool(mallopt(-1, size)) and bool(mallopt(-2, size // 8))


def render_batch(
    composer: Composer,
    contacts: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    message_ids: Sequence[str],
    now: datetime,
    *,
    recommendations: Sequence[Sequence[Any] | None] | None = None,
    variants: Sequence[str] | None = None,
    subjects: list[str] | None = None,
) -> list[bytes | RenderError]:
    """`render_rows` of Python values.

    Args:
        contacts: profiles, as columns (lists by name) or as one dict each; with `email`, and what the template uses.
        recommendations: each contact's products, best first; dicts with `product_id`, `name`, `price` and so on.
    """
    products = recommendations or []
    rows = Rows(
        len(message_ids), columns_of(contacts), [len(one or ()) for one in products], items_of(products)
    )
    return render_rows(composer, rows, message_ids, now, variants=variants, subjects=subjects)


def render_rows(
    composer: Composer,
    rows: Rows,
    message_ids: Sequence[str],
    now: datetime,
    *,
    variants: Sequence[str] | None = None,
    subjects: list[str] | None = None,
) -> list[bytes | RenderError]:
    """The messages of a batch of contacts, in their order; an error stands where a message could not be made.

    Args:
        rows: profiles with `email`, and what the template uses.
        message_ids: one a contact.
        now: the Date header, and `now` in merge tags; UTC.
        variants: each contact's variant of the experiment.
        subjects: a list that gets each message's subject, empty where there is an error.
    """
    batch = Batch(composer, rows, message_ids, now, variants=variants)
    done = [batch.make(position) for position in range(rows.height)]
    if subjects is not None:
        subjects += batch.subjects
    return done


class Batch:
    """Messages of some contacts, each made when it is asked for. As `render_rows`.

    Attributes:
        subjects: of the messages made so far, by position; empty where there is none.
    """

    def __init__(
        self,
        composer: Composer,
        rows: Rows,
        message_ids: Sequence[str],
        now: datetime,
        *,
        variants: Sequence[str] | None = None,
    ) -> None:
        self._composer, self._message_ids, self._now = composer, message_ids, now
        self._sent_at = now.replace(microsecond=0)
        self._variants = variants or [""] * rows.height
        self.subjects = [""] * rows.height
        self._contacts = rows.contacts()
        groups = _by_template(composer.template, rows)
        if len(groups) == 1:
            ((template, _),) = groups.items()
            self._pairs: Sequence[Sequence[Pair]] = _printed(template, rows)
            self._products: Sequence[Sequence[Product]] = composer.products(template, rows)
            return
        pairs: list[Sequence[Pair]] = [()] * rows.height
        products: list[Sequence[Product]] = [()] * rows.height
        for template, places in groups.items():
            mine = rows.only(places)
            found = zip(places, _printed(template, mine), composer.products(template, mine), strict=True)
            for at, printed, goods in found:
                pairs[at], products[at] = printed, goods
        self._pairs, self._products = pairs, products

    def make(self, position: int) -> bytes | RenderError:
        """One message, or why it could not be made."""
        composer, message_id = self._composer, self._message_ids[position]
        try:
            context = composer.context(
                self._contacts[position],
                self._products[position],
                message_id,
                self._now,
                self._variants[position],
            )
            raw, self.subjects[position] = composer.composed(
                context, message_id, self._sent_at, self._pairs[position]
            )
        except RenderError as error:
            return error
        return raw


def _by_template(template: Template, rows: Rows) -> dict[Template, list[int]]:
    """Which rows get which translation."""
    locales = rows.columns.get("locale")
    if locales is None or not template.source.translations:
        return {template: []}
    groups: dict[Template, list[int]] = {}
    for at, locale in enumerate(locales.objects):
        groups.setdefault(template.in_locale(locale), []).append(at)
    return groups or {template: []}


def _printed(template: Template, rows: Rows) -> list[Sequence[Pair]]:
    """What tags print of each contact."""
    tags = template.tags.of_contact
    locale = template.source.locale
    columns = [tag.pairs(rows.columns.get(tag.field), rows.height, locale) for tag in tags]
    return list(zip(*columns, strict=True)) if columns else [()] * rows.height
