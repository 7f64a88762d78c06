"""Where a sync reads and keeps what it goes by: raw tables, and the models of identity and profiles as last built.

Each query looks at the contacts or records given and no others; tables that it keeps itself have granules small enough
for that. What a CRM shows is compared with what it should show in one query for all contacts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final

import polars as pl

from campaigns.permissions import restricted_sql
from crm.base import Connector, Kind, stamp
from crm.conflicts import CANDIDATES, CORRECTIONS, DECIDED, DECISIONS, OWN, PUSHES, UTC_MS, VERSIONS
from crm.pulling import Told, load, stored_cursor
from crm.rules import ENGAGEMENT, OPT_OUTS, CrmRules
from crm.settings import CrmSettings
from crm.sync import EPOCH, PENDING, History, Mark, Shown, Task, Touched
from warehouse.client import Warehouse
from warehouse.loads import RECTIFICATION, LoadResult, load_consents

OVERLAP: Final = timedelta(minutes=5)
"""Records that were loaded so long before what has been looked at are looked at again: a load may end later."""
BATCH: Final = 50_000
_IDS: Final = {"contact_id": pl.Int64}
# the sender of a push is the first row, what became of it the second
_OUTCOME: Final = "argMax(status, tuple(status != 'sent', recorded_at))"


class WarehouseStore:
    """The warehouse as `crm.sync.Store`.

    Args:
        warehouse: where the tables are.
        settings: for loads, and the time.
        run_id: who syncs.
        prefix: of the models' databases.
    """

    def __init__(
        self, warehouse: Warehouse, settings: CrmSettings, *, run_id: str = "", prefix: str = ""
    ) -> None:
        self._warehouse, self._settings, self._run_id, self._prefix = warehouse, settings, run_id, prefix
        self._rules_version = ""
        self._known: frozenset[str] | None = None

    def pull(self, connector: Connector, kind: Kind) -> LoadResult:
        """Load what changed in a CRM."""
        return load(self._warehouse, connector, kind, settings=self._settings, run_id=self._run_id)

    def last(self) -> Mark:
        """Where the last sync came to; the very beginning if there was none."""
        found = self._warehouse.frame(
            """
            select
                started_at, records_through, identities_through, consents_through, rules_version, profiles_version,
                is_complete, toJSONString(counts) as counts, toJSONString(failures) as failures
            from raw.crm_syncs order by finished_at desc limit 1
            """
        )
        if found.is_empty():
            return Mark()
        row = found.row(0, named=True)
        return Mark(**{**row, "counts": _parsed(row["counts"]), "failures": _parsed(row["failures"])})

    def touched(self, since: Mark, rules: CrmRules) -> Touched:
        """Contacts that something has happened to since; all the first time, and when the rules have changed."""
        self._rules_version = rules.version
        if not self._has("intermediate.int_contacts__identified"):
            # nobody is anybody yet
            waiting = self._warehouse.value("select count() from raw.crm_records where object = 'contact'")
            return Touched(pl.DataFrame(schema=_IDS), since, int(waiting))
        ends = self._warehouse.frame(
            f"""
            select
                -- by the clock that dates loads: what was loaded long ago is not looked at for ever
                now64(3, 'UTC') as records_through,
                (select max(moved_at) from {self._identified}) as identities_through
            """  # noqa: S608
        ).row(0, named=True)
        mark = replace(since, **ends)
        has_consents = bool(rules.opt_outs) and self._has("intermediate.int_consents__latest")
        if has_consents:
            newest = self._warehouse.value(f"select max(recorded_at) from {self._consents}")  # noqa: S608
            mark = replace(mark, consents_through=newest)
        records = self._changed_records(since)
        waiting = records.filter(pl.col("contact_id").is_null())
        if waiting.height:
            earliest = waiting["loaded_at"].min()
            assert isinstance(earliest, datetime)
            mark = replace(mark, records_through=max(EPOCH, earliest - timedelta(milliseconds=1)))
        is_all = (
            since.records_through <= EPOCH
            or since.rules_version != rules.version
            # the models were built anew, and say no longer who moved
            or ends["identities_through"] < since.identities_through
        )
        if is_all:
            several = "" if rules.opt_outs else (
                "having count() > 1 or countIf((source, identifier) in"
                " (select source, external_id from raw.rectifications)) > 0"
            )  # fmt: skip
            ids = self._warehouse.frame(
                f"select contact_id from {self._identified} where kind = 'record' group by contact_id {several}"  # noqa: S608
            )
            return Touched(ids.sort("contact_id"), mark, waiting.height)
        parts = [
            f"""
            select arrayJoin([contact_id, previous_contact_id]) as contact_id from {self._identified}
            where moved_at > {{moved:DateTime64(3, 'UTC')}} and kind = 'record'
            """,  # noqa: S608
            f"""
            select contact_id from (
                select any(contact_id) as contact_id, {_OUTCOME} as outcome
                from raw.crm_pushes
                where object = 'contact' and recorded_at >= {{started:DateTime64(3, 'UTC')}}
                group by push_id
            ) where outcome in ({", ".join(f"'{one}'" for one in sorted(PENDING))})
            """,  # noqa: S608
        ]
        if has_consents:
            parts.append(
                f"""
                select contact_id from {self._identified}
                where identity_id in (
                    select identity_id from {self._consents} where recorded_at > {{consents:DateTime64(3, 'UTC')}}
                )
                """  # noqa: S608
            )
        others = self._warehouse.frame(
            f"select distinct contact_id from ({' union all '.join(parts)}) where contact_id != 0",  # noqa: S608
            {
                "moved": stamp(since.identities_through),
                "started": stamp(since.started_at),
                "consents": stamp(since.consents_through),
            },
        )
        ids = pl.concat([records.select("contact_id").drop_nulls(), others]).unique().sort("contact_id")
        return Touched(ids, mark, waiting.height)

    def history(self, contact_ids: pl.DataFrame, rules: CrmRules) -> History:
        """All versions of the records of some contacts, what was written to them, and what was decided."""
        given = contact_ids.select(pl.col("contact_id").cast(pl.Int64))
        records = self._warehouse.frame(
            f"""
            select contact_id, toString(source) as source, identifier as external_id from {self._identified}
            where kind = 'record' and contact_id in (select contact_id from given)
            """,  # noqa: S608
            external={"given": given},
        )
        return History(
            self._versions(records, rules), self._pushes(records, given), self._decided(given),
            self._own(given, rules), self._corrections(records),
        )  # fmt: skip

    def add_decisions(self, decisions: pl.DataFrame) -> None:
        """Store decisions."""
        rows = decisions.select(*DECISIONS).with_columns(
            rules_version=pl.lit(self._rules_version),
            run_id=pl.lit(self._run_id),
            decided_at=pl.lit(self._settings.now(), UTC_MS),
        )
        self._warehouse.insert("raw.field_decisions", rows)

    def add_withdrawals(self, candidates: pl.DataFrame, versions: pl.DataFrame) -> int:
        """Store opt-outs that CRMs told us of as withdrawn consents to marketing, each once."""
        channels = {name: channel for channel, name in OPT_OUTS.items()}
        emails = (
            versions.filter(pl.col("email") != "")
            .sort("updated_at")
            .unique(["source", "external_id"], keep="last")
            .select("source", "external_id", "email")
        )
        rows = candidates.join(emails, on=["source", "external_id"], how="left").select(
            pl.concat_str(
                pl.lit("crm"), "source", "external_id", "field", pl.col("at").dt.epoch("ms"), separator=":"
            ).alias("consent_id"),
            "source",
            pl.col("email").fill_null(""),
            "external_id",
            pl.col("field").replace_strict(channels, return_dtype=pl.String).alias("channel"),
            pl.lit("marketing").alias("purpose"),
            pl.lit(False).alias("is_granted"),
            pl.lit("withdrawal").alias("basis"),
            pl.col("at").alias("occurred_at"),
            pl.concat_str(pl.lit('{"field":"'), "field", pl.lit('"}')).alias("properties"),
        )
        return load_consents(self._warehouse, rows, run_id=self._run_id).loaded

    def add_pushes(self, rows: pl.DataFrame) -> None:
        """Store what is about to be written, or what became of it."""
        if rows.is_empty():
            return
        # Arrow has no maps that polars could make
        self._warehouse.insert_select(
            """
            insert into raw.crm_pushes
            select push_id, object, source, external_id, contact_id, key,
                mapFromArrays(
                    splitByChar('\\x1f', names), splitByChar('\\x1f', texts)
                )::Map(LowCardinality(String), String),
                is_new, known_at, status, reason, if(has_record_at, record_at, null), run_id, recorded_at
            from given
            """,
            external={
                "given": rows.with_columns(
                    _joined("names"),
                    _joined("texts"),
                    pl.col("record_at").is_not_null().alias("has_record_at"),
                    pl.col("record_at").fill_null(EPOCH),
                )
            },
        )

    def profiles_version(self) -> str:
        """Which build of the profiles and of identity stands there, and how many predictions; '' without profiles."""
        if not self._has("marts.contact_profiles"):
            return ""
        return self._warehouse.value(
            """
            select arrayStringConcat(arraySort(groupArray(concat(name, toString(uuid), toString(total_rows)))), ' ')
            from system.tables
            where (database, name) in (
                ({marts:String}, 'contact_profiles'), ({intermediate:String}, 'int_contacts__identified'),
                ('raw', 'predictions')
            )
            """,
            {"marts": f"{self._prefix}marts", "intermediate": f"{self._prefix}intermediate"},
        )

    def differing(self, crm: str, rules: CrmRules) -> Iterator[list[Shown]]:
        """What a CRM shows that is no longer so. One query compares all; what differs comes in batches.

        Of people whose data may not be processed nothing new is shown.
        """
        spec = rules.push[crm]
        if not self._has("marts.contact_profiles"):
            return
        wanted = _wanted(spec.engagement)
        values = ", ".join(ENGAGEMENT[key].sql for key in spec.engagement)
        query = f"""
            select ids.contact_id as contact_id, ids.external_id as external_id, {_joined_sql(values)} as texts
            from (
                select contact_id, identifier as external_id from {self._identified}
                where kind = 'record' and source = {{crm:String}}
            ) as ids
            inner join (
                select * from {self._prefix}marts.contact_profiles where not is_deleted
            ) as profiles on profiles.contact_id = ids.contact_id
            {self._predicted(spec.engagement)}
            left any join (
                select external_id as shown_id, fields_hash from raw.crm_shown final where source = {{crm:String}}
            ) as shown on shown.shown_id = ids.external_id
            where
                {_hash(wanted, "texts")} != ifNull(shown.fields_hash, 0)
                and not {restricted_sql("ids.contact_id", "profiles.email")}
            settings join_use_nulls = 1
        """  # noqa: S608
        for batch in self._warehouse.batches(query, {"crm": crm}, rows=BATCH):
            yield self._shown(crm, batch, wanted)

    def missing(self, crm: str, rules: CrmRules) -> Iterator[list[Shown]]:
        """Contacts of the segment whom the CRM has not, with the golden values of the fields that it gets."""
        spec = rules.push[crm]
        if not self._has("marts.contact_profiles"):
            return
        fields = dict.fromkeys(
            ["email", *[name for name in rules.pushed_fields(crm) if name in rules.fields]]
        )
        columns = [name for name in fields if name not in ("mobile_phone",)]
        names = [*columns, *spec.engagement.values()]
        values = ", ".join(
            [
                *(f"ifNull(toString(profiles.{name}), '')" for name in columns),
                *(ENGAGEMENT[key].sql for key in spec.engagement),
            ]
        )
        query = f"""
            select profiles.contact_id as contact_id, '' as external_id, {_joined_sql(values)} as texts
            from {self._prefix}marts.contact_profiles as profiles
            {self._predicted(spec.engagement)}
            where
                has(profiles.segments, {{segment:String}}) and profiles.email != '' and not profiles.is_deleted
                and not {restricted_sql("profiles.contact_id", "profiles.email")}
                and profiles.contact_id not in (
                    select contact_id from {self._identified} where kind = 'record' and source = {{crm:String}}
                )
                and profiles.contact_id not in (
                    select contact_id from raw.crm_pushes
                    where object = 'contact' and source = {{crm:String}} and is_new
                        and status in ('created', 'written', 'invalid')
                )
            settings join_use_nulls = 1
        """  # noqa: S608
        for batch in self._warehouse.batches(query, {"crm": crm, "segment": spec.create}, rows=BATCH):
            yield [
                Shown(contact_id, "", {name: text for name, text in values.items() if text}, values)
                for contact_id, texts in batch.select("contact_id", "texts").iter_rows()
                for values in (dict(zip(names, texts.split("\x1f"), strict=True)),)
            ]

    def add_shown(self, crm: str, shown: Sequence[Shown]) -> None:
        """Store what a CRM shows now."""
        if not shown:
            return
        frame = pl.DataFrame(
            [
                (one.external_id, one.contact_id, "\x1f".join(one.wanted), "\x1f".join(one.wanted.values()))
                for one in shown
            ],
            schema={"external_id": pl.String, "contact_id": pl.Int64, "names": pl.String, "texts": pl.String},
            orient="row",
        )
        self._warehouse.insert_select(
            f"""
            insert into raw.crm_shown
            select {{crm:String}}, external_id, contact_id,
                mapFromArrays(
                    splitByChar('\\x1f', names), splitByChar('\\x1f', texts)
                )::Map(LowCardinality(String), String),
                {_hash("names", "texts")}, {{at:DateTime64(3, 'UTC')}}
            from given
            """,  # noqa: S608
            {"crm": crm, "at": stamp(self._settings.now())},
            external={"given": frame},
        )

    def tasks(self, crm: str, within: timedelta) -> list[Task]:
        """Tasks that are asked for and have not been made, in the order in which they were asked for; none about
        somebody whose data may not be processed since.
        """
        asked_of = "toInt64OrZero(ifNull(properties.contact_id::Nullable(String), ''))"
        has_identity = self._has("intermediate.int_contacts__identified")
        found = self._warehouse.frame(
            f"""
            select event_id, any(email) as email, any(occurred_at) as asked_at,
                any(ifNull(properties.contact_id::Nullable(String), '')) as contact_id,
                any(ifNull(properties.subject::Nullable(String), '')) as subject,
                any(ifNull(properties.note::Nullable(String), '')) as note,
                any(ifNull(properties.owner::Nullable(String), '')) as owner,
                any(ifNull(properties.due_at::Nullable(String), '')) as due_at
            from raw.events as events
            where type = 'crm.task_requested' and occurred_at >= {{since:DateTime64(3, 'UTC')}}
                and event_id not in (
                    select key from raw.crm_pushes
                    where object = 'task' and source = {{crm:String}}
                        and status in ('created', 'written', 'gone', 'invalid')
                )
                and not {restricted_sql(asked_of, "events.email")}
            group by event_id
            order by asked_at, event_id
            limit {BATCH}
            """,  # noqa: S608
            {"crm": crm, "since": stamp(self._settings.now() - within)},
        ).with_columns(pl.col("contact_id").cast(pl.Int64, strict=False).fill_null(0))
        records: dict[int, str] = {}
        if has_identity and found.height:
            known = self._warehouse.frame(
                f"""
                select contact_id, min(identifier) as external_id from {self._identified}
                where kind = 'record' and source = {{crm:String}} and contact_id in (select contact_id from given)
                group by contact_id
                """,  # noqa: S608
                {"crm": crm},
                external={"given": found.select("contact_id")},
            )
            records = dict(known.iter_rows())
        tasks = []
        for row in found.iter_rows(named=True):
            external_id = records.get(row["contact_id"], "")
            # a task about somebody whom the CRM has not says at least who it is
            about = "" if external_id or not row["email"] else f"About {row['email']}"
            body = "\n\n".join(part for part in (row["note"], about) if part)
            # a task without a day would be nowhere in a CRM's list
            fields = {
                "subject": row["subject"], "note": body or None,
                "due_at": _due(row["due_at"]) or row["asked_at"].isoformat(),
                "owner": row["owner"] or None, "contact_id": external_id or None,
            }  # fmt: skip
            tasks.append(
                Task(
                    row["event_id"], row["contact_id"], external_id,
                    {name: value for name, value in fields.items() if value is not None},
                )
            )  # fmt: skip
        return tasks

    def finish(self, mark: Mark) -> None:
        """Store how far we came."""
        self._warehouse.execute(
            """
            insert into raw.crm_syncs
            select {started_at:DateTime64(3, 'UTC')}, greatest({finished_at:DateTime64(3, 'UTC')},
                    (select max(finished_at) from raw.crm_syncs) + toIntervalMillisecond(1)),
                {records_through:DateTime64(3, 'UTC')}, {identities_through:DateTime64(3, 'UTC')},
                {consents_through:DateTime64(3, 'UTC')}, {rules_version:String}, {profiles_version:String},
                {is_complete:Bool}, mapFromArrays({count_names:Array(String)}, {count_values:Array(UInt64)}),
                mapFromArrays({failed_names:Array(String)}, {failed_texts:Array(String)}), {run_id:String}
            """,
            {
                "started_at": stamp(mark.started_at),
                "finished_at": stamp(self._settings.now()),
                "records_through": stamp(mark.records_through),
                "identities_through": stamp(mark.identities_through),
                "consents_through": stamp(mark.consents_through),
                "rules_version": mark.rules_version,
                "profiles_version": mark.profiles_version,
                "is_complete": mark.is_complete,
                "count_names": list(mark.counts),
                "count_values": list(mark.counts.values()),
                "failed_names": list(mark.failures),
                "failed_texts": [text[:500] for text in mark.failures.values()],
                "run_id": self._run_id,
            },
        )

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Of each CRM of the last week: last_written_at, and records whose last write is pending or was refused."""
        found = self._warehouse.frame(
            """
            select toString(source) as source, maxIf(at, outcome in ('written', 'created')) as last_written_at,
                countIf(outcome in ('sent', 'failed', 'conflict')) as pending, countIf(outcome = 'invalid') as refused,
                countIf(outcome in ('written', 'created')) as written
            from (
                select source, external_id, contact_id, max(recorded_at) as at,
                    argMax(status, tuple(recorded_at, status != 'sent')) as outcome
                from raw.crm_pushes
                where object = 'contact' and recorded_at >= {since:DateTime64(3, 'UTC')}
                group by source, external_id, contact_id
            )
            group by source
            """,
            {"since": stamp(self._settings.now() - timedelta(days=7))},
        )
        return {
            row["source"]: {**row, "last_written_at": row["last_written_at"] if row["written"] else None}
            for row in found.iter_rows(named=True)
        }

    def refusals(self, limit: int = 10) -> list[tuple[str, str, str, datetime]]:
        """The newest writes of the last week that a CRM refused: source, external_id, its words, when."""
        return self._warehouse.frame(
            f"""
            select toString(source), external_id, reason, recorded_at from raw.crm_pushes
            where status in ('invalid', 'failed') and recorded_at >= {{since:DateTime64(3, 'UTC')}}
            order by recorded_at desc limit {limit:d}
            """,  # noqa: S608
            {"since": stamp(self._settings.now() - timedelta(days=7))},
        ).rows()  # pyright: ignore[reportReturnType]

    def decisions(self, contact_id: int, *, every: bool = False) -> list[dict[str, Any]]:
        """What was decided about a contact, the last of each field or all of it."""
        last = "" if every else "limit 1 by field"
        return self._warehouse.frame(
            f"""
            select toString(field) as field, value, toString(rule) as rule, toString(source) as source, external_id,
                value_at, losers, why, decided_at
            from raw.field_decisions where contact_id = {{contact_id:Int64}}
            order by field, decided_at desc {last}
            """,  # noqa: S608
            {"contact_id": contact_id},
        ).to_dicts()

    @property
    def _identified(self) -> str:
        return f"{self._prefix}intermediate.int_contacts__identified"

    @property
    def _consents(self) -> str:
        return f"{self._prefix}intermediate.int_consents__latest"

    def _has(self, table: str) -> bool:
        if self._known is None:
            found = self._warehouse.frame(
                "select concat(database, '.', name) as name from system.tables"
                " where database in {databases:Array(String)}",
                {"databases": [f"{self._prefix}{name}" for name in ("intermediate", "marts")]},
            )
            self._known = frozenset(found["name"].to_list())
        return f"{self._prefix}{table}" in self._known

    def _predicted(self, engagement: Collection[str]) -> str:
        """A join of predictions, if any is asked for; empty ones where there are none."""
        if not any(ENGAGEMENT[key].is_predicted for key in engagement):
            return ""
        table = f"{self._prefix}marts.contact_predictions"
        if not self._has("marts.contact_predictions"):
            table = (
                "(select 0::Int64 as contact_id, null::Nullable(Float64) as lifetime_value,"
                " null::Nullable(Float64) as churn_probability where false)"
            )
        return f"left any join {table} as predicted on predicted.contact_id = profiles.contact_id"

    def _changed_records(self, since: Mark) -> pl.DataFrame:
        """Records that were loaded since: source, external_id, loaded_at, contact_id (null: nobody yet)."""
        return self._warehouse.frame(
            f"""
            with changed as (
                select source, external_id, min(loaded_at) as first_at from raw.crm_records
                where object = 'contact' and loaded_at > {{since:DateTime64(3, 'UTC')}}
                group by source, external_id
            )
            select
                toString(changed.source) as source, changed.external_id as external_id, changed.first_at as loaded_at,
                ids.contact_id as contact_id
            from changed
            left any join (
                select source, identifier, contact_id from {self._identified}
                where kind = 'record' and identifier in (select external_id from changed)
            ) as ids on ids.source = changed.source and ids.identifier = changed.external_id
            settings join_use_nulls = 1
            """,  # noqa: S608
            {
                "since": stamp(
                    max(EPOCH, since.records_through - OVERLAP) if since.records_through > EPOCH else EPOCH
                )
            },
        ).with_columns(pl.col("contact_id").cast(pl.Int64))

    def _versions(self, records: pl.DataFrame, rules: CrmRules) -> pl.DataFrame:
        names = [rule.field for rule in rules.rules()]
        columns = []
        for name in dict.fromkeys(["email", *names]):
            if name not in OPT_OUTS.values():
                columns.append(f"ifNull(properties.`{name}`::Nullable(String), '') as `{name}`")
                continue
            cases = "".join(
                f"source = '{crm}', ifNull(properties.`{own}`::Nullable(String), ''), "
                for crm, own in rules.opt_out_names(name).items()
            )
            columns.append(f"multiIf({cases}'') as `{name}`")
        versions = self._warehouse.frame(
            f"""
            select toString(source) as source, external_id, updated_at, loaded_at, is_deleted,
                ifNull(properties.merged_into::Nullable(String), '') as merged_into, {", ".join(columns)}
            from raw.crm_records
            prewhere external_id in (select external_id from given)
            where object = 'contact' and (source, external_id) in (select source, external_id from given)
                and run_id != '{RECTIFICATION}'
            """,  # noqa: S608
            external={"given": records.select("source", "external_id")},
        )
        return versions.join(records, on=["source", "external_id"]).select(
            *VERSIONS, *[name for name in versions.columns if name not in VERSIONS]
        )

    def _corrections(self, records: pl.DataFrame) -> pl.DataFrame:
        """What was put right of some records."""
        found = self._warehouse.frame(
            """
            select toString(source) as source, external_id, toString(field) as field, value, wrong,
                corrected_at as updated_at, least(corrected_at, loaded_at) as at
            from raw.rectifications
            where (source, external_id) in (select source, external_id from given)
            order by corrected_at, loaded_at
            """,
            external={"given": records.select("source", "external_id")},
        )
        return found.join(records, on=["source", "external_id"], maintain_order="left").select(
            pl.col(name).cast(dtype) for name, dtype in CORRECTIONS.items()
        )

    def _pushes(self, records: pl.DataFrame, contact_ids: pl.DataFrame) -> pl.DataFrame:
        found = self._warehouse.frame(
            f"""
            select any(pushes.contact_id) as contact_id, toString(any(pushes.source)) as source,
                max(pushes.external_id) as external_id,
                pair.1 as field, any(pair.2) as value, min(pushes.known_at) as known_at,
                toString({_OUTCOME.replace("status", "pushes.status")}) as status,
                max(pushes.record_at) as record_at, min(recorded_at) as pushed_at
            from raw.crm_pushes as pushes
            array join arrayConcat(
                [('', '')], arrayZip(arrayMap(name -> toString(name), mapKeys(fields)), mapValues(fields))
            ) as pair
            where object = 'contact' and (
                pushes.external_id in (select external_id from given)
                or (pushes.external_id = '' and pushes.contact_id in (select contact_id from ids))
            )
            group by push_id, pair.1
            """,  # noqa: S608
            external={"given": records.select("external_id").unique(), "ids": contact_ids},
        )
        found = found.select(pl.col(name).cast(dtype) for name, dtype in PUSHES.items())
        # a CRM's ids are its own: another's may be the same
        known = found.join(records.select("source", "external_id"), on=["source", "external_id"], how="semi")
        return pl.concat([known, found.filter(pl.col("external_id") == "")])

    def _decided(self, contact_ids: pl.DataFrame) -> pl.DataFrame:
        return self._warehouse.frame(
            """
            select contact_id, toString(field) as field, argMax(content_hash, decided_at) as content_hash
            from raw.field_decisions where contact_id in (select contact_id from ids)
            group by contact_id, field
            """,
            external={"ids": contact_ids},
        ).select(pl.col(name).cast(dtype) for name, dtype in DECIDED.items())

    def _own(self, contact_ids: pl.DataFrame, rules: CrmRules) -> pl.DataFrame:
        if not rules.opt_outs or not self._has("intermediate.int_consents__latest"):
            return pl.DataFrame(schema=dict(CANDIDATES))
        channels = list(rules.opt_outs)
        found = self._warehouse.frame(
            f"""
            select ids.contact_id as contact_id, toString(consents.channel) as channel,
                max(consents.last_change) as last, last.1 as at, last.2 > {{now:DateTime64(3, 'UTC')}} as is_out
            from {self._identified} as ids
            inner join (
                select identity_id, channel, last_change from {self._consents}
                where purpose = 'marketing' and channel in {{channels:Array(String)}}
            ) as consents on consents.identity_id = ids.identity_id
            where ids.contact_id in (select contact_id from given)
            group by contact_id, channel
            """,  # noqa: S608
            {"now": stamp(self._settings.now()), "channels": channels},
            external={"given": contact_ids},
        )
        return found.select(
            pl.col("contact_id").cast(pl.Int64),
            pl.lit(OWN).alias("source"),
            pl.lit("").alias("external_id"),
            pl.col("channel").replace_strict(dict(OPT_OUTS), return_dtype=pl.String).alias("field"),
            pl.when(pl.col("is_out").cast(pl.Boolean))
            .then(pl.lit("true"))
            .otherwise(pl.lit("false"))
            .alias("value"),
            pl.col("at").cast(UTC_MS),
        )

    def _shown(self, crm: str, batch: pl.DataFrame, wanted: str) -> list[Shown]:
        """Of records that are there, what differs from what they show."""
        names = wanted[1:-1].split("\x1f")
        state = self._warehouse.frame(
            """
            select given.external_id as external_id, records.is_deleted as is_deleted, shown.names as names,
                shown.texts as texts
            from given
            left any join (
                select external_id, argMax(is_deleted, tuple(updated_at, is_deleted)) as is_deleted from raw.crm_records
                where source = {crm:String} and object = 'contact' and external_id in (select external_id from given)
                group by external_id
            ) as records on records.external_id = given.external_id
            left any join (
                select external_id, mapKeys(fields)::Array(String) as names, mapValues(fields) as texts
                from raw.crm_shown final
                where source = {crm:String} and external_id in (select external_id from given)
            ) as shown on shown.external_id = given.external_id
            """,
            {"crm": crm},
            external={"given": batch.select("external_id")},
        )
        before: dict[str, tuple[bool, dict[str, str]]] = {
            external_id: (is_deleted, dict(zip(known or (), texts or (), strict=True)))
            for external_id, is_deleted, known, texts in state.iter_rows()
        }
        found = []
        for contact_id, external_id, texts in batch.select("contact_id", "external_id", "texts").iter_rows():
            is_deleted, known = before.get(external_id, (False, {}))
            if is_deleted:
                continue
            values = dict(zip(names, texts.split("\x1f"), strict=True))
            # what was never shown and is empty is shown already
            differing = {name: text for name, text in values.items() if known.get(name, "") != text}
            found.append(
                Shown(
                    contact_id,
                    external_id,
                    differing,
                    values,
                    {name: known.get(name, "") for name in differing},
                )
            )
        return found


class DryStore(WarehouseStore):
    """The same for a dry run: what CRMs say is kept in memory, and nothing is written."""

    def __init__(
        self, warehouse: Warehouse, settings: CrmSettings, *, run_id: str = "", prefix: str = ""
    ) -> None:
        super().__init__(warehouse, settings, run_id=run_id, prefix=prefix)
        self._read: list[pl.DataFrame] = []

    def pull(self, connector: Connector, kind: Kind) -> LoadResult:
        """Read what changed in a CRM."""
        if kind != "contact":
            return LoadResult()
        cursor = stored_cursor(self._warehouse, connector.name, kind)
        rows = 0
        changed = connector.pull(kind, (cursor[0] if cursor else "") or None)
        for pulled in chain(changed, Told(self._warehouse, connector, kind).records()):
            frame = pl.from_arrow(pulled.rows)
            assert isinstance(frame, pl.DataFrame)
            self._read.append(frame.with_columns(source=pl.lit(connector.name)))
            rows += frame.height
        return LoadResult(read=rows)

    def touched(self, since: Mark, rules: CrmRules) -> Touched:
        """As if what was read had been stored."""
        touched = super().touched(since, rules)
        if not self._read or not self._has("intermediate.int_contacts__identified"):
            return touched
        read = pl.concat(self._read).select("source", "external_id").unique()
        known = self._warehouse.frame(
            f"""
            select contact_id, toString(source) as source, identifier as external_id from {self._identified}
            where kind = 'record' and identifier in (select external_id from given)
            """,  # noqa: S608
            external={"given": read},
        ).join(read, on=["source", "external_id"], how="semi")
        ids = pl.concat([touched.contact_ids, known.select("contact_id")]).unique().sort("contact_id")
        return Touched(ids, touched.mark, touched.waiting + read.height - known.height)

    def add_decisions(self, decisions: pl.DataFrame) -> None:
        """Nothing."""

    def add_withdrawals(self, candidates: pl.DataFrame, versions: pl.DataFrame) -> int:
        """Nothing."""
        del candidates, versions
        return 0

    def add_pushes(self, rows: pl.DataFrame) -> None:
        """Nothing."""

    def add_shown(self, crm: str, shown: Sequence[Shown]) -> None:
        """Nothing."""

    def finish(self, mark: Mark) -> None:
        """Nothing."""

    def _versions(self, records: pl.DataFrame, rules: CrmRules) -> pl.DataFrame:
        stored = super()._versions(records, rules)
        if not self._read:
            return stored
        fields = [name for name in stored.columns if name not in VERSIONS]
        texts = pl.col("properties")

        def value(name: str) -> pl.Expr:
            if name not in OPT_OUTS.values():
                return _property(texts, name)
            found = pl.lit("")
            for crm, own in rules.opt_out_names(name).items():
                found = pl.when(pl.col("source") == crm).then(_property(texts, own)).otherwise(found)
            return found

        now = self._settings.now()
        read = (
            pl.concat(self._read)
            .unique(["source", "external_id", "updated_at"], keep="last")
            .join(records, on=["source", "external_id"])
            .with_columns(loaded_at=pl.lit(now, UTC_MS), **{name: value(name) for name in fields})
            .select(pl.col(name).cast(stored.schema[name]) for name in stored.columns)
        )
        fresh = read.join(stored, on=["source", "external_id", "updated_at"], how="anti")
        return pl.concat([stored, fresh])


def _property(texts: pl.Expr, name: str) -> pl.Expr:
    return texts.str.json_path_match(f"$['{name}']").fill_null("")


def _wanted(engagement: dict[str, str]) -> str:
    """Names of a CRM's fields as SQL text."""
    return "'" + "\x1f".join(engagement.values()) + "'"


def _joined_sql(values: str) -> str:
    # a unit separator in a value would shift those behind it
    return f"arrayStringConcat(arrayMap(text -> replaceAll(text, '\x1f', ' '), [{values}]), '\x1f')"


def _hash(names: str, texts: str) -> str:
    return f"sipHash64({names}, {texts})"


def _joined(column: str) -> pl.Expr:
    return pl.col(column).list.eval(pl.element().str.replace_all("\x1f", " ", literal=True)).list.join("\x1f")


def _due(text: str) -> str | None:
    """ISO 8601 with a zone, None if it is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def _parsed(text: str) -> dict[str, Any]:
    return {name: int(value) if str(value).isdigit() else value for name, value in json.loads(text).items()}
