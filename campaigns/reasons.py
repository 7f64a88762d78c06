"""Why messages are not sent, in words that the ledger, the warehouse and Python share."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Reasons beside a status that Mailhouse gives itself; provider refusals use `RejectReason`."""

    SUPPRESSED = "suppressed"
    NO_CONSENT = "no_consent"
    DELETED = "deleted"
    RESTRICTED = "restricted"
    INVALID = "invalid"
    HOLDOUT = "holdout"
    QUIET_HOURS = "quiet_hours"
    FREQUENCY_CAP = "frequency_cap"
    LEFT_AUDIENCE = "left_audience"
    DEFERRED = "deferred"
    NOT_RENDERED = "not_rendered"
    SENDER_REFUSED = "sender_refused"
    CRASHED = "crashed"
    REVIVED = "revived"
    WARM_UP = "warm_up"


RETRYABLE: Final = (
    Reason.DEFERRED, Reason.NOT_RENDERED, Reason.SENDER_REFUSED, Reason.REVIVED, Reason.WARM_UP, Reason.QUIET_HOURS,
)  # fmt: skip
"""Reasons of a `failed` message that certainly never reached the provider's queue: a rerun may claim it again."""

AWAITED: Final = (Reason.WARM_UP, Reason.QUIET_HOURS)
"""Those whose time comes by itself: the next day's allowance, the end of quiet hours."""

SCHEDULED: Final = (Reason.REVIVED, *AWAITED)
"""Those after which a rerun is launched by itself however often it was tried; after `deferred`, some times only."""


def listed(reasons: Iterable[Reason]) -> str:
    """Reasons as a list in SQL: `('deferred', 'revived')`."""
    return "(" + ", ".join(f"'{one.value}'" for one in reasons) + ")"
