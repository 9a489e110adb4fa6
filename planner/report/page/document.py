"""The document around the sections: head, style, scripts, and the charts' library, all inline.

The library is 4.8 MB of text, twenty times the rest of a page; packed it is 2. Browsers since 2023
unpack it (DecompressionStream); an older one shows the tables, and says why there are no charts.

A content security policy names the hashes of our own scripts, so that a page made of hostile names
would run nothing of theirs even if escaping failed, and nothing can be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from planner import __version__
from planner.errors import SpecError
from planner.report.page.markup import Html, join, packed, raw, tag

HERE = Path(__file__).parent
NO_SCRIPT = "The charts are drawn by a script; the tables and commands need none."


class Section(NamedTuple):
    """One part of the page: where the navigation leads, what it is called there, and its body."""

    anchor: str
    name: str
    body: Html


def document(title: str, subtitle: str, headline: Html, sections: Sequence[Section]) -> str:
    """Return the whole page.

    Raises SpecError when the charts' library is not installed.
    """
    library, script = _library(), _own("script.js")
    links = [tag("a", s.name, href=f"#{s.anchor}") for s in sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(library, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"meshwright {__version__}"),
        tag("title", title),
        raw("style", _own("style.css")),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", subtitle, class_="subtitle")),
        tag("nav", *links, aria_label="Sections"),
        tag("main", headline, *(s.body for s in sections)),
        tag("footer", f"meshwright {__version__}"),
        tag("div", id="said", role="status", aria_live="polite"),
        tag("noscript", tag("p", NO_SCRIPT)),
        _packed(),
        raw("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', join(head, body), lang='en')}\n"


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@cache
def _packed() -> Html:
    return packed("library", _library())


@cache
def _library() -> str:
    try:
        offline = import_module("plotly.offline")
    except ImportError as error:
        raise SpecError(
            "the report's charts need plotly, which is not installed",
            hint="pip install 'meshwright[report]'",
        ) from error
    text: str = offline.get_plotlyjs()
    return text
