"""Deleting an erased person's records in the CRMs that hold them.

One process at a time syncs or deletes: a sync that has read a contact before it is deleted could make it once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from crm.base import Connector, CrmError, CrmUnavailableError, Kind
from crm.locks import one_at_a_time
from crm.settings import CrmSettings

_KIND: Final[Kind] = "contact"


def reach(records: Iterable[tuple[str, str]], connectors: Sequence[Connector]) -> Mapping[str, Sequence[str]]:
    """Of records of all sources those that can be deleted where they are: ids by CRM."""
    able = [one.name for one in connectors if _KIND in one.capabilities.erases]
    found: dict[str, list[str]] = {}
    for source, external_id in sorted(records):
        if source in able:
            found.setdefault(source, []).append(external_id)
    return found


def erase_records(
    settings: CrmSettings, records: Iterable[tuple[str, str]], connectors: Sequence[Connector]
) -> dict[tuple[str, str], str]:
    """Delete contacts in their CRMs; why those that are still there are, '' for those that are not. Safe to repeat.

    Records of sources that are no CRM, and of CRMs that cannot delete, are left out.

    Args:
        settings: whose home folder the lock is in.
        records: source and external id.
        connectors: the CRMs that there are.

    Raises:
        CrmError: a CRM does not answer or lets us delete nothing, after all others were asked.
    """
    known = {one.name: one for one in connectors}
    ids_by_crm = reach(records, connectors)
    results: dict[tuple[str, str], str] = {}
    troubles: list[CrmError] = []
    if not ids_by_crm:
        return results
    with one_at_a_time(settings.home, "crm_sync"):
        for name, ids in ids_by_crm.items():
            try:
                done = known[name].erase(_KIND, ids)
            except CrmError as error:
                troubles.append(error)
                continue
            results |= {
                (name, one.external_id): "" if one.is_away else one.reason or "no reason given"
                for one in done
            }
            if failed := [one for one in done if one.status == "failed"]:
                troubles.append(
                    CrmUnavailableError(
                        f"{name} has not deleted {', '.join(one.external_id for one in failed)}:"
                        f" {failed[0].reason or 'no reason given'}.",
                        fix="Run again later.",
                    )
                )
    if len(troubles) == 1:
        raise troubles[0]
    if troubles:
        raise CrmError(
            " ".join(one.message for one in troubles), fix=" ".join(one.fix for one in troubles if one.fix)
        )
    return results
