"""A real TensorBoard server, with both of its loaders, on real run directories."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import urllib.parse

import events
import forks
import numpy as np
import programs
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.compat.proto.graph_pb2 import GraphDef

# More than the 100 samples of a histogram that TensorBoard keeps unless told.
STEPS, EVERY = 130, 50
RUNS = {
    "adagrad,lr=0.01,16x8": ["--optimizer=adagrad", "--n_hidden_1=16", "--n_hidden_2=8"],
    "sgd,lr=0.02,16x9": [
        *("--learning_rate=0.02", "--seed=3", "--n_hidden_1=16", "--n_hidden_2=9")
    ],
}
TAGS = sorted(
    f"{layer}/{part}{suffix}"
    for layer in ("h1", "h2", "logits")
    for part in ("weights", "bias")
    for suffix in ("", "/gradient")
)


class Logdir:
    """Two runs whose directories' names hold commas and equals signs, as the program makes them."""

    def __init__(self, path, data):
        self.path = str(path)
        self.directories = []
        for name, flags in RUNS.items():
            before = set(os.listdir(path))
            outcome = programs.train(
                *(*flags, f"--training_steps={STEPS}", f"--display_step={EVERY}"),
                *(f"--logdir={path}", f"--data={data}", "--batch_size=16", "--xla=off"),
            )
            assert outcome.status == 0, outcome.err
            (made,) = set(os.listdir(path)) - before
            assert made.startswith(f"{name},")
            self.directories.append(made)
            # What the program prints last, of the folder of all runs.
            command = outcome.out.splitlines()[-1].partition("view it with")[2]
            own = shlex.quote(os.path.join(path, made))
            assert command.rstrip().endswith(own)
            self.command = command.rstrip().removesuffix(own) + shlex.quote(str(path))
        self.records = {run: events.read(os.path.join(path, run)) for run in self.directories}
        self.results = {run: programs.result(os.path.join(path, run)) for run in self.directories}


@pytest.fixture(scope="module")
def logdir(tmp_path_factory, tiny):
    data = forks.write_idx(tmp_path_factory.mktemp("data") / "idx", tiny)
    return Logdir(tmp_path_factory.mktemp("logs"), data)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("true", id="rust"),
        pytest.param("false", id="python", marks=pytest.mark.slow),
    ],
)
def board(request, logdir):
    """The command that the program prints, with TensorBoard's Rust loader (its default where it is
    installed) or Python's."""
    if request.param == "true" and not importlib.util.find_spec("tensorboard_data_server"):
        pytest.skip("TensorBoard's data server is not installed")
    command = f"{logdir.command} --load_fast={request.param}"
    with programs.serving(command, logdir.directories[0], STEPS) as board:
        for run in logdir.directories:
            programs.wait_for(lambda run=run: board.has_all(run, STEPS), run)
        yield board


def test_runs_have_the_names_of_their_directories(board, logdir):
    assert sorted(board.get("data/runs")) == sorted(logdir.directories)
    for name in logdir.directories:
        assert "," in name
        assert "=" in name


def test_scalars(board, logdir):
    tags = board.get("data/plugin/scalars/tags")
    for run, record in logdir.records.items():
        # HParams, text and graph are not mistaken for scalars.
        assert sorted(tags[run]) == sorted(t for t in record if record[t].plugin == "scalars")
        assert {"accuracy", "loss", "test-accuracy", "test-loss"} < set(tags[run])
        for tag in tags[run]:
            points = board.get("data/plugin/scalars/scalars", run=run, tag=tag)
            assert [step for _, step, _ in points] == record[tag].steps
            np.testing.assert_array_equal(
                np.float32([value for *_, value in points]), record[tag].values
            )
        assert record["test-accuracy"].steps == [50, 100, 130]


def test_histograms_page(board, logdir):
    tags = board.get("data/plugin/histograms/tags")
    for run, record in logdir.records.items():
        assert sorted(tags[run]) == TAGS
        for tag in ("h1/weights", "logits/bias/gradient"):
            sample = board.get("data/plugin/histograms/histograms", run=run, tag=tag)
            assert len(sample) > 30  # this page never has more than 51
            assert sample[-1][1] == STEPS
            for _, step, rows in sample:
                np.testing.assert_array_equal(np.float32(rows), record[tag].values[step - 1])


def test_time_series_page_has_every_step(board, logdir):
    for run, record in logdir.records.items():
        points = board.time_series("scalars", "loss", run)
        assert [point["step"] for point in points] == list(range(1, STEPS + 1))
        for tag in TAGS:
            points = board.time_series("histograms", tag, run)
            assert [point["step"] for point in points] == list(range(1, STEPS + 1)), tag
            counts = [[bin["count"] for bin in point["bins"]] for point in points]
            np.testing.assert_array_equal(counts, record[tag].values[:, :, 2])


def test_graph(board, logdir):
    for run in logdir.directories:
        assert board.get("data/plugin/graphs/info")[run]["run_graph"] is True
        text = board.raw(
            "data/plugin/graphs/graph",
            run=run,
            conceptual="false",
            large_attrs_key="_too_large_attrs",
            limit_attr_size=1024,
        )
        graph = text_format.Parse(text, GraphDef())
        names = [node.name for node in graph.node]
        for scope in ("batch", "forward", "loss", "gradient", "reduce", "update", "record"):
            assert [name for name in names if name.startswith(f"{scope}/")], scope
        forward = [node for node in graph.node if node.name.startswith("forward/")]
        assert sum(node.op == "MatMul" for node in forward) == 3
        # What it shows is connected: it is not a list of loose nodes.
        used = {edge.lstrip("^").split(":")[0] for node in graph.node for edge in node.input}
        assert used <= set(names)
        assert {node.name for node in forward if node.op == "MatMul"} <= used


def test_config_as_text(board, logdir):
    for run, result in logdir.results.items():
        assert "config" in board.get("data/plugin/text/tags")[run]
        (entry,) = board.get("data/plugin/text/text", run=run, tag="config")
        cells = re.findall(r"<td>(.*?)</td>", entry["text"])
        shown = dict(zip(cells[::2], cells[1::2], strict=True))
        assert set(shown) >= set(result["config"])
        assert shown["optimizer"] == f'"{result["config"]["optimizer"]}"'
        assert shown["learning_rate"] == str(result["config"]["learning_rate"])
        assert float(shown["effective_learning_rate"]) == result["effective_learning_rate"]


def test_hparams(board, logdir):
    def groups():
        request = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE"],
            "colParams": [{"metric": {"tag": "test-accuracy", "group": ""}, "order": "ORDER_DESC"}],
            "startIndex": 0,
            "sliceSize": 10,
        }
        found = board.get("data/plugin/hparams/session_groups", body=request)["sessionGroups"]
        sessions = {one["sessions"][0]["name"]: one for one in found}
        ended = [one["sessions"][0]["status"] == "STATUS_SUCCESS" for one in found]
        # The end of a session is the last event of its file.
        return sessions if len(sessions) == len(RUNS) and all(ended) else None

    experiment = board.get("data/plugin/hparams/experiment", body={"experimentName": ""})
    names = {info["name"] for info in experiment["hparamInfos"]}
    # The reference's four, and what else makes a run.
    assert names >= {"n_hidden_1", "n_hidden_2", "learning_rate", "optimizer", "seed"}
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == ["test-accuracy"]
    sessions = programs.wait_for(groups, "both sessions")
    assert sorted(sessions) == sorted(logdir.directories)
    for run, result in logdir.results.items():
        hparams, config = sessions[run]["hparams"], result["config"]
        for name in ("n_hidden_1", "n_hidden_2", "learning_rate", "optimizer", "seed"):
            assert hparams[name] == config[name]
        (metric,) = sessions[run]["metricValues"]
        assert metric["name"]["tag"] == "test-accuracy"
        assert metric["trainingStep"] == STEPS
        assert np.float32(metric["value"]) == np.float32(result["test_accuracy"])


# ------------------------------------------------------------------ in a browser


def browse(address, folder, *more):
    """Loads a page in a headless Chromium as long as it has something to do; returns its DOM."""
    return subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *(f"--user-data-dir={folder}", "--window-size=1500,1400"),
            *("--virtual-time-budget=20000", *more, "--dump-dom", address),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    ).stdout


@pytest.fixture
def chromium():
    if not shutil.which("chromium"):
        pytest.skip("needs chromium on PATH")


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_shows_the_time_series_page(chromium, board, logdir, tmp_path):
    # A page of a group has twelve cards.
    chosen = urllib.parse.quote("^(accuracy|loss|.*/bias(/gradient)?)$")
    for _ in range(3):  # beside other load it may be dumped before the cards are there
        dom = browse(f"{board.address}/?tagFilter={chosen}#timeseries", tmp_path)
        if 'title="h1/bias"' in dom:
            break
    for group in ("accuracy", "loss", "h1", "h2", "logits"):
        assert re.search(rf">\s*{group}\s*<", dom), group
    for run in logdir.directories:
        assert run in dom
    # Cards further down are drawn when one scrolls to them.
    assert 'title="h1/bias"' in dom
    assert 'title="h1/bias/gradient"' in dom
    assert dom.count("<tb-histogram") >= len(RUNS)


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_draws_the_histograms_page(chromium, board, tmp_path):
    def coloured(page):
        """How much of the picture of a page, right of the menu and below the bar, has a colour."""
        picture = tmp_path / f"{page}.png"
        browse(f"{board.address}/#{page}", tmp_path / "profile", f"--screenshot={picture}")
        pixels = tf.io.decode_png(picture.read_bytes(), 3).numpy().astype(int)[100:, 370:]
        return (np.ptp(pixels, axis=2) > 60).mean()

    # Its parts lie in shadow trees, which are not in the DOM as it is dumped. Histograms are
    # coloured areas; the text page has coloured frames, but little else.
    assert coloured("histograms") > 0.05
    assert coloured("text") < 0.03
