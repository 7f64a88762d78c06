"""How fast: token buckets, several at once. Tokens drip in at a rate and up to a burst; a message takes one from each.

A message stands under up to three limits: its provider's, its campaign's, and that of the mailbox provider it goes to
(a group of domains such as gmail.com and googlemail.com). All are taken together, so that nobody holds tokens of one
bucket while waiting for another. Buckets live in this process, or in Redis where `MAILHOUSE_REDIS_URL` is set: then all
senders share them (`warehouse.buckets`).

`content/limits.yaml`, which need not exist, says what the limits are; see docs/limits.md.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from senders.settings import SenderSettings
from warehouse.buckets import Buckets, Demand, LocalBuckets, RedisBuckets
from warehouse.errors import SettingsError
from warehouse.yaml_specs import Spec, load_spec

if TYPE_CHECKING:
    from senders.ledger import Ledger


class Rate(Spec):
    """One limit.

    Attributes:
        per_second: messages a second over any time, above 0; .1 is one in ten seconds.
        burst: messages that may go at once after a pause; 0 means one second's worth.
    """

    per_second: Annotated[float, Field(gt=0, le=1_000_000)]
    burst: Annotated[int, Field(ge=0)] = 0


class DomainRate(Rate):
    """The limit of a mailbox provider.

    Attributes:
        domains: its domains, such as gmail.com; `*` stands for all that no other group names, each by itself.
    """

    domains: Annotated[list[str], Field(min_length=1)]


class WarmUp(Spec):
    """A new address or domain earns its name slowly: so many messages on the first day, more on each day after it.

    Attributes:
        starts_on: the first day, in UTC.
        daily: messages of the first, second, ... day.
        growth: from then on each day allows so many times the day before; 1 stays.
        ends_after: days after which there is no limit any more; 0 means never.
    """

    starts_on: date
    daily: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    growth: Annotated[float, Field(ge=1, le=10)] = 1.5
    ends_after: Annotated[int, Field(ge=0)] = 0

    def allowance(self, day: date) -> int | None:
        """Messages that may go on a day; None for no limit. Nothing goes before the first day."""
        number = (day - self.starts_on).days
        if number < 0:
            return 0
        if self.ends_after and number >= self.ends_after:
            return None
        if number < len(self.daily):
            return self.daily[number]
        # 2^53 is beyond any mailing; stops the power from overflowing
        return int(min(2.0**53, self.daily[-1] * self.growth ** min(500, number - len(self.daily) + 1)))


class LimitsSpec(Spec):
    """`content/limits.yaml`.

    Attributes:
        providers, campaigns: limits by name.
        domains: limits of mailbox providers, by a name of one's own.
        warm_up: ladders, by provider.
    """

    providers: dict[str, Rate] = Field(default_factory=dict)
    campaigns: dict[str, Rate] = Field(default_factory=dict)
    domains: dict[str, DomainRate] = Field(default_factory=dict)
    warm_up: dict[str, WarmUp] = Field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> LimitsSpec:
        """Read `limits.yaml` of a content folder; no limits if there is none.

        Raises:
            InputError: the file does not say what it must; names the line.
            SettingsError: a domain stands in two groups.
        """
        path = folder / "limits.yaml"
        if not path.exists():
            return cls()
        spec = load_spec(path, cls)
        seen: dict[str, str] = {}
        for name, group in spec.domains.items():
            for domain in group.domains:
                if (other := seen.setdefault(domain.lower(), name)) != name:
                    raise SettingsError(
                        f"{path}: the domain {domain} stands in two groups, {other} and {name}.",
                        fix="Leave it in one of them.",
                    )
        return spec


class Throttle:
    """All limits of one send.

    Args:
        spec: the limits.
        provider, campaign: what sends.
        buckets: where the tokens are kept.
        rate, burst: `MAILHOUSE_RATE_PER_SECOND` and `_BURST`: the provider's limit, where the file names none.
    """

    def __init__(
        self,
        spec: LimitsSpec,
        provider: str,
        campaign: str,
        buckets: Buckets,
        *,
        rate: float = 0.0,
        burst: int = 0,
    ) -> None:
        self._buckets = buckets
        self._fixed: list[tuple[str, float, int]] = []
        if provider in spec.providers:
            self._fixed.append((f"provider:{provider}", *_numbers(spec.providers[provider])))
        elif rate > 0:
            self._fixed.append((f"provider:{provider}", rate, burst or max(1, int(rate))))
        if campaign in spec.campaigns:
            self._fixed.append((f"campaign:{campaign}", *_numbers(spec.campaigns[campaign])))
        self._groups: dict[str, tuple[str, float, int]] = {}
        self._others: tuple[float, int] | None = None
        for name, group in spec.domains.items():
            numbers = _numbers(group)
            for domain in group.domains:
                if domain == "*":
                    self._others = numbers
                else:
                    self._groups[domain.lower()] = (f"domain:{name}", *numbers)

    @classmethod
    def of(cls, settings: SenderSettings, provider: str, campaign: str) -> Throttle:
        """The limits of the settings and of `content/limits.yaml`."""
        buckets: Buckets = (
            RedisBuckets(settings.redis_url.get_secret_value()) if settings.redis_url else LocalBuckets()
        )
        return cls(
            LimitsSpec.load(settings.content_dir), provider, campaign, buckets,
            rate=settings.rate_per_second, burst=settings.rate_burst,
        )  # fmt: skip

    @property
    def per_second(self) -> float | None:
        """The rate of the tightest limit that every message stands under; None for no limit."""
        return min((rate for _, rate, _ in self._fixed), default=None)

    def demands(self, emails: Iterable[str]) -> list[Demand]:
        """What these messages take, bucket by bucket."""
        addresses = list(emails)
        wanted = [Demand(bucket, rate, burst, len(addresses)) for bucket, rate, burst in self._fixed]
        if not self._groups and self._others is None:
            return wanted
        groups: Counter[tuple[str, float, int]] = Counter()
        for address in addresses:
            domain = address.rpartition("@")[2].lower()
            group = self._groups.get(domain)
            if group is None and self._others is not None:
                group = (f"domain:*:{domain}", *self._others)
            if group is not None:
                groups[group] += 1
        return wanted + [Demand(*group, tokens) for group, tokens in groups.items()]

    def take(self, emails: Iterable[str], stop: threading.Event | None = None) -> bool:
        """Wait until these messages may go; False if `stop` was set before that, the tokens given back.

        Raises:
            LimitError: see `RedisBuckets.reserve`.
        """
        demands = self.demands(emails)
        if not demands:
            return stop is None or not stop.is_set()
        wait = self._buckets.reserve(demands)
        if wait <= 0:
            return True
        if stop is None:
            time.sleep(wait)
            return True
        if stop.wait(wait):
            self._buckets.reserve([Demand(one.bucket, one.rate, one.burst, -one.tokens) for one in demands])
            return False
        return True


def _numbers(rate: Rate) -> tuple[float, int]:
    return rate.per_second, rate.burst or max(1, int(rate.per_second))


class DailyAllowance:
    """A warm-up ladder, counted in the ledger, so that all senders share it and no crash forgets it."""

    def __init__(self, ledger: Ledger, provider: str, ladder: WarmUp | None) -> None:
        self._ledger, self._name, self._ladder = ledger, f"warm_up:{provider}", ladder

    def take(self, wanted: int, now: datetime) -> int:
        """How many of so many messages may go today; they count as gone."""
        allowed = self._ladder.allowance(now.date()) if self._ladder else None
        if allowed is None:
            return wanted
        return self._ledger.take_allowance(self._name, now.date().isoformat(), wanted, allowed)

    def give_back(self, number: int, now: datetime) -> None:
        """Messages that were counted and did not go."""
        if number and self._ladder and self._ladder.allowance(now.date()) is not None:
            self._ledger.take_allowance(self._name, now.date().isoformat(), -number, 2**53)


class CircuitBreaker:
    """After so many failures in a row nothing is tried for a while, then one window is; success closes it again.

    Args:
        failures: in a row, after which it opens.
        rest: seconds that it stays open; doubles with every failed trial, up to `longest`.
        clock: seconds, monotonic.
    """

    def __init__(
        self, failures: int = 5, rest: float = 30.0, longest: float = 600.0, *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._threshold, self._first, self._longest, self._clock = failures, rest, longest, clock
        self._failures = 0
        self._rest = rest
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing may be tried now."""
        return self.wait > 0

    @property
    def wait(self) -> float:
        """Seconds until something may be tried."""
        return max(0.0, self._until - self._clock())

    def succeeded(self) -> None:
        """The provider took a window."""
        self._failures, self._rest, self._until = 0, self._first, 0.0

    def failed(self, retry_after: float | None = None) -> None:
        """The provider could not be reached, or asked us to wait."""
        self._failures += 1
        now = self._clock()
        if self._failures >= self._threshold and self._until <= now:
            self._until = now + self._rest
            self._rest = min(self._longest, self._rest * 2)
        if retry_after:
            self._until = max(self._until, now + retry_after)
