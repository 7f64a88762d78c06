"""An import loosens nothing: what somebody decided for one of their addresses holds for all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from models import DATABASES, PREFIX, Models

from crm.importing import ConsentBasis, ImportOptions, ImportReport, plan_import, run_import
from warehouse.client import Warehouse

SELECTED = (
    "--exclude-resource-type", "unit_test", "test", "--select", "+int_contacts__identified", "int_contacts__merged",
    "suppressions",
)  # fmt: skip


class Prefixed(Warehouse):
    """Reads the databases of the tests where code means those of the project."""

    def frame(self, sql: str, *arguments: Any, **options: Any) -> pl.DataFrame:
        for name in DATABASES:
            sql = sql.replace(f" {name}.", f" {PREFIX}{name}.")
        sql = sql.replace("concat(database", f"concat(replace(database, '{PREFIX}', '')")
        return super().frame(sql, *arguments, **options)


def told(event_id: str, kind: str, email: str, at: str, **properties: object) -> dict[str, object]:
    return {"id": event_id, "type": kind, "email": email, "at": at, "properties": properties}


@pytest.mark.slow
def test_what_holds_for_one_address_holds_for_all_of_a_person(models: Models, tmp_path: Path) -> None:
    for number, name in enumerate(("ann", "bob", "cat", "dan", "eve", "fay"), start=1):
        models.contact(str(number), f"{name}@old.com", "01-01")
        models.contact(str(number), f"{name}@new.com", "02-01")
    models.events(
        told("ann", "unsubscribed", "ann@old.com", "03-01"),
        told("bob", "complained", "bob@old.com", "03-01"),
        # a dead mailbox is one address, and says nothing of the other
        told("cat", "bounced", "cat@old.com", "03-01", bounce_class="hard"),
        told("fay", "unsubscribed", "fay@old.com", "03-01", channel="all"),
        told("sms", "unsubscribed", "", "03-01", phone="+447700900123"),
    )
    models.consent("dan@old.com", "03-01", is_granted=False)
    models.build(*SELECTED)

    given = datetime(2011, 6, 1, tzinfo=UTC)
    path = tmp_path / "people.csv"
    people = [
        f"{name}@new.com,+44770090012{place}"
        for place, name in enumerate(("ann", "bob", "cat", "dan", "eve", "fay"))
    ]
    path.write_text("\n".join(["email,mobile", *people, "new@person.com,+44 7700 900123\n"]))

    def load(channel: str) -> ImportReport:
        consent = ConsentBasis("consent", channels=(channel,), text_version="f1", given_at=given)
        with Prefixed(models.warehouse.address) as warehouse:
            return run_import(
                warehouse, plan_import(path, ImportOptions(consent=consent)), home=tmp_path, content_dir=tmp_path,
                now=models.now,
            )  # fmt: skip

    def granted(channel: str) -> list[str]:
        rows = models.rows(
            "select email from raw.consents where source = 'import' and is_granted and channel = '"
            + channel
            + "' order by 1"
        )
        return [row[0] for row in rows]

    mail = load("email")
    assert mail.protected == {"unsubscribed": 2, "complained": 1, "withdrawn": 1}
    assert granted("email") == ["cat@new.com", "eve@new.com", "new@person.com"]
    assert (mail.new, mail.known) == (7, 6)
    # no stop of mail but that of all channels stands against text messages, and one of text messages does
    text = load("sms")
    assert text.protected == {"unsubscribed": 1, "stopped": 2}
    assert granted("sms") == ["ann@new.com", "bob@new.com", "cat@new.com", "eve@new.com"]
