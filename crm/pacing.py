"""What calls of a CRM may cost: an allowance that all processes share, on this machine or over Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from crm.settings import CrmSettings
from warehouse.buckets import Buckets, Demand, FileBuckets, RedisBuckets


class Allowance:
    """A `crm.http.Pace` that is shared: at most `burst + per_second * t` is taken within any time `t`.

    Args:
        buckets: where it is kept.
        name: all of this name share it.
        per_second, burst: what drips in, and how much may be saved up.
        sleep: how to wait.
    """

    def __init__(
        self,
        buckets: Buckets,
        name: str,
        *,
        per_second: float,
        burst: float = 1,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._buckets, self._name = buckets, name
        self._per_second, self._burst, self._sleep = per_second, burst, sleep

    def take(self, cost: float = 1) -> None:
        """Wait until so much may be spent, and spend it. Who comes first goes first.

        Raises:
            LimitError: the place where it is kept does not answer.
        """
        wait = self._buckets.reserve([Demand(self._name, self._per_second, self._burst, cost)])
        if wait > 0:
            self._sleep(wait)


def allowance(
    settings: CrmSettings,
    name: str,
    *,
    calls: float,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Allowance:
    """An allowance that is never exceeded: at most so many calls within any so many seconds.

    A tenth of the calls, one at least, may go at once after a pause; the others drip in. It is kept in Redis where
    `MAILHOUSE_REDIS_URL` is set, else in a file of the home folder.

    Args:
        settings: for the home folder and Redis.
        name: of the allowance, such as `hubspot` or `hubspot_search`.
        calls, seconds: the limit as vendors state it; 190 calls in 10 seconds.
        sleep: how to wait.

    Raises:
        SettingsError: the URL of Redis is none.
    """
    burst = max(1.0, calls / 10)
    # whoever may make less than two calls makes them a whole period apart
    per_second = (calls - burst if calls >= 2 else min(calls, 1.0)) / seconds
    buckets: Buckets = (
        RedisBuckets(settings.redis_url.get_secret_value())
        if settings.redis_url
        else FileBuckets(settings.home / "limits")
    )
    return Allowance(buckets, f"crm:{name}", per_second=per_second, burst=burst, sleep=sleep)
