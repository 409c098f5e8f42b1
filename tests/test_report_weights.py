"""Questions 1 to 3, of one run's weights: against loops, scipy and cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats
from test_report_network import examples, make

from lab import report as r

pytestmark = pytest.mark.numbers


@pytest.fixture(scope="module")
def trained():
    """(initial, final, x, labels): four blobs in 20 dimensions, learnt by sgd."""
    rng = np.random.default_rng(11)
    centres = rng.random((4, 20))
    labels = np.arange(400) % 4
    x = (centres[labels] + rng.normal(0, 0.05, (400, 20))).astype(np.float32)
    x[:, 3] = 0
    initial = final = make(rng, (20, 12, 16, 4), scale=0.4)
    for _ in range(400):
        batch = rng.choice(400, 64, replace=False)
        final = r.sgd_step(final, x[batch], labels[batch], 0.02)
    assert r.accuracy(initial, x, labels) < 0.6 and r.accuracy(final, x, labels) > 0.98
    return initial, final, x, labels


# Question 1


def test_rewind_and_redraw_touch_one_layer(trained):
    initial, final, _, _ = trained
    parts = {"both": ("weights", "bias"), "weights": ("weights",), "bias": ("bias",)}
    for part, changed in parts.items():
        back = r.rewind(final, initial, "h2", part).tensors()
        fresh = r.rerandomize(
            final, "h2", lambda shape, _: np.full(shape, 7.0), np.random.default_rng(0), part
        ).tensors()
        for name, value in final.tensors().items():
            touched = name in [f"h2/{kind}" for kind in changed]
            assert back[name] is (initial.tensors()[name] if touched else value)
            if not touched:
                assert fresh[name] is value
            else:
                assert np.all(fresh[name] == (7 if name == "h2/weights" else 0))


def test_reset_layers(trained):
    """The whole table against whole networks, and a layer that never moved needs no training."""
    initial, final, x, labels = trained
    still = final.replace({f"h1/{part}": initial.tensors()[f"h1/{part}"] for part in ("weights",)})
    law = r.initial_law("normal", 0.4)
    resets = r.reset_layers(still, initial, x, labels, law, np.random.default_rng(0), draws=2)
    assert [(s.layer, s.part) for s in resets] == [
        (layer, part) for layer in final.names for part in ("both", "weights", "bias")
    ]
    for s in resets:
        whole = r.rewind(still, initial, s.layer, s.part)
        assert s.rewound == pytest.approx(r.accuracy(whole, x, labels), abs=0.003)
        assert len(s.redrawn) == (1 if s.part == "bias" else 2)
    by_place = {(s.layer, s.part): s for s in resets}
    assert by_place["h1", "weights"].rewound == pytest.approx(r.accuracy(still, x, labels))
    assert max(by_place["logits", "weights"].redrawn) < 0.9
    zero = still.replace({"h2/bias": np.zeros(16, np.float32)})
    assert by_place["h2", "bias"].redrawn[0] == pytest.approx(
        r.accuracy(zero, x, labels), abs=0.003
    )


def test_update_ratio():
    found = r.update_ratio(np.array([0.5, 1, 0]), np.array([2.0, 0, 3]))
    np.testing.assert_array_equal(found, [0.25, np.nan, 0])


def test_saturation():
    units = np.array([[0.01, 0.5, 0.96, 0.3], [0.04, 0.5, 0.99, 0.32], [0.049, 0.5, 0.2, 0.05]])
    assert r.saturation(units, "sigmoid") == r.Saturation(3 / 12, 2 / 12, 1, 4)
    logits = np.log(units / (1 - units)) / 2
    assert r.saturation(np.tanh(logits), "tanh") == r.Saturation(3 / 12, 2 / 12, 1, 4)
    relu = np.maximum(np.array([[-1.0, 2, -1], [-3, 0.1, 5]]), 0)
    assert r.saturation(relu, "relu") == r.Saturation(3 / 6, 0, 1, 3)


def test_noise_scale_recovers_a_known_covariance():
    """Gradients of single examples ~ N(g, C): the scale is tr C / |g|^2."""
    rng = np.random.default_rng(2)
    g, deviations = rng.normal(size=50), rng.uniform(1, 3, 50)
    small, big = [], []
    for _ in range(2000):  # four replicas of 16 examples each
        local = g + rng.normal(size=(4, 50)) * deviations / np.sqrt(16)
        small.append(np.sum(local**2, axis=1))
        big.append(np.sum(local.mean(axis=0) ** 2))
    found = r.noise_scale(np.array(small), np.array(big), 16, 64)
    assert found.noise == pytest.approx(np.sum(deviations**2), rel=0.02)
    assert found.signal == pytest.approx(g @ g, rel=0.02)
    assert found.scale == found.noise / found.signal
    assert np.isnan(r.noise_scale(np.array([4.0]), np.array([0.5]), 1, 4).scale)
    with pytest.raises(ValueError, match="0 < small < big"):
        r.noise_scale(np.ones(3), np.ones(3), 8, 8)


# Question 2


def test_shuffling_keeps_the_histogram_and_not_the_accuracy(trained):
    _, final, x, labels = trained
    tests = r.shuffle_test(final, x, labels, np.random.default_rng(0))
    assert [t.layers for t in tests] == [("h1",), ("h2",), ("logits",), ("h1", "h2", "logits")]
    assert all(t.same_counts for t in tests)
    assert tests[-1].accuracy < 0.7
    after = r.shuffle(final, ["h2"], np.random.default_rng(0))
    for name, value in final.tensors().items():
        moved = after.tensors()[name]
        edges = np.linspace(value.min(), value.max(), 31)
        np.testing.assert_array_equal(*(np.histogram(v, edges)[0] for v in (value, moved)))
        assert np.array_equal(moved, value) == (not name.startswith("h2/"))


def test_shuffle_test_notices_other_counts(trained, monkeypatch):
    _, final, x, labels = trained
    monkeypatch.setattr(
        "lab.analysis.spectrum._shuffled",
        lambda values, rng: rng.choice(values.ravel(), values.shape),
    )
    tests = r.shuffle_test(final, x, labels, np.random.default_rng(0))
    assert not any(t.same_counts for t in tests)


def test_noise_stands_inside_the_edge_and_a_spike_outside():
    rng = np.random.default_rng(4)
    sigma, shape = 0.05, (784, 128)
    noise = rng.normal(0, sigma, shape)
    edge = r.marchenko_pastur_edge(shape, sigma)
    assert edge == pytest.approx(0.05 * (28 + 128**0.5))
    # Finite size lets the largest one fluctuate about the edge, by far less than sigma.
    assert np.linalg.norm(noise, 2) == pytest.approx(edge, abs=sigma)
    u, v = (w / np.linalg.norm(w) for w in (rng.normal(size=784), rng.normal(size=128)))
    spiked = noise + 2 * edge * np.outer(u, v)
    found = r.spectrum(spiked, noise, sigma)
    singular = np.sqrt(np.linalg.eigvalsh(spiked.T @ spiked)[::-1])
    np.testing.assert_allclose(found.singular, singular, rtol=1e-6)
    assert found.singular[0] > 1.9 * edge and found.singular[1] < edge + sigma
    assert found.outside - found.initial_outside == found.above_initial == 1
    assert found.initial_outside <= 1
    assert found.stable_rank == pytest.approx(np.sum(spiked**2) / singular[0] ** 2)
    assert r.spectrum(np.outer(u, v), noise, sigma).stable_rank == pytest.approx(1)


def test_a_change_of_rank_three_is_recovered_at_three():
    rng = np.random.default_rng(9)
    initial = make(rng, (20, 12, 16, 6), scale=0.3)
    x, _ = examples(rng, 300, 20)

    def rank_three(w):
        """Three equal singular values: none of the three can be done without."""
        left, right = (np.linalg.qr(rng.normal(size=(n, 3)))[0] for n in w.shape)
        return np.float32(5 * left @ right.T)

    change = [rank_three(w) for w in initial.weights]
    final = r.Network(
        initial.names,
        tuple(w + c for w, c in zip(initial.weights, change, strict=True)),
        initial.biases,
        "tanh",
    )
    labels = r.predictions(final, x)
    found = r.low_rank_changes(final, initial, x, labels, (1, 2, 3, 20))
    assert [f.rank for f in found] == [1, 2, 3, 20]
    assert max(found[0].accuracy, found[1].accuracy) < 0.9
    assert found[2].accuracy >= 0.99 and found[3].accuracy >= 0.99
    alone = r.Network(initial.names, tuple(change), initial.biases, "tanh")
    expected = r.accuracy(alone, x, labels)
    assert found[2].accuracy_without_initial == pytest.approx(expected, abs=0.01)
    assert expected < found[2].accuracy  # W_0 has its part in it


def test_row_kurtosis():
    rng = np.random.default_rng(3)
    normal = rng.normal(size=(20_000, 10))
    scales = np.where(np.arange(20_000) % 2, 1.0, 30.0)[:, None]
    assert stats.kurtosis(normal * scales, axis=None) > 2  # the mixture alone
    assert r.row_kurtosis(normal * scales + scales) == pytest.approx(0, abs=0.03)
    wide = rng.laplace(size=(50, 4000))
    expected = np.mean([stats.kurtosis(row) for row in wide]) + 3 - 3 * 3999 / 4001
    assert r.row_kurtosis(wide) == pytest.approx(expected)
    assert r.row_kurtosis(np.vstack([wide, np.ones((5, 4000))])) == pytest.approx(expected)
    assert np.isnan(r.row_kurtosis(np.ones((3, 4))))


# Question 3


def test_near_zero_shares():
    values = np.array([0, -0.009, 0.01, 0.04, -0.07, 2])
    assert r.near_zero_shares(values) == {0.01: 2 / 6, 0.05: 4 / 6, 0.1: 5 / 6}


def test_natural_scale():
    rng = np.random.default_rng(0)
    x, weights, bias = rng.random((500, 300)), rng.normal(0, 0.05, (300, 200)), np.zeros(200)
    found = r.natural_scale(x, weights, bias)
    assert found.square_norm == pytest.approx(sum(row @ row for row in x) / 500)
    assert found.weight == pytest.approx(0.05, rel=0.02)
    assert found.implied == pytest.approx(0.05 * np.sqrt(found.square_norm), rel=0.02)
    assert found.measured == pytest.approx(np.sqrt(np.mean((x @ weights) ** 2)))
    assert found.measured == pytest.approx(found.implied, rel=0.15)


def test_rows_of_dark_pixels_do_not_move(trained):
    initial, final, x, _ = trained
    images = np.uint8(np.clip(x, 0, 1) * 255)
    images[0, 7] = 0
    dark = r.never_lit(images)
    np.testing.assert_array_equal(np.flatnonzero(dark), [3])
    np.testing.assert_array_equal(r.lit_shares(images), [np.mean(c > 0) for c in images.T])
    np.testing.assert_array_equal(r.unmoved_rows(final.weights[0], initial.weights[0]), dark)
    touched = initial.weights[0].copy()
    touched[5, 2] = np.nextafter(touched[5, 2], np.float32(9))  # the last bit of one entry
    touched[6, 1] = -0.0
    start = initial.weights[0].copy()
    start[6, 1] = 0.0
    moved = ~r.unmoved_rows(touched, start)
    np.testing.assert_array_equal(np.flatnonzero(moved), [5, 6])


def test_movement_by_lighting():
    start, final = np.zeros((5, 2)), np.array([[0, 0], [3, 4], [0, 1], [6, 8], [0, 0.1]])
    groups = r.movement_by_lighting(final, start, np.array([0, 0.5, 0.01, 1, 0.005]))
    assert [(g.above, g.upto, g.pixels) for g in groups] == [
        (0, 0, 1), (0, 1e-3, 0), (1e-3, 1e-2, 2), (1e-2, 1e-1, 0), (1e-1, 1, 2)
    ]  # fmt: skip
    assert [g.mean for g in groups] == pytest.approx([0, np.nan, 0.55, np.nan, 7.5], nan_ok=True)
    assert (groups[4].low, groups[4].high) == pytest.approx((5.5, 9.5))


def test_pruning_curve(trained):
    _, final, x, labels = trained
    means = r.mean_inputs(final, x)
    shares = (0, 0.25, 0.5, 1)
    curve = r.pruning_curve(final, x, labels, means, np.random.default_rng(1), shares)
    full = r.accuracy(final, x, labels)
    assert curve.smallest[0] == curve.compensated[0] == curve.random[0] == full
    # Without weights one class is left, whichever the last bias prefers.
    frequency = np.bincount(labels) / len(labels)
    assert {*curve.smallest[3:], *curve.compensated[3:], *curve.random[3:]} <= set(frequency)
    assert (
        np.unique(
            r.predictions(r.prune(final, 1, [np.arange(w.size) for w in final.weights]), x)
        ).size
        == 1
    )
    by_hand = []
    for w in final.weights:
        limit = np.sort(np.abs(w), axis=None)[round(0.25 * w.size)]
        by_hand.append(np.where(np.abs(w) < limit, 0, w))
    pruned = r.Network(final.names, tuple(by_hand), final.biases, "sigmoid")
    assert curve.smallest[1] == r.accuracy(pruned, x, labels)
    rng = np.random.default_rng(1)
    order = [rng.permutation(w.size) for w in final.weights]
    for share, found in zip(shares, curve.random, strict=True):
        assert found == r.accuracy(r.prune(final, share, order), x, labels)
    assert curve.random[2] < curve.smallest[2]
    fixed = r.compensate(pruned, final, means)
    for layer, mean in enumerate(means):
        for unit in range(len(final.biases[layer])):
            lost = sum(
                mean[i] * (final.weights[layer][i, unit] - by_hand[layer][i, unit])
                for i in range(len(mean))
            )
            expected = final.biases[layer][unit] + lost
            assert fixed.biases[layer][unit] == pytest.approx(expected, abs=1e-5)
    assert curve.compensated[1] == r.accuracy(fixed, x, labels)


def test_compensation_is_exact_where_the_lost_input_is_constant():
    rng = np.random.default_rng(0)
    network = make(rng)
    x, _ = examples(rng, 50)
    x[:, 4] = 0.7
    without = network.replace({"h1/weights": network.weights[0] * (np.arange(6) != 4)[:, None]})
    fixed = r.compensate(without, network, r.mean_inputs(network, x))
    assert np.abs(r.logits(without, x) - r.logits(network, x)).max() > 0.01
    np.testing.assert_allclose(r.logits(fixed, x), r.logits(network, x), rtol=1e-4, atol=1e-5)
