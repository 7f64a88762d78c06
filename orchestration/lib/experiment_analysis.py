"""What an experiment has come to, and what follows from it: for the Dagster asset and `mailhouse experiment`.

`look` reads the marts and analyses; `decision_for` says what follows by the file's rule; `review` does both and writes
the decision down, once. No Dagster in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import polars as pl

from campaigns.assignment import HOLDOUT
from campaigns.experiment_specs import LOWER_IS_BETTER, MESSAGE_METRICS, Placed
from campaigns.experiments import Decision, decide, decision_of, settled
from ml.experiments import Analysis, Guardrail, Metric, Plan, Verdict, analyse, judge, roll_up
from ml.experiments.report import report_html
from ml.experiments.validity import sample_ratio
from orchestration.lib.experiment_runs import (
    Running,
    baseline_of,
    has_marts,
    missing_messages,
    needed,
    rows_of_sums,
    started_at,
)
from senders.leases import hold
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError
from warehouse.yaml_specs import nearest

REPORTS = "experiments"  # in the home folder


class BrokenRatioError(MailhouseError):
    """The variants do not have the contacts that were planned, so no winner is chosen."""


@dataclass(frozen=True)
class Look:
    """An experiment as of now.

    Attributes:
        analysis, verdict: None as long as nobody has been exposed.
        mixed: contacts who saw several variants.
        held_out: contacts who were held out.
        started_at: when the last variant of the newest occurrence went, None before.
        is_final: the planned end is reached, or the decision was made.
        decision: what was decided, None if nothing yet.
        note: what keeps it from being decided; empty if nothing does.
    """

    running: Running
    analysis: Analysis | None
    verdict: Verdict | None
    mixed: int
    held_out: int
    started_at: datetime | None
    is_final: bool
    decision: Decision | None
    note: str = ""

    @property
    def chances(self) -> dict[str, float]:
        """Each variant's chance to be the best; empty if the data cannot say."""
        if self.analysis is None:
            return {}
        return {name: one.chance_best for name, one in self.analysis.posteriors.items()}

    @property
    def headline(self) -> str:
        """How it stands, in a sentence."""
        if self.decision is not None:
            return self.decision.headline
        return self.verdict.headline if self.verdict else self.note or "Nobody has been exposed yet."

    @property
    def decision_words(self) -> str:
        """What was decided, when, by which rule, and who gets what won; empty if nothing was."""
        made, placed = self.decision, self.running.placed
        if made is None:
            return ""
        rule = made.rule.replace("_", " ")
        gets = placed.nobody if not made.winner else f"{placed.others} gets {made.winner}."
        said = "" if made.headline.endswith(gets) else f" {gets}"
        return f"Decided {made.decided_at:%Y-%m-%d %H:%M UTC} ({rule}): {made.headline}{said}"


def look(warehouse: Warehouse, running: Running, now: datetime) -> Look:
    """Analyse an experiment by what the marts have."""
    placed = running.placed
    decision = decision_of(warehouse, placed.name)
    if not has_marts(warehouse):
        note = "The models have not been built yet."
        return Look(running, None, None, 0, 0, None, False, decision, note)
    rows = rows_of_sums(warehouse, placed.name)
    people = warehouse.frame(
        """
        select countIf(is_mixed) as mixed, countIf(variant = {holdout:String}) as held_out,
            maxOrNull(if(variant != {holdout:String}, exposed_at, null)) as last_at, min(exposed_at) as first_at,
            count() as contacts
        from marts.experiment_exposures where experiment = {experiment:String}
        """,
        {"experiment": placed.name, "holdout": HOLDOUT},
    ).row(0, named=True)
    tested = rows.filter(pl.col("variant").is_in(list(placed.weights)))
    if not tested.height:
        return Look(running, None, None, people["mixed"], people["held_out"], None, False, decision)
    started, waits = started_at(warehouse, running, people["first_at"], now)
    is_final = decision is not None or now >= started + placed.measures.planned_end
    baseline = baseline_of(warehouse, running)
    plan = plan_of(warehouse, placed, tested, baseline)
    days = _sums(tested, plan, by=["variant", "day"])
    analysis = analyse(
        roll_up(days),
        plan,
        is_final=is_final,
        days=days if days["day"].n_unique() > 1 else None,
        mixed=people["mixed"],
    )
    analysis = _with_ratio(warehouse, running, analysis)
    return Look(
        running,
        analysis,
        judge(analysis),
        people["mixed"],
        people["held_out"],
        started,
        is_final,
        decision,
        waits,
    )


def plan_of(warehouse: Warehouse, placed: Placed, rows: pl.DataFrame, baseline: float | None) -> Plan:
    """The plan of an experiment, as `ml.experiments` wants it.

    Args:
        rows: of `marts.experiment_sums`, to tell kinds and directions of metrics.
        baseline: what the metric is without the experiment; None takes what there is as what was planned.
    """
    measures = placed.measures
    kinds = {name: (kind, bool(lower)) for name, kind, lower in
             rows.select("metric", "metric_kind", "is_lower_better").unique().iter_rows()}  # fmt: skip

    def metric(name: str) -> Metric:
        kind, lower = kinds.get(
            name, ("proportion" if name in MESSAGE_METRICS else "mean", name in LOWER_IS_BETTER)
        )
        if kind == "proportion":
            return Metric(name, "proportion", lower_is_better=lower)
        if kind == "ratio":
            return Metric(name, "ratio", denominator=f"{name}_per", lower_is_better=lower)
        varied = rows.filter(metric=name)["before_square_sum"].sum() > 0
        return Metric(name, "mean", covariates=(f"{name}_before",) if varied else (), lower_is_better=lower)

    contacts = int(rows.filter(metric=measures.metric)["contacts_count"].sum())
    planned = needed(placed, baseline).total if baseline else max(contacts, 1)
    early = {"fixed": 0.0, "anytime": 0.8 * measures.alpha, "bayes": 0.0}[measures.decide]
    return Plan(
        placed.name,
        _weights(warehouse, placed),
        control=placed.control,
        primary=metric(measures.metric),
        planned_contacts=planned,
        minimum_lift=measures.minimum_effect,
        guardrails=tuple(Guardrail(metric(one.metric), one.margin) for one in measures.guardrails),
        secondary=tuple(metric(name) for name in measures.others),
        alpha=measures.alpha,
        power=measures.power,
        early_alpha=early,
    )


def decision_for(seen: Look, now: datetime) -> Decision | None:
    """What follows from a look by the file's rule; None as long as nothing does.

    Raises:
        BrokenRatioError: it would be time to decide, and the sample ratio is broken.
    """
    placed, experiment = seen.running.placed, seen.running.placed.measures
    if experiment.winner is None or seen.decision is not None:
        return None
    analysis, verdict, started = seen.analysis, seen.verdict, seen.started_at
    if (
        analysis is None
        or verdict is None
        or started is None
        or seen.note
        or now < started + experiment.earliest
    ):
        return None
    rule = experiment.winner
    if analysis.sample_ratio.is_broken:
        raise BrokenRatioError(
            f"Experiment {placed.name} is not decided: {verdict.headline} {' '.join(verdict.evidence)}",
            fix=f"Find out why. `mailhouse experiment decide {placed.name} VARIANT` chooses all the same.",
        )

    def made(winner: str, by: str, outcome: str, headline: str) -> Decision:
        return Decision(placed.name, outcome, winner, by, headline, verdict.text, now)

    harmed = {one.variant for one in analysis.guardrails if one.status == "harmed"}
    if experiment.decide == "bayes":
        allowed = {name: one for name, one in analysis.posteriors.items() if name not in harmed}
        best = max(allowed, key=lambda name: allowed[name].chance_best, default=None)
        if best is not None and allowed[best].chance_best >= rule.confidence:
            chance = allowed[best].chance_best
            words = f"{best} wins: the best on {placed.measures.metric} with a chance of {chance:.1%}."
            return made(best, "bayes", "best_chance", words)
    elif verdict.winner is not None:
        return made(verdict.winner, experiment.decide, verdict.outcome, verdict.headline)
    if now < started + experiment.planned_end:
        return None
    match rule.otherwise:
        case "none":
            return made("", "otherwise", verdict.outcome, f"{verdict.headline} {placed.nobody}")
        case "best":
            allowed = {name: one for name, one in analysis.posteriors.items() if name not in harmed}
            best = max(allowed, key=lambda name: allowed[name].chance_best, default=placed.control)
            words = f"{verdict.headline} {placed.others} gets {best}, which looks best."
            return made(best, "otherwise", verdict.outcome, words)
        case _:
            words = f"{verdict.headline} {placed.others} gets {placed.control}, the control."
            return made(placed.control, "otherwise", verdict.outcome, words)


def conclude(settings: SenderSettings, warehouse: Warehouse, decision: Decision) -> Decision:
    """Write a decision, once; the answer is the one that counts.

    Raises:
        LeaseTakenError: another process is deciding at this moment.
    """
    with Ledger.open(settings) as ledger, hold(ledger, f"experiment {decision.experiment}"):
        return decide(warehouse, decision)


def review(settings: SenderSettings, warehouse: Warehouse, running: Running) -> Look:
    """Look, and decide if it is time: the decision is written, once, and is in the answer.

    Raises:
        BrokenRatioError: it would be time to decide, and the sample ratio is broken.
        LeaseTakenError: another process is deciding at this moment.
    """
    now = settings.now()
    seen = look(warehouse, running, now)
    if seen.decision is None and (missing := missing_messages(settings, warehouse, running)):
        seen = replace(seen, note=seen.note or f"The models have not taken in {missing:,} messages yet.")
    decision = decision_for(seen, now)
    return replace(seen, decision=conclude(settings, warehouse, decision)) if decision else seen


def decide_by_hand(
    settings: SenderSettings, warehouse: Warehouse, running: Running, variant: str
) -> Decision:
    """Decide whatever the data say.

    Raises:
        InputError: nobody waits for a winner, there is no such variant, or it has been decided otherwise.
    """
    if running.placed.measures.winner is None:
        raise InputError(
            f"{running.placed.place()}: experiment {running.name} has nobody who waits for a winner.",
            fix="Change the file: keep the variant that you choose, and remove the experiment; or write winner.",
        )
    if variant not in running.placed.weights:
        raise InputError(
            f"Experiment {running.name} has no variant {variant!r}.",
            fix=nearest(variant, running.placed.weights),
        )
    wanted = Decision(
        running.name, "by_hand", variant, "by_hand", f"{variant} was chosen by hand.", "", settings.now()
    )
    made = conclude(settings, warehouse, wanted)
    if made.winner != variant:
        raise InputError(
            f"Experiment {running.name} was decided on {made.decided_at:%Y-%m-%d %H:%M UTC}: {made.headline}",
            fix="A decision stands; begin a new experiment under another name.",
        )
    return made


def write_report(settings: SenderSettings, seen: Look) -> Path | None:
    """Write the page of an experiment below the home folder; None as long as there is nothing to show."""
    if seen.analysis is None or seen.verdict is None:
        return None
    path = settings.home / REPORTS / f"{seen.running.name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    page = report_html(seen.analysis, seen.verdict, written_at=settings.now(), decision=seen.decision_words)
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    return path


def result_table(seen: Look) -> pl.DataFrame:
    """What each variant came to: contacts, the metric that decides, lift with its interval, chance to be the best."""
    schema = {
        "variant": pl.String, "contacts": pl.Int64, "value": pl.Float64, "lift": pl.Float64, "low": pl.Float64,
        "high": pl.Float64, "p_value": pl.Float64, "chance_best": pl.Float64,
    }  # fmt: skip
    analysis = seen.analysis
    if analysis is None:
        return pl.DataFrame(schema=schema)
    values = {one.variant: one for one in analysis.primary}
    control = analysis.plan.control
    rows: list[dict[str, object]] = []
    for name, contacts in analysis.counts.items():
        row: dict[str, object] = {
            "variant": name,
            "contacts": contacts,
            "chance_best": seen.chances.get(name),
        }
        if name == control:
            row["value"] = analysis.primary[0].comparison.control_value
        else:
            one = values[name]
            row |= {
                "value": one.comparison.treatment_value, "lift": one.relative.value, "low": one.relative.low,
                "high": one.relative.high, "p_value": one.p_adjusted,
            }  # fmt: skip
        rows.append(row)
    number = pl.selectors.float()
    return pl.DataFrame(rows, schema=schema).with_columns(pl.when(number.is_finite()).then(number))


def _sums(rows: pl.DataFrame, plan: Plan, *, by: Sequence[str]) -> pl.DataFrame:
    """Rows of `marts.experiment_sums` as a frame of sums: a row a variant and day."""
    frame: pl.DataFrame | None = None
    for metric in dict.fromkeys(plan.metrics):
        name = metric.name
        # the second column of those that have one: what it was before, or what it is divided by
        second, stored = (
            (metric.denominator, "denominator") if metric.denominator else (f"{name}_before", "before")
        )
        product = "denominator_product_sum" if metric.denominator else "product_sum"
        here = rows.filter(pl.col("metric") == name).select(
            "variant",
            pl.col("exposed_on").alias("day"),
            pl.col("contacts_count").cast(pl.Int64).alias("contacts"),
            pl.col("value_sum").alias(f"sum__{name}"),
            pl.col("value_square_sum").alias(f"sum__{name}__{name}"),
            *(
                (
                    pl.col(f"{stored}_sum").alias(f"sum__{second}"),
                    pl.col(f"{stored}_square_sum").alias(f"sum__{second}__{second}"),
                    pl.col(product).alias("__".join(("sum", *sorted((name, second))))),
                )
                if len(metric.columns) > 1
                else ()
            ),
            "first_exposed_at",
            "last_exposed_at",
        )
        if frame is None:
            frame = here
        else:
            more = [column for column in here.columns if column.startswith("sum__")]
            frame = frame.join(here.select("variant", "day", *more), on=["variant", "day"], how="left")
    assert frame is not None
    return frame.with_columns(pl.selectors.starts_with("sum__").fill_null(0.0)).sort(*by)


def _weights(warehouse: Warehouse, placed: Placed) -> Mapping[str, float]:
    """What was settled, not what the file says by now; the file's for journeys, and where they changed."""
    shares = [
        one.allocation.weights
        for one in settled(warehouse, placed.name).values()
        if one.allocation.traffic > 0
    ]
    if shares and all(set(one) == set(placed.weights) and one == shares[0] for one in shares):
        return shares[0]
    return placed.weights


def _with_ratio(warehouse: Warehouse, running: Running, analysis: Analysis) -> Analysis:
    """The sample ratio of a bandit is judged within batches: its weights change from one to the next."""
    spec = running.campaign
    if spec is None or spec.experiment is None or spec.experiment.allocation == "fixed":
        return analysis
    found = None
    divisions = list(settled(warehouse, running.name).values())
    for one in divisions:
        rows = warehouse.frame(
            f"""
            select variant, count() as contacts from marts.experiment_exposures
            where experiment = {{experiment:String}} and occurrence = {{occurrence:String}} and not is_mixed
                and variant != {{holdout:String}} and {one.condition_sql()}
            group by variant
            """,  # noqa: S608
            {"experiment": running.name, "occurrence": one.occurrence, "holdout": HOLDOUT},
        )
        counts = {str(name): int(number) for name, number in rows.iter_rows()}
        ratio = sample_ratio(
            counts, one.allocation.weights, alpha=0.001 / len(divisions), is_final=analysis.is_final
        )
        if found is None or ratio.p_value < found.p_value:
            found = ratio
    return replace(analysis, sample_ratio=found or analysis.sample_ratio)
