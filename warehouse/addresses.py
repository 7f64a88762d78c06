"""What of mail addresses all parts must see alike: what is taken off their ends, how long they are, their domains.

A domain is a host name of two or more labels; one of any language becomes A-labels (RFC 5891, UTS 46).
"""

from __future__ import annotations

import re
from typing import Final

import idna

SPACES: Final = (
    " \t\r\n\x0b\x0c\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u200c\u200d"
    "\u202f\u2060\u3000\ufeff"
)
"""What is taken off both ends of an address: spaces, and characters that nobody sees."""

LONGEST: Final = 254
"""Octets of an address (RFC 5321, 4.5.3.1.3: a path of 256 less its brackets)."""
LONGEST_LOCAL: Final = 64
"""Octets before the @ (RFC 5321, 4.5.3.1.1)."""
LONGEST_DOMAIN: Final = 253
"""Octets of a domain name as text (RFC 1035, 2.3.4: 255 on the wire)."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOP = re.compile(r"[a-z]{2,63}|xn--[a-z0-9-]{1,59}")


def ascii_domain(text: str) -> str:
    """A domain with the letters that DNS has: one of any language in A-labels, one in ASCII as it is.

    Raises:
        ValueError: it has characters that no domain has; says "no domain".
    """
    if text.isascii():
        return text
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise ValueError("no domain") from None


def mail_domain(text: str) -> str:
    """The domain of a mail address as DNS has it: in small letters and A-labels.

    Raises:
        ValueError: it is none; says what stands there instead: "no domain", "a domain without a dot".
    """
    name = ascii_domain(text).lower()
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or len(name) > LONGEST_DOMAIN:
        raise ValueError("no domain")
    if len(labels) < 2:
        raise ValueError("a domain without a dot")
    if not _TOP.fullmatch(labels[-1]):
        raise ValueError("no domain")
    if text.isascii() and any(label.startswith("xn--") for label in labels):
        try:
            idna.decode(name)
        except (idna.IDNAError, UnicodeError):
            raise ValueError("no domain") from None
    return name
