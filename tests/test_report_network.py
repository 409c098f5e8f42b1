"""A network's value, its derivatives and its collapse, against TensorFlow, scipy and by hand."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats
from scipy.sparse.linalg import LinearOperator, eigsh

from lab import report as r
from lab.models.layers import ACTIVATIONS
from lab.models.losses import clipped_cross_entropy, softmax_cross_entropy

pytestmark = pytest.mark.numbers

SIZES = (6, 5, 7, 4)
TF = {"sigmoid": tf.sigmoid, "tanh": tf.tanh, "relu": tf.nn.relu}


def make(rng, sizes=SIZES, activation="sigmoid", scale=1.0, dtype=np.float32):
    """A network with normal weights and biases."""
    names = [*(f"h{i + 1}" for i in range(len(sizes) - 2)), "logits"]
    tensors = {}
    for name, (n_in, n_out) in zip(names, itertools.pairwise(sizes), strict=True):
        tensors[f"{name}/weights"] = rng.normal(0, scale, (n_in, n_out)).astype(dtype)
        tensors[f"{name}/bias"] = rng.normal(0, scale, n_out).astype(dtype)
    return r.Network.from_tensors(tensors, activation)


def examples(rng, n, inputs=SIZES[0], classes=SIZES[-1], dtype=np.float32):
    return rng.random((n, inputs)).astype(dtype), rng.integers(0, classes, n)


def by_tensorflow(network, tensors, x):
    """The logits from tf tensors by name."""
    x = tf.constant(x)
    for name in network.names:
        x = x @ tensors[f"{name}/weights"] + tensors[f"{name}/bias"]
        x = x if name == "logits" else TF[network.activation](x)
    return x


@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), SIZES])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_loss_and_accuracy(sizes, activation):
    """2,345 examples: more than one chunk, and the last one short."""
    rng = np.random.default_rng(1)
    network = make(rng, sizes, activation)
    x, labels = examples(rng, 2345)
    expected = by_tensorflow(network.float64(), network.float64().tensors(), np.float64(x)).numpy()
    found = r.logits(network, x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    loss = np.mean(special.logsumexp(expected, axis=1) - expected[np.arange(len(x)), labels])
    evaluation = r.evaluate(network, x, labels)
    assert evaluation.cross_entropy == pytest.approx(loss, rel=1e-5)
    assert evaluation.accuracy == np.mean(found.argmax(axis=1) == labels)
    assert evaluation.accuracy == r.accuracy(network, x, labels)
    assert r.evaluate_from(network, x @ network.weights[0], labels) == evaluation
    assert len(r.hidden(network, x)) == len(sizes) - 2
    if len(sizes) > 2:
        rest = r.logits(network.after(1), r.hidden(network, x)[0])
        np.testing.assert_allclose(rest, found, rtol=1e-5, atol=1e-6)


def test_losses_far_out():
    """No overflow, and the clip where the recipe has it."""
    output = np.array([[0, 1000.0], [0, 0], [-15, 0]], np.float32)
    assert r.cross_entropy(output, np.array([0, 0, 0])) == pytest.approx(
        (1000 + np.log(2) + 15) / 3, rel=1e-6
    )
    expected = clipped_cross_entropy([0, 0, 0], output).numpy().mean()
    assert r.clipped_cross_entropy(output, np.array([0, 0, 0])) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx((np.log(1e9) + np.log(2) + 15) / 3, rel=1e-6)


def test_tensors_in_any_order_come_back_by_name():
    rng = np.random.default_rng(0)
    network = make(rng, (3,) * 13)  # h10 stands behind h9, not behind h1
    tensors = dict(sorted(network.tensors().items(), reverse=True))
    again = r.Network.from_tensors({**tensors, "h1/weights/gradient": 0, "step": 3}, "sigmoid")
    assert again.names == (*(f"h{i}" for i in range(1, 12)), "logits")
    for name, value in again.tensors().items():
        assert value is tensors[name]
    np.testing.assert_array_equal(
        r.flatten(r.unflatten(again, r.flatten(again))), r.flatten(network)
    )


def test_what_does_not_fit_is_refused():
    tensors = make(np.random.default_rng(0)).tensors()
    with pytest.raises(ValueError, match="activation 'swish': known are sigmoid, tanh, relu"):
        r.Network.from_tensors(tensors, "swish")
    with pytest.raises(ValueError, match="no h2/bias among"):
        r.Network.from_tensors({k: v for k, v in tensors.items() if k != "h2/bias"}, "tanh")
    with pytest.raises(ValueError, match=r"h2: weights \(3, 7\), bias \(7,\) do not fit 5 inputs"):
        r.Network.from_tensors({**tensors, "h2/weights": np.zeros((3, 7))}, "tanh")
    with pytest.raises(ValueError, match="no tensors h3/bias in h1, h2, logits"):
        r.Network.from_tensors(tensors, "tanh").replace({"h3/bias": np.zeros(3)})


@pytest.mark.parametrize("initializer", ["normal", "glorot", "he"])
def test_initial_laws_are_those_of_the_layers(initializer):
    from lab.models.layers import INITIALIZERS

    shape = (200, 300)
    ours = r.initial_law(initializer, 0.07)(shape, np.random.default_rng(0))
    theirs = INITIALIZERS[initializer](0.07)(shape, [1, 2]).numpy()
    assert ours.dtype == np.float32
    assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 1e-3
    assert theirs.std() == pytest.approx(r.initial_stddev(initializer, shape, 0.07), rel=0.02)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_the_clipped_loss(activation, reduction):
    """TensorFlow's, in float64 (in float32 a rounded 1 - p is 0 on one CPU and 6e-8 on the next);
    some examples are on the clip, one is certain, and one input is dark."""
    rng = np.random.default_rng(3)
    network = make(rng, activation=activation, scale=1.0, dtype=np.float64)
    network = network.replace({"logits/weights": network.weights[-1] * 15})
    x, labels = examples(rng, 64, dtype=np.float64)
    x[:, 2] = 0
    reduce = tf.reduce_sum if reduction == "sum" else tf.reduce_mean
    variables = {name: tf.Variable(v) for name, v in network.tensors().items()}
    with tf.GradientTape() as tape:
        losses = clipped_cross_entropy(labels, by_tensorflow(network, variables, x))
        total = reduce(losses)
    p = r.softmax(r.logits(network, x))[np.arange(64), labels]
    assert 0 < np.mean(p < 1e-9) < 1 and np.any(p > 1e-3)
    found = r.clipped_gradients(network, x, labels, reduction)
    for name, expected in tape.gradient(total, variables).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert not found["h1/weights"][2].any()
    stepped = r.sgd_step(network, x, labels, 0.1, reduction)
    np.testing.assert_allclose(
        stepped.biases[1], network.biases[1] - 0.1 * found["h2/bias"], rtol=1e-6
    )


@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), SIZES])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hessian_vector_product_is_the_full_hessian(sizes, activation):
    rng = np.random.default_rng(5)
    network = make(rng, sizes, activation, dtype=np.float64)
    x, labels = examples(rng, 30, dtype=np.float64)
    flat = tf.Variable(r.flatten(network))

    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            shapes = {name: v.shape for name, v in network.tensors().items()}
            pieces = tf.split(flat, [int(np.prod(s)) for s in shapes.values()])
            tensors = {
                name: tf.reshape(piece, shape)
                for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
            }
            loss = tf.reduce_mean(softmax_cross_entropy(labels, by_tensorflow(network, tensors, x)))
        gradient = inner.gradient(loss, flat)
    hessian = outer.jacobian(gradient, flat).numpy()
    product = r.hessian_vector_product(network, x, labels)
    found = np.stack([product(row) for row in np.eye(len(hessian))])
    np.testing.assert_allclose(found, hessian, atol=1e-12)
    top = r.sharpness(network, x, labels, rng, iterations=3000, tolerance=1e-4)
    assert top.value == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-6)
    assert top.residual <= 1e-4


def test_hessian_vector_product_by_finite_differences():
    """Of the gradients used for the autopsy, where nothing is clipped."""
    rng = np.random.default_rng(6)
    network = make(rng, activation="tanh", dtype=np.float64)
    x, labels = examples(rng, 30, dtype=np.float64)
    point = r.flatten(network)
    v = rng.normal(size=point.size)

    def gradient(step):
        moved = r.unflatten(network, point + step * v)
        return np.concatenate(
            [g.ravel() for g in r.clipped_gradients(moved, x, labels, "mean").values()]
        )

    expected = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    found = r.hessian_vector_product(network, x, labels)(v)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("eigenvalues", [[3, 1, -2], [1, 0.5, -5], [-1, -2, -4], [2, -1.9, 0]])
def test_power_iteration_finds_the_most_positive(eigenvalues):
    rng = np.random.default_rng(8)
    q = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    values = np.concatenate([eigenvalues, np.full(37, min(eigenvalues) / 2)])
    h = (q * values) @ q.T
    top = r.power_iteration(lambda v: h @ v, 40, rng, 20_000, 1e-6)
    expected = eigsh(LinearOperator(h.shape, lambda v: h @ v, dtype=float), 1, which="LA")[0][0]
    assert top.value == pytest.approx(expected, rel=1e-5)
    assert top.residual < 1e-4


def test_power_iteration_says_when_it_did_not_suffice():
    h = np.diag(np.r_[1.0, np.full(99, 0.9999)])
    few = r.power_iteration(lambda v: h @ v, 100, np.random.default_rng(0), 3, 1e-9)
    assert few.products == 3 and few.residual > 1e-9
    assert r.power_iteration(lambda v: 0 * v, 5, np.random.default_rng(0)).value == 0


def test_autopsy_of_a_step_that_is_too_long():
    """Inputs alike, as images are: a long step puts all logits far apart for every one."""
    rng = np.random.default_rng(0)
    network = make(rng, (30, 16, 24, 10), scale=0.05)

    def batch(n):
        x = (0.5 + 0.1 * rng.random((n, 30))).astype(np.float32)
        return x, rng.choice(10, n, p=np.arange(1, 11) / 55)  # one class is the most frequent

    first, second = batch(256), batch(256)
    before, dead = r.autopsy(network, first, second, 20.0)
    assert before.on_clip == 0 and before.unmoved < 0.05
    assert dead.least_spread > r.SPREAD_LIMIT == pytest.approx(20.723, abs=1e-3)
    assert dead.on_clip + dead.certain == 1 and dead.predicted_share == 1
    assert dead.certain == np.mean(second[1] == dead.predicted)
    assert dead.unmoved == 1  # whether each gradient is exactly 0 or only too small

    _, alive = r.autopsy(network, first, second, 0.1, "mean")
    assert alive.on_clip == alive.certain == 0 and alive.unmoved < 0.05


def test_all_on_the_clip_is_exactly_nothing():
    network = make(np.random.default_rng(0), scale=0.1)
    bias = np.array([0, 50, 0, 0], np.float32)
    network = network.replace({"logits/bias": bias})
    x, _ = examples(np.random.default_rng(1), 20)
    signs = r.vital_signs(network, x, np.zeros(20, int), 0.1)
    assert (signs.on_clip, signs.unmoved, signs.predicted) == (1, 1, 1)
