"""When models are built: after their sources, at two speeds, without a nightly run of everything.

What campaigns, triggers and journeys read (segments, profiles, consent, and all that they stand on) follows within
minutes; reports follow within the hour. Sends have no condition here: a sensor launches them, and nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

import dagster as dg

LIVE_CRON = "2-59/5 * * * *"
"""Minutes at which what sends read is looked at: two after the sources, which load every five."""
REPORTS_CRON = "12 * * * *"
TIME_PASSES_CRON = "7 * * * *"

LIVE = (
    "segments/*",
    # views, which cost nothing to build and which the predictions of the night read
    "features/*",
    "marts/contact_profiles",
    "marts/segment_memberships",
    "marts/suppressions",
    "marts/consents",
    # what recommenders learn from, and triggers and journeys listen to
    "marts/contacts",
    "marts/products",
    "marts/order_items",
    "marts/events",
    "marts/segment_changes",
    "marts/recommendations",
    "marts/messages",
    "marts/campaign_performance",
    # by which experiments are decided
    "marts/experiment_exposures",
    "marts/experiment_sums",
    "marts/retention_cohorts",
)
"""What campaigns, journeys, triggers and recommenders read, and how they do: with everything upstream, built at the
speed of `LIVE_CRON`."""


def follows(cron: str) -> dg.AutomationCondition:
    """Build at the next tick of `cron` if there is a reason to."""
    condition = dg.AutomationCondition
    reasons = (
        # a source or another model has new rows, or is about to in the same run
        condition.any_deps_updated()
        # segments and scores change though nothing happens: somebody's 90 days are over
        | condition.cron_tick_passed(TIME_PASSES_CRON)
        # it was never built, or was added since
        | condition.missing()
    )
    return (
        # rows arrive all the time: one build takes them together
        condition.cron_tick_passed(cron)
        # a reason holds until a build has answered it
        & reasons.since_last_handled()  # pyright: ignore[reportAttributeAccessIssue]
        # one build of a model at a time
        & ~condition.in_progress()
    ).with_label(f"follows its sources at {cron}")


def automated(specs: Iterable[dg.AssetSpec]) -> list[dg.AssetSpec]:
    """The specs of dbt's models with their conditions, and with how old they may get before Dagster says so."""
    specs = list(specs)
    live = live_keys(specs)
    return [
        spec.replace_attributes(
            automation_condition=follows(LIVE_CRON if spec.key in live else REPORTS_CRON),
            freshness_policy=dg.FreshnessPolicy.time_window(
                warn_window=timedelta(hours=2), fail_window=timedelta(hours=6)
            )
            if spec.key in live
            else dg.FreshnessPolicy.time_window(
                warn_window=timedelta(hours=6), fail_window=timedelta(hours=26)
            ),
        )
        for spec in specs
    ]


def live_keys(specs: Iterable[dg.AssetSpec]) -> set[dg.AssetKey]:
    """The models of `LIVE` and everything that they stand on."""
    specs = list(specs)
    keys = {spec.key for spec in specs}
    return upstream_of({key for key in keys if _is_live(key)}, specs) & keys


def upstream_of(keys: Iterable[dg.AssetKey], specs: Sequence[dg.AssetSpec]) -> set[dg.AssetKey]:
    """The keys with everything that they depend on, as far as `specs` tell."""
    parents: Mapping[dg.AssetKey, set[dg.AssetKey]] = {
        spec.key: {dep.asset_key for dep in spec.deps} for spec in specs
    }
    found: set[dg.AssetKey] = set()
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo.extend(parents.get(key, ()))
    return found


def _is_live(key: dg.AssetKey) -> bool:
    return key.to_user_string() in LIVE or f"{key.path[0]}/*" in LIVE
