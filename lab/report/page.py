"""A story -> one self-contained HTML file, and report.json with every figure on it."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.report import charts
from lab.report.section import Control, Figure, Picture, Section, Story, Table, Tiles

VERDICTS = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("?", "cannot say")}


def said(figure: Figure) -> tuple[str, str]:
    """The value with its unit, and the interval or nothing, as the page has them.

    Rounded to two digits of the interval's width; four digits where there is no interval.
    """
    if figure.value is None or not math.isfinite(figure.value):
        return "cannot be said", ""
    factor, unit = (100, "%") if figure.unit == "%" else (1, f" {figure.unit}" * bool(figure.unit))
    value = figure.value * factor
    if figure.low is None or figure.high is None:
        return _short(value) + unit, ""
    low, high = figure.low * factor, figure.high * factor
    digits = 1 - math.floor(math.log10(high - low)) if low < high < math.inf else -1
    if not 0 <= digits <= 6 or abs(value) >= 1e6:
        return _short(value) + unit, f"{_short(low)} to {_short(high)}{unit}"
    value_text, *ends = (f"{v:,.{digits}f}".replace("-", "−") for v in (value, low, high))
    return value_text + unit, f"{' to '.join(ends)}{unit}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "no limit"
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}".replace("-", "−")
    text = charts.number(value, 4)
    return charts.number(value, 8) if text in ("100", "1") else text  # 99.999% is not all


def as_html(story: Story) -> str:
    """The page. Equal stories give equal text; nothing in it is fetched, no script is run."""
    _check(story)
    made = "".join(f"<dt>{_text(what)}</dt><dd>{_text(value)}</dd>" for what, value in story.made)
    contents = "".join(
        f'<li><a href="#{_text(s.slug)}">{_text(s.title)}</a><p>{_text(s.answer)}</p></li>'
        for s in story.sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(charts.clean(story.title))}</title>
<link rel="icon" href="data:,">
<style>{_style()}</style>
</head>
<body>
<main>
<header>
<h1>{_text(story.title)}</h1>
<p class="summary">{_text(story.summary)}</p>
</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
{_block("How it was made", f'<dl class="made">{made}</dl>' if made else "", "h2", "made")}
{"".join(map(_section, story.sections))}
</main>
</body>
</html>
"""


def as_json(story: Story) -> str:
    """Strict JSON, null for what is not finite: every figure by section and key, the controls, and
    the pictures' series. Tiles are there by size only."""
    _check(story)
    sections: dict[str, Any] = {
        section.slug: {
            "title": section.title,
            "answer": section.answer,
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
    text = json.dumps(_plain(whole), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return re.sub(r"\[\n[-+.,\deEnul\s]*\]", lambda m: " ".join(m[0].split()), text)


def _fields(part: Any) -> dict[str, Any]:
    fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    if isinstance(part, Tiles):
        fields["images"] = list(np.shape(part.images))
    return fields


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = _fields(value)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value


def _check(story: Story) -> None:
    """ValueError if a name that must be unique is not: one of the two would be lost."""
    sections = [section.slug for section in story.sections]
    pictures = [picture.slug for section in story.sections for picture in section.pictures]
    keys = [f"{s.slug}.{figure.key}" for s in story.sections for figure in s.figures]
    for names in (sections, pictures, keys):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"not unique in this report: {', '.join(sorted(twice))}")
    for slug in sections + pictures:
        if not re.fullmatch(r"[A-Za-z][\w-]*", slug):
            raise ValueError(f"{slug!r} cannot be an id: letters, digits, - and _")


def _text(text: str) -> str:
    """Escaped; `words in backticks` are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(charts.clean(text)))


def _words(line: str) -> str:
    """A command line that is broken between its words, not behind their hyphens."""
    words = html.escape(charts.clean(line)).split(" ")
    return " ".join(f"<span>{word}</span>" for word in words)


def _section(section: Section) -> str:
    unknown = "".join(f"<li>{_text(line)}</li>" for line in section.unknown)
    commands = "".join(
        f"<li>{_text(what)}<pre><code>{_words(line)}</code></pre></li>"
        for what, line in section.commands
    )
    return f"""
<section id="{section.slug}">
<h2>{_text(section.title)}</h2>
<p class="answer">{_text(section.answer)}</p>
{
        f'<div class="pictures">{"".join(_picture(section, p) for p in section.pictures)}</div>'
        if section.pictures
        else ""
    }
{_figures(section)}
{_block("What could have proved it false", _controls(section.controls))}
{_block("Not established", f"<ul>{unknown}</ul>" if unknown else "")}
{_block("To fill the gaps", f'<ul class="commands">{commands}</ul>' if commands else "")}
</section>"""


def _block(title: str, body: str, tag: str = "h3", kind: str = "block") -> str:
    return f'<div class="{kind}"><{tag}>{title}</{tag}>{body}</div>' if body else ""


def _figures(section: Section) -> str:
    rows = ""
    for figure in section.figures:
        value, interval = said(figure)
        note = f"<small>{_text(figure.note)}</small>" if figure.note else ""
        runs = f"{figure.runs}<span> run{'s' * (figure.runs != 1)}</span>" if figure.runs else ""
        rows += (
            f'<tr id="{section.slug}.{re.sub(r"[^A-Za-z0-9._-]+", "-", figure.key)}">'
            f'<th scope="row">{_text(figure.name)}{note}</th>'
            f"<td>{_text(value)}</td><td>{_text(interval)}</td><td>{runs}</td></tr>\n"
        )
    if not rows:
        return ""
    return f"""<table class="figures">
<thead><tr><th scope="col">Measured</th><th scope="col">Value</th><th scope="col">95% interval</th>
<th scope="col">Runs</th></tr></thead>
<tbody>{rows}</tbody></table>"""


def _picture(section: Section, picture: Picture) -> str:
    stop = "" if picture.title.endswith((".", "?", "!")) else "."
    caption = f"<figcaption><b>{_text(picture.title)}{stop}</b> {_text(picture.see)}</figcaption>"
    if isinstance(picture, Table):
        body, kind = _table(picture), ' class="wide"'
    else:
        body, kind = charts.svg(picture), ""
    return f'<figure{kind} id="{section.slug}/{picture.slug}">{body}{caption}</figure>\n'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _controls(controls: Sequence[Control]) -> str:
    items = ""
    for control in controls:
        sign, word = VERDICTS[control.passed]
        kind = word.split()[-1]
        items += (
            f'<li class="{kind}"><span class="verdict"><span aria-hidden="true">{sign}</span> '
            f"{word}</span><p>{_text(control.claim)} <em>{_text(control.outcome)}</em></p></li>"
        )
    return f'<ul class="controls">{items}</ul>' if items else ""


def _style() -> str:
    light, dark = (
        "".join(f"--{name}:{pair[i]};" for name, pair in charts.COLOURS.items()) for i in (0, 1)
    )
    return f"""
:root {{ {light} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
{_CSS}"""


_CSS = """
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 3rem 1rem 6rem; }
h1, h2, h3, p, ul, dl, ol, nav { max-width: 68ch; }
h1, h2 { line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; text-wrap: balance; }
h1 { font-size: clamp(1.75rem, 5vw, 2.5rem); margin: 0 0 1rem; }
h2 { font-size: clamp(1.35rem, 3.5vw, 1.75rem); margin: 0 0 1rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 0 0 0.5rem; }
p { margin: 0 0 1rem; }
a { color: var(--c0); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }
code { font: 0.9em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.summary { font-size: 1.2rem; color: var(--soft); }
nav { margin: 2.5rem 0; border-block: 1px solid var(--rule); padding: 1.5rem 0 0.5rem; }
nav ul { list-style: none; padding: 0; }
nav a { font-weight: 600; }
nav p { margin: 0.15rem 0 1rem; color: var(--soft); }
.made h2 { font-size: 1rem; margin-bottom: 0.5rem; }
.made dl { display: grid; grid-template-columns: minmax(6rem, max-content) minmax(0, 1fr);
  gap: 0.2rem 1.5rem; margin: 0; max-width: none; font-size: 0.9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
section { margin-top: 5rem; padding-top: 2rem; border-top: 1px solid var(--rule); }
.answer { font-size: clamp(1.2rem, 3vw, 1.4rem); line-height: 1.45; margin: 0 0 2rem;
  padding-left: 1rem; border-left: 4px solid var(--c0); text-wrap: pretty; }
.block { margin-top: 2rem; }
ul, ol { padding-left: 1.25rem; margin: 0; }
li { margin-bottom: 0.4rem; }
table { border-collapse: collapse; font-size: 0.9rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 1.25rem 0.45rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.figures { width: 100%; max-width: 56rem; margin: 0 0 2rem; }
.figures th[scope=row] { font-weight: 400; width: 60%; }
.figures td { white-space: nowrap; }
.figures td:nth-child(2) { font-weight: 650; }
.figures td span { display: none; }
small { display: block; color: var(--soft); font-size: 0.85em; }
.pictures { columns: 24rem 2; column-gap: 2rem; margin-bottom: 1rem; }
figure { margin: 0; padding-bottom: 2.5rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; max-width: 32rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: 0.6rem; font-size: 0.95rem; line-height: 1.5; max-width: 62ch; }
.wide { column-span: all; }
.scroll { overflow-x: auto; }
.scroll th, .scroll td { white-space: nowrap; }
.controls { list-style: none; padding: 0; }
.controls li { display: grid; grid-template-columns: 7.5rem 1fr; gap: 0.25rem 1rem; }
.controls p, .commands pre { margin: 0; }
.controls em { font-style: normal; color: var(--soft); }
.verdict { font-size: 0.85rem; font-weight: 650; padding: 0.1rem 0.6rem; border-radius: 1rem;
  border: 1.5px solid; align-self: start; justify-self: start; white-space: nowrap; }
.passed .verdict { color: var(--c2); }
.failed .verdict { color: var(--c1); border-style: double; border-width: 3px; }
.say .verdict { color: var(--soft); border-style: dashed; }
pre span { display: inline-block; max-width: 100%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.6rem 0.8rem; border-radius: 0.3rem;
  border: 1px solid var(--rule); }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; }
  section { margin-top: 3.5rem; }
  .figures thead { position: absolute; clip-path: inset(50%); }
  .figures tr { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0 1rem;
    padding: 0.5rem 0; border-bottom: 1px solid var(--rule); }
  .figures th, .figures td { border: 0; padding: 0; white-space: normal; }
  .figures th[scope=row] { grid-column: 1 / -1; width: auto; }
  .figures td span { display: inline; }
  .controls li { grid-template-columns: 1fr; margin-bottom: 1rem; }
  .made dl { grid-template-columns: 1fr; }
  .made dd { margin-bottom: 0.4rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  :root { --paper: #fff; font-size: 9.5pt; }
  main { padding: 0; max-width: none; }
  a { color: inherit; text-decoration: none; }
  section { margin-top: 3rem; }
  .pictures { columns: auto; }
  .pictures figure { display: inline-block; width: 48%; margin-right: 1.5%; vertical-align: top; }
  .pictures .wide { display: block; width: auto; margin: 0; break-inside: auto; }
  .scroll { overflow: visible; }
  .scroll table { font-size: 0.8rem; }
  .scroll th, .scroll td { white-space: normal; padding-right: 0.5rem; }
  h1, h2, h3, .answer, thead { break-after: avoid; }
  tr, li, dd, .answer { break-inside: avoid; }
  th, td { padding-block: 0.25rem; }
  pre { border-color: #999; }
}
"""
