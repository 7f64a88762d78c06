"""The few pages that recipients see: plain HTML without script or cookies, for a phone and in the dark, too."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import groupby

from campaigns.purposes import PurposeText
from gateway.preferences import Choice, Preferences
from gateway.subscriptions import Confirmation
from gateway.unsubscribes import Recipient

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1f;--soft:#5a5a66;--paper:#f4f4f6;--card:#fff;--line:#d9d9e0;--strong:#1f4fd8;
--on-strong:#fff;--good:#e7f4ec;--good-ink:#14532d;--note:#fff6e0;--note-ink:#5b3a00}
@media(prefers-color-scheme:dark){:root{--ink:#f0f0f3;--soft:#a9a9b6;--paper:#131316;--card:#1d1d22;--line:#3a3a44;
--strong:#9db8ff;--on-strong:#10131c;--good:#15301f;--good-ink:#c5ecd2;--note:#33290f;--note-ink:#ffe2a3}}
*{box-sizing:border-box}
body{margin:0;font:1.0625rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:break-word}
main{max-width:36rem;margin:0 auto;padding:2rem 1rem 3rem}
.company{margin:0 0 1.25rem;font-weight:600;color:var(--soft)}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.1rem;margin:0 0 .25rem}
p{margin:0 0 1rem}
.soft{color:var(--soft)}
.card,fieldset{background:var(--card);border:1px solid var(--line);border-radius:.75rem;margin:0 0 1rem;
padding:1rem 1.1rem}
legend{float:left;width:100%;font-weight:600;font-size:1.1rem;padding:0;margin:0 0 .25rem}
legend+*{clear:both}
.choice{display:flex;align-items:center;gap:.85rem;padding:.7rem 0;border-top:1px solid var(--line);cursor:pointer;
min-height:3rem;clear:both}
.choice:last-child{padding-bottom:.2rem}
.choice span{flex:1}
input[type=checkbox]{appearance:none;-webkit-appearance:none;flex:none;margin:0;width:3rem;height:1.75rem;
border-radius:1rem;border:2px solid var(--soft);background:transparent;position:relative;cursor:pointer}
input[type=checkbox]::before{content:"";position:absolute;top:.2rem;left:.2rem;width:1.1rem;height:1.1rem;
border-radius:50%;background:var(--soft)}
input[type=checkbox]:checked{background:var(--strong);border-color:var(--strong)}
input[type=checkbox]:checked::before{left:auto;right:.2rem;background:var(--on-strong)}
input[type=checkbox]:disabled{opacity:.5;cursor:not-allowed}
button{font:inherit;font-weight:600;padding:.75rem 1.3rem;min-height:3rem;border:2px solid var(--strong);
border-radius:.6rem;background:var(--strong);color:var(--on-strong);cursor:pointer}
button.quiet{background:transparent;color:var(--strong)}
button:focus-visible,input:focus-visible,a:focus-visible{outline:3px solid var(--strong);outline-offset:3px}
.status{background:var(--good);color:var(--good-ink);border-radius:.75rem;padding:.8rem 1.1rem}
.note{background:var(--note);color:var(--note-ink);border-radius:.75rem;padding:.8rem 1.1rem}
input[type=email]{font:inherit;width:100%;padding:.7rem .8rem;min-height:3rem;border:2px solid var(--soft);
border-radius:.6rem;background:var(--card);color:var(--ink);margin:.25rem 0 0}
input[aria-invalid=true]{border-color:var(--note-ink)}
.field{display:block;font-weight:600;margin:0 0 1rem}
.away{position:absolute;left:-999rem;width:1px;height:1px;overflow:hidden}
@media(max-width:30rem){button{width:100%}main{padding-top:1.25rem}}
@media(forced-colors:active){input[type=checkbox]{appearance:auto;-webkit-appearance:auto;width:1.5rem;height:1.5rem}}
"""

_SUPPRESSED = {
    "everything": "You are unsubscribed from everything, so no marketing comes. Choose below what you want again.",
    "unsubscribed": "This address is unsubscribed and gets no marketing emails. Choose below what you want again.",
    "complained": "A message to this address was reported as unwanted, so we send it no marketing emails any more.",
    "bounced": "Messages to this address came back, so we send nothing to it any more.",
}


_STOPPED_NUMBER = '<br><span class="soft">Your number replied STOP. Reply START to get them again.</span>'


def _page(title: str, body: str, company: str = "") -> bytes:
    head = f'<p class="company">{html.escape(company)}</p>' if company else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{head}<h1>{html.escape(title)}</h1>{body}</main></body></html>"
    ).encode()


def confirm_page(recipient: Recipient, company: str) -> bytes:
    """Ask before unsubscribing: a link that a scanner follows must change nothing."""
    sender = f" from {html.escape(company)}" if company else ""
    return _page(
        "Unsubscribe?",
        f"<p>Stop marketing {_kind(recipient)}{sender} to <strong>{html.escape(recipient.shown)}</strong>?</p>"
        '<form method="post"><input type="hidden" name="confirm" value="yes">'
        '<p><button type="submit">Yes, unsubscribe</button></p></form>'
        '<p class="soft">Messages about your orders or your account will still reach you.</p>',
    )


def done_page(recipient: Recipient, company: str) -> bytes:
    """Say that it is done."""
    sender = f" from {html.escape(company)}" if company else ""
    return _page(
        "You are unsubscribed",
        f'<p class="status" role="status"><strong>{html.escape(recipient.shown)}</strong> gets no more marketing '
        f"{_kind(recipient)}{sender}.</p><p>You can close this page.</p>",
    )


def _kind(recipient: Recipient) -> str:
    return "text messages" if recipient.phone else "emails"


def preferences_page(recipient: Recipient, company: str, preferences: Preferences, status: str = "") -> bytes:
    """What the recipient gets, to be changed: works without script, by one form.

    Args:
        status: what was done just now, if anything was.
    """
    parts = [
        f"<p>What we may send to <strong>{html.escape(recipient.shown)}</strong>. "
        "Messages about your orders or your account always reach you.</p>"
    ]
    if status:
        parts.append(f'<p class="status" role="status">{html.escape(status)}</p>')
    if preferences.suppressed_by:
        reason = "everything" if preferences.is_global else preferences.suppressed_by
        note = _SUPPRESSED.get(reason, _SUPPRESSED["complained"])
        parts.append(f'<p class="note">{html.escape(note)}</p>')
    elif preferences.paused_until:
        parts.append(
            f'<p class="note">Paused until {_day(preferences.paused_until)}. '
            "Save a choice below, and the pause is over.</p>"
        )
    parts.append('<form method="post">')
    for title, group in groupby(preferences.choices, key=lambda one: (one.title, one.description)):
        parts.append(_fieldset(*title, list(group)))
    if not preferences.is_final:
        parts.append('<p><button type="submit" name="do" value="save">Save my choices</button></p>')
    if preferences.granted:
        parts.append(
            '<div class="card"><h2>Need a break?</h2><p class="soft">Nothing for 30 days; then all goes on as it is '
            'now.</p><button class="quiet" type="submit" name="do" value="pause">Pause for 30 days</button></div>'
        )
    if preferences.granted or not preferences.suppressed_by:
        parts.append(
            '<div class="card"><h2>Unsubscribe from everything</h2><p class="soft">No marketing messages any more, by '
            'any way.</p><button class="quiet" type="submit" name="do" value="stop">Unsubscribe from all</button></div>'
        )
    parts.append("</form>")
    return _page("Your preferences", "".join(parts), company)


def _fieldset(title: str, description: str, choices: Sequence[Choice]) -> str:
    text = f'<p class="soft">{html.escape(description)}</p>' if description else ""
    boxes = "".join(
        f'<label class="choice"><span>{html.escape(one.channel)}'
        f"{_STOPPED_NUMBER if one.stopped_by == 'stop' else ''}</span>"
        f'<input type="checkbox" name="want" value="{html.escape(":".join(one.pair))}"'
        f"{' checked' if one.is_granted else ''}{' disabled' if one.is_final else ''}></label>"
        for one in choices
    )
    return f"<fieldset><legend>{html.escape(title)}</legend>{text}{boxes}</fieldset>"


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y}"


def subscribe_page(
    purposes: Mapping[str, PurposeText],
    company: str,
    *,
    email: str = "",
    chosen: Collection[str] = (),
    problems: Mapping[str, str] | None = None,
) -> bytes:
    """The form on which somebody asks for a subscription: works without script.

    Args:
        purposes: what is offered.
        email, chosen: what was filled in, if it is shown again.
        problems: what is wrong with it, by field: `email`, `purpose`.
    """
    wrong = problems or {}
    parts: list[str] = []
    if wrong:
        said = "".join(f"<br>{html.escape(text)}" for text in wrong.values())
        parts.append(f'<p class="note" role="alert"><strong>Please look at this again.</strong>{said}</p>')
    parts.append('<form method="post" action="/subscribe">')
    flagged = ' aria-invalid="true" aria-describedby="email-problem"' if "email" in wrong else ""
    hint = (
        f'<span class="soft" id="email-problem">{html.escape(wrong["email"])}</span>'
        if "email" in wrong
        else ""
    )
    parts.append(
        f'<label class="field">Your email address<input type="email" name="email" required maxlength="254" '
        f'autocomplete="email" value="{html.escape(email)}"{flagged}>{hint}</label>'
    )
    # people neither see nor reach this field; programs that fill in everything do
    parts.append(
        '<div class="away" aria-hidden="true"><label>Leave this empty<input type="text" name="website" tabindex="-1" '
        'autocomplete="off"></label></div>'
    )
    if len(purposes) == 1:
        ((name, text),) = purposes.items()
        parts.append(
            f'<div class="card"><h2>{html.escape(text.title)}</h2>{_soft(text.description)}'
            f"<p>{html.escape(text.agreed(company))}</p></div>"
            f'<input type="hidden" name="purpose" value="{html.escape(name)}">'
        )
    else:
        boxes = "".join(
            f'<label class="choice"><span><strong>{html.escape(text.title)}</strong><br>'
            f"{html.escape(text.agreed(company))}{_soft(text.description)}</span>"
            f'<input type="checkbox" name="purpose" value="{html.escape(name)}"'
            f"{' checked' if name in chosen else ''}></label>"
            for name, text in purposes.items()
        )
        parts.append(f"<fieldset><legend>What would you like to get?</legend>{boxes}</fieldset>")
    parts.append('<p><button type="submit">Subscribe</button></p></form>')
    parts.append('<p class="soft">We write to you first and ask you to confirm.</p>')
    return _page("Subscribe", "".join(parts), company)


def requested_page(company: str) -> bytes:
    """Say what comes next: the same to everybody, known or not."""
    return _page(
        "Please look into your mailbox",
        '<p class="status" role="status">Thank you. If your subscription needs to be confirmed, a message with a link '
        "is on its way to you.</p><p>It may take a minute. If it does not come, look into the folder for spam; you can "
        "ask again in an hour.</p>",
        company,
    )


def confirm_subscription_page(confirmation: Confirmation, company: str) -> bytes:
    """Ask before it holds: scanners follow links, and confirm nothing."""
    listed = "".join(f"<li>{html.escape(title)}</li>" for title in confirmation.titles)
    hidden = "".join(
        f'<input type="hidden" name="request" value="{html.escape(one)}">' for one in confirmation.requests
    )
    sender = f" from {html.escape(company)}" if company else ""
    return _page(
        "Confirm your subscription",
        f"<p>You asked that <strong>{html.escape(confirmation.recipient.shown)}</strong> gets this{sender}:</p>"
        f'<ul class="card">{listed}</ul><form method="post">{hidden}<input type="hidden" name="confirm" value="yes">'
        '<p><button type="submit">Yes, I want this</button></p></form>'
        '<p class="soft">If it was not you, close this page: nothing will be sent.</p>',
        company,
    )


def confirmed_page(confirmation: Confirmation, company: str, preferences_url: str, *, is_new: bool) -> bytes:
    """Say that it holds, or that this link has done its work before."""
    listed = html.escape(", ".join(confirmation.titles))
    address = html.escape(confirmation.recipient.shown)
    link = f'<p><a href="{html.escape(preferences_url)}">Choose what you get, or stop it</a></p>'
    if is_new:
        return _page(
            "You are subscribed",
            f'<p class="status" role="status">Thank you. <strong>{address}</strong> now gets: {listed}.</p>{link}',
            company,
        )
    day = f" on {_day(confirmation.confirmed_at)}" if confirmation.confirmed_at else ""
    return _page(
        "You have confirmed this already",
        f'<p class="status" role="status">This link was used{day} for <strong>{address}</strong>: {listed}. '
        f"There is nothing more to do.</p>{link}",
        company,
    )


def expired_page(company: str) -> bytes:
    """Say kindly that a link is too old."""
    return _page(
        "This link is too old",
        '<p class="note">Links that confirm a subscription are good for some days only, and this one is not good any '
        'more. Nothing has changed.</p><p><a href="/subscribe">Subscribe again</a>, and a new one comes.</p>',
        company,
    )


def blocked_page(confirmation: Confirmation, company: str) -> bytes:
    """Say that we may not write to an address."""
    return _page(
        "We cannot write to this address",
        f'<p class="note">Messages to <strong>{html.escape(confirmation.recipient.shown)}</strong> came back, or were '
        "reported as unwanted, so we send none any more. Please subscribe with another address.</p>",
        company,
    )


def _soft(text: str) -> str:
    return f'<p class="soft">{html.escape(text)}</p>' if text else ""


def unstored_page() -> bytes:
    """Say that it is not done yet."""
    return _page(
        "Please try again in a minute",
        '<p class="note" role="alert">We could not store your choice just now, so you are <strong>not</strong> '
        "unsubscribed yet, and nothing else has changed. Reload this page, or press the button again, in a minute.</p>",
    )


def refused_page(title: str, text: str) -> bytes:
    """Say no, without detail."""
    return _page(title, f"<p>{html.escape(text)}</p>")
