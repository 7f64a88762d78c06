"""What each kind of chart is to Superset: its name for it, the parameters its editor shows, and the query."""

from __future__ import annotations

import json
import uuid
from typing import Any

from dashboards.specs import Bars, Catalogue, Chart, Grid, Number, Share, SpecError, Table, Timeline

UNBOUNDED = "No filter"
ROW_LIMIT = 10_000
_NAMESPACE = uuid.UUID("3f4a3a7e-2f0c-5d67-9a55-0c7a52f7b8d1")


def identity(kind: str, name: str) -> str:
    """The UUID of a thing in the bundle: the same for the same name, whenever it is built."""
    return str(uuid.uuid5(_NAMESPACE, f"{kind}/{name}"))


def chart_file(catalogue: Catalogue, chart: Chart, place: str) -> dict[str, Any]:
    """A chart as Superset stores it: `params` are what its editor shows, `query_context` is the query."""
    if chart.view not in catalogue.views:
        raise SpecError(f"{place}: views.yaml has no view {chart.view}; it has {', '.join(catalogue.views)}.")
    viz_type, params, query = _draw(catalogue, chart, place)
    time = catalogue.views[chart.view].time
    filters = [{"col": one.column, "op": one.op, "val": one.value} for one in chart.where]
    adhoc = [
        {
            "expressionType": "SIMPLE",
            "clause": "WHERE",
            "subject": one.column,
            "operator": one.op,
            "comparator": one.value,
        }
        for one in chart.where
    ]
    for one in chart.where:
        catalogue.column(chart.view, one.column, place)
    if time is not None:
        # what the dashboard's filter of time takes hold of
        filters.append({"col": time, "op": "TEMPORAL_RANGE", "val": UNBOUNDED})
        adhoc.append(
            {
                "expressionType": "SIMPLE",
                "clause": "WHERE",
                "subject": time,
                "operator": "TEMPORAL_RANGE",
                "comparator": UNBOUNDED,
            }
        )
    params = {
        "viz_type": viz_type,
        "adhoc_filters": adhoc,
        "row_limit": ROW_LIMIT,
        "extra_form_data": {},
        **params,
    }
    context = {
        "datasource": {"id": 0, "type": "table"},
        "force": False,
        "queries": [
            {
                "filters": filters,
                "extras": {"having": "", "where": ""},
                "annotation_layers": [],
                "row_limit": ROW_LIMIT,
                "order_desc": True,
                **query,
            }
        ],
        "form_data": dict(params),
        "result_format": "json",
        "result_type": "full",
    }
    return {
        "slice_name": chart.title,
        "description": chart.note or None,
        "certified_by": None,
        "certification_details": None,
        "viz_type": viz_type,
        "params": params,
        "query_context": json.dumps(context),
        "cache_timeout": None,
        "uuid": "",
        "version": "1.0.0",
        "dataset_uuid": identity("dataset", chart.view),
    }


def _draw(catalogue: Catalogue, chart: Chart, place: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Superset's name of the kind of chart, its parameters and its query."""
    match chart:
        case Number():
            params = {
                "metric": chart.metric,
                "subtitle": chart.below,
                "header_font_size": 0.5,
                "subtitle_font_size": 0.2,
                "y_axis_format": catalogue.metric(chart.view, chart.metric, place).format,
            }
            return "big_number_total", params, {"columns": [], "metrics": [chart.metric]}
        case Timeline():
            return _draw_axis(catalogue, chart, chart.time, place, grain=chart.grain)
        case Bars():
            return _draw_axis(catalogue, chart, chart.of, place, grain=None)
        case Share():
            params = {
                "groupby": [chart.of],
                "metric": chart.metric,
                "sort_by_metric": True,
                "donut": True,
                "show_labels": True,
                "label_type": "percent",
                "labels_outside": True,
                "show_legend": True,
                "legendOrientation": "right",
                "legendType": "scroll",
                "number_format": catalogue.metric(chart.view, chart.metric, place).format,
                "show_labels_threshold": 3,
                "innerRadius": 40,
                "outerRadius": 60,
            }
            return "pie", params, _grouped(catalogue, chart, [chart.of], [chart.metric], chart.metric, place)
        case Grid():
            params = {
                "x_axis": chart.across,
                "groupby": chart.down,
                "metric": chart.metric,
                "sort_x_axis": chart.sort_across,
                "sort_y_axis": chart.sort_down,
                "normalize_across": "heatmap",
                "linear_color_scheme": "schemeBlues",
                "show_values": True,
                "show_legend": False,
                "show_percentage": False,
                "legend_type": "continuous",
                "value_bounds": [None, None],
                "left_margin": chart.left,
                "bottom_margin": 50,
                "xscale_interval": 1 if chart.slanted else -1,
                "xAxisLabelRotation": 45 if chart.slanted else 0,
                "yscale_interval": -1,
                "y_axis_format": catalogue.metric(chart.view, chart.metric, place).format,
            }
            return (
                "heatmap_v2",
                params,
                _grouped(catalogue, chart, [chart.across, chart.down], [chart.metric], None, place),
            )
        case Table():
            params = {
                "query_mode": "aggregate",
                "groupby": chart.of,
                "metrics": chart.metrics,
                "timeseries_limit_metric": chart.sort,
                "order_desc": True,
                "row_limit": chart.top,
                "show_cell_bars": False,
                "table_timestamp_format": "%Y-%m-%d",
                "column_config": {
                    name: {"d3NumberFormat": catalogue.metric(chart.view, name, place).format}
                    for name in chart.metrics
                },
            }
            query = _grouped(catalogue, chart, chart.of, chart.metrics, chart.sort, place)
            return "table", params, {**query, "row_limit": chart.top}
        case _:
            raise SpecError(f"{place}: a chart of this kind cannot be drawn.")


def _draw_axis(
    catalogue: Catalogue, chart: Timeline | Bars, axis: str, place: str, *, grain: str | None
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    first = catalogue.metric(chart.view, chart.metrics[0], place)
    series = [chart.by] if chart.by else []
    kinds = {
        "line": "echarts_timeseries_line",
        "bar": "echarts_timeseries_bar",
        "bars": "echarts_timeseries_bar",
        "area": "echarts_area",
    }
    has_legend = bool(series) or len(chart.metrics) > 1
    params: dict[str, Any] = {
        "x_axis": axis,
        "metrics": chart.metrics,
        "groupby": series,
        "order_desc": True,
        "show_legend": has_legend,
        "legendOrientation": "top",
        "legendType": "scroll",
        "rich_tooltip": True,
        "tooltipTimeFormat": "%Y-%m-%d",
        "x_axis_time_format": "%Y-%m" if grain == "P1M" else "%d %b",
        "y_axis_format": chart.format or first.format,
        "stack": "Stack" if chart.stack else None,
        "truncateXAxis": False,
        "truncate_metric": True,
        "sort_series_type": "sum",
        "x_axis_title_margin": 15,
        "y_axis_title_margin": 15,
        "markerEnabled": False,
        "seriesType": "line",
    }
    column: dict[str, Any] = {
        "columnType": "BASE_AXIS",
        "expressionType": "SQL",
        "label": axis,
        "sqlExpression": axis,
    }
    catalogue.column(chart.view, axis, place)
    query = _grouped(catalogue, chart, series, chart.metrics, None, place)
    if grain is not None:
        params["time_grain_sqla"] = grain
        column["timeGrain"] = grain
        query["orderby"] = [[chart.metrics[0], False]]
        if series and isinstance(chart, Timeline):
            params |= {"limit": chart.top, "timeseries_limit_metric": chart.metrics[0]}
            query |= {"series_limit": chart.top, "series_limit_metric": chart.metrics[0]}
    if isinstance(chart, Bars):
        sort = chart.sort or axis
        if chart.sort:
            catalogue.metric(chart.view, chart.sort, place)
        # Superset draws horizontal bars from the bottom up
        params |= {
            "orientation": "vertical" if chart.upright else "horizontal",
            "x_axis_sort": sort,
            "x_axis_sort_asc": (not chart.sort) == chart.upright,
            "show_value": not series,
            # with series Superset orders by the sum of all of them
            "x_axis_sort_series": "sum" if chart.sort else "name",
            "x_axis_sort_series_ascending": (not chart.sort) == chart.upright,
            "row_limit": chart.top * (10 if series else 1),
        }
        query["orderby"] = [[sort, not chart.sort]]
        query["row_limit"] = params["row_limit"]
    query["columns"] = [column, *series]
    query["series_columns"] = series
    return kinds[chart.kind], params, query


def _grouped(
    catalogue: Catalogue, chart: Chart, columns: list[str], metrics: list[str], sort: str | None, place: str
) -> dict[str, Any]:
    for column in columns:
        catalogue.column(chart.view, column, place)
    for metric in metrics:
        catalogue.metric(chart.view, metric, place)
    if sort is not None:
        catalogue.metric(chart.view, sort, place)
    return {"columns": columns, "metrics": metrics, "orderby": [] if sort is None else [[sort, False]]}
