"""Layers and losses against NumPy in float64: values, gradients, laws of the initial weights."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from lab.kernels.metrics import predictions
from lab.models import layers, losses
from lab.models.layers import ACTIVATIONS, INITIALIZERS, Dense
from lab.models.mlp import MLP
from lab.settings.config import Config

pytestmark = pytest.mark.numbers

CROSS_ENTROPIES = ("clipped_cross_entropy", "softmax_cross_entropy")
FORMULAS = {"sigmoid": special.expit, "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def choices(name):
    (field,) = (f for f in Config.__dataclass_fields__.values() if f.name == name)
    return field.metadata["choices"]


def test_the_config_offers_every_entry_of_the_tables():
    assert choices("activation") == tuple(ACTIVATIONS) == tuple(FORMULAS)
    assert choices("initializer") == tuple(INITIALIZERS)
    assert set(CROSS_ENTROPIES) <= set(choices("loss")) <= losses.LOSSES.keys()


def by_hand(model, x, activation):
    """The output of each layer, in float64, from the variables' values."""
    outputs = {}
    for i, layer in enumerate(model.layers):
        x = x @ np.float64(layer.weights.numpy()) + np.float64(layer.bias.numpy())
        if i < len(model.layers) - 1:
            x = FORMULAS[activation](x)
        outputs[layer.name] = x
    return outputs


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), (6, 5, 7, 4), (6, 5, 5, 5, 5, 3)])
def test_forward(sizes, activation):
    """Any number of hidden layers, with biases and weights large enough to bend the activation."""
    random = np.random.default_rng(len(sizes))
    model = MLP(sizes, ACTIVATIONS[activation], layers.normal(1.0), seed=4)
    for layer in model.layers:
        layer.bias.assign(random.normal(size=layer.bias.shape))
    x = random.uniform(-1, 1, (9, sizes[0])).astype(np.float32)
    expected = by_hand(model, np.float64(x), activation)
    found = model.activations(tf.constant(x))
    assert list(found) == list(expected)
    assert list(found) == [f"h{i}" for i in range(1, len(sizes) - 1)] + ["logits"]
    for name, output in found.items():
        np.testing.assert_allclose(output.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model(tf.constant(x)).numpy(), found["logits"].numpy())


def test_names_and_order_of_the_variables():
    """The reference's tags, in the order of the layers."""
    model = MLP([784, 128, 256, 10])
    expected = {
        "h1/weights": (784, 128),
        "h1/bias": (128,),
        "h2/weights": (128, 256),
        "h2/bias": (256,),
        "logits/weights": (256, 10),
        "logits/bias": (10,),
    }
    found = {v.name.split(":")[0]: tuple(v.shape) for v in model.trainable_variables}
    assert found == expected
    in_order = [v for layer in model.layers for v in (layer.weights, layer.bias)]
    assert {id(v) for v in in_order} == {id(v) for v in model.trainable_variables}
    assert all(v.dtype == tf.float32 for v in in_order)


@pytest.mark.parametrize("sizes", [(), (5,)])
def test_too_few_sizes(sizes):
    with pytest.raises(ValueError, match="sizes="):
        MLP(sizes)


def test_the_default_is_the_recipe():
    """Sigmoid, and a standard deviation of 0.05."""
    model = MLP([400, 300, 5], seed=1)
    assert np.std(model.layers[0].weights.numpy()) == pytest.approx(0.05, rel=0.02)
    x = np.float32(np.ones((2, 400)))
    np.testing.assert_allclose(
        model.activations(tf.constant(x))["h1"].numpy(),
        by_hand(model, np.float64(x), "sigmoid")["h1"],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "stddev", "law"),
    [
        ("normal", 0.05, stats.norm(0, 0.05)),
        ("normal", 2.0, stats.norm(0, 2.0)),
        # sqrt(6 / (300 + 200)); the standard deviation is not asked for by these two.
        ("glorot", 9.0, stats.uniform(-np.sqrt(6 / 500), 2 * np.sqrt(6 / 500))),
        ("he", 9.0, stats.norm(0, np.sqrt(2 / 300))),
    ],
)
def test_initial_law(name, stddev, law):
    """60,000 weights: mean, spread and the whole distribution; biases exactly 0."""
    dense = Dense(300, 200, tf.identity, INITIALIZERS[name](stddev), (3, 1), "h1")
    weights = dense.weights.numpy().astype(np.float64).ravel()
    spread = law.std()
    assert abs(weights.mean()) < 5 * spread / np.sqrt(weights.size)
    assert weights.std() == pytest.approx(spread, rel=0.02)
    assert stats.kstest(weights, law.cdf).pvalue > 1e-3
    low, high = law.support()
    assert low <= weights.min() and weights.max() <= high * (1 + 1e-6)
    np.testing.assert_array_equal(dense.bias.numpy(), np.zeros(200, np.float32))


def test_a_standard_deviation_of_0_gives_zeros():
    model = MLP([4, 3, 2], initializer=layers.normal(0.0))
    assert all(not v.numpy().any() for v in model.trainable_variables)


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_seeds(initializer):
    """The same seed the same weights; other seeds and other layers others, of every layer."""

    def weights(seed):
        model = MLP([6, 6, 6, 6], initializer=INITIALIZERS[initializer](0.05), seed=seed)
        return [layer.weights.numpy() for layer in model.layers]

    for one, other in zip(weights(5), weights(5), strict=True):
        np.testing.assert_array_equal(one, other)
    drawn = [w.tobytes() for seed in (0, 1, 2, 5, 2**63 - 1) for w in weights(seed)]
    assert len(set(drawn)) == len(drawn)


def test_initial_weights_are_those_of_old_runs():
    """Philox's numbers, so that a run can be repeated later and elsewhere."""
    weights = MLP([3, 2, 2], seed=7).layers[0].weights.numpy()
    np.testing.assert_allclose(
        weights,
        [[-0.03370864, -0.01793463], [-0.09397908, -0.07364466], [-0.1003127, -0.05667162]],
        rtol=1e-5,
    )


# Losses.


def loss_and_gradient(name, labels, logits):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.LOSSES[name](tf.constant(labels), logits)
        total = tf.reduce_sum(loss)
    return loss.numpy(), tape.gradient(total, logits).numpy()


def test_the_clip_is_at_1e_9():
    """Two classes with logits 0 and d: p of the first is 1 / (1 + e^d)."""
    logits = np.array([[0, np.log(1e9) - 0.01], [0, np.log(1e9) + 0.01]], np.float32)
    loss, gradient = loss_and_gradient("clipped_cross_entropy", [0, 0], logits)
    np.testing.assert_allclose(gradient[0], [-1, 1], rtol=1e-3)
    assert not gradient[1].any()
    assert loss[1] == pytest.approx(np.log(1e9), rel=1e-6)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_huge_logits(size):
    """Surely right and surely wrong. The stable loss is as large as the gap, and teaches; the
    clipped one is dead on both."""
    logits = np.array([[size, -size, 0], [-size, size, 0]], np.float32)
    stable, gradient = loss_and_gradient("softmax_cross_entropy", [0, 0], logits)
    np.testing.assert_allclose(stable, [0, 2 * size], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-1, 1, 0]], atol=1e-6)
    clipped, gradient = loss_and_gradient("clipped_cross_entropy", [0, 0], logits)
    np.testing.assert_allclose(clipped, [0, -np.log(1e-9)], rtol=1e-6)
    assert not gradient.any()


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_nan_is_not_hidden(name):
    logits = np.array([[0, np.nan, 1], [0, 1, 2]], np.float32)
    loss, _ = loss_and_gradient(name, [0, 0], logits)
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


def test_predictions():
    """The largest, the first of equals, as NumPy has it."""
    random = np.random.default_rng(0)
    logits = random.integers(-2, 3, (200, 6)).astype(np.float32)  # full of ties
    found = predictions(tf.constant(logits))
    assert found.dtype == tf.int32
    np.testing.assert_array_equal(found.numpy(), logits.argmax(axis=1))
