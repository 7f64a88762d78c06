"""What a template says in its merge tags, checked before anybody is written to.

The check walks jinja2's syntax tree with the shapes of what a template is given: a contact with its profile's
columns, a list of recommendations, and so on. A name that does not exist is a problem that names tag, file, line and
the nearest right name; with `| default(...)`, or asked about with `is defined`, it is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import nodes

from warehouse.errors import InputError

#: Columns of `marts.contact_profiles`, used where the warehouse is not asked.
PROFILE_COLUMNS = (
    "contact_id", "email", "first_name", "last_name", "country", "city", "timezone", "locale", "phone", "push_token",
    "created_at",
    "first_order_at", "last_order_at", "orders_count", "items_count", "revenue", "average_order_value",
    "days_since_last_order", "recency_score", "frequency_score", "monetary_score", "rfm_segment",
    "engagement_score", "messages_sent_count", "messages_opened_count", "messages_clicked_count",
    "last_opened_at", "last_clicked_at", "is_suppressed", "is_sms_suppressed", "is_push_suppressed",
    "has_marketing_consent", "has_sms_consent", "has_push_consent", "has_unusable_phone", "segments",
)  # fmt: skip

RECOMMENDATION_FIELDS = ("product_id", "name", "price", "image_url", "url", "reason")
CAMPAIGN_FIELDS = ("kind", "name", "version", "occurrence", "category", "variant")
_NOT_SUPPORTED = (
    nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.ScopedEvalContextModifier,
    nodes.EvalContextModifier,
)  # fmt: skip


class TemplateError(InputError):
    """A template cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a template.

    Attributes:
        place: `file:line`.
        tag: the name that is wrong, such as `contact.frist_name`; empty if it is no merge tag.
        message: what is wrong, without the place.
        fix: how to mend it.
    """

    place: str
    tag: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f" {self.fix}" if self.fix else "")

    def error(self, others: int = 0) -> TemplateError:
        """The problem as an error; `others` are more of them, which it only counts."""
        more = f" ({others} more in this template.)" if others else ""
        return TemplateError(f"{self.place}: {self.message}{more}", fix=self.fix)


@dataclass(frozen=True)
class Shape:
    """What is known of a value: a record of named fields, a list of items, a single value, or anything.

    Attributes:
        fields: names a record has; None if it is no record.
        item: the shape of a list's items; None if it is no list.
    """

    fields: Mapping[str, Shape] | None = None
    item: Shape | None = None


ANYTHING = Shape()


def record(names: Iterable[str]) -> Shape:
    """The shape of a record whose fields are single values."""
    return Shape(fields=dict.fromkeys(names, ANYTHING))


def context_shape(contact_columns: Iterable[str] = PROFILE_COLUMNS) -> dict[str, Shape]:
    """What every template is given, by name."""
    return {
        "contact": record(contact_columns),
        "recommendations": Shape(item=record(RECOMMENDATION_FIELDS)),
        "campaign": record(CAMPAIGN_FIELDS),
        # of its own, to be told from other names; what properties there are is the sender's to say
        "event": Shape(),
        "unsubscribe_url": ANYTHING,
        "preferences_url": ANYTHING,
        "confirm_url": ANYTHING,
        "postal_address": ANYTHING,
        "company_name": ANYTHING,
        "preheader": ANYTHING,
        "locale": ANYTHING,
        "now": ANYTHING,
    }


@dataclass
class Findings:
    """What a template's tags say.

    Attributes:
        problems: mistakes, in order.
        names: names of the context that it uses.
        certain: names of the context that it prints for everybody, outside of conditions, loops and macros.
        contact_columns: columns of the contact that it uses; None if it uses the contact as a whole.
        event_place: where it first uses the event, as `file:line`; empty if nowhere.
    """

    problems: list[Problem] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    certain: set[str] = field(default_factory=set)
    contact_columns: set[str] | None = field(default_factory=set)
    event_place: str = ""

    def merge(self, other: Findings) -> None:
        """Add what another part of the same message says."""
        self.problems += other.problems
        self.names |= other.names
        self.certain |= other.certain
        self.event_place = self.event_place or other.event_place
        if self.contact_columns is None or other.contact_columns is None:
            self.contact_columns = None
        else:
            self.contact_columns |= other.contact_columns


def check_tags(
    tree: nodes.Template,
    shapes: Mapping[str, Shape],
    place: Callable[[int], str],
    known_globals: Iterable[str] = (),
) -> Findings:
    """Check a template's syntax tree.

    Args:
        shapes: what the template is given.
        place: line of the source -> `file:line`.
        known_globals: functions that templates may call.
    """
    walker = _Walker(dict(shapes), place, set(known_globals))
    walker.block(tree.body, dict(shapes))
    return walker.findings


class _Walker:
    def __init__(self, given: dict[str, Shape], place: Callable[[int], str], known_globals: set[str]) -> None:
        self.given, self.place, self.known_globals = given, place, known_globals
        self.findings = Findings()
        self.maybe = 0  # how many conditions, loops and macros are about us
        self.is_printing = False

    def block(self, statements: Sequence[nodes.Node], scope: dict[str, Shape]) -> None:
        for statement in statements:
            self.statement(statement, scope)

    def statement(self, node: nodes.Node, scope: dict[str, Shape]) -> None:
        is_maybe = not isinstance(node, nodes.Output | nodes.With | nodes.Scope)
        self.maybe += is_maybe
        self._statement(node, scope)
        self.maybe -= is_maybe

    def _statement(self, node: nodes.Node, scope: dict[str, Shape]) -> None:
        if isinstance(node, _NOT_SUPPORTED):
            self.problem(
                node,
                "",
                f"{type(node).__name__.lower()} is not possible in a template.",
                "Use mj-include with a path.",
            )
        elif isinstance(node, nodes.Output):
            for part in node.nodes:
                if not isinstance(part, nodes.TemplateData):
                    self.is_printing = True
                    self.value(part, scope)
                    self.is_printing = False
        elif isinstance(node, nodes.If):
            self.value(node.test, scope)
            self.block(node.body, scope)
            for other in node.elif_:
                self.statement(other, scope)
            self.block(node.else_, scope)
        elif isinstance(node, nodes.For):
            items = self.value(node.iter, scope)
            inner = {**scope, "loop": ANYTHING}
            self.bind(node.target, items.item or ANYTHING, inner)
            if node.test is not None:
                self.value(node.test, inner)
            self.block(node.body, inner)
            self.block(node.else_, dict(scope))
        elif isinstance(node, nodes.Assign):
            self.bind(node.target, self.value(node.node, scope), scope)
        elif isinstance(node, nodes.AssignBlock):
            self.block(node.body, dict(scope))
            self.bind(node.target, ANYTHING, scope)
        elif isinstance(node, nodes.With):
            inner = dict(scope)
            for target, value in zip(node.targets, node.values, strict=True):
                self.bind(target, self.value(value, scope), inner)
            self.block(node.body, inner)
        elif isinstance(node, nodes.Macro):
            scope[node.name] = ANYTHING
            inner = {**scope, "varargs": ANYTHING, "kwargs": ANYTHING, "caller": ANYTHING}
            for argument in node.args:
                self.bind(argument, ANYTHING, inner)
            self.block(node.body, inner)
        elif isinstance(node, nodes.Stmt):
            for child in node.iter_child_nodes():
                if isinstance(child, nodes.Expr):
                    self.value(child, scope)
                else:
                    self.statement(child, dict(scope))
        elif isinstance(node, nodes.Expr):
            self.value(node, scope)

    def bind(self, target: nodes.Node, shape: Shape, scope: dict[str, Shape]) -> None:
        if isinstance(target, nodes.Name):
            scope[target.name] = shape
        elif isinstance(target, nodes.Tuple):
            for part in target.items:
                self.bind(part, ANYTHING, scope)

    def value(self, node: nodes.Node, scope: dict[str, Shape], *, is_lenient: bool = False) -> Shape:
        """Check an expression; `is_lenient` where a missing name is allowed. Returns the shape of its value."""
        if isinstance(node, nodes.Name):
            return self.name(node, scope, is_lenient)
        if isinstance(node, nodes.Getattr):
            return self.part(node, node.node, node.attr, scope, is_lenient)
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
                return self.part(node, node.node, node.arg.value, scope, is_lenient)
            base = self.value(node.node, scope, is_lenient=is_lenient)
            self.value(node.arg, scope)
            return base if isinstance(node.arg, nodes.Slice) else base.item or ANYTHING
        if isinstance(node, nodes.Filter):
            return self.filter(node, scope)
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            # `recommendations(n=4)` is a list as `recommendations` is
            shape = self.value(node.node, scope, is_lenient=is_lenient)
            for argument in (*node.args, *(pair.value for pair in node.kwargs)):
                self.value(argument, scope)
            return shape if shape.item is not None else ANYTHING
        if isinstance(node, nodes.Test) and node.name in ("defined", "undefined"):
            self.value(node.node, scope, is_lenient=True)
            return ANYTHING
        if isinstance(node, nodes.CondExpr):
            self.maybe += 1
            self.value(node.test, scope)
            shape = self.value(node.expr1, scope, is_lenient=is_lenient)
            if node.expr2 is not None:
                self.value(node.expr2, scope, is_lenient=is_lenient)
            self.maybe -= 1
            return shape
        for child in node.iter_child_nodes():
            self.value(child, scope)
        return ANYTHING

    def name(self, node: nodes.Name, scope: dict[str, Shape], is_lenient: bool) -> Shape:
        if node.name in scope:
            if node.name in self.given and scope[node.name] is self.given[node.name]:
                self.findings.names.add(node.name)
                if self.is_printing and not self.maybe:
                    self.findings.certain.add(node.name)
                if node.name == "event":
                    self.findings.event_place = self.findings.event_place or self.place(node.lineno)
                if node.name == "contact":
                    # reached only where it is not followed by a column
                    self.findings.contact_columns = None
            return scope[node.name]
        if node.name not in self.known_globals and not is_lenient:
            self.unknown(node, node.name, node.name, scope)
        return ANYTHING

    def part(
        self, node: nodes.Node, base: nodes.Node, name: str, scope: dict[str, Shape], is_lenient: bool
    ) -> Shape:
        if (
            isinstance(base, nodes.Name)
            and base.name == "contact"
            and scope.get("contact") is self.given.get("contact")
        ):
            shape = self.given.get("contact", ANYTHING)
            self.findings.names.add("contact")
            if self.findings.contact_columns is not None:
                self.findings.contact_columns.add(name)
        else:
            shape = self.value(base, scope, is_lenient=is_lenient)
        if shape.fields is not None:
            if name in shape.fields:
                return shape.fields[name]
            if not is_lenient:
                self.unknown(node, _spelled(node), name, shape.fields, prefix=_spelled(base) + ".")
        elif shape.item is not None and not is_lenient:
            self.problem(
                node,
                _spelled(node),
                f"{{{{ {_spelled(node)} }}}}: {_spelled(base)} is a list.",
                f"Loop over it: {{% for item in {_spelled(base)} %}} {{{{ item.{name} }}}} {{% endfor %}}.",
            )
        return ANYTHING

    def filter(self, node: nodes.Filter, scope: dict[str, Shape]) -> Shape:
        has_default = node.name in ("default", "d")
        shape = ANYTHING
        if node.node is not None:
            # a default must stand right behind the name: upper, say, cannot work on nothing
            shape = self.value(node.node, scope, is_lenient=has_default)
        for argument in (*node.args, *(pair.value for pair in node.kwargs)):
            self.value(argument, scope)
        if node.name in ("first", "last", "random", "min", "max"):
            return shape.item or ANYTHING
        if node.name in ("sort", "reverse", "list", "unique", "selectattr", "rejectattr", "select", "reject"):
            return shape
        if node.name in ("batch", "slice") and shape.item is not None:
            return Shape(item=Shape(item=shape.item))
        return ANYTHING

    def unknown(
        self, node: nodes.Node, tag: str, name: str, known: Iterable[str], *, prefix: str = ""
    ) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = (
            f"Did you mean {prefix}{near[0]}?"
            if near
            else f"Known here: {', '.join(prefix + one for one in names)}."
        )
        self.problem(
            node,
            tag,
            f"unknown merge tag {{{{ {tag} }}}}.",
            f"{hint} If it may be missing, give a default: {{{{ {tag} | default('...') }}}}.",
        )

    def problem(self, node: nodes.Node, tag: str, message: str, fix: str) -> None:
        self.findings.problems.append(Problem(self.place(node.lineno), tag, message, fix))


def _spelled(node: nodes.Node) -> str:
    """An expression as its author wrote it, as far as it is names and dots."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        return f"{_spelled(node.node)}.{node.attr}"
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return f"{_spelled(node.node)}.{node.arg.value}"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return f"{_spelled(node.node)} | {node.name}"
    return "..."
