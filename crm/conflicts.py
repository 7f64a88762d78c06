"""Whose value of a field counts, and what must be written where: pure functions from frames to frames.

All follows from what was read and what we wrote, and from nothing else, so that whatever order things come in, and
however often a sync is broken off and run again, the outcome is the same:

- An *edit* is a value in a version of a record that neither the version before had nor we had written in between. The
  first version's values are edits, too. What we wrote and read again is an echo and no edit.
- Each record speaks for itself by its newest edit of a field; where a field keeps filled values, by its newest edit to
  a value. These are the *candidates* of a contact.
- What was put right at a person's request (`mailhouse gdpr rectify`) is an edit of each of their records, which no CRM
  shows: a record that goes on saying what was wrong says nothing new, and gets the right value.
- The *golden value* is the best candidate by the field's rule (`Rule`); between equals the later one, then the
  first by name of source and id. An opt-out counts until it is lifted where it was made, or the person agrees with us
  later.
- What one record alone says is not decided: there is nobody to disagree; unless it was put right.
- A record that shows another value gets the golden one.

An edit is dated by its CRM, but not later than we read it: a clock that is ahead wins nothing beyond that.

Known limit: if the answer to a write was lost, and before the next reading somebody put back the very value that was
there before it, that cannot be told from a write that never happened; the value is written again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from crm.rules import OPT_OUTS, Rule

UTC_MS: Final = pl.Datetime("ms", "UTC")
RECTIFIED: Final = "rectified"
"""The rule of a value that was put right, and that nobody has outdone since."""
OWN: Final = "mailhouse"
"""What we are called among sources: unsubscriptions and withdrawn consents are candidates of ours."""

VERSIONS: Final[Mapping[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "source": pl.String(),
    "external_id": pl.String(),
    "updated_at": UTC_MS,
    "loaded_at": UTC_MS,
    "is_deleted": pl.Boolean(),
    "merged_into": pl.String(),
}
"""Columns of versions of records; a column of text for each field follows, '' where it is empty."""

PUSHES: Final[Mapping[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "source": pl.String(),
    # '' while a record is being made
    "external_id": pl.String(),
    "field": pl.String(),
    "value": pl.String(),
    # the newest version that was known when it was written; the epoch for a record that is being made
    "known_at": UTC_MS,
    # sent (no answer is known), or as in `crm.base.PushStatus`
    "status": pl.String(),
    # when the CRM says that it was written
    "record_at": UTC_MS,
    "pushed_at": UTC_MS,
}
"""Columns of what we wrote, a row a field."""

CANDIDATES: Final[Mapping[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "source": pl.String(),
    "external_id": pl.String(),
    "field": pl.String(),
    "value": pl.String(),
    "at": UTC_MS,
}

CORRECTIONS: Final[Mapping[str, pl.DataType]] = {
    **CANDIDATES,
    # what the record said before
    "wrong": pl.String(),
    # its place among the record's versions, which is after all of before
    "updated_at": UTC_MS,
}
"""Columns of fields that were put right."""

DECIDED: Final[Mapping[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "field": pl.String(),
    "content_hash": pl.UInt64(),
}
"""Columns of what was decided last, of each contact and field."""

DECISIONS: Final[Mapping[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "field": pl.String(),
    "rule": pl.String(),
    "value": pl.String(),
    "source": pl.String(),
    "external_id": pl.String(),
    "value_at": UTC_MS,
    # JSON: [{"source", "external_id", "value", "at"}]
    "losers": pl.String(),
    "why": pl.String(),
    "content_hash": pl.UInt64(),
}
"""Columns of decisions."""

CHANGES: Final[Mapping[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "source": pl.String(),
    "external_id": pl.String(),
    "field": pl.String(),
    "old": pl.String(),
    "value": pl.String(),
    "known_at": UTC_MS,
    "rule": pl.String(),
    "why": pl.String(),
}
"""Columns of what must be written, a row a field."""

_RECORD: Final = ("source", "external_id")
_CELL: Final = ("source", "external_id", "field")
_PLACE: Final = ("contact_id", "field")


@dataclass(frozen=True)
class Resolution:
    """What follows.

    Attributes:
        golden: columns of `CANDIDATES`: the value of each contact and field that has one.
        decisions: columns of `DECISIONS`: decisions that differ from the last one of their contact and field.
        changes: columns of `CHANGES`.
        known: source, external_id, contact_id, known_at, is_live: of each record the newest version that is known.
    """

    golden: pl.DataFrame
    decisions: pl.DataFrame
    changes: pl.DataFrame
    known: pl.DataFrame


def canonical(field: str, value: pl.Expr) -> pl.Expr:
    """A field's value as it is compared: CRMs trim, write emails small and phone numbers with blanks as they like."""
    text = value.fill_null("").str.strip_chars()
    if field in OPT_OUTS.values():
        is_out = text.str.to_lowercase().is_in(["true", "1", "yes", "y", "t"])
        return pl.when(is_out).then(pl.lit("true")).otherwise(pl.lit("false"))
    if field == "email":
        return text.str.to_lowercase()
    if field in ("phone", "mobile_phone"):
        return text.str.replace_all(r"[\s().\-/\u00a0]", "")
    return text


def resolve(
    rules: Sequence[Rule],
    pushed: Mapping[str, Collection[str]],
    versions: pl.DataFrame,
    pushes: pl.DataFrame,
    decided: pl.DataFrame,
    own: pl.DataFrame | None = None,
    corrections: pl.DataFrame | None = None,
) -> Resolution:
    """Decide every field of the contacts given.

    Args:
        rules: of the fields that are decided.
        pushed: by source, the fields that are written there.
        versions: columns of `VERSIONS` and of the rules' fields: every version known of every record of the contacts,
            as its source told it.
        pushes: columns of `PUSHES`: all that was ever written to these records.
        decided: columns of `DECIDED`.
        own: columns of `CANDIDATES`: what we know ourselves.
        corrections: columns of `CORRECTIONS`: what was put right of these records.

    Memory: some hundred bytes a version and field.
    """
    ranks = _ranks(rules)
    cells = _cells(versions, rules)
    pushes = _canonical_pushes(pushes, versions, rules)
    corrections = _canonical_corrections(corrections, rules)
    edits = pl.concat([_edits(cells, pushes), corrections.drop("wrong")], how="diagonal")
    merged = (
        versions.sort("updated_at", "is_deleted")
        .group_by(_RECORD)
        .agg(pl.last("merged_into"))
        .filter(pl.col("merged_into") != "")
    )
    candidates, newest = _candidates(edits, ranks)
    if own is not None and not own.is_empty():
        own = own.select(*CANDIDATES).filter(pl.col("field").is_in([rule.field for rule in rules]))
        candidates, newest = pl.concat([candidates, own]), pl.concat([newest, own])
    golden = _golden(candidates.join(merged, on=_RECORD, how="anti"), ranks)
    # a value is put right until somebody has said another
    right = golden.join(corrections.select(*CANDIDATES, "wrong"), on=list(CANDIDATES), how="inner")
    wrong = right.select(
        *(pl.col("wrong").alias("value") if name == "value" else pl.col(name) for name in CANDIDATES)
    )
    golden = golden.join(
        right.select(_PLACE).unique().with_columns(is_right=True),
        on=_PLACE,
        how="left",
        maintain_order="left",
    ).with_columns(pl.col("is_right").fill_null(False))
    said = _said(golden, pl.concat([candidates, newest, wrong]), merged, rules, ranks)
    several = versions.group_by("contact_id").agg(pl.struct(_RECORD).n_unique().alias("records_count"))
    spoken = candidates.filter(pl.col("source") == OWN).select(_PLACE).unique().with_columns(is_own=True)
    said = (
        said.join(several, on="contact_id", how="left")
        .join(spoken, on=_PLACE, how="left")
        .join(decided.rename({"content_hash": "decided_hash"}), on=_PLACE, how="left")
        .filter(
            (pl.col("records_count") > 1)
            | pl.col("is_own")
            | pl.col("is_right")
            | pl.col("decided_hash").is_not_null()
        )
    )
    known = _known(versions, pushes)
    changes = _changes(said, cells, pushes, known, pushed)
    is_told = (pl.col("losers_count") > 0) | pl.col("is_right")
    decisions = (
        said.filter(is_told | pl.col("decided_hash").is_not_null())
        .with_columns(_content_hash().alias("content_hash"), _why().alias("why"))
        .filter(pl.col("decided_hash").is_null() | (pl.col("decided_hash") != pl.col("content_hash")))
        .rename({"at": "value_at"})
        .select(*DECISIONS)
        .sort(_PLACE)
    )
    return Resolution(golden.select(*CANDIDATES), decisions, changes, known)


def _ranks(rules: Sequence[Rule]) -> pl.DataFrame:
    """Of each field its rule, and of each source that it prefers the place."""
    rows = [
        (rule.field, rule.name, rule.keeps_filled, source, place)
        for rule in rules
        for place, source in enumerate([*rule.order, ""])
    ]
    return pl.DataFrame(
        rows,
        schema={
            "field": pl.String, "rule": pl.String, "keeps_filled": pl.Boolean, "preferred": pl.String,
            "rank": pl.Int64,
        },
        orient="row",
    )  # fmt: skip


def _with_rules(frame: pl.DataFrame, ranks: pl.DataFrame) -> pl.DataFrame:
    """Adds `rule`, `keeps_filled` and `rank`, which is 0 for the source that the rule prefers."""
    others = ranks.filter(pl.col("preferred") == "").drop("preferred").rename({"rank": "last_rank"})
    preferred = ranks.filter(pl.col("preferred") != "").select(
        "field", pl.col("preferred").alias("source"), "rank"
    )
    return (
        frame.join(others, on="field")
        .join(preferred, on=["field", "source"], how="left")
        .with_columns(pl.coalesce("rank", "last_rank").alias("rank"))
        .drop("last_rank")
    )


def _cells(versions: pl.DataFrame, rules: Sequence[Rule]) -> pl.DataFrame:
    """A row a version and field, of versions that are no deletions: `value`, `shape` (as compared), `before`."""
    alive = versions.filter(~pl.col("is_deleted"))
    parts = [
        alive.select(
            "contact_id", *_RECORD, "updated_at",
            pl.min_horizontal("updated_at", "loaded_at").alias("at"),
            pl.lit(rule.field).alias("field"),
            pl.col(rule.field).fill_null("").alias("value"),
            canonical(rule.field, pl.col(rule.field)).alias("shape"),
        )
        for rule in rules
    ]  # fmt: skip
    if not parts:
        parts = [
            pl.DataFrame(
                schema={
                    "contact_id": pl.Int64, "source": pl.String, "external_id": pl.String, "updated_at": UTC_MS,
                    "at": UTC_MS, "field": pl.String, "value": pl.String, "shape": pl.String,
                }
            )
        ]  # fmt: skip
    cells = (
        pl.concat(parts)
        # a version that was loaded twice counts as it was loaded first
        .sort(*_CELL, "updated_at", "at", "value")
        .unique([*_CELL, "updated_at"], keep="first", maintain_order=True)
    )
    return cells.with_columns(
        pl.col("shape").shift(1).over(_CELL).alias("before"),
        pl.col("updated_at").shift(1).over(_CELL).alias("before_at"),
    )


def _shape(rules: Sequence[Rule], column: str, otherwise: pl.Expr) -> pl.Expr:
    """`canonical` of a column by the row's field; `otherwise` for fields that no rule is about."""
    shape = otherwise
    for rule in rules:
        shape = (
            pl.when(pl.col("field") == rule.field)
            .then(canonical(rule.field, pl.col(column)))
            .otherwise(shape)
        )
    return shape


def _canonical_pushes(pushes: pl.DataFrame, versions: pl.DataFrame, rules: Sequence[Rule]) -> pl.DataFrame:
    """With `shape`; those of a record that was being made are taken for writes to each record that came of it."""
    made = (
        pushes.filter(pl.col("external_id") == "")
        .drop("external_id")
        .join(versions.select("contact_id", *_RECORD).unique(), on=["contact_id", "source"])
        .select(*PUSHES)
    )
    pushes = pl.concat([pushes.filter(pl.col("external_id") != "").select(*PUSHES), made])
    return pushes.with_columns(
        _shape(rules, "value", pl.lit("")).alias("shape"),
        (pl.col("status").is_in(["written", "created"]) & pl.col("record_at").is_not_null()).alias("is_sure"),
        (
            (pl.col("status") == "sent")
            | (pl.col("status").is_in(["written", "created"]) & pl.col("record_at").is_null())
        ).alias("is_possible"),
    )


def _edits(cells: pl.DataFrame, pushes: pl.DataFrame) -> pl.DataFrame:
    """The cells that somebody else than we wrote."""
    # the last write between a version and the one before stands there, unless somebody wrote after us
    sure = (
        pushes.filter("is_sure")
        .sort("record_at", "pushed_at")
        .select(*_CELL, pl.col("shape").alias("pushed"), pl.col("record_at").alias("written_at"))
    )
    cells = cells.sort("updated_at").join_asof(
        sure,
        left_on="updated_at",
        right_on="written_at",
        by=list(_CELL),
        strategy="backward",
        check_sortedness=False,
    )
    is_between = pl.col("written_at").is_not_null() & (
        pl.col("before_at").is_null() | (pl.col("written_at") > pl.col("before_at"))
    )
    cells = cells.with_columns(
        pl.when(is_between).then(pl.col("pushed")).otherwise(pl.col("before")).alias("before"),
        # as the CRM itself writes what we wrote
        (is_between & (pl.col("written_at") == pl.col("updated_at"))).alias("is_ours"),
    )
    empty = (
        pl.when(pl.col("field").is_in(list(OPT_OUTS.values()))).then(pl.lit("false")).otherwise(pl.lit(""))
    )
    changed = cells.filter((pl.col("shape") != pl.coalesce("before", empty)) & ~pl.col("is_ours"))
    # a write whose answer was lost is seen by its value, once: by the first version in which it appears
    lost = pushes.filter("is_possible").sort("known_at")
    if lost.is_empty() or changed.is_empty():
        return changed
    seen = lost.select(*_CELL, "shape", "known_at").join_asof(
        changed.sort("updated_at").select(*_CELL, "shape", "updated_at"),
        left_on="known_at",
        right_on="updated_at",
        by=[*_CELL, "shape"],
        strategy="forward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return changed.join(seen.drop_nulls("updated_at"), on=[*_CELL, "shape", "updated_at"], how="anti")


def _canonical_corrections(corrections: pl.DataFrame | None, rules: Sequence[Rule]) -> pl.DataFrame:
    """With `shape` and `is_right`, of the fields that rules are about; the last of each version of a record."""
    given = (
        pl.DataFrame(schema=dict(CORRECTIONS)) if corrections is None else corrections.select(*CORRECTIONS)
    )
    return (
        given.filter(pl.col("field").is_in([rule.field for rule in rules]))
        .unique([*_CELL, "updated_at"], keep="last", maintain_order=True)
        .with_columns(
            pl.col("value").str.strip_chars(),
            _shape(rules, "value", pl.lit("")).alias("shape"),
            pl.lit(True).alias("is_right"),
        )
    )


def _candidates(edits: pl.DataFrame, ranks: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """By what each record speaks for itself, and the newest edit of each, which may be another."""
    edits = _with_rules(edits, ranks).with_columns(pl.col("value").str.strip_chars())
    outs = pl.col("field").is_in(list(OPT_OUTS.values()))
    edits = edits.with_columns(pl.when(outs).then(pl.col("shape")).otherwise(pl.col("value")).alias("value"))
    is_filled = (pl.col("shape") != "") | ~pl.col("keeps_filled") | pl.col("is_right").fill_null(False)
    newest = edits.sort("updated_at").unique(_CELL, keep="last", maintain_order=True)
    own = (
        edits.with_columns(is_filled.alias("is_filled"))
        .sort("is_filled", "updated_at")
        .unique(_CELL, keep="last", maintain_order=True)
    )
    return own.select(*CANDIDATES), newest.select(*CANDIDATES)


def _golden(candidates: pl.DataFrame, ranks: pl.DataFrame) -> pl.DataFrame:
    """The best candidate of each contact and field; with `rule`, `keeps_filled` and `rank`."""
    granted = (
        candidates.filter((pl.col("source") == OWN) & (pl.col("value") == "false"))
        .group_by(_PLACE)
        .agg(pl.max("at").alias("granted_at"))
    )
    is_lifted = (pl.col("at") < pl.col("granted_at")).fill_null(False)
    candidates = (
        _with_rules(candidates, ranks)
        .join(granted, on=_PLACE, how="left")
        .with_columns(
            ((pl.col("rule") == "stricter") & (pl.col("value") == "true") & ~is_lifted).alias("is_strict"),
            ((pl.col("value") != "") | ~pl.col("keeps_filled")).alias("is_filled"),
        )
    )
    return candidates.sort(
        *_PLACE, "is_strict", "is_filled", "rank", "at", *_RECORD, "value",
        descending=[False, False, True, True, False, True, False, False, False],
    ).unique(_PLACE, keep="first", maintain_order=True)  # fmt: skip


def _said(
    golden: pl.DataFrame,
    candidates: pl.DataFrame,
    merged: pl.DataFrame,
    rules: Sequence[Rule],
    ranks: pl.DataFrame,
) -> pl.DataFrame:
    """Golden values with `losers` and what their `_why` follows from."""
    shape, other = (_shape(rules, name, pl.col(name)) for name in ("value", "other"))
    losers = (
        golden.select(*_PLACE, "value")
        .join(
            candidates.select(
                *_PLACE, *_RECORD, pl.col("value").alias("other"), pl.col("at").alias("other_at")
            ).unique(),
            on=_PLACE,
        )
        .filter(shape != other)
        .sort(*_PLACE, "other_at", *_RECORD, "other")
        .join(merged.select(*_RECORD, pl.lit(True).alias("is_merged")), on=_RECORD, how="left")
        .with_columns(
            pl.struct(
                "source", "external_id", pl.col("other").alias("value"),
                pl.col("other_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").alias("at"),
            ).struct.json_encode().alias("loser")
        )
        .group_by(_PLACE, maintain_order=True)
        .agg(
            pl.concat_str(pl.lit("["), pl.col("loser").str.join(","), pl.lit("]")).alias("losers"),
            pl.len().alias("losers_count"),
            (pl.col("other") == "").any().alias("has_empty"),
            pl.col("is_merged").any().alias("has_merged"),
        )
    )  # fmt: skip
    orders = pl.DataFrame(
        [(rule.field, ", ".join(rule.order)) for rule in rules],
        schema={"field": pl.String, "order": pl.String},
        orient="row",
    )
    preferred = ranks.filter(pl.col("preferred") == "").select("field", pl.col("rank").alias("last_rank"))
    return (
        golden.join(losers, on=_PLACE, how="left")
        .join(orders, on="field")
        .join(preferred, on="field")
        .with_columns(
            pl.col("losers").fill_null("[]"),
            pl.col("losers_count").fill_null(0),
            pl.when("is_right").then(pl.lit(RECTIFIED)).otherwise(pl.col("rule")).alias("rule"),
        )
    )


def _why() -> pl.Expr:
    """In words, why a golden value is one."""
    when = pl.col("at").dt.strftime("%Y-%m-%d %H:%M:%S UTC")
    last = pl.format("{} wrote it last, at {}", "source", when)
    return pl.concat_str(
        pl.when(pl.col("rule") == RECTIFIED)
        .then(pl.format("it was put right at {}, and {} has said nothing else since", when, "source"))
        .when(pl.col("rule") == "stricter")
        .then(
            pl.when(pl.col("value") == "true")
            .then(pl.format("{} opted them out at {}; the stricter wins", "source", when))
            .when(pl.col("source") == OWN)
            .then(pl.format("they agreed at {}, later than any opt-out", when))
            .otherwise(pl.lit("nobody opts them out"))
        )
        .when((pl.col("rank") < pl.col("last_rank")) & (pl.col("rule") == "source"))
        .then(pl.format("{} is the source of truth", "source"))
        .when(pl.col("rank") < pl.col("last_rank"))
        .then(pl.format("{} is the first of {} that has a value", "source", "order"))
        .when(pl.col("rule") != "newest")
        .then(pl.format("{} has no value; {}", "order", last))
        .otherwise(last),
        pl.when(pl.col("has_empty").fill_null(False) & pl.col("keeps_filled") & (pl.col("value") != ""))
        .then(pl.lit("; an empty value does not replace one that is there"))
        .otherwise(pl.lit("")),
        pl.when(pl.col("has_merged").fill_null(False))
        .then(pl.lit("; a record that was merged into another does not count"))
        .otherwise(pl.lit("")),
    )


def _content_hash() -> pl.Expr:
    """A number that is the same for the same decision, in every process and version of what we stand on."""
    return (
        pl.concat_str(
            "rule", "order", "value", "source", "external_id", pl.col("at").dt.epoch("ms").cast(pl.String), "losers",
            separator="\x1f",
        )
        .map_batches(_digest, return_dtype=pl.UInt64)
    )  # fmt: skip


def _digest(texts: pl.Series) -> pl.Series:
    from hashlib import blake2b

    return pl.Series(
        [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts],
        dtype=pl.UInt64,
    )


def _known(versions: pl.DataFrame, pushes: pl.DataFrame) -> pl.DataFrame:
    """Of each record its newest version, by what we read and by what we wrote, and whether it is there."""
    newest = (
        versions.sort("updated_at", "is_deleted", "loaded_at", descending=[False, False, True])
        .group_by(_RECORD)
        .agg(
            pl.last("contact_id"),
            pl.last("updated_at"),
            (~pl.last("is_deleted")).alias("is_live"),
        )
    )
    written = pushes.filter("is_sure").group_by(_RECORD).agg(pl.max("record_at"))
    gone = (
        pushes.filter(pl.col("status") == "gone").group_by(_RECORD).agg(pl.max("known_at").alias("gone_at"))
    )
    return (
        newest.join(written, on=_RECORD, how="left")
        .join(gone, on=_RECORD, how="left")
        .select(
            *_RECORD,
            "contact_id",
            pl.max_horizontal("updated_at", "record_at").alias("known_at"),
            (
                pl.col("is_live") & (pl.col("gone_at").is_null() | (pl.col("gone_at") < pl.col("updated_at")))
            ).alias("is_live"),
        )
    )


def _changes(
    said: pl.DataFrame,
    cells: pl.DataFrame,
    pushes: pl.DataFrame,
    known: pl.DataFrame,
    pushed: Mapping[str, Collection[str]],
) -> pl.DataFrame:
    """What records show that is not golden, where it is ours to write."""
    wanted = pl.DataFrame(
        [(source, field) for source, fields in pushed.items() for field in fields],
        schema={"source": pl.String, "field": pl.String},
        orient="row",
    )
    newest = cells.sort("updated_at").unique(_CELL, keep="last", maintain_order=True)
    written = (
        pushes.filter("is_sure")
        .sort("record_at", "pushed_at")
        .unique(_CELL, keep="last", maintain_order=True)
        .select(*_CELL, pl.col("shape").alias("pushed"), pl.col("value").alias("pushed_value"), "record_at")
    )
    is_written = pl.col("record_at").is_not_null() & (pl.col("record_at") >= pl.col("updated_at"))
    shown = (
        newest.join(wanted, on=["source", "field"])
        .join(known.filter("is_live").select(*_RECORD, "known_at"), on=_RECORD)
        .join(written, on=_CELL, how="left")
        .with_columns(
            pl.when(is_written).then(pl.col("pushed")).otherwise(pl.col("shape")).alias("shape"),
            pl.when(is_written).then(pl.col("pushed_value")).otherwise(pl.col("value")).alias("old"),
        )
        .select(*_PLACE, *_RECORD, "shape", "old", "updated_at", "known_at")
    )
    target = said.select(*_PLACE, "value", "rule").with_columns(pl.col("value").alias("target"))
    for field in sorted({field for fields in pushed.values() for field in fields}):
        target = target.with_columns(
            pl.when(pl.col("field") == field)
            .then(canonical(field, pl.col("value")))
            .otherwise(pl.col("target"))
            .alias("target")
        )
    refused = (
        pushes.filter(pl.col("status") == "invalid")
        .group_by(*_CELL, "shape")
        .agg(pl.max("known_at").alias("refused_at"))
        .rename({"shape": "target"})
    )
    changes = (
        shown.join(target, on=_PLACE)
        .filter(pl.col("target") != pl.col("shape"))
        # nobody loses an address for good
        .filter((pl.col("field") != "email") | (pl.col("target") != ""))
        .join(refused, on=[*_CELL, "target"], how="left")
        # what the CRM will never take is offered again when the record has changed
        .filter(pl.col("refused_at").is_null() | (pl.col("refused_at") < pl.col("updated_at")))
        .sort("source", "external_id", "field")
    )
    reasons = said.join(changes.select(_PLACE).unique(), on=_PLACE, how="semi").select(
        *_PLACE, _why().alias("why")
    )
    return changes.join(reasons, on=_PLACE, maintain_order="left").select(*CHANGES)
