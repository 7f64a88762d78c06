"""Loads contacts of a CRM in a process of its own and says what that took.

    python benchmarks/lib/crm_loading.py hubspot contact

Prints one JSON object a batch, {"read": ...}, and at the end what the load took: rows by what became of them, seconds
by the clock and of the processor, peak memory in bytes, calls.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

# the folder of this file has names of ours in it: imports must not find it
sys.path[0] = str(Path(__file__).resolve().parents[2])

from crm.base import PLURALS, Kind
from crm.connectors import CONNECTORS
from crm.http import NoPace
from crm.pulling import load
from crm.settings import CrmSettings
from warehouse.client import Warehouse


def main() -> None:
    """Load, and tell."""
    name, given = sys.argv[1:3]
    kind: Kind = next(one for one in PLURALS if one == given)
    settings = CrmSettings.load()
    began, used = time.monotonic(), time.process_time()
    with (
        Warehouse.connect(settings) as warehouse,
        CONNECTORS[name].from_settings(settings, pace=NoPace()) as connector,
    ):
        result = load(
            warehouse, connector, kind, settings=settings,
            on_progress=lambda read: print(json.dumps({"read": read}), flush=True),
        )  # fmt: skip
        calls = connector.usage.by_what
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "read": result.read, "loaded": result.loaded, "duplicates": result.duplicates,
                "seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - used,
                # macOS tells bytes, Linux kilobytes
                "peak_bytes": peak if sys.platform == "darwin" else peak * 1024, "calls": calls,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
