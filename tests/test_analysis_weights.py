"""Questions 1 to 3, of one run's weights: against loops, scipy and cases whose answer is known."""

import numpy as np
import numpy_network
import pytest
from test_analysis_model import examples, make, model_for

from lab.analysis import near_zero, resets, spectrum
from lab.analysis.model import fresh
from lab.analysis.weights import Weights

pytestmark = pytest.mark.numbers


@pytest.fixture(scope="module")
def trained():
    """(initial, final, x, labels): four blobs in 20 dimensions, learnt by sgd in NumPy."""
    rng = np.random.default_rng(11)
    centres = rng.random((4, 20))
    labels = np.arange(400) % 4
    x = (centres[labels] + rng.normal(0, 0.05, (400, 20))).astype(np.float32)
    x[:, 3] = 0
    initial = final = make(rng, (20, 12, 16, 4), scale=0.4)
    for _ in range(400):
        batch = rng.choice(400, 64, replace=False)
        gradients = numpy_network.gradients(final, x[batch], labels[batch])
        steps = {tag: np.float32(0.02 * g) for tag, g in gradients.items()}
        final = Weights({tag: w - steps[tag] for tag, w in final.items()})
    assert accuracy(initial, x, labels) < 0.6 and accuracy(final, x, labels) > 0.98
    return initial, final, x, labels


@pytest.fixture
def model(trained):
    return model_for(trained[0])


def accuracy(weights, x, labels):
    return numpy_network.accuracy(weights, "sigmoid", x, labels)


# Question 1


def test_reset_layers(trained, model):
    """Against NumPy's networks, and a layer that never moved needs no training."""
    initial, final, x, labels = trained
    still = final.replace({"h1/weights": initial["h1/weights"]})
    law = {"initializer": "normal", "init_stddev": 0.4}
    drawn = [fresh(law, final, seed) for seed in (7, 8)]
    found = resets.reset_layers(model, still, initial, drawn, x, labels)
    assert [(s.layer, s.part) for s in found] == [
        (layer, part) for layer in final.names for part in ("both", "weights", "bias")
    ]
    for s in found:
        tags = [f"{s.layer}/{kind}" for kind in ("weights", "bias") if s.part in ("both", kind)]
        back = still.replace({tag: initial[tag] for tag in tags})
        assert s.rewound == pytest.approx(accuracy(back, x, labels), abs=0.003)
        others = [still.replace({tag: one[tag] for tag in tags}) for one in drawn]
        expected = [accuracy(o, x, labels) for o in others if s.part != "bias"]
        assert s.redrawn == pytest.approx(expected, abs=0.003)
    by_place = {(s.layer, s.part): s for s in found}
    assert by_place["h1", "weights"].rewound == pytest.approx(accuracy(still, x, labels))
    assert by_place["logits", "both"].redrawn.max() < 0.9
    assert not any(one[tag].any() for one in drawn for tag in one if tag.endswith("bias"))


def test_update_ratio():
    found = resets.update_ratio(np.array([0.5, 1, 0]), np.array([2.0, 0, 3]))
    np.testing.assert_array_equal(found, [0.25, np.nan, 0])


def test_saturation():
    units = np.array([[0.01, 0.5, 0.96, 0.3], [0.04, 0.5, 0.99, 0.32], [0.049, 0.5, 0.2, 0.05]])
    assert resets.saturation(units, "sigmoid") == resets.Saturation(3 / 12, 2 / 12, 1, 4)
    logits = np.log(units / (1 - units)) / 2
    assert resets.saturation(np.tanh(logits), "tanh") == resets.Saturation(3 / 12, 2 / 12, 1, 4)
    relu = np.maximum(np.array([[-1.0, 2, -1], [-3, 0.1, 5]]), 0)
    assert resets.saturation(relu, "relu") == resets.Saturation(3 / 6, 0, 1, 3)


# Question 2


def test_shuffling_keeps_the_histogram_and_not_the_accuracy(trained, model):
    _, final, x, labels = trained
    tests = spectrum.shuffle_test(model, final, x, labels, np.random.default_rng(0), 3)
    assert [t.layers for t in tests] == [("h1",), ("h2",), ("logits",), ("h1", "h2", "logits")]
    assert all(t.same_counts for t in tests)
    assert len(tests[-1].accuracy) == 3 and max(tests[-1].accuracy) < 0.7
    assert len(set(tests[-1].accuracy)) > 1  # each draw is another order
    after = spectrum.shuffle(final, ["h2"], np.random.default_rng(0))
    for name, value in final.items():
        moved = after[name]
        edges = np.linspace(value.min(), value.max(), 31)
        np.testing.assert_array_equal(*(np.histogram(v, edges)[0] for v in (value, moved)))
        assert np.array_equal(moved, value) == (not name.startswith("h2/"))


def test_shuffle_test_notices_other_counts(trained, model, monkeypatch):
    _, final, x, labels = trained

    def replaced(weights, layers, rng):
        drawn = {tag: rng.choice(w.ravel(), w.shape) for tag, w in weights.items()}
        return weights.replace({t: w for t, w in drawn.items() if t.split("/")[0] in layers})

    monkeypatch.setattr("lab.analysis.spectrum.shuffle", replaced)
    tests = spectrum.shuffle_test(model, final, x, labels, np.random.default_rng(0), 2)
    assert not any(t.same_counts for t in tests)


def test_noise_stands_inside_the_edge_and_a_spike_outside():
    rng = np.random.default_rng(4)
    sigma, shape = 0.05, (784, 128)
    noise = rng.normal(0, sigma, shape)
    edge = 0.05 * (28 + 128**0.5)
    # Finite size lets the largest one fluctuate about the edge, by far less than sigma.
    assert np.linalg.norm(noise, 2) == pytest.approx(edge, abs=sigma)
    u, v = (w / np.linalg.norm(w) for w in (rng.normal(size=784), rng.normal(size=128)))
    spiked = noise + 2 * edge * np.outer(u, v)
    found = spectrum.spectrum(spiked, noise)
    singular = np.sqrt(np.linalg.eigvalsh(spiked.T @ spiked)[::-1])
    np.testing.assert_allclose(found.singular, singular, rtol=1e-6)
    assert found.singular[0] > 1.9 * edge and found.singular[1] < edge + sigma
    assert found.edge == pytest.approx(edge, rel=0.01)
    singular_noise = np.sqrt(np.linalg.eigvalsh(noise.T @ noise))
    counts = [np.sum(s > found.edge) for s in (singular, singular_noise)]
    assert [found.outside, found.initial_outside] == counts and max(counts) <= 2
    assert found.stable_rank == pytest.approx(np.sum(spiked**2) / singular[0] ** 2)
    assert spectrum.spectrum(np.outer(u, v), noise).stable_rank == pytest.approx(1)


def test_a_change_of_rank_three_is_recovered_at_three():
    rng = np.random.default_rng(9)
    initial = make(rng, (20, 12, 16, 6), scale=0.3)
    x, _ = examples(rng, 300, 20)

    def rank_three(w):
        """Three equal singular values: none of the three can be done without."""
        left, right = (np.linalg.qr(rng.normal(size=(n, 3)))[0] for n in w.shape)
        return np.float32(5 * left @ right.T)

    change = {tag: rank_three(w) for tag, w in initial.matrices().items()}
    final = initial.replace({tag: initial[tag] + c for tag, c in change.items()})
    model = model_for(final, "tanh")
    labels = model.logits(final, x).argmax(axis=1)
    found = spectrum.low_rank_changes(model, final, initial, x, labels, (1, 2, 3, 20))
    assert [f.rank for f in found] == [1, 2, 3, 20]
    assert max(found[0].accuracy, found[1].accuracy) < 0.9
    assert found[2].accuracy >= 0.99 and found[3].accuracy >= 0.99
    expected = numpy_network.accuracy(initial.replace(change), "tanh", x, labels)
    assert found[2].accuracy_without_initial == pytest.approx(expected, abs=0.01)
    assert expected < found[2].accuracy  # W_0 has its part in it


# Question 3


def test_near_zero_shares():
    values = np.array([0, -0.009, 0.01, 0.04, -0.07, 2])
    assert near_zero.near_zero_shares(values) == {0.01: 2 / 6, 0.05: 4 / 6, 0.1: 5 / 6}


def test_natural_scale():
    rng = np.random.default_rng(0)
    weights = make(rng, (300, 200, 4), scale=0.05)
    weights, x = weights.replace({"h1/bias": np.ones(200, np.float32)}), rng.random((500, 300))
    found = near_zero.natural_scale(weights, x, np.random.default_rng(1), 3)
    assert found.square_norm == pytest.approx(sum(row @ row for row in x) / 500)
    assert found.weight == pytest.approx(0.05, rel=0.02)
    z = x @ np.float64(weights["h1/weights"])
    assert found.measured == pytest.approx(np.sqrt(np.mean((z + 1) ** 2)))
    expected = found.weight * np.sqrt(found.square_norm)
    assert np.sqrt(np.mean(z**2)) == pytest.approx(expected, rel=0.15)
    rng, w = np.random.default_rng(1), weights["h1/weights"]
    orders = [rng.permutation(w.ravel()).reshape(w.shape) for _ in range(3)]
    again = [np.sqrt(np.mean((x @ np.float64(o) + 1) ** 2)) for o in orders]
    np.testing.assert_allclose(found.shuffled, again, rtol=1e-5)
    assert len(set(again)) == 3


def test_weights_that_align_with_the_images_give_larger_sums_than_shuffled_ones():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=300)
    x = rng.normal(size=(400, 1)) * direction
    weights = make(rng, (300, 200, 4), scale=0.05)
    aligned = np.float32(np.outer(direction, rng.normal(size=200)) * 0.05)
    weights = weights.replace({"h1/weights": aligned, "h1/bias": np.zeros(200, np.float32)})
    found = near_zero.natural_scale(weights, x, rng, 5)
    assert found.measured > 10 * found.shuffled.max()
    independent = found.weight * np.sqrt(found.square_norm)
    assert found.shuffled == pytest.approx(np.full(5, independent), rel=0.3)


def test_rows_of_dark_pixels_do_not_move(trained):
    initial, final, x, _ = trained
    images = np.uint8(np.clip(x, 0, 1) * 255)
    images[0, 7] = 0
    lit = near_zero.lit_shares(images)
    np.testing.assert_array_equal(lit, [np.mean(c > 0) for c in images.T])
    np.testing.assert_array_equal(np.flatnonzero(lit == 0), [3])
    np.testing.assert_array_equal(
        near_zero.unmoved_rows(final.weights[0], initial.weights[0]), lit == 0
    )
    touched = initial.weights[0].copy()
    touched[5, 2] = np.nextafter(touched[5, 2], np.float32(9))  # the last bit of one entry
    touched[6, 1] = -0.0
    start = initial.weights[0].copy()
    start[6, 1] = 0.0
    moved = ~near_zero.unmoved_rows(touched, start)
    np.testing.assert_array_equal(np.flatnonzero(moved), [5, 6])


def test_movement_by_lighting():
    start, final = np.zeros((5, 2)), np.array([[0, 0], [3, 4], [0, 1], [6, 8], [0, 0.1]])
    groups = near_zero.movement_by_lighting(final, start, np.array([0, 0.5, 0.01, 1, 0.005]))
    assert [(g.above, g.upto, g.pixels) for g in groups] == [
        (0, 0, 1), (0, 1e-3, 0), (1e-3, 1e-2, 2), (1e-2, 1e-1, 0), (1e-1, 1, 2)
    ]  # fmt: skip
    assert [g.mean for g in groups] == pytest.approx([0, np.nan, 0.55, np.nan, 7.5], nan_ok=True)


def test_pruning_curve(trained, model):
    _, final, x, labels = trained
    shares = (0, 0.25, 0.5, 1)
    rng = np.random.default_rng(1)
    curve = near_zero.pruning_curve(model, final, (x, labels), x, rng, 2, shares, shares)
    full = accuracy(final, x, labels)
    assert {curve.smallest[0], curve.compensated[0], *curve.random[:, 0]} == {full}
    # Without weights one class is left, whichever the last bias prefers.
    frequency = np.bincount(labels) / len(labels)
    assert {*curve.smallest[3:], *curve.compensated[3:], *curve.random[:, 3]} <= set(frequency)
    pruned = {}
    for tag, w in final.matrices().items():
        limit = np.sort(np.abs(w), axis=None)[round(0.25 * w.size)]
        pruned[tag] = np.where(np.abs(w) < limit, 0, w)
    pruned = final.replace(pruned)
    assert curve.smallest[1] == accuracy(pruned, x, labels)
    rng = np.random.default_rng(1)
    assert curve.random.shape == (2, 4)
    for draw in curve.random:
        order = {tag: rng.permutation(w.size) for tag, w in final.matrices().items()}
        for share, found in zip(shares, draw, strict=True):
            assert found == accuracy(near_zero.prune(final, share, order), x, labels)
    assert curve.random[:, 2].mean() < curve.smallest[2]
    inputs = numpy_network.forward(final, "sigmoid", x)[:-1]
    fixed = {}
    for name, a in zip(final.names, inputs, strict=True):
        lost = a @ (final[f"{name}/weights"] - pruned[f"{name}/weights"])
        fixed[f"{name}/bias"] = final[f"{name}/bias"] + lost.mean(axis=0)
    fixed = pruned.replace(fixed)
    means = {name: a.mean(axis=0) for name, a in zip(final.names, inputs, strict=True)}
    for tag, value in near_zero.compensate(pruned, final, means).items():
        np.testing.assert_allclose(value, fixed[tag], atol=1e-5)
    assert curve.compensated[1] == accuracy(fixed, x, labels)


def test_a_curve_is_followed_to_where_it_crosses_the_limit():
    shares, falls = np.array([0, 0.25, 0.5, 1]), np.array([0.9, 0.8, 0.6, 0.7])
    found = [near_zero.crossing(shares, falls, limit) for limit in (0.95, 0.89, 0.7, 0.6, 0.1)]
    assert found == pytest.approx([0, 0.025, 0.375, 1, 1])


def test_compensation_is_exact_where_the_lost_input_is_constant():
    rng = np.random.default_rng(0)
    weights = make(rng)
    x, _ = examples(rng, 50)
    x[:, 4] = 0.7
    without = weights.replace({"h1/weights": weights["h1/weights"] * (np.arange(6) != 4)[:, None]})
    inputs = numpy_network.forward(weights, "sigmoid", x)[:-1]
    means = {name: a.mean(axis=0) for name, a in zip(weights.names, inputs, strict=True)}
    fixed = near_zero.compensate(without, weights, means)
    whole, less, again = (
        numpy_network.forward(w, "sigmoid", x)[-1] for w in (weights, without, fixed)
    )
    assert np.abs(less - whole).max() > 0.01
    np.testing.assert_allclose(again, whole, rtol=1e-4, atol=1e-5)
