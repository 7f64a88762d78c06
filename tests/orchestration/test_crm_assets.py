"""Every CRM that the settings name is assets, one a kind of record; and the doctor looks at it."""

from __future__ import annotations

import dagster as dg
import pytest

from crm.base import PULLED, Capabilities, Connector, CrmRefusedError, Pulled, Usage
from crm.hubspot import HubSpot
from crm.settings import CrmSettings
from mailhouse.doctor import Verdict, _crms, _looked
from orchestration.defs.ingestion.assets import crm_asset, ingestion
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings


class Rolodex(Connector):
    """A CRM of one contact."""

    name = "rolodex"
    capabilities = Capabilities(tells_deletes=True)

    def __init__(self) -> None:
        self.usage = Usage()

    @classmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        return True

    @classmethod
    def from_settings(cls, settings: CrmSettings, **_: object) -> Rolodex:
        return cls()

    def pull(self, kind: str, since: str | None):
        from datetime import UTC, datetime

        self.usage.add("card")
        row = {"external_id": "1", "updated_at": datetime(2026, 1, 1, tzinfo=UTC), "is_deleted": False}
        yield Pulled(
            PULLED.empty_table().from_pylist([{**row, "merged_into": "", "properties": "{}"}], PULLED), "1"
        )


def keys() -> set[str]:
    defs = ingestion()
    assert isinstance(defs, dg.Definitions)
    return {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}


def test_a_crm_is_an_asset_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    without = keys()
    assert not {key for key in without if "hubspot" in key}
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_TOKEN", "pat")
    wanted = {f"sources/hubspot_{plural}" for plural in ("contacts", "companies", "deals", "tasks")}
    assert keys() - without == wanted
    monkeypatch.setenv("MAILHOUSE_CRM_SKIPPED", "hubspot_tasks")
    assert keys() - without == wanted - {"sources/hubspot_tasks"}


def test_the_asset_loads_and_says_what_it_took(
    warehouse: Warehouse, settings: MailhouseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILHOUSE_HOME", str(settings.home))
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_PORT", str(settings.warehouse_port))
    result = dg.materialize([crm_asset(Rolodex, "contact")])
    (made,) = result.asset_materializations_for_node("sources__rolodex_contacts")
    counted = {name: value.value for name, value in made.metadata.items()}
    assert {name: counted[name] for name in ("read", "loaded", "calls")} == {
        "read": 1,
        "loaded": 1,
        "calls": 1,
    }
    assert warehouse.value("select external_id from raw.crm_records") == "1"


def test_the_doctor_asks_each_crm_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _crms() == {}
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_TOKEN", "pat")
    monkeypatch.setattr(HubSpot, "check", lambda _: "all is well")
    ((name, look),) = _crms().items()
    assert (_looked(name, look).verdict, look().text) == (Verdict.OK, "all is well")

    def refuse(_: HubSpot) -> str:
        raise CrmRefusedError("HubSpot does not accept the token.", fix="Set another.")

    monkeypatch.setattr(HubSpot, "check", refuse)
    finding = _looked(name, look)
    assert (finding.subject, finding.verdict, finding.fix) == ("hubspot", Verdict.WRONG, "Set another.")
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_TOKEN", "no token")
    assert "MAILHOUSE_HUBSPOT_TOKEN" in _looked(name, _crms()["hubspot"]).fix
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_API_VERSION", "v9")
    assert _looked("crm", _crms()["crm"]).verdict == Verdict.WRONG
