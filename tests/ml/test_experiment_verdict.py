"""From rows of contacts to a verdict in words and a page."""

from __future__ import annotations

import dataclasses
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.experiments import Guardrail, Metric, Plan, aggregate, analyse, judge, roll_up
from ml.experiments.report import report_html
from ml.experiments.verdict import interval_words, lift_words, p_words, value_words

ORDERED = Metric("ordered", "proportion")
UNSUBSCRIBED = Metric("unsubscribed", "proportion", lower_is_better=True)
REVENUE = Metric("revenue", covariates=("revenue_before",))
START = datetime(2026, 3, 1, tzinfo=UTC)


def plan(**changes) -> Plan:
    standard = Plan(
        "subject_line",
        {"plain": 1, "emoji": 1},
        "plain",
        ORDERED,
        planned_contacts=40_000,
        minimum_lift=0.1,
        guardrails=(Guardrail(UNSUBSCRIBED, 0.5),),
        secondary=(REVENUE,),
        balance=("revenue_before",),
    )
    return dataclasses.replace(standard, **changes)


def contacts(
    n: int = 40_000,
    *,
    rates: dict[str, float] | None = None,
    unsubscribe: dict[str, float] | None = None,
    shift: dict[str, float] | None = None,
    weights: list[float] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    rates = rates or {"plain": 0.1, "emoji": 0.1}
    rng = np.random.default_rng(seed)
    names = list(rates)
    drawn = rng.choice(len(names), n, p=weights)
    variant = np.array(names)[drawn]

    def of(values: dict[str, float], default: float = 0.0) -> np.ndarray:
        return np.array([values.get(name, default) for name in names])[drawn]

    before = rng.gamma(2, 20, n) + of(shift or {}, 0.0)
    ordered = rng.random(n) < of(rates)
    return pl.DataFrame(
        {
            "contact_id": np.arange(n),
            "variant": variant,
            "exposed_at": pl.Series(rng.integers(0, 14 * 86_400, n)) * 1_000,
            "ordered": ordered.astype(int),
            "unsubscribed": (rng.random(n) < of(unsubscribe or {}, 0.01)).astype(int),
            "revenue": ordered * (before + rng.gamma(2, 10, n)),
            "revenue_before": before,
            "country": rng.choice(["FR", "UK"], n),
        }
    ).with_columns(exposed_at=pl.lit(START) + pl.col("exposed_at").cast(pl.Duration("ms")))


def analysed(frame: pl.DataFrame, the_plan: Plan, *, is_final: bool = True, **more):
    return analyse(
        aggregate(frame, the_plan.metrics, balance=the_plan.balance), the_plan, is_final=is_final, **more
    )


def everything(frame: pl.DataFrame, the_plan: Plan, *, is_final: bool):
    days = frame.with_columns(day=pl.col("exposed_at").dt.date())
    segments = frame.with_columns(segment=pl.col("country"))
    return analysed(
        frame,
        the_plan,
        is_final=is_final,
        segments=aggregate(segments, [the_plan.primary], by=["segment"]),
        days=aggregate(days, [the_plan.primary], by=["day"]),
    )


@pytest.mark.parametrize("is_final", [False, True])
def test_a_clear_winner_is_called(is_final):
    found = judge(analysed(contacts(rates={"plain": 0.10, "emoji": 0.125}), plan(), is_final=is_final))
    assert (found.outcome, found.winner) == ("winner", "emoji")
    assert found.headline.startswith("emoji wins: ordered 12.")
    assert "against 9.74\u00a0% of plain, a change of +29.0\u00a0% (" in found.headline
    assert found.next_steps == ("Send emoji to the remainder.",)
    assert found.further_contacts is None
    assert any("chance alone would show a gap like this in at most 1 of" in line for line in found.evidence)
    assert any("best with a chance of more than 99.9" in line for line in found.evidence)


def test_worse_treatments_leave_the_control():
    found = judge(analysed(contacts(rates={"plain": 0.12, "emoji": 0.10}), plan()))
    assert (found.outcome, found.winner) == ("control_stays", "plain")


def test_lower_may_be_better():
    the_plan = plan(primary=UNSUBSCRIBED, guardrails=())
    frame = contacts(unsubscribe={"plain": 0.03, "emoji": 0.02})
    assert judge(analysed(frame, the_plan)).winner == "emoji"
    frame = contacts(unsubscribe={"plain": 0.02, "emoji": 0.03})
    assert judge(analysed(frame, the_plan)).outcome == "control_stays"


def test_a_broken_sample_ratio_has_no_winner():
    frame = contacts(rates={"plain": 0.10, "emoji": 0.14}, weights=[0.53, 0.47])
    for is_final in (False, True):
        analysis = everything(frame, plan(), is_final=is_final)
        found = judge(analysis)
        assert (found.outcome, found.winner) == ("broken", None)
        assert "do not have the contacts that were planned" in found.headline
        assert "no winner is called" in found.text
        page = report_html(analysis, found)
        assert "Sample ratio broken" in page
        assert "<svg" not in page  # effects that must not be believed are not shown
        assert "+4" not in page
    # the same data under the weights that they have
    assert judge(analysed(frame, plan(weights={"plain": 53, "emoji": 47}))).outcome == "winner"


def test_contacts_who_differed_before_are_warned_of():
    frame = contacts(rates={"plain": 0.10, "emoji": 0.13}, shift={"emoji": 3.0})
    found = judge(analysed(frame, plan()))
    assert any(
        "Targeting was hardly random" in line and "revenue_before of emoji" in line for line in found.warnings
    )
    assert not any("Targeting" in line for line in judge(analysed(contacts(seed=3), plan())).warnings)


def test_a_harmed_guardrail_stops_a_winner():
    frame = contacts(rates={"plain": 0.10, "emoji": 0.13}, unsubscribe={"plain": 0.01, "emoji": 0.02})
    found = judge(analysed(frame, plan()))
    assert (found.outcome, found.winner) == ("harmful", None)
    assert "unsubscribed gets worse" in found.headline


def test_a_guardrail_that_must_be_safe_has_to_be():
    strict = (Guardrail(UNSUBSCRIBED, 0.01),)
    frame = contacts(rates={"plain": 0.10, "emoji": 0.13})
    lenient = judge(analysed(frame, plan(guardrails=strict)))
    assert lenient.outcome == "winner"
    assert "Not shown to be safe: unsubscribed." in lenient.warnings
    found = judge(analysed(frame, plan(guardrails=strict, must_be_safe=True)))
    assert found.outcome == "harmful"
    assert "not shown to be safe" in found.headline


def test_no_difference_is_said_only_where_one_that_matters_is_ruled_out():
    frame = contacts(200_000)
    the_plan = plan(planned_contacts=200_000)
    assert judge(analysed(frame, the_plan)).outcome == "no_relevant_difference"
    few = judge(analysed(frame.head(4_000), plan(planned_contacts=4_000)))
    assert few.outcome == "undecided"
    # an effect of 10 % on 10 % needs about 15,000 contacts a variant
    assert 20_000 < few.further_contacts < 36_000
    assert few.further_days == pytest.approx(few.further_contacts / (4_000 / 14), rel=0.05)
    assert any("more contacts are needed to find a change of 10" in line for line in few.next_steps)
    assert any("as a new test" in line for line in few.next_steps)


def test_before_the_end_nothing_is_decided_by_chance():
    found = judge(analysed(contacts(10_000), plan(), is_final=False))
    assert (found.outcome, found.winner) == ("running", None)
    assert "10,000 of 40,000 planned contacts" in found.headline
    assert found.further_contacts >= 30_000
    assert found.further_days == pytest.approx(found.further_contacts / (10_000 / 14), rel=0.05)


def test_early_decisions_can_be_forbidden():
    frame = contacts(rates={"plain": 0.10, "emoji": 0.15})
    the_plan = plan(early_alpha=0.0)
    assert judge(analysed(frame, the_plan, is_final=False)).outcome == "running"
    assert judge(analysed(frame, the_plan, is_final=True)).outcome == "winner"
    assert the_plan.level(is_final=True) == 0.05
    assert plan().level(is_final=True) + plan().level(is_final=False) == pytest.approx(0.05)


def test_of_several_treatments_the_best_wins_and_p_values_are_corrected():
    weights = {"plain": 1, "emoji": 1, "name": 1, "question": 1}
    rates = {"plain": 0.10, "emoji": 0.13, "name": 0.14, "question": 0.10}
    analysis = analysed(contacts(60_000, rates=rates), plan(weights=weights, planned_contacts=60_000))
    found = judge(analysis)
    assert found.winner == "name"
    assert any("Also better than plain: emoji" in line for line in found.evidence)
    worst = max(analysis.primary, key=lambda r: r.p_value)
    assert worst.variant == "question"
    assert all(r.p_adjusted >= r.p_value for r in analysis.primary)
    assert sum(p.chance_best for p in analysis.posteriors.values()) == pytest.approx(1)
    assert analysis.primary[0].absolute.confidence == pytest.approx(1 - 0.04 / 3)


def test_adjusted_means_and_ratios_can_decide():
    frame = contacts(rates={"plain": 0.3, "emoji": 0.36}).with_columns(orders=pl.col("ordered") * 2)
    value = Metric(
        "order_value", "ratio", column="revenue", denominator="orders", covariates=("revenue_before",)
    )
    analysis = analysed(frame, plan(primary=REVENUE, secondary=(value,)))
    assert judge(analysis).winner == "emoji"
    assert set(analysis.posteriors) == {"plain", "emoji"}
    assert analysis.posteriors["emoji"].chance_best > 0.99
    assert any("adjusting by revenue_before removed" in line for line in judge(analysis).evidence)
    assert judge(analysed(frame, plan(primary=value, secondary=()))).outcome in (
        "undecided",
        "no_relevant_difference",
    )


def test_few_conversions_use_exact_tests():
    def frame(plain: int, emoji: int, n: int) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "variant": ["plain"] * n + ["emoji"] * n,
                "ordered": [1] * plain + [0] * (n - plain) + [1] * emoji + [0] * (n - emoji),
            }
        )

    small = plan(guardrails=(), secondary=(), balance=(), planned_contacts=40)
    found = analysed(frame(0, 4, 20), small)
    assert found.primary[0].p_value == pytest.approx(0.1060, abs=5e-5)  # Fisher's; Welch's says 0.04
    assert found.primary[0].comparison.absolute.p_value < 0.05
    assert judge(found).outcome == "undecided"
    assert judge(analysed(frame(0, 12, 20), small)).outcome == "winner"
    # before the end exact sequences work from the first conversion
    early = analysed(frame(2, 40, 5_000), plan(guardrails=(), secondary=(), balance=()), is_final=False)
    assert judge(early).outcome == "winner"
    assert early.primary[0].relative.low > 0
    assert math.isinf(early.primary[0].absolute.high)  # too few for the asymptotic sequence


NOTHING = pl.DataFrame(
    schema={
        "variant": pl.String,
        "exposed_at": pl.Datetime("ms", "UTC"),
        **dict.fromkeys(("ordered", "unsubscribed", "revenue", "revenue_before"), pl.Int64),
    }
)


def rows(*values: tuple[str, int]) -> pl.DataFrame:
    return NOTHING.vstack(
        pl.DataFrame([(v, START, y, 0, y * 5, 1) for v, y in values], schema=NOTHING.schema, orient="row")
    )


@pytest.mark.parametrize("is_final", [False, True])
@pytest.mark.parametrize(
    "frame",
    [
        NOTHING,
        rows(("plain", 1)),
        rows(("plain", 0), ("emoji", 1)),
        rows(*[("plain", 0), ("emoji", 0)] * 50),
        rows(*[("plain", 1), ("emoji", 1)] * 50),
        rows(*[("plain", 0)] * 5, *[("emoji", 1)] * 2),
        rows(*[("plain", 0)] * 9),
    ],
    ids=["nobody", "one contact", "one each", "nobody bought", "all bought", "few", "one variant empty"],
)
def test_degenerate_experiments_never_crash_nor_win(frame, is_final):
    for primary in (ORDERED, REVENUE, Metric("r", "ratio", column="revenue", denominator="ordered")):
        the_plan = plan(primary=primary, guardrails=(Guardrail(UNSUBSCRIBED, 0.5), Guardrail(REVENUE, 0.1)))
        analysis = analysed(frame, the_plan, is_final=is_final)
        found = judge(analysis)
        assert found.winner is None
        assert found.outcome in ("no_data", "running", "undecided", "broken")
        assert "nan" not in found.text
        page = report_html(analysis, found)
        assert "nan" not in page.replace("tolerance", "")
        assert_well_formed(page)


def test_frames_that_do_not_fit_the_plan_are_refused():
    frame = contacts(1_000)
    with pytest.raises(ValueError, match="the plan has no variant other"):
        analysed(frame.with_columns(variant=pl.lit("other")), plan())
    with pytest.raises(ValueError, match="several rows; see roll_up"):
        analyse(
            aggregate(frame, plan().metrics, by=["country"], balance=["revenue_before"]),
            plan(),
            is_final=True,
        )
    with pytest.raises(ValueError, match="lacks sum__revenue, "):
        analyse(aggregate(frame, [ORDERED]), plan(), is_final=True)
    for changes, message in (
        ({"control": "x"}, "must name the control"),
        ({"weights": {"plain": 1}}, "and another variant"),
        ({"weights": {"plain": 1, "emoji": 0}}, "weights must be above 0"),
        ({"planned_contacts": 0}, "planned_contacts"),
        ({"minimum_lift": 0}, "minimum_lift"),
        ({"alpha": 0.7}, "alpha"),
        ({"early_alpha": 0.05}, "early_alpha"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(**changes)


def test_days_and_segments_add_up_to_the_whole():
    frame = contacts(20_000, rates={"plain": 0.10, "emoji": 0.12})
    analysis = everything(frame, plan(), is_final=False)
    last = analysis.course.row(-1, named=True)
    assert last["contacts"] == 20_000
    assert last["lift"] == pytest.approx(analysis.primary[0].relative.value)
    assert (last["low"], last["high"]) == pytest.approx(
        (analysis.primary[0].relative.low, analysis.primary[0].relative.high)
    )
    effects = analysis.segments["emoji"].frame
    assert effects["segment"].to_list() == ["FR", "UK"]
    assert effects.select(pl.sum_horizontal("control_contacts", "treatment_contacts").sum()).item() == 20_000
    by_day = aggregate(
        frame.with_columns(day=pl.col("exposed_at").dt.date()),
        plan().metrics,
        balance=["revenue_before"],
        by=["day"],
    )
    again = analyse(roll_up(by_day), plan(), is_final=False)
    assert again.primary[0].p_value == pytest.approx(analysis.primary[0].p_value)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=2, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_any_counts_give_a_verdict_and_a_page(cells, is_final, must_be_safe):
    names = ["plain", *(f"<b>{i}&" for i in range(1, len(cells)))]
    sums = pl.DataFrame(
        [
            {
                "variant": name,
                "contacts": yes + no,
                "sum__ordered": float(yes),
                "sum__ordered__ordered": float(yes),
                "first_exposed_at": START,
                "last_exposed_at": START,
            }
            for name, (yes, no) in zip(names, cells, strict=True)
        ]
    )
    the_plan = Plan(
        "x", dict.fromkeys(names, 1.0), "plain", ORDERED, 1_000, 0.1, must_be_safe=must_be_safe,
        guardrails=(Guardrail(dataclasses.replace(ORDERED, lower_is_better=True), 0.2),),
    )  # fmt: skip
    analysis = analyse(sums, the_plan, is_final=is_final)
    found = judge(analysis)
    if analysis.sample_ratio.is_broken:
        assert found.winner is None
    if found.winner not in (None, "plain"):
        result = next(r for r in analysis.primary if r.variant == found.winner)
        assert result.p_adjusted < 0.05
        assert result.is_better
    page = report_html(analysis, found)
    assert "<b>" not in page
    assert_well_formed(page)


class _Page(HTMLParser):
    """Collects what the checks below need."""

    VOID = frozenset({"meta", "br", "path", "circle", "polygon"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.described: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.described += (attributes.get("aria-labelledby") or "").split()
        self.fetched += [attributes[name] for name in ("src", "href", "xlink:href") if attributes.get(name)]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_well_formed(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.described) <= set(page.ids)
    assert not page.fetched
    return page


def test_the_page_can_be_read_by_anybody():
    frame = contacts(rates={"plain": 0.10, "emoji": 0.12})
    analysis = everything(frame, plan(), is_final=True)
    found = judge(analysis)
    text = report_html(analysis, found, written_at=datetime(2026, 3, 20, 12, tzinfo=UTC))
    page = assert_well_formed(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and "width=device-width" in (a.get("content") or "") for tag, a in page.tags)
    plots = [a for tag, a in page.tags if tag == "svg"]
    assert len(plots) == 3  # lifts, course, segments
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in plots)
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert "script" not in tags
    for line in (found.headline, *found.evidence, *found.next_steps):
        assert line in text.replace("&lt;", "<").replace("&#39;", "'")
    assert "20 March 2026, 12:00 UTC" in text
    assert re.search(r"<desc [^>]*>emoji: \+\d", text)
    assert "NaN" not in text
    assert len(text) < 60_000


def test_the_same_analysis_gives_the_same_page():
    frame = contacts(5_000)
    first, second = (
        report_html(a, judge(a)) for a in (everything(frame, plan(), is_final=True) for _ in range(2))
    )
    assert first == second


def test_words_for_numbers():
    nan = float("nan")
    assert value_words(0.0125, ORDERED) == "1.25\u00a0%"
    assert value_words(0.4567, ORDERED) == "45.7\u00a0%"
    assert value_words(12.3456, REVENUE) == "12.35"
    assert value_words(1_234_567.8, REVENUE) == "1,234,568"
    assert value_words(nan, REVENUE) == "unknown"
    assert lift_words(-0.0456) == "-4.6\u00a0%"
    assert p_words(0.00001) == "p < 0.0001"
    assert p_words(0.01234) == "p = 0.012"
    analysis = analysed(contacts(200), plan(), is_final=False)
    assert (
        interval_words(dataclasses.replace(analysis.primary[0].relative, low=-math.inf, high=math.inf))
        == "anything"
    )


@pytest.mark.slow
def test_peeking_daily_at_equal_variants_rarely_calls_a_winner():
    rng = np.random.default_rng(17)
    wrong, looks, runs = 0, 8, 150
    the_plan = Plan("a_a", {"a": 1, "b": 1, "c": 1}, "a", ORDERED, planned_contacts=30_000, minimum_lift=0.1)
    for _ in range(runs):
        n = np.zeros(3, dtype=int)
        yes = np.zeros(3, dtype=int)
        for look in range(1, looks + 1):
            more = rng.multinomial(30_000 // looks, [1 / 3] * 3)
            n, yes = n + more, yes + rng.binomial(more, 0.05)
            sums = pl.DataFrame(
                {
                    "variant": ["a", "b", "c"],
                    "contacts": n,
                    "sum__ordered": yes.astype(float),
                    "sum__ordered__ordered": yes.astype(float),
                    "first_exposed_at": [START] * 3,
                    "last_exposed_at": [START] * 3,
                }
            )
            outcome = judge(analyse(sums, the_plan, is_final=look == looks)).outcome
            if outcome in ("winner", "control_stays", "harmful"):
                wrong += 1
                break
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
