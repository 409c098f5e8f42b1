"""The report drawn: one page, report.json and TensorBoard's run, from a story made by hand."""

from __future__ import annotations

import dataclasses
import html
import html.parser
import io
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib.image
import numpy as np
import programs
import pytest
import small_runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.errors import LabError
from lab.report import board, charts, figures, figures_json, page
from lab.report import main as program
from lab.report.section import (
    Bars,
    Chart,
    Control,
    Figure,
    Mark,
    Section,
    Series,
    Story,
    Table,
    Tiles,
)

NAN, INF = math.nan, math.inf
STEPS = np.arange(1, 2001)
NASTY = "<b>&\"'</b><script>alert(1)</script> $x_1$ \x00 http://example.com/"
LONG = "/a/very/long/path/" + "x" * 120

CURVES = Chart(
    "curves",
    "Distance from the start",
    "It grows.",
    "step",
    "‖W_t − W_0‖",
    [
        Series("h1", STEPS, STEPS**0.5, STEPS**0.5 * 0.9, STEPS**0.5 * 1.1),
        Series("h2", STEPS, [None, NAN, INF, *STEPS[3:] ** 0.3], style="dashes"),
        Series(NASTY, [1, 10, 100], [3, 2, None], [2, NAN, None], [4, 3, None], style="points"),
    ],
    [Mark("first", 10, "x"), Mark("random walk", 20.0)],
    "log",
    "log",
)
OUTLINES = Chart(
    "outlines",
    "Weights",
    "Twice as wide.",
    "weight",
    "entries",
    [
        Series(n, np.linspace(-1, 1, 30), k * np.arange(30.0), style="steps")
        for k, n in enumerate("ab")
    ],
    y_scale="symlog",
)
EMPTY = Chart(
    "empty", "Nothing", "No value.", "x", "y", [Series("", [1, 2], [None, NAN])], (), "log"
)
STANDING = Bars(
    "standing",
    "Layers put back",
    "The last cannot be.",
    "test accuracy",
    [
        Series("start", ["h1", "h2"], [0.9, None], [0.8, None], [1.0, None]),
        Series("afresh", ["h1", "h2"], [0.1, 0.2]),
    ],
    [Mark("chance", 0.1)],
)
LYING = Bars(
    "lying",
    "Update ratio",
    "Four decades.",
    "‖dW‖ / ‖W‖",
    [
        Series("h1", [f"configuration number {i}" for i in range(4)], [1e-5, 1e-3, 0, 1e-1]),
        Series("some", ["configuration number 2"], [1e-2], [1e-3], [1e-1], style="points"),
    ],
    [Mark("rule of thumb", 1e-3)],
    "log",
)
TILES = Tiles(
    "tiles",
    "Incoming weights",
    "Strokes.",
    np.random.default_rng(0).standard_normal((7, 28, 28)),
    [f"unit {i}" for i in range(7)],
)
TABLE = Table("rows", "A table", "Wide.", [f"column {i}" for i in range(12)], [[LONG] + ["1"] * 11])
STORY = Story(
    f"What runs show {NASTY}",
    f"A summary {NASTY}",
    [("commit", "abc"), (NASTY, LONG)],
    [
        Section(
            "layers",
            "Which layers?",
            f"The first `h1`: {NASTY}",
            [
                Figure("drop", "lost by h1", 0.0253, 0.0211, 0.0295, 5, "%", NASTY),
                Figure("count:a b", "pixels never lit", 67, 67, 67, 5),
                Figure("nan", "not a number", NAN, -INF, INF, 2),
                Figure("gone", "not measured", None, runs=0),
            ],
            [CURVES, STANDING, LYING, TABLE],
            [
                Control("It would fall.", "It fell.", True),
                Control("It would rise.", "It did not.", False),
                Control("It would stay.", "No such run.", None),
            ],
            [NASTY],
            [("more seeds", f"bin/train --seeds=5 --logdir='{LONG} & <b>'")],
        ),
        Section("growth", "Why do they grow?", "They drift.", [], [OUTLINES, TILES, EMPTY]),
    ],
)
SHORT = dataclasses.replace(STORY, sections=STORY.sections[1:])
DRAWN = [p for section in STORY.sections for p in section.pictures if not isinstance(p, Table)]


# Makes a page, and then a report where files may not grow beyond 30 kB.
ELSEWHERE = """
import json, os, resource, signal, sys, tempfile
import test_report_page as t

found = {"page": t.page.as_html(t.SHORT), "said": ""}
with tempfile.TemporaryDirectory() as folder:
    t.board.write(t.SHORT, folder)
    before = os.listdir(folder + "/report")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        t.board.write(t.SHORT, folder)
    except t.LabError as error:
        found["said"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found["same"] = os.listdir(folder + "/report") == before
sys.stdout.write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """What a process of its own says, with another hash of texts."""
    path = os.pathsep.join([programs.ROOT, os.path.dirname(__file__)])
    environment = {"PYTHONPATH": path, "PYTHONUTF8": "1", "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=programs.ENVIRONMENT | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Page(html.parser.HTMLParser):
    """What a page is made of: (tag, attributes) in order, its text, and whether tags close."""

    VOID = frozenset({"meta", "link"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def text():
    return page.as_html(STORY)


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("picture", DRAWN, ids=lambda p: p.slug)
def test_a_picture_is_svg_with_text_a_title_and_its_own_ids(picture):
    text = charts.svg(picture)
    root = ET.fromstring(text)
    assert root.get("role") == "img" and "viewBox" in root.attrib
    assert not root.get("width") and not root.get("height")
    (title,) = [e for e in root if e.tag.endswith("title")]
    assert title.text == picture.title and root.get("aria-labelledby") == title.get("id")
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(set(ids)) == len(ids) and all(i.startswith(f"{picture.slug}-") for i in ids)
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
    assert set(used) <= set(ids)
    # No colour but the page's, and no style that would leave the picture.
    assert not re.search(r"#[0-9a-f]{3,8}\b", re.sub(r'href="[^"]*"', "", text))
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(charts.COLOURS)
    assert "<style" not in text and "metadata" not in text and "font-family" not in text
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)]
    assert sizes and min(sizes) * 328 / float(root.get("viewBox").split()[2]) >= 11


@pytest.mark.parametrize(
    "picture",
    [p if p is STANDING else pytest.param(p, marks=pytest.mark.slow) for p in DRAWN],
    ids=lambda p: p.slug,
)
def test_a_picture_is_a_png_of_the_same_bytes_each_time(picture):
    content = charts.png(picture)
    pixels = matplotlib.image.imread(io.BytesIO(content), format="png")
    assert pixels.shape[1] == 700 and np.ptp(pixels[..., :3]) > 0.5
    assert charts.png(picture) == content
    assert charts.svg(picture) == charts.svg(picture)


def words(picture):
    return [e.text for e in ET.fromstring(charts.svg(picture)).iter() if e.tag.endswith("text")]


def test_axes_marks_and_series_are_named():
    for chart in (CURVES, OUTLINES):
        found = " ".join(words(chart))
        for name in (chart.x_label, chart.y_label, *(m.label for m in chart.marks)):
            assert name in found
        assert all(" ".join(s.name.split()[:1]) in found for s in chart.series)
    for name in ("h1", "h2", "chance", "start", "afresh", "test accuracy"):
        assert name in words(STANDING)
    assert "no value" in words(EMPTY)


def test_a_gap_is_left_where_there_is_no_value():
    def strokes(y):
        chart = dataclasses.replace(
            CURVES, series=[Series("", range(9), y)], marks=(), x_scale="linear"
        )
        paths = [
            e.get("d") for e in ET.fromstring(charts.svg(chart)).iter()
            if "var(--c0)" in e.get("style", "") and "fill: none" in e.get("style", "")
        ]  # fmt: skip
        return sum(d.count("M") for d in paths)

    assert strokes([1.0, 2, 3, 4, 5, 4, 3, 2, 1]) == 1
    assert strokes([1.0, 2, 3, None, 5, 4, 3, 2, 1]) == 2
    assert strokes([1.0, 2, 3, None, 5, 4, INF, 2, 1]) == 3


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_an_axis_of_what_is_never_negative_starts_at_0(scale):
    def lowest(y):
        chart = Chart("c", "C", "See.", "x", "y", [Series("", y, y)], (), scale, scale)
        (axes,) = charts._chart(chart).axes
        return axes.get_xlim()[0], axes.get_ylim()[0]

    assert lowest([0.0, 1.0, 40.0]) == (0, 0)
    assert max(lowest([-1.0, 0.0, 40.0])) <= -1
    assert min(lowest([30.0, 40.0])) > 0


def test_a_spike_of_one_step_is_drawn():
    """Long curves are thinned, but not of what stands out."""
    y = np.sin(np.arange(100_000) / 3000) + np.random.default_rng(0).normal(0, 0.001, 100_000)
    y[[33_333, 77_777]] = 50, -50
    chart = Chart("long", "Long", "See.", "x", "y", [Series("", np.arange(100_000), y)])
    text = charts.svg(chart)
    (path,) = re.findall(r'd="(M[^"]+)"[^>]*stroke: var\(--c0\)', text)
    heights = [float(number) for number in re.findall(r"[ML] \S+ (\S+)", path)]
    low, middle, high = np.percentile(heights, [0, 50, 100])
    assert len(heights) < 20_000 and len(text) < 400_000
    assert middle - low > 50 and high - middle > 50


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.1, "0.1"), (0.001, "0.001"), (1e-4, "10⁻⁴"), (2e-7, "2·10⁻⁷"), (-3, "−3"),
        (20_000, "20,000"), (1e6, "10⁶"), (-1e-5, "−10⁻⁵"), (100, "100"), (0.3, "0.3"),
    ],
)  # fmt: skip
def test_numbers_on_axes(value, text):
    assert figures.number(value, 6) == text


# ------------------------------------------------------------------ the page


def test_the_page_is_well_formed_and_its_ids_are_unique(parsed):
    ids = parsed.all("id")
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w./-]+", i) for i in ids)
    for target in [h for h in parsed.all("href") if h.startswith("#")]:
        assert target[1:] in ids
    assert {"layers", "growth", "layers/curves", "layers.drop", "layers.count-a-b"} <= {*ids}
    opening = sum(not isinstance(one, Table) for s in STORY.sections for one in s.pictures[:1])
    assert sum(tag == "svg" for tag, _ in parsed.tags) == len(DRAWN) + opening == len(DRAWN) + 2
    assert sum(tag == "h1" for tag, _ in parsed.tags) == 1
    assert sum(tag == "figcaption" for tag, _ in parsed.tags) == len(DRAWN) + 1


def test_the_page_fetches_and_runs_nothing(text, parsed):
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "iframe", "img", "object", "embed", "base", "form"}
    links = parsed.all("href") + parsed.all("xlink:href") + parsed.all("src")
    assert all(link.startswith(("#", "data:")) for link in links)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)


def test_the_page_says_all_of_the_story(parsed):
    for section in STORY.sections:
        assert parsed.text.count(section.title) == 2  # the contents, too
        for picture in section.pictures:
            assert picture.title in parsed.text and picture.see in parsed.text
        for figure in section.figures:
            assert figure.name in parsed.text
    for words in ("2.53%", "2.11 to 2.95%", "67 to 67", "not measured", "passed", "failed"):
        assert words in parsed.text
    assert "cannot say" in parsed.text and "bin/train" in parsed.text
    assert parsed.text.count("alert(1)") >= 6 and "\x00" not in parsed.text
    # The command line can be copied.
    line = STORY.sections[0].commands[0][1]
    assert line in "".join(parsed.words)


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure("", "", 0.97432, 0.9714, 0.9772, unit="%"), ("97.43%", "97.14 to 97.72%")),
        (Figure("", "", -1.23456, -1.3, -1.1), ("−1.23", "−1.30 to −1.10")),
        (Figure("", "", 1234.5, 1100, 1300, unit="s"), ("1,234 s", "1,100 to 1,300 s")),
        (Figure("", "", 0.123456), ("0.1235", "")),
        (Figure("", "", 0.9999999, unit="%"), ("99.99999%", "")),
        (Figure("", "", 3.1e-7), ("3.1·10⁻⁷", "")),
        (Figure("", "", 5e-9, 4e-9, 6e-9), ("5·10⁻⁹", "4·10⁻⁹ to 6·10⁻⁹")),
        (Figure("", "", 1, -INF, INF), ("1", "no limit to no limit")),
        (Figure("", "", INF), ("not measured", "")),
    ],
)  # fmt: skip
def test_figures_are_rounded_by_their_intervals(figure, text):
    assert figures.rounded(figure) == text


@pytest.mark.slow
def test_equal_stories_give_equal_bytes(text, elsewhere):
    assert page.as_html(STORY) == text
    assert elsewhere["page"] == page.as_html(SHORT)


def test_names_must_be_unique():
    section = STORY.sections[0]
    twice = [*section.figures, section.figures[0]]
    for sections in (
        [section, section],
        [dataclasses.replace(section, figures=twice)],
        [dataclasses.replace(section, slug="a b")],
    ):
        with pytest.raises(ValueError, match=r"unique|id"):
            page.as_html(dataclasses.replace(STORY, sections=sections))


def test_an_empty_story_has_a_page():
    Page(page.as_html(Story("Nothing", "", [], [Section("a", "?", "No.")])))


def test_report_json_is_strict_and_holds_every_figure():
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    whole = json.loads(figures_json.as_json(STORY), parse_constant=refuse)
    assert whole["title"] == STORY.title
    assert list(whole["sections"]) == [section.slug for section in STORY.sections]
    for section in STORY.sections:
        entry = whole["sections"][section.slug]
        assert entry["answer"] == section.answer
        assert list(entry["figures"]) == [figure.key for figure in section.figures]
        assert list(entry["pictures"]) == [picture.slug for picture in section.pictures]
        assert [c["passed"] for c in entry["controls"]] == [c.passed for c in section.controls]
    figures = whole["sections"]["layers"]["figures"]
    assert figures["drop"] == {
        "name": "lost by h1", "value": 0.0253, "low": 0.0211, "high": 0.0295, "runs": 5,
        "unit": "%", "note": NASTY,
    }  # fmt: skip
    assert figures["nan"]["value"] is figures["nan"]["low"] is figures["gone"]["value"] is None
    curves = whole["sections"]["layers"]["pictures"]["curves"]
    assert curves["kind"] == "Chart" and curves["series"][0]["x"] == STEPS.tolist()
    assert curves["series"][1]["y"][:4] == [None, None, None, 4**0.3]
    assert whole["sections"]["growth"]["pictures"]["tiles"]["images"] == [7, 28, 28]


# ------------------------------------------------------------------ TensorBoard


def test_tensorboard_reads_the_pictures_and_the_text(tmp_path):
    part = dataclasses.replace(STORY, sections=STORY.sections[-1:])
    for story in (part, STORY):  # written anew, not added to
        board.write(story, str(tmp_path))
        assert len(os.listdir(tmp_path / "report")) == 1
    events = EventAccumulator(str(tmp_path / "report"), size_guidance={"tensors": 0}).Reload()
    by_plugin = {plugin: sorted(events.PluginTagToContent(plugin)) for plugin in ("images", "text")}
    assert by_plugin["images"] == sorted(
        f"{section.slug}/{picture.slug}"
        for section in STORY.sections
        for picture in section.pictures
        if picture in DRAWN
    )
    assert by_plugin["text"] == ["growth/answer", "layers/answer", "summary"]
    for picture in (CURVES, LYING):
        (event,) = events.Tensors(f"layers/{picture.slug}")
        width, height, content = event.tensor_proto.string_val
        pixels = matplotlib.image.imread(io.BytesIO(content), format="png")
        assert (int(width), int(height)) == (700, len(pixels))
        expected = matplotlib.image.imread(io.BytesIO(charts.png(picture)), format="png")
        np.testing.assert_array_equal(pixels, expected[..., :3])
        about = events.SummaryMetadata(f"layers/{picture.slug}").summary_description
        assert picture.see in about
    (event,) = events.Tensors("layers/answer")
    text = event.tensor_proto.string_val[0].decode()
    assert "| lost by h1 | 2.53% | 2.11 to 2.95% | 5 |" in text
    assert "✓ passed" in text and "✗ failed" in text and "<script" not in text


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "events.out.tfevents.1.host"])
def test_a_folder_that_no_report_wrote_is_left_alone(tmp_path, name):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(LabError, match=re.escape(name)):
        board.write(STORY, str(tmp_path))
    assert os.listdir(folder) == [name] and (folder / name).read_text() == "mine"


def test_two_reports_at_once_are_told_in_one_line(tmp_path, monkeypatch):
    def twice(story, pngs, path):
        os.makedirs(path, exist_ok=True)
        for name in ("1", "2"):
            pathlib.Path(path, f"events.out.tfevents.{name}.report").write_text("")
        return 0

    monkeypatch.setattr(board, "_write_events", twice)
    with pytest.raises(LabError, match=r"2 new event files .* again alone$"):
        board.write(STORY, str(tmp_path))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_report(elsewhere):
    """Of a process whose files may not grow beyond 30 kB."""
    assert "cannot be written" in elsewhere["said"] and elsewhere["same"]


# ------------------------------------------------------------------ in a browser


@pytest.fixture
def chromium(tmp_path):
    if not shutil.which("chromium"):
        pytest.skip("needs chromium on PATH")

    def run(content, *flags, width=1000):
        """Loads a page; returns what `flags` make the browser print."""
        path = tmp_path / "page.html"
        path.write_text(content, encoding="utf-8")
        return subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
                *(f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1400"),
                *(*flags, path.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        ).stdout

    return run


def framed(text, width, script):
    """A page that shows another in a frame so wide (a window is never narrower than 500 pixels),
    and says as JSON in an element `found` what a function of its document returns."""
    return f"""<!DOCTYPE html><meta charset="utf-8"><body>
<iframe style="border: 0; width: {width}px; height: 800px" srcdoc="{html.escape(text)}"></iframe>
<pre id="found"></pre>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const found = ({script})(page);
  document.querySelector("iframe").remove();
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


def found(dom):
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, pytest.param(800, marks=pytest.mark.slow)])
def test_nothing_is_wider_than_the_screen(chromium, text, width):
    script = """page => {
      const letters = [...page.querySelectorAll("figure svg text")].map(e => {
        const scale = e.getScreenCTM();
        return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(scale.a, scale.b);
      });
      const inside = e => e.closest(".scroll") && !e.matches(".scroll");
      const wide = [...page.body.querySelectorAll("*")].filter(e => !e.closest("svg") && !inside(e)
        && e.getBoundingClientRect().right > page.documentElement.clientWidth + 0.5);
      return {
        page: page.documentElement.scrollWidth, screen: page.documentElement.clientWidth,
        wide: wide.map(e => e.outerHTML.slice(0, 80)), letters: Math.min(...letters),
        table: page.querySelector(".scroll").scrollWidth,
        fetched: page.defaultView.performance.getEntriesByType("resource").length,
      };
    }"""
    seen = found(chromium(framed(text, width, script), "--dump-dom"))
    assert seen["screen"] == width and seen["page"] <= width and not seen["wide"]
    assert seen["table"] > width  # it has a box of its own
    assert seen["letters"] >= 10.9 and seen["fetched"] == 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [1000, pytest.param(360, marks=pytest.mark.slow)])
def test_the_openings_pictures_can_be_read(chromium, width):
    """A tall one is scaled down, where no other one of its section is less tall; none is cut."""
    names = [f"configuration {i}" for i in range(20)]
    tall = dataclasses.replace(LYING, slug="tall", series=[Series("a", names, [0.5] * 20)])
    alone = dataclasses.replace(tall, slug="alone")
    sections = [Section("a", "A", "B.", [], [tall, OUTLINES]), Section("b", "B", "C.", [], [alone])]
    text = page.as_html(Story("Tall", "Pictures.", [], sections))
    script = """page => [...page.querySelectorAll("nav svg")].map(svg => {
      const use = svg.firstElementChild, box = svg.getBoundingClientRect();
      const drawn = use.getBoundingClientRect();
      return [use.getAttribute("href"), drawn.width, drawn.height, box.width, box.height];
    })"""
    seen = found(chromium(framed(text, width, script), "--dump-dom"))
    assert [one[0] for one in seen] == ["#outlines-drawing", "#alone-drawing"]
    for _, width, height, wide, high in seen:
        assert width <= 1.01 * wide and height <= 1.01 * high < wide
    assert 11 * seen[0][1] / 324 > 8 and seen[0][1] > 0.9 * seen[0][3]


@pytest.mark.slow
@pytest.mark.browser
def test_dark_and_light(chromium, text, tmp_path):
    def brightness(*flags):
        picture = tmp_path / "page.png"
        chromium(text, f"--screenshot={picture}", *flags)
        pixels = matplotlib.image.imread(picture)[..., :3]
        return np.median(pixels), pixels.max() - pixels.min()

    paper, contrast = brightness()
    assert paper > 0.95 and contrast > 0.8
    paper, contrast = brightness("--force-dark-mode")
    assert paper < 0.15 and contrast > 0.8


def luminance(colour):
    """Relative, after WCAG 2.2."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(mode):
    """By the ratios that WCAG asks: 4.5 for text, 3 for what is drawn."""
    paper = luminance(charts.COLOURS["paper"][mode])
    for name, pair in charts.COLOURS.items():
        high, low = sorted([luminance(pair[mode]), paper], reverse=True)
        least = {"paper": 0, "rule": 0, "ink": 7, "soft": 4.5, "c0": 4.5, "c1": 4, "c2": 4.5}
        assert (high + 0.05) / (low + 0.05) >= least.get(name, 3), name


@pytest.mark.browser
def test_print_has_every_page(chromium, text, tmp_path):
    path = tmp_path / "page.pdf"
    chromium(text, "--no-pdf-header-footer", f"--print-to-pdf={path}")
    pages = re.findall(rb"/Type\s*/Page\b", path.read_bytes())
    assert 2 <= len(pages) <= 12


# ------------------------------------------------------------------ bin/report


def report(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "lab.report.main", *map(str, arguments)],
        cwd=cwd,
        env=programs.ENVIRONMENT | environment,
        capture_output=True,
        text=True,
    )
    return programs.Outcome(done.returncode, done.stdout, done.stderr)


RUN = ["--n_hidden_1=6", "--n_hidden_2=5", "--training_steps=20", "--display_step=10"]
RUN += ["--batch_size=20", "--watch=norms", "--xla=off"]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """Two small runs, beside their data."""
    folder = tmp_path_factory.mktemp("runs")
    data, path = small_runs.write_data(folder / "data"), folder / "logs"
    for seed in (0, 1):
        outcome = programs.train(*RUN, f"--data={data}", f"--seed={seed}", f"--logdir={path}")
        assert outcome.status == 0, outcome.err
    return path


def test_the_program_prints_the_table_and_writes_the_page(logdir, monkeypatch):
    monkeypatch.chdir(logdir.parent)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as the program itself sets it
    table = programs.report("logs", "--nopage")
    assert (table.status, table.err) == (0, "") and len(os.listdir(logdir)) == 2
    done = programs.report("logs")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(table.out)
    said = done.out.removeprefix(table.out)
    for name in ("logs/report.html", "logs/report.json", "tensorboard", "'report'"):
        assert name in said
    Page((logdir / "report.html").read_text(encoding="utf-8"))
    sections = json.loads((logdir / "report.json").read_text(encoding="utf-8"))["sections"]
    assert len(sections) >= 6
    assert {"report", "report.html", "report.json"} < {*os.listdir(logdir)}
    # What was written is no run: the next report finds the same ones, and says the same.
    first = (logdir / "report.html").read_bytes()
    again = programs.report("logs", "--format=json")
    assert again.status == 0 and len(json.loads(again.out)["rows"][0]["seeds"]) == 2
    assert "logs/report.html" in again.err
    assert (logdir / "report.html").read_bytes() == first
    assert len(os.listdir(logdir / "report")) == 1


@pytest.mark.slow
def test_a_run_with_a_report_in_it_is_still_a_run(logdir, tmp_path):
    """bin/report on one run writes into its directory; bin/train takes that up again."""
    name = next(path.name for path in sorted(logdir.iterdir()) if path.name.endswith("seed=0"))
    shutil.copytree(logdir / name, tmp_path / name)
    done = report(name, cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / name / "report.html").exists()
    flags = (*RUN, f"--data={logdir.parent / 'data'}")
    outcome = programs.train(*flags, f"--logdir={tmp_path}")
    assert outcome.status == 0, outcome.err
    outcome = programs.train(*flags, f"--logdir={tmp_path}", "--overwrite")
    assert outcome.status == 0 and not (tmp_path / name / "report.html").exists()


def one_line(outcome, *words):
    assert outcome.status == 1
    assert re.fullmatch(r"report: .*\n", outcome.err), outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.slow
def test_what_cannot_be_written_is_said_in_one_line(logdir, tmp_path):
    path = tmp_path / "logs"
    shutil.copytree(logdir, path, ignore=shutil.ignore_patterns("report*"))
    (path / "report.html").mkdir()
    outcome = report("logs", cwd=tmp_path)
    one_line(outcome, "logs/report.html", "folder")
    assert "accuracy" in outcome.out  # the table comes first
    (path / "report.html").rmdir()
    (path / "report").mkdir()
    (path / "report" / "config.json").write_text("{}")
    one_line(report("logs", cwd=tmp_path), "logs/report", "config.json")
    assert not (path / "report.json").exists()


def test_no_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = programs.report(".")
    one_line(outcome, "no run")
    assert os.listdir(tmp_path) == []


def test_without_matplotlib_the_table_is_printed_and_what_to_install_is_said(logdir, tmp_path):
    hide = "import sys\nsys.modules['matplotlib'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    path = os.pathsep.join([str(tmp_path), programs.ROOT])
    outcome = report(logdir, cwd=tmp_path, PYTHONPATH=path)
    one_line(outcome, "matplotlib", "pip install")
    assert outcome.out == programs.report(logdir, "--nopage").out


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(monkeypatch, terminal):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    with program._bar("measuring") as progress:
        progress(0, 4)
        progress(4, 4)
    assert ("measuring" in stderr.getvalue()) == terminal
