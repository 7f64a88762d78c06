"""The best query we know by hand for each large mart: raw rows in, the mart's rows out, nothing kept between runs.

They are what an analyst with time would write, and use what such an analyst would know of these rows: who somebody is,
is taken from the table of identities, which is a mart of its own; scanners and proxies are known by what the provider
says and by their names. Each is written into a table ordered as the mart is, so that both pay for the same output.
`read` and `same` compare the two answers.
"""

# ruff: noqa: E501 - queries are easier read unbroken; nothing in them comes from outside

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

IDENTITY = "toInt64(bitShiftRight(sipHash64(if(external_id = '', '', source::String), external_id, lower(trim(email))), 1))"
_IS_MACHINE = (
    "(properties.is_machine::String = 'true' "
    "or multiSearchAny(properties.user_agent::String, ['GoogleImageProxy', 'Barracuda']))"
)
_IDENTITIES = "(select identity_id, contact_id from intermediate.int_contacts__identified)"
SEGMENT_MODELS = "models of segments"
"""In place of patterns: all models in the folder of segments."""
_WEIGHTS = {
    "order.placed": (10, 60),
    "cart.updated": (5, 30),
    "clicked": (4, 30),
    "product.viewed": (2, 30),
    "opened": (1, 30),
    "page.viewed": (1, 30),
    "complained": (-20, 60),
    "unsubscribed": (-10, 60),
}


@dataclass(frozen=True)
class Comparison:
    """A mart and the query by hand that answers the same.

    Attributes:
        mart: its name in the table of figures.
        nodes: dbt models that exist for it, as patterns; their statements are its cost.
        order_by: key of the table that the query by hand fills.
        query: the query by hand.
        read: SQL over `mart` relations that says the mart's answer in a few numbers; '' if it is not compared.
        same: SQL over the table `{table}` that must say the same numbers.
    """

    mart: str
    nodes: tuple[str, ...]
    order_by: str
    query: str
    read: str = ""
    same: str = ""

    def has(self, node: str) -> bool:
        """Whether a model is one of the mart's."""
        return any(fnmatchcase(node, pattern) for pattern in self.nodes)


def comparisons(as_of: str) -> tuple[Comparison, ...]:
    """All comparisons, with the time as SQL."""
    orders = f"""
        select {IDENTITY} as identity_id, occurred_at as ordered_at, properties.order_id::String as order_id,
            arraySum(
                (quantity, price) -> if(quantity > 0 and price > 0, round(quantity * price, 2)::Decimal(18, 2), 0::Decimal(18, 2)),
                properties.items[].quantity::Array(Int64),
                arrayMap(price -> toDecimal64(price, 4), properties.items[].unit_price::Array(String))
            ) as revenue
        from raw.events
        where type = 'order.placed'
            and properties.order_id::String not in (
                select properties.order_id::String from raw.events where type = 'order.cancelled'
            )
    """
    owned_orders = f"select contact_id, ordered_at, order_id, revenue from ({orders}) as o inner join {_IDENTITIES} as i using identity_id where revenue > 0"
    customers = f"""
        select contact_id, min(first_order_at) as first_order_at, max(last_order_at) as last_order_at,
            sum(orders_count) as orders_count, sum(revenue) as revenue
        from (
            select identity_id, min(ordered_at) as first_order_at, max(ordered_at) as last_order_at,
                count() as orders_count, sum(revenue) as revenue
            from ({orders}) group by identity_id
        ) as o inner join {_IDENTITIES} as i using identity_id
        group by contact_id
    """
    rfm = f"""
        select *, (1 + intDiv(5 * (rank() over (order by toDate(last_order_at, 'UTC')) - 1), count() over ()))::UInt8 as recency_score,
            (1 + intDiv(5 * (rank() over (order by orders_count) - 1), count() over ()))::UInt8 as frequency_score,
            (1 + intDiv(5 * (rank() over (order by revenue) - 1), count() over ()))::UInt8 as monetary_score
        from ({customers})
    """
    types, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    points = (
        f"sum(transform(type, {types}, {[float(weight) for weight, _ in weights]}, 0.) * exp2(("
        f"toUnixTimestamp64Milli(occurred_at) - toUnixTimestamp64Milli({as_of})) / 86400000. "
        f"/ transform(type, {types}, {[float(days) for _, days in weights]}, 1.))) as score, "
        "maxIf(occurred_at, type not in ('complained', 'unsubscribed')) as last_engaged_at"
    )
    engagement = f"""
        select contact_id, sum(score) as engagement_score, max(last_engaged_at) as last_engaged_at
        from (
            select {IDENTITY} as identity_id, {points} from raw.events
            where type in ('order.placed', 'cart.updated', 'product.viewed', 'page.viewed')
                and (external_id != '' or email != '')
            group by identity_id
            union all
            select {IDENTITY} as identity_id, {points} from raw.events
            where type in ('clicked', 'opened', 'complained', 'unsubscribed') and not {_IS_MACHINE}
            group by identity_id
        ) as e inner join {_IDENTITIES} as i using identity_id
        group by contact_id
    """
    feedback = f"""
        select message_id, minIf(occurred_at, type = 'delivered') as delivered_at,
            minIf(occurred_at, type = 'opened' and not is_machine) as first_opened_at,
            maxIf(occurred_at, type = 'opened' and not is_machine) as last_opened_at,
            countIf(type = 'opened' and not is_machine) as opens_count,
            countIf(type = 'opened' and is_machine) as machine_opens_count,
            minIf(occurred_at, type = 'clicked' and not is_machine) as first_clicked_at,
            maxIf(occurred_at, type = 'clicked' and not is_machine) as last_clicked_at,
            countIf(type = 'clicked' and not is_machine) as clicks_count,
            countIf(type = 'clicked' and is_machine) as machine_clicks_count,
            minIf(occurred_at, type = 'bounced') as bounced_at, max(type = 'bounced' and properties.bounce_class::String = 'hard') as is_hard,
            minIf(occurred_at, type = 'complained') as complained_at,
            minIf(occurred_at, type = 'unsubscribed') as unsubscribed_at
        from (
            select message_id, type, occurred_at, properties, {_IS_MACHINE} as is_machine from raw.events
            where type in ('delivered', 'opened', 'clicked', 'bounced', 'complained', 'unsubscribed')
        )
        group by message_id
    """
    ledger = """
        select message_id, argMax(tuple(
                kind, name, version, occurrence, contact_id, email, channel, provider, category, template, template_version,
                segment, segment_version, experiment, variant, subject, provider_message_id, status, reason
            ), sequence) as message, min(changed_at) as created_at, minIf(changed_at, status in ('sent', 'queued')) as sent_at
        from raw.messages group by message_id
    """
    sent = """
        select message_id, argMax(contact_id, sequence) as contact_id, argMax(name, sequence) as name,
            argMax(occurrence, sequence) as occurrence, argMax(variant, sequence) as variant,
            minIf(changed_at, status in ('sent', 'queued')) as sent_at
        from raw.messages group by message_id
    """
    conversions = f"""
        select s.message_id as message_id, count() as orders_count, sum(o.revenue) as revenue, min(o.ordered_at) as converted_at
        from ({owned_orders}) as o
        asof join (
            select message_id, contact_id, min(changed_at) as sent_at from raw.messages where status in ('sent', 'queued')
            group by message_id, contact_id
        ) as s on s.contact_id = o.contact_id and s.sent_at <= o.ordered_at
        where o.ordered_at < s.sent_at + toIntervalDay(14)
        group by message_id
    """
    messages = f"""
        select l.message_id as message_id, l.message as message, l.created_at as created_at, l.sent_at as sent_at,
            f.* except message_id, c.orders_count as orders_count, c.revenue as revenue, c.converted_at as converted_at
        from ({ledger}) as l
        left any join ({feedback}) as f on f.message_id = l.message_id
        left any join ({conversions}) as c on c.message_id = l.message_id
    """
    campaigns = f"""
        select s.name as campaign, s.occurrence as occurrence, s.variant as variant, count() as audience_count,
            countIf(s.sent_at > toDateTime64(0, 3)) as sent_count, sum(f.is_delivered) as delivered_count,
            sum(f.is_read) as opened_count, sum(f.is_clicked) as clicked_count, sum(f.is_bounced) as bounced_count,
            sum(f.is_complained) as complained_count, sum(f.is_unsubscribed) as unsubscribed_count,
            countIf(c.orders_count > 0) as converted_count, sum(c.revenue) as revenue
        from ({sent}) as s
        left any join (
            select message_id, max(type = 'delivered') as is_delivered, max(type in ('opened', 'clicked')) as is_read,
                max(type = 'clicked') as is_clicked, max(type = 'bounced') as is_bounced,
                max(type = 'complained') as is_complained, max(type = 'unsubscribed') as is_unsubscribed
            from raw.events
            where type in ('delivered', 'opened', 'clicked', 'bounced', 'complained', 'unsubscribed') and not {_IS_MACHINE}
            group by message_id
        ) as f on f.message_id = s.message_id
        left any join ({conversions}) as c on c.message_id = s.message_id
        group by campaign, occurrence, variant
    """
    cohorts = f"""
        select cohort_month, dateDiff('month', cohort_month, month) as months_since_first_order, count() as active_count,
            sum(orders_count) as orders_count, sum(revenue) as revenue
        from (
            select contact_id, month, orders_count, revenue, min(month) over (partition by contact_id) as cohort_month
            from (
                select contact_id, toStartOfMonth(ordered_at) as month, count() as orders_count, sum(revenue) as revenue
                from ({owned_orders}) group by contact_id, month
            )
        )
        group by cohort_month, months_since_first_order
    """
    touches = f"""
        select contact_id, name, message_id, touched_at
        from (
            select message_id, min(occurred_at) as touched_at from raw.events
            where type in ('opened', 'clicked') and not {_IS_MACHINE} group by message_id
        ) as t
        inner join (select message_id, any(contact_id) as contact_id, any(name) as name from raw.messages group by message_id) as m
            using message_id
    """
    # a row for each touch of each conversion, as attribution_touchpoints has it: credit by five rules at once
    attribution = f"""
        select order.3 as order_id, contact_id, order.1 as converted_at, touch.3 as message_id, touch.2 as campaign,
            place, order.2 as revenue, touch.1 as touched_at,
            if(place = 1, 1., 0.) as first_touch, if(place = steps, 1., 0.) as last_touch, 1 / steps as linear,
            multiIf(steps = 1, 1., steps = 2, .5, place in (1, steps), .4, .2 / (steps - 2)) as position_based,
            decay / total as time_decay
        from (
            select contact_id, order, arrayFilter(t -> t.1 <= order.1 and t.1 > order.1 - toIntervalDay(14), touches) as path,
                length(path) as steps,
                arrayMap(t -> exp2((toFloat64(t.1) - toFloat64(order.1)) / 604800), path) as decays, arraySum(decays) as total
            from (
                select o.contact_id as contact_id, arrayJoin(o.orders) as order, t.touches as touches
                from (
                    select contact_id, groupArray(tuple(ordered_at, toFloat64(revenue), order_id)) as orders
                    from ({owned_orders}) group by contact_id
                ) as o
                any join (
                    select contact_id, arraySort(groupArray(tuple(touched_at, name, message_id))) as touches from ({touches})
                    group by contact_id
                ) as t on t.contact_id = o.contact_id
            )
        )
        array join path as touch, decays as decay, arrayEnumerate(path) as place
    """
    # where people went from each touch, of those too who never ordered: what removal effects are learned from
    steps = f"""
        select toDate(here.1, 'UTC') as touched_on, here.2 as from_state,
            if(next.1 > here.1 and next.1 <= here.1 + toIntervalDay(14), next.2, '(null)') as to_state,
            count() as touches_count
        from (
            select arraySort(groupArray(tuple(at, state))) as moments,
                arrayPushBack(arrayPopFront(moments), tuple(toDateTime64(0, 3), '')) as nexts
            from (
                select contact_id, touched_at as at, name::String as state from ({touches})
                union all
                select contact_id, ordered_at as at, '(conversion)' as state from ({owned_orders})
            )
            group by contact_id
        )
        array join moments as here, nexts as next
        where here.2 != '(conversion)'
        group by touched_on, from_state, to_state
    """
    segments = f"""
        select contact_id, arrayFilter((name, holds) -> holds, [
                'champions', 'loyal', 'big', 'engaged', 'lapsed', 'at_risk', 'hibernating', 'new', 'one_time', 'never_opened',
                'potential', 'without_order', 'clicked_not_bought', 'viewed_not_bought', 'abandoned', 'anniversary',
                'reachable', 'advocates', 'churn', 'council'
            ], [
                r.recency_score = 5 and r.frequency_score >= 4, r.frequency_score >= 4, r.monetary_score = 5,
                e.engagement_score >= 20, e.last_engaged_at < {as_of} - toIntervalDay(120),
                r.recency_score <= 2 and r.frequency_score >= 3, r.recency_score = 1 and r.frequency_score <= 2,
                r.first_order_at >= {as_of} - toIntervalDay(90), r.orders_count = 1, m.opened = 0 and m.sent > 0,
                r.recency_score >= 4 and r.frequency_score <= 2, r.orders_count = 0, m.last_clicked_at > r.last_order_at,
                e.last_engaged_at > r.last_order_at, e.last_engaged_at >= {as_of} - toIntervalDay(3),
                toMonth(r.first_order_at) = toMonth({as_of}), m.unsubscribed = 0,
                r.monetary_score = 5 and e.engagement_score >= 20, r.recency_score = 1, r.monetary_score >= 4
            ]) as segments
        from ({engagement}) as e
        full join ({rfm}) as r using contact_id
        full join (
            select contact_id, sum(f.opened) as opened, sum(f.unsubscribed) as unsubscribed,
                max(f.last_clicked_at) as last_clicked_at, count() as sent
            from (select message_id, any(contact_id) as contact_id from raw.messages group by message_id) as s
            left any join (
                select message_id, countIf(type = 'opened') as opened, countIf(type = 'unsubscribed') as unsubscribed,
                    maxIf(occurred_at, type = 'clicked') as last_clicked_at
                from raw.events where type in ('opened', 'clicked', 'unsubscribed') and not {_IS_MACHINE}
                group by message_id
            ) as f using message_id
            group by contact_id
        ) as m using contact_id
    """
    events = f"""
        select event_id, {IDENTITY} as identity_id, message_id, external_id, anonymous_id, type, source,
            lower(trim(email)) as email, properties.bounce_class::String as bounce_class, properties.url::String as url,
            {_IS_MACHINE} as is_machine, properties, occurred_at, received_at, loaded_at
        from raw.events
    """
    all_orders = f"""
        select o.*, i.contact_id as contact_id
        from (
            select p.*, c.cancelled_at as cancelled_at
            from (
                select source, properties.order_id::String as order_id, {IDENTITY} as identity_id, occurred_at as ordered_at,
                    properties.currency::String as currency, properties.country::String as country,
                    properties.items[].product_id::Array(String) as product_ids,
                    properties.items[].name::Array(String) as names,
                    properties.items[].quantity::Array(Int64) as quantities,
                    arrayMap(price -> toDecimal64(price, 4), properties.items[].unit_price::Array(String)) as prices,
                    arraySum(
                        (quantity, price) -> round(quantity * price, 2)::Decimal(18, 2), quantities, prices
                    ) as revenue
                from raw.events where type = 'order.placed'
            ) as p
            left any join (
                select properties.order_id::String as order_id, max(occurred_at) as cancelled_at from raw.events
                where type = 'order.cancelled' group by order_id
            ) as c using order_id
        ) as o
        left any join {_IDENTITIES} as i using identity_id
    """
    return (
        Comparison(
            "events",
            ("int_events__recorded",),
            "(type, identity_id, occurred_at)",
            events,
            "select count(), countIf(is_machine) from intermediate.int_events__recorded",
            "select count(), countIf(is_machine) from {table}",
        ),
        Comparison(
            "orders",
            ("int_orders__combined", "orders", "order_items"),
            "(source, order_id)",
            all_orders,
            "select count(), sum(total) from marts.orders where status = 'placed'",
            "select count(), sum(revenue) from {table} where cancelled_at = toDateTime64(0, 3)",
        ),
        Comparison(
            "rfm",
            ("rfm",),
            "contact_id",
            rfm,
            "select count(), sum(revenue), sum(monetary_score), sum(recency_score) from marts.rfm",
            "select count(), sum(revenue), sum(monetary_score), sum(recency_score) from {table}",
        ),
        Comparison(
            "engagement",
            ("int_engagement__*", "engagement"),
            "contact_id",
            engagement,
            "select count() from marts.engagement",
            "select count() from {table}",
        ),
        Comparison(
            "messages",
            ("int_messages__addressed", "int_messages__followed", "int_messages__converted", "messages"),
            "sipHash64(message_id)",
            messages,
            "select count(), sum(opens_count), sum(clicks_count), countIf(converted_at is not null), sum(revenue) from marts.messages",
            "select count(), sum(opens_count), sum(clicks_count), countIf(orders_count > 0), sum(revenue) from {table}",
        ),
        Comparison(
            "campaign performance",
            ("int_campaigns__counted", "campaign_performance"),
            "(campaign, occurrence, variant)",
            campaigns,
            "select sum(sent_count), sum(opened_count), sum(clicked_count), sum(revenue) from marts.campaign_performance",
            "select sum(sent_count), sum(opened_count), sum(clicked_count), sum(revenue) from {table}",
        ),
        Comparison(
            "retention cohorts",
            ("retention_cohorts",),
            "(cohort_month, months_since_first_order)",
            cohorts,
            "select count(), sum(active_count), sum(revenue) from marts.retention_cohorts",
            "select count(), sum(active_count), sum(revenue) from {table}",
        ),
        Comparison(
            "attribution",
            (
                "int_attribution__paths",
                "int_attribution__credits",
                "attribution_by_*",
                "attribution_touchpoints",
            ),
            "(converted_at, order_id, place)",
            attribution,
        ),
        Comparison(
            "attribution steps",
            ("int_attribution__transitions", "int_attribution__effects", "attribution_removal_effects"),
            "(touched_on, from_state, to_state)",
            steps,
        ),
        Comparison("segments", (SEGMENT_MODELS,), "contact_id", segments),
    )
