"""Serve the gateway: `python -m gateway [--host HOST] [--port PORT]`."""

from __future__ import annotations

import argparse
import logging
import socket
import sys

import uvicorn

from gateway.app import Gateway
from gateway.clicks import Clicks
from gateway.unsubscribes import Unsubscribes
from gateway.webhooks import Webhooks
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError, SettingsError

DEFAULT_PORT = 18124


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; 2 if something is wrong that a person can mend."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="The gateway of Mailhouse.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port, 0 for any free one")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        settings = SenderSettings.load()
        with (
            _listen(options.host, options.port) as listener,
            Ledger.open(settings) as ledger,
            Warehouse.connect(settings, comment="gateway") as warehouse,
        ):
            app = Gateway(
                Unsubscribes(settings, ledger, warehouse),
                Clicks(settings, ledger, warehouse),
                Webhooks(settings, warehouse),
            )
            port = listener.getsockname()[1]
            sys.stdout.write(f"The gateway listens on http://{options.host}:{port}\n")
            sys.stdout.flush()
            # no access log: whoever has a link from it could unsubscribe its owner
            config = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=10
            )
            uvicorn.Server(config).run(sockets=[listener])
    except MailhouseError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # from here on callers wait rather than being refused, so the address may be told
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SettingsError(
            f"The gateway cannot listen on {host}:{port}: {getattr(error, 'strerror', error)}.",
            fix="End what uses the port, or choose another with --port.",
        ) from error
    return listener


if __name__ == "__main__":
    raise SystemExit(main())
