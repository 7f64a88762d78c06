"""What the YAML files beside this one may say: views with their figures, and dashboards of charts over them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

COLUMNS = 12
"""A dashboard is so many columns wide."""


class SpecError(Exception):
    """A file beside this one is wrong; the message names it."""


class Spec(BaseModel):
    """Base of all specs: what is not known is an error."""

    model_config = ConfigDict(extra="forbid")


class Metric(Spec):
    """A figure: one column's sum, the share of one column's sum in another's, or any aggregate in SQL.

    `format` is a D3 format: `,d`, `.1%`, `,.2f`.
    """

    title: str
    sum: str = ""
    share: tuple[str, str] | None = None
    sql: str = ""
    format: str = ",d"
    description: str = ""

    @model_validator(mode="after")
    def _say_one_thing(self) -> Self:
        if sum(map(bool, (self.sum, self.share, self.sql))) != 1:
            raise ValueError("give one of sum, share and sql")
        return self

    @property
    def columns(self) -> list[str]:
        """Columns that it names, but for those inside `sql`."""
        return [name for name in (self.sum, *(self.share or ())) if name]

    @property
    def expression(self) -> str:
        """The aggregate in SQL."""
        if self.share is not None:
            return f"sum({self.share[0]}) / nullIf(sum({self.share[1]}), 0)"
        return f"sum({self.sum})" if self.sum else self.sql


class Computed(Spec):
    """A column that is computed from others when Superset asks: a label for people, such as 2026-05 of a month."""

    title: str
    sql: str
    type: str = "String"
    description: str = ""


class View(Spec):
    """A view of the `bi` schema as Superset sees it. `time` is the column that dashboards' time filters act on."""

    time: str | None = None
    titles: dict[str, str] = {}
    computed: dict[str, Computed] = {}
    metrics: dict[str, Metric]


class Filter(Spec):
    """A condition that a chart always has."""

    column: str
    op: Literal["==", "!=", ">", ">=", "<", "<=", "IN", "NOT IN"] = "=="
    value: Any


class Item(Spec):
    """What stands in a row of a dashboard. `width` is in twelfths of the page."""

    width: Annotated[int, Field(ge=1, le=COLUMNS)]


class Text(Item):
    """A few words, in Markdown."""

    text: str


class Chart(Item):
    """What charts share. `note` is shown with the chart; a good one says how to read it."""

    title: str
    view: str
    note: str = ""
    where: list[Filter] = []


class Number(Chart):
    """One figure."""

    kind: Literal["number"]
    metric: str
    below: str = ""


class Timeline(Chart):
    """Figures over time, as lines, bars or areas. `grain` is an ISO 8601 duration; `by` makes a series of each value,
    of the `top` largest."""

    kind: Literal["line", "bar", "area"]
    metrics: list[str]
    time: str
    grain: Literal["P1D", "P1W", "P1M"] = "P1W"
    by: str | None = None
    top: int = 10
    stack: bool = False
    format: str | None = None


class Bars(Chart):
    """Figures of each value of a column, as bars. `sort` is a metric, or empty for the order of the values."""

    kind: Literal["bars"]
    metrics: list[str]
    of: str
    by: str | None = None
    sort: str = ""
    top: int = 20
    stack: bool = False
    upright: bool = False
    format: str | None = None


class Share(Chart):
    """How a whole splits."""

    kind: Literal["share"]
    metric: str
    of: str


class Grid(Chart):
    """A figure by two columns: the darker the more.

    `left` is the room for the words at the side, in pixels; `slanted` writes all of those below, long as they may be.
    """

    kind: Literal["grid"]
    metric: str
    across: str
    down: str
    sort_across: str = "alpha_asc"
    sort_down: str = "alpha_asc"
    left: Literal[50, 75, 100, 125, 150, 200] = 75
    slanted: bool = False


class Table(Chart):
    """Figures in columns. `sort` is a metric, the largest first."""

    kind: Literal["table"]
    of: list[str]
    metrics: list[str]
    sort: str
    top: int = 100


class Row(Spec):
    """Items beside each other. `height` is in units of eight pixels."""

    height: int
    items: list[Annotated[Number | Timeline | Bars | Share | Grid | Table | Text, Field(union_mode="smart")]]


class Choice(Spec):
    """A filter that whoever looks at the dashboard sets. Without view and column it is the range of time."""

    title: str
    view: str | None = None
    column: str | None = None


class Dashboard(Spec):
    """One dashboard."""

    title: str
    description: str
    filters: list[Choice] = []
    rows: list[Row]


class Catalogue:
    """The views: what `views.yaml` says of them, and the columns that their models have.

    Attributes:
        views: the views by their names.
        columns: view -> column -> type and description.
        descriptions: view -> description.
    """

    def __init__(self, folder: Path, models: Path) -> None:
        self.columns: dict[str, dict[str, tuple[str, str]]] = {}
        self.descriptions: dict[str, str] = {}
        for path in sorted(models.glob("*.yml")):
            for model in load(path)["models"]:
                self.columns[model["name"]] = {
                    column["name"]: (column["data_type"], column["description"])
                    for column in model["columns"]
                }
                self.descriptions[model["name"]] = " ".join(model["description"].split())
        self.views: dict[str, View] = {
            name: parse(View, spec, f"views.yaml: {name}")
            for name, spec in load(folder / "views.yaml").items()
        }
        for name, view in self.views.items():
            if name not in self.columns:
                raise SpecError(f"views.yaml: there is no model {name} in {models}.")
            named = [column for metric in view.metrics.values() for column in metric.columns]
            for column in (*view.titles, *([view.time] if view.time else []), *named):
                self.column(name, column, "views.yaml")
            self._check_names(name, view)

    def metric(self, view: str, name: str, place: str) -> Metric:
        """A metric of a view.

        Raises:
            SpecError: there is none of that name; says where it was asked for, and what there is.
        """
        metrics = self.views[view].metrics
        if name not in metrics:
            raise SpecError(f"{place}: view {view} has no metric {name}; it has {', '.join(metrics)}.")
        return metrics[name]

    def column(self, view: str, name: str, place: str) -> None:
        """Refuse a column that a view does not have.

        Raises:
            SpecError: says where it was asked for, and what there is.
        """
        known = {**self.columns.get(view, {}), **(self.views[view].computed if view in self.views else {})}
        if name not in known:
            raise SpecError(f"{place}: view {view} has no column {name}; it has {', '.join(known)}.")

    def _check_names(self, name: str, view: View) -> None:
        """Refuse a metric that hides a column: in ClickHouse an alias wins over a column of the same name."""
        expressions = [one.expression for one in view.metrics.values()]
        expressions += [one.sql for one in view.computed.values()]
        for metric in view.metrics.keys() & self.columns[name].keys():
            if any(re.search(rf"\b{metric}\b", sql) for sql in expressions):
                raise SpecError(
                    f"views.yaml: metric {metric} of {name} would hide the column of that name; rename it."
                )


def load(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        SpecError: it is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SpecError(f"{path.name}: {error}") from None


def parse(kind: type[Any], spec: Any, place: str) -> Any:
    """A spec of a kind.

    Raises:
        SpecError: it says something else; names the place.
    """
    try:
        return kind.model_validate(spec)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{place}: {where}: {first['msg']}.") from None
