"""Triggers: visible as an asset each, with what they decided; and the clock of those that no event fires."""

from datetime import timedelta

import dagster as dg

from campaigns.triggers import load_triggers
from gateway.triggers import TriggerHandler
from orchestration.lib.resources import counts_metadata
from orchestration.lib.trigger_clock import tick
from senders.firings import Firings
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError, WarehouseError

GROUP = "triggers"


@dg.definitions
def triggers() -> dg.Definitions:
    """An asset a file, and the clock; a rehearsal, whose clock is shifted, has no rhythm of its own."""
    settings = SenderSettings.load()
    try:
        specs = load_triggers(settings.content_dir)
    except MailhouseError:
        # the gateway and `mailhouse doctor` say what is wrong; all other assets are none the worse
        specs = {}
    status = dg.DefaultSensorStatus.STOPPED if settings.clock_offset else dg.DefaultSensorStatus.RUNNING
    return dg.Definitions(
        assets=[
            dg.AssetSpec(
                ["triggers", name],
                group_name=GROUP,
                description=spec.description or f"{spec.source} -> {spec.action}",
                deps=[dg.AssetKey(["marts", "contact_profiles"])],
                metadata={"version": spec.version, "happens": spec.source, "does": spec.action},
                kinds={"python"},
            )
            for name, spec in specs.items()
        ],
        sensors=[
            dg.SensorDefinition(
                name="triggers_by_clock",
                evaluation_fn=triggers_by_clock,
                minimum_interval_seconds=60,
                default_status=status,
                description="Fires triggers of days, states and segments, and reports what all triggers did.",
            )
        ]
        if specs
        else [],
    )


def triggers_by_clock(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Find who is due, hand them to the gateway's lanes through the ledger, and show the day's counts."""
    settings = SenderSettings.load()
    now = settings.now()
    try:
        with (
            Ledger.open(settings) as ledger,
            Warehouse.connect(settings, comment="triggers by clock") as warehouse,
            # nothing is done here: what is due at once waits in the ledger for a gateway
            TriggerHandler(settings, ledger, warehouse, is_collecting=True) as handler,
        ):
            counts = tick(handler, now)
            seen = Firings(ledger).counts(now - timedelta(days=1))
            names = list(handler.decider.specs)
    except WarehouseError as error:
        return dg.SkipReason(f"{error.message} {error.fix}")
    del context
    return dg.SensorResult(
        asset_events=[
            dg.AssetMaterialization(
                ["triggers", name],
                metadata={
                    "due_now": dg.MetadataValue.int(counts.get(name, 0)), **counts_metadata(seen.get(name, {}), "day_"),
                },
            )
            for name in names
            if counts.get(name) or seen.get(name)
        ],
        skip_reason=None if any(counts.values()) else "Nobody is due.",
    )  # fmt: skip
