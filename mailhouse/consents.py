"""`mailhouse consent`: what somebody agreed to with its proof, and writing down what came by phone or on paper."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from mailhouse.console import console
from warehouse.actor import own_name
from warehouse.errors import InputError

app = typer.Typer(help="What people agreed to, and the proof of it.", no_args_is_help=True)


@app.command("log")
def show_log(
    contact: Annotated[int, typer.Option("--contact", help="A contact_id.")] = 0,
    email: Annotated[str, typer.Option("--email", help="An address.")] = "",
    texts: Annotated[bool, typer.Option("--texts", help="Show the words that they were shown, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, everything.")] = False,
) -> None:
    """Show all that a person agreed to and withdrew, newest first, with what proves it."""
    from campaigns.consents import consent_log
    from warehouse.client import Warehouse
    from warehouse.settings import MailhouseSettings

    with Warehouse.connect(MailhouseSettings.load(), comment="mailhouse consent log") as warehouse:
        rows = consent_log(warehouse, contact_id=contact, email=email)
    if as_json:
        import orjson

        text = orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    if not rows:
        console.print("Nothing is on record.")
        return
    table = Table(box=None)
    for name in ("when (UTC)", "purpose", "by", "decided", "proof"):
        table.add_column(name, overflow="fold")
    for row in rows:
        word = "yes" if row["is_granted"] else "pause" if row["basis"] == "pause" else "no"
        if not row["is_current"]:
            word = f"[dim]{word}, superseded[/]"
        table.add_row(
            f"{row['occurred_at']:%Y-%m-%d %H:%M:%S}", row["purpose"], row["channel"], word,
            "\n".join(_escaped(line) for line in proof_lines(row, has_text=texts)),
        )  # fmt: skip
    console.print(table)


@app.command("record")
def record(
    email: Annotated[str, typer.Option("--email", help="Whose it is.")],
    purpose: Annotated[str, typer.Option("--purpose", help="One of content/preferences.yaml.")],
    basis: Annotated[
        str, typer.Option("--basis", help="What a yes stands on: consent, soft_opt_in, contract ...")
    ] = "",
    channel: Annotated[str, typer.Option("--channel", help="email, sms, push ...")] = "email",
    withdraw: Annotated[bool, typer.Option("--withdraw", help="They said no.")] = False,
    at: Annotated[
        str, typer.Option("--at", help="When they said so, such as 2026-06-01T14:30+02:00; else now.")
    ] = "",
    source: Annotated[str, typer.Option("--source", help="Where from, such as call_centre.")] = "manual",
    page: Annotated[str, typer.Option("--page", help="The form, paper or recording.")] = "",
    text: Annotated[str, typer.Option("--text", help="The words that they agreed to.")] = "",
    ip: Annotated[str, typer.Option("--ip", help="Their IP address, if it is known.")] = "",
    note: Annotated[str, typer.Option("--note", help="What else proves it.")] = "",
) -> None:
    """Write down what somebody decided by phone, on paper or elsewhere; a yes needs a basis."""
    from campaigns.consents import Proof, record_consent
    from campaigns.permissions import PURPOSE
    from campaigns.purposes import ConsentText, PreferencesSpec
    from warehouse.client import Warehouse
    from warehouse.settings import MailhouseSettings

    settings = MailhouseSettings.load()
    spec = PreferencesSpec.load(settings.content_dir)
    said = ConsentText(source, spec.version, purpose, channel, text) if text else None
    proof = Proof(text=said, ip=ip, page=page, recorded_by=own_name(), more={"note": note} if note else None)
    with Warehouse.connect(settings, comment="mailhouse consent record") as warehouse:
        consent_id = record_consent(
            warehouse, email=email, channel=channel, purpose=purpose, is_granted=not withdraw, basis=basis,
            now=settings.now(), occurred_at=_moment(at), source=source, proof=proof,
            purposes={PURPOSE, *spec.purposes},
        )  # fmt: skip
    console.print(f"Recorded as {consent_id}.", markup=False)


def proof_lines(row: Mapping[str, Any], *, has_text: bool = False) -> list[str]:
    """What proves a row of `campaigns.consents.consent_log`, in lines."""
    found = [f"basis {row['basis']}, through {row['source'] or 'an unnamed source'}"]
    if row["requested_at"]:
        at = f" from {row['requested_ip']}" if row["requested_ip"] else ""
        found.append(f"requested {row['requested_at']:%Y-%m-%d %H:%M:%S} UTC{at}")
    if row["confirmed_at"]:
        found.append(f"confirmed {row['confirmed_at']:%Y-%m-%d %H:%M:%S} UTC")
    for name, word in (("ip", "address"), ("user_agent", "program"), ("page", "page"),
                       ("recorded_by", "recorded by")):  # fmt: skip
        if row[name]:
            found.append(f"{word} {row[name]}")
    if row["text_version"]:
        digest = f", SHA-256 {row['text_digest'][:16]}..." if row["text_digest"] else ""
        found.append(f"text {row['text_version']}{digest}")
    known = row["properties"]
    if until := known.get("paused_until"):
        found.append(f"paused until {until}")
    if note := known.get("note"):
        found.append(str(note))
    found.append(f"consent {row['consent_id']}, to {row['email'] or row['external_id']}")
    if has_text and row["text"]:
        found += [f"> {line}" for line in row["text"].split("\n") if line]
    return found


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is no time.", fix="Write it like 2026-06-01T14:30:00+02:00.") from None


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
