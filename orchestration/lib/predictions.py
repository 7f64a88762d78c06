"""Predictions from the warehouse and back: train, judge, promote if better, score, watch.

For each model the same steps: read features as of past days and what came after them; train on days whose
    horizon was over by
the day to judge by; judge it on that day beside baselines and the version in place; **promote it only if its
loss there is lower**; score everybody of today with the version that is then in place. Where there is too
little data, nothing is predicted and the report says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from campaigns.permissions import restricted_sql
from ml.predictions.base import NotEnoughData
from ml.predictions.cards import model_card
from ml.predictions.predictors import (
    CHURN,
    CLOCKS,
    LIFETIME,
    NEXT_ORDER,
    PURCHASE,
    Judgement,
    LifetimePredictor,
    Predictor,
    PropensityPredictor,
)
from ml.predictions.propensity import TemporalPlan, temporal_plan
from orchestration.lib.model_store import ModelStore, ModelStoreError, StoredModel
from warehouse.client import Warehouse

CHURN_DAYS, PURCHASE_DAYS, JUDGED_DAYS = 60, 30, 60
"""Horizons: no order within, an order within, and how long lifetime values are judged by."""
SAMPLE = 200_000
"""Contacts to learn from at most; all are scored."""
SLICE = 250_000
TRAINING_DAYS = 4


@dataclass(frozen=True)
class Report:
    """What became of one model.

    Attributes:
        model: its name.
        version: the version in place, empty if none.
        is_new: whether this run promoted it.
        statement: what was decided, in one sentence.
        scored: contacts with a score.
        judgement: how the version in place did; None without one, or if there was too little data to judge.
        drift: `ml.predictions.drift.DRIFT_SCHEMA`; None if there is nothing to compare.
        card: Markdown; empty without a version.
    """

    model: str
    version: str = ""
    is_new: bool = False
    statement: str = ""
    scored: int = 0
    judgement: Judgement | None = None
    drift: pl.DataFrame | None = None
    card: str = ""

    @property
    def drifted(self) -> list[str]:
        """What has moved far, apart from what grows with a young shop by itself."""
        if self.drift is None:
            return []
        far = self.drift.filter((pl.col("verdict") == "large") & ~pl.col("feature").is_in(CLOCKS))
        return far["feature"].to_list()


@dataclass
class _Data:
    """What all models read, each day's rows once."""

    warehouse: Warehouse
    today: date
    days: list[date] = field(default_factory=list)
    first: date | None = None
    modulus: int = 1
    features: dict[date, pl.DataFrame] = field(default_factory=dict)

    @classmethod
    def of(cls, warehouse: Warehouse, now: datetime) -> _Data:
        today = now.date()
        facts = warehouse.frame(
            """
            select count() as sales, toDate(min(ordered_at), 'UTC') as first,
                (select count() from marts.contacts) as contacts
            from marts.orders
            where is_sale and contact_id is not null and ordered_at < {today:Date}
            """,
            {"today": today.isoformat()},
        ).row(0, named=True)
        days = warehouse.frame(
            "select as_of from features.feature_dates where as_of <= {today:Date}",
            {"today": today.isoformat()},
        )
        return cls(
            warehouse,
            today,
            days["as_of"].to_list(),
            facts["first"] if facts["sales"] else None,
            modulus=-(-facts["contacts"] // SAMPLE) or 1,
        )

    def plan(self, horizon: int) -> TemporalPlan:
        if self.first is None:
            raise NotEnoughData("not enough data: there are no orders")
        return temporal_plan(
            self.days, today=self.today, horizon=timedelta(days=horizon), first=self.first, most=TRAINING_DAYS
        )

    def read(self, days: Sequence[date]) -> None:
        """Features as of past days, of a sample of contacts."""
        missing = [day for day in days if day not in self.features]
        if not missing:
            return
        frame = self.warehouse.frame(
            f"""
            select * from features.contact_features
            where as_of in ({_dates(missing)}) and contact_id % {{modulus:UInt32}} = 0
                and not {restricted_sql("contact_id")}
            """,  # noqa: S608 - dates
            {"modulus": self.modulus},
        )
        _unique(frame)
        for day in missing:
            self.features[day] = frame.filter(pl.col("as_of") == day)

    def rows(self, days: Sequence[date], horizon: int) -> pl.DataFrame:
        """Features as of days, with the days with an order and the revenue of the horizon after each."""
        self.read(days)
        came = self.warehouse.frame(
            f"""
            select assumeNotNull(contact_id) as contact_id, as_of,
                uniqExact(toDate(ordered_at, 'UTC'))::UInt32 as orders_within, sum(revenue)::Float64 as
                revenue_within
            from marts.orders
            cross join (select arrayJoin([{_dates(days)}]) as as_of) as dates
            where
                is_sale and contact_id is not null and contact_id % {{modulus:UInt32}} = 0
                and ordered_at >= toDateTime64(as_of, 3, 'UTC')
                and ordered_at < toDateTime64(as_of, 3, 'UTC') + toIntervalDay({{horizon:UInt32}})
            group by contact_id, as_of
            """,  # noqa: S608 - dates
            {"modulus": self.modulus, "horizon": horizon},
        )
        return (
            pl.concat([self.features[day] for day in days])
            .join(came, on=["contact_id", "as_of"], how="left")
            .with_columns(pl.col("orders_within").fill_null(0), pl.col("revenue_within").fill_null(0.0))
        )

    def everybody(self) -> pl.DataFrame:
        """Features of everybody who is neither deleted nor restricted, as of today."""
        frame = self.warehouse.frame(
            f"""
            select * from features.contact_features
            where as_of = {{today:Date}} and contact_id in (select contact_id from marts.contacts where not
            is_deleted) and not {restricted_sql("contact_id")}
            """,  # noqa: S608 - of our own making
            {"today": self.today.isoformat()},
        )
        _unique(frame)
        return frame.sort("contact_id")


def refresh_predictions(warehouse: Warehouse, store: ModelStore, now: datetime) -> list[Report]:
    """Train, judge and promote each model, and score everybody as of the beginning of today (UTC).

    Running it again on the same day replaces the day's scores.

    Args:
        warehouse: models built, features and marts.
        store: where promoted versions lie.
        now: the time.
    """
    data = _Data.of(warehouse, now)
    today = data.everybody() if data.first is not None else pl.DataFrame()
    plans = {}
    for horizon in (CHURN_DAYS, PURCHASE_DAYS, JUDGED_DAYS):
        try:
            plans[horizon] = data.plan(horizon)
        except NotEnoughData:
            continue
    # one question for all days: orders are read once
    data.read(sorted({day for plan in plans.values() for day in (*plan.train, plan.test)}))
    return [
        _refresh(data, store, now, today, model, horizon)
        for model, horizon in ((CHURN, CHURN_DAYS), (PURCHASE, PURCHASE_DAYS), (LIFETIME, JUDGED_DAYS))
    ]


def new_predictor(model: str, horizon: int) -> Predictor:
    """An untrained predictor.

    Raises:
        ValueError: there is no such model.
    """
    if model in (CHURN, PURCHASE):
        return PropensityPredictor(model, horizon)
    if model == LIFETIME:
        return LifetimePredictor(model, horizon)
    raise ValueError(f"no model {model!r}; there are {CHURN}, {PURCHASE} and {LIFETIME}")


def models_of(model: str) -> tuple[str, ...]:
    """Names under which a predictor's scores are stored."""
    return (LIFETIME, NEXT_ORDER) if model == LIFETIME else (model,)


def _refresh(
    data: _Data, store: ModelStore, now: datetime, today: pl.DataFrame, model: str, horizon: int
) -> Report:
    place, trouble = _in_place(data.warehouse, store, model)
    try:
        plan = data.plan(horizon)
        # models of purchases learn nothing from the horizon, so they may learn from the day they are judged by
        train_days = [plan.test] if model == LIFETIME else plan.train
        train, fold = data.rows(train_days, horizon), data.rows([plan.test], horizon)
        challenger = new_predictor(model, horizon).train(train)
        baselines = challenger.baselines(train)
        judged = challenger.judge(fold, baselines)
    except NotEnoughData as error:
        if place is None:
            return Report(
                model, statement=f"{str(error).capitalize()}. Nothing is predicted. {trouble}".strip()
            )
        return _score(data, today, place, None, f"{str(error).capitalize()}. {_kept(place)}")
    version = now.strftime("%Y%m%dT%H%M%SZ")
    place_judged = place.model.judge(fold, {}) if place is not None else None
    bar = place_judged.loss if place_judged is not None else judged.baseline_loss
    rival = f"version {place.header['version']}" if place is not None else "the baseline"
    # equal is not better: the same data every night give the same model
    is_better = judged.loss < bar - 1e-9
    words = f"loss {judged.loss:.4f} on {judged.day}, {rival} {bar:.4f}"
    _note(data.warehouse, model, version, now, judged, is_promoted=None)
    if not is_better:
        if place is None:
            return Report(
                model,
                statement=f"Not promoted: {words}. Nothing is predicted. {trouble}".strip(),
                judgement=judged,
                card=_card(model, "(not promoted)", challenger, judged, None),
            )
        assert place_judged is not None
        # shown with the baselines that the challenger was compared with
        shown = _beside(place_judged, judged, model)
        return _score(data, today, place, shown, f"{_kept(place)} The challenger: {words}.")
    metadata = {
        "trained_as_of": [str(day) for day in challenger.days],
        "rows": challenger.rows,
        "judged_as_of": str(judged.day),
        "loss": judged.loss,
        **challenger.describe(),
    }
    sha256 = store.save(model, version, challenger, created_at=now, metadata=metadata)
    promoted = StoredModel({"version": version, "sha256": sha256}, challenger)
    report = _score(data, today, promoted, judged, f"Promoted: {words}. {trouble}".strip(), is_new=True)
    # scores first: whoever reads sees the old version whole, or the new one
    _note(data.warehouse, model, version, now, None, is_promoted=True, sha256=sha256)
    left = store.prune(model, {version})
    for name in models_of(model):
        data.warehouse.execute(
            "delete from raw.predictions where model = {model:String} and model_version not in {left:Array(String)}",
            {"model": name, "left": left},
        )
    return report


def _kept(place: StoredModel) -> str:
    return f"Version {place.header['version']} stays in place."


def _beside(place: Judgement, challenger: Judgement, model: str) -> Judgement:
    rest = challenger.evaluation.with_columns(
        pl.when(pl.col("model") == model).then(pl.lit("challenger")).otherwise(pl.col("model")).alias("model")
    )
    return Judgement(
        day=place.day,
        contacts=place.contacts,
        loss=place.loss,
        baseline_loss=challenger.baseline_loss,
        evaluation=pl.concat([place.evaluation, rest]),
        deciles=place.deciles,
        is_calibrated=place.is_calibrated,
        statement=place.statement,
    )


def _in_place(warehouse: Warehouse, store: ModelStore, model: str) -> tuple[StoredModel | None, str]:
    """The version in place, and what is the matter if it cannot be used."""
    found = warehouse.frame(
        """
        select model_version, argMax(value, loaded_at) > 0 as is_promoted,
            argMax(properties.sha256::Nullable(String), loaded_at) as sha256
        from raw.model_evaluations
        where model = {model:String} and metric = 'promoted'
        group by model_version having is_promoted order by max(as_of) desc, model_version desc limit 1
        """,
        {"model": model},
    )
    if not found.height:
        return None, ""
    version, _, sha256 = found.row(0)
    try:
        return store.load(model, version, sha256=sha256), ""
    except ModelStoreError as error:
        return None, f"The version in place could not be compared. {error.message}"


def _score(
    data: _Data,
    today: pl.DataFrame,
    place: StoredModel,
    judged: Judgement | None,
    statement: str,
    *,
    is_new: bool = False,
) -> Report:
    predictor: Predictor = place.model
    version = place.header["version"]
    as_of = datetime.combine(data.today, time(), UTC)
    scored = 0
    if today.height:
        parts = [predictor.score(part) for part in today.iter_slices(SLICE)]
        for name in models_of(predictor.name):
            rows = pl.concat([part[name] for part in parts])
            scored = max(scored, rows.height)
            _replace(data.warehouse, name, version, as_of, rows)
    try:
        drift = predictor.drift(today) if today.height else None
    except NotEnoughData:
        drift = None
    card = _card(predictor.name, version, predictor, judged, drift) if judged is not None else ""
    return Report(predictor.name, version, is_new, statement, scored, judged, drift, card)


def _replace(warehouse: Warehouse, model: str, version: str, as_of: datetime, rows: pl.DataFrame) -> None:
    """Put a version's scores in place of those it gave before; readers see the ones or the others."""
    stamp = warehouse.value("select now64(3, 'UTC')")
    warehouse.insert(
        "raw.predictions",
        rows.with_columns(
            pl.lit(model).alias("model"),
            pl.lit(version).alias("model_version"),
            pl.lit(as_of).cast(pl.Datetime("ms", "UTC")).alias("as_of"),
            pl.lit(stamp).cast(pl.Datetime("ms", "UTC")).alias("loaded_at"),
        ),
    )
    warehouse.execute(
        "delete from raw.predictions where model = {model:String} and model_version = {version:String} "
        "and loaded_at < {stamp:DateTime64(3)}",
        {"model": model, "version": version, "stamp": stamp},
    )


def _note(
    warehouse: Warehouse,
    model: str,
    version: str,
    now: datetime,
    judged: Judgement | None,
    *,
    is_promoted: bool | None,
    sha256: str = "",
) -> None:
    """Write what was measured, or the verdict, into raw.model_evaluations."""
    rows = []
    if judged is not None:
        about = json.dumps({"judged_as_of": str(judged.day), "contacts": judged.contacts})
        for row in judged.evaluation.to_dicts():
            prefix = "" if row["model"] == model else f"{row['model']}_"
            if row["value"] is not None and row["value"] == row["value"]:
                rows.append((model, prefix + row["metric"], row["value"], about))
    if is_promoted is not None:
        rows += [
            (one, "promoted", float(is_promoted), json.dumps({"sha256": sha256})) for one in models_of(model)
        ]
    metrics = sorted({row[1] for row in rows})
    if not rows:
        return
    warehouse.execute(
        "delete from raw.model_evaluations where model in {models:Array(String)} and model_version = {version:String} "
        "and metric in {metrics:Array(String)}",
        {"models": list(models_of(model)), "version": version, "metrics": metrics},
    )
    frame = pl.DataFrame(rows, schema=["model", "metric", "value", "properties"], orient="row")
    warehouse.insert(
        "raw.model_evaluations",
        frame.with_columns(
            pl.lit(version).alias("model_version"), pl.lit(now).cast(pl.Datetime("ms", "UTC")).alias("as_of")
        ),
    )


def _card(
    model: str, version: str, predictor: Predictor, judged: Judgement, drift: pl.DataFrame | None
) -> str:
    facts = {
        **predictor.describe(),
        "judged": f"on {judged.contacts:,} contacts as of {judged.day}, by what they did in "
        f"{predictor.horizon_days} days",
        "calibration": judged.statement,
    }
    return model_card(
        f"{model} {version}",
        facts,
        judged.evaluation,
        judged.deciles,
        drift if drift is not None else pl.DataFrame(),
        is_share=model != LIFETIME,
    )


def _dates(days: Sequence[date]) -> str:
    return ", ".join(f"toDate('{day.isoformat()}')" for day in days)


def _unique(frame: pl.DataFrame) -> None:
    if frame.select("contact_id", "as_of").is_duplicated().any():
        raise ValueError("features.contact_features has a contact twice on one day")
