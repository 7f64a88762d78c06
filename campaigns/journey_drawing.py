"""Journeys as pictures: Mermaid text, and a self-contained SVG laid out here.

The layout is the layered one of directed graphs (Sugiyama, Tagawa and Toda 1981, without dummy nodes): each step below
all that lead to it, steps of a layer in the order of the middle of those, ways back to the side.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

from campaigns.journeys import END, JourneySpec, edge_text, shown_step

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 46, 36, 56, 24
_FILLS = {
    "send": "#dbeafe", "wait": "#f3f4f6", "wait_for": "#fef3c7", "branch": "#ede9fe", "split": "#fce7f3",
    "task": "#dcfce7", "tag": "#dcfce7", "exit": "#fee2e2", "": "#e5e7eb",
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
    depth = dict.fromkeys(order, 0)
    for key in reversed(order):
        for edge in spec.nodes[key].edges:
            if edge.target != END and (key, edge.target) not in back:
                depth[edge.target] = max(depth[edge.target], depth[key] + 1)
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for key in reversed(order):
        rows[depth[key]].append(key)
    place: dict[str, float] = {}
    for row in rows:
        for key in row:
            above = [
                place[parent]
                for parent, node in spec.nodes.items()
                if parent in place and any(edge.target == key for edge in node.edges)
            ]
            place[key] = sum(above) / len(above) if above else 0.0
        row.sort(key=lambda key: place[key])
        for number, key in enumerate(row):
            place[key] = number - (len(row) - 1) / 2
    return rows


def svg(spec: JourneySpec, counts: Mapping[str, int] | None = None) -> str:
    """A picture that needs nothing else: a file of its own, or part of a page."""
    rows = [[_START], *layers(spec)]
    ends = any(edge.target == END for node in spec.nodes.values() for edge in node.edges)
    if ends:
        rows.append([_FINISH])
    widest = max(len(row) for row in rows)
    width = widest * (_WIDTH + _GAP_X) + 2 * _MARGIN + 60
    height = len(rows) * (_HEIGHT + _GAP_Y) + 2 * _MARGIN - _GAP_Y
    centre: dict[str, tuple[float, float]] = {}
    for down, row in enumerate(rows):
        for across, key in enumerate(row):
            x = width / 2 + (across - (len(row) - 1) / 2) * (_WIDTH + _GAP_X)
            centre[key] = (x, _MARGIN + _HEIGHT / 2 + down * (_HEIGHT + _GAP_Y))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{html.escape(spec.name)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="#6b7280"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        _line(centre[_START], centre[spec.first], "", 0, width),
    ]
    for key, node in spec.nodes.items():
        for number, edge in enumerate(node.edges):
            target = centre[_FINISH if edge.target == END else edge.target]
            parts.append(
                _line(centre[key], target, edge_text(edge), number - (len(node.edges) - 1) / 2, width)
            )
    parts.append(_box(centre[_START], entry_text(spec), "", ""))
    for key, node in spec.nodes.items():
        number = (counts or {}).get(key)
        more = shown_step(node) + (f" · {number:,} here" if number else "")
        parts.append(_box(centre[key], key, more, node.kind))
    if ends:
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


def _line(
    start: tuple[float, float], end: tuple[float, float], label: str, place: float, width: float
) -> str:
    (x, y), (to_x, to_y) = start, end
    if to_y > y:
        x += place * 30
        y, to_y = y + _HEIGHT / 2, to_y - _HEIGHT / 2
        bend = max(30.0, (to_y - y) / 2)
        path = f"M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"
        text_x, text_y = x + (to_x - x) * 0.35, y + 20
    else:
        # a way back, round the right side
        side = width - 20
        x, to_x = x + _WIDTH / 2, to_x + _WIDTH / 2
        path = f"M{x:g} {y:g}C{side:g} {y:g} {side:g} {to_y:g} {to_x:g} {to_y:g}"
        text_x, text_y = x + 24, y - 6
    text = ""
    if label:
        text = (
            f'<text x="{text_x:g}" y="{text_y:g}" text-anchor="middle" font-size="11" fill="#374151" '
            f'paint-order="stroke" stroke="#ffffff" stroke-width="4">{html.escape(_cut(label))}</text>'
        )
    return f'<path d="{path}" fill="none" stroke="#6b7280" marker-end="url(#arrow)"/>{text}'


def _cut(text: str) -> str:
    return text if len(text) <= 30 else text[:29] + "…"
