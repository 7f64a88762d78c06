"""kill -9 of a ticking process at random instants, with a real ledger, a real warehouse and real messages."""

from __future__ import annotations

import mailbox
import random
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_journey_ticks import Bench, bench

from orchestration.lib import journey_runs
from senders.leases import LeaseTakenError
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

__all__ = ["bench"]

TEMPLATE = """<mjml><mj-body><mj-section><mj-column><mj-text>Hello {{ contact.country }}. {{ company_name }},
{{ postal_address }}. <a href="{{ unsubscribe_url }}">Unsubscribe</a></mj-text>
</mj-column></mj-section></mj-body></mjml>
"""
MAIL = {"template": "offer", "category": "marketing"}
JOURNEY = {
    "journey": "j",
    "entry": {"segment": "at_risk"},
    "steps": [
        {"id": "first", "send": {**MAIL, "subject": "First"}},
        {"id": "pause", "wait": "1s"},
        {"id": "halves", "split": [{"name": "x", "weight": 1, "then": [{"id": "mark", "tag": {"add": ["marked"]}}]},
                                   {"name": "y", "weight": 1}]},
        {"id": "second", "send": {**MAIL, "subject": "Second"}},
    ],
}  # fmt: skip


def settings_of(home: Path, port: int) -> SenderSettings:
    return SenderSettings(
        home=home, warehouse_port=port, content_dir=home / "content", from_email="shop@example.com",
        from_name="Shop", company_name="Shop Ltd", postal_address="1 High Street", default_cap_messages=0,
    )  # fmt: skip


def tick(settings: SenderSettings) -> journey_runs.JourneyRun:
    with Warehouse.connect(settings, comment="test") as warehouse:
        return journey_runs.tick(settings, warehouse, "j")


@pytest.fixture
def shop(
    bench: Bench, tmp_path: Path, warehouse_server: MailhouseSettings, monkeypatch: pytest.MonkeyPatch
) -> SenderSettings:
    """A journey with two messages, ready to tick; segments are those of the hand-made marts."""
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "at_risk.sql").write_text("select 1")
    monkeypatch.setattr(journey_runs, "SEGMENTS_DIR", tmp_path / "segments")
    for folder in ("templates", "journeys"):
        (tmp_path / "content" / folder).mkdir(parents=True)
    (tmp_path / "content" / "templates" / "offer.mjml").write_text(TEMPLATE)
    with (tmp_path / "content" / "journeys" / "j.yaml").open("w") as file:
        YAML(typ="safe").dump(JOURNEY, file)
    return settings_of(tmp_path, warehouse_server.warehouse_port)


def come_in(bench: Bench, settings: SenderSettings, people: int) -> None:
    tick(settings)
    time.sleep(0.01)
    bench.people(*range(1, people + 1))
    bench.warehouse.execute(
        f"""
        insert into marts.consented
        select number + 1, 'email', 'marketing', true, 'opt_in', 'v1', 'c', now64(3) from numbers({people})
        """
    )
    bench.warehouse.execute(f"insert into segments.at_risk select number + 1 from numbers({people})")
    now = f"toDateTime64('{settings.now():%Y-%m-%d %H:%M:%S.%f}', 3, 'UTC')"
    bench.warehouse.execute(
        "insert into marts.segment_changes"
        f" select 'at_risk', number + 1, 'entered', {now}, {now} from numbers({people})"
    )


def messages(settings: SenderSettings) -> Counter[tuple[str, str]]:
    """How often each person got each message."""
    box = mailbox.Maildir(settings.maildir, create=False)
    return Counter((str(one["To"]).rpartition("<")[2].rstrip(">"), str(one["Subject"])) for one in box)


def finish(bench: Bench, settings: SenderSettings, people: int) -> None:
    """Tick until all have left, then look that everybody got everything once."""
    for _ in range(20):
        tick(settings)
        left = bench.warehouse.value(
            "select countIf(ending = 'finished') from campaigns.journey_states final"
        )
        if left == people:
            break
        time.sleep(1.1)
    got = messages(settings)
    assert set(got.values()) == {1}
    assert len(got) == 2 * people
    steps = bench.warehouse.frame(
        """
        select contact_id, groupArray(sequence) as sequences, groupArray(toString(step)) as steps
        from (select * from campaigns.journey_steps order by sequence) group by contact_id
        """
    )
    assert steps.height == people
    for _, sequences, path in steps.iter_rows():
        assert sequences == list(range(1, len(path) + 1))
        assert path in (
            ["first", "pause", "halves", "mark", "second", ""],
            ["first", "pause", "halves", "second", ""],
        )
    assert tick(settings).summary.moves == 0


@pytest.mark.slow
def test_a_journey_sends_through_the_ledger_and_says_why(bench: Bench, shop: SenderSettings) -> None:
    from campaigns.identity import message_id
    from senders.leases import hold
    from senders.ledger import Ledger
    from senders.why import why

    come_in(bench, shop, 5)
    bench.warehouse.execute(
        "insert into marts.suppressed values ('c5@example.com', 'complained', now64(3), 'e')"
    )
    with Ledger.open(shop) as ledger, hold(ledger, "journey:j"), pytest.raises(LeaseTakenError):
        tick(shop)
    assert journey_runs.due_reason(bench.warehouse, bench_spec(shop), shop.now()) == "at_risk has changed"
    run = tick(shop)
    assert run.counts() == {"entered": 5, "moves": 10, "sent": 4, "skipped": 1, "failed": 0, "refused": 0}
    assert journey_runs.due_reason(bench.warehouse, bench_spec(shop), shop.now() - timedelta(hours=1)) == ""
    journey_runs.pause(shop, "j")
    with pytest.raises(journey_runs.JourneyPausedError):
        tick(shop)
    journey_runs.resume(shop, "j")
    time.sleep(1.1)
    tick(shop)
    assert set(messages(shop).values()) == {1} and len(messages(shop)) == 8
    with Ledger.open(shop) as ledger:
        said = "\n".join(why(message_id("journey", "j.second", 5, "1"), ledger, bench.warehouse).lines())
        assert "suppressed" in said
        said = "\n".join(why(message_id("journey", "j.second", 1, "1"), ledger, bench.warehouse).lines())
    assert "first" in said and "entered at_risk" in said and "hash " in said and "waited" in said


def bench_spec(settings: SenderSettings):
    return journey_runs.checked_journey(settings, "j")


@pytest.mark.slow
def test_killed_at_any_instant_nobody_is_lost_and_nobody_gets_anything_twice(
    bench: Bench, shop: SenderSettings, warehouse_server: MailhouseSettings
) -> None:
    people = 150
    come_in(bench, shop, people)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    killed = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, __file__, str(shop.home), str(warehouse_server.warehouse_port)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", f"seed {seed}"
        time.sleep(chance.uniform(0.05, 4.0))
        killed += process.poll() is None
        process.kill()
        process.wait()
        process.stdout.close()
    assert killed, f"seed {seed}"
    finish(bench, shop, people)


if __name__ == "__main__":
    shop_home = Path(sys.argv[1])
    journey_runs.SEGMENTS_DIR = shop_home / "segments"
    shop_settings = settings_of(shop_home, int(sys.argv[2]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        tick(shop_settings)
        time.sleep(0.05)
