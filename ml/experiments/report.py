"""An experiment's page: one HTML document with its plots inside, which fetches nothing and runs no script.

Plots are drawn here rather than by matplotlib: at 360 units wide their text keeps a readable size on a phone, they take
the page's colours (light and dark), and their content is text that screen readers and searches find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import count, pairwise

import jinja2
import numpy as np
import polars as pl
from markupsafe import Markup, escape

from ml.experiments.analysis import Analysis, Result
from ml.experiments.verdict import (
    Outcome,
    Verdict,
    interval_words,
    lift_words,
    p_words,
    value_words,
)

_TONES: dict[Outcome, tuple[str, str]] = {
    "winner": ("good", "Winner"),
    "control_stays": ("good", "The control stays"),
    "no_relevant_difference": ("calm", "No relevant difference"),
    "undecided": ("calm", "Undecided"),
    "running": ("calm", "Running"),
    "harmful": ("bad", "Better, but harmful"),
    "broken": ("bad", "Broken"),
    "no_data": ("bad", "No data"),
}

_WIDTH, _LABEL, _ROW = 360, 118, 34
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --line: #d5dae1; --paper: #fff; --back: #f5f7fa;
  --accent: #1d4ed8; --good: #116149; --bad: #a61b1b; --calm: #52606d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #aab4c0; --line: #3a444f; --paper: #1a2027;
  --back: #11161b; --accent: #8ab4f8; --good: #5fd0a5; --bad: #ff9b9b; --calm: #aab4c0; } }
* { box-sizing: border-box; }
body { margin: 0; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); }
main { max-width: 46rem; margin: 0 auto; padding: 1rem .75rem 3rem; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: .25rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p { margin: .25rem 0 .75rem; }
.soft { color: var(--soft); }
section, .verdict { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem;
  margin-top: 1rem; }
.verdict { border-left-width: .5rem; }
.good { border-left-color: var(--good); } .bad { border-left-color: var(--bad); }
.calm { border-left-color: var(--calm); }
.tag { font-weight: 600; } .good .tag { color: var(--good); } .bad .tag { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .35rem; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
ul { margin: 0; padding-left: 1.2rem; } li { margin-bottom: .35rem; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; } figcaption { color: var(--soft); font-size: .92rem; padding-bottom: .35rem; }
td { min-width: 4.5rem; }
svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } svg .small { fill: var(--soft); font-size: 10px; }
svg .axis { stroke: var(--line); } svg .zero { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .bar { stroke: var(--accent); stroke-width: 2; fill: none; } svg .dot { fill: var(--accent); }
svg .band { fill: var(--accent); opacity: .2; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ plan.experiment }}: {{ tag }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<p class="soft">Experiment {{ plan.experiment }}{% if written_at %}, as of {{ written_at }}{% endif %}</p>
<div class="verdict {{ tone }}">
<p class="tag">{{ tag }}</p>
<h1>{{ verdict.headline }}</h1>
{% if decision %}<p>{{ decision }}</p>
{% endif %}<p class="soft">{{ period }}</p>
</div>
{% if verdict.warnings %}<section aria-labelledby="warnings"><h2 id="warnings">Warnings</h2>
<ul>{% for line in verdict.warnings %}<li>{{ line }}</li>{% endfor %}</ul></section>{% endif %}
{% if verdict.evidence %}<section aria-labelledby="evidence"><h2 id="evidence">What happened, and how sure we are</h2>
<ul>{% for line in verdict.evidence %}<li>{{ line }}</li>{% endfor %}</ul></section>{% endif %}
{% if show_metrics %}
<section aria-labelledby="primary"><h2 id="primary">{{ plan.primary.name }}</h2>
{{ plots.primary }}
{{ tables.primary }}
</section>
{% endif %}
{% if verdict.next_steps %}<section aria-labelledby="next"><h2 id="next">What next</h2>
<ul>{% for line in verdict.next_steps %}<li>{{ line }}</li>{% endfor %}</ul></section>{% endif %}
{% if show_metrics and plots.course %}<section aria-labelledby="course"><h2 id="course">Over time</h2>
{{ plots.course }}</section>{% endif %}
{% if show_metrics and tables.guardrails %}<section aria-labelledby="guardrails"><h2 id="guardrails">Guardrails</h2>
{{ tables.guardrails }}</section>{% endif %}
{% if show_metrics and tables.secondary %}<section aria-labelledby="secondary"><h2 id="secondary">Other metrics</h2>
{{ tables.secondary }}
<p class="soft">They decide nothing; p-values are corrected for how many there are.</p></section>{% endif %}
{% if show_metrics and plots.segments %}<section aria-labelledby="segments"><h2 id="segments">By segment</h2>
{{ plots.segments }}</section>{% endif %}
<section aria-labelledby="contacts"><h2 id="contacts">Contacts</h2>
{{ tables.contacts }}
{% if tables.balance %}{{ tables.balance }}{% endif %}</section>
<section aria-labelledby="methods"><h2 id="methods">How this was computed</h2>
<ul>{% for line in methods %}<li>{{ line }}</li>{% endfor %}</ul></section>
</main>
</body>
</html>
"""


def report_html(
    analysis: Analysis, verdict: Verdict, *, written_at: datetime | None = None, decision: str = ""
) -> str:
    """The page of an experiment.

    Of an experiment with a broken sample ratio no effects are shown: numbers that must not be believed are better
    not seen.

    Args:
        analysis: from `analyse`.
        verdict: of it, from `judge`.
        written_at: shown on the page.
        decision: what was decided by it, in a sentence; shown on the page.

    Returns:
        A whole HTML document.
    """
    tone, tag = _TONES[verdict.outcome]
    return _template().render(
        plan=analysis.plan,
        verdict=verdict,
        decision=decision,
        style=Markup(_STYLE),  # noqa: S704 - a constant
        tone=tone,
        tag=tag,
        written_at=f"{written_at:%-d %B %Y, %H:%M} {written_at.tzname() or ''}".strip() if written_at else "",
        period=_period(analysis),
        show_metrics=verdict.outcome not in ("broken", "no_data"),
        plots={
            "primary": _lift_plot(analysis),
            "course": _course_plots(analysis),
            "segments": _segment_plots(analysis),
        },
        tables={
            "primary": _primary_table(analysis),
            "guardrails": _guardrail_table(analysis),
            "secondary": _secondary_table(analysis),
            "contacts": _contact_table(analysis),
            "balance": _balance_table(analysis),
        },
        methods=_methods(analysis),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE)


def _period(analysis: Analysis) -> str:
    words = f"{analysis.contacts:,} contacts of {analysis.plan.planned_contacts:,} planned"
    if analysis.first_exposed_at and analysis.last_exposed_at:
        words += f", exposed {analysis.first_exposed_at:%-d %B %Y} to {analysis.last_exposed_at:%-d %B %Y}"
    return words + ("; the planned end is reached." if analysis.is_final else "; the planned end is to come.")


def _methods(analysis: Analysis) -> list[str]:
    plan = analysis.plan
    if analysis.is_final:
        lines = [
            "Effects: Welch's t test; lifts by the delta method, or Fieller's where the control is near zero."
        ]
        if plan.primary.kind == "proportion":
            lines.append("Where conversions are few: Fisher's exact test and Newcombe's interval.")
    else:
        lines = [
            "Effects: confidence sequences, which hold at all looks together, so that looking early does no harm."
        ]
    if plan.early_alpha:
        lines.append(
            f"Chance of a wrong winner: at most {100 * plan.early_alpha:g} % before the end and "
            f"{100 * plan.level(is_final=True):g} % at it."
        )
    if len(plan.treatments) > 1:
        lines.append(f"{len(plan.treatments)} treatments: p-values by Holm, intervals by Bonferroni.")
    ratio = (
        "Pearson's chi-squared"
        if analysis.is_final
        else "a multinomial-Dirichlet mixture, valid at every look"
    )
    lines.append(f"Sample ratio: {ratio}, alarm below 0.001.")
    if plan.guardrails:
        lines.append(f"Guardrails: non-inferiority, one-sided at {100 * plan.alpha:g} %.")
    if plan.primary.covariates:
        lines.append("Adjusted by what was known before (CUPED).")
    return lines


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    name: str
    is_number: bool = True


def _table(caption: str, columns: Sequence[_Column], rows: Sequence[Sequence[str]]) -> Markup:
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(_class(column.is_number), column.name)
        for column in columns
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup('<th scope="row">{}</th>').format(cell)
                if i == 0
                else Markup("<td{}>{}</td>").format(_class(columns[i].is_number), cell)
                for i, cell in enumerate(row)
            )
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="group" aria-label="{}"><table><caption>{}</caption><thead><tr>{}</tr>'
        "</thead><tbody>{}</tbody></table></div>"
    ).format(caption, caption, head, body)


def _class(is_number: bool) -> Markup:
    return Markup(' class="number"') if is_number else Markup("")


def _primary_table(analysis: Analysis) -> Markup:
    metric, control = analysis.plan.primary, analysis.plan.control
    by_variant = {result.variant: result for result in analysis.primary}
    rows: list[list[str]] = []
    for variant in analysis.plan.weights:
        posterior = analysis.posteriors.get(variant)
        best = f"{100 * posterior.chance_best:.1f} %" if posterior else "unknown"
        if variant == control:
            value = value_words(analysis.primary[0].comparison.control_value, metric)
            rows.append([f"{variant} (control)", value, "", "", "", best])
        else:
            rows.append([variant, *_result_cells(by_variant[variant]), best])
    names = ("Variant", metric.name, "Change", "Interval", "p-value", "Chance to be best")
    return _table(f"{metric.name} by variant", [_Column(n, n != "Variant") for n in names], rows)


def _result_cells(result: Result) -> list[str]:
    return [
        value_words(result.comparison.treatment_value, result.metric),
        lift_words(result.relative.value),
        interval_words(result.relative),
        p_words(result.p_adjusted).removeprefix("p ").removeprefix("= "),
    ]


def _secondary_table(analysis: Analysis) -> Markup | None:
    if not analysis.secondary:
        return None
    rows = [
        [
            f"{result.metric.name}, {result.variant}",
            value_words(result.comparison.control_value, result.metric),
            *_result_cells(result),
        ]
        for result in analysis.secondary
    ]
    names = ("Metric, variant", analysis.plan.control, "Variant", "Change", "Interval", "p-value")
    return _table("Secondary metrics", [_Column(n, i > 0) for i, n in enumerate(names)], rows)


def _guardrail_table(analysis: Analysis) -> Markup | None:
    if not analysis.guardrails:
        return None
    words = {"safe": "✓ safe", "harmed": "✗ harmed", "undecided": "? not known"}
    rows = []
    for result in analysis.guardrails:
        guardrail, metric = result.guardrail, result.guardrail.metric

        unit = "%" if guardrail.is_relative else "points" if metric.kind == "proportion" else ""

        def shown(harm: float, unit: str = unit) -> str:
            if not math.isfinite(harm):
                return "unknown"
            return f"{100 * harm:+.2g}\u00a0{unit}" if unit else f"{harm:+.3g}"

        rows.append(
            [
                f"{metric.name}, {result.variant}",
                words[result.status],
                value_words(result.comparison.control_value, metric),
                value_words(result.comparison.treatment_value, metric),
                shown(result.harm),
                shown(result.harm_high),
                shown(guardrail.margin).removeprefix("+"),
            ]
        )
    names = ("Metric, variant", "", analysis.plan.control, "Variant", "Harm", "At most", "Tolerated")
    return _table("What must not get worse", [_Column(n, i > 1) for i, n in enumerate(names)], rows)


def _contact_table(analysis: Analysis) -> Markup:
    ratio = analysis.sample_ratio
    rows = [
        [
            variant,
            f"{n:,}",
            f"{100 * ratio.observed[variant]:.2f} %",
            f"{100 * ratio.expected[variant]:.2f} %",
        ]
        for variant, n in analysis.counts.items()
    ]
    p_value = ratio.p_value if analysis.is_final else ratio.anytime_p_value
    state = "broken" if ratio.is_broken else "in order"
    names = ("Variant", "Contacts", "Share", "Planned")
    caption = f"Sample ratio {state} ({p_words(p_value)})"
    return _table(caption, [_Column(n, n != "Variant") for n in names], rows)


def _balance_table(analysis: Analysis) -> Markup | None:
    balance = analysis.balance
    if balance is None:
        return None
    rows = [
        [f"{name}, {variant}", "unknown" if math.isnan(d) else f"{d:+.3f}"]
        for variant, found in balance.differences.items()
        for name, d in found.items()
    ]
    state = "hardly random" if balance.is_unbalanced else "as random"
    caption = f"Before the exposure: {state} ({p_words(balance.p_value)}); differences in standard deviations"
    return _table(caption, [_Column("Column, variant", False), _Column("Difference")], rows)


# --- plots ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A row of a forest plot: an estimate with its interval, as shares."""

    label: str
    value: float
    low: float
    high: float


def _lift_plot(analysis: Analysis) -> Markup:
    lines = [_Line(r.variant, r.relative.value, r.relative.low, r.relative.high) for r in analysis.primary]
    title = f"Change of {analysis.plan.primary.name} against {analysis.plan.control}"
    return _forest(title, lines, "primary-plot")


def _segment_plots(analysis: Analysis) -> Markup | None:
    if not analysis.segments:
        return None
    plots = []
    for number, (variant, effects) in enumerate(analysis.segments.items()):
        lines = [
            _Line(f"{row['segment']} ({row['control_contacts'] + row['treatment_contacts']:,})", *_ends(row))
            for row in effects.frame.to_dicts()
        ]
        combined = effects.combined
        lines.append(_Line("all, combined", combined.value, combined.low, combined.high))
        title = f"Change of {analysis.plan.primary.name} with {variant} by segment"
        plots.append(_forest(title, lines, f"segment-plot-{number}"))
    note = Markup(
        '<p class="soft">Each interval stands for itself: of twenty segments, one leaves the truth out by chance.</p>'
    )
    return Markup("").join(plots) + note


def _ends(row: dict[str, float | None]) -> tuple[float, float, float]:
    value, low, high = row["effect"], row["low"], row["high"]
    return (
        math.nan if value is None else value,
        -math.inf if low is None else low,
        math.inf if high is None else high,
    )


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends and round ticks of an axis that shows these shares and zero; intervals without end are cut."""
    finite = [0.0, *(v for v in values if math.isfinite(v))]
    low, high = min(finite), max(finite)
    if high - low < 1e-9:
        low, high = -0.1, 0.1
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def _tick_words(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{100 * value:+.3g} %"


def _forest(title: str, lines: Sequence[_Line], name: str) -> Markup:
    # far ends must not press the others together: an interval wider than five times the median is cut at the edge
    widths = [line.high - line.low for line in lines if math.isfinite(line.high - line.low)]
    most = 5 * float(np.median(widths)) if widths else 1.0
    shown: list[float] = []
    for line in lines:
        if math.isfinite(line.value):
            shown += [line.value, max(line.low, line.value - most), min(line.high, line.value + most)]
    low, high, ticks = _scale(shown)
    left, right = _LABEL + 8, _WIDTH - 14
    height = len(lines) * _ROW + 30

    def x(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    parts = [_axis(ticks, x, height)]
    for i, line in enumerate(lines):
        y = i * _ROW + _ROW / 2
        parts.append(Markup('<text x="0" y="{:.0f}">{}</text>').format(y + 1, _shortened(line.label)))
        if not math.isfinite(line.value):
            parts.append(
                Markup('<text class="small" x="{:.0f}" y="{:.0f}">not known yet</text>').format(left, y + 1)
            )
            continue
        words = f"{lift_words(line.value)}"
        parts.append(Markup('<text class="small" x="0" y="{:.0f}">{}</text>').format(y + 14, words))
        a, b = x(line.low), x(line.high)
        caps = [
            _arrow(a, y, -1) if line.low < low - 1e-12 else _cap(a, y),
            _arrow(b, y, 1) if line.high > high + 1e-12 else _cap(b, y),
        ]
        parts.append(Markup('<path class="bar" d="M{:.1f} {:.1f}H{:.1f}{}{}"/>').format(a, y, b, *caps))
        parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x(line.value), y))
    said = "; ".join(
        f"{line.label}: {lift_words(line.value)}, interval "
        + (
            f"{lift_words(line.low)} to {lift_words(line.high)}"
            if math.isfinite(line.low + line.high)
            else "unknown"
        )
        for line in lines
    )
    return _svg(name, title, f"{said}.", height, parts)


def _cap(x: float, y: float) -> Markup:
    return Markup("M{:.1f} {:.1f}v8").format(x, y - 4)


def _arrow(x: float, y: float, direction: int) -> Markup:
    return Markup("M{:.1f} {:.1f}l{} 4l{} 4").format(x - 5 * direction, y - 4, 5 * direction, -5 * direction)


def _course_plots(analysis: Analysis) -> Markup | None:
    course = analysis.course
    if course is None:
        return None
    plots = []
    for number, variant in enumerate(analysis.plan.treatments):
        rows = course.filter((pl.col("variant") == variant) & pl.col("lift").is_not_null())
        if rows.height >= 2:
            plots.append(_course(variant, rows, analysis, f"course-plot-{number}"))
    if not plots:
        return None
    note = Markup('<p class="soft">All contacts up to each day. The band holds at all days together.</p>')
    return Markup("").join(plots) + note


def _course(variant: str, rows: pl.DataFrame, analysis: Analysis, name: str) -> Markup:
    days, lifts = rows["day"].to_list(), rows["lift"].to_list()
    lows, highs = rows["low"].to_list(), rows["high"].to_list()
    # the first days' bands are wide: the axis is that of the later half
    later = len(days) // 2
    low, high, ticks = _scale([v for v in (*lifts[later:], *lows[later:], *highs[later:]) if v is not None])
    left, right, top, bottom = 52, _WIDTH - 12, 8, 150
    span = max((days[-1] - days[0]).days, 1)

    def x(day: object) -> float:
        return left + (day - days[0]).days / span * (right - left)  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]

    def y(value: float) -> float:
        return bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top)

    parts: list[Markup] = []
    for tick in ticks:
        kind = "zero" if abs(tick) < 1e-12 else "axis"
        parts.append(
            Markup(
                '<path class="{}" d="M{} {:.1f}H{}"/><text class="small" x="0" y="{:.1f}">{}</text>'
            ).format(kind, left, y(tick), right, y(tick) + 3, _tick_words(tick))
        )
    known = [i for i in range(len(days)) if lows[i] is not None and highs[i] is not None]
    for i, j in pairwise(known):
        points = [
            (x(days[i]), y(lows[i])),
            (x(days[j]), y(lows[j])),
            (x(days[j]), y(highs[j])),
            (x(days[i]), y(highs[i])),
        ]
        parts.append(_polygon(points))
    path = "".join(
        f"{'M' if i == 0 else 'L'}{x(day):.1f} {y(lift):.1f}"
        for i, (day, lift) in enumerate(zip(days, lifts, strict=True))
    )
    parts.append(Markup('<path class="bar" d="{}"/>').format(path))
    for day, anchor in ((days[0], "start"), (days[-1], "end")):
        parts.append(
            Markup('<text class="small" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                x(day), bottom + 16, anchor, f"{day:%-d %b %Y}"
            )
        )
    title = f"Change of {analysis.plan.primary.name} with {variant} over time"
    last = f"On {days[-1]:%-d %B %Y}: {lift_words(lifts[-1])}"
    if known and known[-1] == len(days) - 1:
        last += f", band {lift_words(lows[-1])} to {lift_words(highs[-1])}"
    return _svg(name, title, f"{last}.", bottom + 24, parts)


def _polygon(points: Sequence[tuple[float, float]]) -> Markup:
    return Markup('<polygon class="band" points="{}"/>').format(
        " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    )


def _axis(ticks: Sequence[float], x: object, height: float) -> Markup:
    parts: list[Markup] = []
    # labels of five ticks fit; of more, every other
    every = 1 if len(ticks) <= 4 else 2
    zero = next((i for i, tick in enumerate(ticks) if abs(tick) < 1e-12), 0)
    for i, tick in zip(count(), ticks, strict=False):
        at = x(tick)  # pyright: ignore[reportCallIssue]
        kind = "zero" if i == zero else "axis"
        parts.append(Markup('<path class="{}" d="M{:.1f} 0V{:.0f}"/>').format(kind, at, height - 22))
        if (i - zero) % every == 0:
            parts.append(
                Markup('<text class="small" x="{:.1f}" y="{:.0f}" text-anchor="middle">{}</text>').format(
                    at, height - 8, _tick_words(tick)
                )
            )
    return Markup("").join(parts)


def _svg(name: str, title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height:.0f}" role="img" '
        'aria-labelledby="{name}-title {name}-desc" xmlns="http://www.w3.org/2000/svg"><title id="{name}-title">{title}'
        '</title><desc id="{name}-desc">{description}</desc>{parts}</svg></figure>'
    ).format(
        title=title,
        width=_WIDTH,
        height=height,
        name=name,
        description=description,
        parts=Markup("").join(parts),
    )


def _shortened(label: str) -> Markup:
    return escape(label if len(label) <= 20 else label[:19] + "…")
