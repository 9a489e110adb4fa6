"""HTML from text, never from strings pasted together: whatever is not `Html` is escaped.

A template engine would do, but every string here comes from a spec file or a host list of a
stranger; one function that escapes by default is less to get wrong than a template to remember.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from planner.report.text import printable

VOID = {"meta", "input", "br", "col"}


class Html(str):
    """Text that is markup already; only this module makes it."""

    __slots__ = ()


Child = str | None
"""Markup or text; None is nothing."""
TableCell = Child | tuple[str, float | str]
"""What a cell shows, or that and what it is sorted by."""


def escaped(text: str) -> Html:
    """Return text as markup: control characters dropped, `<>&"'` as entities."""
    return Html(html.escape(_utf8(printable(text)), quote=True))


def _utf8(text: str) -> str:
    """Return text that can be encoded: a JSON file may hold half of a surrogate pair."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def join(*children: Child) -> Html:
    """Return the children one after the other."""
    return Html("".join(c if isinstance(c, Html) else escaped(c) for c in children if c))


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """Return an element. `class_` and `data_x` stand for class and data-x; True is a bare name."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        shown = key.rstrip("_").replace("_", "-")
        words.append(shown if value is True else f'{shown}="{escaped(str(value))}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened if name in VOID else f"{opened}{join(*children)}</{name}>")


def raw(name: str, text: str) -> Html:
    """Return a script or style element of our own text, which must not close itself."""
    if f"</{name}" in text.lower():
        raise ValueError(f"{name} text closes its own element")
    return Html(f"<{name}>{text}</{name}>")


def data(name: str, value: Any) -> Html:
    """Return JSON for the page's script to read; it cannot end its element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Html(f'<script type="application/json" id="{escaped(name)}">{text}</script>')


def packed(name: str, text: str) -> Html:
    """Return text as a script that is not run: gzip in base64, with no clock in it."""
    inner = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return Html(f'<script type="application/gzip" id="{escaped(name)}">{inner}</script>')


def label(text: str) -> str:
    """Return text for a chart, whose labels read entities and a little HTML."""
    return str(escaped(text)).replace("%{", "% {")


def figure(
    name: str, chart: Mapping[str, Any], *, about: str, rows: int = 0, lines: int = 0
) -> Html:
    """Return a chart: its place, `about` for those who cannot see it, and its data.

    `rows` bars that lie above each other, or a legend of `lines`, make it as high as they need.
    """
    height = f"height:{120 + 30 * rows}px" if rows else None
    if lines > 4:
        height = f"height:{360 + 20 * lines}px"
    place = tag(
        "div", class_="chart", id=name, role="img", aria_label=about, style=height, tabindex=0
    )
    return join(place, data(f"{name}-data", chart))


def section(anchor: str, heading: str, *children: Child) -> Html:
    """Return a section that the navigation leads to."""
    return tag("section", tag("h2", heading), *children, id=anchor)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[TableCell]],
    *,
    kinds: Sequence[str] | None = None,
    sortable: bool = False,
    marked: Mapping[int, str] | None = None,
) -> Html:
    """Return a table that scrolls sideways where it is too wide.

    `kinds` are the classes of the
    columns ('n' for figures), `marked` those of rows by index.
    """
    kinds = kinds or [""] * len(headings)
    head = [
        tag("th", tag("button", h, type="button") if sortable else h, class_=k or None, scope="col")
        for h, k in zip(headings, kinds, strict=True)
    ]
    body = [
        tag(
            "tr",
            *(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True)),
            class_=(marked or {}).get(index),
        )
        for index, row in enumerate(rows)
    ]
    inner = tag(
        "table",
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return tag("div", inner, class_="wide", tabindex=0)


def _cell(cell: TableCell, kind: str) -> Html:
    shown, key = cell if isinstance(cell, tuple) else (cell, None)
    return tag("td", shown, class_=kind or None, data_key=key)


def panels(name: str, items: Sequence[tuple[str, Html]]) -> Html:
    """Return tabs and their panels; one alone needs no tab."""
    if len(items) == 1:
        return items[0][1]
    buttons, bodies = [], []
    for index, (heading, body) in enumerate(items):
        first = index == 0
        panel, button = f"{name}-panel-{index}", f"{name}-tab-{index}"
        buttons.append(
            tag(
                "button",
                heading,
                type="button",
                role="tab",
                id=button,
                aria_controls=panel,
                aria_selected="true" if first else "false",
                tabindex=0 if first else -1,
            )
        )
        bodies.append(
            tag("div", body, id=panel, role="tabpanel", aria_labelledby=button, hidden=not first)
        )
    return join(tag("div", *buttons, role="tablist", class_="tabs"), *bodies)


def cards(items: Sequence[tuple[str, str, str]]) -> Html:
    """Return the headline figures: (what, figure, remark)."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", what), tag("dd", figure_), tag("dd", note, class_="note"))
            for what, figure_, note in items
        ),
        class_="cards",
    )


def bullets(sentences: Iterable[str]) -> Html | None:
    """Return a list, or nothing where there is nothing to say."""
    items = [tag("li", sentence) for sentence in sentences]
    return tag("ul", *items) if items else None
