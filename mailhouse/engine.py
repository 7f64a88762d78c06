"""The warehouse for commands that end soon: the one that runs, or an embedded engine for as long as they last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from warehouse.client import Warehouse
from warehouse.embedded.launcher import start
from warehouse.schema import migrate
from warehouse.settings import MailhouseSettings


@contextlib.contextmanager
def open_warehouse(settings: MailhouseSettings, comment: str) -> Iterator[Warehouse]:
    """A connection to the warehouse of the settings; an embedded engine that does not run is started and stopped.

    Raises:
        WarehouseUnavailable: it does not answer, or cannot be started.
    """
    with contextlib.ExitStack() as stack:
        if settings.is_embedded:
            stack.enter_context(start(settings))
        warehouse = stack.enter_context(Warehouse.connect(settings, comment=comment))
        migrate(warehouse)
        yield warehouse
