"""Commands to copy, grouped under tabs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planner.report.page.markup import Html, join, panels, tag


class Command(NamedTuple):
    """One thing to type: under which tab it stands, what it does, and the text, maybe of lines.

    Without text, `about` says why there is nothing to type.
    """

    tab: str
    about: str
    text: str = ""


def commands(items: Sequence[Command]) -> Html:
    """Return the commands, each with a button that copies it."""
    tabs = list(dict.fromkeys(item.tab for item in items))
    return panels(
        "commands", [(tab, join(*(_command(i) for i in items if i.tab == tab))) for tab in tabs]
    )


def _command(item: Command) -> Html:
    about = tag("p", item.about)
    if not item.text:
        return about
    button = tag("button", "Copy", type="button", class_="copy")
    return join(about, tag("div", tag("pre", tag("code", item.text)), button, class_="command"))
