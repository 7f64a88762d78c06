"""Builds the bundle that Apache Superset imports from the YAML files beside this one.

    python -m dashboards.build [OUTPUT.zip]            a bundle for Superset's 'Import dashboards'
    python -m dashboards.build --assets [OUTPUT.zip]   one for /api/v1/assets/import/, which also updates what is there

`views.yaml` says which views of the `bi` schema there are and how their columns add up to figures; each other file is
one dashboard: rows of charts over those figures. What a column means and its type come from the models' own YAML in
`dbt_project/models/bi`, so that it is said once. Identifiers follow from names: a bundle built again is the same one,
and Superset knows what it has imported before.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dashboards.charts import chart_file, identity
from dashboards.specs import COLUMNS, Catalogue, Choice, Dashboard, SpecError, Text, load, parse

FOLDER = Path(__file__).resolve().parent
MODELS = FOLDER.parent / "dbt_project" / "models" / "bi"
OUTPUT = FOLDER.parent / ".mailhouse" / "dashboards" / "mailhouse-dashboards.zip"
URI = "clickhousedb://superset:XXXXXXXXXX@127.0.0.1:18123/bi"
"""The address in the bundle. Superset asks for the password, which is never in a file, when it imports."""

_MOMENT = "1970-01-01T00:00:00+00:00"


class Bundle:
    """The specs, read and checked against the models, and what is made of them."""

    def __init__(self, folder: Path = FOLDER, models: Path = MODELS, uri: str = URI) -> None:
        self._uri = uri
        self.catalogue = Catalogue(folder, models)
        self.dashboards: dict[str, Dashboard] = {
            path.stem: parse(Dashboard, load(path), path.name)
            for path in sorted(folder.glob("*.yaml"))
            if path.name != "views.yaml"
        }
        for name, dashboard in self.dashboards.items():
            for choice in dashboard.filters:
                if choice.view is not None:
                    self.catalogue.column(choice.view, choice.column or "", f"{name}.yaml: {choice.title}")

    def files(self, *, type_: str = "Dashboard") -> dict[str, str]:
        """The bundle's files by their paths in it."""
        files: dict[str, Any] = {
            "metadata.yaml": {"version": "1.0.0", "type": type_, "timestamp": _MOMENT},
            "databases/Mailhouse.yaml": self._database(),
        }
        for name in self.catalogue.views:
            files[f"datasets/Mailhouse/{name}.yaml"] = self._dataset(name)
        for name, dashboard in self.dashboards.items():
            charts = {
                (row, place): chart_file(self.catalogue, item, f"{name}.yaml: {item.title}")
                for row, line in enumerate(dashboard.rows)
                for place, item in enumerate(line.items)
                if not isinstance(item, Text)
            }
            for chart in charts.values():
                path = f"charts/{name}_{_slug(chart['slice_name'])}.yaml"
                if path in files:
                    raise SpecError(f"{name}.yaml: two charts are called {chart['slice_name']!r}.")
                chart["uuid"] = identity("chart", path)
                files[path] = chart
            files[f"dashboards/{name}.yaml"] = self._dashboard(name, dashboard, charts)
        return {
            path: yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
            for path, content in files.items()
        }

    def write(
        self, output: Path, *, type_: str = "Dashboard", replace: Mapping[str, str] | None = None
    ) -> None:
        """Write the zip; the same specs make the same bytes. `replace` gives other content to some of the files."""
        output.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in {**self.files(type_=type_), **(replace or {})}.items():
                archive.writestr(zipfile.ZipInfo(f"mailhouse/{path}"), content)

    def reads(self) -> dict[str, set[str]]:
        """The views that each dashboard reads."""
        return {
            name: {item.view for row in dashboard.rows for item in row.items if not isinstance(item, Text)}
            | {choice.view for choice in dashboard.filters if choice.view is not None}
            for name, dashboard in self.dashboards.items()
        }

    def _database(self) -> dict[str, Any]:
        return {
            "database_name": "Mailhouse",
            "sqlalchemy_uri": self._uri,
            "cache_timeout": 300,
            "expose_in_sqllab": True,
            "allow_run_async": False,
            "allow_ctas": False,
            "allow_cvas": False,
            "allow_dml": False,
            "allow_csv_upload": False,
            "extra": {"allows_virtual_table_explore": True, "metadata_params": {}, "engine_params": {}},
            "uuid": identity("database", "Mailhouse"),
            "version": "1.0.0",
        }

    def _dataset(self, name: str) -> dict[str, Any]:
        view = self.catalogue.views[name]
        model = self.catalogue.columns[name]
        columns = [
            {
                "column_name": column,
                "verbose_name": view.titles.get(column) or _title(column),
                "description": description,
                "type": type_,
                "is_dttm": _is_time(type_),
                "is_active": True,
                "groupby": True,
                "filterable": True,
                "expression": None,
                "python_date_format": None,
            }
            for column, (type_, description) in model.items()
        ]
        columns += [
            {
                "column_name": column,
                "verbose_name": computed.title,
                "description": computed.description or None,
                "type": computed.type,
                "is_dttm": False,
                "is_active": True,
                "groupby": True,
                "filterable": True,
                "expression": computed.sql,
                "python_date_format": None,
            }
            for column, computed in view.computed.items()
        ]
        return {
            "table_name": name,
            "main_dttm_col": view.time,
            "description": self.catalogue.descriptions[name],
            "schema": "bi",
            "sql": None,
            "params": None,
            "template_params": None,
            "filter_select_enabled": True,
            "fetch_values_predicate": None,
            "extra": None,
            "cache_timeout": None,
            "uuid": identity("dataset", name),
            "metrics": [
                {
                    "metric_name": metric_name,
                    "verbose_name": metric.title,
                    "expression": metric.expression,
                    "metric_type": None,
                    "description": metric.description or None,
                    "d3format": metric.format,
                    "warning_text": None,
                }
                for metric_name, metric in view.metrics.items()
            ],
            "columns": columns,
            "version": "1.0.0",
            "database_uuid": identity("database", "Mailhouse"),
        }

    def _dashboard(
        self, name: str, dashboard: Dashboard, charts: dict[tuple[int, int], dict[str, Any]]
    ) -> dict[str, Any]:
        position: dict[str, Any] = {
            "DASHBOARD_VERSION_KEY": "v2",
            "ROOT_ID": {"id": "ROOT_ID", "type": "ROOT", "children": ["GRID_ID"]},
            "GRID_ID": {"id": "GRID_ID", "type": "GRID", "parents": ["ROOT_ID"], "children": []},
            "HEADER_ID": {"id": "HEADER_ID", "type": "HEADER", "meta": {"text": dashboard.title}},
        }
        number = 0
        for row, line in enumerate(dashboard.rows):
            if (width := sum(item.width for item in line.items)) > COLUMNS:
                raise SpecError(f"{name}.yaml: row {row + 1} is {width} twelfths wide.")
            row_id = f"ROW-{row}"
            position["GRID_ID"]["children"].append(row_id)
            position[row_id] = {
                "id": row_id,
                "type": "ROW",
                "parents": ["ROOT_ID", "GRID_ID"],
                "children": [],
                "meta": {"background": "BACKGROUND_TRANSPARENT"},
            }
            for place, item in enumerate(line.items):
                meta: dict[str, Any] = {"width": item.width, "height": line.height}
                if isinstance(item, Text):
                    kind, meta = "MARKDOWN", {**meta, "code": item.text}
                else:
                    number += 1
                    chart = charts[row, place]
                    # the number only ties the parts of this file; Superset gives its own
                    kind, meta = (
                        "CHART",
                        {**meta, "chartId": number, "uuid": chart["uuid"], "sliceName": item.title},
                    )
                item_id = f"{kind}-{row}-{place}"
                position[row_id]["children"].append(item_id)
                position[item_id] = {
                    "id": item_id,
                    "type": kind,
                    "parents": ["ROOT_ID", "GRID_ID", row_id],
                    "children": [],
                    "meta": meta,
                }
        return {
            "dashboard_title": dashboard.title,
            "description": dashboard.description,
            "css": "",
            "slug": f"mailhouse-{name.replace('_', '-')}",
            "certified_by": None,
            "certification_details": None,
            "published": True,
            "uuid": identity("dashboard", name),
            "position": position,
            "metadata": {
                "color_scheme": "supersetColors",
                "cross_filters_enabled": True,
                "refresh_frequency": 0,
                "expanded_slices": {},
                "timed_refresh_immune_slices": [],
                "native_filter_configuration": [self._filter(name, choice) for choice in dashboard.filters],
            },
            "version": "1.0.0",
        }

    def _filter(self, dashboard: str, choice: Choice) -> dict[str, Any]:
        is_time = choice.view is None
        target = (
            {}
            if is_time
            else {"column": {"name": choice.column}, "datasetUuid": identity("dataset", choice.view or "")}
        )
        return {
            "id": f"NATIVE_FILTER-{identity('filter', f'{dashboard}/{choice.title}')}",
            "type": "NATIVE_FILTER",
            "name": choice.title,
            "description": "",
            "filterType": "filter_time" if is_time else "filter_select",
            "targets": [target],
            "controlValues": {"enableEmptyFilter": False}
            if is_time
            else {
                "enableEmptyFilter": False,
                "multiSelect": True,
                "searchAllOptions": False,
                "inverseSelection": False,
            },
            "defaultDataMask": {"extraFormData": {}, "filterState": {}, "ownState": {}},
            "cascadeParentIds": [],
            "scope": {"rootPath": ["ROOT_ID"], "excluded": []},
        }


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def _title(column: str) -> str:
    return column.replace("_", " ").removesuffix(" count").capitalize()


def _is_time(type_: str) -> bool:
    return "Date" in type_


def main(arguments: list[str] | None = None) -> int:
    """Build the bundle; exit code 2 with one line if a spec is wrong."""
    parser = argparse.ArgumentParser(
        description="Build the bundle of dashboards that Apache Superset imports."
    )
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help="the zip file to write")
    parser.add_argument(
        "--assets", action="store_true", help="a bundle for /api/v1/assets/import/, which overwrites"
    )
    parser.add_argument(
        "--uri", default=URI, help="the warehouse as SQLAlchemy writes it, XXXXXXXXXX for the password"
    )
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle(uri=given.uri)
        bundle.write(given.output, type_="assets" if given.assets else "Dashboard")
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    charts = sum(path.startswith("charts/") for path in bundle.files())
    made = f"{len(bundle.dashboards)} dashboards, {charts} charts, {len(bundle.catalogue.views)} views"
    print(f"{given.output}: {made}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
