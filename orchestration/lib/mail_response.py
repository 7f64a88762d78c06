"""What mail of the last year tells of subject lines and frequency: read sums, compare, keep what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from ml.predictions.base import NotEnoughData
from ml.predictions.response import frequency_response, subject_response
from warehouse.client import Warehouse

DAYS = 365
_SUBJECTS = """
    select concat(kind, '/', name, '/', occurrence) as send, subject::String as subject,
        count()::Int64 as sent, countIf(is_opened)::Int64 as opened
    from marts.messages
    where is_sent and channel = 'email' and sent_at >= {now:DateTime64(3)} - toIntervalDay({days:UInt32})
        and sent_at < {now:DateTime64(3)} - toIntervalDay(2)
    group by send, subject
"""
_FREQUENCIES = """
    select least(before, 3)::Int64 as before, readiness, count()::Int64 as sent, countIf(is_opened)::Int64 as opened,
        countIf(is_clicked)::Int64 as clicked, countIf(unsubscribed_at is not null)::Int64 as unsubscribed
    from (
        select is_opened, is_clicked, unsubscribed_at, assumeNotNull(sent_at) as sent_moment,
            count() over (
                partition by contact_id order by toUnixTimestamp(sent_moment)
                range between 604800 preceding and 1 preceding
            ) as before,
            -- how many of the five before it they opened
            countIf(is_opened) over (
                partition by contact_id order by toUnixTimestamp(sent_moment) rows between 5 preceding and 1 preceding
            ) as readiness
        from marts.messages
        where is_sent and channel = 'email' and category = 'marketing'
            and sent_at >= {now:DateTime64(3)} - toIntervalDay({days:UInt32})
    )
    where sent_moment < {now:DateTime64(3)} - toIntervalDay(2)
    group by before, readiness
"""


@dataclass(frozen=True)
class Response:
    """What was found of `subjects` or `frequency`; no table where `statement` says that data lack."""

    name: str
    statement: str
    table: pl.DataFrame | None = None


def mail_response(warehouse: Warehouse, now: datetime) -> list[Response]:
    """Compare subjects and frequencies of a year; what went out in the last two days may still be opened."""
    asked: tuple[tuple[str, str, Callable[[pl.DataFrame], pl.DataFrame]], ...] = (
        ("subjects", _SUBJECTS, subject_response),
        ("frequency", _FREQUENCIES, frequency_response),
    )
    found = []
    for name, sql, compare in asked:
        frame = warehouse.frame(sql, {"now": now, "days": DAYS})
        try:
            table = compare(frame)
        except NotEnoughData as error:
            found.append(Response(name, f"{str(error).capitalize()}."))
        else:
            found.append(Response(name, f"{frame['sent'].sum():,} messages were compared.", table))
    return found
