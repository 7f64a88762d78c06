"""`make docs`: one page that says what every model and column means, from nothing but this folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from orchestration.lib.dbt_runs import PROJECT_DIR
from orchestration.lib.docs_site import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_page_holds_every_view_and_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # somebody's real warehouse, which the page must neither ask nor name
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_URL", "http://reader:secret@warehouse.invalid:8123")
    page = build(tmp_path / "docs")
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    text = page.read_text()
    assert "warehouse.invalid" not in text
    assert not re.search(r"<(script|link|img)\b[^>]*\b(src|href)=[\"']?(https?:)?//", text)
    assert "Mailhouse: what the warehouse knows" in text
    # built, so that the page knows types: what the catalogue says of the last column of a view
    assert '"bi.campaign_results"' in text or '"schema": "bi"' in text or '"schema":"bi"' in text
    for path in (PROJECT_DIR / "models" / "bi").glob("*.yml"):
        [model] = yaml.safe_load(path.read_text())["models"]
        assert model["name"] in text
        for column in model["columns"]:
            assert column["description"].replace('"', '\\"') in text, f"{model['name']}.{column['name']}"
