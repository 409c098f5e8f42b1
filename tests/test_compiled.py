"""Reductions and counts against NumPy's, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from lab.kernels import xla

pytestmark = pytest.mark.numbers

random = np.random.default_rng(8)
SIZES = [
    *(31, 99991),
    *(
        pytest.param(n, marks=pytest.mark.slow)
        for n in (1, 32, 33, 256, 385, 4095, 4096, 4097, 100352)
    ),
]


@pytest.mark.parametrize("size", SIZES)
def test_every_entry_is_reduced_once(size):
    """The extremes stand at each end in turn, and no sum misses one entry."""
    x = random.permutation(size).astype(np.float32) + 1
    tensors = [x, np.roll(x, -int(x.argmax())), np.roll(x, -int(x.argmin()) - 1), -x]

    @tf.function(jit_compile=True)
    def reductions(tensors):
        groups = xla.grouped(tensors)
        return xla.smallest(groups), xla.largest(groups), xla.squares(tensors)

    low, high, squares = (part.numpy() for part in reductions([tf.constant(x) for x in tensors]))
    np.testing.assert_array_equal(low, [np.min(x) for x in tensors])
    np.testing.assert_array_equal(high, [np.max(x) for x in tensors])
    expected = [np.sum(x.astype(np.float64) ** 2) for x in tensors]
    np.testing.assert_allclose(squares, expected, rtol=1e-5 if size > 4000 else 2e-7)
    one = np.zeros(size, np.float32)
    for place in {0, size // 2, size - 1}:
        one[:] = 0
        one[place] = 3
        np.testing.assert_array_equal(xla.squares([tf.constant(one)]), [9])


def test_of_finite_entries_only():
    tensors = [np.array(x, np.float32) for x in ([np.nan, 2, np.inf, -3], [np.nan], [-np.inf])]
    low, high = (
        tf.function(lambda x, f=f: f(xla.grouped(x)), jit_compile=True)(
            [tf.constant(x) for x in tensors]
        )
        for f in (xla.smallest, xla.largest)
    )
    np.testing.assert_array_equal(low, [-3, np.inf, np.inf])
    np.testing.assert_array_equal(high, [2, -np.inf, -np.inf])


def test_squares_of_nan_and_beyond_float32():
    tensors = [np.array(x, np.float32) for x in ([1, np.nan], [3e38, 1], [np.inf, 0])]
    squares = xla.squares([tf.constant(x) for x in tensors]).numpy()
    np.testing.assert_array_equal(squares, [np.nan, np.inf, np.inf])


@pytest.mark.parametrize(
    ("rows", "buckets", "size"),
    [
        *((3, 64, 31), (3, 64, 99991), (1, 64, 4096), (1, 1, 385), (1, 64, 800003)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *((3, 64, size) for size in (1, 32, 33, 256, 385, 4095, 4096, 4097, 100352)),
                *((1, 64, size) for size in (1, 385, 99991)),
                *((1, 1, size) for size in (1, 4096, 99991)),
            ]
        ),
    ],
)
def test_bincounts(rows, buckets, size):
    values = random.integers(0, buckets, (rows, size))
    counts = tf.function(lambda x: xla.bincounts(x, buckets), jit_compile=True)(
        tf.constant(values.astype(np.float32))
    )
    np.testing.assert_array_equal(counts, [np.bincount(row, minlength=buckets) for row in values])


def test_tensors_of_about_one_size_are_beside_each_other():
    """And each is what it was, in the order of the list."""
    tensors = [random.normal(size=n).astype(np.float32) for n in (40, 5000, 64, 3, 5000, 64)]
    groups = xla.grouped([tf.constant(x) for x in tensors])
    assert sorted(sorted(group.places) for group in groups) == [[0, 2, 5], [1, 4], [3]]
    for places, x, lacking in groups:
        for place, row, more in zip(places, x.numpy(), lacking, strict=True):
            np.testing.assert_array_equal(row[: len(row) - more], tensors[place])
            assert np.isnan(row[len(row) - more :]).all()
    places = [place for group in groups for place in group.places]
    rows = xla.in_order(groups, tf.constant(places))
    assert rows.numpy().tolist() == list(range(6))
    many = xla.grouped([tf.zeros([5000])] * 60)
    assert [group.places for group in many] == [[*range(52)], [*range(52, 60)]]
    large = xla.grouped([tf.zeros([40000])] * 2)
    assert [group.places for group in large] == [[0], [1]]


@pytest.mark.parametrize(
    ("x", "w"),
    [((64, 40), (40, 7)), ((3, 2, 16, 5), (3, 2, 5, 9)), ((3, 16, 16), (3, 16, 5))],
    ids=["narrow", "transposes x", "transposes g"],
)
def test_products_and_their_gradients(x, w):
    x, w = (random.normal(size=shape) for shape in (x, w))
    g = random.normal(size=(x @ w).shape)

    @tf.function(jit_compile=True)
    def product(x, w, g):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = xla.matmul(x, w)
        return y, *tape.gradient(y, [x, w], g)

    found = product(*(tf.constant(one, tf.float32) for one in (x, w, g)))
    expected = x @ w, g @ np.swapaxes(w, -1, -2), np.swapaxes(x, -1, -2) @ g
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
