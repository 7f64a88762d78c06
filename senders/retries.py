"""What may be tried again, and when: exponential backoff with full jitter, bounded."""

from __future__ import annotations

import email.utils
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaigns.specs import WaitingQuietHours
    from senders.ledger import Deferred

FIRST_RETRY, LONGEST_RETRY = timedelta(minutes=10), timedelta(hours=4)

#: HTTP answers that mean 'not accepted, come again': timeout before the request was read, and too many requests.
#: Of 5xx only 503 says so; after 500, 502 or 504 the provider may have accepted, so each provider decides itself.
RETRYABLE_HTTP = frozenset({408, 429, 503})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently.

    Attributes:
        attempts: tries in all, the first included.
        first: seconds, the longest wait before the second try; doubles from try to try.
        longest: seconds, the longest wait.
        patience: seconds, the longest `Retry-After` that a run sits out; beyond it, a later run tries again.
    """

    attempts: int = 4
    first: float = 0.5
    longest: float = 30.0
    patience: float = 60.0

    def wait(self, tries: int, retry_after: float | None = None) -> float | None:
        """Seconds to wait after so many tries, None if there should be no other.

        What the provider asks for is a floor; jitter is added to it, so that many senders do not come back at once.
        """
        if tries >= self.attempts:
            return None
        if retry_after is not None and retry_after > self.patience:
            return None
        backoff = random.uniform(0, min(self.longest, self.first * 2 ** (tries - 1)))
        return max(0.0, retry_after or 0.0) + backoff


def is_retry_due(
    deferred: Deferred, launched: int, now: datetime, *, quiet_hours: WaitingQuietHours | None = None
) -> bool:
    """Whether a run shall be launched for messages that were put off.

    What waits for a warm-up ladder goes on the next day (UTC); what waits for the end of quiet hours as soon as these
    have ended somewhere; all else after ten minutes, then twenty, and so on up to four hours.

    Args:
        launched: runs that have been launched for it before.
        quiet_hours: of the campaign; if it has none any more, nothing has to be waited for.
    """
    if deferred.waits_for == "quiet_hours":
        return quiet_hours is None or quiet_hours.end_between(deferred.last_tried_at, now)
    if deferred.waits_for == "warm_up":
        return deferred.last_tried_at.astimezone(UTC).date() < now.astimezone(UTC).date()
    wait = min(FIRST_RETRY * 2 ** min(launched, 10), LONGEST_RETRY)
    return now - deferred.last_tried_at >= wait


def is_retryable(status: int) -> bool:
    """Whether an HTTP answer says that the request was certainly not accepted and may come again."""
    return status in RETRYABLE_HTTP


def parse_retry_after(value: str, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110: seconds or a date); None if it says nothing usable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
