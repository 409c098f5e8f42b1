"""The model with a run's weights and its derivatives: against NumPy and scipy."""

import dataclasses
import itertools

import numpy as np
import numpy_network
import pytest
import tensorflow as tf
from scipy import stats

from lab.analysis.model import fresh, model_of
from lab.analysis.sharpness import hessian_product, sharpness
from lab.analysis.study import plain_sgd
from lab.analysis.weights import Weights
from lab.models.layers import ACTIVATIONS
from lab.models.losses import softmax_cross_entropy
from lab.settings.config import Config

pytestmark = pytest.mark.numbers

SIZES = (6, 5, 7, 4)


def make(rng, sizes=SIZES, scale=1.0):
    """Normal weights and biases."""
    names = [*(f"h{i + 1}" for i in range(len(sizes) - 2)), "logits"]
    tensors = {}
    for name, (n_in, n_out) in zip(names, itertools.pairwise(sizes), strict=True):
        tensors[f"{name}/weights"] = rng.normal(0, scale, (n_in, n_out)).astype(np.float32)
        tensors[f"{name}/bias"] = rng.normal(0, scale, n_out).astype(np.float32)
    return Weights.from_tensors(tensors)


def examples(rng, n, inputs=SIZES[0], classes=SIZES[-1]):
    return rng.random((n, inputs)).astype(np.float32), rng.integers(0, classes, n)


def model_for(weights, activation="sigmoid"):
    return model_of({"activation": activation}, weights)


@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), SIZES])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_loss_and_accuracy(sizes, activation):
    """With one model after another's weights, as the report calls it."""
    rng = np.random.default_rng(1)
    x, labels = examples(rng, 2345)
    for weights in (make(rng, sizes), make(rng, sizes)):
        model = model_for(weights, activation)
        *hidden, expected = numpy_network.forward(weights, activation, x)[1:]
        found = model.logits(weights, x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        outputs = model.hidden(weights, x)
        assert tuple(outputs) == weights.names[:-1]
        for mine, theirs in zip(outputs.values(), hidden, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        loss = numpy_network.cross_entropy(weights, activation, x, labels)
        evaluation = model.evaluate(weights, x, labels)
        assert evaluation.cross_entropy == pytest.approx(loss, rel=1e-5)
        assert evaluation.accuracy == np.mean(found.argmax(axis=1) == labels)
    assert model is model_for(weights, activation)  # one compiled function for all runs


def test_evaluate_notices_what_changed():
    """Though it keeps the first product and the variables of arrays that it has seen."""
    rng = np.random.default_rng(2)
    weights, (x, labels) = make(rng), examples(rng, 300)
    model = model_for(weights)
    for other in (
        weights,
        weights.replace({"h1/bias": weights["h1/bias"] + 3}),
        weights.replace({"h1/weights": -weights["h1/weights"]}),
        weights.replace({"logits/weights": -weights["logits/weights"]}),
        weights,
    ):
        for images in (x, x[::-1].copy()):
            expected = numpy_network.cross_entropy(other, "sigmoid", images, labels)
            found = model.evaluate(other, images, labels).cross_entropy
            assert found == pytest.approx(expected, rel=1e-5)


def test_tensors_in_any_order_come_back_by_name():
    weights = make(np.random.default_rng(0), (3,) * 13)  # h10 stands behind h9, not behind h1
    tensors = dict(sorted(weights.items(), reverse=True))
    again = Weights.from_tensors({**tensors, "h1/weights/gradient": 0, "step": 3})
    assert again.names == (*(f"h{i}" for i in range(1, 12)), "logits")
    assert list(again) == list(weights)
    assert all(value is tensors[tag] for tag, value in again.items())


def test_what_does_not_fit_is_refused():
    tensors = make(np.random.default_rng(0))
    with pytest.raises(ValueError, match="no h2/bias among"):
        Weights.from_tensors({k: v for k, v in tensors.items() if k != "h2/bias"})
    with pytest.raises(ValueError, match=r"h2: weights \(3, 7\), bias \(7,\) do not fit 5 inputs"):
        Weights.from_tensors({**tensors, "h2/weights": np.zeros((3, 7))})
    with pytest.raises(ValueError, match=r"h2: weights \(5, 7\), bias \(6,\) do not fit"):
        Weights.from_tensors({**tensors, "h2/bias": np.zeros(6)})


@pytest.mark.parametrize("initializer", ["normal", "glorot", "he"])
def test_fresh_weights_follow_the_initial_law(initializer):
    config = {"initializer": initializer, "init_stddev": 0.07}
    weights = make(np.random.default_rng(0), (200, 300, 5))
    first, again, other = (fresh(config, weights, seed) for seed in (1, 1, 2))
    limit = np.sqrt(6 / 500)
    law = {
        "normal": stats.norm(0, 0.07),
        "glorot": stats.uniform(-limit, 2 * limit),
        "he": stats.norm(0, np.sqrt(2 / 200)),
    }[initializer]
    for drawn in (first, other):
        assert stats.kstest(drawn["h1/weights"].ravel(), law.cdf).pvalue > 1e-3
        assert not drawn["h1/bias"].any() and not drawn["logits/bias"].any()
        assert [w.shape for w in drawn.values()] == [w.shape for w in weights.values()]
    np.testing.assert_array_equal(first["h1/weights"], again["h1/weights"])
    assert not np.array_equal(first["h1/weights"], other["h1/weights"])


def hessian(weights, activation, x, labels):
    """In full and in float64, reverse over reverse, in the order of weights."""
    shapes = [w.shape for w in weights.values()]
    flat = tf.Variable(np.concatenate([np.float64(w).ravel() for w in weights.values()]))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            pieces = tf.split(flat, [int(np.prod(s)) for s in shapes])
            tensors = [tf.reshape(p, s) for p, s in zip(pieces, shapes, strict=True)]
            z = tf.constant(np.float64(x))
            for i, (w, b) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
                z = z @ w + b
                z = z if 2 * i + 2 == len(tensors) else ACTIVATIONS[activation](z)
            loss = tf.reduce_mean(softmax_cross_entropy(labels, z))
        gradient = inner.gradient(loss, flat)
    return outer.jacobian(gradient, flat).numpy()


@pytest.mark.parametrize(
    ("activation", "sizes"),
    [
        *(pytest.param(name, SIZES, marks=pytest.mark.slow) for name in ACTIVATIONS),
        *(("tanh", (6, 4)), ("sigmoid", (6, 5, 4))),
    ],
)
def test_hessian_vector_product_and_sharpness_are_the_full_hessians(activation, sizes):
    rng = np.random.default_rng(5)
    weights, (x, labels) = make(rng, sizes), examples(rng, 30)
    expected = hessian(weights, activation, x, labels)
    model = model_for(weights, activation)
    found = np.stack([model(hessian_product, weights, x, labels, v) for v in np.eye(len(expected))])
    # The model has its variables in its own order.
    starts = np.cumsum([0, *(w.size for w in weights.values())])
    places = {
        tag: np.arange(a, b)
        for tag, (a, b) in zip(weights, itertools.pairwise(starts), strict=True)
    }
    order = np.concatenate([places[v.name.split(":")[0]] for v in model.network.variables])
    largest = np.abs(expected).max()
    # A product of the model is a sum of 30 examples in float32, each rounded at 6e-8 several times.
    np.testing.assert_allclose(found, expected[np.ix_(order, order)], atol=5e-6 * largest)
    top = sharpness(model, weights, x, labels, rng)
    assert top.value == pytest.approx(np.linalg.eigvalsh(expected)[-1], rel=1e-5)
    assert top.residual < 0.02


def test_sharpness_where_nothing_is_curved():
    rng = np.random.default_rng(0)
    weights, (x, _) = make(rng), examples(rng, 30)
    sure = weights.replace({"logits/bias": np.array([0, 500, 0, 0], np.float32)})
    assert sharpness(model_for(sure), sure, x, np.ones(30, int), rng) == (0, 0)


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "adam"},
        {"sgd_momentum": 0.9},
        {"weight_decay": 0.1},
        {"clip_norm": 1.0},
        {"warmup_steps": 5},
        {"learning_rate_decay": "cosine"},
    ],
    ids=str,
)
def test_sharpness_is_measured_of_plain_steps_only(given):
    """2 / rate is the limit of W - rate dL/dW alone."""
    assert plain_sgd(dataclasses.asdict(Config()))
    assert not plain_sgd(dataclasses.asdict(Config(**given)))
    assert plain_sgd({})  # a run from before there were such fields
