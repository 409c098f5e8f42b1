"""A step in parts: against the same step in one, and against NumPy, part by part and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_devices import RATE, Watched, prefixes
from test_step import Under, mirrored

import lab
from lab.errors import LabError
from lab.models.optimizers import RULES
from lab.settings.config import Config

pytestmark = pytest.mark.numbers


def parts_of(batch, replicas, count):
    """The examples of each part: shares as on replicas, the larger parts of a share first."""
    found = []
    for share in np.split(np.arange(batch), [batch * r // replicas for r in range(1, replicas)]):
        found += np.array_split(share, count)
    return found


def assert_histograms_are_of_the_parts(under, recorded, by_hand, parts):
    assert under.loop.watch.tags == [
        f"{tag}/gradient/part_{k}" for k in range(len(parts)) for tag in under.training.variables
    ]
    for row, tag in enumerate(under.loop.watch.tags):
        name, k = tag.split("/gradient/part_")
        value = by_hand[name][parts[int(k)]].sum(axis=0) * under.scale
        ends = recorded["low"][0, row], recorded["high"][0, row]
        np.testing.assert_allclose(ends, (value.min(), value.max()), 1e-5, 1e-6)
        assert recorded["counts"][0, row].sum() == value.size


@pytest.mark.parametrize(
    ("replicas", "count", "batch", "mean", "watch"),
    [
        (1, 2, 7, True, ("norms", "replicas")),
        (2, 2, 15, False, ()),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (1, 2, 16, False, ()),
                (1, 3, 11, True, ("norms",)),
                (1, 4, 16, True, ()),
                (2, 3, 13, False, ("norms",)),
            ]
        ),
    ],
)
def test_what_is_recorded_of_each_part(tiny, replicas, count, batch, mean, watch):
    """Every scalar of every tensor's gradient and of all together, the update, and the ends of the
    histograms of the parts' gradients: against the examples' own gradients in float64."""
    rule = RULES["sgd"](RATE if mean else RATE / batch)
    options = {"rule": rule, "batch": batch, "mean": mean, "watch": watch, "microbatches": count}
    under = Watched(tiny, replicas, **options)
    parts = parts_of(batch, replicas, count)
    sizes = np.array([len(part) for part in parts])
    cosines = count <= 2 or "norms" in watch
    seen = set()
    for _ in range(3):
        by_hand, before = (
            under.examples(under.batches.indices(under.step + 1, 1)[0]),
            under.tensors(),
        )
        recorded = under.run(1)
        found = {tag: values[0] for tag, values in under.columns(recorded).items()}
        for prefix in prefixes():
            g = by_hand[prefix.removesuffix("/")]
            local = [g[part].sum(axis=0) * under.scale for part in parts]
            reduced = np.sum(local, axis=0)
            expected = {"norm": np.linalg.norm(reduced)}
            for k, one in enumerate(local):
                length = np.linalg.norm(one)
                expected[f"part_{k}/norm"] = length
                if cosines:
                    expected[f"part_{k}/cosine"] = one @ reduced / length / expected["norm"]
            means = [g[part].mean(axis=0) for part in parts]
            small, large = np.mean([m @ m for m in means]), (whole := g.mean(axis=0)) @ whole
            s = (small - large) / (np.mean(1 / sizes) - 1 / batch)
            expected |= {"noise/variance": s, "noise/signal": large - s / batch}
            for name, value in expected.items():
                tag = f"{prefix}gradient/{name}"
                seen.add(tag)
                # Differences of squares have the rounding of these.
                noisy = 1e-5 * (small + large) * (batch if "variance" in name else 1)
                near = {"cosine": 1e-5, "variance": noisy, "signal": noisy}.get(
                    name.rpartition("/")[2], 0
                )
                assert found[tag] == pytest.approx(value, rel=1e-5, abs=near), tag
        for tag, after in under.tensors().items():
            moved = (before[tag] - after).ravel() / RATE
            # A difference of two weights has their rounding.
            expected = by_hand[tag].sum(axis=0) / batch
            np.testing.assert_allclose(moved, expected, 1e-4, 3e-7 / RATE, err_msg=tag)
        if "replicas" in watch:
            assert_histograms_are_of_the_parts(under, recorded, by_hand, parts)
    tags = {tag for tag in under.loop.watch.scalar_tags if "/update" not in tag}
    assert seen == {tag for tag in tags if "gradient/" in tag}
    assert len(seen) == 7 * ((1 + cosines) * replicas * count + 3)


@pytest.mark.parametrize(
    ("count", "batch", "xla"),
    [
        (3, 16, False),
        pytest.param(2, 16, None, marks=pytest.mark.slow),
        pytest.param(3, 7, None, marks=pytest.mark.slow),
    ],
)
def test_parts_together_do_what_one_does(tiny, count, batch, xla):
    """20 steps, in one program and in TensorFlow's kernels; histograms are of the whole batch."""
    watch = ("weights", "gradients", "activations", "norms")
    options = {"rule": RULES["adam"](), "batch": batch, "mean": True, "watch": watch, "xla": xla}
    one, many = Under(tiny, **options), Under(tiny, **options, microbatches=count)
    assert many.loop.xla == (xla is None)
    a, b = one.run(20), many.run(13, 7)
    np.testing.assert_allclose(b["scalars"][:, 0], a["scalars"][:, 0], rtol=1e-4)
    np.testing.assert_allclose(b["scalars"][:, 1], a["scalars"][:, 1], rtol=1e-6)
    assert one.loop.watch.tags == many.loop.watch.tags
    assert (b["counts"].sum(axis=2) == np.array(one.loop.watch.sizes)).all()
    for key in ("low", "high"):
        np.testing.assert_allclose(b[key], a[key], rtol=1e-3, atol=1e-5)
    for tag in ("gradient/norm", "h2/weights/norm", "h1/bias/update/ratio"):
        columns = (u.loop.watch.scalar_tags.index(tag) for u in (one, many))
        x, y = (r["scalars"][:, c] for r, c in zip((a, b), columns, strict=True))
        np.testing.assert_allclose(y, x, rtol=1e-3)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_dropout_of_keras_draws_anew_in_each_part(tiny, count):
    """Its seeds run on, while the averages of BatchNorm are those of one step."""

    class Dropping(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = keras.layers.Dropout(0.5, seed=3)
            self.norm = keras.layers.BatchNormalization(momentum=0.75)
            self.dense = keras.layers.Dense(5)
            self.build([None, 12])

        def build(self, shape):
            self.norm.build(shape)
            self.dense.build(shape)
            self.built = True

        def call(self, x, training=False):
            mask = self.drop(tf.ones_like(x), training=training)
            lab.probe("mask", mask)
            return self.dense(self.norm(x, training=training) * mask)

    under = Under(tiny, make_model=Dropping, microbatches=count, xla=False, steps_per_loop=1)
    before = under.training.model.state
    start = {tag: variable.numpy() for tag, variable in before.items()}
    indices = under.batches.indices(1, 1)
    under.loop = under.loop.observing()
    masks = np.split(under.run(1)["probes/mask"][0], count)
    assert all(set(np.unique(mask)) == {0, 2} for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == count
    means = [tag for tag in start if "moving_mean" in tag]
    x = tiny[0].reshape(103, 12)[indices[0]] / np.float32(255)
    expected = 0.75 * start[means[0]] + 0.25 * x.mean(axis=0)
    np.testing.assert_allclose(before[means[0]].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_parts_that_there_cannot_be(tiny):
    with pytest.raises(ValueError, match=r"share of 3 examples .* 4 parts"):
        Under(tiny, strategy=mirrored(2), batch=7, microbatches=4)
    with pytest.raises(LabError, match="--microbatches=0: must be an integer, at least 1"):
        Config(microbatches=0)
