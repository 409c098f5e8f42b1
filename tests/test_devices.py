"""Several devices of one process: the same curves as one, and what each replica's gradient says.

The references are a float64 backward pass in NumPy, example by example.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import re
import signal
from unittest import mock

import events
import forks
import numpy as np
import programs
import pytest
import tensorflow as tf
from tensorflow.python.distribute.collective_util import CommunicationImplementation
from tensorflow.python.distribute.cross_device_ops import CollectiveAllReduce
from tensorflow.python.eager import context
from test_step import Under, small_mlp

import lab
from lab.errors import LabError
from lab.models import layers
from lab.models.optimizers import RULES
from lab.processes.cluster import Cluster
from lab.settings.config import Config
from lab.step import agreement, loop
from lab.step import gradient_noise as replicas
from lab.step import placement as devices
from lab.step.loop import TrainLoop
from lab.training import build
from lab.training.problem import problem_with
from lab.training.state import TrainingState

pytestmark = pytest.mark.numbers

TAGS = [f"{layer}/{part}" for layer in ("h1", "h2", "logits") for part in ("weights", "bias")]


@functools.cache
def strategy_over(count):
    return devices.make_strategy(f"cpu:{count}")


# ------------------------------------------------------------------ the gradients, by hand


def example_gradients(weights, x, labels):
    """float64 [examples, entries] of each tensor, by its tag: the gradient of the cross-entropy
    of every example, written out for a sigmoid network."""
    outputs = [np.float64(x)]
    for layer in ("h1", "h2"):
        z = outputs[-1] @ weights[f"{layer}/weights"] + weights[f"{layer}/bias"]
        outputs.append(1 / (1 + np.exp(-z)))
    z = outputs[-1] @ weights["logits/weights"] + weights["logits/bias"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    delta = p / p.sum(axis=1, keepdims=True)
    delta[range(len(labels)), labels] -= 1
    found = {}
    for layer, entered in reversed(list(zip(("h1", "h2", "logits"), outputs, strict=True))):
        outer = entered[:, :, None] * delta[:, None, :]
        found |= {f"{layer}/weights": outer.reshape(len(x), -1), f"{layer}/bias": delta}
        delta = (delta @ np.float64(weights[f"{layer}/weights"]).T) * entered * (1 - entered)
    return found


class Watched(Under):
    """A loop on the tiny data whose tensors can be asked for by tag."""

    def __init__(self, tiny, count, **options):
        super().__init__(tiny, strategy=strategy_over(count), **options)
        self._images, self._labels = tiny[0].reshape(103, 12) / 255, tiny[1]

    def tensors(self):
        return dict(zip(self.training.variables, self.weights(), strict=True))

    def examples(self, rows):
        """The gradient of each of these examples, now; "" is all tensors in one row."""
        found = example_gradients(self.tensors(), self._images[rows], self._labels[rows])
        return found | {"": np.concatenate([found[tag] for tag in TAGS], axis=1)}

    def columns(self, recorded):
        """What was recorded, by tag: [steps] each."""
        values = recorded["scalars"].T
        return dict(zip(self.loop.watch.scalar_tags, np.float64(values), strict=True))


RATE = 0.1
_standing = {}


def standing(tiny, count, batch, mean=False):
    """A loop of sgd at the start of its run; made once for all tests."""
    if (count, batch, mean) not in _standing:
        rule = RULES["sgd"](RATE if mean else RATE / batch)
        _standing[count, batch, mean] = Watched(tiny, count, rule=rule, batch=batch, mean=mean)
    under = _standing[count, batch, mean]
    under.restart()
    return under


def shares(batch, count):
    """Where the replicas' shares of a batch begin and end."""
    bounds = [batch * r // count for r in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def prefixes():
    return ["", *(f"{tag}/" for tag in TAGS)]


def test_the_gradients_by_hand_are_gradients(tiny):
    """Against differences of the loss, or the tests below would prove little."""
    under = Watched(tiny, 1)
    rows = np.arange(5)
    gradients = under.examples(rows)
    weights = {tag: np.float64(value) for tag, value in under.tensors().items()}

    def loss(changed):
        x = under._images[rows]
        for layer in ("h1", "h2"):
            x = 1 / (1 + np.exp(-(x @ changed[f"{layer}/weights"] + changed[f"{layer}/bias"])))
        z = x @ changed["logits/weights"] + changed["logits/bias"]
        return np.log(np.exp(z).sum(axis=1)) - z[rows, tiny[1][rows]]

    assert gradients[""].shape == (5, sum(value.size for value in weights.values()))
    for tag, value in weights.items():
        for entry in (0, value.size // 2, value.size - 1):
            step = np.zeros(value.size)
            step[entry] = 1e-5
            step = step.reshape(value.shape)
            slope = (loss(weights | {tag: value + step}) - loss(weights | {tag: value - step})) / 2
            np.testing.assert_allclose(gradients[tag][:, entry], slope / 1e-5, 1e-5, 1e-9)


# ------------------------------------------------------------------ one curve


def curve(tiny, count, optimizer, steps, batch=250, make_strategy=strategy_over):
    """The losses of each step. A batch of 250 gives four replicas 62, 63, 62 and 63 examples."""
    rate = {"sgd": 0.5, "adam": 0.01, "adagrad": 0.05}[optimizer]
    rule = RULES[optimizer](rate)
    strategy = make_strategy(count)
    under = Under(tiny, rule, strategy=strategy, batch=batch, mean=True, steps_per_loop=steps)
    assert under.loop.replicas == count
    return under.run(steps)["scalars"][:, 0]


def assert_one_curve(one, many, tolerance=1e-4):
    np.testing.assert_allclose(many, one, rtol=tolerance)
    # It learnt, and no loss is that of the step before: standing still would agree, too.
    assert one[-5:].mean() < 0.98 * one[:5].mean()
    assert (np.diff(one) != 0).all()


@pytest.mark.parametrize(
    ("optimizer", "counts"),
    [
        pytest.param(rule, counts, marks=pytest.mark.slow)
        for rule, counts in [("sgd", (2, 4)), ("adam", (2,)), ("adagrad", (2,))]
    ],
)
def test_any_number_of_devices_gives_one_curve(tiny, optimizer, counts):
    one = curve(tiny, 1, optimizer, 30)
    for count in counts:
        assert_one_curve(one, curve(tiny, count, optimizer, 30))


class Normalized(tf.Module):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(12, 8, initializer=layers.glorot)
        self.norm = layers.BatchNorm(8)
        self.logits = layers.Dense(8, 10, initializer=layers.glorot)

    def __call__(self, x, training=False):
        return self.logits(tf.nn.relu(self.norm(self.dense(x), training)))


@pytest.mark.parametrize(
    ("make_model", "programs"),
    [pytest.param(small_mlp, 4, marks=pytest.mark.slow), (Normalized, 2)],
)
def test_each_replicas_gradient_and_update_as_programs(tiny, make_model, programs):
    """As on several GPUs with --xla=on, and the same as TensorFlow's kernels. A model that assigns
    variables synchronizes them in its gradient, which therefore is no program."""
    found = []
    for xla in (False, True):
        options = {"batch": 31, "xla": xla, "make_model": make_model}
        under = Under(tiny, strategy=strategy_over(2), watch=("weights", "norms"), **options)
        nodes = under.loop.step_graph.as_graph_def().node
        compiled = [node for node in nodes if node.attr["_XlaMustCompile"].b]
        found.append((under.run(3, 1), under.weights(), len(compiled)))
    (plain, expected, none), (recorded, weights, count) = found
    assert count - none == programs
    # Before a normalization a bias has no gradient, but for rounding.
    columns = [i for i, t in enumerate(under.loop.watch.scalar_tags) if "dense/bias" not in t]
    scalars, expected_scalars = (one["scalars"][:, columns] for one in (recorded, plain))
    np.testing.assert_allclose(scalars, expected_scalars, 1e-4, 1e-4)
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, 0, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_any_number_of_devices_gives_one_curve_for_long(tiny, tmp_path, optimizer):
    """200 steps: on the tiny set, and for one rule with the program on MNIST."""
    tiny_curves = [curve(tiny, count, optimizer, 200) for count in (1, 2, 4)]
    for many in tiny_curves[1:]:
        assert_one_curve(tiny_curves[0], many)
    if optimizer != "adam":
        return
    curves = []
    for count in (1, 2, 4):
        flags = ["--training_steps=200", "--batch_size=250", "--reduction=mean", "--watch="]
        flags += ["--optimizer=adam", "--learning_rate=0.002", "--initializer=glorot"]
        folder = tmp_path / str(count)
        outcome = programs.train(
            *flags, f"--devices=cpu:{count}", f"--logdir={folder}", "--run_name=x"
        )
        assert outcome.status == 0, outcome
        series = events.read(folder / "x")["loss"]
        assert series.steps == list(range(1, 201))
        curves.append(series.values)
        assert programs.result(folder / "x")["replicas"] == count
    for many in curves[1:]:
        assert_one_curve(curves[0], many)


@pytest.mark.parametrize(
    ("count", "batch"),
    [
        (2, 5),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(4, 6), (4, 250), (3, 3)]),
    ],
)
def test_every_example_counts_the_same(tiny, count, batch):
    """In shares of different sizes: a mean over the replicas' means would be another gradient.
    One step against the sum over the examples, by hand."""
    under = standing(tiny, count, batch, True)
    rows = under.batches.indices(1, 1)[0]
    by_hand, before = under.examples(rows), under.tensors()
    under.run(1)
    parts = [by_hand[""][share].mean(axis=0) for share in shares(batch, count)]
    if batch % count:
        wrong, right = np.mean(parts, axis=0), by_hand[""].mean(axis=0)
        assert np.abs(wrong - right).max() > 1e-3 * np.abs(right).max()
    for tag, after in under.tensors().items():
        moved = (before[tag] - after).ravel() / RATE
        expected = by_hand[tag].sum(axis=0) / batch
        # A difference of two weights has their rounding.
        np.testing.assert_allclose(moved, expected, 1e-4, 3e-7 / RATE, err_msg=tag)


# ------------------------------------------------------------------ local and reduced gradients


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize(
    ("count", "batch"),
    [(2, 16), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(3, 7), (4, 22)])],
)
def test_what_is_recorded_of_each_replica(tiny, count, batch, mean):
    """Every scalar of every tensor and of all together, at five steps, against the examples'
    own gradients in float64."""
    under = standing(tiny, count, batch, mean)
    sizes = np.array([share.stop - share.start for share in shares(batch, count)])
    tags = set()
    for _ in range(5):
        by_hand = under.examples(under.batches.indices(under.step + 1, 1)[0])
        found = {tag: values[0] for tag, values in under.columns(under.run(1)).items()}
        for prefix in prefixes():
            g = by_hand[prefix.removesuffix("/")]
            local = [g[share].sum(axis=0) * under.scale for share in shares(batch, count)]
            reduced = np.sum(local, axis=0)
            expected = {"norm": np.linalg.norm(reduced)}
            for r, one in enumerate(local):
                length = np.linalg.norm(one)
                expected[f"replica_{r}/norm"] = length
                expected[f"replica_{r}/cosine"] = one @ reduced / length / expected["norm"]
            # The mean gradients of the shares and of the batch.
            means = [g[share].mean(axis=0) for share in shares(batch, count)]
            small, large = np.mean([m @ m for m in means]), (whole := g.mean(axis=0)) @ whole
            s = (small - large) / (np.mean(1 / sizes) - 1 / batch)
            if count == 2 and batch == 16:  # in the words of the questions
                b = 8
                assert s == pytest.approx((small - large) / (1 / b - 1 / batch))
                g2 = (batch * large - b * small) / (batch - b)
                assert large - s / batch == pytest.approx(g2)
            expected |= {"noise/variance": s, "noise/signal": large - s / batch}
            for name, value in expected.items():
                tag = f"{prefix}gradient/{name}"
                tags.add(tag)
                # Differences of squares have the rounding of these.
                noisy = 1e-5 * (small + large) * batch if "variance" in name else 0
                noisy = 1e-5 * (small + large) if "signal" in name else noisy
                near = 1e-6 if "cosine" in name else noisy
                assert found[tag] == pytest.approx(value, rel=1e-5, abs=near), tag
    assert under.loop.watch.scalar_tags[:2] == ["loss", "accuracy"]
    assert sorted(under.loop.watch.scalar_tags[2:]) == sorted(tags)
    assert len(tags) == 7 * (2 * count + 3)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch"), [(2, 16), pytest.param(4, 7, marks=pytest.mark.slow)])
def test_the_local_gradients_sum_to_the_reduced_one(tiny, count, batch):
    """As they are recorded: |g|^2 is the sum of local . g; and directly, with what the replicas
    hold in their hands."""
    under = standing(tiny, count, batch)
    columns = under.columns(under.run(10))
    for prefix in prefixes():
        parts = [
            columns[f"{prefix}gradient/replica_{r}/norm"]
            * columns[f"{prefix}gradient/replica_{r}/cosine"]
            for r in range(count)
        ]
        whole = columns[f"{prefix}gradient/norm"]
        assert (whole > 0).all()
        scale = np.max([columns[f"{prefix}gradient/replica_{r}/norm"] for r in range(count)], 0)
        np.testing.assert_allclose(np.sum(parts, axis=0) / scale, whole / scale, 1e-5, 1e-5)

    seen = {}

    def replica():
        context = tf.distribute.get_replica_context()
        return int(tf.get_static_value(context.replica_id_in_sync_group))

    def spy(squares, local, reduced, *more):
        seen[replica()] = local[0], reduced
        return replicas_products(squares, local, reduced, *more)

    replicas_products = replicas.products
    with mock.patch.object(replicas, "products", spy):
        under = Watched(tiny, count, batch=batch)
        inner = under.loop._replica_step

        def step(indices, *numbers):
            # Outputs of the replicas' own function, so that they can be fetched.
            outputs = inner(indices, *numbers)
            local, reduced = seen[replica()]
            return outputs | {"local_gradients": local, "reduced_gradients": reduced}

        rows = tf.constant(under.batches.indices(1, 1)[0])
        one = tf.constant(1, tf.int64)
        outputs = tf.function(lambda: under.strategy.run(step, args=(rows, one, one)))()
    per_replica = tf.nest.map_structure(under.strategy.experimental_local_results, outputs)
    for local, reduced in zip(
        per_replica["local_gradients"], per_replica["reduced_gradients"], strict=True
    ):
        assert len(local) == len(reduced) == count
        total = np.sum([np.float64(g.numpy()) for g in local], axis=0)
        largest = max(np.abs(g.numpy()).max() for g in local)
        assert not np.allclose(local[0].numpy(), local[1].numpy(), 0, 1e-3 * largest)
        for g in reduced:
            np.testing.assert_allclose(g.numpy(), total, 0, 1e-6 * largest)
            np.testing.assert_array_equal(g.numpy(), reduced[0].numpy())


def test_one_replica_has_none_of_that(tiny):
    under = Watched(tiny, 1, watch=("replicas",), xla=False)
    assert under.loop.watch.scalar_tags == ["loss", "accuracy"]
    assert not [tag for tag in under.loop.watch.tags if "replica_" in tag]
    assert under.run(1)["scalars"].shape == (1, 2)


# ------------------------------------------------------------------ the noise scale


def partitions(batch, count):
    """Every order of a batch in which its shares are different sets."""
    pieces = [share.stop - share.start for share in shares(batch, count)]

    def split(left, sizes):
        if not sizes:
            yield []
        for first in itertools.combinations(left, sizes[0]) if sizes else ():
            rest = [i for i in left if i not in first]
            for others in split(rest, sizes[1:]):
                yield [*first, *others]

    return list(split(list(range(batch)), pieces))


@pytest.mark.parametrize(
    ("count", "batch"),
    [(2, 5), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2, 6), (3, 6)])],
)
def test_the_noise_is_the_variance_of_the_examples(tiny, count, batch):
    """Over all ways to deal a batch to the replicas, the mean of S is exactly the sum of the
    sample variances of the examples' gradients, and that of G2 is |g|^2 - S/B: NumPy's, with no
    replicas at all. The weights are put back after each."""
    under = standing(tiny, count, batch, True)
    rows = under.batches.indices(1, 1)[0]
    orders = rows[np.array(partitions(batch, count))]
    assert len(orders) > 5 and len({tuple(order) for order in orders}) == len(orders)
    scalars = []
    for order in orders.astype(np.int32):
        recorded = under.loop.run(order[None], 1, seed=0)
        scalars.append(recorded["scalars"].numpy()[0])
        under.restart()
    columns = under.columns({"scalars": np.stack(scalars)})
    for prefix in prefixes():
        g = under.examples(rows)[prefix.removesuffix("/")]
        variance = g.var(axis=0, ddof=1).sum()
        signal = (mean := g.mean(axis=0)) @ mean - variance / batch
        s, g2 = (columns[f"{prefix}gradient/noise/{name}"] for name in ("variance", "signal"))
        assert s.std() > 0.01 * variance  # each way gives another estimate
        np.testing.assert_allclose(s.mean(), variance, rtol=1e-4)
        np.testing.assert_allclose(g2.mean(), signal, rtol=1e-3, atol=1e-4 * variance / batch)
        expected = variance / signal if signal > 0 else np.nan
        scale = replicas.noise_scale(float(s.sum()), float(g2.sum()))
        if abs(signal) > 0.05 * variance / batch:
            np.testing.assert_allclose(scale, expected, rtol=5e-3)


@pytest.mark.parametrize(("bounds", "scale"), [([0, 8, 16], 1.0), ([0, 3, 8, 10], 0.1)])
def test_the_estimates_have_no_bias(bounds, scale):
    """Gradients drawn from a law that is known: means over many steps come to the trace of its
    covariance and to the squared norm of its mean, within five standard errors."""
    random = np.random.default_rng(11)
    mean, spread = np.array([0.3, -0.2, 0.5]), np.array([1.0, 2.0, 0.5])
    steps = 4000
    g = mean + spread * random.normal(size=(steps, bounds[-1], 3))
    pairs = list(itertools.pairwise(bounds))
    local = np.stack([g[:, a:b].sum(axis=1) for a, b in pairs], axis=1) * scale
    reduced = local.sum(axis=1, keepdims=True) * np.ones((1, len(pairs), 1))
    products = np.stack([local**2, reduced**2, local * reduced], axis=-1).sum(axis=2)[:, :, None]
    compute = tf.function(
        lambda steps: tf.map_fn(lambda one: replicas.scalars(one, bounds, scale), steps)
    )
    found = compute(tf.constant(products, tf.float32)).numpy()
    tags = replicas.tags(["w"], len(pairs))
    assert found.shape == (steps, len(tags))
    for prefix in ("w/", ""):
        for name, truth in (("variance", (spread**2).sum()), ("signal", (mean**2).sum())):
            values = np.float64(found[:, tags.index(f"{prefix}gradient/noise/{name}")])
            error = values.std(ddof=1) / np.sqrt(steps)
            assert error < 0.05 * truth
            assert abs(values.mean() - truth) < 5 * error


def test_sum_and_mean_give_the_same_noise(tiny):
    """The scale of the loss is divided out: sgd with the learning rate divided likewise takes the
    same way."""
    total, mean = (standing(tiny, 2, 16, mean) for mean in (False, True))
    a, b = (under.columns(under.run(10)) for under in (total, mean))
    for prefix in prefixes():
        for name in ("variance", "signal"):
            tag = f"{prefix}gradient/noise/{name}"
            np.testing.assert_allclose(a[tag], b[tag], rtol=1e-3, atol=1e-5 * np.abs(a[tag]).max())
        norm = f"{prefix}gradient/norm"
        np.testing.assert_allclose(a[norm], 16 * b[norm], rtol=1e-4)


NOISY = ["--training_steps=25", "--display_step=10", "--checkpoint_every=7", "--steps_per_loop=3"]
NOISY += ["--n_hidden_1=6", "--n_hidden_2=5", "--batch_size=50", "--devices=cpu:2", "--watch="]
IN_PARTS = ["--devices=cpu:1", "--microbatches=2"]
NOISY += ["--initializer=glorot", "--run_name=x"]


def assert_scales(directory):
    """noise/scale against the noise/variance and noise/signal of its steps, as recorded."""
    series = events.read(directory)
    finite = 0
    for prefix in prefixes():
        s, g2, scale = (
            series[f"{prefix}gradient/noise/{name}"] for name in ("variance", "signal", "scale")
        )
        assert s.steps == g2.steps == list(range(1, 26))
        assert scale.steps == [10, 20, 25]
        for (a, b), found in zip([(0, 10), (10, 20), (20, 25)], scale.values, strict=True):
            mean_s, mean_g2 = (np.float64(one.values[a:b]).mean() for one in (s, g2))
            expected = mean_s / mean_g2 if mean_g2 > 0 else np.nan
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            finite += mean_g2 > 0
    assert finite > 5
    return series


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], IN_PARTS], ids=["replicas", "parts"])
def test_the_noise_scale_of_the_steps_since_the_last_evaluation(idx_folder, tmp_path, more):
    """At the steps of evaluations; also where the run was interrupted before the first of them."""
    flags = [*NOISY, *more, f"--data={idx_folder}"]
    whole, pieced = (f"--logdir={tmp_path / name}" for name in ("whole", "pieced"))
    assert forks.train(*flags, whole).status == 0
    series = assert_scales(tmp_path / "whole" / "x")
    assert {tag for tag in series if "noise/scale" in tag} == {
        f"{prefix}gradient/noise/scale" for prefix in prefixes()
    }
    outcome = forks.train(*flags, pieced, kill_at=["saved", 2, signal.SIGTERM])  # of step 7
    assert (outcome.status, outcome.err) == (128 + signal.SIGTERM, "")
    stopped = forks.result(tmp_path / "pieced" / "x")
    assert (stopped["status"], stopped["step"]) == ("interrupted", 7)
    assert stopped["test_accuracy"] is None and not stopped["evaluations"]["step"]
    outcome = forks.train(*flags, pieced)
    assert (outcome.status, outcome.err) == (0, "")
    assert forks.resumed_after(outcome.out) == 7
    assert_scales(tmp_path / "pieced" / "x")
    forks.assert_same_run(tmp_path / "pieced" / "x", tmp_path / "whole" / "x")


def test_a_signal_not_above_zero_gives_no_scale():
    assert replicas.noise_scale(6.0, 2.0) == 3.0
    assert np.isnan(replicas.noise_scale(6.0, 0.0)) and np.isnan(replicas.noise_scale(6.0, -1.0))
    assert np.isnan(replicas.noise_scale(float("nan"), float("nan")))


def test_columns_of_the_noise():
    tags = ["loss", "accuracy", *replicas.tags(["a", "b/c"], 2)]
    columns = dict(replicas.noise_columns(tags))
    assert list(columns) == ["a/", "b/c/", ""]
    for prefix, (s, g2) in columns.items():
        assert tags[s] == f"{prefix}gradient/noise/variance"
        assert tags[g2] == f"{prefix}gradient/noise/signal"
    assert replicas.noise_columns(["loss", "accuracy"]) == []


# ------------------------------------------------------------------ --watch=replicas


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch"), [(2, 16), pytest.param(4, 7, marks=pytest.mark.slow)])
def test_histograms_of_each_replicas_gradients(tiny, count, batch):
    """Against np.histogram of the gradients of the replica's own share, by hand: a value within
    rounding of an edge may stand on either side of it."""
    watch = ("weights", "gradients", "replicas")
    under = Watched(tiny, count, rule=RULES["sgd"](0.05), batch=batch, watch=watch)
    names = list(under.training.variables)
    local = [f"{name}/gradient/replica_{r}" for r in range(count) for name in names]
    assert under.loop.watch.tags == [*names, *(f"{name}/gradient" for name in names), *local]
    seen = set()
    for _ in range(4):
        by_hand = under.examples(under.batches.indices(under.step + 1, 1)[0])
        recorded = under.run(1)
        assert not recorded["nonfinite"].any()
        for tag in local:
            name, r = tag.split("/gradient/replica_")
            value = by_hand[name][shares(batch, count)[int(r)]].sum(axis=0)
            row = under.loop.watch.tags.index(tag)
            counts, low, high = (recorded[key][0, row] for key in ("counts", "low", "high"))
            assert counts.sum() == value.size == under.loop.watch.sizes[row]
            slack = 1e-5 * np.abs(value).max()
            assert abs(low - value.min()) <= slack and abs(high - value.max()) <= slack, tag
            expected, edges = np.histogram(value, 30)
            for edge in range(1, 30):
                near = np.sum(np.abs(value - edges[edge]) <= 3 * slack)
                assert abs(counts[:edge].sum() - expected[:edge].sum()) <= near, (tag, edge)
            seen.add((tag, counts.tobytes()))
    # They are different ones, of different replicas and at different steps.
    assert len(seen) > 3 * len(local)


@pytest.mark.slow
def test_replicas_and_nothing_else(tiny):
    """Beside no other histogram, and only at some of the steps."""
    each = Watched(tiny, 2, watch=("replicas",))
    thin = Watched(tiny, 2, watch=("replicas",), histogram_every=2)
    a, b = each.run(4), thin.run(3, 1)
    assert each.loop.watch.tags == thin.loop.watch.tags
    assert all("/gradient/replica_" in tag for tag in each.loop.watch.tags)
    assert len(each.loop.watch.tags) == 2 * len(TAGS)
    np.testing.assert_array_equal(a["scalars"], b["scalars"])
    for key in ("counts", "low", "high"):
        np.testing.assert_array_equal(a[key][1::2], b[key][1::2])
        assert not b[key][::2].any()


def test_the_record_of_a_run_on_two_devices(idx_folder, tmp_path):
    """Every tag in the event files; and the other devices of a machine go on with it."""
    flags = [f"--data={idx_folder}", f"--logdir={tmp_path}", *NOISY]
    flags += ["--training_steps=4", "--display_step=2", "--watch=gradients,replicas"]
    outcome = programs.train(*flags)
    assert (outcome.status, outcome.err) == (0, "")
    assert ", 2 replicas" in outcome.out
    series = events.read(tmp_path / "x")
    shown = events.histograms(series)
    assert set(shown) == {
        f"{tag}{suffix}"
        for tag in TAGS
        for suffix in ("/gradient", "/gradient/replica_0", "/gradient/replica_1")
    }
    for tag, one in shown.items():
        assert one.steps == [1, 2, 3, 4]
        # The local and the reduced ones are of the same tensor.
        size = shown[tag.partition("/replica")[0]].values[0, :, 2].sum()
        assert one.values[:, :, 2].sum(axis=1).tolist() == [size] * 4
    scalars = {tag for tag, one in series.items() if one.plugin == "scalars"}
    noise = {f"{prefix}gradient/noise/scale" for prefix in prefixes()}
    assert scalars - noise == {
        "loss",
        "accuracy",
        "test-loss",
        "test-accuracy",
        *replicas.tags(TAGS, 2),
    }
    result = programs.result(tmp_path / "x")
    assert (result["replicas"], result["workers"], result["device"]) == (2, 1, "CPU")
    assert len(result["devices"]) == 2

    assert programs.train(*flags, "--devices=CPU:3,CPU:1").status == 0
    refused = programs.train(*flags, "--devices=cpu:4")
    forks.assert_one_line(refused, 1, "replicas was 2, is 4", "--overwrite")


# ------------------------------------------------------------------ --devices


@pytest.fixture
def two_gpus():
    real = tf.config.list_physical_devices
    kinds = {"GPU": ["/physical_device:GPU:0", "/physical_device:GPU:1"]}

    def listed(kind=None):
        return kinds.get(kind) or real(kind)

    with mock.patch.object(tf.config, "list_physical_devices", listed):
        yield


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("auto", ["GPU:0", "GPU:1"]),
        ("gpu:1", ["GPU:0"]),
        ("gpu:2", ["GPU:0", "GPU:1"]),
        ("GPU:1", ["GPU:1"]),
        ("GPU:1,GPU:0", ["GPU:1", "GPU:0"]),
        ("/gpu:0, /gpu:1", ["GPU:0", "GPU:1"]),
        ("cpu:1", ["CPU:0"]),
        ("cpu:3", ["CPU:0", "CPU:1", "CPU:2"]),
        ("CPU:3,CPU:1", ["CPU:3", "CPU:1"]),
    ],
)
def test_devices_of_a_machine_with_gpus(two_gpus, flag, names):
    assert devices._names(flag) == names


NONSENSE = ["", "gpu:", "cpu:", "gpu:-1", "cpu:1.5", "cpu:0x2", "tpu:1", "GPU", "all", "2"]
NONSENSE += ["CPU:0,CPU:0", "GPU:0,GPU:0", "cpu:0,CPU:0", "GPU:0,CPU:0", "CPU:0,GPU:1", "CPU:0,"]
NONSENSE += ["GPU:0,GPU:2", "GPU:x", "CPU:x", "CPU:-1", "gpu:3", "GPU:7"]


@pytest.mark.parametrize("flag", NONSENSE)
def test_devices_that_are_refused(two_gpus, flag):
    with pytest.raises(LabError) as refusal:
        devices.make_strategy(flag)
    text = str(refusal.value)
    assert text.startswith(f"--devices={flag}: ")
    assert "GPU:0, GPU:1" in text and "\n" not in text


@pytest.mark.parametrize("flag", ["gpu:1", "GPU:0", "gpu:2", "CPU:0,GPU:0", "nonsense"])
def test_gpus_of_a_machine_without(idx_folder, tmp_path, flag):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has GPUs")
    outcome = programs.train(
        f"--devices={flag}", f"--data={idx_folder}", f"--logdir={tmp_path / 'logs'}"
    )
    forks.assert_one_line(outcome, 1, f"--devices={flag}:", "no GPU")
    assert outcome.err.count("\n") == 1
    assert outcome.out == "" and not (tmp_path / "logs").exists()


def test_more_cpu_devices_than_a_started_tensorflow_has():
    """Which cannot make more of them; a program that starts can."""
    assert len(tf.config.list_logical_devices("CPU")) == 4
    for flag in ("cpu:5", "CPU:4", "CPU:0,CPU:9"):
        with pytest.raises(LabError, match=f"--devices={re.escape(flag)}: ") as error:
            devices.make_strategy(flag)
        assert "already running" in str(error.value) and "4 logical" in str(error.value)
    assert devices.make_strategy("cpu:4").num_replicas_in_sync == 4


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_cannot_be_shared(idx_folder, tmp_path, batch):
    flags = [f"--data={idx_folder}", f"--logdir={tmp_path / 'logs'}", "--devices=cpu:4"]
    outcome = programs.train(*flags, f"--batch_size={batch}")
    forks.assert_one_line(outcome, 1, f"--batch_size={batch}:", "replicas, 4")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_a_loop_refuses_such_a_batch_too(tiny):
    with pytest.raises(ValueError, match=r"batch of 3 .* 4 replicas"):
        Under(tiny, strategy=strategy_over(4), batch=3)


def test_the_operations_that_reduce():
    """On one of them for logical CPU devices, which was measured to be the fastest there; on GPUs
    TensorFlow's own choice, which is NCCL where there are several."""
    for count in (2, 4):
        chosen = strategy_over(count).extended._get_cross_device_ops(tf.constant(0.0))
        assert isinstance(chosen, tf.distribute.ReductionToOneDevice)
    assert strategy_over(2).extended.worker_devices == (
        "/job:localhost/replica:0/task:0/device:CPU:0",
        "/job:localhost/replica:0/task:0/device:CPU:1",
    )
    made = []
    with (
        mock.patch.object(tf.distribute, "MirroredStrategy", lambda *a, **k: made.append((a, k))),
        mock.patch.object(devices, "_names", lambda _: ["GPU:0", "GPU:1"]),
    ):
        devices.make_strategy("gpu:2")
    assert made == [((["GPU:0", "GPU:1"],), {"cross_device_ops": None})]


@pytest.mark.slow
def test_a_program_makes_as_many_cpu_devices_as_it_needs(idx_folder, tmp_path):
    """In a process of its own, where TensorFlow has not begun."""
    flags = [*NOISY, f"--data={idx_folder}", f"--logdir={tmp_path}", "--training_steps=2"]
    process = programs.start(*flags, "--devices=CPU:5,CPU:2", "--batch_size=7", cwd=tmp_path)
    outcome = programs.finish(process)
    assert (outcome.status, outcome.err) == (0, ""), outcome
    found = [name.rpartition("/")[2] for name in programs.result(tmp_path / "x")["devices"]]
    assert found == ["device:CPU:2", "device:CPU:5"]


# ------------------------------------------------------------------ still one


def test_replicas_that_have_come_apart_are_named(tiny):
    under = Watched(tiny, 4, rule=RULES["adam"]())
    group = agreement.Group(under.strategy, None)
    variables = dict(zip(under.tensors(), under.model.trainable_variables, strict=True))
    group.check_identical(variables)
    for tag, variable in variables.items():
        for number in (1, 3):
            one = under.strategy.experimental_local_results(variable)[number]
            before = one.numpy()
            changed = before.copy()
            # The smallest change that there is: the last bit, or the sign of a zero.
            last = changed.ravel()[-1]
            changed.ravel()[-1] = -0.0 if last == 0 else np.nextafter(last, np.float32(9))
            one.assign(changed)
            with pytest.raises(LabError, match=f"^{tag} .*replica {number} "):
                group.check_identical(variables)
            one.assign(before)
    group.check_identical(variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h2/bias", "logits/weights/m"])
def test_a_run_whose_replicas_come_apart_ends_at_the_next_checkpoint(idx_folder, tmp_path, name):
    """With one line that names it, and with the last checkpoint that was right."""
    run = TrainingState.run

    def breaking(self, *arguments):
        done = run(self, *arguments)
        if self.step == 14:  # the save that follows is of this step
            variable = self.training.all_variables[name]
            one = self.loop._strategy.experimental_local_results(variable)[1]
            one.assign_add(tf.fill(one.shape, 1e-3))
        return done

    flags = [*NOISY, "--optimizer=adam", f"--data={idx_folder}", f"--logdir={tmp_path}"]
    with mock.patch.object(TrainingState, "run", breaking):
        outcome = programs.train(*flags)
    forks.assert_one_line(outcome, 1, f"train: {name} ", "replica 1")
    assert sorted(forks.checkpoints(tmp_path / "x")) == [0, 7]
    assert not (tmp_path / "x" / "result.json").exists()
    outcome = programs.train(*flags)
    assert outcome.status == 0 and forks.resumed_after(outcome.out) == 7


def test_a_group_of_one_agrees_with_itself():
    group = agreement.Group(strategy_over(2), None)
    assert group.chief and group.alone
    assert group.largest(0, 15) == [0, 15]
    assert group.from_chief(b"word") == b"word"
    np.testing.assert_array_equal(group.sum(np.arange(3, dtype=np.int32)), [0, 1, 2])


class Alone(agreement.Group):
    """Worker 0 or 1 of two. What the chief adds is kept for the other, which is asked later."""

    def __init__(self, index, added):
        super().__init__(strategy_over(1), Cluster(("a:1", "b:1"), index))
        self.added = added

    def sum(self, values):
        assert values.dtype == np.int32
        if self.chief:
            self.added.append(values)
            return values
        return values + self.added.pop(0)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 19, 24])
def test_a_message_in_pieces(monkeypatch, length):
    monkeypatch.setattr(agreement, "_PIECE", 8)
    message, added = bytes(range(200, 200 + length)), []
    assert Alone(0, added).from_chief(message) == message
    assert max(map(len, added)) <= 2
    assert Alone(1, added).from_chief(b"another one") == message
    assert not added


def test_the_length_of_a_message_beyond_int32(monkeypatch):
    """Of pages that nothing has touched. What comes after the length is not sent."""

    class Enough(Exception):
        pass

    class Short(Alone):
        def sum(self, values):
            if self.added:
                raise Enough
            return super().sum(values)

    added = []
    monkeypatch.setattr(agreement, "_PIECE", 8, raising=False)
    with mmap.mmap(-1, 5_000_000_001) as message, pytest.raises(Enough):
        Short(0, added).from_chief(message)
    (length,) = added
    assert length.min() >= 0 and int(length @ [2**31, 1]) == 5_000_000_001


# ------------------------------------------------------------------ GPUs


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A CPU is taken for a GPU."""
    for module in (devices, loop, build):
        monkeypatch.setattr(module, "on_gpu", lambda _: True)


def test_the_program_for_a_gpu_rehearsed_on_a_cpu(tiny, as_on_a_gpu, monkeypatch):
    """Other kernels count and add up squares, and labels int32 lie there as int64."""
    options = {"strategy": strategy_over(1), "watch": ("weights", "gradients", "norms")}
    under = Under(tiny, **options)
    found = under.run(3)
    assert under.loop.on_gpu and under.loop.xla
    (labels,) = under.loop._y.variables
    assert labels.dtype == tf.int64 and under.loop._y.dtype == tf.int32
    monkeypatch.undo()
    plain = Under(tiny, **options)
    expected = plain.run(3)
    assert not plain.loop.on_gpu and plain.loop._y.variables[0].dtype == tf.int32
    for name in ("scalars", "low", "high"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    moved = np.abs(found["counts"] - expected["counts"]).sum() / 2
    assert moved <= 0.005 * expected["counts"].sum(), "values within rounding of an edge"
    assert found["counts"].sum(axis=2).tolist() == [plain.loop.watch.sizes] * 3


@pytest.mark.parametrize(
    ("operations", "cpu", "gpu"),
    [(["MatMul"], True, True), (["GatherV2"], True, False), (["Conv2D"], False, False)],
    ids=str,
)
def test_which_networks_xla_compiles(operations, cpu, gpu, monkeypatch):
    traced = mock.Mock(operations=frozenset(operations))
    assert build.choose_xla(Config(), strategy_over(1), traced) == cpu
    monkeypatch.setattr(build, "on_gpu", lambda _: True)
    assert build.choose_xla(Config(), strategy_over(1), traced) == gpu
    assert build.choose_xla(Config(xla="on"), strategy_over(1), traced)


class Looking(tf.Module):
    """A network with a lookup of its own."""

    def __init__(self):
        super().__init__()
        self.inner = small_mlp()

    def __call__(self, x):
        return tf.gather(self.inner(x), [0, 2, 1, 3, 4], axis=1)


@pytest.mark.parametrize("loss", ["clipped_cross_entropy", "softmax_cross_entropy"])
def test_the_losses_of_classes_leave_the_choice_to_the_network(tiny, loss, monkeypatch):
    """On a GPU they look nothing up; the run's identity and its bits are those of the lookup."""
    config = Config(loss=loss, batch_size=16, optimizer="adam")
    data, strategy = lab.Data(tiny[0].reshape(103, 12), tiny[1].astype(np.int32)), strategy_over(1)
    found = []
    for faked in (False, True):
        if faked:
            monkeypatch.setattr(build, "on_gpu", lambda _: True)
        problem = problem_with(config, model=small_mlp, data=data)
        training, traced = build.make_training(config, problem, strategy)
        assert build.choose_xla(config, strategy, traced)
        monkeypatch.undo()
        made = TrainLoop(strategy, training, data.x, data.y, (), xla=False, traced=traced)
        made.run(np.arange(96, dtype=np.int32).reshape(6, 16), 1, 0)
        found.append((traced.digest, [v.numpy().tobytes() for v in training.variables.values()]))
    assert found[0] == found[1]
    monkeypatch.setattr(build, "on_gpu", lambda _: True)
    problem = problem_with(config, model=Looking, data=data)
    _, traced = build.make_training(config, problem, strategy)
    assert not build.choose_xla(config, strategy, traced)


@pytest.mark.slow
def test_what_collectives_gather_is_counted_by_programs(tiny):
    """As between GPUs: TensorFlow does not know the shape of what those gather."""
    found = []
    for strategy in (strategy_over(2), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        under = Under(tiny, strategy=strategy, batch=15, watch=("gradients", "activations"))
        nodes = under.loop.step_graph.as_graph_def().node
        found.append((under.run(2), sum(node.attr["_XlaMustCompile"].b for node in nodes)))
    (one, programs), (other, same) = found
    assert programs == same > 0
    np.testing.assert_array_equal(one["counts"].sum(axis=2), other["counts"].sum(axis=2))
    np.testing.assert_allclose(one["scalars"], other["scalars"], rtol=1e-4, atol=1e-6)


def test_the_record_is_made_on_the_first_of_the_replicas_devices(tiny):
    strategy = devices.make_strategy("CPU:1,CPU:2")
    under = Under(tiny, strategy=strategy, watch=("weights", "norms"), xla=False)
    context.context().enable_run_metadata()
    recorded = under.run(2)
    functions = context.context().export_run_metadata().function_graphs
    context.context().disable_run_metadata()
    nodes = [node for one in functions for part in one.partition_graphs for node in part.node]
    places = {n.device.rpartition("/")[2] for n in nodes if "record/" in n.name}
    assert places == {"device:CPU:1"} and np.isfinite(recorded["scalars"]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_any_number_of_gpus_gives_one_curve(tiny, optimizer):
    """And that of a CPU, less close: a GPU multiplies matrices with fewer digits."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    gpu_curve = functools.partial(
        curve,
        tiny,
        optimizer=optimizer,
        steps=200,
        make_strategy=lambda count: devices.make_strategy(f"gpu:{count}"),
    )
    one = gpu_curve(1)
    assert_one_curve(curve(tiny, 1, optimizer, 200), one, 2e-2)
    for count in range(2, gpus + 1):
        assert_one_curve(one, gpu_curve(count))


@pytest.mark.gpu
def test_gpus_that_are_asked_for(tmp_path, idx_folder):
    gpus = len(tf.config.list_physical_devices("GPU"))
    strategy = devices.make_strategy("auto")
    assert strategy.num_replicas_in_sync == gpus
    assert all("GPU" in device for device in strategy.extended.worker_devices)
    if gpus > 1:
        chosen = strategy.extended._get_cross_device_ops(tf.constant(0.0))
        assert isinstance(chosen, CollectiveAllReduce)
        assert chosen._options.implementation == CommunicationImplementation.NCCL
    flags = [f"--data={idx_folder}", f"--logdir={tmp_path / 'logs'}"]
    outcome = programs.train(*flags, f"--devices=gpu:{gpus + 1}")
    forks.assert_one_line(outcome, 1, f"--devices=gpu:{gpus + 1}:", f"GPU:{gpus - 1}")


@pytest.mark.gpu
def test_local_gradients_of_gpus_sum_to_the_reduced_one(tiny):
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus < 2:
        pytest.skip("needs two GPUs")
    under = Under(tiny, strategy=devices.make_strategy("auto"), batch=250, mean=True)
    columns = dict(zip(under.loop.watch.scalar_tags, under.run(10)["scalars"].T, strict=True))
    parts = [
        columns[f"gradient/replica_{r}/norm"] * columns[f"gradient/replica_{r}/cosine"]
        for r in range(gpus)
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), columns["gradient/norm"], rtol=1e-4)
    slots = [slot for slots in under.optimizer.slots for slot in slots]
    variables = [*under.model.trainable_variables, *slots]
    group = agreement.Group(under.strategy, None)
    group.check_identical({str(i): variable for i, variable in enumerate(variables)})
