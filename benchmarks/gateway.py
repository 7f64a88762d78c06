"""What the gateway takes, and how soon a trigger's message is out.

    python benchmarks/gateway.py             1,000,000 contacts, 20 s for each figure: some five minutes
    python benchmarks/gateway.py --quick     5 s for each figure, 100,000 contacts
    python benchmarks/gateway.py --check     exit code 1 unless every target holds
    python benchmarks/gateway.py --only events | triggers

1. **Events a second**, acknowledged, which means on disk, while the embedded engine runs and the consumer loads them:
   posted one by one over 64 connections, and 100 a request over 8. Beside it the obvious: Starlette and Pydantic with
   one SQLite commit a request, and with one INSERT a request. `drained` is how long after the last answer `raw.events`
   had all of them, each once.
2. **From event to message**: 50 triggers listen to the same type of event and one of them fires for each; contacts,
   identities and profiles are made inside ClickHouse; an SMTP server notes when it has each message. Events are due at
   a fixed rate, and the time counts from when each was due.

Clients and servers share the machine's cores. The last line is one JSON object with all figures.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.table import Table

from benchmarks.lib.newsletter import marts
from gateway.keys import make_key
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.errors import MailhouseError
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings

EVENTS_A_SECOND = 5_000
P99_MS = {10: 100.0, 100: 100.0, 1_000: 500.0}
TRIGGERS = 50
_LIB = Path(__file__).parent / "lib"
_TEMPLATE = """<mjml><mj-body><mj-section><mj-column>
  <mj-text>{{ contact.first_name | default('You') }}, your cart is waiting.</mj-text>
  <mj-text>{{ company_name }}, {{ postal_address }} <a href="{{ unsubscribe_url }}">Unsubscribe</a></mj-text>
</mj-column></mj-section></mj-body></mjml>
"""


class BenchmarkError(MailhouseError):
    """The benchmark cannot be run here."""


@contextmanager
def process(arguments: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A child that is stopped at the end; its process id."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=output, env={**os.environ, **(environment or {})},
            cwd=sys.path[0],
        )  # fmt: skip
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def await_port(port: int, log: Path) -> None:
    """Wait until something listens."""
    import socket

    until = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > until:
            raise BenchmarkError(f"A server does not start:\n{log.read_text()[-2000:]}", fix="See above.")
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def our_gateway(settings: MailhouseSettings, digest: str, **more: str) -> Iterator[tuple[int, int]]:
    """The real one; its port and process id."""
    port, log = free_port(), settings.home / "gateway.log"
    environment = {
        "MAILHOUSE_HOME": str(settings.home),
        "MAILHOUSE_CONTENT_DIR": str(settings.content_dir),
        "MAILHOUSE_WAREHOUSE_PORT": str(settings.warehouse_port),
        "MAILHOUSE_GATEWAY_KEYS": json.dumps({"web": digest}),
        "MAILHOUSE_GATEWAY_STREAM_LIMIT": "2000000", **more,
    }  # fmt: skip
    with process(["-m", "gateway", "--port", str(port)], log, environment) as pid:
        await_port(port, log)
        yield port, pid


def post(port: int, key: str, *arguments: str) -> dict[str, Any]:
    """Post from a process of its own; what that says."""
    done = subprocess.run(
        [sys.executable, str(_LIB / "posting.py"), str(port), key, *arguments], check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def measure_events(settings: MailhouseSettings, seconds: float, console: Console) -> dict[str, Any]:
    """Events acknowledged a second: ours and the obvious."""
    key, digest = make_key()
    ways = {"single": ("64", "1"), "batched": ("8", "100")}
    found: dict[str, Any] = {}
    with Warehouse.connect(settings, comment="benchmark") as warehouse:
        migrate(warehouse)
        for name, (connections, batch) in ways.items():
            warehouse.execute("truncate table raw.events")
            with our_gateway(settings, digest) as (port, pid):
                post(port, key, "page.viewed", "closed", "1", connections, batch)
                wait_for_quiet(warehouse)
                before, rows = cpu_seconds(pid), warehouse.value("select count() from raw.events")
                said = post(port, key, "page.viewed", "closed", str(seconds), connections, batch)
                acknowledged = time.monotonic()
                wanted = rows + said["accepted"]
                while (stored := warehouse.value("select count() from raw.events")) < wanted:
                    if time.monotonic() - acknowledged > 300:
                        raise BenchmarkError(
                            f"{stored} of {wanted} events arrived.", fix="See the gateway's log."
                        )
                    time.sleep(0.05)
                drained = time.monotonic() - acknowledged
                used = cpu_seconds(pid) - before
                once = warehouse.value("select uniqExact(event_id) = count() from raw.events")
                if not once or stored != wanted:
                    raise BenchmarkError(f"{stored} rows for {wanted} events.", fix="Something is doubled.")
            found[name] = {
                "rate": round(said["accepted"] / said["seconds"]), "p50_ms": round(said["p50_ms"], 1),
                "p99_ms": round(said["p99_ms"], 1), "drained_s": round(drained, 2),
                "cpu_microseconds": round(1e6 * used / max(1, said["accepted"]), 1), "statuses": said["statuses"],
            }  # fmt: skip
            console.print(f"  ours, {name}: {found[name]}")
        for name, (connections, batch) in ways.items():
            for how in ("sqlite", "clickhouse"):
                warehouse.execute("truncate table raw.events")
                port, log = free_port(), settings.home / "obvious.log"
                where = settings.warehouse.url
                if how == "sqlite":
                    where = str(settings.home / f"obvious-{name}.db")
                with process([str(_LIB / "obvious_gateway.py"), str(port), how, where], log):
                    await_port(port, log)
                    post(port, key, "page.viewed", "closed", "1", connections, batch)
                    said = post(port, key, "page.viewed", "closed", str(min(seconds, 10)), connections, batch)
                if set(said["statuses"]) != {"202"}:
                    raise BenchmarkError(
                        f"The obvious one fails: {said['statuses']}.", fix=log.read_text()[-1000:]
                    )
                found[f"obvious_{how}_{name}"] = round(said["accepted"] / said["seconds"])
                console.print(
                    f"  the obvious with {how}, {name}: {found[f'obvious_{how}_{name}']:,} a second"
                )
    return found


def wait_for_quiet(warehouse: Warehouse) -> None:
    """Wait until no more events arrive."""
    last = -1
    while (count := warehouse.value("select count() from raw.events")) != last:
        last = count
        time.sleep(0.5)


def make_home(settings: MailhouseSettings, contacts: int) -> None:
    """Triggers, a template, contacts with profiles, and what leads to them."""
    content = settings.content_dir
    for name in ("triggers", "templates", "campaigns", "journeys"):
        (content / name).mkdir(parents=True, exist_ok=True)
    (content / "templates" / "reminder.mjml").write_text(_TEMPLATE)
    for number in range(TRIGGERS):
        (content / "triggers" / f"cart_{number}.yaml").write_text(
            f"trigger: cart_{number}\n"
            "event: cart.updated\n"
            f"when: event.number = {number} and event.cart_value > 50 and engagement_score >= 0\n"
            "cooldown: none\n"
            "send: {template: reminder, category: transactional, subject: Your cart is waiting}\n"
        )
    with Warehouse.connect(settings, comment="benchmark") as warehouse:
        migrate(warehouse)
        for statement in marts(contacts):
            warehouse.execute(statement)
        for statement in (
            # the first events are for the first contacts, whose ids are hashes, as dbt makes them: they lie anywhere
            "rename table marts.contact_profiles to marts.made_profiles",
            """
            create table marts.contact_profiles engine = MergeTree order by contact_id
            settings index_granularity = 256, min_compress_block_size = 4096 as
            select toInt64(bitShiftRight(sipHash64(email), 1)) as contact_id, * except (contact_id) from (
                select * except (email),
                    concat('person', toString(intDiv(contact_id - 7, 1000003)), '@example.com') as email,
                    now64(3, 'UTC') as events_through, now64(3, 'UTC') as messages_through
                from marts.made_profiles
            )
            """,
            "drop table marts.made_profiles sync",
            # a message to an address that bounces would not go
            "truncate table marts.suppressions",
            "create database if not exists intermediate",
            "drop table if exists intermediate.int_contacts__identified sync",
            """
            create table intermediate.int_contacts__identified engine = MergeTree order by identity_id
            settings index_granularity = 256 as
            select toInt64(bitShiftRight(sipHash64('', '', email), 1)) as identity_id, contact_id,
                contact_id as named_contact_id, contact_id as own_contact_id,
                0::Int64 as message_contact_id, 0::Int64 as previous_contact_id,
                'email'::LowCardinality(String) as kind, ''::LowCardinality(String) as source, email as identifier,
                true as is_known_to_crm,
                toDateTime64(0, 3, 'UTC') as moved_at
            from marts.contact_profiles
            """,
        ):
            warehouse.execute(statement)


def measure_triggers(
    settings: MailhouseSettings, seconds: float, contacts: int, console: Console
) -> dict[str, Any]:
    """Milliseconds from an event to its message, by rate."""
    make_home(settings, contacts)
    key, digest = make_key()
    found: dict[str, Any] = {}
    smtp, arrivals, log = free_port(), settings.home / "arrivals", settings.home / "sink.log"
    arrivals.touch()
    with process([str(_LIB / "clocked_sink.py"), str(smtp), str(arrivals)], log):
        await_port(smtp, log)
        for rate, limit in P99_MS.items():
            arrivals.write_text("")
            for path in settings.home.glob("ledger*.db*"):
                path.unlink()
            with our_gateway(
                settings, digest, MAILHOUSE_PROVIDER="smtp", MAILHOUSE_SMTP_URL=f"smtp://127.0.0.1:{smtp}?tls=none",
                MAILHOUSE_FROM_EMAIL="shop@example.com", MAILHOUSE_COMPANY_NAME="Shop Ltd",
                MAILHOUSE_POSTAL_ADDRESS="1 High Street, York",
            ) as (port, _):  # fmt: skip
                # the first event compiles templates and opens connections
                post(port, key, "cart.updated", "open", "1", "16", "1")
                time.sleep(8)
                arrivals.write_text("")
                with Warehouse.connect(settings) as warehouse:
                    # the warm-up was for contact 0, who gets nothing again for a while
                    warehouse.execute("truncate table raw.events")
                said = post(port, key, "cart.updated", "open", str(seconds), "64", str(rate))
                due = {f"person{number}@example.com": at for number, at in said["due"].items()}
                until = time.monotonic() + 60
                while True:
                    lines = [line.split() for line in arrivals.read_text().splitlines()]
                    came = {address: float(at) for address, at in lines if address in due}
                    if len(came) >= len(due) - 1 or time.monotonic() > until:
                        break
                    time.sleep(0.2)
            delays = sorted(1000 * (at - due[address]) for address, at in came.items())
            if len(lines) != len(came):
                raise BenchmarkError("Somebody got a message twice.", fix="See the sink's notes.")
            if not delays:
                raise BenchmarkError(
                    "No message came.", fix=(settings.home / "gateway.log").read_text()[-2000:]
                )
            found[str(rate)] = {
                "events": len(due), "messages": len(delays), "p50_ms": round(delays[len(delays) // 2], 1),
                "p95_ms": round(delays[int(len(delays) * 0.95)], 1),
                "p99_ms": round(delays[int(len(delays) * 0.99)], 1),
                "limit_ms": limit,
            }  # fmt: skip
            console.print(f"  {rate} events a second: {found[str(rate)]}")
    return found


def judge(found: dict[str, Any], console: Console) -> bool:
    """Print figures beside targets; whether all hold."""
    targets: list[tuple[str, float, float, str]] = []
    if events := found.get("events"):
        best = max(events["obvious_sqlite_single"], events["obvious_clickhouse_single"])
        targets += [
            ("events a second, 100 a request", events["batched"]["rate"], EVENTS_A_SECOND, "at least"),
            ("one a request, of the obvious", round(events["single"]["rate"] / best, 2), 1.0, "at least"),
            ("drained after the last answer, seconds", events["batched"]["drained_s"], 10.0, "at most"),
        ]  # fmt: skip
    for rate, one in found.get("triggers", {}).items():
        targets.append(
            (f"event to message at {rate} a second, p99 in ms", one["p99_ms"], one["limit_ms"], "at most")
        )
        targets.append(
            (f"messages of {one['events']} events", one["messages"], one["events"] - 1, "at least")
        )
    table = Table("target", "measured", "allowed", "")
    holds = True
    for name, value, bound, kind in targets:
        good = value >= bound if kind == "at least" else value <= bound
        holds = holds and good
        table.add_row(name, f"{value:,}", f"{kind} {bound:,g}", "" if good else "MISSED")
    console.print(table)
    return holds


def main() -> None:
    """Parse arguments, measure, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 s for each figure, 100,000 contacts")
    parser.add_argument("--check", action="store_true", help="exit code 1 unless every target holds")
    parser.add_argument("--only", choices=["events", "triggers"], help="half of it")
    parser.add_argument("--seconds", type=float, help="for each figure")
    given = parser.parse_args()
    console = Console(stderr=True)
    seconds = given.seconds or (5.0 if given.quick else 20.0)
    found: dict[str, Any] = {"benchmark": "gateway", "seconds": seconds}
    try:
        with tempfile.TemporaryDirectory(prefix="mailhouse-gateway-") as folder:
            home = Path(folder)
            settings = MailhouseSettings(
                home=home, content_dir=home / "content", warehouse_port=free_port(), warehouse_url=None
            )
            with launcher.start(settings):
                if given.only != "triggers":
                    found["events"] = measure_events(settings, seconds, console)
                if given.only != "events":
                    contacts = 100_000 if given.quick else 1_000_000
                    found["triggers"] = measure_triggers(settings, seconds, contacts, console)
    except MailhouseError as error:
        console.print(f"[red]{error}[/]")
        sys.exit(2)
    holds = judge(found, console)
    print(json.dumps({**found, "holds": holds}))
    if given.check and not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
