"""A campaign of the size that shops send: 30 KB of HTML, 39 merge tags, 3 conditionals, six products."""

# ruff: noqa: E501 - queries and markup are easier read unbroken; nothing in them comes from outside

from __future__ import annotations

from pathlib import Path

CAMPAIGN = """campaign: newsletter
audience: {segment: champions}
schedule: {at: 2026-06-29T08:00:00Z}
send:
  template: newsletter
  category: marketing
  subject: "{{ contact.first_name | default('Hello') }}, six things for you"
  preheader: Picked by what you have enjoyed before
  recommendations: 6
  track: {clicks: true}
cap: {messages: 5, within: 7d}
"""

_STORY = (
    "Long before the first lamp was lit in the workshop, somebody had to decide what a lamp is for. Ours are for reading, "
    "for late suppers and for the one room that never gets the sun. They are turned, sanded and oiled by hand."
)
_TAGS = (
    "first_name", "last_name", "city", "country", "rfm_segment", "orders_count", "revenue", "engagement_band",
    "days_since_last_order", "items_count",
)  # fmt: skip


def template() -> str:
    """The template as MJML."""
    stories = "".join(
        f"""
    <mj-section padding="12px 0"><mj-column>
      <mj-text font-size="20px" line-height="1.4" color="#2d2a26">Story {number} for {{{{ contact.{_TAGS[number % 10]} | default('you') }}}}</mj-text>
      <mj-text font-size="15px" line-height="1.6" color="#55504a">{_STORY}
        {{{{ contact.{_TAGS[(number + 3) % 10]} | default('friend') }}}}, {{{{ contact.{_TAGS[(number + 5) % 10]} | default('there') }}}}.</mj-text>
    </mj-column></mj-section>"""
        for number in range(9)
    )
    return f"""<mjml>
  <mj-body background-color="#f6f4f0">
    <mj-section><mj-column>
      <mj-text font-size="26px">Good morning, {{{{ contact.first_name | default('you') }}}} {{{{ contact.last_name | default('') }}}}</mj-text>
      {{% if contact.orders_count > 3 %}}<mj-text>Thank you for {{{{ contact.orders_count }}}} orders.</mj-text>{{% endif %}}
      {{% if contact.city %}}<mj-text>It is a fine day in {{{{ contact.city }}}}.</mj-text>{{% endif %}}
      {{% if contact.revenue > 100 %}}<mj-text>You have {{{{ contact.revenue | money }}}} of good taste at home.</mj-text>{{% endif %}}
    </mj-column></mj-section>
    {stories}
    {{% for product in recommendations %}}
    <mj-section><mj-column>
      <mj-text font-size="17px">{{{{ product.name }}}}</mj-text>
      <mj-button href="{{{{ product.url }}}}">{{{{ product.price | money }}}}</mj-button>
    </mj-column></mj-section>
    {{% endfor %}}
    <mj-section><mj-column>
      <mj-text font-size="12px">{{{{ company_name }}}}, {{{{ postal_address }}}}. <a href="{{{{ unsubscribe_url }}}}">Unsubscribe</a></mj-text>
    </mj-column></mj-section>
  </mj-body>
</mjml>
"""


def write_content(folder: Path) -> None:
    """Campaign and template in a content folder."""
    (folder / "templates").mkdir(parents=True)
    (folder / "campaigns").mkdir()
    (folder / "templates" / "newsletter.mjml").write_text(template())
    (folder / "campaigns" / "newsletter.yaml").write_text(CAMPAIGN)


def marts(contacts: int) -> tuple[str, ...]:
    """SQL that makes the marts which a campaign reads, for so many contacts; the columns are those of the models."""
    return (
        *(f"create database if not exists {name}" for name in ("marts", "segments")),
        *(
            f"drop table if exists {name} sync"
            for name in (
                "marts.contact_profiles",
                "marts.consents",
                "marts.suppressions",
                "marts.recommendations",
                "segments.champions",
            )
        ),
        f"""
        create table marts.contact_profiles engine = MergeTree order by contact_id as
        select toInt64(1000003 * number + 7) as contact_id, concat('person', toString(number), '@example.com') as email,
            if(number % 11 = 0, null, concat('Zoë', toString(number % 900)))::Nullable(String) as first_name,
            concat('Miller', toString(number % 7000))::Nullable(String) as last_name,
            'United Kingdom'::Nullable(String) as country, if(number % 5 = 0, null, concat('City ', toString(number % 300)))::Nullable(String) as city,
            'Europe/London'::Nullable(String) as timezone, 'en-GB'::Nullable(String) as locale,
            toLowCardinality('champions') as rfm_segment, toLowCardinality('hot') as engagement_band,
            (number % 12)::UInt32 as orders_count, (number % 90)::Int64 as items_count,
            toDecimal64(number % 100000 / 100, 2)::Decimal(18, 2) as revenue, toDecimal64(25.5, 2)::Decimal(18, 2) as average_order_value,
            (number % 300)::Nullable(Int32) as days_since_last_order, 5::Nullable(UInt8) as recency_score, 5::Nullable(UInt8) as frequency_score,
            5::Nullable(UInt8) as monetary_score, number % 100 + 0.5 as engagement_score, 3::UInt32 as messages_sent_count,
            2::UInt32 as messages_opened_count, 1::UInt32 as messages_clicked_count, false as is_deleted, false as is_suppressed,
            true as has_marketing_consent, now64(3, 'UTC') as created_at, now64(3, 'UTC')::Nullable(DateTime64(3, 'UTC')) as first_order_at,
            now64(3, 'UTC')::Nullable(DateTime64(3, 'UTC')) as last_order_at, now64(3, 'UTC')::Nullable(DateTime64(3, 'UTC')) as last_engaged_at,
            null::Nullable(DateTime64(3, 'UTC')) as first_message_at, null::Nullable(DateTime64(3, 'UTC')) as last_message_at,
            null::Nullable(DateTime64(3, 'UTC')) as last_opened_at, null::Nullable(DateTime64(3, 'UTC')) as last_clicked_at,
            ['champions', 'engaged'] as segments
        from numbers({contacts})
        """,
        """
        create table marts.consents engine = MergeTree order by contact_id as
        select contact_id, concat('consent-', toString(contact_id)) as consent_id, toLowCardinality('email') as channel,
            toLowCardinality('marketing') as purpose, 'opt_in' as basis, '1' as text_version, true as is_granted,
            now64(3, 'UTC') as occurred_at
        from marts.contact_profiles
        """,
        """
        create table marts.suppressions engine = MergeTree order by email as
        select concat('event-', toString(contact_id)) as event_id, email, 'unsubscribed' as reason, false as is_bounced,
            now64(3, 'UTC') as suppressed_at
        from marts.contact_profiles where contact_id % 97 = 0
        """,
        f"""
        create table marts.recommendations engine = MergeTree order by (contact_id, rank) as
        select contact_id, arrayJoin(range(1, 11))::UInt16 as rank, concat('P', toString(contact_id * rank % 4000)) as product_id,
            concat('Lamp of the ', toString(contact_id * rank % 4000), 'th kind') as product_name,
            'https://shop.example/i.png'::Nullable(String) as image_url,
            concat('https://shop.example/p/', toString(contact_id * rank % 4000))::Nullable(String) as url,
            toLowCardinality('item_to_item') as model, 'v1' as model_version, toLowCardinality('bought_together') as reason,
            toDecimal64(contact_id * rank % 5000 / 100, 2)::Nullable(Decimal(18, 2)) as price, 1. / rank as score
        from (select contact_id from marts.contact_profiles limit {contacts})
        """,
        "create table segments.champions engine = MergeTree order by contact_id as select contact_id from marts.contact_profiles",
    )
