"""What an analysis comes to, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from ml.experiments.analysis import Analysis, Result
from ml.experiments.compare import Estimate
from ml.experiments.summaries import Metric

Outcome = Literal[
    "winner",
    "control_stays",
    "no_relevant_difference",
    "undecided",
    "running",
    "harmful",
    "broken",
    "no_data",
]
"""
- `winner`: a treatment beats the control, and no guardrail speaks against it.
- `control_stays`: all treatments are worse than the control.
- `no_relevant_difference`: changes of the minimum lift or more are ruled out, both ways, for all treatments.
- `undecided`: the planned end is reached and the data allow both.
- `running`: not yet decided, and the planned end is to come.
- `harmful`: a treatment beats the control, but a guardrail is harmed (or, if it must be, not shown safe).
- `broken`: the sample ratio is; nothing else may be believed.
- `no_data`: a variant has no contacts, or nothing that varies.
"""

_SECONDS_A_DAY = 86_400
_MOST_SEGMENTS = 3  # named in a sentence


@dataclass(frozen=True)
class Verdict:
    """The end of the story.

    Args:
        outcome: see `Outcome`.
        winner: the variant to send: the winning treatment, the control if all treatments are worse, else None.
        headline: one sentence.
        evidence: what happened and how sure it is.
        warnings: what speaks against believing it.
        next_steps: what would be needed to know more.
        further_contacts: beyond those so far, for the plan's power at its minimum lift; None if it cannot be said.
        further_days: for them, at the pace so far; None if it cannot be said.
    """

    outcome: Outcome
    winner: str | None
    headline: str
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]
    next_steps: tuple[str, ...]
    further_contacts: int | None
    further_days: float | None

    @property
    def text(self) -> str:
        """All of it as Markdown, for asset metadata."""
        parts = [f"**{self.headline}**"]
        for title, lines in (
            ("What happened and how sure we are", self.evidence),
            ("Warnings", self.warnings),
            ("What next", self.next_steps),
        ):
            if lines:
                parts.append(f"{title}:\n" + "\n".join(f"- {line}" for line in lines))
        return "\n\n".join(parts)


def judge(analysis: Analysis) -> Verdict:
    """Decide, by the rule that a treatment wins if it beats the control beyond chance (over all treatments and, before
    the end, all looks together) and no guardrail speaks against it. Of several the one with the largest effect wins.

    No winner is called on a broken sample ratio. Contacts who differed before the exposure are warned of.
    """
    plan = analysis.plan
    level = plan.level(is_final=analysis.is_final)
    further, days = _further(analysis)
    warnings = _warnings(analysis)
    if analysis.sample_ratio.is_broken:
        return Verdict(
            "broken",
            None,
            f"No result: the variants of {plan.experiment} do not have the contacts that were planned.",
            (_ratio_words(analysis),),
            warnings,
            (
                "Find out where contacts are lost or doubled: sends that failed or were skipped for one variant only, "
                "a template that breaks, exposures logged late, weights changed while the test ran.",
                "Then start anew under another name. Whatever the metrics show, contacts that are missing from one "
                "variant would explain it.",
            ),
            None,
            None,
        )
    known = [result for result in analysis.primary if not math.isnan(result.p_value)]
    has_contacts = all(count > 0 for count in analysis.counts.values())
    if not has_contacts or (not known and analysis.is_final):
        empty = [variant for variant, count in analysis.counts.items() if not count]
        reason = (
            f"variant {' and '.join(empty)} has no contacts"
            if empty
            else f"{plan.primary.name} is the same for everybody, or there are too few contacts"
        )
        steps = ("Check that messages were sent and that the metric counts what it should.",)
        headline = f"No result yet for {plan.experiment}: {reason}."
        return Verdict("no_data", None, headline, (), warnings, steps, further, days)

    evidence = [line for result in analysis.primary for line in _evidence(result, analysis)]
    evidence += _posterior_words(analysis) + _guardrail_words(analysis) + _segment_words(analysis)
    better = [r for r in known if r.p_adjusted < level and r.is_better]
    better.sort(key=lambda r: abs(r.absolute.value), reverse=True)
    worse = [r for r in known if r.p_adjusted < level and not r.is_better]
    allowed = [r for r in better if not _objections(r.variant, analysis)]
    steps = _next_steps(analysis, further, days)
    outcome: Outcome
    winner: str | None = None
    if allowed:
        best = allowed[0]
        outcome, winner = "winner", best.variant
        headline = f"{best.variant} wins: {_effect_words(best, plan.control)}."
        if len(allowed) > 1:
            others = ", ".join(r.variant for r in allowed[1:])
            evidence.append(
                f"Also better than {plan.control}: {others}. That {best.variant} is better than these is its estimate, "
                "not a finding."
            )
        steps = (f"Send {best.variant} to the remainder.",)
    elif better:
        outcome = "harmful"
        objections = "; ".join(o for r in better for o in _objections(r.variant, analysis))
        headline = f"{better[0].variant} does better on {plan.primary.name}, but may not win: {objections}."
        steps = (f"Keep {plan.control}, or weigh the gain against the harm and decide yourself.",)
    elif len(worse) == len(analysis.primary):
        outcome, winner = "control_stays", plan.control
        headline = f"{plan.control} stays: {_effect_words(worse[0], plan.control)}."
        steps = (f"Send {plan.control} to the remainder.",)
    elif (
        level
        and len(known) == len(analysis.primary)
        and all(-plan.minimum_lift < r.relative.low and r.relative.high < plan.minimum_lift for r in known)
    ):
        outcome = "no_relevant_difference"
        headline = (
            f"No difference that matters on {plan.primary.name}: a change of {_percent(plan.minimum_lift)} or more, up "
            "or down, is ruled out."
        )
        steps = ("Choose by cost or taste: on this metric the variants are as good as each other.",)
    elif analysis.is_final:
        outcome = "undecided"
        headline = (
            f"Undecided: the test of {plan.experiment} ended, and both better and no better remain possible."
        )
    else:
        outcome = "running"
        headline = (
            f"No winner yet: {analysis.contacts:,} of {plan.planned_contacts:,} planned contacts are in. "
            "Looking does no harm; keep going."
        )
    if outcome not in ("undecided", "running"):
        further, days = None, None
    return Verdict(outcome, winner, headline, tuple(evidence), warnings, steps, further, days)


def value_words(value: float, metric: Metric) -> str:
    """A metric's value: a percentage for proportions, else a number of four digits."""
    if math.isnan(value):
        return "unknown"
    if metric.kind == "proportion":
        return f"{100 * value:.3g}\u00a0%" if value < 0.1 else f"{100 * value:.1f}\u00a0%"
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def lift_words(value: float) -> str:
    """A relative lift with its sign: `+12.3 %`."""
    return f"{100 * value:+.1f}\u00a0%" if math.isfinite(value) else "unknown"


def interval_words(estimate: Estimate) -> str:
    """The interval of a lift: `-2.0 % to +9.1 %`, ends without a limit said in words."""
    if math.isinf(estimate.high):
        # a lift of what cannot be negative is no less than -100 %
        is_open = math.isinf(estimate.low) or estimate.low == -1
        return "anything" if is_open else f"{lift_words(estimate.low)} or more"
    return f"{lift_words(estimate.low)} to {lift_words(estimate.high)}"


def p_words(p_value: float) -> str:
    """`p = 0.012`, `p < 0.0001`."""
    if math.isnan(p_value):
        return "p unknown"
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _effect_words(result: Result, control: str) -> str:
    comparison, metric = result.comparison, result.metric
    words = (
        f"{metric.name} {value_words(comparison.treatment_value, metric)} against "
        f"{value_words(comparison.control_value, metric)} of {control}"
    )
    if result.relative.is_known:
        words += (
            f", a change of {lift_words(result.relative.value)} ({_percent(result.relative.confidence)} interval "
            f"{interval_words(result.relative)})"
        )
    return words


def _evidence(result: Result, analysis: Analysis) -> list[str]:
    plan = analysis.plan
    lines = [f"{result.variant}: {_effect_words(result, plan.control)}."]
    p_value = result.p_adjusted
    if math.isnan(p_value):
        lines.append(f"{result.variant}: too little is known yet to say more.")
        return lines
    looks = "" if analysis.is_final else ", however often one looks"
    corrected = f", corrected for {len(plan.treatments)} treatments" if len(plan.treatments) > 1 else ""
    if p_value >= 0.1:
        words = "chance alone would often show a gap like this"
    else:
        words = f"chance alone would show a gap like this in at most {_one_in(p_value)} such tests"
    lines.append(f"{result.variant}: {words}{looks} ({p_words(p_value)}{corrected}).")
    if result.comparison.coefficients and result.comparison.variance_reduction > 0:
        lines.append(
            f"{result.variant}: adjusting by {', '.join(result.metric.covariates)} removed "
            f"{_percent(result.comparison.variance_reduction)} of the noise."
        )
    return lines


def _one_in(p_value: float) -> str:
    if p_value < 0.0001:
        return "1 of 10,000"
    # two digits, rounded so that "at most" stays true
    unit = 10 ** max(0, math.floor(math.log10(1 / p_value)) - 1)
    return f"1 of {math.floor(1 / p_value / unit) * unit:,}"


def _posterior_words(analysis: Analysis) -> list[str]:
    if not analysis.posteriors:
        return []
    plan = analysis.plan
    name, best = max(analysis.posteriors.items(), key=lambda item: item[1].chance_best)
    chance = "more than 99.9 %" if best.chance_best > 0.999 else f"{100 * best.chance_best:.1f} %"
    line = f"Judged by these data alone, {name} is the best with a chance of {chance}"
    # what is lost by choosing it, as a share of what a contact brings
    share = best.expected_loss / abs(best.mean) if best.mean else math.nan
    if math.isfinite(share):
        cost = "less than 0.01 %" if share < 0.0001 else f"about {_percent(share)}"
        line += (
            f", and choosing it is expected to cost {cost} of {plan.primary.name} against knowing the best"
        )
    return [f"{line}."]


def _guardrail_words(analysis: Analysis) -> list[str]:
    lines: list[str] = []
    for result in analysis.guardrails:
        guardrail = result.guardrail
        margin = _margin_words(result.guardrail.margin, guardrail.is_relative, guardrail.metric)
        words = {
            "safe": f"safe: a harm of {margin} or more is ruled out",
            "harmed": "harmed: worse than the control beyond chance",
            "undecided": f"not known to be safe: a harm of {margin} is still possible",
        }[result.status]
        lines.append(f"{guardrail.metric.name} of {result.variant} is {words}.")
    return lines


def _margin_words(margin: float, is_relative: bool, metric: Metric) -> str:
    if is_relative:
        return _percent(margin)
    return f"{100 * margin:.3g} percentage points" if metric.kind == "proportion" else f"{margin:.4g}"


def _segment_words(analysis: Analysis) -> list[str]:
    lines: list[str] = []
    for variant, effects in analysis.segments.items():
        if math.isnan(effects.heterogeneity_p_value):
            continue
        if not effects.is_heterogeneous:
            lines.append(
                f"{variant}: no sign that the effect differs between segments "
                f"({p_words(effects.heterogeneity_p_value)})."
            )
            continue
        apart = effects.frame.filter(effects.frame["difference_p_adjusted"] < analysis.plan.alpha)
        apart = apart.sort("difference_p_value").head(_MOST_SEGMENTS)
        named = ", ".join(f"{r['segment']} ({lift_words(r['effect'])})" for r in apart.to_dicts())
        lines.append(
            f"{variant}: the effect differs between segments ({p_words(effects.heterogeneity_p_value)})"
            + (f"; furthest from the others: {named}." if named else "; none stands out alone.")
        )
    return lines


def _objections(variant: str, analysis: Analysis) -> list[str]:
    found: list[str] = []
    for result in analysis.guardrails:
        if result.variant != variant or result.status == "safe":
            continue
        if result.status == "harmed":
            found.append(f"{result.guardrail.metric.name} gets worse")
        elif analysis.plan.must_be_safe:
            found.append(f"{result.guardrail.metric.name} is not shown to be safe")
    return found


def _ratio_words(analysis: Analysis) -> str:
    ratio = analysis.sample_ratio
    shares = ", ".join(
        f"{variant} {_percent(share)} (planned {_percent(ratio.expected[variant])})"
        for variant, share in ratio.observed.items()
    )
    p_value = ratio.p_value if analysis.is_final else ratio.anytime_p_value
    return f"Shares of the contacts: {shares}; {p_words(p_value)} if only chance were at work."


def _warnings(analysis: Analysis) -> tuple[str, ...]:
    lines: list[str] = []
    if analysis.sample_ratio.is_broken:
        lines.append("The sample ratio is broken, so no winner is called, whatever the metrics show.")
    balance = analysis.balance
    if balance is not None and balance.is_unbalanced:
        size, variant, name = max(
            (abs(d), variant, name)
            for variant, found in balance.differences.items()
            for name, d in found.items()
            if not math.isnan(d)
        )
        lines.append(
            f"Targeting was hardly random: the variants differed before anything was sent "
            f"({p_words(balance.p_value)}), most on {name} of {variant}, by {size:.2g} standard deviations. "
            "What looks like an effect may be that."
        )
    if analysis.mixed and analysis.mixed > 0.01 * (analysis.contacts + analysis.mixed):
        lines.append(
            f"{analysis.mixed:,} contacts saw several variants and were left out: assignment did not hold for them."
        )
    undecided = [r for r in analysis.guardrails if r.status == "undecided"]
    if undecided:
        named = ", ".join(sorted({r.guardrail.metric.name for r in undecided}))
        lines.append(f"Not shown to be safe: {named}.")
    if not analysis.is_final and analysis.contacts >= analysis.plan.planned_contacts:
        lines.append("All planned contacts are in: analyse as final, which is stronger.")
    if analysis.is_final and analysis.contacts < 0.9 * analysis.plan.planned_contacts:
        lines.append(
            f"Called final with {analysis.contacts:,} of {analysis.plan.planned_contacts:,} planned contacts: if the "
            "end was chosen by the results, the error rate is not kept."
        )
    return tuple(lines)


def _further(analysis: Analysis) -> tuple[int | None, float | None]:
    """Contacts, and days, beyond those so far for the plan's power at its minimum lift; the most of any treatment."""
    plan = analysis.plan
    alpha = plan.level(is_final=True) / len(plan.treatments)
    z = float(stats.norm.isf(alpha / 2) + stats.norm.ppf(plan.power))
    needed: list[float] = []
    for result in analysis.primary:
        comparison = result.comparison
        if comparison.absolute.is_known and comparison.control_value > 0:
            least = plan.minimum_lift * comparison.control_value
            needed.append(analysis.contacts * (z * comparison.absolute.se / least) ** 2)
    if not needed:
        return None, None
    wanted = max(needed) if analysis.is_final else max(*needed, plan.planned_contacts)
    further = max(0, math.ceil(wanted - analysis.contacts))
    if analysis.first_exposed_at is None or analysis.last_exposed_at is None:
        return further, None
    elapsed = (analysis.last_exposed_at - analysis.first_exposed_at).total_seconds() / _SECONDS_A_DAY
    # within a day there is no pace to speak of
    return further, further / (analysis.contacts / elapsed) if elapsed >= 1 else None


def _next_steps(analysis: Analysis, further: int | None, days: float | None) -> tuple[str, ...]:
    plan = analysis.plan
    goal = f"to find a change of {_percent(plan.minimum_lift)} with a chance of {_percent(plan.power)}"
    if further is None:
        return (f"Too little is known of {plan.primary.name} to say how many contacts are needed {goal}.",)
    if further == 0:
        return (
            f"There are enough contacts {goal}, and none was found: if there is an effect it is likely smaller. "
            "Ask whether a smaller change is worth a larger test.",
        )
    lines = [f"{further:,} more contacts are needed {goal}."]
    if days is not None:
        lines.append(f"At the pace so far that takes {math.ceil(days):,} more days.")
    if analysis.is_final:
        lines.append(
            "Plan them as a new test: adding contacts until the result pleases breaks the error rate."
        )
    return tuple(lines)
