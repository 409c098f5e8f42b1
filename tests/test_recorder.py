"""The event files against TensorBoard's own readers and writers, and against NumPy."""

from __future__ import annotations

import contextlib

import events
import numpy as np
import pytest
import tensorflow as tf

from lab.errors import LabError
from lab.kernels import histograms
from lab.kernels.metrics import accuracy
from lab.models import layers, losses, mlp, optimizers
from lab.models.adapt import Network
from lab.record.event_writer import Recorder
from lab.step.loop import TrainLoop
from lab.step.replica import Training

pytestmark = pytest.mark.numbers

STEPS = 10
TAGS = [
    f"{layer}/{part}{suffix}"
    for suffix in ("", "/gradient")
    for layer in ("h1", "h2", "logits")
    for part in ("weights", "bias")
]


class Remembering(optimizers.Optimizer):
    """SGD that keeps the last reduced gradients, as it was given them."""

    def __init__(self, variables):
        super().__init__(optimizers.SGD(0.5), variables)
        self.seen = [tf.Variable(tf.zeros(w.shape), trainable=False) for w in variables]

    def update(self, weights, slots, gradients, step):
        for seen, gradient in zip(self.seen, gradients, strict=True):
            seen.assign(gradient)
        return super().update(weights, slots, gradients, step)


class Bench:
    """A small network, its compiled loop and, step by step, what really was in its tensors."""

    def __init__(self, watch=("weights", "gradients"), every=1):
        random = np.random.default_rng(7)
        strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
        with strategy.scope():
            self.model = mlp.MLP([12, 9, 7, 5], tf.sigmoid, layers.normal(0.5), seed=3)
            self.optimizer = Remembering(self.model.trainable_variables)
        self.loop = TrainLoop(
            strategy,
            Training(
                Network(self.model),
                self.optimizer,
                losses.softmax_cross_entropy,
                batch_size=8,
                metrics={"accuracy": accuracy},
            ),
            random.integers(0, 256, (64, 12), np.uint8),
            random.integers(0, 5, 64, np.int32),
            watch,
            histogram_every=every,
        )
        self.indices = random.integers(0, 64, (STEPS, 8), np.int32)
        self.start = [variable.numpy() for variable in self.model.trainable_variables]

    def restart(self):
        """Back to the start, with the program that is compiled already."""
        for variable, value in zip(self.model.trainable_variables, self.start, strict=True):
            variable.assign(value)

    def recorder(self, directory):
        return Recorder(
            str(directory), ("loss", "accuracy"), self.loop.watch.tags, self.loop.watch.sizes
        )

    def run(self, first, steps):
        rows = self.indices[first - 1 : first - 1 + steps]
        return self.loop.run(rows, first, seed=0)

    def record(self, recorder, loops, every=1):
        """Runs all steps in loops of these lengths; returns the scalars as the loop gave them."""
        first, scalars = 1, []
        for steps in loops:
            recorded = self.run(first, steps)
            scalars.append(recorded["scalars"].numpy())
            recorder.steps(first, recorded, every)
            first += steps
        assert first == STEPS + 1
        return np.concatenate(scalars)

    def tensors(self):
        """The true values of now, by tag."""
        tensors = {}
        for layer in self.model.layers:
            for name in ("weights", "bias"):
                variable = getattr(layer, name)
                place = [v is variable for v in self.model.trainable_variables].index(True)
                tensors[f"{layer.name}/{name}"] = variable.numpy()
                tensors[f"{layer.name}/{name}/gradient"] = self.optimizer.seen[place].numpy()
        return tensors


@pytest.fixture(scope="module")
def bench():
    return Bench()


@pytest.fixture(scope="module")
def truth(bench):
    """Loss and accuracy, and every tensor, after each of the steps, one call of the loop a step."""
    bench.restart()
    before = bench.tensors()
    tensors, scalars = [], []
    for step in range(1, STEPS + 1):
        scalars.append(bench.run(step, 1)["scalars"].numpy()[0])
        tensors.append(bench.tensors())
    # The true values have to move, or comparing with them would prove nothing.
    for one, other in zip([before, *tensors], tensors, strict=False):
        assert all((one[tag] != other[tag]).any() for tag in TAGS)
    return np.array(scalars), tensors


@pytest.fixture(scope="module")
def directory(bench, tmp_path_factory):
    """A record of all steps in uneven loops, closed but never flushed."""
    directory = tmp_path_factory.mktemp("record")
    bench.restart()
    recorder = bench.recorder(directory)
    bench.record(recorder, [1, 4, 3, 2])
    recorder.close()
    return directory


@pytest.fixture(scope="module")
def record(directory):
    return events.read(directory)


def empty(steps=1, tags=1, low=0.0, high=1.0):
    """What a loop returns, for a Recorder alone."""
    return {
        "scalars": tf.zeros([steps, 1]),
        "counts": tf.ones([steps, tags, histograms.BUCKETS], tf.int32),
        "low": tf.fill([steps, tags], low),
        "high": tf.fill([steps, tags], high),
        "nonfinite": tf.zeros([steps, tags], tf.int32),
    }


def test_every_tag_holds_every_step_once_and_in_order(record):
    assert sorted(record) == sorted([*TAGS, "loss", "accuracy"])
    assert sorted(events.histograms(record)) == sorted(TAGS)
    for tag, series in record.items():
        assert series.steps == list(range(1, STEPS + 1)), tag


@pytest.mark.parametrize("tag", TAGS)
def test_every_histogram_is_that_of_the_true_tensor(record, truth, tag):
    for rows, tensors in zip(record[tag].values, truth[1], strict=True):
        events.assert_histogram(rows, tensors[tag])


def test_scalars_are_the_loops_bit_for_bit(record, truth):
    scalars = np.stack([record["loss"].values, record["accuracy"].values], axis=1)
    np.testing.assert_array_equal(scalars, truth[0])
    assert len(np.unique(scalars[:, 0])) == STEPS


def test_the_assertion_on_histograms_can_fail():
    tensor = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    counts, edges = np.histogram(tensor.astype(np.float64), 30)
    rows = np.stack([edges[:-1], edges[1:], counts], axis=1)
    events.assert_histogram(rows, tensor)
    moved = rows + np.array([[0, 0, 1]] + [[0, 0, 0]] * 28 + [[0, 0, -1]])
    off = np.where(rows == edges[-1], np.nextafter(np.float32(edges[-1]), np.float32(9)), rows)
    for wrong in (moved, off, rows * [1, 1, 2], rows[::-1]):
        with pytest.raises(AssertionError):
            events.assert_histogram(wrong, tensor)


def test_metadata_and_shapes_are_those_that_tensorboard_writes(record, tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.scalar("loss", 1.0, step=1)
        tf.summary.histogram("h1/weights", tf.range(9.0), step=1)
        tf.summary.flush()
    theirs = events.read(tmp_path)
    for tag, series in theirs.items():
        assert record[tag].metadata == series.metadata
        assert record[tag].values.shape[1:] == series.values.shape[1:]
        assert record[tag].values.dtype == np.float32


TENSORS = {
    "normal": np.random.default_rng(1).normal(size=(50, 40)),
    "integers": np.random.default_rng(2).integers(0, 7, 500),
    "edges": np.linspace(-1, 1, 31),
    "constant": np.full(7, 3.25),
    "zeros": np.zeros((3, 3)),
    "one": [-2.5],
    "neighbours": [1, 1 + 2**-23],
    "huge": [1e30, -1e30, 0],
    "tiny": [0, 2e-38, 9e-38],  # as small as floats get before they become denormal
    "small": 1e-35 * np.arange(100),
    "outlier": [-5.0] * 99 + [11.0],
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The record of these tensors by the recorder, and by tf.summary."""
    folder = tmp_path_factory.mktemp("both")
    tensors = {tag: tf.constant(tensor, tf.float32) for tag, tensor in TENSORS.items()}
    with tf.summary.create_file_writer(str(folder / "theirs")).as_default():
        for tag, tensor in tensors.items():
            tf.summary.histogram(tag, tensor, step=5)
        tf.summary.flush()
    counted = histograms.histograms([*tensors.values()])._asdict()
    sizes = [int(tf.size(tensor)) for tensor in tensors.values()]
    recorder = Recorder(str(folder / "ours"), ("loss",), [*tensors], sizes)
    recorder.steps(5, empty() | {name: value[None] for name, value in counted.items()})
    recorder.close()
    return events.read(folder / "ours"), events.read(folder / "theirs")


@pytest.mark.parametrize("tag", TENSORS)
def test_the_same_histogram_as_tf_summary(both, tag):
    tensor = tf.constant(TENSORS[tag], tf.float32)
    (ours,), (theirs,) = (record[tag].values for record in both)
    span = np.abs(tensor).max()
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], rtol=0, atol=span * 2**-23)
    assert ours[0, 0] == theirs[0, 0]
    assert ours[-1, 1] == theirs[-1, 1]
    assert ours[:, 2].sum() == theirs[:, 2].sum() == tensor.numpy().size
    events.assert_histogram(ours, tensor)
    if len(np.unique(tensor)) == 1:
        np.testing.assert_array_equal(ours, theirs)
    # Away from the edges the counts are the same.
    distance = np.abs(tensor.numpy().ravel()[:, None] - theirs[1:, 0]).min(1, initial=np.inf)
    assert np.abs(ours[:, 2] - theirs[:, 2]).sum() <= 2 * (distance <= span * 2**-20).sum()


def test_large_tensors_have_float64_and_so_exact_counts(tmp_path):
    low, high = np.float32(-0.1), np.float32(0.3)
    sizes = [2**24, 2**24 + 1]
    counts = np.zeros((1, 2, 30), np.int32)
    counts[0, :, 4] = sizes
    recorder = Recorder(str(tmp_path), ("loss",), ["large", "larger"], sizes)
    recorder.steps(1, empty(1, 2, low, high) | {"counts": tf.constant(counts)})
    recorder.close()
    record = events.read(tmp_path)
    assert record["large"].values.dtype == np.float32
    assert record["larger"].values.dtype == np.float64
    for tag, size in zip(["large", "larger"], sizes, strict=True):
        rows = record[tag].values[0]
        assert (rows[0, 0], rows[-1, 1]) == (low, high)
        assert rows[4, 2] == rows[:, 2].sum() == size


@pytest.mark.parametrize("every", [3, pytest.param(11, marks=pytest.mark.slow)])
def test_histogram_every_thins_histograms_only(every, truth, tmp_path):
    bench = Bench(every=every)
    recorder = bench.recorder(tmp_path)
    bench.record(recorder, [4, 4, 2], every)
    recorder.close()
    record = events.read(tmp_path)
    assert record["loss"].steps == record["accuracy"].steps == list(range(1, STEPS + 1))
    steps = [step for step in range(1, STEPS + 1) if step % every == 0]
    assert set(record) - {"loss", "accuracy"} == (set(TAGS) if steps else set())
    for tag in events.histograms(record):
        assert record[tag].steps == steps
        for step, rows in zip(steps, record[tag].values, strict=True):
            events.assert_histogram(rows, truth[1][step - 1][tag])


@pytest.mark.slow
def test_scalars_alone_when_nothing_is_watched(truth, tmp_path):
    bench = Bench(watch=())
    recorder = bench.recorder(tmp_path)
    bench.record(recorder, [5, 5])
    recorder.close()
    record = events.read(tmp_path)
    assert sorted(record) == ["accuracy", "loss"]
    np.testing.assert_array_equal(record["loss"].values, truth[0][:, 0])
    assert record["loss"].steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_what_else_is_watched_has_histograms_too(truth, tmp_path):
    bench = Bench(watch=("updates", "activations"))
    recorder = bench.recorder(tmp_path)
    bench.record(recorder, [5, 5])
    recorder.close()
    record = events.histograms(events.read(tmp_path))
    units = {"h1/activations": 9, "h2/activations": 7, "logits/activations": 5}
    updates = {f"{tag}/update": truth[1][0][tag].size for tag in TAGS[:6]}  # of the weights
    assert sorted(record) == sorted([*units, *updates])
    for tag, size in (updates | {tag: 8 * n for tag, n in units.items()}).items():
        assert record[tag].steps == list(range(1, STEPS + 1))
        assert (record[tag].values[:, :, 2].sum(1) == size).all(), tag
    for tag in TAGS[:6]:
        for i in range(1, STEPS):
            update = truth[1][i][tag] - truth[1][i - 1][tag]
            events.assert_histogram(record[f"{tag}/update"].values[i], update)
    for tag in ("h1/activations", "h2/activations"):  # of a sigmoid
        assert (record[tag].values[:, :, :2] > 0).all()
        assert (record[tag].values[:, :, :2] < 1).all()


def test_nan_and_infinity_are_counted_and_in_no_bucket(tmp_path):
    clean = np.random.default_rng(4).normal(size=(6, 100)).astype(np.float32)
    dirty = clean.copy()
    dirty[2, :3] = np.nan, np.inf, -np.inf
    dirty[4, 50:] = np.nan
    dirty[5] = np.inf
    recorder = Recorder(str(tmp_path), ("loss",), ["clean", "dirty"], [100, 100])
    for first in (0, 3):
        rows = [
            histograms.histograms([clean[i], dirty[i]])._asdict() for i in range(first, first + 3)
        ]
        counted = {name: tf.stack([row[name] for row in rows]) for name in rows[0]}
        recorder.steps(first + 11, empty(3, 2) | counted)
    recorder.close()
    assert list(recorder.nonfinite) == ["dirty"]
    assert recorder.nonfinite["dirty"]["first_step"] == 13
    assert recorder.nonfinite["dirty"]["count"] == 3
    record = events.read(tmp_path)
    assert sorted(record) == ["clean", "dirty", "dirty/nonfinite", "loss"]
    assert record["dirty/nonfinite"].plugin == "scalars"
    assert record["dirty/nonfinite"].steps == [13, 15, 16]
    assert record["dirty/nonfinite"].values.tolist() == [3, 50, 100]
    for tag in ("clean", "dirty"):
        assert record[tag].steps == [11, 12, 13, 14, 15, 16]
    for i in range(6):
        events.assert_histogram(record["clean"].values[i], clean[i])
        finite = dirty[i][np.isfinite(dirty[i])]
        if finite.size:
            events.assert_histogram(record["dirty"].values[i], finite)
        else:
            assert (record["dirty"].values[i] == 0).all()


def test_scalars_of_one_step_come_after_that_step(tmp_path):
    recorder = Recorder(str(tmp_path), ("loss",), ["x"], [30])
    recorder.steps(1, empty(20))
    recorder.scalars(20, {"test-loss": 0.25, "test-accuracy": 0.5})
    recorder.steps(21, empty(20))
    recorder.close()
    order = [(e.step, v.tag) for e in events.events(tmp_path) for v in e.summary.value]
    assert order.index((20, "x")) < order.index((20, "test-loss")) < order.index((21, "x"))
    assert [step for step, _ in order] == sorted(step for step, _ in order)
    record = events.read(tmp_path)
    assert record["test-loss"].values.tolist() == [0.25]
    assert record["test-accuracy"].steps == [20]


def test_flush_leaves_all_so_far_in_the_file(tmp_path):
    recorder = Recorder(str(tmp_path), ("loss",), ["x"], [30])
    for first in range(1, 401, 4):
        recorder.steps(first, empty(4))
    recorder.flush()
    record = events.read(tmp_path)
    assert record["x"].steps == record["loss"].steps == list(range(1, 401))
    recorder.close()
    assert events.read(tmp_path)["x"].steps == list(range(1, 401))


def fail(*_):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left\n\ton device")


def test_events_that_the_writer_loses_are_missed(tmp_path):
    """TensorFlow's loses some without an error, where there is no room."""
    recorder = Recorder(str(tmp_path), ("loss",), ["x"], [30])
    recorder.steps(1, empty(3))
    recorder.flush()
    write = recorder._write
    recorder._write = lambda content, steps: write(content[:-1], steps[:-1])
    recorder.steps(4, empty(3))
    with pytest.raises(LabError, match="lacks 1 of its events"):
        recorder.flush()


@pytest.mark.parametrize("last", ["steps", "flush", "close"])
def test_an_error_of_the_writer_is_one_line_that_says_what_to_do(last, tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path), ("loss",), ["x"], [30])
    recorder.steps(1, empty())
    recorder.flush()
    monkeypatch.setattr(recorder, "_write", fail)
    recorder.steps(2, empty())
    with pytest.raises(LabError, match=r"(?s)space left.*--logdir") as caught:
        # An error comes up at the next calls but a few, not only at the end.
        for step in range(3, 7):
            getattr(recorder, last)(*((step, empty()) if last == "steps" else ()))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    if last != "close":
        with contextlib.suppress(LabError):  # what else was on its way
            recorder.close()
    assert events.read(tmp_path)["x"].steps[0] == 1


def test_a_directory_that_cannot_be_is_a_lab_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="--logdir"):
        Recorder(str(tmp_path / "file" / "run"), ("loss",), ["x"], [30])


def test_record_if_and_another_writer_direct_the_record(tmp_path):
    """As tf.summary's own functions."""
    writer = tf.summary.create_file_writer(str(tmp_path / "elsewhere"))
    recorder = Recorder(str(tmp_path / "run"), ("loss",), ["x"], [30], writer)
    for step in range(1, 7):
        with tf.summary.record_if(step % 2 == 0):
            recorder.steps(step, empty())
    recorder.close()
    assert events.read(tmp_path / "elsewhere")["x"].steps == [2, 4, 6]
    assert not list((tmp_path / "run").iterdir())
