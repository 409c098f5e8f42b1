"""The compiled loop against a plain eager loop with foreign optimizers; replicas; the evaluator."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import Keras, Kernel, NumPy
from test_histograms import assert_is_histogram

from lab.data import Batches
from lab.errors import LabError
from lab.kernels import xla
from lab.kernels.metrics import accuracy
from lab.models import layers, mlp, optimizers
from lab.models.adapt import Network
from lab.models.losses import LOSSES
from lab.models.optimizers import RULES, Optimizer
from lab.step.evaluate import PREDICTED, Evaluator
from lab.step.loop import TrainLoop
from lab.step.replica import Training, call_seed

pytestmark = pytest.mark.numbers

STEPS = 50
BATCH = 16
TOLERANCE = 1e-5
SIZES = [12, 9, 7, 5]


def mirrored(replicas=1):
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{i}" for i in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def small_mlp():
    """Weights large enough that the layers below the last one learn too."""
    return mlp.MLP(SIZES, initializer=layers.glorot, seed=3, matmul=xla.matmul)


class Under:
    """A model, its optimizer and its loop on the tiny data, run in loops of given lengths."""

    def __init__(
        self,
        tiny,
        rule=None,
        make_model=small_mlp,
        strategy=None,
        loss="clipped_cross_entropy",
        mean=False,
        batch=BATCH,
        microbatches=1,
        **options,
    ):
        images, labels = tiny[0].reshape(103, 12), tiny[1].astype(np.int32)
        self.strategy = strategy or mirrored()
        self.batches = Batches(1, 103, batch)
        self.scale = 1 / batch if mean else 1.0
        with self.strategy.scope():
            self.model = make_model()
            self.optimizer = Optimizer(rule or RULES["sgd"](), self.model.trainable_variables)
        self.training = Training(
            Network(self.model),
            self.optimizer,
            LOSSES[loss],
            batch,
            self.scale,
            {"accuracy": accuracy},
            microbatches=microbatches,
        )
        self.loop = TrainLoop(
            self.strategy,
            self.training,
            images,
            labels,
            **options,
        )
        self.start = self.weights()
        self.step = 0

    def restart(self):
        """Back to the start, with the functions that are traced already."""
        for variable, value in zip(self.model.trainable_variables, self.start, strict=True):
            variable.assign(value)
        for slots in self.optimizer.slots:
            for slot in slots:
                slot.assign(tf.fill(slot.shape, self.optimizer.rule.start))
        self.step = 0

    def weights(self):
        return [v.numpy() for v in self.model.trainable_variables]

    def run(self, *lengths):
        """What was recorded over all the loops, as arrays with the steps in front."""
        parts = []
        for length in lengths:
            rows = self.batches.indices(self.step + 1, length)
            recorded = self.loop.run(rows, self.step + 1, seed=0)
            parts.append({name: value.numpy() for name, value in recorded.items()})
            self.step += length
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# The plain loop.


def plain_mlp(weights, x):
    for i in range(0, len(weights) - 2, 2):
        x = tf.sigmoid(tf.matmul(x, weights[i]) + weights[i + 1])
    return tf.matmul(x, weights[-2]) + weights[-1]


def plain_loss(name, labels, logits):
    one_hot = tf.one_hot(labels, logits.shape[1])
    if name == "softmax_cross_entropy":
        return keras.losses.categorical_crossentropy(one_hot, logits, from_logits=True)
    p = tf.reduce_sum(one_hot * tf.nn.softmax(logits), axis=1)
    return -tf.math.log(tf.clip_by_value(p, 1e-9, 1.0))


def plain(tiny, under, reference, steps, loss="clipped_cross_entropy", forward=plain_mlp):
    """Yields (loss, accuracy, weights before, gradients, weights after) of each step, eagerly."""
    images, labels = tiny[0].reshape(103, 12), tiny[1]
    for indices in under.batches.indices(1, steps):
        x = (images[indices] / np.float32(255)).astype(np.float32)
        before = reference.values
        weights = [tf.constant(value, tf.float32) for value in before]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = forward(weights, tf.constant(x))
            total = tf.reduce_sum(plain_loss(loss, labels[indices], logits)) * under.scale
        gradients = tape.gradient(total, weights)
        gradients = [
            np.zeros(w.shape, np.float32) if g is None else g.numpy()
            for g, w in zip(gradients, weights, strict=True)
        ]
        reference.apply(gradients)
        accuracy = np.mean(logits.numpy().argmax(axis=1) == labels[indices])
        yield float(total), accuracy, before, gradients, reference.values


def assert_close(ours, theirs, what):
    """Within the tolerance of the largest entry of each tensor."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = np.abs(np.float64(a) - b).max() / np.abs(b).max()
        assert error <= TOLERANCE, f"{what}, tensor {i}: {error:.2g} relative"


def in_order(under, values):
    """`values` of the model's variables, layer by layer: weights, bias, weights, ..."""
    known = {id(v): x for v, x in zip(under.model.trainable_variables, values, strict=True)}
    return [known[id(v)] for layer in under.model.layers for v in (layer.weights, layer.bias)]


KERAS = keras.optimizers
ORACLES = {
    "sgd": (RULES["sgd"](0.05), functools.partial(Keras, make=lambda: KERAS.SGD(0.05))),
    "adam": (RULES["adam"](), functools.partial(Keras, make=lambda: KERAS.Adam(0.01))),
    "rmsprop": (
        RULES["rmsprop"](),
        functools.partial(NumPy, rule="rmsprop", learning_rate=0.01, rho=0.9, epsilon=1e-7),
    ),
    "rmsprop, epsilon inside": (
        RULES["rmsprop"](epsilon=1e-4, epsilon_inside_root=True),
        functools.partial(Keras, make=lambda: KERAS.RMSprop(0.01, epsilon=1e-4)),
    ),
    "adagrad": (
        RULES["adagrad"](),
        functools.partial(
            Kernel, rule="adagrad", learning_rate=0.01, epsilon=1e-7, initial_accumulator=0.1
        ),
    ),
    "adagrad, epsilon inside": (
        RULES["adagrad"](epsilon=1e-2, epsilon_inside_root=True),
        functools.partial(Keras, make=lambda: KERAS.Adagrad(0.01, epsilon=1e-2)),
    ),
    "adadelta": (
        RULES["adadelta"](1.0),
        functools.partial(Keras, make=lambda: KERAS.Adadelta(1.0)),
    ),
    "sgd, momentum, decay, clipped": (
        optimizers.SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.1, clip_norm=4.0),
        functools.partial(
            Keras,
            make=lambda: KERAS.SGD(
                0.05, momentum=0.8, nesterov=True, weight_decay=0.1, global_clipnorm=4.0
            ),
        ),
    ),
}


# Of the others, which differ in the rule alone, test_optimizers.py has every one.
FAST = ("adam",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ORACLES]
)
def test_the_compiled_loop_is_the_plain_loop(tiny, name):
    """50 steps of each rule: the weights, and at each step the loss and the accuracy of the
    forward pass before the update, over several epochs of 103 examples in batches of 16."""
    rule, make_reference = ORACLES[name]
    under = Under(tiny, rule)
    assert under.loop.watch.tags == [] and under.loop.watch.sizes == []
    recorded = under.run(20, 1, 29)
    assert set(recorded) == {"scalars"}  # where nothing is watched
    reference = make_reference(in_order(under, under.start))
    steps = list(plain(tiny, under, reference, STEPS))
    losses, accuracies = (np.array([step[i] for step in steps]) for i in (0, 1))
    np.testing.assert_allclose(recorded["scalars"][:, 0], losses, rtol=TOLERANCE)
    np.testing.assert_allclose(recorded["scalars"][:, 1], accuracies, rtol=1e-6)
    assert_close(in_order(under, under.weights()), steps[-1][-1], "after 50 steps")
    # It did learn, so the comparison was not one of standing still.
    assert losses[-20:].mean() < losses[:20].mean()
    assert all(
        np.abs(a - b).max() > 1e-3 for a, b in zip(under.start, under.weights(), strict=True)
    )


@pytest.mark.parametrize(
    ("loss", "mean"),
    [
        pytest.param("clipped_cross_entropy", True, marks=pytest.mark.slow),
        ("softmax_cross_entropy", False),
    ],
)
def test_losses_and_reductions(tiny, loss, mean):
    """The recorded loss is the sum or the mean that was minimized."""
    under = Under(tiny, RULES["sgd"](0.05), loss=loss, mean=mean)
    recorded = under.run(10)
    reference = Keras(in_order(under, under.start), lambda: KERAS.SGD(0.05))
    steps = list(plain(tiny, under, reference, 10, loss))
    expected = np.array([step[0] for step in steps])
    np.testing.assert_allclose(recorded["scalars"][:, 0], expected, rtol=TOLERANCE)
    assert (expected < 3).all() == mean  # the sum over 16 examples is not the mean
    assert_close(in_order(under, under.weights()), steps[-1][-1], "after 10 steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_strategy", "name"),
    [
        (tf.distribute.get_strategy, "sgd"),
        (lambda: tf.distribute.OneDeviceStrategy("/cpu:0"), "adam"),
    ],
    ids=["none", "one"],
)
def test_any_strategy(tiny, make_strategy, name):
    """Also none at all, as in a notebook; all other tests have a mirrored one."""
    compare_ten_steps(tiny, make_strategy(), name, TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("xla", [True, False], ids=["xla", "kernels"])
def test_on_a_gpu(tiny, name, xla):
    """Less close, since a GPU multiplies matrices with fewer digits."""
    strategy = tf.distribute.MirroredStrategy(["/gpu:0"])
    under = compare_ten_steps(tiny, strategy, name, 1e-2, xla=xla)
    assert under.loop.on_gpu and under.loop.xla == xla


def compare_ten_steps(tiny, strategy, name, tolerance, **options):
    rule, make_reference = ORACLES[name]
    under = Under(tiny, rule, strategy=strategy, watch=("gradients",), **options)
    recorded = under.run(10)
    *_, last = plain(tiny, under, make_reference(in_order(under, under.start)), 10)
    np.testing.assert_allclose(recorded["scalars"][-1, 0], last[0], rtol=tolerance)
    assert recorded["counts"].sum(axis=2).tolist() == [under.loop.watch.sizes] * 10
    return under


def test_the_gradient_on_record_is_the_one_before_clipping(tiny):
    """And the update on record is the one that was made; the weights are those of Keras."""
    under = Under(tiny, optimizers.SGD(0.05, clip_norm=0.01), watch=("norms",), xla=False)
    recorded = under.run(5)["scalars"]
    tags = under.loop.watch.scalar_tags
    names = [f"{layer.name}/{t}" for layer in under.model.layers for t in ("weights", "bias")]
    clipped = functools.partial(KERAS.SGD, 0.05, global_clipnorm=0.01)
    reference = Keras(in_order(under, under.start), clipped)
    for t, (*_, gradients, _) in enumerate(plain(tiny, under, reference, 5)):
        norms = [recorded[t, tags.index(f"{name}/gradient/norm")] for name in names]
        np.testing.assert_allclose(norms, [np.linalg.norm(g) for g in gradients], rtol=TOLERANCE)
        updates = [recorded[t, tags.index(f"{name}/update/norm")] for name in names]
        assert np.linalg.norm(updates) == pytest.approx(0.05 * 0.01, rel=1e-5)
        assert np.linalg.norm(norms) > 1
    assert_close(in_order(under, under.weights()), reference.values, "after 5 steps")


def test_what_was_recorded_is_what_happened(tiny):
    """Tags, sizes, and each step's histograms of weights (after the update), gradients, updates
    and activations (before it): against the tensors of the plain loop. These differ from the
    compiled ones by rounding, so a value near an edge may fall beside it."""
    everything = ("weights", "gradients", "updates", "activations")
    under = Under(tiny, RULES["sgd"](0.05), watch=everything)
    recorded = under.run(2, 1, 3)
    variables = [v.name.split(":")[0] for v in under.model.trainable_variables]
    assert set(variables) == {
        f"{layer}/{tensor}" for layer in ("h1", "h2", "logits") for tensor in ("weights", "bias")
    }
    assert under.loop.watch.tags == [
        *variables,
        *(f"{name}/gradient" for name in variables),
        *(f"{name}/update" for name in variables),
        *(f"{name}/activations" for name in ("h1", "h2", "logits")),
    ]
    sizes = [value.size for value in under.start]
    assert under.loop.watch.sizes == [*sizes * 3, BATCH * 9, BATCH * 7, BATCH * 5]
    assert recorded["counts"].shape == (6, len(under.loop.watch.tags), 30)
    assert not recorded["nonfinite"].any()

    names = [f"{layer.name}/{t}" for layer in under.model.layers for t in ("weights", "bias")]
    reference = Keras(in_order(under, under.start), lambda: KERAS.SGD(0.05))
    for t, (_, _, before, gradients, after) in enumerate(plain(tiny, under, reference, 6)):
        tensors = {}
        for i, name in enumerate(names):
            tensors[name], tensors[f"{name}/gradient"] = after[i], gradients[i]
            tensors[f"{name}/update"] = after[i] - before[i]
        x = tiny[0].reshape(103, 12)[under.batches.indices(t + 1, 1)[0]] / np.float32(255)
        for i, layer in enumerate(("h1", "h2", "logits")):
            x = x @ before[2 * i] + before[2 * i + 1]
            x = x if layer == "logits" else 1 / (1 + np.exp(-x))
            tensors[f"{layer}/activations"] = x
        for row, tag in enumerate(under.loop.watch.tags):
            value = np.float64(tensors[tag]).ravel()
            low, high = recorded["low"][t, row], recorded["high"][t, row]
            width = value.max() - value.min()
            # An update is a difference of two near numbers: it has the rounding of the weights.
            slack = 1e-5 * np.abs(value).max() + (3e-7 if tag.endswith("/update") else 0)
            assert abs(low - value.min()) <= slack and abs(high - value.max()) <= slack, tag
            counts = recorded["counts"][t, row]
            assert counts.sum() == value.size
            expected, edges = np.histogram(value, 30)
            for edge in range(1, 30):
                near = np.sum(np.abs(value - edges[edge]) <= slack + 1e-5 * width)
                difference = abs(counts[:edge].sum() - expected[:edge].sum())
                assert difference <= near, f"step {t + 1}, {tag}, edge {edge}"


@pytest.mark.slow
def test_norms_are_those_of_the_tensors(tiny):
    """Of weights after the update, gradients and updates: against NumPy on the plain loop's."""
    under = Under(tiny, RULES["adam"](0.01), watch=("norms", "updates"))
    recorded = under.run(2, 1, 3)["scalars"]
    names = [f"{layer.name}/{t}" for layer in under.model.layers for t in ("weights", "bias")]
    reference = Keras(in_order(under, under.start), lambda: KERAS.Adam(0.01))
    for t, (_, _, before, gradients, after) in enumerate(plain(tiny, under, reference, 6)):
        said = dict(zip(under.loop.watch.scalar_tags, recorded[t], strict=True))
        assert len(said) == 2 + 4 * len(names) + 1
        whole = np.linalg.norm([np.linalg.norm(np.float64(g)) for g in gradients])
        np.testing.assert_allclose(said["gradient/norm"], whole, 1e-4)
        for name, old, gradient, new in zip(names, before, gradients, after, strict=True):
            for tag, tensor in (("", new), ("/gradient", gradient), ("/update", new - old)):
                expected = np.linalg.norm(np.float64(tensor))
                np.testing.assert_allclose(said[f"{name}{tag}/norm"], expected, 1e-4, 1e-7)
            ratio = np.linalg.norm(np.float64(new - old)) / np.linalg.norm(np.float64(new))
            np.testing.assert_allclose(said[f"{name}/update/ratio"], ratio, 1e-4, 1e-7)


@pytest.mark.slow
def test_histograms_are_of_the_very_tensors(tiny):
    """One step at a time, so that the variables can be read between: low, high and counts of
    weights and updates are exact."""
    under = Under(tiny, RULES["adam"](), watch=("weights", "updates"))
    variables = len(under.start)
    before = under.start
    for _ in range(4):
        recorded = under.run(1)
        after = under.weights()
        rows = [*after, *(a - b for a, b in zip(after, before, strict=True))]
        assert len(under.loop.watch.tags) == 2 * variables
        for i, value in enumerate(rows):
            parts = (recorded[key][0, i] for key in ("counts", "low", "high", "nonfinite"))
            assert_is_histogram(value, *parts)
        before = after


@pytest.mark.slow
def test_watching_changes_no_number(tiny):
    """What is recorded does not act on what is trained."""
    silent, loud = (
        Under(tiny, RULES["adam"]()),
        Under(tiny, RULES["adam"](), watch=("weights", "gradients", "updates", "activations")),
    )
    np.testing.assert_array_equal(silent.run(10)["scalars"], loud.run(10)["scalars"])
    for a, b in zip(silent.weights(), loud.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_histogram_every(tiny):
    """The steps that 3 divides, counted from the start of the run and not of the loop; zeros
    between them."""
    each = Under(tiny, watch=("gradients",))
    thin = Under(tiny, watch=("gradients",), histogram_every=3)
    every_step, some = each.run(10), thin.run(2, 5, 3)
    np.testing.assert_array_equal(every_step["scalars"], some["scalars"])
    for key in ("counts", "low", "high", "nonfinite"):
        assert some[key].dtype == every_step[key].dtype
        for step in range(1, 11):
            expected = every_step[key][step - 1] if step % 3 == 0 else 0
            np.testing.assert_array_equal(some[key][step - 1], expected + 0 * some[key][0])
    assert some["counts"][2].any()


def test_any_length_of_loop_gives_the_same_bits(tiny):
    """50 steps in loops of 1, of 7 (and a rest), and in one; all by the same trace."""
    under = Under(tiny, RULES["adam"](), watch=("gradients",))
    runs = []
    for lengths in ([1] * 50, [7] * 7 + [1], [50]):
        under.restart()
        runs.append([*under.run(*lengths).values(), *under.weights()])
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert under.loop.function.experimental_get_tracing_count() == 1
    with pytest.raises(ValueError, match="steps_per_loop=101"):
        under.run(101)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tiny):
    """Built twice from nothing."""
    first, second = (Under(tiny, RULES["rmsprop"](), watch=("norms",)) for _ in range(2))
    for a, b in zip(first.run(10).values(), second.run(10).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first.weights(), second.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_call_of_a_model_has_a_seed_of_its_own():
    """At each step and on each replica; none that a layer begins with (see `call_seed`)."""
    run, steps = tf.constant(5, tf.int64), range(1, 8)
    seeds = [call_seed(run, tf.constant(step), r, 3) for step in steps for r in range(3)]
    assert len({tuple(seed.numpy()) for seed in seeds}) == 21
    assert all(seed[1] < 0 for seed in seeds)


class Counting(tf.Module):
    """Counts how often Python walks through the model."""

    def __init__(self):
        super().__init__()
        self.mlp, self.calls = small_mlp(), 0

    def __call__(self, x):
        self.calls += 1
        return self.mlp(x)


@pytest.mark.slow
def test_traced_once(tiny):
    """The model is walked through once, by the graph of the step, and never again."""
    under = Under(tiny, make_model=Counting, watch=("gradients",))
    under.run(3, 1, 8, 8)
    assert under.loop.step_graph is under.loop.step_graph
    assert under.loop.function.experimental_get_tracing_count() == 1
    assert under.model.calls == 1


def test_the_graph_of_the_step_names_its_parts(tiny):
    """What TensorBoard's Graphs page shows."""
    graph = Under(tiny, watch=("weights",)).loop.step_graph
    scopes = {operation.name.split("/")[0] for operation in graph.get_operations()}
    assert {"batch", "forward", "loss", "gradient", "update", "record"} <= scopes


# Models that are no MLP.


class Odd(tf.Module):
    """A convolution, two variables of one name, one that gets no gradient, one that is frozen,
    a scalar; no method `activations`."""

    def __init__(self):
        super().__init__("odd")

        def draw(shape, seed):
            return tf.random.stateless_normal(shape, [seed, 0], stddev=0.4, alg="philox")

        self.a_filter = tf.Variable(draw([3, 3, 1, 4], 1), name="w")
        self.b_dense = tf.Variable(draw([4 * 3 * 4, 5], 2), name="w")
        self.c_unused = tf.Variable(draw([3], 3), name="unused")
        self.d_scale = tf.Variable(1.5, name="scale")
        self.e_frozen = tf.Variable(draw([5], 4), trainable=False, name="frozen")

    def __call__(self, x):
        weights = [self.a_filter, self.b_dense, self.c_unused, self.d_scale]
        return odd_forward(weights, x, self.e_frozen)


def odd_forward(weights, x, frozen):
    kernel, dense, _, scale = weights
    y = tf.nn.conv2d(tf.reshape(x, [-1, 4, 3, 1]), kernel, 1, "SAME")
    return scale * tf.matmul(tf.reshape(tf.tanh(y), [-1, 48]), dense) + frozen


@pytest.mark.slow
def test_any_module(tiny):
    under = Under(tiny, RULES["adam"](), make_model=Odd, watch=("weights", "gradients"))
    recorded = under.run(12)
    frozen = under.model.e_frozen.numpy()
    forward = functools.partial(odd_forward, frozen=frozen)
    reference = Keras(under.start, lambda: KERAS.Adam(0.01))
    steps = list(plain(tiny, under, reference, 12, forward=forward))
    assert_close(under.weights(), steps[-1][-1], "after 12 steps")
    np.testing.assert_allclose(
        recorded["scalars"][:, 0], [step[0] for step in steps], rtol=TOLERANCE
    )
    names = ["a_filter", "b_dense", "c_unused", "d_scale"]  # the paths of their attributes
    assert under.loop.watch.tags == [*names, *(f"{name}/gradient" for name in names)]
    assert under.loop.watch.sizes == [36, 240, 3, 1] * 2
    np.testing.assert_array_equal(under.weights()[2], under.start[2])
    row = under.loop.watch.tags.index("c_unused/gradient")
    assert not recorded["low"][:, row].any() and not recorded["high"][:, row].any()
    assert (recorded["counts"][:, row].sum(axis=1) == 3).all()


class Gathering(tf.Module):
    """A table that is looked up: TensorFlow hands its gradient over as IndexedSlices."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.random.stateless_normal([6, 12, 5], [1, 2]), name="table")

    def __call__(self, x):
        return tf.matmul(x, tf.reduce_sum(tf.gather(self.table, [0, 2, 2, 5]), axis=0))


@pytest.mark.parametrize("xla", [False, pytest.param(None, marks=pytest.mark.slow)])
def test_a_model_with_a_lookup(tiny, xla):
    rule, make_reference = ORACLES["rmsprop"]
    under = Under(tiny, rule, make_model=Gathering, watch=("gradients",), xla=xla)
    under.run(5)
    pick = np.array([1, 0, 2, 0, 0, 1], np.float32)  # how often each is looked up

    def forward(weights, x):
        return tf.matmul(x, tf.tensordot(pick, weights[0], 1))

    *_, last = plain(tiny, under, make_reference(under.start), 5, forward=forward)
    assert_close(under.weights(), last[-1], "after 5 steps")


def test_activations_need_a_method(tiny):
    with pytest.raises(LabError, match=r"Odd .*activations"):
        Under(tiny, make_model=Odd, watch=("activations",))


def test_names_of_variables_are_distinct():
    def named(*names):
        def model(x):
            return x

        model.trainable_variables = [tf.Variable(0.0, name=name) for name in names]
        return list(Network(model).variables)

    assert named("a", "b") == ["a", "b"]
    assert named("h1/weights", "w", "w", "w") == ["h1/weights", "w", "w_1", "w_2"]
    for names in (("w_1", "w", "w"), ("w", "w", "w_1"), ("w", "w_1", "w", "w_1")):
        assert len(set(named(*names))) == len(names)


# Replicas.


@pytest.mark.parametrize(
    ("replicas", "batch"),
    [
        (2, 7),
        *(pytest.param(r, b, marks=pytest.mark.slow) for r, b in [(3, 16), (4, 7)]),
    ],
)
def test_replicas_together_do_what_one_does(tiny, replicas, batch):
    """20 steps, every replica on its own part of the batch; also where the parts are not equal.
    The losses come from the weights, so these agree too."""
    watch = ("weights", "gradients", "activations")
    options = {"rule": RULES["sgd"](0.05), "batch": batch, "mean": True, "watch": watch}
    # The replicas have TensorFlow's kernels, and here so has the one beside them: less to compile.
    options["xla"] = False
    one, many = Under(tiny, **options), Under(tiny, strategy=mirrored(replicas), **options)
    a, b = one.run(20), many.run(20)
    np.testing.assert_allclose(b["scalars"][:, 0], a["scalars"][:, 0], rtol=TOLERANCE)
    np.testing.assert_allclose(b["scalars"][:, 1], a["scalars"][:, 1], rtol=1e-6)
    assert_close(many.weights(), one.weights(), "after 20 steps")
    assert (
        many.loop.watch.tags == one.loop.watch.tags
        and many.loop.watch.sizes == one.loop.watch.sizes
    )
    assert (b["counts"].sum(axis=2) == np.array(one.loop.watch.sizes)).all()
    # Gradients are of the whole batch, not of one replica's part; activations of all examples.
    for key in ("low", "high"):
        np.testing.assert_allclose(b[key], a[key], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_replicas_stay_equal_bit_for_bit(tiny):
    """Nothing in TensorFlow checks it: variables without aggregation are assigned on each."""
    strategy = mirrored(4)
    under = Under(tiny, RULES["adam"](), strategy=strategy, batch=7)
    under.run(20)
    slots = [slot for slots in under.optimizer.slots for slot in slots]
    for variable in [*under.model.trainable_variables, *slots]:
        first, *others = (v.numpy() for v in strategy.experimental_local_results(variable))
        assert len(others) == 3
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_the_replicas_of_these_tests_have_different_examples(tiny):
    """If all had the same part of the batch, as a test with constant data would not see, the
    gradients would differ from those of one device."""
    indices = Batches(1, 103, 16).indices(1, 20)
    labels = tiny[1][indices]
    assert all(set(row[:8]) != set(row[8:]) for row in indices.tolist())
    assert (np.sort(labels[:, :8]) != np.sort(labels[:, 8:])).any(axis=1).all()


# The evaluator.


def logits_by_hand(model, images):
    x = images.reshape(len(images), -1) / 255
    for layer in model.layers:
        x = x @ np.float64(layer.weights.numpy()) + np.float64(layer.bias.numpy())
        x = x if layer.name == "logits" else 1 / (1 + np.exp(-x))
    return x


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "chunk", [7, 41, 42, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 40, 1000))]
)
def test_evaluator(tiny, chunk, replicas):
    """Every one of 41 examples once and in order, whether or not the chunk divides them."""
    strategy = mirrored(replicas)
    with strategy.scope():
        model = small_mlp()
    images, labels = tiny[2], tiny[3].astype(np.int32)
    training = Training(Network(model), None, LOSSES["softmax_cross_entropy"], 1)
    evaluator = Evaluator(strategy, training, images.reshape(41, 12), labels, chunk=chunk)
    for _ in range(2):
        found = evaluator.run(seed=0)
        losses, predicted = found["loss"], found[PREDICTED]
        logits = logits_by_hand(model, images)
        # The two largest are apart, or the class would be a matter of rounding.
        assert np.diff(np.sort(logits)[:, -2:]).min() > 1e-4
        np.testing.assert_array_equal(predicted, logits.argmax(axis=1))
        assert predicted.dtype == np.int32 and losses.dtype == np.float32
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(losses, -log_p[range(41), labels], rtol=1e-5)
        # The second time after the weights have changed: nothing of the first is kept.
        for variable in model.trainable_variables:
            variable.assign(-1.5 * variable + 0.1)
