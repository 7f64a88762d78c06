"""Whether an event tells by itself that a machine did it; as `dbt_project/macros/machines.sql` in the live path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson

KINDS = ("opened", "clicked", "unsubscribed")
"""Types of events whose user agent is looked at."""


@dataclass(frozen=True)
class MachineRules:
    """The patterns of user agents in force, lower case, by type of event."""

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wholes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str]]) -> MachineRules:
        """From rows of `field`, `event_type`, `pattern`; an empty type stands for all."""
        given = [(name, kind, _lower(pattern)) for name, kind, pattern in rows]

        def patterns(wanted: str, kind: str) -> list[str]:
            return [text for name, one, text in given if name == wanted and one in ("", kind)]

        return cls(
            {kind: tuple(patterns("user_agent", kind)) for kind in KINDS},
            {kind: frozenset(patterns("user_agent_is", kind)) for kind in KINDS},
        )

    def is_machine(self, type_: str, properties: str) -> bool:
        """Judge one event by its type and its properties, a JSON text."""
        if "is_machine" not in properties and (type_ not in KINDS or "user_agent" not in properties):
            # most events; keys may be spelt with escapes, which our own gateway never does
            return False
        try:
            said = orjson.loads(properties)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(said, dict):
            return False
        flag = said.get("is_machine")
        if isinstance(flag, str):
            if _lower(flag) in ("true", "1"):
                return True
        elif isinstance(flag, bool | int | float) and flag and flag == int(flag):
            return True
        agent = said.get("user_agent")
        if type_ not in KINDS or not isinstance(agent, str) or not agent:
            return False
        agent = _lower(agent)
        return agent in self.wholes.get(type_, ()) or any(part in agent for part in self.parts.get(type_, ()))


def _lower(text: str) -> str:
    """As ClickHouse's `lower`: ASCII's letters alone."""
    return (
        text.lower()
        if text.isascii()
        else text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "replace")
    )
