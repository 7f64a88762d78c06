"""A shop's history, made inside ClickHouse: contacts, consents, products, mail and what people did, from a seed.

Every row is a function of the seed, its day and its number in that day, so any day can be made again by itself. Rows of
`raw.events` carry the moment at which they were loaded: within a minute of the event for 99 of 100, up to 30 days later
for the others. A load of one day therefore brings late events of the weeks before, too, as a real day does.

The mix of a hundred events: 43 page views and 21 product views in sessions of eight events, 5 carts, 2.5 orders of one
to four lines (4 % of them cancelled later), and 28 events of mail (delivered, opened, clicked, bounced, complained,
unsubscribed) that name a message of `raw.messages`: proxies open an eighth of the mail and scanners follow three links
of 3 % of it. One session in seven is anonymous, a third know only the email. Few contacts do much and many do little.
"""

# ruff: noqa: E501 - queries are easier read unbroken; nothing in them comes from outside

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from warehouse.client import Warehouse

SEED = 4
SESSION = 8
MAIL_SHARE = 0.15  # messages an event
ORDER_SHARE = 0.025
CANCELLED_OF = 25  # one order in so many
EVENTS_A_MESSAGE = 1.886  # measured: mail events that one message has in the end
LATEST = 30
LONGEST = 45  # days between a message's day and the load of its last event
PRODUCTS = 20_000
_STRIDE = 611_953  # a prime: numbers below the count of contacts are visited once each
_DOMAINS = "['gmail.com', 'gmail.com', 'gmail.com', 'yahoo.com', 'outlook.com', 'icloud.com', 'example.com', 'example.org']"
_SETTINGS = "settings max_insert_threads = 2, max_partitions_per_insert_block = 0, throw_on_max_partitions_per_insert_block = 0"


def random(salt: int, *keys: str) -> str:
    """SQL: a number of 64 bits, always the same for the same keys."""
    return f"cityHash64({SEED}, {salt}, {', '.join(keys)})"


def share(salt: int, *keys: str) -> str:
    """SQL: a number from 0 to below 1."""
    return f"({random(salt, *keys)} / 18446744073709551616.)"


@dataclass(frozen=True)
class Shop:
    """Where and how much.

    Attributes:
        warehouse: takes the rows; its raw tables are there and empty.
        contacts: contacts that the CRM knows. A multiple of ten, so that mail of one day reaches nobody twice.
        last_day: last day of the history.
    """

    warehouse: Warehouse
    contacts: int
    last_day: date

    # what is there before anything happens -------------------------------------------------------------------------

    def add_people(self, first_day: date) -> None:
        """Contacts as the CRM has them, what they consented to, and a catalogue."""
        self._add_contacts("1 + number", self.contacts, f"toDateTime64('{first_day}', 3, 'UTC')")
        self.warehouse.execute(
            f"""
            insert into raw.consents (consent_id, source, email, channel, purpose, is_granted, basis, occurred_at, loaded_at)
            select concat('consent-', toString(c)), 'form', {email("c")}, 'email', 'marketing', {random(21, "c")} % 50 > 0,
                'opt_in', at, at
            from (
                select 1 + number as c,
                    toDateTime64('{first_day}', 3, 'UTC') + toIntervalSecond({random(22, "c")} % 8640000) as at
                from numbers({self.contacts}) where {random(20, "c")} % 10 < 8
            )
            """
        )
        self.warehouse.execute(
            f"""
            insert into raw.products (source, product_id, name, category, price, url, is_available, updated_at, loaded_at)
            select 'catalogue', concat('P', toString(number)), concat('Product ', toString(number)),
                concat('category ', toString(number % 40)), toDecimal64(1 + {random(23, "number")} % 20000 / 100, 2),
                concat('/products/', toString(number)), number % 20 > 0,
                toDateTime64('{first_day}', 3, 'UTC'), toDateTime64('{first_day}', 3, 'UTC')
            from numbers({PRODUCTS})
            """
        )

    def change_people(self, day: date) -> None:
        """A day of the CRM: one contact in 500 changed, one in 1,000 new."""
        at = f"toDateTime64('{day} 08:00:00', 3, 'UTC')"
        changed = f"1 + {random(24, str(day.toordinal()), 'number')} % {self.contacts}"
        self._add_contacts(changed, self.contacts // 500, at)
        first = self.contacts + (day - self.last_day).days * (self.contacts // 1_000)
        self._add_contacts(f"{first} + number", self.contacts // 1_000, at)

    def _add_contacts(self, contact: str, count: int, at: str) -> None:
        self.warehouse.execute(
            f"""
            insert into raw.crm_records (source, object, external_id, updated_at, is_deleted, properties, loaded_at)
            select 'shop', 'contact', toString(c), at, false,
                concat(
                    '{{"email":"', {email("c")}, '","first_name":"First', toString(c % 1000), '","last_name":"Last',
                    toString(c % 7919), '","country":"', {country("c")}, '","city":"City ', toString(c % 300), '"}}'
                )::JSON,
                at
            from (select {contact} as c, {at} as at from numbers({count}))
            """
        )

    # what happens --------------------------------------------------------------------------------------------------

    def add_history(self, days: int, events: int, *, until: date | None = None) -> None:
        """So many days before `until` (the last day), about so many events, in the order of time."""
        end = until or self.last_day
        a_day = events // days
        for first, count in _months(end - timedelta(days=days - 1), end):
            for insert in self._inserts(
                first, count, a_day, f"toDate(loaded_at, 'UTC') <= '{self.last_day}'"
            ):
                self.warehouse.execute(insert)

    def add_day(self, day: date, events: int, events_before: int) -> None:
        """One day's load: what happened on it, and what happened before and comes late.

        Args:
            day: loaded on.
            events: events of that day and of all days behind `last_day`.
            events_before: events a day until then.
        """
        loaded = f"toDate(loaded_at, 'UTC') = '{day}'"
        before = max(0, LONGEST - (day - self.last_day).days + 1)
        blocks = (
            (self.last_day - timedelta(days=before - 1), before, events_before),
            (self.last_day + timedelta(days=1), (day - self.last_day).days, events),
        )
        for first, count, volume in blocks:
            if count:
                messages, *others = self._inserts(first, count, volume, loaded)
                if first > self.last_day:
                    self.warehouse.execute(messages.replace(" where true", f" where {loaded}"))
                for insert in others:
                    self.warehouse.execute(insert)
        self.change_people(day)

    def _inserts(self, first: date, days: int, volume: int, loaded: str) -> Iterator[str]:
        """Statements that make the rows of some days; the first one the messages."""
        messages = min(int(volume * MAIL_SHARE), self.contacts)
        orders = int(volume * ORDER_SHARE)
        views = volume - int(messages * EVENTS_A_MESSAGE) - orders - orders // CANCELLED_OF
        yield self._messages(first, days, messages)
        yield self._events(self._views(first, days, views), loaded)
        yield self._events(self._orders(first, days, orders), loaded)
        yield self._events(self._cancellations(first, days, orders), loaded)
        yield self._events(self._mail(first, days, messages), loaded)

    def _numbered(self, first: date, days: int, volume: int) -> str:
        """SQL: day number d, number k in the day, and the day's start, in order."""
        return (
            f"select {first.toordinal()} + intDiv(number, {volume}) as d, number % {volume} as k,"
            f" toDateTime64('{first}', 3, 'UTC') + toIntervalDay(intDiv(number, {volume})) as day"
            f" from numbers({volume * days})"
        )

    def _events(self, rows: str, loaded: str) -> str:
        return f"""
            insert into raw.events (
                event_id, type, source, email, external_id, anonymous_id, message_id, occurred_at, received_at, properties,
                loaded_at
            )
            select event_id, type, source, email, external_id, anonymous_id, message_id, occurred_at, received_at,
                properties::JSON, received_at as loaded_at
            from (
                select *,
                    occurred_at + toIntervalMillisecond(if(
                        {random(1, "event_id")} % 100 = 0,
                        86400000 * (1 + {random(2, "event_id")} % {LATEST}),
                        {random(3, "event_id")} % 60000
                    )) as received_at
                from ({rows})
            )
            where {loaded}
            {_SETTINGS}
        """

    def _views(self, first: date, days: int, volume: int) -> str:
        who = random(4, "d", "session")
        return f"""
            select concat('web-', toString(d), '-', toString(k)) as event_id,
                multiIf(dice < 62, 'page.viewed', dice < 93, 'product.viewed', 'cart.updated') as type, 'shop' as source,
                multiIf(hint < 15, '', hint = 99, concat('guest', toString(c % {self.contacts // 20}), '@example.net'),
                    hint >= 65, {email("c")}, '') as email,
                if(hint >= 15 and hint < 65, toString(c), '') as external_id,
                concat('a', toString(c * 3 + hint % 3)) as anonymous_id, '' as message_id,
                day + toIntervalMillisecond(intDiv(session * 86000000, {volume // SESSION + 1}) + (k % {SESSION}) * 45000)
                    as occurred_at,
                multiIf(
                    type = 'page.viewed', concat('{{"url":"/category/', toString(product % 40), '"}}'),
                    type = 'product.viewed', concat('{{"product_id":"P', toString(product), '"}}'),
                    concat('{{"cart_value":', toString(product % 20000 / 100), ',"product_id":"P', toString(product), '"}}')
                ) as properties
            from (
                select d, k, day, intDiv(k, {SESSION}) as session, {random(5, "d", "k")} as dice_number,
                    dice_number % 100 as dice, intDiv(dice_number, 100) % {PRODUCTS} as product,
                    {who} as who, intDiv(who, 1024) % 100 as hint, {self._active("who")} as c
                from ({self._numbered(first, days, volume)})
            )
        """

    def _orders(self, first: date, days: int, volume: int) -> str:
        return f"""
            select concat('order-', toString(d), '-', toString(k)) as event_id, 'order.placed' as type, 'shop' as source,
                if(hint >= 75, {email("c")}, '') as email, if(hint < 75, toString(c), '') as external_id,
                '' as anonymous_id, '' as message_id,
                day + toIntervalMillisecond(intDiv(k * 86399000, {volume})) as occurred_at,
                concat(
                    '{{"order_id":"', toString(d), '-', toString(k), '","currency":"GBP","country":"', {country("c")},
                    '","items":[', arrayStringConcat(arrayMap(
                        line -> concat(
                            '{{"line_number":', toString(line), ',"product_id":"P',
                            toString({random(8, "d", "k", "line")} % {PRODUCTS}), '","name":"Product ',
                            toString({random(8, "d", "k", "line")} % {PRODUCTS}), '","quantity":',
                            toString(1 + {random(9, "d", "k", "line")} % 5), ',"unit_price":"',
                            toString(1 + {random(10, "d", "k", "line")} % 60), '.',
                            leftPad(toString({random(11, "d", "k", "line")} % 100), 2, '0'), '"}}'
                        ),
                        range(1, 2 + {random(7, "d", "k")} % 4)
                    ), ','), ']}}'
                ) as properties
            from (
                select d, k, day, {random(6, "d", "k")} as who, intDiv(who, 1024) % 100 as hint, {self._active("who")} as c
                from ({self._numbered(first, days, volume)})
            )
        """

    def _cancellations(self, first: date, days: int, volume: int) -> str:
        return f"""
            select concat('cancel-', toString(d), '-', toString(k)) as event_id, 'order.cancelled' as type,
                'shop' as source, if(hint >= 75, {email("c")}, '') as email, if(hint < 75, toString(c), '') as external_id,
                '' as anonymous_id, '' as message_id,
                day + toIntervalMillisecond(intDiv(k * 86399000, {volume}) + 3600000 + {random(12, "d", "k")} % 200000000)
                    as occurred_at,
                concat('{{"order_id":"', toString(d), '-', toString(k), '"}}') as properties
            from (
                select d, k, day, {random(6, "d", "k")} as who, intDiv(who, 1024) % 100 as hint, {self._active("who")} as c
                from ({self._numbered(first, days, volume)})
                where {random(13, "d", "k")} % {CANCELLED_OF} = 0
            )
        """

    def _messages(self, first: date, days: int, volume: int) -> str:
        return f"""
            insert into raw.messages (
                message_id, sequence, status, reason, kind, name, version, occurrence, contact_id, email, channel, provider,
                category, template, template_version, segment, segment_version, experiment, variant, subject,
                provider_message_id, provider_reply, changed_at, details, loaded_at
            )
            select message_id, 2, if(is_skipped, 'skipped', 'sent'), if(is_skipped, 'suppressed', ''), 'campaign', name,
                'v1', toString(toDate(day, 'UTC')), {contact_id("c")}, {email("c")}, 'email', 'provider', 'marketing',
                name, 't1', if(d % 2 = 0, 'engaged', 'champions'), 's1', '', if(k % 2 = 0, 'a', 'b'),
                concat('News of ', name), if(is_skipped, '', concat('pm-', message_id)), '', sent_at,
                '{{"from_email":"news@shop.example"}}'::JSON, sent_at + toIntervalSecond(20) as loaded_at
            from ({self._sent(first, days, volume)})
            where true
            {_SETTINGS}
        """

    def _sent(self, first: date, days: int, volume: int) -> str:
        """SQL: messages with their contact c; each day one campaign, sent within an hour, to nobody twice."""
        return f"""
            select d, k, day, toString(reinterpretAsUUID(sipHash128({SEED}, d, k))) as message_id,
                {random(14, "d", "k")} % 100 < 3 as is_skipped, concat('campaign_', toString(d % 12)) as name,
                1 + ((d * {volume} + k) * {_STRIDE}) % {self.contacts} as c,
                day + toIntervalMillisecond(32400000 + intDiv(k * 3600000, {volume})) as sent_at
            from ({self._numbered(first, days, volume)})
        """

    def _mail(self, first: date, days: int, volume: int) -> str:
        def minutes(salt: int, mean: int) -> str:
            """SQL: a time in milliseconds, most often short, never more than ten days; nor so short as only machines are."""
            return f"toInt64(least(864000000, 4000 - log(1 - {share(salt, 'd', 'k')}) * {mean * 60000}))"

        human = "'Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X)'"
        proxy = "'Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)'"
        scanner = "'Mozilla/5.0 (compatible; Barracuda Sentinel)'"

        def link(number: str) -> str:
            return f"concat('https://shop.example/', toString({number} % 6))"

        scans = ", ".join(
            f"(is_scanned, 'clicked', toInt64({3000 + place * 400}), {link(str(place))}, {scanner}, {place % 2 == 0})"
            for place in (1, 2, 3)
        )
        return f"""
            select concat('esp-', toString(d), '-', toString(k), '-', toString(place)) as event_id, event.2 as type,
                'provider' as source, {email("c")} as email, '' as external_id, '' as anonymous_id, message_id,
                sent_at + toIntervalMillisecond(event.3) as occurred_at,
                concat(
                    '{{"user_agent":"', event.5, '"', if(event.4 != '', concat(',"url":"', event.4, '"'), ''),
                    if(event.2 = 'bounced', concat(',"bounce_class":"', if(k % 4 = 0, 'hard', 'soft'), '"'), ''),
                    if(event.6, ',"is_machine":true', ''), '}}'
                ) as properties
            from (
                select d, k, c, message_id, sent_at, arrayJoin(arrayEnumerate(events)) as place, events[place] as event
                from (
                    select d, k, c, message_id, sent_at, {random(15, "d", "k")} as dice,
                        {minutes(16, 300)} as read_after, {minutes(17, 12)} as clicked_after,
                        dice % 1000 >= 15 as is_delivered,
                        is_delivered and intDiv(dice, 1000) % 1000 < 380 as is_read,
                        is_delivered and intDiv(dice, 1000000) % 1000 < 125 as is_fetched,
                        is_delivered and intDiv(dice, 1000000000) % 1000 < 30 as is_scanned,
                        arrayFilter(event -> event.1, [
                            (true, if(is_delivered, 'delivered', 'bounced'), toInt64(2500), '', '', false),
                            (is_fetched, 'opened', toInt64(2600 + dice % 25000), '', {proxy}, true),
                            {scans},
                            (is_read, 'opened', read_after, '', {human}, false),
                            (is_read and dice % 7 < 2, 'opened', read_after + toInt64(5000000), '', {human}, false),
                            (is_read and dice % 100 < 22, 'clicked', read_after + clicked_after, {link("dice")}, {human}, false),
                            (is_read and dice % 700 = 3, 'unsubscribed', read_after + toInt64(60000), '', {human}, false),
                            (is_read and dice % 1300 = 5, 'complained', read_after + toInt64(90000), '', {human}, false)
                        ]) as events
                    from ({self._sent(first, days, volume)})
                    where not is_skipped
                )
            )
        """

    def _active(self, number: str) -> str:
        """SQL: a contact, some far more often than others."""
        rank = f"toUInt64(pow({number} / 18446744073709551616., 1.7) * {self.contacts})"
        return f"(1 + ({rank} * {_STRIDE}) % {self.contacts})"


def email(contact: str) -> str:
    """SQL: a contact's address."""
    return f"concat('person', toString({contact}), '@', {_DOMAINS}[1 + {contact} * 5 % 8])"


def contact_id(contact: str) -> str:
    """SQL: the contact_id under which the ledger knows a contact; models make the same from the address."""
    return f"toInt64(bitShiftRight(sipHash64({email(contact)}), 1))"


def country(contact: str) -> str:
    """SQL: where a contact lives."""
    return f"['United Kingdom', 'Germany', 'France', 'Spain'][1 + {contact} % 4]"


def _months(first: date, last: date) -> Iterator[tuple[date, int]]:
    """Calendar months between two days: first day and number of days."""
    while first <= last:
        following = (first.replace(day=28) + timedelta(days=4)).replace(day=1)
        end = min(following, last + timedelta(days=1))
        yield first, (end - first).days
        first = end
