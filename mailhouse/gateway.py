"""`mailhouse gateway`: keys of the event API, and the statements by which ClickHouse reads Kafka."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mailhouse.console import console

app = typer.Typer(help="Keys of the event API; reading Kafka.", no_args_is_help=True)


@app.command("key")
def key(
    name: Annotated[str, typer.Argument(help="Who will use it, such as website: the source of its events.")],
    per_second: Annotated[
        float, typer.Option("--per-second", min=0, help="Events a second that it may post; 0: no limit.")
    ] = 0.0,
) -> None:
    """Make an API key: shown once; only its digest goes into the settings."""
    import re

    from gateway.keys import make_key
    from gateway.settings import GatewaySettings
    from warehouse.errors import InputError

    settings = GatewaySettings.load()
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise InputError(
            f"{name!r} is no name of a key.", fix="Take small letters, digits and _, a letter first."
        )
    if name in settings.gateway_keys:
        raise InputError(
            f"There is a key {name} already.",
            fix="Take another name, or delete it from MAILHOUSE_GATEWAY_KEYS.",
        )
    made, digest = make_key()
    kept = {
        known: one.model_dump(exclude_defaults=True) if one.per_second or one.burst else one.hash
        for known, one in settings.gateway_keys.items()
    }
    kept[name] = {"hash": digest, "per_second": per_second} if per_second else digest
    console.print(f"The key, which is shown this once: {made}", markup=False, soft_wrap=True, highlight=False)
    console.print("Put this into .env, and start the gateway again:\n")
    console.print(
        f"MAILHOUSE_GATEWAY_KEYS='{json.dumps(kept)}'", markup=False, soft_wrap=True, highlight=False
    )


@app.command("kafka")
def kafka(
    brokers: Annotated[str, typer.Argument(help="host:port, several with commas.")],
    topic: Annotated[str, typer.Argument(help="The topic with events, one JSON object a message.")],
    group: Annotated[str, typer.Option("--group", help="Kafka's consumer group.")] = "mailhouse",
    consumers: Annotated[int, typer.Option("--consumers", min=1, max=64, help="Readers at once.")] = 1,
) -> None:
    """Print the statements that make a ClickHouse server read events from Kafka; run them on that server."""
    from gateway.kafka import statements
    from gateway.settings import GatewaySettings

    cluster = GatewaySettings.load().cluster
    for statement in statements(brokers, topic, group=group, consumers=consumers):
        console.print(cluster.ddl(statement.strip()) + ";\n", markup=False, soft_wrap=True, highlight=False)
