"""Products, reductions and counts, written so that XLA makes fast programs of them for a CPU.

XLA reduces one entry after the other, and adds to a table one entry after the other. So here a
reduction folds slices of a tensor onto each other, which is done in vectors, and a table is of
pairs of entries. All functions take tensors of known shapes; but for `matmul` and `squares` they
belong into a function that is compiled.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.ops import gradient_registry as gradients
from tensorflow.python.ops import control_flow_v2_func_graphs as control_flow

_LANES = 32
_LARGE = 4096  # entries from which on a table of pairs pays
_COPIED = 32768  # entries below which tensors of one size are put beside each other
_TOGETHER = 1 << 18  # entries of a group, or it would leave a core's cache between two operations
_SPLIT = 1 << 20  # entries from which on a tensor is counted in parts
_PARTS = 16
_TABLES = 2  # that take turns: adding to an entry has to wait for the last addition to it

_NARROW = 64  # columns, see `matmul`

# The graphs of tf.cond and tf.while_loop.
_BRANCHES = (
    control_flow.CondBranchFuncGraph,
    control_flow.WhileCondFuncGraph,
    control_flow.WhileBodyFuncGraph,
)
_ENTRIES = "_registry"  # the attribute with all gradients that TensorFlow knows, by name
_own_graphs: weakref.WeakSet[tf.Graph] = weakref.WeakSet()

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def matmul(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """float32 [..., batch, n], [..., n, m] -> [..., batch, m]; its gradient is fast when XLA
    compiles it."""
    if x.shape.rank == w.shape.rank and (w.shape.rank > 2 or w.shape[1] <= _NARROW):
        return _transposing(x, tf.convert_to_tensor(w))
    return tf.matmul(x, w)


@tf.custom_gradient
def _transposing(x: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The gradient of w, x' g, with one of them transposed in memory: as (g' x)' where that is the
    narrow one. XLA does that in a fifth of the time for a narrow g, in half for small matrices.

    The row of zeros below keeps it from folding the transpose into the product.
    """

    def transposed(a: tf.Tensor) -> tf.Tensor:
        pad = [*[[0, 0]] * (a.shape.rank - 2), [0, 1], [0, 0]]
        return tf.pad(tf.linalg.matrix_transpose(a), pad)

    def gradient(g: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if x.shape.rank == 2 or w.shape[-1] <= w.shape[-2]:
            of_w = tf.linalg.matrix_transpose(tf.matmul(transposed(g), x)[..., :-1, :])
        else:
            of_w = tf.matmul(transposed(x), g)[..., :-1, :]
        return tf.matmul(g, w, transpose_b=True), of_w

    return tf.matmul(x, w), gradient


class _Noting(dict):
    """A registry that notes in which graph each custom gradient was registered."""

    def __setitem__(self, name: str, entry: dict[str, Any]) -> None:
        if name.startswith("CustomGradient-"):
            entry = entry | {"graph": weakref.ref(tf.compat.v1.get_default_graph())}
        super().__setitem__(name, entry)


def note_own_graph() -> None:
    """Has `released` release what is registered in the graph that is being traced."""
    _own_graphs.add(tf.compat.v1.get_default_graph())


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Releases at its end what the custom gradients that were traced within keep.

    TensorFlow registers each of them for good, and with it the graph and all that this holds, the
    training data too: 50 MB for each run on MNIST in one process. Those that were registered while
    a function of the user's own was traced are kept: it may be differentiated again.
    """
    kept = getattr(gradients, _ENTRIES)
    if not isinstance(kept, _Noting):
        kept = _Noting(kept)
        setattr(gradients, _ENTRIES, kept)
    before = {*kept}
    try:
        yield
    finally:
        for name in {*kept} - before:
            graph = kept[name].get("graph", lambda: None)()
            while isinstance(graph, _BRANCHES):
                graph = graph.outer_graph
            if graph in _own_graphs:
                del kept[name]


class Group(NamedTuple):
    """Some of a list of tensors, beside each other: one operation then serves them all, where XLA
    would have to compile one for each.

    Attributes:
      places: in the list.
      x: float32 [len(places), length], padded with NaN.
      lacking: how many entries of each row are padding.
    """

    places: list[int]
    x: tf.Tensor
    lacking: list[int]


def grouped(tensors: Sequence[tf.Tensor], pad: bool = True) -> list[Group]:
    """Tensors float32 [n]: those of one size together and, with `pad`, small ones of about one;
    large ones alone."""
    by_length: dict[int, list[int]] = {}
    for place, x in enumerate(tensors):
        n = x.shape[0]
        length = max(_LANES, 1 << (n - 1).bit_length()) if pad and n < _LARGE else n
        by_length.setdefault(length, []).append(place)
    chunks = []  # (length of a row, places)
    for length, places in by_length.items():
        # Beside each other they have to be copied, which costs more where they are large.
        most = 1 if length >= _COPIED else _TOGETHER // max(length, 1)
        chunks += [(length, places[i : i + most]) for i in range(0, len(places), most)]
    groups = []
    for length, places in chunks:
        own = [tensors[place] for place in places]
        lacking = [length - x.shape[0] if len(places) > 1 else 0 for x in own]
        rows = [
            tf.pad(x, [[0, more]], constant_values=np.nan) if more else x
            for x, more in zip(own, lacking, strict=True)
        ]
        groups.append(Group(places, tf.stack(rows), lacking))
    return groups


def in_order(groups: Sequence[Group], rows: tf.Tensor) -> tf.Tensor:
    """What was made of each row of the groups, [T, ...], in the order of the list."""
    places = [place for group in groups for place in group.places]
    return rows if places == sorted(places) else tf.gather(rows, np.argsort(places))


def smallest(groups: Sequence[Group]) -> tf.Tensor:
    """The smallest finite entry of each row of the groups, infinity of none: float32 [T]."""
    rows = [
        _lanes(tf.minimum, [group.x], np.inf, lambda x: tf.where(x > -np.inf, x, np.inf))
        for group in groups
    ]
    return tf.reduce_min(tf.concat(rows, 0), axis=1)


def largest(groups: Sequence[Group]) -> tf.Tensor:
    """The largest finite entry of each row of the groups, -infinity of none: float32 [T]."""
    rows = [
        _lanes(tf.maximum, [group.x], -np.inf, lambda x: tf.where(x < np.inf, x, -np.inf))
        for group in groups
    ]
    return tf.reduce_max(tf.concat(rows, 0), axis=1)


@tf.function(jit_compile=True, autograph=False)
def squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The sum of the squares of each tensor's entries, float32, any shapes: float32 [T]."""
    groups = grouped([tf.reshape(x, [-1]) for x in tensors], pad=False)
    rows = [_lanes(tf.add, [group.x], 0.0, tf.square) for group in groups]
    return in_order(groups, tf.reduce_sum(tf.concat(rows, 0), axis=1))


@tf.function(jit_compile=True, autograph=False)
def dots(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
    """The scalar product of each tensor of `a` with that of `b`, as `squares`: float32 [T]."""
    flat = ([tf.reshape(tf.cast(x, tf.float32), [-1]) for x in tensors] for tensors in (a, b))
    pairs = [grouped(tensors, pad=False) for tensors in flat]
    rows = [
        _lanes(tf.add, (one.x, other.x), 0.0, tf.multiply)
        for one, other in zip(*pairs, strict=True)
    ]
    return in_order(pairs[0], tf.reduce_sum(tf.concat(rows, 0), axis=1))


def _lanes(
    fold: Operation, xs: Sequence[tf.Tensor], neutral: float, entry: Callable[..., tf.Tensor]
) -> tf.Tensor:
    """xs [rows, n] -> [rows, _LANES], of which `fold` gives the same as of `entry(*xs)`.

    `entry` is taken of each slice: of the whole, it would be written to memory first.
    """
    rests = []
    while (n := xs[0].shape[1]) > _LANES:
        rows = n // _LANES
        # As measured: many slices of a large tensor would share the same few places of the cache.
        some = range(8, 15 if n < 16384 else 13)
        parts = min(max(some, key=lambda parts: (rows % parts == 0, parts)), rows)
        length = rows // parts * _LANES
        rest = n - parts * length
        split = [tf.split(x, [length] * parts + [rest], axis=1) for x in xs]
        *slices, last = zip(*split, strict=True)
        if rest:
            rests.append(_lanes(fold, last, neutral, entry))
        xs, entry = [_fold(fold, [entry(*part) for part in slices])], tf.identity
    more = [[0, 0], [0, _LANES - n]]
    rests.append(tf.pad(entry(*xs), more, constant_values=neutral))
    return _fold(fold, rests)


def _fold(fold: Operation, parts: list[tf.Tensor]) -> tf.Tensor:
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [*map(fold, parts[:half], parts[half : 2 * half]), *parts[2 * half :]]
    return parts[0]


def bincounts(values: tf.Tensor, size: int) -> tf.Tensor:
    """How often each of 0, 1, ..., size - 1 is in each row of values: int32 [rows, size].

    Args:
      values: float32 [rows, n], whole numbers.
      size: at most 64, so that the tables stay in the cache.
    """
    n = values.shape[1]
    # Large tensors in parts: XLA gives operations to other threads only where many wait.
    length = n // _PARTS // _LANES * _LANES if n >= _SPLIT else n
    starts = range(0, n - length + 1, max(length, 1))
    slices = (values[:, start:end] for start, end in itertools.pairwise([*starts, n]))
    return tf.add_n([_bincounts(one, size) for one in slices])


def _bincounts(values: tf.Tensor, size: int) -> tf.Tensor:
    rows, n = values.shape
    offsets = np.arange(rows, dtype=np.float32)[:, None]
    if n < _LARGE:
        return _add(values + offsets * size, rows, size)
    half = n // 2
    pairs = values[:, :half] * size + values[:, half : 2 * half]
    tables = np.arange(half, dtype=np.float32) % _TABLES
    pairs += (tables + offsets * _TABLES) * size * size
    table = _add(pairs, rows * _TABLES, size * size)
    table = tf.reduce_sum(tf.reshape(table, [rows, _TABLES, size, size]), 1)
    counts = tf.reduce_sum(table, 1) + tf.reduce_sum(table, 2)
    return counts + _add(values[:, -1:] + offsets * size, rows, size) if n % 2 else counts


def _add(values: tf.Tensor, rows: int, size: int) -> tf.Tensor:
    """Counts of 0, 1, ..., rows size - 1: int32 [rows, size]."""
    values = tf.reshape(values, [-1])
    # The last bits of v + 2^23 are v: that is less than a cast, which looks for overflow and NaN.
    places = tf.bitcast(values + 2.0**23, tf.int32) - 0x4B000000
    counts = tf.math.unsorted_segment_sum(_ones(values.shape[0]), places, rows * size)
    return tf.reshape(counts, [rows, size])


@functools.cache
def _ones(size: int) -> tf.Tensor:
    # Kept, and not made where it is needed: XLA would write it again at every step.
    with tf.init_scope(), tf.device("/cpu:0"):
        return tf.ones([size], tf.int32)
