"""A story -> report.json, with every figure of the page."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np

from lab.record.directory import json_value
from lab.report.section import Story, Tiles, check


def as_json(story: Story) -> str:
    """Strict JSON, null for what is not finite: every figure by section and key, the controls, and
    the pictures' series. Tiles are there by size only."""
    check(story)
    sections: dict[str, Any] = {
        section.slug: {
            "title": section.title,
            "outcome": section.outcome,
            "answer": section.answer,
            "evidence": section.evidence,
            "figures": {f.key: _fields(f) for f in section.figures},
            "pictures": {
                p.slug: {"kind": type(p).__name__, **_fields(p)} for p in section.pictures
            },
            "controls": [_fields(control) for control in section.controls],
            "unknown": section.unknown,
            "commands": [{"fills": what, "command": line} for what, line in section.commands],
        }
        for section in story.sections
    }
    for section in sections.values():
        for entry in (*section["figures"].values(), *section["pictures"].values()):
            entry.pop("key", None)
            entry.pop("slug", None)
    whole = {
        "title": story.title,
        "summary": story.summary,
        "made": [{"what": what, "value": value} for what, value in story.made],
        "sections": sections,
    }
    text = json.dumps(json_value(whole), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return re.sub(r"\[\n[-+.,\deEnul\s]*\]", lambda m: " ".join(m[0].split()), text)


def _fields(part: Any) -> dict[str, Any]:
    fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    if isinstance(part, Tiles):
        fields["images"] = list(np.shape(part.images))
    return fields
