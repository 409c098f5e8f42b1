"""The page of bin/view in a real browser, against the event files as TensorBoard reads them."""

import csv
import json
import os
import pathlib
import random
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request

import events
import forks
import numpy as np
import programs
import pytest
import tensorflow as tf

from lab.record.run import RunReader
from lab.viewer.server import Server

pytestmark = pytest.mark.browser
SMALL = [
    *("--batch_size=20", "--display_step=20", "--reduction=mean", "--checkpoint_every=50"),
    *("--n_hidden_1=8", "--n_hidden_2=6", "--init_stddev=0.5", "--xla=off"),
]


@pytest.fixture(scope="module")
def browser():
    if not shutil.which("chromium"):
        pytest.skip("needs chromium on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that may ask nobody for anything, and on which nothing may go wrong."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: request.url.startswith("http") and wrong.append(request.url))
    page.wrong = wrong
    yield page
    context.close()
    assert not wrong


@pytest.fixture(scope="module")
def logdir(tmp_path_factory, tiny):
    """Two runs: one of 120 steps, and a shorter one without gradients."""
    folder = tmp_path_factory.mktemp("view")
    data = f"--data={forks.write_idx(folder / 'idx', tiny)}"
    kinds = {"long": "weights,gradients,norms", "short": "weights,norms"}
    for name, steps in (("long", 120), ("short", 70)):
        where = (f"--logdir={folder}", f"--run_name={name}", f"--watch={kinds[name]}")
        outcome = programs.train(*SMALL, data, *where, f"--training_steps={steps}")
        assert outcome.status == 0, outcome.err
    assert programs.view(folder / "long").status == 0
    assert programs.view(folder / "long", folder / "short").status == 0  # beside them
    os.rename(folder / "view.html", folder / "both.html")
    return folder


@pytest.fixture(scope="module")
def recorded(logdir):
    return events.read(logdir / "long")


def visit(page, path, **view):
    page.goto("about:blank")
    page.goto(f"file://{path}#{urllib.parse.urlencode(view)}")
    page.wait_for_function("runs.every((run) => run.histograms.get(view.tensor)?.ready ?? true)")
    return page


def until(page, condition):
    """Waits for a JavaScript condition; in it, shown() is the step of the panel's histogram."""
    shown = "const shown = () => document.querySelector('[data-figure=step] td')?.textContent;"
    page.wait_for_function(f"() => {{ {shown} return {condition}; }}", timeout=60_000)


def buckets(page):
    """What the table of buckets shows: rows of (from, to, entries)."""
    if not page.locator("#buckets").get_attribute("open"):
        page.locator("#buckets").evaluate("(one) => { one.open = true; }")
    until(page, "document.querySelectorAll('#buckets tbody tr').length === 30")
    cells = page.locator("#buckets tbody td").all_text_contents()
    return np.array(cells, float).reshape(30, 3)


def figure(page, name):
    cells = page.locator(f"tr[data-figure={name}] td").all_text_contents()
    return [float(text.replace("−", "-").rstrip("%").replace("–", "nan")) for text in cells]


def settled(page):
    """The link, once it is written."""
    page.wait_for_timeout(500)
    return urllib.parse.parse_qs(urllib.parse.urlsplit(page.url).fragment)


def test_histograms_are_those_of_the_event_file(page, logdir, recorded):
    chance = random.Random(5)
    visit(page, logdir / "long/view.html")
    for _ in range(10):
        tag = chance.choice([*events.histograms(recorded)])
        step = chance.randint(1, 120)
        page.evaluate(f"location.hash = '#step={step}&tensor={tag}'")
        until(page, f"view.step === {step} && view.tensor === '{tag}'")
        until(page, f"shown() === '{step}'")
        place = recorded[tag].steps.index(step)
        np.testing.assert_array_equal(buckets(page), recorded[tag].values[place])


def test_slider_keys_field_film_and_mouse_move_one_cursor(page, logdir):
    visit(page, logdir / "long/view.html", step=10)
    for keys, step in (
        *((["ArrowRight"], 11), (["Shift+ArrowRight"], 111), (["ArrowLeft"] * 2, 109)),
        *((["Home"], 1), (["Shift+ArrowRight"] * 2, 120), (["Shift+ArrowLeft"], 20)),
    ):
        for key in keys:
            page.keyboard.press(key)
        until(page, f"view.step === {step}")
        until(page, f"shown() === '{step}'")
        assert page.locator("#slider").input_value() == str(step)
        assert page.locator("#slider").get_attribute("aria-valuetext") == f"step {step}"
    page.locator("#step").fill("77")
    until(page, "view.step === 77")
    page.locator("#slider").focus()
    page.locator("#slider").evaluate(
        "(one) => { one.value = 33; one.dispatchEvent(new Event('input')); }"
    )
    until(page, "view.step === 33 && document.querySelector('#step').value === '33'")
    page.locator("#speed").select_option("100")
    page.locator("#slider").focus()
    page.keyboard.press("Space")
    until(page, "view.step === 120 && playing === null")
    page.keyboard.press("Escape")
    box = page.locator("[data-tag='h1/weights/gradient'] .plot")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    y = place["y"] + 20
    page.mouse.move(place["x"] + place["width"] / 4, y)
    until(page, "Math.abs(view.step - 30.5) < 1.1")
    page.mouse.down()
    page.mouse.up()  # holds the cursor, and chooses the tensor
    page.mouse.move(place["x"] + place["width"] / 2, y)
    until(page, "view.tensor === 'h1/weights/gradient'")
    assert page.evaluate("view.step") < 40
    cursors = page.evaluate(
        "plots.filter((one) => one.visible).map((one) => one.cursor.style.transform)"
    )
    assert len({*cursors}) == 1 and len(cursors) > 5


def test_zoom_is_in_the_link_and_a_link_opens_the_same_view(page, logdir):
    visit(page, logdir / "long/view.html", step=60, tensor="h2/weights")
    box = page.locator("[data-tag='h2/weights'] .plot")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    page.mouse.move(place["x"] + place["width"] / 4, place["y"] + 10)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 60, steps=4)
    page.mouse.up()
    page.keyboard.press("p")
    page.keyboard.press("ArrowRight")
    page.locator("#log").check()
    link = settled(page)
    first, last = map(int, link["range"][0].split(".."))
    assert abs(first - 30.5) < 2 and abs(last - 60.5) < 2
    low, high = map(float, link["values"][0].split(".."))
    wide = page.evaluate("around(runs.map((run) => inRange(run.histograms.get('h2/weights'))))")
    assert wide[0] < low < high < wide[1] + 1e-9
    assert link["pin"] == ["60"] and link["step"] == ["61"] and link["log"] == ["1"]
    url = page.url
    page.goto("about:blank")
    page.goto(url)
    until(page, "view.step === 61 && view.pin === 60 && view.log && view.tensor === 'h2/weights'")
    assert page.locator("#first").input_value() == str(first)
    assert page.evaluate("view.values['h2/weights']") == pytest.approx([low, high])
    page.locator("#all").click()
    until(page, "view.range === null")
    page.locator("#slider").focus()
    page.keyboard.press("+")
    until(page, "range()[1] - range()[0] === 60")
    for end, step in (("End", 120), ("Home", 1)):  # of the zoomed range, at an end of the run
        page.evaluate(f"change({{ range: [{step} - 20, {step} + 20], step: {step} }})")
        page.keyboard.press(end)
        page.keyboard.press("-")
        until(page, f"range()[1] - range()[0] === 40 && view.step === {step}")
        page.keyboard.press("-")
        page.keyboard.press("-")
        until(page, "view.range === null")


def test_of_two_fields_only_the_edited_one_changes(page, logdir):
    """And none by what is no number, or beyond the other: that goes when the field is left."""
    tag = "h2/weights"
    visit(page, logdir / "long/view.html", tensor=tag, values="-1.23456e-05..2e-05")
    low, high = page.locator("#low"), page.locator("#high")
    until(page, "document.querySelector('#high').value")
    high.fill("3e-5")
    high.press("Enter")
    assert page.evaluate(f"view.values['{tag}']") == [-1.23456e-05, 3e-05]
    low.fill("\u22122e\u22125")
    low.press("Tab")
    until(page, "document.querySelector('#low').value === written(-2e-5)")
    assert page.evaluate(f"view.values['{tag}']") == [-2e-05, 3e-05]
    for field, text in (
        (low, "5"),
        (high, "-Infinity"),
        (low, "x"),
        (page.locator("#last"), "999"),
    ):
        before = field.input_value()
        field.fill(text)
        field.press("Tab")
        page.wait_for_function(
            "([one, text]) => one.value === text", arg=[field.element_handle(), before]
        )
    assert page.evaluate(f"view.values['{tag}']") == [-2e-05, 3e-05]


def test_figures_of_the_cursor_and_the_pinned_step(page, logdir, recorded):
    visit(page, logdir / "long/view.html", step=100, tensor="h1/weights", pin=3)
    until(page, "document.querySelectorAll('[data-figure=step] td').length === 2")
    assert figure(page, "step") == [100, 3]
    for column, step in enumerate((100, 3)):
        rows = recorded["h1/weights"].values[step - 1]
        middle, counts = rows[:, :2].mean(1), rows[:, 2]
        mean = np.average(middle, weights=counts)
        deviation = np.sqrt(np.average((middle - mean) ** 2, weights=counts))
        around = counts[(rows[:, 0] <= 0) & (rows[:, 1] >= 0)][-1] / counts.sum()
        for name, value in (
            *(("smallest", rows[0, 0]), ("largest", rows[-1, 1]), ("mean", mean)),
            *(("deviation", deviation), ("nonfinite", 0)),
        ):
            assert figure(page, name)[column] == pytest.approx(value, rel=1e-3), name
        assert figure(page, "near")[column] == pytest.approx(100 * around, abs=0.006)


@pytest.mark.slow
def test_at_the_deepest_zoom_a_column_is_a_step(page, logdir, recorded):
    tag, first, last = "logits/weights", 50, 53
    visit(page, logdir / "long/view.html", range=f"{first}..{last}", tensor=tag)
    page.locator(f"[data-tag='{tag}'] .plot").scroll_into_view_if_needed()
    found = f"plots.find((one) => one.tag === '{tag}')"
    until(page, f"{found}.values && !{found}.dirty")
    width, height, (low, high), opaque = page.evaluate(
        f"""(() => {{
        const {{ canvas, values }} = {found};
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const opaque = Array.from(pixels.filter((_, i) => i % 4 === 3), (one) => one > 0);
        return [canvas.width, canvas.height, [values.from(0), values.from(1)], opaque];
        }})()"""
    )
    opaque = np.array(opaque).reshape(height, width)
    count = last - first + 1
    edges = np.round(np.arange(count + 1) * width / count).astype(int)
    for i in range(count):
        column = opaque[:, edges[i] + 2 : edges[i + 1] - 2]
        assert (column == column[:, :1]).all()  # one step, one picture
        rows = recorded[tag].values[first - 1 + i]
        centres = high - (np.arange(height) + 0.5) / height * (high - low)
        for y, value in enumerate(centres):
            inside = (rows[:, 0] <= value) & (value < rows[:, 1])
            near = np.abs(rows[:, :2] - value).min() < 1.5 * (high - low) / height
            if not near:
                assert column[y, 0] == bool((rows[inside, 2] > 0).any())


def test_two_runs_side_by_side_and_their_difference(page, logdir, recorded):
    visit(page, logdir / "both.html", step=40, tensor="h1/weights")
    assert page.locator("[data-tag='h1/weights'] .plot").count() == 2
    absent = page.locator("[data-tag='h1/weights/gradient'] .absent").all_text_contents()
    assert absent == ["not on record in short"]
    until(page, "document.querySelectorAll('#histograms canvas').length === 2")
    assert figure(page, "step") == [40, 40]
    page.keyboard.press("Shift+ArrowRight")  # beyond the end of the shorter one
    until(page, "view.step === 120")
    until(page, "document.querySelectorAll('[data-figure=step] td')[1].textContent === '–'")
    page.locator("#difference").check()
    until(page, "document.querySelectorAll(\"[data-tag='h1/weights'] .plot\").length === 1")
    page.keyboard.press("Shift+ArrowLeft")
    other = events.read(logdir / "short")
    expected = recorded["loss"].values[19] - other["loss"].values[19]
    assert abs(expected) < 1e-6  # the same seed; the same first steps
    legend = "document.querySelector('[data-strip=loss] figcaption span:not(.extent)').textContent"
    until(page, f"{legend} === 'loss run 1 − run 2 0'")
    assert page.locator("[data-tag='h1/weights/gradient'] .absent").count() == 1


def test_of_several_runs_the_page_opens_where_one_died(page, tmp_path):
    """Also where another one has marks, before it and earlier steps."""
    for name, status, odd in (("well", "completed", 21), ("dead", "nonfinite", 90)):
        folder = tmp_path / name
        writer = tf.summary.create_file_writer(str(folder))
        with writer.as_default():
            for step in range(1, 121):
                tf.summary.histogram("h/weights", np.arange(30.0), step, buckets=30)
                tf.summary.scalar("loss", np.nan if step == odd else 1.0, step)
        writer.close()
        (folder / "config.json").write_text(json.dumps({"fingerprint": "x", "config": {}}))
        (folder / "result.json").write_text(json.dumps({"status": status}))
    paths = [tmp_path / name for name in ("well", "dead")]
    for order in (paths, paths[::-1]):
        assert programs.view(*order, f"--out={tmp_path / 'two.html'}").status == 0
        visit(page, tmp_path / "two.html")
        assert page.evaluate("[view.pin, view.step]") == [90, 91]


def test_what_is_not_finite_and_what_cannot_be_compared(page, tmp_path):
    """Where no entry is finite the panel says so. Of two kinds of loss there is no difference."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "histograms"
    edges = np.linspace(-1, 1, 31)
    for name, reduction in (("a", "sum"), ("b", "mean")):
        folder = tmp_path / name
        writer = tf.summary.create_file_writer(str(folder))
        with writer.as_default():
            for step in range(1, 21):
                rows = np.stack([edges[:-1], edges[1:], np.ones(30)], 1) * (step < 10)
                tf.summary.write("w", tf.constant(rows, tf.float32), step, metadata)
                for tag in ("loss", "test-loss"):
                    tf.summary.scalar(tag, 1.0, step)
        writer.close()
        told = {"fingerprint": "x", "config": {"reduction": reduction}}
        (folder / "config.json").write_text(json.dumps(told))
    paths = [tmp_path / name for name in "ab"]
    assert programs.view(*paths, f"--out={tmp_path / 'two.html'}").status == 0
    visit(page, tmp_path / "two.html", step=15, range="12..20", tensor="w")
    until(page, "shown() === '15'")
    ends = page.locator("#histograms .ends").all_inner_texts()
    assert ends == ["no finite entry"] * 2
    for name in ("smallest", "largest", "mean", "near"):
        assert np.isnan(figure(page, name)).all(), name
    assert page.locator("#low").input_value() == page.locator("#high").input_value() == ""

    def strips():
        found = page.locator("[data-strip]").all()
        return {one.get_attribute("data-strip"): one.locator("canvas").count() for one in found}

    summed, mean, test = strips()
    legends = [
        page.locator(f"[data-strip='{one}'] figcaption").inner_text() for one in (summed, mean)
    ]
    assert "run 1" in legends[0] and "run 2" in legends[1]
    assert "run 2" not in legends[0] and "run 1" not in legends[1]
    page.locator("#difference").check()
    until(page, "document.querySelectorAll('[data-strip]').length < 3")
    assert [*strips()] == [test]


@pytest.mark.parametrize("width", [1000, 1400])
def test_nothing_of_two_runs_and_a_pinned_step_is_cut(page, logdir, width):
    page.set_viewport_size({"width": width, "height": 1000})
    visit(page, logdir / "both.html", step=40, tensor="h1/weights", pin=3)
    until(page, "document.querySelectorAll('[data-figure=step] td').length === 4")
    assert figure(page, "step") == [40, 3, 40, 3]
    page.evaluate("scrollTo(0, 500)")
    until(page, "scrollY > 300")
    cut, panel, controls, least = page.evaluate(
        """(() => {
        const box = (one) => one.getBoundingClientRect();
        const panel = box($("panel"));
        const inside = [...$("panel").querySelectorAll("td, th, select, input, button, canvas")];
        const heats = [...document.querySelectorAll(".heat")].map((one) => box(one).width);
        return [inside.filter((one) => box(one).right > panel.right).map((one) => one.outerHTML),
          panel.top, box($("controls")).bottom, Math.min(...heats)];
        })()"""
    )
    assert not cut and panel >= controls - 0.5 and least > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_csv_and_png(page, logdir, recorded, tmp_path):
    visit(page, logdir / "long/view.html", step=64, tensor="h2/bias/gradient", pin=2)
    until(page, "document.querySelectorAll('[data-figure=step] td').length === 2")

    def download(selector):
        with page.expect_download() as waiting:
            page.locator(selector).first.click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    rows = list(csv.DictReader(download("#csv").open()))
    assert {row["run"] for row in rows} == {"long"} and len(rows) == 60
    for step in (64, 2):
        found = [
            [row["from"], row["to"], row["entries"]] for row in rows if row["step"] == str(step)
        ]
        expected = recorded["h2/bias/gradient"].values[step - 1]
        np.testing.assert_array_equal(np.array(found, float), expected)
    rows = list(csv.DictReader(download("[data-strip=loss] button[title=CSV]").open()))
    for tag in ("loss", "test-loss"):
        values = [float(row["value"]) for row in rows if row["tag"] == tag]
        np.testing.assert_array_equal(values, recorded[tag].values)
    from matplotlib import image

    for selector in ("#png", "[data-strip=accuracy] button[title=PNG]"):
        pixels = image.imread(download(selector))
        assert pixels.shape[1] > 300 and len(np.unique(pixels.reshape(-1, 4), axis=0)) > 5
    # One that was drawn and is out of sight when the view changes is saved as it is now.
    visit(page, logdir / "long/view.html", tensor="logits/weights", step=30)
    picture = "plots.find((one) => one.tag === view.tensor)"
    until(page, f"!{picture}.dirty && {picture}.values && !{picture}.visible")
    page.evaluate("change({ range: [20, 40] })")
    until(page, f"{picture}.dirty")
    hidden = image.imread(download("#png"))
    page.locator("[data-tag='logits/weights'] .plot").scroll_into_view_if_needed()
    until(page, f"{picture}.visible && !{picture}.dirty")
    np.testing.assert_array_equal(hidden, image.imread(download("#png")))


def test_a_run_that_is_still_training(browser, tmp_path):
    folder = tmp_path / "run"

    def record(first, last):
        for step in range(first, last + 1):
            tf.summary.scalar("loss", 1 / step, step)
            tf.summary.histogram("w", np.arange(40.0) * step, step, buckets=30)
        tf.summary.flush()

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {}, "fingerprint": "1"}))
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        server = Server([RunReader(str(folder))], 0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page = browser.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        try:
            assert server.address == f"http://127.0.0.1:{server.server_port}/"
            page.goto(server.address)  # before the first record
            until(page, "document.querySelector('#live').textContent.startsWith('Live')")
            assert page.evaluate("view.tensor") == ""
            record(1, 5)
            until(page, "view.step === 5 && view.tensor === 'w' && shown() === '5'")
            record(6, 60)
            until(page, "view.step === 60 && runs[0].histograms.get('w').steps.length === 60")
            until(page, "shown() === '60'")
            recorded = events.read(folder)["w"]
            for step in (3, 6, 60):
                page.locator("#step").fill(str(step))
                until(
                    page,
                    f"shown() === '{step}'",
                )
                np.testing.assert_array_equal(buckets(page), recorded.values[step - 1])
            page.locator("#in").click()
            record(61, 70)
            until(page, "lastStep === 70")
            assert page.evaluate("view.range[0] <= view.step && view.step <= view.range[1]")
            page.locator("#out").click()
            page.locator("#out").click()
            record(71, 80)
            until(page, "lastStep === 80 && range()[1] === 80")
            for path in events.files(folder):
                os.remove(path)  # as if it were trained anew
            with tf.summary.create_file_writer(str(folder), filename_suffix=".2").as_default():
                record(1, 7)
            until(page, "lastStep === 7")
            for host in ("localhost", "127.0.0.1:9000"):  # of a forwarded port
                request = urllib.request.Request(server.address, headers={"Host": host})
                assert urllib.request.urlopen(request).status == 200
            for host in ("example.org", f"example.org:{server.server_port}", "localhost.org:80"):
                request = urllib.request.Request(server.address, headers={"Host": host})
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(request)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        until(page, "document.querySelector('#live').textContent.includes('does not respond')")
        assert not [text for text in wrong if "ERR_CONNECTION_REFUSED" not in text]
        page.close()


HOSTILE = (
    """<script>alert(1)</script> "quoted" 'it' &amp; <img src=x onerror=alert(2)> ünï\u2028cödé"""
)


def test_hostile_names_are_shown_as_text(page, tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "∕")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {}, "fingerprint": "1"}))
    tags = [f"{HOSTILE}{kind}" for kind in ("", "/gradient", "\n</script><b>")]
    with tf.summary.create_file_writer(str(folder)).as_default():
        for step in range(1, 9):
            tf.summary.scalar("loss", step, step)
            tf.summary.scalar(f"{tags[0]}/norm", step, step)
            for tag in tags:
                tf.summary.histogram(tag, np.arange(50.0), step, buckets=30)
    (folder / "result.json").write_text(json.dumps({"frozen": tags, "status": HOSTILE}))
    assert programs.view(folder, f"--out={tmp_path / 'page.html'}").status == 0
    visit(page, tmp_path / "page.html")
    assert page.locator("h1").text_content() == folder.name
    assert {*page.locator("#tensor option").all_text_contents()} == {*tags}
    assert tags[0] in page.locator(".happened").text_content()
    assert page.locator("img, b b, script:not([type])").count() == 1  # the page's own script
    page.locator("#tensor").select_option(tags[1])
    link = settled(page)
    assert link["tensor"] == [tags[1]]
    page.reload()
    until(page, f"view.tensor === {json.dumps(tags[1])}")


def test_keyboard_labels_phone_and_print(page, logdir):
    visit(page, logdir / "both.html", step=40)
    until(page, "plots.every((one) => !one.visible || !one.dirty)")
    tree = page.locator("body").aria_snapshot()
    assert 'slider "Step"' in tree and 'combobox "tensor"' in tree
    unnamed = page.evaluate(
        """[...document.querySelectorAll("canvas, button, input, select")].filter((one) =>
        !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length)).length"""
    )
    assert unnamed == 0
    page.locator("#play").focus()
    for _ in range(14):  # from control to control, none is a trap
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#strips, #marks, main') !== null")
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    pdf = page.pdf(print_background=True)
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000


def test_all_pictures_are_printed_under_their_names(page, logdir):
    """Those that nobody has scrolled to as well: they are drawn one after the other."""
    page.set_viewport_size({"width": 1300, "height": 300})
    visit(page, logdir / "long/view.html", step=40)
    tags = page.evaluate("tensors()")
    assert page.evaluate("plots.filter((one) => one.dirty && one.tag).length") > len(tags) / 2
    until(page, "plots.every((one) => !one.dirty)")
    assert page.evaluate("plots.some((one) => !one.visible)")
    page.evaluate("change({ step: 90 })")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    pictures = page.evaluate("""plots.filter((one) => one.tag).map(({ box, canvas, cursor }) => {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const colours = new Set(new Uint32Array(pixels.buffer));
        const name = box.closest("figure").querySelector("figcaption").innerText;
        return [name, colours.size, cursor.style.transform];
    })""")
    assert sorted(name.split()[0] for name, _, _ in pictures) == sorted(tags)
    assert all(colours > 1 for _, colours, _ in pictures)
    assert len({place for _, _, place in pictures}) == 1


def test_the_dark_page_is_printed_in_light_colours(page, logdir):
    """All of its pictures; then it is dark again."""
    visit(page, logdir / "long/view.html", step=40)
    until(page, "plots.every((one) => !one.dirty) && plots.some((one) => one.tag && one.visible)")
    looks = "[...document.querySelectorAll('canvas')].map((one) => one.toDataURL())"
    seen = "document.querySelector('#histograms canvas').toDataURL()"
    light = page.evaluate(looks)
    page.emulate_media(color_scheme="dark")
    until(page, f"!{json.dumps(light)}.includes({seen})")
    until(page, "plots.every((one) => !one.visible || !one.dirty)")
    dark = page.evaluate(looks)
    assert sum(a != b for a, b in zip(light, dark, strict=True)) > 5
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(looks) == light
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    until(page, f"{seen} === {json.dumps(dark[-1])}")
    until(page, "plots.every((one) => !one.visible || !one.dirty)")
    assert page.evaluate(looks)[:6] == dark[:6]


def test_the_page_is_one_file_without_anything_from_elsewhere(logdir):
    text = pathlib.Path(logdir / "long/view.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "src=" not in text
