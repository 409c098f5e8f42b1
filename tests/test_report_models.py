"""Questions 4 and 5, of several networks and of a path: against loops and known answers."""

import itertools

import numpy as np
import pytest
from test_report_network import examples, make

from lab import report as r

pytestmark = pytest.mark.numbers

# Question 4


def test_independent_errors_disagree_as_the_formula_says():
    rng = np.random.default_rng(0)
    n, classes = 400_000, 5
    labels = rng.integers(0, classes, n)

    def classify(error):
        wrong = (labels + rng.integers(1, classes, n)) % classes
        return np.where(rng.random(n) < error, wrong, labels)

    a, b = classify(0.3), classify(0.6)
    found = r.disagreement(a, b, labels, classes)
    assert found.error_a == np.mean(a != labels) and found.error_b == np.mean(b != labels)
    assert found.share == np.mean(a != b)
    assert found.independent == pytest.approx(1 - 0.7 * 0.4 - 0.18 / 4, abs=0.003)
    assert found.share == pytest.approx(found.independent, abs=0.003)
    assert found.both_wrong == pytest.approx(found.both_wrong_independent, abs=0.003)
    same = r.disagreement(a, a, labels, classes)
    assert same.share == 0 and same.independent > 0.4 and same.both_wrong == same.error_a


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_permuted_units_are_the_same_function(activation):
    rng = np.random.default_rng(1)
    network = make(rng, (20, 30, 40, 10), activation)
    x, _ = examples(rng, 50, 20)
    permutations = r.random_permutations(network, rng)
    other = r.permute_hidden(network, permutations)
    for mine, theirs, p in zip(r.hidden(network, x), r.hidden(other, x), permutations, strict=True):
        np.testing.assert_allclose(theirs, mine[:, p], rtol=1e-4, atol=1e-5)
    found = r.symmetry(network, x, rng)
    assert found.logits_change < 1e-10
    flat = [r.flatten(n).astype(np.float64) for n in (network, other)]
    assert found.norm == pytest.approx(np.linalg.norm(flat[0]))
    assert r.distance(network, other) == pytest.approx(np.linalg.norm(flat[0] - flat[1]))
    assert found.distance > found.norm


def test_symmetry_sees_rows_that_did_not_follow(monkeypatch):
    rng = np.random.default_rng(1)
    network = make(rng, (20, 30, 40, 10))

    def half(network, permutations):
        weights = (network.weights[0][:, permutations[0]], *network.weights[1:])
        return r.Network(network.names, weights, network.biases, network.activation)

    monkeypatch.setattr("lab.analysis.sameness.permute_hidden", half)
    assert r.symmetry(network, examples(rng, 50, 20)[0], rng).logits_change > 0.1


@pytest.mark.parametrize("sizes", [(20, 4), (20, 30, 4), (20, 30, 40, 25, 4)])
def test_a_permuted_copy_has_barrier_0_after_matching(sizes):
    """And before it a barrier, unless nothing can be permuted."""
    rng = np.random.default_rng(2)
    network = make(rng, sizes, "tanh", scale=0.5)
    x, _ = examples(rng, 500, 20)
    labels = r.predictions(network, x)
    copy = r.permute_hidden(network, r.random_permutations(network, rng))
    before = r.barrier(network, copy, x, labels, 11)
    found = r.match(network, copy, rng)
    matched = r.permute_hidden(copy, found)
    assert r.distance(network, matched) == 0
    after = r.barrier(network, matched, x, labels, 11)
    assert after.cross_entropy_barrier < 1e-6 and after.accuracy_barrier < 1e-9
    if len(sizes) > 2:
        assert before.cross_entropy_barrier > 0.1 and before.accuracy_barrier > 0.05


def test_matching_finds_the_best_of_all_permutations():
    """One hidden layer: an assignment problem, checked against every permutation."""
    rng = np.random.default_rng(3)
    a, b = (make(rng, (4, 6, 3), dtype=np.float64) for _ in range(2))
    every = (r.permute_hidden(b, [np.array(p)]) for p in itertools.permutations(range(6)))
    best = min(r.distance(a, other) for other in every)
    found = r.distance(a, r.permute_hidden(b, r.match(a, b, rng)))
    assert found == pytest.approx(best)
    assert found < r.distance(a, b)


def test_matching_ends_where_no_layer_gains():
    """Two hidden layers of 5 units: no permutation of one layer alone brings b nearer."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a, b = (make(rng, (4, 5, 5, 3), dtype=np.float64) for _ in range(2))
        found = r.match(a, b, rng)
        nearest = r.distance(a, r.permute_hidden(b, found))
        for layer in range(2):
            for p in itertools.permutations(range(5)):
                other = list(found)
                other[layer] = found[layer][list(p)]
                assert r.distance(a, r.permute_hidden(b, other)) > nearest - 1e-9


@pytest.mark.parametrize("sizes", [(6, 4), (6, 5, 4), (6, 5, 7, 4)])
def test_barrier_point_by_point(sizes):
    rng = np.random.default_rng(4)
    a, b = (make(rng, sizes, "tanh", scale=2.0) for _ in range(2))
    x, labels = examples(rng, 200)
    found = r.barrier(a, b, x, labels)
    assert len(found.places) == 25 and (found.places[0], found.places[-1]) == (0, 1)
    losses, accuracies = [], []
    for t in found.places:
        tensors = {k: (1 - t) * v + t * b.tensors()[k] for k, v in a.float64().tensors().items()}
        here = r.evaluate(r.Network.from_tensors(tensors, "tanh"), x, labels)
        losses.append(here.cross_entropy)
        accuracies.append(here.accuracy)
    np.testing.assert_allclose(found.cross_entropy, losses, rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, accuracies, atol=0.01)
    assert found.accuracy[-1] == r.accuracy(b, x, labels)
    line = [(1 - t) * losses[0] + t * losses[-1] for t in found.places]
    rise = max(0, *(loss - at for loss, at in zip(losses, line, strict=True)))
    assert found.cross_entropy_barrier == pytest.approx(rise, abs=1e-4)
    line = [(1 - t) * accuracies[0] + t * accuracies[-1] for t in found.places]
    fall = max(0, *(at - acc for acc, at in zip(accuracies, line, strict=True)))
    assert found.accuracy_barrier == pytest.approx(fall, abs=0.01)


def test_linear_cka():
    rng = np.random.default_rng(5)
    a = rng.normal(size=(500, 20)) * np.arange(1, 21)
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    assert r.linear_cka(a, 3 * a @ rotation + 7) == pytest.approx(1)
    assert r.linear_cka(a, a * np.arange(20, 0, -1) ** 2) < 0.9  # not any linear map
    b = 0.5 * a[:, :8] + rng.normal(size=(500, 8))
    # The definition, by the Gram matrices of the examples: HSIC of centred kernels.
    centre = np.eye(500) - 1 / 500
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    expected = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert r.linear_cka(a, b) == pytest.approx(expected)
    assert r.linear_cka(np.float32(a), np.float32(b)) == pytest.approx(expected, rel=1e-4)
    assert r.linear_cka(rng.normal(size=(5000, 5)), rng.normal(size=(5000, 5))) < 0.01
    assert np.isnan(r.linear_cka(a, np.ones((500, 3))))


# Question 5

STEPS = np.arange(0, 3001)


def test_growth_fit_tells_the_laws_apart():
    rng = np.random.default_rng(6)
    t = np.maximum(STEPS, 1)
    noise = rng.normal(0, 0.02, len(t))
    logarithm = r.growth_fit(STEPS, 2 + 0.7 * np.log(t) + noise)
    assert logarithm.verdict == "logarithm" and logarithm.aic_difference < -10
    assert logarithm.logarithm.parameters == pytest.approx((2, 0.7), abs=0.02)
    assert logarithm.logarithm.rms == pytest.approx(0.02, rel=0.3)
    power = r.growth_fit(STEPS, 0.3 * t**0.5 + noise)
    assert power.verdict == "power law" and power.aic_difference > 10
    assert power.power.parameters == pytest.approx((0.3, 0.5), abs=0.005)


def test_growth_fit_without_noise():
    """Residuals of 0: their logarithm is no reason to fail."""
    steps = np.arange(1, 500)
    assert r.growth_fit(steps, 3 * steps**0.25).verdict == "power law"
    assert r.growth_fit(steps, 3 + 2 * np.log(steps)).verdict == "logarithm"
    assert r.growth_fit(steps, np.ones(499)).verdict in ("neither", "undecided")


def test_growth_fit_says_that_it_cannot_tell():
    rng = np.random.default_rng(7)
    t = np.maximum(STEPS, 1)
    # A power near 0 is a logarithm, to within this noise.
    assert r.growth_fit(STEPS, 5 * t**0.02 + rng.normal(0, 0.02, len(t))).verdict == "undecided"
    assert r.growth_fit(STEPS, rng.normal(5, 1, len(t))).verdict == "neither"
    # A random walk's own wandering is no evidence: its residuals hang together.
    walk = r.growth_fit(STEPS, 5 + np.log(t) + np.cumsum(rng.normal(0, 0.01, len(t))))
    assert walk.samples < 25 < len(r.thin(STEPS))
    with pytest.raises(ValueError, match="3 distances at steps from 1 on"):
        r.growth_fit(np.array([0, 10, 20, 30]), np.arange(4.0))


def test_thin_takes_steps_that_are_there():
    chosen = r.thin(STEPS)
    assert STEPS[chosen][0] == 1 and STEPS[chosen][-1] == 3000 and np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(r.thin(np.array([1, 10, 100, 1000]), 4), np.arange(4))
    assert len(r.thin(np.array([0]))) == 0


def test_local_slope_of_a_power_is_its_exponent():
    steps, slopes = r.local_slope(STEPS, 2 * STEPS**0.4)
    assert steps[0] == 1
    np.testing.assert_allclose(slopes, 0.4, atol=1e-9)
    steps, slopes = r.local_slope(STEPS, np.log(np.maximum(STEPS, 1)))
    late = steps > 30
    np.testing.assert_allclose(slopes[late][:-1], 1 / np.log(steps[late][:-1]), rtol=0.02)


def test_drift_ratio():
    rng = np.random.default_rng(8)
    walk = rng.normal(size=(400, 3000)) * rng.uniform(0.1, 2, (400, 1))
    norms = np.linalg.norm(walk, axis=1)
    assert r.drift_ratio(np.linalg.norm(walk.sum(axis=0)), norms) == pytest.approx(1, abs=0.05)
    assert r.drift_ratio(400 * 0.5, np.full(400, 0.5)) == pytest.approx(np.sqrt(400))
    assert r.drift_ratio(0, np.ones(4)) == 0
    assert np.isnan(r.drift_ratio(0, np.zeros(4)))


def test_late_trend():
    values = np.where(STEPS < 2000, 100.0, 3 + 0.01 * (STEPS - 2000))
    found = r.late_trend(STEPS, values)
    assert (found.first_step, found.last_step) == (2000, 3000)
    assert found.slope == pytest.approx(0.01) and found.mean == pytest.approx(8)
    assert found.change == pytest.approx(10 / 8)
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=50)
    part = r.late_trend(np.arange(0, 500, 10), noisy, 1 / 2)
    expected = np.polyfit(np.arange(0, 500, 10)[25:], noisy[25:], 1)[0]
    assert part.first_step == 250 and part.slope == pytest.approx(expected)
    with pytest.raises(ValueError, match="a trend wants two"):
        r.late_trend(np.array([0, 100]), np.zeros(2))
