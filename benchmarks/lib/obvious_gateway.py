"""The obvious event API: Starlette and Pydantic, one commit or one INSERT a request.

python benchmarks/lib/obvious_gateway.py PORT sqlite PATH      a row a request, synchronous = full, as ours
python benchmarks/lib/obvious_gateway.py PORT clickhouse URL   an INSERT a request
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import BaseModel, Field, TypeAdapter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

sys.path[0] = str(Path(__file__).resolve().parents[2])

from warehouse.client import Warehouse  # noqa: E402 - the path must be set right first
from warehouse.settings import WarehouseAddress  # noqa: E402


class Event(BaseModel):
    """What is posted."""

    type: str = Field(pattern=r"^[a-z_]+\.[a-z_]+$")
    event_id: str
    email: str
    properties: dict[str, Any] = {}


def main() -> None:
    """Serve."""
    port, how, where = sys.argv[1:]
    adapter: TypeAdapter[Event | list[Event]] = TypeAdapter(Event | list[Event])
    lock = threading.Lock()
    if how == "sqlite":
        connection = sqlite3.connect(where, check_same_thread=False, isolation_level=None)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("create table events (event_id text primary key, body text)")

        def store(events: list[Event]) -> None:
            with lock:
                connection.execute("begin immediate")
                connection.executemany(
                    "insert or ignore into events values (?, ?)",
                    [(e.event_id, e.model_dump_json()) for e in events],
                )
                connection.execute("commit")
    else:
        client = Warehouse(WarehouseAddress.parse(where)).client

        def store(events: list[Event]) -> None:
            now = datetime.now(UTC)
            rows = [[e.event_id, e.type, "web", e.email, now, now, json.dumps(e.properties)] for e in events]
            names = ["event_id", "type", "source", "email", "occurred_at", "received_at", "properties"]
            client.insert("raw.events", rows, column_names=names)

    async def post(request: Request) -> JSONResponse:
        value = adapter.validate_json(await request.body())
        await run_in_threadpool(store, value if isinstance(value, list) else [value])
        return JSONResponse({"ok": True}, status_code=202)

    app = Starlette(routes=[Route("/v1/events", post, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
