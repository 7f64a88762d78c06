"""Which CRMs there are, and those that the settings name.

A connector is one file and one line in `_PLACES`; its module is imported when the connector is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Final

from crm.base import PLURALS, Connector, Kind
from crm.settings import CrmSettings
from warehouse.errors import SettingsError

_PLACES: Final[Mapping[str, str]] = {
    "hubspot": "crm.hubspot:HubSpot",
}


class _Lazy(Mapping[str, type[Connector]]):
    """Classes by name; looking one up imports it."""

    def __getitem__(self, name: str) -> type[Connector]:
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)

    def __contains__(self, name: object) -> bool:
        return name in _PLACES


CONNECTORS: Final[Mapping[str, type[Connector]]] = _Lazy()
"""Every CRM by its name, in the order in which they are read."""


def configured(settings: CrmSettings) -> list[type[Connector]]:
    """Classes of the CRMs that the settings name."""
    return [connector for connector in CONNECTORS.values() if connector.is_configured(settings)]


def connect(settings: CrmSettings) -> list[Connector]:
    """The CRMs that the settings name; close them after use.

    Raises:
        SettingsError: what one of them needs is missing; names the variable.
    """
    return [connector.from_settings(settings) for connector in configured(settings)]


def kinds(connector: Connector | type[Connector], settings: CrmSettings) -> list[Kind]:
    """What of a CRM is read: all that it can tell, but for what `MAILHOUSE_CRM_SKIPPED` leaves out.

    Raises:
        SettingsError: something is left out that no connector has.
    """
    known = {source_name(name, kind): name for name in CONNECTORS for kind in PLURALS}
    if strange := sorted(settings.crm_skipped - known.keys()):
        raise SettingsError(
            f"MAILHOUSE_CRM_SKIPPED names {strange[0]}, which is nothing that a CRM has.",
            fix=f"Write names such as {', '.join(sorted(known)[:4])}, with commas between them.",
        )
    return [
        kind
        for kind in PLURALS
        if kind in connector.capabilities.kinds
        and source_name(connector.name, kind) not in settings.crm_skipped
    ]


def source_name(name: str, kind: Kind) -> str:
    """What the records of a kind are called among all sources: `hubspot_contacts`."""
    return f"{name}_{PLURALS[kind]}"
