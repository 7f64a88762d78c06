"""`python -m warehouse.embedded`: run the embedded server in the foreground."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from warehouse.embedded.launcher import data_path
from warehouse.embedded.process import (
    HOST,
    ServerConfig,
    configure_logging,
    require_loopback,
    run,
)
from warehouse.errors import MailhouseError
from warehouse.settings import MailhouseSettings


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve; exit code 2 and one sentence if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m warehouse.embedded",
        description="The ClickHouse engine behind ClickHouse's HTTP protocol, on this machine only.",
        epilog="Passwords come from MAILHOUSE_WAREHOUSE_PASSWORD (user default; empty: none) and "
        'MAILHOUSE_WAREHOUSE_READERS, a JSON object of read-only users: {"grafana": "its password"}.',
    )
    parser.add_argument("--path", type=Path, help="data directory (default: warehouse in MAILHOUSE_HOME)")
    parser.add_argument(
        "--port", type=int, help="port; 0 for any free one (default: MAILHOUSE_WAREHOUSE_PORT)"
    )
    parser.add_argument("--host", default=HOST, help="only the loopback interface is allowed")
    parser.add_argument("--workers", type=int, default=16, help="queries that run at once")
    parser.add_argument(
        "--memory-mb", type=int, default=0, help="limit of all queries together (default: 60 %% of RAM)"
    )
    parser.add_argument("--free-disk-mb", type=int, default=64, help="refuse inserts with less free space")
    parser.add_argument("--ends-with-stdin", action="store_true", help="stop when standard input closes")
    given = parser.parse_args(arguments)
    configure_logging()
    try:
        require_loopback(given.host)
        settings = MailhouseSettings.load()
        password = settings.warehouse_password
        run(
            ServerConfig(
                path=given.path or data_path(settings),
                port=settings.warehouse_port if given.port is None else given.port,
                owner_password=password.get_secret_value() if password else "",
                readers={
                    name: value.get_secret_value() for name, value in settings.warehouse_readers.items()
                },
                personal_readers=settings.personal_readers,
                workers=given.workers,
                memory_bytes=given.memory_mb << 20,
                free_disk_bytes=given.free_disk_mb << 20,
                ends_with_stdin=given.ends_with_stdin,
            )
        )
    except MailhouseError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
