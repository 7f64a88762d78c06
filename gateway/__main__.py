"""Serve the gateway: `python -m gateway [--host HOST] [--port PORT]`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import uvicorn

from gateway.api import EventApi, JourneyMoves
from gateway.app import Gateway
from gateway.appending import Appender
from gateway.clicks import Clicks
from gateway.consuming import BatchHandler, Consumer
from gateway.events import Event
from gateway.journeys import Moves
from gateway.leading import lead_of
from gateway.metrics import Metrics
from gateway.preferences import PreferenceCentre
from gateway.seen import LedgerSeenStore
from gateway.settings import GatewaySettings
from gateway.streams import EventStream, StreamError, open_stream
from gateway.subscriptions import Subscriptions
from gateway.triggers import TriggerHandler
from gateway.unsubscribes import Unsubscribes
from gateway.webhooks import Webhooks
from senders.ledger import Ledger
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError, SettingsError

DEFAULT_PORT = 18124
_SWITCH_SECONDS = 0.0005
_FINISH_SECONDS = 10  # for requests under way, and again for batches


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
        settings = GatewaySettings.load()
        with _listen(options.host, options.port) as listener, gateway(settings) as app:
            settle_process()
            port = listener.getsockname()[1]
            sys.stdout.write(f"The gateway listens on http://{options.host}:{port}\n")
            sys.stdout.flush()
            # no access log: whoever has a link from it could unsubscribe its owner
            config = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, http="httptools", loop="uvloop",
                lifespan="off", timeout_graceful_shutdown=_FINISH_SECONDS,
            )  # fmt: skip
            uvicorn.Server(config).run(sockets=[listener])
    except MailhouseError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def settle_process() -> None:
    """Make the process quick to answer: messages wait for no thread's turn, and for no look through all that it has."""
    # a thread that waited for the disk or the warehouse goes on soon, whatever the others have to compute
    sys.setswitchinterval(_SWITCH_SECONDS)
    # looking for garbage among all modules takes a tenth of a second; what events leave behind is freed by counting
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@contextlib.contextmanager
def gateway(
    settings: GatewaySettings,
    *,
    handlers: Sequence[BatchHandler] | None = None,
    journeys: JourneyMoves | None = None,
) -> Iterator[Gateway]:
    """The application with all behind it, running; finishes batches at the end.

    Args:
        handlers: act on events, in this order; left out, triggers.
        journeys: takes requests for journeys; left out, `gateway.journeys.Moves`.

    Raises:
        MailhouseError: ledger or stream cannot be opened.
    """
    metrics = Metrics()
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(settings))
        # connections of their own: a slow page must not hold up the consumer
        warehouse = stack.enter_context(Warehouse.connect(settings, comment="gateway"))
        loading = stack.enter_context(Warehouse.connect(settings, comment="gateway consumer"))
        triggers: TriggerHandler | None = None
        if handlers is None:
            judging = stack.enter_context(Warehouse.connect(settings, comment="gateway triggers"))
            triggers = stack.enter_context(
                TriggerHandler(settings, ledger, judging, observe=metrics.message_seconds.observe)
            )
            handlers = [triggers]
        stream = open_stream(settings, ledger)
        stack.callback(stream.close)
        metrics.watch_depth(lambda: _depth(stream))
        consumer = Consumer(stream, loading, lead_of(settings, ledger), handlers, metrics, now=settings.now)
        consumer.start()
        stack.callback(consumer.stop, seconds=_FINISH_SECONDS)
        appender = Appender(stream, metrics, limit=settings.gateway_stream_limit)
        appender.start()
        # before the consumer stops, so that it may still take what was appended last
        stack.callback(appender.stop)
        changed = triggers.live.changed_permissions if triggers is not None else None

        def tell(events: Sequence[Event]) -> None:
            # the warehouse has it
            if changed is not None:
                changed()
            appender.append_now(events)

        unsubscribes = Unsubscribes(settings, ledger, warehouse, tell)
        centre = PreferenceCentre(settings, warehouse, unsubscribes, changed=changed)
        subscriptions = Subscriptions(settings, centre, partial(appender.append_now, is_promised=False))
        yield Gateway(
            EventApi(
                settings,
                appender,
                metrics,
                journeys=journeys or Moves(settings.content_dir / "journeys", warehouse),
                subscriptions=subscriptions,
            ),
            unsubscribes,
            centre,
            Clicks(settings, ledger),
            Webhooks(settings, appender.append_now, metrics, seen=LedgerSeenStore(ledger)),
            stream,
            appender,
            metrics,
            subscriptions,
        )


def _depth(stream: EventStream) -> float:
    try:
        return float(stream.depth())
    except StreamError:
        return float("nan")


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
