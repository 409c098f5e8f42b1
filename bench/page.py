"""bin/view: how long its page takes to make and to open, and its frames while the cursor moves."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import time
from typing import Any

import numpy as np

from bench.workers import ROOT, Failed, run

_OPENED = "typeof plots !== 'undefined' && plots.some((one) => one.tag && one.extent.textContent)"
_DRAWN = (
    "plots.every((one) => !one.visible || one.extent.textContent || one.title.startsWith('Marks'))"
)
# Moves the cursor for three seconds; returns the milliseconds between frames.
_MOVE = """async () => {
  const box = plots.find((one) => one.lines).box, gaps = [], begun = performance.now();
  const { left, top, width } = box.getBoundingClientRect();
  held = false;
  for (let last = begun, now; last - begun < 3000; last = now) {
    const clientX = left + (width * ((last - begun) % 1000)) / 1000;
    box.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: top + 5 }));
    now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
  }
  return gaps;
}"""


def measure(scratch: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each run: the README's, one of 200 tensors, one of 100,000 steps.

    Raises:
      Failed: there is no browser, or a program ends with another status than 0.
    """
    chromium = shutil.which("chromium")
    if not chromium or not importlib.util.find_spec("playwright"):
        raise Failed("needs chromium, and playwright in this environment")
    from playwright.sync_api import sync_playwright

    steps = 100 if quick else 3000
    logdir = pathlib.Path(scratch, "pages")
    program = ROOT / "bin" / "train"
    run(program, f"--training_steps={steps}", f"--logdir={logdir}", "--run_name=readme")
    _write(logdir / "tensors", 200, steps)
    _write(logdir / "steps", 12, 300 if quick else 100_000)
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for name in ("readme", "tensors", "steps"):
            made, _ = run(ROOT / "bin" / "view", logdir / name)
            path = logdir / name / "view.html"
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            begun = time.monotonic()
            page.goto(f"file://{path}", wait_until="commit")
            page.wait_for_function(_OPENED, timeout=120_000)
            opened = time.monotonic() - begun
            page.wait_for_function(_DRAWN, timeout=120_000)
            drawn, gaps = time.monotonic() - begun, page.evaluate(_MOVE)
            megabytes, frames = path.stat().st_size / 1e6, 1000 / float(np.mean(gaps))
            seconds = {"made": made, "opened": opened, "drawn": drawn}
            rows.append({"name": name, "megabytes": megabytes, **seconds, "frames": frames})
            page.close()
        browser.close()
    return rows


def _write(folder: pathlib.Path, tensors: int, steps: int) -> None:
    """A run of 10,000 entries a tensor whose counts are as random as those of gradients."""
    import tensorflow as tf

    from lab.record.event_writer import Recorder

    os.makedirs(folder)
    (folder / "config.json").write_text(json.dumps({"config": {}, "fingerprint": ""}))
    names = [f"layer{i // 2}/{('weights', 'bias')[i % 2]}" for i in range(tensors // 2)]
    kinds = ("norm", "gradient/norm", "update/norm", "update/ratio")
    scalars = ["loss", "accuracy", *(f"{name}/{kind}" for name in names for kind in kinds)]
    tags = [*names, *(f"{name}/gradient" for name in names)]
    recorder = Recorder(str(folder), scalars, tags, [10_000] * tensors)
    random = np.random.default_rng(0)
    usual = 10_000 * np.diff(1 / (1 + np.exp(-np.linspace(-5, 5, 31))))
    for first in range(1, steps + 1, 500):
        n = min(500, steps + 1 - first)
        high = np.log1p(first + np.arange(n))[:, None] + 0.1 * random.random((n, tensors))
        recorded = {
            "scalars": random.lognormal(size=(n, len(scalars))),
            "counts": random.poisson(usual, (n, tensors, 30)),
            "low": -high,
            "high": high,
            "nonfinite": np.zeros((n, tensors)),
        }
        recorder.steps(first, {k: tf.constant(v, tf.float32) for k, v in recorded.items()})
    recorder.close()
