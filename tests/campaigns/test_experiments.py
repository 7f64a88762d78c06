"""Experiments of campaigns on the engine and a real ledger: who gets what, what is decided, and once only."""

from __future__ import annotations

import contextlib
import mailbox
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.events import PIPELINE_RUN_STATUS_TO_EVENT_TYPE as RUN_STATUS_TO_EVENT_TYPE
from dagster._core.events import DagsterEvent
from ruamel.yaml import YAML

from campaigns.experiments import decision_of, settled
from mailhouse.experiments import app
from orchestration.defs.experiments.sensors import KIND_TAG, experiments_due
from orchestration.lib.campaign_runs import deliver, export_ledger, prepare
from orchestration.lib.experiment_analysis import BrokenRatioError, decide_by_hand, look, review, write_report
from orchestration.lib.experiment_runs import Task, due_tasks, experiment_named, load_experiments
from senders.ledger import Ledger
from senders.settings import SenderSettings
from senders.why import why
from warehouse.client import Warehouse
from warehouse.errors import InputError

NINE = datetime(2011, 6, 27, 8, 0, tzinfo=UTC)  # nine o'clock in London
MJML = """<mjml><mj-body><mj-section><mj-column>
<mj-text>{{ campaign.variant | default('none') }}: <a href="{{ unsubscribe_url }}">Unsubscribe</a>
{{ company_name }}, {{ postal_address }}</mj-text>
</mj-column></mj-section></mj-body></mjml>
"""
# what the dbt models make, by hand: tests of the models are in tests/dbt_project
VIEWS = (
    "create table marts.clicked (contact_id Int64) engine = MergeTree order by contact_id",
    "create table marts.unsubscribed (contact_id Int64) engine = MergeTree order by contact_id",
    """
    create view marts.messages as
    select message_id, argMax(kind, sequence) as kind, argMax(name, sequence) as name,
        argMax(occurrence, sequence) as occurrence, argMax(experiment, sequence) as experiment,
        argMax(variant, sequence) as variant, argMax(contact_id, sequence) as contact_id,
        argMax(status, sequence) as status, argMax(reason, sequence) as reason, max(changed_at) as at,
        status in ('sent', 'queued') as is_sent
    from raw.messages group by message_id
    """,
    """
    create view marts.experiment_exposures as
    select toString(experiment) as experiment, contact_id, message_id, toString(variant) as variant,
        toString(occurrence) as occurrence, false as is_mixed,
        contact_id in (select contact_id from marts.clicked) as is_clicked,
        contact_id in (select contact_id from marts.unsubscribed) as is_unsubscribed, at as exposed_at
    from marts.messages
    where experiment != '' and variant not in ('', 'remainder') and (is_sent or reason = 'holdout')
    """,
    """
    create view marts.experiment_sums as
    select experiment, variant, one.1 as metric, if(max(one.3) > 0, 'ratio', 'proportion') as metric_kind,
        count() as contacts_count, sum(one.2) as value_sum, sum(one.2 * one.2) as value_square_sum, 0.0 as before_sum,
        0.0 as before_square_sum, 0.0 as product_sum, sum(one.3) as denominator_sum,
        sum(one.3 * one.3) as denominator_square_sum, sum(one.2 * one.3) as denominator_product_sum,
        metric = 'unsubscribes' as is_lower_better, toDate(exposed_at) as exposed_on,
        min(exposed_at) as first_exposed_at, max(exposed_at) as last_exposed_at
    from marts.experiment_exposures
    array join [
        ('clicks', toFloat64(is_clicked), 0.0), ('unsubscribes', toFloat64(is_unsubscribed), 0.0),
        -- of one order or two, each of 20 and some, 10 more by those who clicked
        ('average_order_value', (1 + contact_id % 2) * (20.0 + contact_id % 5 + 10 * is_clicked), 1.0 + contact_id % 2)
    ] as one
    group by experiment, variant, metric, exposed_on
    """,
)


class Team:
    """A marketing team's day: files, a clock that can be set, a mailbox, and answers made up."""

    def __init__(self, folder: Path, warehouse: Warehouse, settings: Any, marts: Any) -> None:
        self.folder, self.warehouse, self.marts = folder, warehouse, marts
        self._settings = settings
        self.now = NINE
        (folder / "content/templates").mkdir(parents=True)
        (folder / "content/campaigns").mkdir()
        (folder / "content/templates/win_back.mjml").write_text(MJML)
        for statement in VIEWS:
            warehouse.execute(statement)

    @property
    def settings(self) -> SenderSettings:
        return SenderSettings(
            home=self.folder, content_dir=self.folder / "content", from_email="shop@example.com", company_name="Shop",
            postal_address="1 High Street", provider="maildir", default_cap_messages=0, workers=0,
            warehouse_port=self._settings.warehouse_port,
            clock_offset=(self.now - datetime.now(UTC)).total_seconds(),
        )  # fmt: skip

    def write(self, name: str = "win_back", schedule: dict | None = None, **experiment: Any) -> None:
        content = {
            "campaign": name,
            "audience": {"segment": "at_risk"},
            "schedule": schedule or {"at": "2011-06-27T09:00:00", "timezone": "Europe/London"},
            "send": {"template": "win_back", "category": "marketing", "subject": "We miss you"},
            "experiment": {
                "variants": [{"name": "plain"}, {"name": "warm", "subject": "Come back"}],
                "guardrails": [{"metric": "unsubscribes"}],
                **experiment,
            },
        }
        with (self.folder / f"content/campaigns/{name}.yaml").open("w") as file:
            YAML(typ="safe").dump(content, file)

    def send(self, name: str = "win_back", moment: datetime | None = None) -> Any:
        prepared = prepare(self.settings, self.warehouse, name, is_judged=True, moment=moment)
        summary = deliver(prepared)
        export_ledger(self.settings, self.warehouse)
        return summary

    def mail(self) -> Counter[tuple[str, str]]:
        """Address and subject of all mail."""
        folder = self.folder / "maildir"
        if not folder.exists():
            return Counter()
        return Counter((one["To"], one["Subject"]) for one in mailbox.Maildir(folder, create=False))

    def variants(self) -> dict[int, str]:
        rows = self.warehouse.frame("select contact_id, toString(variant) from marts.messages")
        return dict(rows.iter_rows())

    def click(self, rates: dict[str, float], table: str = "clicked") -> None:
        """So many of each variant click: the first of its contacts."""
        of: dict[str, list[int]] = {}
        for contact_id, variant in sorted(self.variants().items()):
            of.setdefault(variant, []).append(contact_id)
        chosen = [one for name, rate in rates.items() for one in of[name][: round(rate * len(of[name]))]]
        self.warehouse.execute(f"truncate table marts.{table}")
        self.warehouse.insert(f"marts.{table}", pl.DataFrame({"contact_id": chosen}))

    def running(self, name: str = "win_back"):
        return experiment_named(self.settings.content_dir, name)

    def due(self, name: str = "win_back") -> list[Task]:
        """What is due, looks that only show aside."""
        return [
            one for one in due_tasks(self.warehouse, self.running(name), self.now) if one.kind != "refresh"
        ]

    def review(self, name: str = "win_back"):
        seen = review(self.settings, self.warehouse, self.running(name))
        self.now += timedelta(minutes=1)
        return seen


@pytest.fixture
def team(tmp_path: Path, warehouse: Warehouse, warehouse_server: Any, marts: Any) -> Team:
    return Team(tmp_path, warehouse, warehouse_server, marts)


Tick = Callable[[], list[dg.RunRequest]]


@pytest.fixture
def ticking(team: Team, monkeypatch: pytest.MonkeyPatch):
    """The sensor, run by run: each request that it makes is recorded as a run that has ended."""
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS) -> list[dg.RunRequest]:
            settings = team.settings
            for key, value in {
                "HOME": settings.home, "CONTENT_DIR": settings.content_dir, "WAREHOUSE_PORT": settings.warehouse_port,
                "CLOCK_OFFSET": settings.clock_offset, "PROVIDER": "maildir", "FROM_EMAIL": settings.from_email,
            }.items():  # fmt: skip
                monkeypatch.setenv(f"MAILHOUSE_{key}", str(value))
            with dg.build_sensor_context(instance=instance) as context:
                answer = experiments_due(context)
            requests = list(answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []
            for one in requests:
                job = dg.GraphDefinition(name=one.job_name or "").to_job()
                run = instance.create_run_for_job(job, tags=dict(one.tags))
                event = DagsterEvent(RUN_STATUS_TO_EVENT_TYPE[status].value, run.job_name)
                instance.report_dagster_event(event, run.run_id)
            # those that only show are of no interest here
            return [one for one in requests if one.tags.get(KIND_TAG) != "refresh"]

        yield tick


WINNER: dict[str, Any] = {
    "traffic": "50%",
    "winner": {"after": "4h"},
    "baseline": "10%",
    "minimum_effect": "50%",
}


@pytest.mark.slow
def test_the_winner_goes_to_the_remainder_once_though_the_process_dies_after_the_decision(
    team: Team, ticking: Tick
) -> None:
    team.marts.contacts(1, 400)
    team.write(holdout={"share": "10%"}, **WINNER)
    summary = team.send()
    first = team.mail()
    by_variant = Counter(team.variants().values())
    assert by_variant["holdout"] == summary.skipped["holdout"] and by_variant["remainder"] == 0
    assert by_variant["plain"] + by_variant["warm"] == summary.sent == len(first)
    assert {subject for _, subject in first} == {"We miss you", "Come back"}

    # sending again sends nothing, and nothing is due yet
    assert team.send().sent == 0 and ticking() == []
    team.click({"plain": 0.1, "warm": 0.4})
    team.now = NINE + timedelta(hours=3)
    assert ticking() == [] and team.review().decision is None
    team.now = NINE + timedelta(hours=4, minutes=5)
    (request,) = ticking()
    assert request.partition_key == "win_back" and request.job_name == "analyse_experiment"
    seen = team.review()
    assert seen.decision is not None and (seen.decision.winner, seen.decision.outcome) == ("warm", "winner")
    # ... and here the process dies. The next one finds the decision, and asks for what it left; data that come later
    # change nothing
    team.click({"plain": 0.9, "warm": 0.1})
    assert team.review().decision == seen.decision == decision_of(team.warehouse, "win_back")
    (request,) = ticking(dg.DagsterRunStatus.FAILURE)
    assert request.job_name == "send_campaign" and request.tags["mailhouse/experiment_part"] == "remainder"
    (request,) = ticking()
    assert request.run_key.endswith("#2")

    team.send(moment=datetime.fromisoformat(request.tags["mailhouse/occurrence"]))
    mail = team.mail()
    assert set(mail.values()) == {1}
    late = [subject for (_, subject) in mail - first]
    assert set(late) == {"Come back"} and len(late) == Counter(team.variants().values())["remainder"]
    # everybody who is not held out got it, once
    assert len(mail) == 400 - by_variant["holdout"]
    assert ticking() == [] and team.send().sent == 0 and team.mail() == mail

    contact_id = next(one for one, variant in team.variants().items() if variant == "remainder")
    message_id = team.warehouse.value(
        "select message_id from marts.messages where contact_id = {c:Int64}", {"c": contact_id}
    )
    with Ledger.open(team.settings) as ledger:
        lines = "\n".join(why(message_id, ledger, team.warehouse).lines())
    assert (
        "win_back, variant remainder" in lines
        and "got warm, decided 2011-06-27 12:05 UTC: warm wins" in lines
    )
    assert "hash of win_back and the contact" in lines
    body = next(
        one.get_payload()[0].get_payload(decode=True).decode()
        for one in mailbox.Maildir(team.folder / "maildir", create=False)
        if one["To"] == f"c{contact_id}@example.com"
    )
    assert body.startswith("warm:")  # templates see the variant whose content it is
    assert write_report(team.settings, team.review()).read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_command_says_how_it_stands(
    team: Team, ticking: Tick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    team.marts.contacts(1, 200)
    team.write(holdout={"share": "10%"}, **WINNER)
    team.send()
    team.click({"plain": 0.1, "warm": 0.6})
    team.now = NINE + timedelta(hours=5)
    team.review()
    assert ticking()
    monkeypatch.setattr("mailhouse.engine.open_warehouse", lambda *_: contextlib.nullcontext(team.warehouse))
    for args, said in (
        (["list"], "campaign win_back clicks"),
        (["show", "win_back"], "The remainder gets warm."),
        (["report", "win_back"], "experiments/win_back.html"),
        (["size", "win_back"], "That is too few"),
    ):
        app(args, standalone_mode=False)
        assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_where_nothing_differs_there_is_no_winner_and_the_remainder_gets_the_control(team: Team) -> None:
    team.marts.contacts(1, 400)
    team.write(**WINNER)
    team.send()
    team.click({"plain": 0.2, "warm": 0.2})
    team.now = NINE + timedelta(hours=5)
    decision = team.review().decision
    assert decision is not None and (decision.winner, decision.rule) == ("plain", "otherwise")
    assert "The remainder gets plain" in decision.headline
    team.send()
    assert {subject for (_, subject), number in team.mail().items() if number != 1} == set()


@pytest.mark.slow
def test_a_ratio_of_two_sums_decides(team: Team) -> None:
    team.marts.contacts(1, 400)
    team.write(metric="average_order_value", **{**WINNER, "baseline": None})
    team.send()
    team.click({"plain": 0.0, "warm": 1.0})
    team.now = NINE + timedelta(hours=5)
    seen = team.review()
    assert seen.decision is not None and (seen.decision.winner, seen.decision.rule) == ("warm", "fixed")
    assert seen.analysis is not None
    comparison = seen.analysis.primary[0].comparison
    # 22 an order against 32, whoever made two of them
    assert comparison.control_value == pytest.approx(22, abs=0.4)
    assert comparison.treatment_value == pytest.approx(32, abs=0.4)
    assert comparison.metric.kind == "ratio"


@pytest.mark.slow
def test_a_broken_ratio_refuses_and_people_may_decide(team: Team) -> None:
    team.marts.contacts(1, 400)
    team.write(**WINNER)
    team.send()
    team.click({"plain": 0.1, "warm": 0.5})
    # half of one variant's messages are lost
    team.warehouse.execute(
        """
        create or replace view marts.lost as
        select contact_id from marts.messages where variant = 'warm' and contact_id % 2
        """
    )
    kept = team.warehouse.value(
        "select create_table_query from system.tables where name = 'experiment_exposures'"
    )
    team.warehouse.execute("drop view marts.experiment_exposures")
    team.warehouse.execute(kept + " and contact_id not in (select contact_id from marts.lost)")
    team.now = NINE + timedelta(hours=5)
    with pytest.raises(BrokenRatioError, match="do not have the contacts that were planned"):
        team.review()
    assert decision_of(team.warehouse, "win_back") is None and team.send().sent == 0
    with pytest.raises(InputError, match="no variant 'warn'"):
        decide_by_hand(team.settings, team.warehouse, team.running(), "warn")
    assert decide_by_hand(team.settings, team.warehouse, team.running(), "plain").winner == "plain"
    with pytest.raises(InputError, match="was decided"):
        decide_by_hand(team.settings, team.warehouse, team.running(), "warm")
    assert team.send().sent > 0


@pytest.mark.slow
def test_bayes_decides_before_the_end_and_a_harmed_guardrail_forbids(team: Team) -> None:
    team.marts.contacts(1, 400)
    team.write(
        traffic="50%", winner={"after": "1h", "otherwise": "none"}, decide="bayes", end="1d", baseline="10%"
    )
    team.send()
    team.click({"plain": 0.1, "warm": 0.4})
    team.click({"plain": 0.0, "warm": 0.3}, "unsubscribed")
    team.now = NINE + timedelta(hours=2)
    assert team.review().decision is None  # warm is best, and harms
    team.click({"plain": 0.02, "warm": 0.02}, "unsubscribed")
    decision = team.review().decision
    assert decision is not None and (decision.winner, decision.rule) == ("warm", "bayes")


@pytest.mark.slow
def test_otherwise_none_sends_the_remainder_nothing(team: Team) -> None:
    team.marts.contacts(1, 200)
    team.write(**{**WINNER, "winner": {"after": "4h", "otherwise": "none"}})
    team.send()
    team.click({"plain": 0.2, "warm": 0.2})
    team.now = NINE + timedelta(hours=5)
    decision = team.review().decision
    assert decision is not None and decision.winner == ""
    assert team.send().sent == 0 and team.due() == []


@pytest.mark.slow
def test_what_is_settled_stays_whatever_somebody_writes_meanwhile(team: Team) -> None:
    team.marts.contacts(1, 300)
    team.write(variants=[{"name": "plain", "weight": 1}, {"name": "warm", "delay": "2h", "subject": "Later"}])
    team.send()
    before = team.variants()
    assert set(before.values()) == {"plain"}
    team.now = NINE + timedelta(hours=1)
    assert team.due() == []
    team.write(
        variants=[{"name": "plain", "weight": 99}, {"name": "warm", "delay": "2h", "subject": "Later"}]
    )
    team.now = NINE + timedelta(hours=2)
    (task,) = team.due()
    assert (task.kind, task.part) == ("send", "warm")
    team.send()
    after = team.variants()
    assert len(after) == 300 and {one: after[one] for one in before} == before
    assert abs(Counter(after.values())["warm"] - 150) < 40 and set(team.mail().values()) == {1}
    # ratio: against what was settled, not what the file says by now
    assert look(team.warehouse, team.running(), team.now).analysis.sample_ratio.expected["plain"] == 0.5
    team.write(variants=[{"name": "plain"}, {"name": "cold"}])
    with pytest.raises(InputError, match="a variant 'warm', which the file no longer has"):
        team.send()


@pytest.mark.slow
def test_nobody_is_in_two_experiments_of_a_layer(team: Team) -> None:
    team.marts.contacts(1, 400)
    team.write("win_back", layer={"name": "tone", "from": "0%", "to": "60%"})
    team.write("second", layer={"name": "tone", "from": "60%", "to": "100%"})
    team.send("win_back")
    team.send("second")
    rows = team.warehouse.frame(
        "select contact_id, groupUniqArray(toString(name)) as names from marts.messages where variant != '' group by 1"
    )
    assert rows.height == 400 and rows["names"].list.len().max() == 1
    # who is outside of a campaign's part gets what it says, in no variant
    assert sum(team.mail().values()) == 800
    team.write("second", layer={"name": "tone", "from": "50%", "to": "90%"})
    with pytest.raises(
        InputError, match=r"overlaps that of second .*Free is from 0% to 40%|overlaps that of"
    ):
        load_experiments(team.settings.content_dir)


@pytest.mark.slow
def test_a_bandit_moves_to_what_works_and_each_batch_stays_as_it_was_settled(
    team: Team, ticking: Tick
) -> None:
    team.marts.contacts(1, 400)
    team.write(allocation="bandit", batches={"count": 3, "every": "2h"})
    team.send()
    first = Counter(team.variants().values())
    assert 100 < sum(first.values()) < 170 and abs(first["warm"] - first["plain"]) < 50
    team.click({"plain": 0.05, "warm": 0.5})
    assert ticking() == []
    team.now = NINE + timedelta(hours=2, minutes=1)
    (request,) = ticking()
    assert request.tags["mailhouse/experiment_part"] == "batch#1"
    team.send()
    team.send()
    weights = settled(team.warehouse, "win_back")["2011-06-27T08:00:00Z", 1].allocation.weights
    assert weights["warm"] > 0.9 and weights["plain"] >= 0.05 - 1e-9
    both = Counter(team.variants().values())
    assert (both["warm"] - first["warm"]) > 8 * (both["plain"] - first["plain"])
    team.now = NINE + timedelta(hours=9)
    team.send()
    assert len(team.mail()) == 400 and set(team.mail().values()) == {1}
    # pooled the shares are far from any weights; within batches they are as settled
    assert not look(team.warehouse, team.running(), team.now).analysis.sample_ratio.is_broken


@pytest.mark.slow
def test_later_occurrences_send_everybody_the_winner(team: Team) -> None:
    team.marts.contacts(1, 300)
    schedule = {"cron": "0 9 * * mon", "timezone": "Europe/London"}
    team.write(schedule=schedule, **WINNER)
    team.send()
    team.click({"plain": 0.1, "warm": 0.6})
    team.now = NINE + timedelta(hours=5)
    team.review()
    team.send()
    team.now = NINE + timedelta(days=7)
    team.send()
    later = [subject for (_, subject), number in (team.mail()).items() for _ in range(number)]
    assert len(later) == 600 and Counter(later)["Come back"] > 500
    known = settled(team.warehouse, "win_back")["2011-07-04T08:00:00Z", 0]
    assert known.winner == "warm" and known.allocation.traffic == 0


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ({"variants": [{"name": "a"}]}, "needs two variants or more"),
        ({"variants": [{"name": "a"}, {"name": "holdout"}]}, "has a variant called holdout"),
        ({"control": "c"}, "there is no variant 'c'. Allowed: plain, warm."),
        ({"winner": {"after": "4h"}}, "winner needs a remainder"),
        ({"traffic": "20%", "winner": {"to": "arrivals"}}, "arrivals belongs to a journey's split"),
        ({"traffic": "20%"}, "leaves a remainder that would get nothing"),
        ({"traffic": "120%"}, "is more than all"),
        ({"metric": "clickz"}, "there is no metric 'clickz'. Did you mean clicks?"),
        ({"metric": "conversions"}, "conversions need a goal, and win_back has none"),
        ({"metric": "clicks", "others": ["clicks"]}, "is measured already"),
        ({"decide": "sometime"}, "Allowed: fixed, anytime, bayes."),
        (
            {"traffic": "20%", "end": "2d", "winner": {"after": "4h"}},
            "decide: fixed decides at the end alone",
        ),
        ({"allocation": "bandit", "decide": "bayes"}, "decide has no meaning with a bandit"),
        ({"batches": {"count": 2, "every": "1h"}}, "batches belong to a bandit"),
        ({"layer": {"name": "l", "from": "50%", "to": "50%"}}, "from must be below to"),
        (
            {"schedule": {"cron": "0 9 * * *"}, "traffic": "20%", "winner": {"after": "30h"}},
            "experiment.winner: takes 30h, and the campaign goes again after 1d",
        ),
        ({"variants": [{"name": "a"}, {"name": "b", "template": "win_bak"}]}, "Did you mean win_back?"),
    ],
)
def test_mistakes_are_answered_with_place_and_remedy(
    tmp_path: Path, experiment: dict[str, Any], said: str
) -> None:
    from campaigns.specs import check_references, load_campaigns

    (tmp_path / "content/campaigns").mkdir(parents=True)
    writer = Team.__new__(Team)
    writer.folder = tmp_path
    writer.write(**experiment)
    with pytest.raises(InputError) as error:
        specs = load_campaigns(tmp_path / "content")
        check_references(specs, ["win_back"], ["at_risk"], metrics=["order_revenue"])
    text = f"{error.value.message} {error.value.fix}"
    assert said in text and "win_back.yaml:" in text
