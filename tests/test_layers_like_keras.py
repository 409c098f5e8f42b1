"""The layers against Keras's: values and gradients, in training and in inference, with XLA and
without; and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lab.kernels.probes import collected
from lab.models import layers

pytestmark = pytest.mark.numbers

# Sums in another order: float32 over at most a few hundred terms.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of(variables, x):
    """Values of y, its gradient for x and each variable, against a fixed direction."""

    def run(call, jit=None):
        def function(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = call(x)
                direction = tf.constant(draw(*y.shape, seed=9))
                total = tf.reduce_sum(y * direction)
            gradients = tape.gradient(total, [x, *variables], unconnected_gradients="zero")
            return [y, *map(tf.convert_to_tensor, gradients)]

        if jit is not None:
            function = tf.function(function, jit_compile=jit, autograph=False)
        return [value.numpy() for value in function(tf.constant(x))]

    return run


def assert_same(ours, own, theirs, their_variables, x, jit=True):
    """Eagerly, and compiled: by XLA, or in a graph of TensorFlow's."""
    expected = of(their_variables, x)(theirs)
    for mode in (None, jit):
        found = of(own, x)(ours, mode)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.reshape(a.shape), **CLOSE)


def set_variables(ours, theirs, seed=1):
    """Random values for our variables, the same for Keras's, in pairs; returns both as lists."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        value = draw(*a.shape, seed=seed + i)
        a.assign(value)
        b.assign(value.reshape(b.shape))
    return list(ours), [getattr(b, "value", b) for b in theirs]


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6), (2, 3, 4, 6)])
def test_dense(shape):
    ours, theirs = layers.Dense(6, 4, tf.tanh), keras.layers.Dense(4, "tanh")
    theirs.build(shape)
    pair = set_variables([ours.weights, ours.bias], theirs.variables)
    assert_same(ours, pair[0], theirs, pair[1], draw(*shape))


@pytest.mark.parametrize(
    ("channels", "outs", "size", "stride", "height", "width", "padding"),
    [
        pytest.param(*case, padding, marks=() if padding == fast else pytest.mark.slow)
        for case, fast in [
            ((1, 3, 5, 1, 12, 12), "same"),
            ((3, 4, 3, 2, 9, 8), "same"),
            ((5, 3, 2, 3, 10, 11), "valid"),
            ((2, 3, 1, 2, 5, 6), "valid"),
        ]
        for padding in ("same", "valid")
    ],
)
def test_conv2d(channels, outs, size, stride, height, width, padding):
    ours = layers.Conv2D(channels, outs, size, stride, padding)
    theirs = keras.layers.Conv2D(outs, size, stride, padding)
    theirs.build((2, height, width, channels))
    pair = set_variables([ours.weights, ours.bias], theirs.variables)
    x = draw(2, height, width, channels)
    assert_same(ours, pair[0], theirs, pair[1], x)


@pytest.mark.parametrize(("size", "height", "width"), [(2, 6, 8), (2, 5, 7), (3, 9, 10), (1, 3, 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool(size, height, width, ties):
    """With ties the first entry has the gradient, row by row, as Keras's on a CPU."""
    x = draw(4, height, width, 3)
    x = np.round(x) if ties else x
    theirs = keras.layers.MaxPooling2D(size, size)
    assert_same(lambda x: layers.max_pool(x, size), [], theirs, [], x, jit=False)


def test_layer_norm():
    ours, theirs = layers.LayerNorm(7), keras.layers.LayerNormalization()
    theirs.build((3, 4, 7))
    pair = set_variables([ours.scale, ours.bias], [theirs.gamma, theirs.beta])
    assert_same(ours, pair[0], theirs, pair[1], 3 * draw(3, 4, 7) + 2)


def test_layer_norm_of_equal_entries():
    """Variance 0: the bias, and nothing that is not finite."""
    np.testing.assert_array_equal(layers.LayerNorm(4)(tf.fill([2, 4], 7.0)), np.zeros((2, 4)))


@pytest.mark.parametrize("shape", [pytest.param((16, 5), marks=pytest.mark.slow), (4, 3, 6, 5)])
def test_batch_norm(shape):
    """Some steps of training, each with its moving averages; then inference with them."""
    ours, theirs = layers.BatchNorm(5), keras.layers.BatchNormalization()
    theirs.build(shape)
    pair = set_variables([ours.scale, ours.bias], [theirs.gamma, theirs.beta])
    averages = [ours.mean, ours.variance]
    kept = [theirs.moving_mean, theirs.moving_variance]
    assert not ours.mean.trainable and not ours.variance.trainable
    assert [v.name for v in ours.trainable_variables] == ["bias:0", "scale:0"]
    for step in range(3):
        x = (step + 1) * draw(*shape, seed=step) + step
        expected = of(pair[1], x)(lambda x: theirs(x, training=True))
        before = [v.numpy() for v in averages]
        for jit in (None, True):
            for variable, value in zip(averages, before, strict=True):
                variable.assign(value)
            found = of(pair[0], x)(lambda x: ours(x, training=True), jit)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, **CLOSE)
            for a, b in zip(averages, kept, strict=True):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(ours.mean.numpy()).max() > 1e-3
    assert_same(ours, pair[0], theirs, pair[1], draw(*shape, seed=7))


def test_batch_norm_on_two_replicas():
    """Each normalizes its own examples; the averages go to the mean over the replicas."""
    strategy = tf.distribute.MirroredStrategy(
        ["/cpu:0", "/cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        norm = layers.BatchNorm(3, momentum=0.5)
    x = np.stack([draw(8, 3), 2 + 3 * draw(8, 3, seed=1)])

    @tf.function(autograph=False)
    def step():
        def replica():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            return norm(tf.gather(x, index), training=True)

        return strategy.experimental_local_results(strategy.run(replica))

    for part, y in zip(x, step(), strict=True):
        expected = (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-3)
        np.testing.assert_allclose(y.numpy(), expected, **CLOSE)
    for variable, start, values in ((norm.mean, 0, x.mean(1)), (norm.variance, 1, x.var(1))):
        expected = 0.5 * start + 0.5 * values.mean(0)
        for copy in strategy.experimental_local_results(variable):
            np.testing.assert_allclose(copy.numpy(), expected, **CLOSE)


def test_embedding():
    """A token that comes twice has both gradients; one that does not come has 0."""
    ours, theirs = layers.Embedding(6, 4), keras.layers.Embedding(6, 4)
    theirs.build(())
    (own,), (other,) = set_variables([ours.weights], theirs.variables)
    tokens = tf.constant([[0, 5, 5], [2, 2, 2]])

    def result(layer, variable):
        with tf.GradientTape() as tape:
            y = layer(tokens)
            total = tf.reduce_sum(y * draw(2, 3, 4, seed=5))
        return y, tf.convert_to_tensor(tape.gradient(total, variable))

    expected = result(theirs, other)
    compiled = tf.function(lambda: result(ours, own), jit_compile=True, autograph=False)
    for found in (result(ours, own), compiled()):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), **CLOSE)


def keras_attention(attention, width, heads):
    """Keras's layer, and pairs of our variables and its own."""
    theirs = keras.layers.MultiHeadAttention(heads, width // heads)
    theirs.build((2, 6, width), (2, 6, width))
    dense = [attention.query, attention.key, attention.value, attention.output]
    ours = [v for layer in dense for v in (layer.weights, layer.bias)]
    kernels = [theirs._query_dense, theirs._key_dense, theirs._value_dense, theirs._output_dense]
    return theirs, set_variables(ours, [v for k in kernels for v in (k.kernel, k.bias)])


@pytest.mark.parametrize(
    ("width", "heads", "causal"),
    [
        *((6, 1, False), (6, 3, True)),
        *(pytest.param(8, 2, causal, marks=pytest.mark.slow) for causal in (False, True)),
    ],
)
def test_attention(width, heads, causal):
    attention = layers.MultiHeadAttention(width, heads, causal)
    theirs, pair = keras_attention(attention, width, heads)
    x = draw(2, 6, width)
    assert_same(attention, pair[0], lambda x: theirs(x, x, use_causal_mask=causal), pair[1], x)


def test_attention_scores_are_probed():
    attention = layers.MultiHeadAttention(8, 2, probe_scores=True)
    x = tf.constant(draw(2, 6, 8))
    with collected() as probes:
        attention(x)
        attention(x)
    query, key = (
        layer(x).numpy().reshape(2, 6, 2, 4) for layer in (attention.query, attention.key)
    )
    expected = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    assert list(probes) == ["scores", "scores_1"]
    np.testing.assert_allclose(probes["scores"], expected, **CLOSE)


def test_attention_with_query_key_norm():
    """Keras's own pieces put together: Dense, LayerNormalization and softmax."""
    attention = layers.MultiHeadAttention(8, 2, qk_norm=True)
    theirs, pair = keras_attention(attention, 8, 2)
    norms = [keras.layers.LayerNormalization() for _ in range(2)]
    for norm in norms:
        norm.build((2, 6, 2, 4))
    own = [v for n in (attention.query_norm, attention.key_norm) for v in (n.scale, n.bias)]
    more = set_variables(own, [v for n in norms for v in (n.gamma, n.beta)], seed=20)

    def expected(x):
        query, key = norms[0](theirs._query_dense(x)), norms[1](theirs._key_dense(x))
        scores = keras.ops.einsum("bqhd,bkhd->bhqk", query, key) / 2
        seen = keras.ops.einsum(
            "bhqk,bkhd->bqhd", keras.ops.softmax(scores), theirs._value_dense(x)
        )
        return theirs._output_dense(seen)

    x = draw(2, 6, 8)
    assert_same(attention, pair[0] + more[0], expected, pair[1] + more[1], x)
    assert len(attention.trainable_variables) == 12


@pytest.mark.parametrize("rate", [0.2, pytest.param(0.7, marks=pytest.mark.slow)])
def test_dropout(rate):
    """As Keras's: 0 or x / (1 - rate), as often, with that factor as gradient; its random numbers
    are its own. 40,000 entries: four standard deviations of their share are below 0.01."""
    x = np.abs(draw(200, 200)) + 0.1
    seed = tf.constant([3, 4], tf.int64)
    ours, theirs = layers.Dropout(rate), keras.layers.Dropout(rate, seed=1)
    y, gradient = of([], x)(lambda x: ours(x, True, seed))
    compiled = [of([], x)(lambda x: ours(x, True, seed), True) for _ in range(2)]
    other = theirs(x, training=True).numpy()
    assert np.mean(y == 0) == pytest.approx(np.mean(other == 0), abs=0.02)
    assert np.mean(y == 0) == pytest.approx(rate, abs=0.01)
    both = (y != 0) & (other != 0)
    assert both.any()
    np.testing.assert_allclose(y[both], other[both], rtol=1e-6)
    np.testing.assert_allclose(gradient, draw(200, 200, seed=9) * (y / x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(*(y for y, _ in compiled))
    np.testing.assert_array_equal(ours(tf.constant(x), True, seed).numpy(), y)
    assert np.mean(compiled[0][0] == 0) == pytest.approx(rate, abs=0.01)
    np.testing.assert_array_equal(ours(tf.constant(x)).numpy(), x)
    for seeds in ([3, 5], [4, 4]):
        assert not np.array_equal(ours(tf.constant(x), True, seeds).numpy(), y)


def test_split_seeds():
    """Alike for equal seeds, whatever integers they are; all different otherwise."""
    drawn = [
        tuple(one.numpy())
        for seed in ([0, 0], [0, 1], [1, 0], [2**62, 5])
        for one in layers.split_seed(seed, 5)
    ]
    assert len(set(drawn)) == 20
    assert drawn[:5] == [tuple(one.numpy()) for one in layers.split_seed((0, 0), 5)]


SHAPES = [(9,), (6, 4), (5, 5, 3, 8), (2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_initial_laws_of_other_ranks(shape):
    """The limits of Keras's GlorotUniform, and the spread of its HeNormal, from its own fans."""
    fans = keras.src.initializers.random_initializers.compute_fans(shape)
    draws = -(-900 // np.prod(shape))  # about as many entries of each shape
    many = np.stack([layers.glorot(shape, (s, 0)).numpy() for s in range(draws)])
    limit = np.sqrt(6 / sum(fans))
    assert np.abs(many).max() <= limit
    assert np.abs(many).max() == pytest.approx(limit, rel=0.05)
    many = np.stack([layers.he(shape, (s, 0)).numpy() for s in range(draws)])
    assert many.std() == pytest.approx(np.sqrt(2 / fans[0]), rel=0.15)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.Conv2D(1, 2, 3, padding="full"), "padding='full'"),
        (lambda: layers.Conv2D(1, 2, 3)(tf.zeros([2, 28, 28])), "takes .batch, height, width, 1."),
        (lambda: layers.Conv2D(1, 2, 3)(tf.zeros([2, 8, 8, 3])), "takes .*, not .2, 8, 8, 3."),
        (lambda: layers.Conv2D(1, 2, 5, padding="valid")(tf.zeros([2, 8, 4, 1])), "does not fit"),
        (lambda: layers.Dense(3, 2)(tf.zeros([4, 5])), r"takes \[..., 3\], not \[4, 5\]"),
        (lambda: layers.LayerNorm(3)(tf.zeros([4, 5])), "takes"),
        (lambda: layers.BatchNorm(3)(tf.zeros([4, 1])), "takes"),
        (lambda: layers.MultiHeadAttention(8, 3), "heads=3"),
        (lambda: layers.MultiHeadAttention(8, 0), "heads=0"),
        (lambda: layers.Dropout(1.0), "rate=1.0"),
        (lambda: layers.Dropout(0.5)(tf.zeros([2]), training=True), "seed"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
