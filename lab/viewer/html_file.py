"""Packed runs -> one self-contained HTML file."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe

_SCRIPTS = ("data.js", "draw.js", "view.js")


def as_html(packed: Mapping[str, Any]) -> str:
    """The page of what `pack` gives; nothing in it is fetched."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lab.viewer"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    title = " and ".join(run["name"] for run in packed["runs"])
    return environment.get_template("view.html").render(
        title=title,
        css=markupsafe.Markup(_text("view.css")),
        script=markupsafe.Markup("\n".join(map(_text, _SCRIPTS))),
        data=markupsafe.Markup(as_json(packed).replace("<", "\\u003c")),
    )


def as_json(packed: Mapping[str, Any]) -> str:
    """As strict JSON, without spaces."""
    return json.dumps(packed, separators=(",", ":"), allow_nan=False)


def _text(name: str) -> str:
    return (importlib.resources.files("lab.viewer") / "templates" / name).read_text("utf-8")
