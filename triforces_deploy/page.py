"""The pieces of which our HTML pages are made. Everything is in the one file, pictures too."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from triforces_deploy.files import replacing

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ccc;padding:.25em .8em;text-align:right}
td:first-child,th:first-child{text-align:left}code{background:#f3f3f3;padding:.1em .3em}img{max-width:100%}"""


def write_page(path: Path, title: str, sections: Sequence[str], style: str = "") -> Path:
    """Write a page; it appears only when complete.

    Args:
        path: where to.
        title: text.
        sections: HTML.
        style: CSS beyond ``STYLE``.
    """
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    with replacing(path) as part:
        part.write_text(head + "\n".join(sections), encoding="utf-8")
    return path


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML."""
    head = "".join(f"<th>{h}</th>" for h in heading)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def image(path: Path) -> str:
    """A PNG, as part of the page."""
    return f'<p><img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'
