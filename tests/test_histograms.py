"""Counts and edges against np.histogram in float64."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from lab.kernels.histograms import BUCKETS, histograms

pytestmark = pytest.mark.numbers

# How far from an edge float32 may still put a value on the wrong side, in buckets.
ROUNDING = 1e-4
# Smaller numbers are 0 to TensorFlow's kernels on a CPU, so of those only the number is compared.
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@functools.cache
def compiled(*dtypes):
    """One trace serves tensors of all shapes."""
    signature = [tf.TensorSpec(None, dtype) for dtype in dtypes]
    return tf.function(lambda *tensors: histograms(tensors), input_signature=signature)


def counted(*tensors):
    """The histograms as NumPy arrays, counted in a graph, as the step does it."""
    tensors = [tf.constant(x) for x in tensors]
    result = compiled(*(x.dtype for x in tensors))(*tensors)
    assert result.counts.dtype == result.nonfinite.dtype == tf.int32
    assert result.low.dtype == result.high.dtype == tf.float32
    assert result.counts.shape == (len(tensors), BUCKETS)
    return [part.numpy() for part in result]


def assert_is_histogram(x, counts, low, high, nonfinite, name=""):
    """The row of one tensor is np.histogram's, but for values on an edge."""
    x = np.asarray(x).astype(np.float32).ravel()
    finite = x[np.isfinite(x)].astype(np.float64)
    assert nonfinite == x.size - finite.size, name
    assert counts.sum() == finite.size and counts.min() >= 0, name
    if not finite.size:
        assert low == 0 and high == 0, name
        return
    smallest, largest = finite.min(), finite.max()
    for found, right in ((low, smallest), (high, largest)):
        slack = SMALLEST_NORMAL if abs(right) < SMALLEST_NORMAL else 0
        assert abs(found - right) <= slack, name
    if smallest == largest:
        assert counts.max() == finite.size, f"a constant lies in one bucket {name}"
        return
    expected, _ = np.histogram(finite, BUCKETS, (smallest, largest))
    place = (finite - smallest) / (largest - smallest) * BUCKETS
    denormal = np.any((finite != 0) & (np.abs(finite) < SMALLEST_NORMAL))
    slack = ROUNDING + denormal * SMALLEST_NORMAL / (largest - smallest) * BUCKETS
    for edge in range(1, BUCKETS):
        below = expected[:edge].sum()
        near = np.sum(np.abs(place - edge) <= slack)
        assert abs(counts[:edge].sum() - below) <= near, f"values below edge {edge} {name}"


random = np.random.default_rng(5)
normal = random.normal(size=997)
TENSORS = {
    "normal": normal,
    "matrix": random.normal(0, 0.05, (61, 31)),
    "uniform": random.uniform(-3, 17, 1000),
    "far from zero": 1000 + normal,
    "next to each other": 1 + np.arange(9) * 2.0**-23,
    "one outlier": np.append(normal * 1e-6, 1.0),
    "relu": np.maximum(normal, 0),
    "two values": np.array([-0.25, 0.75, 0.75]),
    "on every edge": np.arange(31.0),
    "one entry": np.array([0.3]),
    "scalar": np.array(-2.5),
    "constant": np.full((4, 5), 0.7),
    "negative constant": np.full(6, -1e-3),
    "huge constant": np.full(9, 3e38),
    "tiny constant": np.full(9, 1e-35),
    "zeros": np.zeros((3, 4)),
    "negative zeros": np.full(7, -0.0),
    "zeros of both signs": np.array([0.0, -0.0, -0.0, 0.0]),
    "wider than float32": np.append(normal * 1e38, [3e38, -3e38]),
    "wider than float32, the sum is not": np.append(normal * 1e36, [3e38, -3e38, 1e38]),
    "sum beyond float32": np.append(np.full(50, 3e38), [1e38, 2e38, -1e37]),
    "small": normal * 1e-20,
    "tiny": normal * 1e-33,
    "at the end of the normal numbers": random.uniform(1, 100, 500) * 2e-38,
    "buckets narrower than the normal numbers": random.uniform(2, 9, 500) * 2e-38,
    "denormal": random.uniform(-1, 1, 500) * 1e-39,
    "a denormal beside 1": np.array([1e-40, 0.5, 1.0]),
    "one nan": np.append(normal, np.nan),
    "nan first": np.append(np.nan, normal),
    "infinities": np.append(normal, [np.inf, -np.inf, np.inf]),
    "infinity and a constant": np.array([2.0, np.inf, 2.0]),
    "all kinds at once": np.concatenate([normal * 1e38, [np.nan, np.inf, -np.inf, 0.0, 1e-40]]),
    "all nan": np.full((3, 3), np.nan),
    "nan and infinities only": np.array([np.nan, np.inf, -np.inf]),
    "sign of nan": np.append(normal, np.copysign(np.nan, -1)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_one_tensor(name):
    x = TENSORS[name].astype(np.float32)
    with tf.device("/cpu:0"):
        result = counted(x)
    assert_is_histogram(x, *(part[0] for part in result))


@pytest.mark.parametrize(
    "size", [4097, *(pytest.param(n, marks=pytest.mark.slow) for n in (31, 1000, 4096, 12345))]
)
def test_tensors_of_known_sizes_are_counted_by_a_program_of_their_own(size):
    """As every weight is: small ones together, large ones two entries at a time. One program for
    the tensors of all kinds. The program for a GPU counts on a CPU, too."""
    assert_known_sizes_are_counted(size, "/cpu:0")


@pytest.mark.gpu
@pytest.mark.parametrize("size", [31, 4097, 100_352])
def test_known_sizes_on_a_gpu(size):
    assert_known_sizes_are_counted(size, "/gpu:0")


def assert_known_sizes_are_counted(size, device):
    together = tf.function(functools.partial(histograms, gpu="gpu" in device))
    between = TENSORS["matrix"].astype(np.float32)
    for name, values in TENSORS.items():
        x = values.astype(np.float32)
        tensors = [np.resize(x, size), between, np.resize(x, 1001)]
        given = [tf.constant(x) for x in tensors]
        with tf.device(device):
            results = together(given), histograms(given, gpu=True), histograms(given, xla=False)
        for result in results:
            for x, *row in zip(tensors, *(part.numpy() for part in result), strict=True):
                assert_is_histogram(x, *row, name)
    assert together.experimental_get_tracing_count() == 1


@pytest.mark.gpu
def test_on_a_gpu():
    """The kernels there are others, and operations must be deterministic there too."""
    for x in TENSORS.values():
        with tf.device("/gpu:0"):
            result = counted(x.astype(np.float32))
        assert_is_histogram(x, *(part[0] for part in result))


def test_edges_excuse_few_values():
    """Of the comparison itself: what it forgives near an edge is next to nothing."""
    for name in ("normal", "matrix", "uniform", "one nan", "wider than float32", "tiny"):
        x = TENSORS[name].astype(np.float32).ravel().astype(np.float64)
        x = x[np.isfinite(x)]
        place = (x - x.min()) / (x.max() - x.min()) * BUCKETS
        inner = (place > 0.5) & (place < BUCKETS - 0.5)
        assert np.mean(np.abs(place - np.round(place))[inner] <= ROUNDING) < 0.002


def test_the_comparison_sees_one_value_in_the_wrong_bucket():
    x = TENSORS["normal"].astype(np.float32)
    counts, low, high, nonfinite = (part[0] for part in counted(x))
    for wrong in (np.roll(counts, 1), counts - np.eye(BUCKETS, dtype=int)[15]):
        with pytest.raises(AssertionError):
            assert_is_histogram(x, wrong, low, high, nonfinite)
    moved = counts.copy()
    moved[14], moved[15] = moved[14] + 1, moved[15] - 1
    with pytest.raises(AssertionError):
        assert_is_histogram(x, moved, low, high, nonfinite)


@pytest.mark.parametrize("name", TENSORS)
def test_an_odd_tensor_leaves_the_others_right(name):
    """One tensor sends all of them the careful way; the rows keep their order."""
    before, after = TENSORS["matrix"].astype(np.float32), TENSORS["uniform"].astype(np.float32)
    tensors = [before, TENSORS[name].astype(np.float32), after]
    for x, *row in zip(tensors, *counted(*tensors), strict=True):
        assert_is_histogram(x, *row)


@pytest.mark.slow
def test_every_tensor_at_once():
    """Of shapes that are not known, and in one program of those that are."""
    tensors = [x.astype(np.float32) for x in TENSORS.values()]
    known = tf.function(histograms)([tf.constant(x) for x in tensors])
    for result in (counted(*tensors), [part.numpy() for part in known]):
        for name, x, *row in zip(TENSORS, tensors, *result, strict=True):
            assert_is_histogram(x, *row, name)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["normal", "constant", "one nan", "infinities"])
def test_other_floats_are_counted_as_float32(name, dtype):
    x = tf.cast(tf.constant(TENSORS[name]), dtype)
    result = counted(x)
    assert_is_histogram(tf.cast(x, tf.float32).numpy(), *(part[0] for part in result))


def test_a_big_tensor():
    """More entries than float32 can count one by one (2^24), most of them in one bucket."""
    x = np.zeros(2**24 + 1000, np.float32)
    x[:1000] = np.linspace(-1, 1.1, 1000)
    (counts,), (low,), (high,), (nonfinite,) = counted(x)
    assert (low, high, nonfinite) == (-1, np.float32(1.1), 0)
    expected, _ = np.histogram(x[:1000].astype(np.float64), BUCKETS, (-1, x.max()))
    expected[14] += 2**24  # 0 lies at 14.3 buckets
    assert counts.sum() == x.size and np.abs(counts - expected).max() <= 1


@pytest.mark.parametrize("name", ["matrix", "scalar", "all kinds at once"])
def test_eager_and_graph_agree(name):
    x = TENSORS[name].astype(np.float32)
    for eager, graph in zip(histograms([tf.constant(x)]), counted(x), strict=True):
        np.testing.assert_array_equal(eager.numpy(), graph)
