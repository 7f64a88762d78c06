"""Campaign files as rows of the warehouse."""

from __future__ import annotations

import time
from pathlib import Path

from campaigns.catalogue import record_specs
from campaigns.specs import load_campaigns
from warehouse.client import Warehouse

SPEC = """
campaign: spring
description: {description}
audience: {{segment: champions}}
schedule: {{cron: "0 9 * * mon"}}
goal: {{event: order.placed, within: {within}}}
send: {{template: spring, category: marketing, subject: Spring}}
"""


def write(folder: Path, *, description: str = "Spring sale", within: str = "14d") -> Path:
    (folder / "campaigns").mkdir(exist_ok=True)
    (folder / "campaigns" / "spring.yaml").write_text(SPEC.format(description=description, within=within))
    return folder


def test_a_version_is_recorded_once_and_again_when_it_comes_back(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    warehouse.execute("truncate table raw.campaigns")

    def record(**changes: str) -> int:
        time.sleep(0.005)  # versions are ordered by the milliseconds at which they were recorded
        return record_specs(warehouse, load_campaigns(write(tmp_path, **changes)).values())

    assert record() == 1
    assert record() == 0
    assert record(description="Other words") == 0
    assert record(within="7d") == 1
    assert record() == 1
    rows = warehouse.frame(
        """
        select kind, name, channel, category, segment, goal_event, goal_within_seconds, spec.goal.within::String as goal
        from raw.campaigns order by loaded_at
        """
    )
    assert rows["goal_within_seconds"].to_list() == [14 * 86_400, 7 * 86_400, 14 * 86_400]
    assert rows.row(0)[:6] == ("campaign", "spring", "email", "marketing", "champions", "order.placed")
    assert rows["goal"].to_list() == ["14d", "7d", "14d"]
