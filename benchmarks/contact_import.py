"""What it costs to import a file of contacts: python benchmarks/contact_import.py [--quick] [--check].

A file of 1,000,000 rows (100,000 with `--quick`) with twelve columns is made up, with slips, role accounts, throwaway
addresses, rows that are no addresses and people who are there twice, of each a known number. It is imported into an
empty embedded engine with consent, then once more with a tenth of the rows changed, as somebody would who imports an
export every week. Beside it stands what one would write first, on a sample of the same rows: a loop over
`csv.DictReader` with `email-validator`, lists of role accounts and throwaway domains, and a set of addresses seen; it
judges rows, and loads none.

Times are of the processor: ours and the engine's; divided by two they are those of two idle cores. The wall clock
stands beside them. Memory is the importing process's most.

`--check` fails if the counts are not those that were made up, if an import costs more than two cores have in 60 seconds
(10 with `--quick`, what is done once included), if it takes more than 1 GB, or if judging is not cheaper than the
loop.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# the folder of this file has a name of ours in it: `import warehouse` must not find that
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.table import Table

from benchmarks.lib.dbt_process import cpu_seconds
from benchmarks.lib.fresh_process import in_process
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

ROWS, QUICK_ROWS, SAMPLE = 1_000_000, 100_000, 20_000
SECONDS, QUICK_SECONDS, CORES, MEGABYTES = 60.0, 10.0, 2, 1_000
HEADER = (
    "CustomerID", "E-mail", "Vorname", "Nachname", "Country", "City", "Phone", "Newsletter", "Signup date", "Interests",
    "Language", "Timezone",
)  # fmt: skip
FIRST = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Eva",
    "Felix",
    "Greta",
    "Hans",
    "Ida",
    "Jan",
    "Karl",
    "Lena",
    "Max",
    "Nina",
    "Otto",
    "Paul",
    "Rosa",
    "Sven",
    "Tina",
    "Uwe",
]
LAST = ["Meyer", "Smith", "Rossi", "Garcia", "Dubois", "Novak", "Jansen", "Silva", "Kim", "Brown"]
DOMAINS = (
    ["gmail.com"] * 30 + ["hotmail.com"] * 12 + ["yahoo.com"] * 10 + ["outlook.com"] * 8 + ["gmx.de"] * 6
    + ["web.de"] * 4 + ["icloud.com"] * 5
)  # fmt: skip


def write(path: Path, rows: int, *, changed: bool = False) -> dict[str, int]:
    """Make a file up; how many rows of each kind there are. `changed` moves a tenth of the people to another town."""
    rng = random.Random(7)
    counts: dict[str, int] = dict.fromkeys(
        ("good", "typo", "syntax", "role_account", "disposable", "repeated"), 0
    )
    last = ""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(HEADER)
        for number in range(rows):
            first, family = rng.choice(FIRST), rng.choice(LAST)
            domain = rng.choice(DOMAINS) if rng.random() < 0.7 else f"firma{rng.randrange(30_000)}.com"
            name = f"{first.lower()}.{family.lower()}{number}"
            address, kind = f"{name}@{domain}", "good"
            match number % 200:
                case 3:
                    address, kind = f"{name}@gmaill.com", "typo"
                case 53:
                    address, kind = f"{name}.{domain}", "syntax"
                case 103:
                    address, kind = f"info@office{number}.com", "role_account"
                case 153:
                    address, kind = f"{name}@mailinator.com", "disposable"
                case 199:
                    address, kind = last.upper(), "repeated"
                case _:
                    last = address
            counts[kind] += 1
            city = "Ulm" if changed and number % 10 == 0 else "Bonn"
            writer.writerow(
                [
                    number, address, first, family, rng.choice(("DE", "GB", "FR", "United Kingdom")), city,
                    f"+49 151 {rng.randrange(10**8):08}", rng.choice(("yes", "yes", "no", "")),
                    f"2026-03-0{rng.randrange(1, 10)} 10:00:00Z", "news;sport", "de-DE", "Europe/Berlin",
                ]
            )  # fmt: skip
    return counts


def imported(path: Path, home: Path, port: int, *, is_dry: bool = False) -> dict[str, Any]:
    """Import a file in this process: the report, processor and wall seconds, megabytes."""
    from crm.importing import ConsentBasis, ImportOptions, plan_import, run_import

    settings = MailhouseSettings(home=home, warehouse_port=port)
    consent = ConsentBasis("consent", text_version="form-1", given_at=datetime(2026, 6, 1, tzinfo=UTC))
    with Warehouse.connect(settings, comment="benchmark") as warehouse:
        warehouse.value("select 1")
        before, wall = time.process_time(), time.perf_counter()
        plan = plan_import(path, ImportOptions(consent=consent, imported_by="benchmark"))
        report = run_import(
            warehouse, plan, home=home, content_dir=home / "content", now=datetime.now(UTC),
            report_path=home / "refused.csv", is_dry=is_dry,
        )  # fmt: skip
        return {
            "rows": report.rows, "new": report.new, "changed": report.changed, "unchanged": report.unchanged,
            "repeated": report.repeated, "refused": dict(report.refused), "consents": report.consents,
            "own": time.process_time() - before, "wall": time.perf_counter() - wall,
            "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }  # fmt: skip


def judged(path: Path) -> dict[str, Any]:
    """Our rules over the addresses of a sample: processor seconds, and which are taken."""
    import polars as pl

    from crm.addresses import AddressJudge

    texts = pl.read_csv(path, infer_schema=False)["E-mail"]
    # lists and tables are made on the first call, as they are in an import
    before = time.process_time()
    verdict = AddressJudge().judge(texts)
    return {"seconds": time.process_time() - before, "taken": verdict["email"].is_not_null().to_list()}


def looped(path: Path) -> dict[str, Any]:
    """What one would write first: a row at a time."""
    from disposable_email_domains import blocklist
    from email_validator import EmailNotValidError, validate_email

    roles = {"info", "sales", "support", "admin", "contact", "office", "webmaster", "postmaster"}
    seen: set[str] = set()
    taken: list[bool] = []
    before = time.process_time()
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            try:
                found = validate_email(row["E-mail"], check_deliverability=False)
            except EmailNotValidError:
                taken.append(False)
                continue
            address = found.normalized.lower()
            is_good = found.ascii_domain not in blocklist and found.local_part.lower() not in roles
            taken.append(is_good)
            seen.add(address)
    return {"seconds": time.process_time() - before, "taken": taken}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    options = parser.parse_args()
    rows = QUICK_ROWS if options.quick else ROWS
    misses: list[str] = []
    console = Console()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mailhouse-import-") as folder:
        home = Path(folder)
        settings = MailhouseSettings(home=home, warehouse_port=free_port())
        counts = write(home / "people.csv", rows)
        write(home / "later.csv", rows, changed=True)
        write(home / "sample.csv", SAMPLE)
        with launcher.start(settings) as server:
            with Warehouse.connect(settings) as warehouse:
                migrate(warehouse)
            for name, file in (("first import", "people.csv"), ("a tenth changed", "later.csv")):
                engine = cpu_seconds(server.pid)
                result = in_process(imported, home / file, home, settings.warehouse_port)
                result["engine"] = cpu_seconds(server.pid) - engine
                result["two_cores"] = (result["own"] + result["engine"]) / CORES
                results[name] = result
        ours, theirs = in_process(judged, home / "sample.csv"), in_process(looped, home / "sample.csv")
    agreed = sum(a == b for a, b in zip(ours["taken"], theirs["taken"], strict=True))
    table = Table(title=f"{rows:,} rows, twelve columns", title_justify="left", box=None)
    for heading in (
        "",
        "new",
        "changed",
        "unchanged",
        "refused",
        "ours",
        "engine",
        "two cores",
        "wall",
        "memory",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in results.items():
        table.add_row(
            name, f"{result['new']:,}", f"{result['changed']:,}", f"{result['unchanged']:,}",
            f"{sum(result['refused'].values()):,}", f"{result['own']:.1f} s", f"{result['engine']:.1f} s",
            f"{result['two_cores']:.1f} s", f"{result['wall']:.1f} s", f"{result['megabytes']:.0f} MB",
        )  # fmt: skip
        if result["two_cores"] > (QUICK_SECONDS if options.quick else SECONDS):
            misses.append(f"{name}: {result['two_cores']:.1f} s of two cores for {rows:,} rows")
        if result["megabytes"] > MEGABYTES:
            misses.append(f"{name}: {result['megabytes']:.0f} MB")
    console.print(table)
    first, again = results["first import"], results["a tenth changed"]
    refused = {kind: counts[kind] for kind in ("typo", "syntax", "role_account", "disposable")}
    if (first["new"], first["repeated"], first["refused"]) != (counts["good"], counts["repeated"], refused):
        misses.append(f"counts: {first}, where {counts} were made up")
    if again["new"] or again["changed"] + again["unchanged"] != counts["good"] or not again["changed"]:
        misses.append(f"counts of the second import: {again}")
    own, other = ours["seconds"] / SAMPLE * 1e6, theirs["seconds"] / SAMPLE * 1e6
    console.print(
        f"Judging an address: {own:.1f} µs by columns, {other:.1f} µs in a loop with email-validator, which needs "
        f"{other * 1e-6 * ROWS:.0f} s a million; on {agreed / SAMPLE:.1%} of {SAMPLE:,} rows they agree (the loop "
        "takes slips)."
    )
    if own >= other:
        misses.append(f"judging takes {own:.1f} µs, the loop {other:.1f}")
    for miss in misses:
        console.print(f"missed: {miss}", markup=False)
    print(
        json.dumps(
            {"benchmark": "contact_import", "rows": rows, "imports": results, "judge_us": own, "loop_us": other,
             "agreement": agreed / SAMPLE, "misses": misses}
        )
    )  # fmt: skip
    if options.check and misses:
        sys.exit(1)


if __name__ == "__main__":
    main()
