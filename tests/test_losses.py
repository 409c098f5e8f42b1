"""The losses by name against Keras's: values, gradients, any rank, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lab.models.losses import LOSSES, WITHOUT_A_LOOKUP
from lab.step.trace import SLOW_ON_A_GPU

pytestmark = pytest.mark.numbers

SHAPES = [(5,), (3, 4), (2, 3, 2)]  # of the labels of classes, one for each row of logits
KERAS = {
    "sigmoid_cross_entropy": lambda y, z: keras.losses.binary_crossentropy(y, z, from_logits=True),
    "mean_squared_error": keras.losses.mean_squared_error,
    "mean_absolute_error": keras.losses.mean_absolute_error,
}


def with_gradient(loss, labels, outputs):
    outputs = tf.constant(outputs)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        found = loss(labels, outputs)
        total = tf.reduce_sum(found)
    return found, tape.gradient(total, outputs)


def keras_clipped(labels, logits):
    """Keras clips at its own epsilon, so only the probability is its."""
    classes = logits.shape[-1]
    one_hot = tf.one_hot(labels, classes, dtype=logits.dtype)
    p = tf.reduce_sum(one_hot * keras.activations.softmax(logits), axis=-1)
    return -tf.math.log(tf.clip_by_value(p, 1e-9, 1.0))


@pytest.mark.parametrize(
    ("name", "shape", "jit"),
    [
        pytest.param(
            *(name, shape, jit),
            id=f"{name}-{shape}-{'xla' if jit else 'eager'}",
            marks=() if len(shape) == 2 and jit == fast else pytest.mark.slow,
        )
        for name, fast in (("clipped_cross_entropy", True), ("softmax_cross_entropy", False))
        for shape in SHAPES
        for jit in (False, True)
    ],
)
def test_classes_of_any_rank(name, shape, jit):
    """One loss for each label, whatever the integer dtype; some probabilities are below 1e-9."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 15, (*shape, 7)).astype(np.float32)
    labels = random.integers(0, 7, shape)
    theirs = {
        "clipped_cross_entropy": keras_clipped,
        "softmax_cross_entropy": lambda y, z: keras.losses.sparse_categorical_crossentropy(
            y, z, from_logits=True
        ),
    }[name]
    expected, slope = with_gradient(theirs, labels, logits)
    assert expected.shape == shape and expected.numpy().max() > 20
    ours = tf.function(LOSSES[name], jit_compile=jit)
    for dtype in (np.int32, np.int64, np.uint8, np.uint16)[: 1 if jit and len(shape) > 1 else 4]:
        found, gradient = with_gradient(ours, labels.astype(dtype), logits)
        assert found.shape == shape and found.dtype == tf.float32
        # Exponentials and sums of seven of them, in float32.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ["clipped_cross_entropy", "softmax_cross_entropy"])
def test_without_a_lookup_the_bits_are_the_same(name, jit):
    """Of values and gradients; some probabilities are below 1e-9, and some are 1. A label that is
    of no class makes NaN."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 15, (40, 3, 7)).astype(np.float32)
    labels = random.integers(0, 7, (40, 3)).astype(np.uint8)
    forms = [tf.function(one, jit_compile=jit) for one in (LOSSES[name], of_gpus(name))]
    (found, gradient), (expected, slope) = (with_gradient(one, labels, logits) for one in forms)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(gradient, slope)
    beyond, _ = with_gradient(of_gpus(name), np.array([[-1, 3, 7]]), logits[:1])
    assert np.isnan(beyond).tolist() == [[True, False, True]]
    if name == "softmax_cross_entropy":  # the other one takes no half precision
        half = tf.constant(logits, tf.float16)
        assert of_gpus(name)(labels, half).dtype == tf.float16
    operations = forms[1].get_concrete_function(labels, logits).graph.get_operations()
    assert not {operation.type for operation in operations} & SLOW_ON_A_GPU


def of_gpus(name):
    return WITHOUT_A_LOOKUP[LOSSES[name]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 1), (6, 5), (3, 2, 4)], ids=str)
@pytest.mark.parametrize("name", KERAS)
def test_mean_over_the_last_axis(name, shape, dtype):
    random = np.random.default_rng(0)
    outputs = random.normal(0, 5, shape).astype(dtype)
    targets = random.uniform(0, 1, shape)  # float64: it follows the outputs
    expected, slope = with_gradient(KERAS[name], targets.astype(dtype), outputs)
    found, gradient = with_gradient(LOSSES[name], targets, outputs)
    assert found.shape == shape[:-1] and found.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    np.testing.assert_allclose(gradient, slope, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("name", KERAS)
def test_one_number_an_example(name):
    """Outputs [batch] have no axis beside the batch: the same as of [batch, 1]."""
    outputs = np.random.default_rng(0).normal(0, 5, 6).astype(np.float32)
    targets = np.array([0, 1, 1, 0, 0, 1], np.uint8)
    found = LOSSES[name](targets, tf.constant(outputs))
    assert found.shape == (6,)
    expected = KERAS[name](targets[:, None].astype(np.float32), tf.constant(outputs[:, None]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_huge_logits():
    loss, gradient = with_gradient(
        LOSSES["sigmoid_cross_entropy"], [[1.0], [0.0]], np.array([[1e30], [1e30]], np.float32)
    )
    np.testing.assert_array_equal(loss, [0, np.float32(1e30)])
    np.testing.assert_array_equal(gradient, [[0], [1]])


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_fit_is_refused(name):
    """TensorFlow would broadcast targets [4] against outputs [4, 1] to [4, 4]."""
    loss = LOSSES[name]
    if name in KERAS:
        with pytest.raises(ValueError, match=r"targets are \(4,\), outputs \(4, 1\)"):
            loss(np.zeros(4), tf.zeros([4, 1]))
        return
    with pytest.raises(ValueError, match=r"int32 \(4, 1\), logits \(4, 3\)"):
        loss(np.zeros((4, 1), np.int32), tf.zeros([4, 3]))
    with pytest.raises(ValueError, match=r"labels are float32 \(4,\)"):
        loss(np.zeros(4, np.float32), tf.zeros([4, 3]))
