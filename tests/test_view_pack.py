"""What a page of bin/view holds, against the event files as TensorBoard reads them."""

import base64
import json
import os
import zlib

import events
import forks
import numpy as np
import programs
import pytest
import tensorflow as tf

from lab.record.event_reader import Series
from lab.record.run import RunReader
from lab.viewer import pack as packing
from lab.viewer.layout import layout
from lab.viewer.marks import ROUTINE, marks

STEPS = 60
SMALL = [
    *(f"--training_steps={STEPS}", "--batch_size=20", "--display_step=20", "--reduction=mean"),
    *("--n_hidden_1=8", "--n_hidden_2=6", "--init_stddev=0.5", "--checkpoint_every=30"),
    "--xla=off",
]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, tiny):
    return forks.write_idx(tmp_path_factory.mktemp("data") / "idx", tiny)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    logdir = tmp_path_factory.mktemp("logs")
    watch = "--watch=weights,gradients,updates,activations,norms"
    outcome = programs.train(*SMALL, watch, f"--data={tiny_folder}", f"--logdir={logdir}")
    assert outcome.status == 0, outcome.err
    (name,) = os.listdir(logdir)
    assert f"bin/view {logdir / name}\n" in outcome.out
    return logdir / name


def array(packed, number):
    """A blob's numbers: inflated, and each number's bytes put together again."""
    dtype, text = packed["blobs"][number]
    content = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.ascontiguousarray(content.reshape(int(dtype[1]), -1).T).view(f"<{dtype}")[:, 0]


def rows(packed, entry):
    """(left, right, count) of each bucket, as the page computes them."""
    low, high = array(packed, entry["low"]), array(packed, entry["high"])
    if "edges" in entry:
        edges = array(packed, entry["edges"]).reshape(-1, 31)
    else:
        steps = np.arange(31) * (1 / 30)
        edges = low[:, None].astype(np.float64) + (high - low.astype(np.float64))[:, None] * steps
        edges[:, -1] = high
        edges = edges.astype(low.dtype)
    counts = array(packed, entry["counts"]).reshape(30, -1).T
    return np.stack([edges[:, :-1], edges[:, 1:], counts], -1)


def test_every_number_of_the_record_is_there(run):
    packed = json.loads(json.dumps(packing.pack([RunReader(str(run))]), allow_nan=False))
    (one,) = packed["runs"]
    recorded = events.read(run)
    histograms = events.histograms(recorded)
    assert one["histograms"].keys() == histograms.keys()
    for tag, entry in one["histograms"].items():
        np.testing.assert_array_equal(array(packed, entry["steps"]), histograms[tag].steps)
        np.testing.assert_array_equal(rows(packed, entry), histograms[tag].values, tag)
        assert "edges" not in entry
    scalars = {tag: s for tag, s in recorded.items() if s.plugin == "scalars"}
    assert one["scalars"].keys() == scalars.keys()
    for tag, entry in one["scalars"].items():
        np.testing.assert_array_equal(array(packed, entry["steps"]), scalars[tag].steps)
        np.testing.assert_array_equal(array(packed, entry["values"]), scalars[tag].values)
    assert (one["steps"], one["status"]) == (STEPS, programs.result(run)["status"])
    assert not one["thinned"]


def write_run(folder, summaries, **config):
    """A run directory of TensorFlow's own event files: `summaries(step)` for each of 40 steps."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config, "fingerprint": "1"}))
    with tf.summary.create_file_writer(str(folder)).as_default():
        for step in range(1, 41):
            summaries(step)
    return folder


def test_other_edges_wide_numbers_and_nonfinite_ones(tmp_path):
    random = np.random.default_rng(4)

    def summaries(step):
        edges = np.sort(random.normal(size=31)) * 10.0 ** random.integers(-9, 9)
        counts = random.integers(0, 2**35, 30)
        whole = np.stack([edges[:-1], edges[1:], counts], 1)
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "histograms"
        tf.summary.write("uneven", tf.constant(whole, tf.float64), step, metadata)
        tf.summary.scalar("broken", [1.0, np.nan, np.inf, -np.inf][step % 4], step)

    run = write_run(tmp_path / "run", summaries)
    packed = packing.pack([RunReader(str(run))])
    recorded = events.read(run)
    entry = packed["runs"][0]["histograms"]["uneven"]
    assert "edges" in entry
    np.testing.assert_array_equal(rows(packed, entry), recorded["uneven"].values)
    values = array(packed, packed["runs"][0]["scalars"]["broken"]["values"])
    np.testing.assert_array_equal(values, recorded["broken"].values)
    json.dumps(packed, allow_nan=False)


def test_above_the_limit_a_page_says_what_it_leaves_out(run):
    reader = RunReader(str(run))
    reader.scalars["loss"] = Series(np.arange(1, 1001), np.random.default_rng(0).random(1000))
    whole = packing.pack([reader])
    size = sum(len(text) for _, text in whole["blobs"])
    thinned = packing.pack([reader], [(400, 420)], size - 200)
    assert sum(len(text) for _, text in thinned["blobs"]) <= size - 200
    (one,) = thinned["runs"]
    steps = array(thinned, one["scalars"]["loss"]["steps"])
    # Around both ends, the plateau that this run begins with (step 1), and what was asked for.
    kept = {*range(1, 102), *range(900, 1001), *range(400, 421)}
    (every,) = {step for step in range(2, 900) if one["thinned"].endswith(f"one step in {step}")}
    assert {*steps} == kept | {step for step in range(1, 1001) if step % every == 0}
    sparse = Series(np.arange(10, 1001, 10), np.zeros(100))
    assert len(packing._thinned(sparse, [], 11).steps) > 80  # one in 11 steps, not in 11 records
    assert one["thinned"].startswith("every step of 0 to 101, 400 to 420, 900 to 1000, and")
    place = np.searchsorted(reader.scalars["loss"].steps, steps)
    values = array(thinned, one["scalars"]["loss"]["values"])
    np.testing.assert_array_equal(values, reader.scalars["loss"].values[place])


def test_marks(run):
    found = marks(RunReader(str(run)))
    assert [mark.step for mark in found] == sorted(mark.step for mark in found)
    steps = {mark.kind: [m.step for m in found if m.kind == mark.kind] for mark in found}
    assert steps["checkpoint"] == [0, 30, 60] and steps["evaluation"] == [20, 40, 60]
    assert steps.keys() <= {*ROUTINE, "collapse"}


def test_marks_of_a_run_that_was_resumed_and_broke(tmp_path):
    def summaries(step):
        tf.summary.scalar("loss", np.nan if step > 33 else 1.0, step)

    run = write_run(tmp_path / "run", summaries, warmup_steps=5)
    with tf.summary.create_file_writer(str(run), filename_suffix=".later").as_default():
        tf.summary.scalar("loss", np.nan, 41)
    found = {(mark.kind, mark.step) for mark in marks(RunReader(str(run)))}
    assert found == {("end of warm-up", 5), ("nonfinite", 34), ("loss", 34), ("resume", 41)}
    (run / "config.json").write_text(
        json.dumps({"config": {"warmup_steps": 100}, "fingerprint": "1"})
    )
    with tf.summary.create_file_writer(str(run), filename_suffix=".zend").as_default():
        tf.summary.text("how it ended", "well", 0)  # all that a run writes that had ended
    later = {(mark.kind, mark.step) for mark in marks(RunReader(str(run)))}
    assert later == found - {("end of warm-up", 5)}  # the new end was not reached
    noted = {"h1/weights": {"first_step": 30}, "h2/weights": {"first_step": 31}}
    broken = {"nonfinite": noted, "frozen": None}  # it was never evaluated
    (run / "result.json").write_text(json.dumps(broken))
    found = [mark for mark in marks(RunReader(str(run))) if mark.step == 30]
    assert {(mark.kind, mark.tag) for mark in found} == {
        ("nonfinite", ""),
        ("weight", "h1/weights"),
    }


def test_frozen_tensors_are_marked_where_they_stop(tmp_path):
    def summaries(step):
        tf.summary.histogram("still", np.arange(50.0) + min(step, 17), step, buckets=30)
        tf.summary.histogram("never moved", np.arange(50.0), step, buckets=30)
        tf.summary.histogram("moves", np.arange(50.0) + step, step, buckets=30)

    run = write_run(tmp_path / "run", summaries)
    (run / "result.json").write_text(json.dumps({"frozen": ["still", "never moved"]}))
    found = [mark for mark in marks(RunReader(str(run))) if mark.kind == "frozen"]
    assert [(mark.step, mark.tag) for mark in found] == [(1, "never moved"), (17, "still")]


def test_tensors_stand_in_the_order_of_the_forward_pass(run):
    reader = RunReader(str(run))
    assert reader.forward_order == [
        f"{layer}/{part}" for layer in ("h1", "h2", "logits") for part in ("weights", "bias")
    ]
    rows = layout(reader.histograms, reader.scalars, reader.forward_order, summed=[False])
    assert [row["base"] for row in rows["tensors"]] == [
        *("h1/weights", "h1/bias", "h1", "h2/weights", "h2/bias", "h2"),
        *("logits/weights", "logits/bias", "logits"),
    ]
    tags = {row["base"]: row["tags"] for row in rows["tensors"]}
    assert tags["h2/bias"] == ["h2/bias", "h2/bias/gradient", "h2/bias/update"]
    assert tags["h2"] == ["h2/activations"]
    strips = {strip["title"]: strip["lines"] for strip in rows["strips"]}
    assert strips["loss"] == [("loss", "loss"), ("test-loss", "test-loss")]
    assert ("gradient/norm", "gradient/norm") in strips["gradient/norm"]
    summed = layout(reader.histograms, reader.scalars, reader.forward_order, summed=[True])
    titles = {strip["lines"][0][0]: strip["title"] for strip in summed["strips"]}
    assert len({"loss", titles["loss"], titles["test-loss"]}) == 3  # each says of what it is
    assert ("h1/bias/gradient/norm", "h1/bias") in strips["gradient/norm"]


def test_scalars_of_the_whole_run_are_no_tensors():
    """Of several parts or replicas, and a metric that is named like what is known of tensors."""
    kinds = [f"gradient/{kind}" for kind in ("part_0/norm", "replica_1/cosine", "noise/scale")]
    tags = [f"{of}{kind}" for kind in kinds for of in ("h1/weights/", "")]
    metric = ["norm", "test-norm"]
    rows = layout([], ["loss", *tags, *metric, "h1/weights/norm"], [], [False])
    strips = [one["lines"] for one in rows["strips"]]
    for kind in kinds:
        assert [(f"h1/weights/{kind}", "h1/weights"), (kind, kind)] in strips
    assert [(tag, tag) for tag in metric] in strips
    assert [("h1/weights/norm", "h1/weights")] in strips
    titles = [one["title"] for one in rows["strips"]]
    assert len({*titles}) == len(titles) == 6


def test_a_summed_loss_and_a_mean_are_strips_of_their_own():
    tags = ["loss", "test-loss", "accuracy"]
    strips = layout([], tags, [], [True, False, True])["strips"]
    found = [(one["lines"][0][0], one["runs"]) for one in strips]
    assert found == [
        *(("loss", [0, 2]), ("loss", [1]), ("test-loss", [0, 1, 2]), ("accuracy", [0, 1, 2])),
    ]
    assert len({one["title"] for one in strips}) == 4
    assert all(len(one["lines"]) == 1 and one["usual"] for one in strips)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, "name one or more run directories"),
        (["{run}", "--steps=9..3"], 2, "must be A..B"),
        (["{run}", "--speed=3"], 2, "--speed is not a flag"),
        (["{run}/checkpoints"], 1, "is not a run"),
        (["{run}", "--out={run}"], 1, "cannot be written"),
        (["{run}", "--out={run}/none/x.html"], 1, "cannot be written"),
    ],
)
def test_mistakes(run, words, status, text):
    outcome = programs.view(*(word.format(run=run) for word in words))
    assert outcome.status == status and text in outcome.err
    assert outcome.err.startswith("view: ") and outcome.err.count("\n") == 1


def test_an_event_file_that_cannot_be_read_is_named(tmp_path):
    run = write_run(tmp_path / "run", lambda step: tf.summary.scalar("loss", 1.0, step))
    odd = run / "events.out.tfevents.9"
    odd.mkdir()  # root may read any file
    outcome = programs.view(run)
    assert outcome.status == 1 and outcome.err.startswith(f"view: {odd} cannot be read: ")
    assert outcome.err.count("\n") == 1


def test_a_page_in_the_run_directory_does_not_stop_the_run(run, tiny_folder):
    outcome = programs.view(run)
    assert outcome.status == 0 and str(run / "view.html") in outcome.out
    again = programs.train(
        *SMALL,
        "--watch=weights,gradients,updates,activations,norms",
        f"--data={tiny_folder}",
        f"--logdir={run.parent}",
    )
    assert again.status == 0 and "already exists" in again.out
