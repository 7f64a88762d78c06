"""What came back: bounces (RFC 3464, and what mail servers wrote before and beside it) and complaints (RFC 5965).

`parse` reads one message. A delivery status report is believed word for word; for all else the text is read up to where
the copy of our own message begins, and whoever is named there is who did not get it. `bounce_class_of` decides what a
failure says about the address:

- `hard`: there is no such mailbox, or no such domain; never write there again.
- `soft`: full, too large, refused for what we wrote or who we are, or timed out. The address may be good.

Whether the server gave up (`is_permanent`) is another question: a full mailbox is often given up at once, and is soft.
Status codes are those of RFC 3463 and its registry; where there is one it decides, not the words around it.
"""

from __future__ import annotations

import email
import email.errors
import email.policy
import email.utils
import html
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message as MimeMessage
from typing import Literal

from senders.message import EventType, RejectReason

BounceClass = Literal["hard", "soft"]

#: Enhanced status codes, without their class, that say the address itself is no good.
HARD_CODES = frozenset({"1.0", "1.1", "1.2", "1.3", "1.6", "1.10", "2.1"})
#: Those that say nothing: the words around them decide.
_VAGUE_CODES = frozenset({"0.0", "3.0", "5.0", "7.0", "2.0"})

_SOFT_WORDS = re.compile(
    r"quota|mail(?:box|folder)[^.\n]{0,40}full|full mailbox|over ?quota|exceed|too much mail|too large|size limit"
    r"|time[d ]*out|try again|temporar|greylist|spam|virus|blocked|blacklist|block list|reputation|policy|DMARC|SPF"
    r"|rate limit|too many|insufficient|storage|not accepting mail from|loop|hop count|command died|Resent-From",
    re.IGNORECASE,
)
_HARD_WORDS = re.compile(
    r"(?:user|recipient|mailbox|address|account|addressee|destinataire|name|destinat[aá]rio)s?\b[^.\n]{0,40}"
    r"(?:unknown|not (?:known|found|exist|listed|recognized|available)|unavailable|disabled|invalid|closed|inactive|"
    r"discontinued)|unknown (?:or illegal )?(?:user|recipient)|no (?:such|mailbox|valid)|"
    r"does(?:n't| not) (?:exist|have an?)|not a valid (?:user|mailbox)|invalid (?:mailbox|recipient|final)|"
    r"bad destination|non recens|no existe|no longer",
    re.IGNORECASE,
)
_DELAYED = re.compile(
    r"delayed|not yet (?:been )?(?:delivered|received)|has been postponed|will (?:be )?(?:continue|retried)|"
    r"still being retried|delivery attempts will continue",
    re.IGNORECASE,
)
_FAILED = re.compile(
    r"undeliver|not (?:be )?deliver|unable to deliver|fail(?:ed|ure)|could not|couldn't|did not receive|did not reach|"
    r"permanent error|not delivered|returned mail|non[- ]delivery|returning message|not accepted|no pudo|"
    r"invalid final delivery|unknown|mailbox is full|was not|wasn't able|not accepting|delivery problem",
    re.IGNORECASE,
)
# from here on a report repeats what we had sent
_COPY = re.compile(
    r"^[ \t>*_=-]*(?:"
    r"(?:begin |this is a copy|below is a copy|here is a copy|--- ?below this line)"
    r"|-{2,}.{0,60}(?:original|returned mail|unsent message|message header|copy of|message text|message follows)"
    r"|(?:original|old) message(?: follows|:)|the (?:first|original) .{0,40}(?:lines|message) .{0,40}(?:follow|:)"
    r"|(?:received: from|return-path:|x-mailer:|message-id:)"
    r").*$",
    re.IGNORECASE | re.MULTILINE,
)
_ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}"
)
# lines that quote the header of our message, and words before an address that is not the recipient's
_QUOTED_FIELD = re.compile(r"^[\s*>]*(?:to|cc|bcc|from|sender|reply-to|subject)\s*:", re.IGNORECASE)
_NOT_RECIPIENT = re.compile(
    r"(?:\bfrom|contact|reply to|write to|report to|postmaster at)[:\s<]*$", re.IGNORECASE
)
_DAEMON = re.compile(
    r"^(?:mailer-daemon|postmaster|mail\.?delivery|mdaemon|abuse|support|noreply|no-reply)@", re.I
)
_STATUS = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b(?!\.\d)")
_REPLY = re.compile(r"(?:^|[\s:>])([45]\d\d)[\s-]")
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_MESSAGE_ID = re.compile(rf"^(?:x-)?(?:message-id|original-envelope-id):\s*<?({_UUID})", re.I | re.M)
_VERP = re.compile(rf"\+({_UUID}|[0-9a-f]{{32}})@", re.IGNORECASE)
_AUTOMATIC = re.compile(
    r"auto[-_ ]?(?:reply|response)|out of (?:the )?office|vacation|autoresponder", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Report:
    """What one report says of one recipient.

    Attributes:
        type: `bounced`, `deferred` (the server goes on trying), `complained`, `unsubscribed` or `autoresponded`.
        email: lower case; empty if the report names nobody.
        message_id: of the message it is about, empty if it cannot be told.
        is_permanent: the server gave up.
        bounce_class: of a bounce or a delay.
        status: enhanced status code such as `5.1.1`, empty if none is given.
        diagnostic: the server's own words, at most 500 characters.
    """

    type: EventType
    email: str = ""
    message_id: str = ""
    is_permanent: bool = False
    bounce_class: BounceClass | Literal[""] = ""
    status: str = ""
    diagnostic: str = ""
    occurred_at: datetime | None = field(default=None, compare=False)

    @property
    def reject_reason(self) -> str:
        """Anymail's word for it."""
        if self.type != EventType.BOUNCED:
            return RejectReason.SPAM if self.type == EventType.COMPLAINED else ""
        if self.status[2:] in HARD_CODES:
            return RejectReason.INVALID
        if self.status[2:4] == "7.":
            return RejectReason.BLOCKED
        return RejectReason.BOUNCED


def bounce_class_of(text: str, status: str = "", *, is_permanent: bool = True) -> BounceClass:
    """What a failure says about the address.

    Args:
        text: the server's words; a status or reply code in it counts where `status` is empty.
        status: enhanced status code.
        is_permanent: the server gave up.
    """
    if not is_permanent or status.startswith("4"):
        return "soft"
    found = status or _status_in(text)
    code = found[2:]
    if code and code not in _VAGUE_CODES:
        return "hard" if found[0] == "5" and code in HARD_CODES else "soft"
    if _SOFT_WORDS.search(text):
        return "soft"
    if _HARD_WORDS.search(text):
        return "hard"
    replies = _REPLY.findall(text)
    if replies and not set(replies) & {"550", "551", "553"}:
        # 552 storage, 554 transaction, 4xx: not the address
        return "soft"
    return "hard"


def _status_in(text: str) -> str:
    for match in _STATUS.finditer(text):
        if match[1] != "2" and f"{match[2]}.{match[3]}" not in _VAGUE_CODES:
            return match[0]
    return ""


def parse(raw: bytes) -> list[Report]:
    """What a message reports, one entry a recipient; empty if it is no report at all."""
    message = email.message_from_bytes(raw)
    text = raw.decode("utf-8", "replace")
    message_id = _message_id(message, text)
    moment = _moment(message)
    complaint = next(
        (part for part in message.walk() if part.get_content_type() == "message/feedback-report"), None
    )
    if complaint is not None:
        return _complaint(message, complaint, message_id, moment)
    reports = _status_reports(message) or _text_reports(message)
    return [
        Report(
            one.type, one.email.lower(), message_id, one.is_permanent, one.bounce_class, one.status,
            " ".join(one.diagnostic.split())[:500], moment,
        )
        for one in reports
    ]  # fmt: skip


def _message_id(message: MimeMessage, text: str) -> str:
    found = None
    for name in ("to", "delivered-to", "x-original-to", "envelope-to"):
        for value in message.get_all(name, []):
            found = found or _VERP.search(str(value))
    # the report's own Message-ID is not one of ours, or it would be no report
    found = found or _MESSAGE_ID.search(text)
    for name in ("in-reply-to", "references"):
        found = found or re.search(rf"<({_UUID})@", str(message.get(name, "")), re.IGNORECASE)
    return str(uuid.UUID(found[1])) if found else ""


def _moment(message: MimeMessage) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(str(message.get("date", "")))
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# complaints


def _complaint(
    message: MimeMessage, part: MimeMessage, message_id: str, moment: datetime | None
) -> list[Report]:
    fields = next(_field_groups(part), {})
    kind = fields.get("feedback-type", "abuse").strip().lower()
    if kind == "not-spam":
        return []
    kinds = {"opt-out": EventType.UNSUBSCRIBED, "opt-out-list": EventType.UNSUBSCRIBED}
    recipient = fields.get("original-rcpt-to") or fields.get("removal-recipient") or ""
    if not recipient:
        enclosed = _enclosed(message)
        recipient = str(enclosed.get("to", "")) if enclosed is not None else ""
    found = _ADDRESS.search(recipient)
    return [
        Report(
            kinds.get(kind, EventType.COMPLAINED), found[0].lower() if found else "", message_id,
            diagnostic=kind, occurred_at=moment,
        )
    ]  # fmt: skip


def _enclosed(message: MimeMessage) -> MimeMessage | None:
    for part in message.walk():
        if part.get_content_type() == "message/rfc822" and part.is_multipart():
            content = part.get_payload(0)
            return content if isinstance(content, MimeMessage) else None
        if part.get_content_type() == "text/rfc822-headers":
            return email.message_from_string(_text_of(part))
    return None


# delivery status reports


def _field_groups(part: MimeMessage) -> Iterator[dict[str, str]]:
    """The groups of header fields of a status or feedback report, names in lower case."""
    payload = part.get_payload()
    blocks: Iterable[object] = (
        payload if isinstance(payload, list) else [email.message_from_string(_text_of(part))]
    )
    for block in blocks:
        if isinstance(block, MimeMessage) and (items := block.items()):
            yield {name.lower(): " ".join(str(value).split()) for name, value in reversed(items)}


def _status_reports(message: MimeMessage) -> list[Report]:
    reports: list[Report] = []
    for part in _own_parts(message):
        if part.get_content_type() != "message/delivery-status":
            continue
        for fields in _field_groups(part):
            recipient = _recipient(fields)
            action = fields.get("action", "").split(" ")[0].lower()
            if not recipient or action in ("delivered", "relayed", "expanded"):
                continue
            status = _STATUS.search(fields.get("status", ""))
            is_permanent = action != "delayed" and (bool(action) or not (status and status[1] == "4"))
            diagnostic = fields.get("diagnostic-code", "") or fields.get("action", "")
            words = diagnostic if diagnostic.lower() not in ("failed", "error") else _report_text(message)
            code = status[0] if status else ""
            # a status without detail is made good by what the server itself had said
            if code[2:] in _VAGUE_CODES:
                code = _status_in(diagnostic) or code
            reports.append(
                Report(
                    EventType.BOUNCED if is_permanent else EventType.DEFERRED, recipient, "", is_permanent,
                    bounce_class_of(words, code, is_permanent=is_permanent), code, diagnostic,
                )
            )  # fmt: skip
    return reports


def _recipient(fields: dict[str, str]) -> str:
    # who we wrote to stands in the first; the second is where it was forwarded to
    for name in ("original-recipient", "final-recipient"):
        value = fields.get(name, "")
        kind, separator, address = value.partition(";")
        if separator and kind.strip().lower() not in ("rfc822", "utf-8"):
            continue
        found = _ADDRESS.search(address if separator else value)
        if found:
            return found[0]
    return ""


# all other reports


def _own_parts(message: MimeMessage) -> Iterator[MimeMessage]:
    """The parts of the report itself, not those of the message that it returns."""
    kind = message.get_content_type()
    if kind in ("message/rfc822", "text/rfc822-headers"):
        return
    yield message
    if message.is_multipart() and kind.startswith("multipart/"):
        for part in message.get_payload():
            if isinstance(part, MimeMessage):
                yield from _own_parts(part)


def _text_of(part: MimeMessage) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        payload = str(part.get_payload()).encode("utf-8", "replace")
    try:
        return payload.decode(part.get_content_charset() or "utf-8", "replace")
    except LookupError:
        return payload.decode("latin-1")


def _report_text(message: MimeMessage) -> str:
    texts: list[str] = []
    for part in _own_parts(message):
        if part.get_content_type() == "text/plain" and not part.is_multipart():
            texts.append(_text_of(part))
        elif part.get_content_type() == "text/html":
            texts.append(html.unescape(re.sub(r"<(?!\S+@)[^>]*>", "\n", _text_of(part))))
    text = "\n".join(texts)
    found = _COPY.search(text)
    return text[: found.start()] if found and text[: found.start()].strip() else text


def _text_reports(message: MimeMessage) -> list[Report]:
    text = _report_text(message)
    subject = _header(message, "subject")
    if _AUTOMATIC.search(f"{subject} {message.get('precedence', '')} {message.get('x-precedence', '')}"):
        return [Report(EventType.AUTORESPONDED)]
    if not _is_report(message, subject, text):
        return []
    recipients = _recipients(message, subject, text)
    is_permanent = not (_DELAYED.search(f"{subject}\n{text}"))
    reports: list[Report] = []
    for recipient, words in _words_by_recipient(recipients, text).items():
        status = _status_in(words)
        reports.append(
            Report(
                EventType.BOUNCED if is_permanent else EventType.DEFERRED, recipient, "", is_permanent,
                bounce_class_of(f"{subject}\n{words}", status, is_permanent=is_permanent), status, words.strip()[:500],
            )
        )  # fmt: skip
    return reports


def _words_by_recipient(recipients: list[str], text: str) -> dict[str, str]:
    """What is said of each: all of it where there is but one, else from where one is named to where the next is."""
    if len(recipients) < 2:
        return dict.fromkeys(recipients, text)
    places = sorted((max(0, text.lower().find(recipient)), recipient) for recipient in recipients)
    ends = [place for place, _ in places[1:]] + [len(text)]
    return {recipient: text[place:end] for (place, recipient), end in zip(places, ends, strict=True)}


def _header(message: MimeMessage, name: str) -> str:
    value = str(message.get(name, ""))
    try:
        from email.header import decode_header, make_header

        return " ".join(str(make_header(decode_header(value))).split())
    except (LookupError, UnicodeDecodeError, ValueError, email.errors.HeaderParseError):
        return value


def _is_report(message: MimeMessage, subject: str, text: str) -> bool:
    """A person who writes 'could not' is no mail server: who sent it, or what it is called, must say so too."""
    sender = email.utils.parseaddr(str(message.get("from", "")))[1]
    is_machine = (
        not sender
        or bool(_DAEMON.match(sender))
        or message.get_content_type() == "multipart/report"
        or "x-failed-recipients" in message
        or str(message.get("return-path", "")).strip() == "<>"
        or bool(re.search(r"deliver|undeliver|returned mail|failure notice", subject, re.IGNORECASE))
    )
    return is_machine and bool(_FAILED.search(f"{subject}\n{text}") or _DELAYED.search(f"{subject}\n{text}"))


def _recipients(message: MimeMessage, subject: str, text: str) -> list[str]:
    failed = message.get_all("x-failed-recipients", [])
    if failed:
        return list(
            dict.fromkeys(found for value in failed for found in _ADDRESS.findall(str(value).lower()))
        )
    own = {
        address.lower()
        for name in ("from", "to", "delivered-to", "return-path", "sender")
        for value in message.get_all(name, [])
        for address in _ADDRESS.findall(str(value))
    }
    if "NAME@" in text and (names := _bare_names(message, text)):
        return names
    found: dict[str, None] = {}
    for line in [*text.splitlines(), subject]:
        if _QUOTED_FIELD.match(line):
            continue
        line = line.replace("SMTP=", " ")
        for match in _ADDRESS.finditer(line):
            address = match[0].strip("'*").lower()
            if address in own or _DAEMON.match(address) or _NOT_RECIPIENT.search(line[: match.start()]):
                continue
            found.setdefault(address)
    if not found and not (names := _bare_names(message, text)):
        # nothing but the header of what was sent
        to = re.search(r"^[ \t]*to: (.*)$", text, re.IGNORECASE | re.MULTILINE)
        return list(dict.fromkeys(address.lower() for address in _ADDRESS.findall(to[1]))) if to else []
    return list(found) or _bare_names(message, text)


def _bare_names(message: MimeMessage, text: str) -> list[str]:
    """Servers that name their own users without the domain: it is the server's."""
    listed = re.search(
        r"(?:recipients?|following)[^:]*:\s*\n\s*\n?\s+([\w.+-]+)(?:\s|$)", text, re.IGNORECASE
    )
    if not listed:
        return []
    examples = re.findall(r"\be?mail\w*\s+(?:to\s+)?NAME@([\w.-]+\w)", text)
    sender = email.utils.parseaddr(str(message.get("from", "")))[1].rpartition("@")[2]
    return sorted({f"{listed[1]}@{domain}".lower() for domain in examples or [sender]})
