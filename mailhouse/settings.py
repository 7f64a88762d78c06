"""Settings of the command itself: the ports of what `mailhouse up` starts."""

from __future__ import annotations

from warehouse.settings import MailhouseSettings


class CommandSettings(MailhouseSettings):
    """Ports on the loopback interface.

    Attributes:
        dagster_port: the Dagster UI.
        gateway_port: the gateway, where unsubscribe links lead.
    """

    dagster_port: int = 3000
    gateway_port: int = 18124
