"""The few pages that recipients see: plain HTML, readable without style, script or cookies."""

from __future__ import annotations

import html

_STYLE = (
    "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}h1{font-size:1.6rem;line-height:1.25}button{font:inherit;padding:.7rem 1.4rem;border:0;"
    "border-radius:.4rem;background:#1a1a1a;color:#fff;cursor:pointer}button:focus-visible{outline:3px solid #06c;"
    "outline-offset:3px}@media(prefers-color-scheme:dark){body{background:#161616;color:#f0f0f0}"
    "button{background:#f0f0f0;color:#161616}}"
)


def _page(title: str, body: str) -> bytes:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1>{body}</main></body></html>"
    ).encode()


def confirm_page(email: str, company: str) -> bytes:
    """Ask before unsubscribing: a link that a scanner follows must change nothing."""
    sender = f" from {html.escape(company)}" if company else ""
    return _page(
        "Unsubscribe?",
        f"<p>Stop marketing emails{sender} to <strong>{html.escape(masked(email))}</strong>?</p>"
        '<form method="post"><input type="hidden" name="confirm" value="yes">'
        '<button type="submit">Yes, unsubscribe</button></form>'
        "<p>Messages about your orders or your account will still reach you.</p>",
    )


def done_page(email: str, company: str) -> bytes:
    """Say that it is done."""
    sender = f" from {html.escape(company)}" if company else ""
    return _page(
        "You are unsubscribed",
        f'<p role="status"><strong>{html.escape(masked(email))}</strong> gets no more marketing emails{sender}.</p>'
        "<p>You can close this page.</p>",
    )


def unstored_page() -> bytes:
    """Say that it is not done yet."""
    return _page(
        "Please try again in a minute",
        '<p role="alert">We could not store your choice just now, so you are <strong>not</strong> unsubscribed yet. '
        "Reload this page, or press the button again, in a minute.</p>",
    )


def refused_page(title: str, text: str) -> bytes:
    """Say no, without detail."""
    return _page(title, f"<p>{html.escape(text)}</p>")


def masked(email: str) -> str:
    """Enough of an address for its owner to know it: the link may be in somebody else's hands."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1]}•••@{domain}" if local else "your address"
