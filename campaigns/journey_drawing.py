"""Journeys as pictures: Mermaid text, and a self-contained SVG laid out here.

The layout is the layered one of directed graphs (Sugiyama, Tagawa and Toda 1981): each step below all that lead to it,
in the order of the middle of those; a way that passes layers has a place of its own in each; ways back go to the side.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping

from campaigns.journeys import END, JourneySpec, edge_text, shown_step

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _POINT = 190, 46, 36, 56, 24, 20
_FILLS = {
    "send": "#dbeafe", "wait": "#f3f4f6", "wait_for": "#fef3c7", "branch": "#ede9fe", "split": "#fce7f3",
    "crm_task": "#dcfce7", "tag": "#dcfce7", "exit": "#fee2e2", "": "#e5e7eb",
}  # fmt: skip
_START, _FINISH = "_in", "_out"
_SHAPES = {"branch": ("{{", "}}"), "split": ("{{", "}}"), "wait": ("([", "])"), "wait_for": ("([", "])"),
           "exit": ("((", "))")}  # fmt: skip


def entry_text(spec: JourneySpec) -> str:
    """How people come in, in a few words."""
    entry = spec.entry
    if entry.event is not None:
        text = entry.event
    elif entry.schedule is not None:
        text = f"in {entry.segment}, {entry.schedule.cron or entry.schedule.at}"
    elif entry.segment is not None:
        text = f"enters {entry.segment}"
    else:
        return "on request"
    return text + (", or on request" if entry.requests else "")


def mermaid(spec: JourneySpec, counts: Mapping[str, int] | None = None) -> str:
    """A flowchart in Mermaid's language.

    Args:
        counts: how many people are at each step now.
    """
    lines = ["flowchart TD", f"    {_START}([{_quoted(entry_text(spec))}]) --> {_end(spec.first)}"]
    for key, node in spec.nodes.items():
        left, right = _SHAPES.get(node.kind, ("[", "]"))
        number = (counts or {}).get(key)
        text = f"{key}\n{shown_step(node)}" + (f"\n{number:,} here" if number else "")
        lines.append(f"    {_end(key)}{left}{_quoted(text)}{right}")
        for edge in node.edges:
            label = edge_text(edge)
            arrow = f"-->|{_quoted(label)}|" if label else "-->"
            lines.append(f"    {_end(key)} {arrow} {_end(edge.target)}")
    if any(edge.target == END for node in spec.nodes.values() for edge in node.edges):
        lines.append(f"    {_FINISH}((end))")
    return "\n".join(lines) + "\n"


def _end(key: str) -> str:
    # words of Mermaid's own, such as end, may not be names
    return _FINISH if key == END else f"s_{key}"


def _quoted(text: str) -> str:
    safe = text.replace("&", "#38;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
    return '"' + safe.replace("\n", "<br/>") + '"'


def layers(spec: JourneySpec) -> list[list[str]]:
    """The steps in layers, each step below all that lead to it but by a way back."""
    rows = [[key for key in row if key in spec.nodes] for row in _rows(spec)[0]]
    return [row for row in rows if row]


def _depths(spec: JourneySpec) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """The layer of each step, and the ways back."""
    order: list[str] = []
    back: set[tuple[str, str]] = set()
    state: dict[str, int] = {}

    def visit(key: str) -> None:
        state[key] = 1
        for edge in spec.nodes[key].edges:
            if edge.target == END:
                continue
            if state.get(edge.target) == 1:
                back.add((key, edge.target))
            elif edge.target not in state:
                visit(edge.target)
        state[key] = 2
        order.append(key)

    visit(spec.first)
    depth = dict.fromkeys(reversed(order), 0)
    for key in reversed(order):
        for edge in spec.nodes[key].edges:
            if edge.target != END and (key, edge.target) not in back:
                depth[edge.target] = max(depth[edge.target], depth[key] + 1)
    return depth, back


def _rows(spec: JourneySpec) -> tuple[list[list[str]], dict[tuple[str, int], list[str]]]:
    """Rows of boxes and of the points that long ways pass between them; and each way from its step and number."""
    depth, back = _depths(spec)
    last = max(depth.values()) + 1
    # the entry is above the first layer, the end below the last
    level = {_START: 0, **{key: place + 1 for key, place in depth.items()}, _FINISH: last + 1}
    rows: list[list[str]] = [[] for _ in range(last + 2)]
    for key, place in level.items():
        rows[place].append(key)
    ways: dict[tuple[str, int], list[str]] = {(_START, 0): [_START, spec.first]}
    for key in depth:
        for number, edge in enumerate(spec.nodes[key].edges):
            target = edge.target or _FINISH
            points: list[str] = []
            if (key, edge.target) not in back:
                for place in range(level[key] + 1, level[target]):
                    points.append(f"~{key}~{number}~{place}")
                    rows[place].append(points[-1])
            ways[key, number] = [key, *points, target]
    if not any(way[-1] == _FINISH for way in ways.values()):
        rows.pop()
    above: dict[str, list[str]] = {}
    for way in ways.values():
        for start, end in itertools.pairwise(way):
            above.setdefault(end, []).append(start)
    place_of: dict[str, float] = {}
    for row in rows:
        middles = {
            key: sum(place_of[one] for one in above.get(key, ()) if one in place_of)
            / max(1, sum(one in place_of for one in above.get(key, ())))
            for key in row
        }
        row.sort(key=lambda key, middles=middles: middles[key])
        place_of |= _spread(row)
    return rows, ways


def _spread(row: list[str]) -> dict[str, float]:
    """Where the boxes and points of a row are, from its middle."""
    widths = [_POINT if key.startswith("~") else _WIDTH for key in row]
    left = -(sum(widths) + _GAP_X * (len(row) - 1)) / 2
    places: dict[str, float] = {}
    for key, width in zip(row, widths, strict=True):
        places[key] = left + width / 2
        left += width + _GAP_X
    return places


def svg(spec: JourneySpec, counts: Mapping[str, int] | None = None) -> str:
    """A picture that needs nothing else: a file of its own, or part of a page."""
    rows, ways = _rows(spec)
    placed = [_spread(row) for row in rows]
    width = 2 * max(abs(x) for row in placed for x in row.values()) + _WIDTH + 2 * _MARGIN + 60
    height = len(rows) * (_HEIGHT + _GAP_Y) + 2 * _MARGIN - _GAP_Y
    centre = {
        key: (width / 2 + x, _MARGIN + _HEIGHT / 2 + down * (_HEIGHT + _GAP_Y))
        for down, row in enumerate(placed)
        for key, x in row.items()
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{html.escape(spec.name)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="#6b7280"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    labels: list[str] = []
    for key in (_START, *spec.nodes):
        own = [(number, way) for (start, number), way in ways.items() if start == key]
        # ways leave a box in the order in which they go on, so that they do not cross at once
        own.sort(key=lambda one: centre[one[1][1]][0])
        for place, (number, way) in enumerate(own):
            label = edge_text(spec.nodes[key].edges[number]) if key != _START else ""
            line, text = _line([centre[one] for one in way], label, place - (len(own) - 1) / 2, width)
            parts.append(line)
            labels.append(text)
    # above all lines, or one would run through the words of another
    parts += labels
    parts.append(_box(centre[_START], entry_text(spec), "", ""))
    for key, node in spec.nodes.items():
        number = (counts or {}).get(key)
        more = shown_step(node) + (f" · {number:,} here" if number else "")
        parts.append(_box(centre[key], key if node.step.id else "exit", more, node.kind))
    if _FINISH in centre:
        parts.append(_box(centre[_FINISH], "end", "", ""))
    return "\n".join([*parts, "</svg>"]) + "\n"


def page(spec: JourneySpec, counts: Mapping[str, int] | None = None) -> str:
    """The picture as an HTML page."""
    name, text = html.escape(spec.name), html.escape(spec.description)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title></head>\n'
        f'<body style="font-family: system-ui, sans-serif; margin: 2rem">\n<h1>{name}</h1>\n<p>{text}</p>\n'
        f"{svg(spec, counts)}</body></html>\n"
    )


def _box(at: tuple[float, float], title: str, more: str, kind: str) -> str:
    x, y = at
    radius = _HEIGHT / 2 if kind in ("wait", "wait_for", "exit", "") else 6
    lift = 0 if not more else -6
    second = (
        f'<text x="{x:g}" y="{y + 14:g}" text-anchor="middle" fill="#4b5563" font-size="11">'
        f"{html.escape(_cut(more))}</text>"
        if more
        else ""
    )
    return (
        f"<g><title>{html.escape(f'{title} {more}'.strip())}</title>"
        f'<rect x="{x - _WIDTH / 2:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius:g}" '
        f'fill="{_FILLS[kind]}" stroke="#6b7280"/>'
        f'<text x="{x:g}" y="{y + 4 + lift:g}" text-anchor="middle" font-weight="600">{html.escape(_cut(title))}</text>'
        f"{second}</g>"
    )


def _line(points: list[tuple[float, float]], label: str, place: float, width: float) -> tuple[str, str]:
    """A way through points as a line with an arrow, and its label."""
    x, y = points[0]
    if points[1][1] > y:
        x, y = x + place * 40, y + _HEIGHT / 2
        path = f"M{x:g} {y:g}"
        text_x = text_y = None
        for number, (to_x, to_y) in enumerate(points[1:], start=1):
            is_last = number == len(points) - 1
            # past a point the line goes straight down, beside the boxes of that row
            end = to_y - _HEIGHT / 2
            bend = (end - y) / 2
            path += f"C{x:g} {y + bend:g} {to_x:g} {end - bend:g} {to_x:g} {end:g}"
            if text_x is None:
                text_x, text_y = x + (to_x - x) * 0.5, y + (end - y) * 0.5 + 4
            x, y = to_x, end
            if not is_last:
                y = to_y + _HEIGHT / 2
                path += f"L{x:g} {y:g}"
        assert text_x is not None and text_y is not None
    else:
        # a way back, round the right side
        to_x, to_y = points[-1]
        side = width - 20
        x, to_x = x + _WIDTH / 2, to_x + _WIDTH / 2
        path = f"M{x:g} {y:g}C{side:g} {y:g} {side:g} {to_y:g} {to_x:g} {to_y:g}"
        text_x, text_y = x + 30, y - 6
    text = ""
    if label:
        text = (
            f'<text x="{text_x:g}" y="{text_y:g}" text-anchor="middle" font-size="11" fill="#374151" '
            f'paint-order="stroke" stroke="#ffffff" stroke-width="4">{html.escape(_cut(label))}</text>'
        )
    return f'<path d="{path}" fill="none" stroke="#6b7280" marker-end="url(#arrow)"/>', text


def _cut(text: str) -> str:
    return text if len(text) <= 30 else text[:29] + "…"
