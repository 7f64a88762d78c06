"""Predictions: churn, the next purchase and lifetime value, judged on the last weeks, promoted if better,
scored for everybody.
"""

import dagster as dg

from orchestration.defs.ml.assets import GROUP
from orchestration.lib.resources import open_warehouse, table_metadata
from warehouse.settings import MailhouseSettings

KEY = dg.AssetKey(["raw", "predictions"])
MODELS = ("churn", "purchase", "lifetime_value")
CALIBRATION, DRIFT = "is_calibrated", "has_not_drifted"


@dg.asset(
    key=KEY,
    group_name=GROUP,
    deps=[
        dg.AssetKey(["features", "contact_features"]),
        dg.AssetKey(["features", "feature_dates"]),
        dg.AssetKey(["marts", "contacts"]),
        dg.AssetKey(["marts", "orders"]),
    ],
    check_specs=[
        dg.AssetCheckSpec(f"{model}_{check}", asset=KEY, description=description)
        for model in MODELS
        for check, description in (
            (CALIBRATION, f"On the last fold, {model} forecast about what came."),
            (
                DRIFT,
                f"Those whom {model} scores today are like those it was learnt from, and so are its scores.",
            ),
        )
    ],
    description=(
        "How likely each contact is to churn and to buy, what they will spend and when they order next. Versions are "
        "promoted only if they beat the one in place."
    ),
    kinds={"python", "scikitlearn"},
    pool="clickhouse",
)
def predictions(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Train, judge, promote, score, watch."""
    # scikit-learn takes seconds to import, and most processes that load this file never fit anything
    from orchestration.lib.model_store import ModelStore
    from orchestration.lib.predictions import refresh_predictions

    settings = MailhouseSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        reports = refresh_predictions(warehouse, ModelStore.under(settings.home), settings.now())
    metadata: dict[str, dg.MetadataValue] = {}
    checks = []
    for report in reports:
        context.log.info(f"{report.model}: {report.statement}")
        metadata[f"{report.model}_statement"] = dg.MetadataValue.text(report.statement)
        metadata[f"{report.model}_version"] = dg.MetadataValue.text(report.version)
        metadata[f"{report.model}_contacts"] = dg.MetadataValue.int(report.scored)
        judged, drift = report.judgement, report.drift
        if judged is not None:
            metadata[f"{report.model}_loss"] = dg.MetadataValue.float(judged.loss)
            metadata[f"{report.model}_deciles"] = table_metadata(judged.deciles)
            metadata[f"{report.model}_card"] = dg.MetadataValue.md(report.card)
        checks += [
            dg.AssetCheckResult(
                passed=judged is None or judged.is_calibrated,
                check_name=f"{report.model}_{CALIBRATION}",
                asset_key=KEY,
                severity=dg.AssetCheckSeverity.WARN,
                description=report.statement
                if judged is None
                else f"As of {judged.day}: {judged.statement}.",
            ),
            dg.AssetCheckResult(
                passed=not report.drifted,
                check_name=f"{report.model}_{DRIFT}",
                asset_key=KEY,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"Moved far: {', '.join(report.drifted)}."
                if report.drifted
                else "Nothing moved far.",
                metadata={"stability": table_metadata(drift)} if drift is not None else {},
            ),
        ]
    return dg.MaterializeResult(metadata=metadata, check_results=checks)


@dg.asset(
    group_name=GROUP,
    deps=[dg.AssetKey(["marts", "messages"])],
    description="What went with more opens: traits of subject lines within one send, and messages in the week before.",
    kinds={"python"},
    pool="clickhouse",
)
def mail_response(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Compare, or say that there is too little mail to compare."""
    from orchestration.lib import mail_response as lib

    with open_warehouse(context.run.run_id) as warehouse:
        found = lib.mail_response(warehouse, MailhouseSettings.load().now())
    metadata: dict[str, dg.MetadataValue] = {}
    for response in found:
        metadata[f"{response.name}_statement"] = dg.MetadataValue.text(response.statement)
        if response.table is not None:
            metadata[response.name] = table_metadata(response.table)
    return dg.MaterializeResult(metadata=metadata)
